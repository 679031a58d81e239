//go:build !linux

package fs

import "os"

// startWriteback is a hint that only Linux takes.
func startWriteback(*os.File, int64, int64) {}

// renameNoReplace is Linux's; elsewhere a hard link does it.
func renameNoReplace(*os.Root, string, string) (done bool, err error) { return false, nil }
