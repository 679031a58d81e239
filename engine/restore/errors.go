package restore

import (
	"errors"
	"fmt"
)

// What can go wrong, for errors.Is.
var (
	// ErrIncrement: the backup is an increment.
	ErrIncrement = errors.New("increments cannot be restored by this version")
	// ErrIncomplete: the backup lacks something without which the result
	// would not be the cluster that was backed up.
	ErrIncomplete = errors.New("backup is incomplete")
	// ErrNotEmpty: a directory to restore into holds something.
	ErrNotEmpty = errors.New("directory is not empty")
	// ErrArchive: an archive holds what no backup holds (a name that leaves
	// the data directory, the same file twice) or is not a whole archive.
	ErrArchive = errors.New("archive is not a sound part of a backup")
)

// ObjectError tells which stored object made a restore fail.
type ObjectError struct {
	Object string
	// Attempts is how often the object was tried.
	Attempts int
	Err      error
}

// Error implements error.
func (e *ObjectError) Error() string {
	if e.Attempts > 1 {
		return fmt.Sprintf("restore object %s (%d attempts): %v", e.Object, e.Attempts, e.Err)
	}
	return fmt.Sprintf("restore object %s: %v", e.Object, e.Err)
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
