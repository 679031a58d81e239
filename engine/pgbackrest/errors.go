package pgbackrest

import (
	"errors"
	"fmt"
)

// What can go wrong, for errors.Is. What does not exist is fs.ErrNotExist.
var (
	// ErrCorrupt: a document or a file is not what was stored.
	ErrCorrupt = errors.New("repository is damaged")
	// ErrPassphrase: the repository is encrypted and the passphrase is
	// missing or wrong, or there is one and the repository is not
	// encrypted.
	ErrPassphrase = errors.New("passphrase does not fit the repository")
	// ErrUnsupported: the repository uses what this package does not read.
	ErrUnsupported = errors.New("not supported")
	// ErrUnfinished: the backup was begun and not completed.
	ErrUnfinished = errors.New("backup is unfinished")
	// ErrDuplicate: a WAL file is stored with different contents.
	ErrDuplicate = errors.New("stored several times with different content")
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrCorrupt, fmt.Errorf(format, args...))
}
