package durable

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// SyncDir makes the names in a directory durable: after it, files created,
// renamed or removed there stay so. The files' contents are another matter.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	err = d.Sync()
	// Some filesystems (CIFS, FUSE) cannot sync a directory and say so with
	// EINVAL or ENOTSUP. PostgreSQL goes on then, and so do we: there is
	// nothing else to call.
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		err = nil
	}
	if err := errors.Join(err, d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}
