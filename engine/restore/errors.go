package restore

import (
	"errors"
	"fmt"

	"github.com/walherd/walherd/engine/pg"
)

// What can go wrong, for errors.Is.
var (
	// ErrIncrement: the backup is an increment, and was given without the
	// backups it builds on.
	ErrIncrement = errors.New("an increment cannot be restored without its chain")
	// ErrIncomplete: the backup lacks something without which the result
	// would not be the cluster that was backed up.
	ErrIncomplete = errors.New("backup is incomplete")
	// ErrNotEmpty: a directory to restore into holds something.
	ErrNotEmpty = errors.New("directory is not empty")
	// ErrUnfinished: the destination holds an unfinished restore that this one
	// cannot go on with: of another backup, with other options, or at work.
	ErrUnfinished = errors.New("directory holds an unfinished restore")
	// ErrArchive: an archive holds what no backup holds (a name that leaves
	// the data directory, the same file twice) or is not a whole archive.
	ErrArchive = errors.New("archive is not a sound part of a backup")
)

// ObjectError tells which stored object made a restore fail.
type ObjectError struct {
	// Backup is the one the object belongs to, which may be a base of the
	// one that is restored.
	Backup pg.BackupName
	Object string
	// Attempts is how often the object was tried.
	Attempts int
	Err      error
}

// Error implements error.
func (e *ObjectError) Error() string {
	if e.Attempts > 1 {
		return fmt.Sprintf("restore object %s of %s (%d attempts): %v", e.Object, e.Backup, e.Attempts, e.Err)
	}
	return fmt.Sprintf("restore object %s of %s: %v", e.Object, e.Backup, e.Err)
}

// Unwrap returns the cause of the last attempt.
func (e *ObjectError) Unwrap() error { return e.Err }

// finalError marks what another attempt would meet again.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

// final marks err as not worth another attempt; nil stays nil.
func final(err error) error {
	if err == nil {
		return nil
	}
	return finalError{err}
}

func archiveError(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrArchive, fmt.Errorf(format, args...))
}

// wayOut adds to the error of a full disk what to do about it.
func wayOut(err error, out string) error {
	if !diskFull(err) {
		return err
	}
	return fmt.Errorf("%w: the disk is full: %s", err, out)
}
