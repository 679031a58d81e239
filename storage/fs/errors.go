package fs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/walherd/walherd/storage"
)

// explain turns an error of the system into one that says what was done to
// which file, whether another try can help, and what a person can do.
func (b *Bucket) explain(verb, name string, err error) error {
	at := fmt.Sprintf("%s %s", verb, filepath.Join(b.root, filepath.FromSlash(name)))
	if errors.Is(err, os.ErrNotExist) || isNotDir(err) {
		return fmt.Errorf("%s: %w", at, storage.ErrNotExist)
	}
	if way := wayOut(err); way != "" {
		return fmt.Errorf("%s: %w: %s: %w", at, cause(err), way, storage.ErrPermanent)
	}
	return fmt.Errorf("%s: %w", at, cause(err))
}

// wayOut is what a person can do about err; empty when another try may do.
func wayOut(err error) string {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		var inPath *os.PathError
		var inLink *os.LinkError
		if errors.As(err, &inPath) || errors.As(err, &inLink) {
			// os.Root's own refusals have no error value to ask for.
			return "a symbolic link leads out of the storage directory; mount or copy what it points to in its place"
		}
		return ""
	}
	switch errno {
	case syscall.EACCES, syscall.EPERM:
		return fmt.Sprintf("give user id %d access to the directory", os.Geteuid())
	case syscall.EROFS:
		return "the file system is read-only; look for a disk error in the system log and mount it writable"
	case syscall.ENOSPC:
		return "free space (or inodes) on the file system, or delete old backups"
	case syscall.EDQUOT:
		return "raise the disk quota of the user, or delete old backups"
	case syscall.EISDIR, syscall.ENOTDIR, syscall.EEXIST, syscall.ENOTEMPTY:
		return "a directory and an object have the same name; move one of them away"
	case syscall.ELOOP:
		return "symbolic links go round in a circle; remove one"
	}
	return ""
}

func isNotDir(err error) bool { return errors.Is(err, syscall.ENOTDIR) }

// cause strips the path the system's error repeats.
func cause(err error) error {
	var inPath *os.PathError
	if errors.As(err, &inPath) {
		return inPath.Err
	}
	var inLink *os.LinkError
	if errors.As(err, &inLink) {
		return inLink.Err
	}
	return err
}
