package durable

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func renameNoReplace(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	// EINVAL: the filesystem does not know the flag (NFS, some FUSE). ENOSYS:
	// the kernel or a sandbox does not know the call.
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return linkNoReplace(from, to)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// SyncTree makes everything below dir durable, contents and names, with one
// call: it syncs the filesystem dir lies on. A tree that reaches into other
// filesystems (tablespaces, a pg_wal elsewhere) takes a call for each.
//
// It waits for other writers of the same filesystem too. Before Linux 5.8 the
// kernel does not report write errors here.
func SyncTree(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync the filesystem of %s: %w", dir, err)
	}
	defer d.Close()
	for {
		err := unix.Syncfs(int(d.Fd()))
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("sync the filesystem of %s: %w", dir, err)
		}
	}
}
