//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package failover

import (
	"context"
	"os"
)

func openCache(path string, flag int) (*os.File, error) { return os.OpenFile(path, flag, 0o644) }

// lock does nothing where there is no flock: two commands that write at once
// leave a corrupt file at worst, which costs a check.
func lock(context.Context, *os.File, bool) error { return nil }
