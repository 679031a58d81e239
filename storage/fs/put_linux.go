package fs

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// startWriteback asks for n bytes at offset to be brought to disk, without
// waiting. It is a hint: what it cannot do, and every write error, the final
// sync does or tells.
func startWriteback(f *os.File, offset, n int64) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SyncFileRange(int(fd), offset, n, unix.SYNC_FILE_RANGE_WRITE)
	})
}

// renameNoReplace renames within dir unless there is a file called to
// (os.ErrExist). done is false when the file system has no such call (NFS,
// some FUSE ones).
func renameNoReplace(dir *os.Root, from, to string) (done bool, err error) {
	d, err := dir.Open(".")
	if err != nil {
		return true, err
	}
	defer d.Close()
	raw, err := d.SyscallConn()
	if err != nil {
		return true, err
	}
	var callErr error
	if err := raw.Control(func(fd uintptr) {
		for {
			callErr = unix.Renameat2(int(fd), from, int(fd), to, unix.RENAME_NOREPLACE)
			if callErr != unix.EINTR {
				return
			}
		}
	}); err != nil {
		return true, err
	}
	if errors.Is(callErr, unix.EINVAL) || errors.Is(callErr, unix.ENOSYS) || errors.Is(callErr, unix.EOPNOTSUPP) {
		return false, nil
	}
	if callErr != nil {
		return true, &os.LinkError{Op: "renameat2", Old: from, New: to, Err: callErr}
	}
	return true, nil
}
