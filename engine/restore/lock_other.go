//go:build !unix

package restore

import "os"

// lockFile does nothing: these systems have no such lock.
func lockFile(*os.File) error { return nil }

// session is not known, so that every part of an interrupted restore is
// restored again.
func session() string { return "" }

// diskFull is not known.
func diskFull(error) bool { return false }
