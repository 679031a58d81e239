package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// MarkerName is the file that a destination holds until its restore is
// complete. It says what is unfinished, and after a failure why; and in lines
// of JSON what is done already, for a restore that goes on with it.
const MarkerName = "walherd-restore-incomplete"

// writeMarker makes the marker durable before anything else is written.
func (t *target) writeMarker() error {
	var text strings.Builder
	fmt.Fprintf(&text, "This is an unfinished restore of backup %s.\n", t.plan.Backup)
	text.WriteString("PostgreSQL must not run on it: files are missing or incomplete, and so is global/pg_control, on purpose.\n")
	if t.resumable {
		text.WriteString("The same command again goes on with it. ")
	}
	text.WriteString("To start over, empty this directory")
	for _, s := range t.plan.Tablespaces {
		fmt.Fprintf(&text, "\nand %s", s.Directory)
	}
	text.WriteString("\nand restore again. This file goes when a restore is complete.\n")

	f, err := t.root.OpenFile(MarkerName, os.O_RDWR|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	t.journal = newJournal(f)
	if err := t.journal.lock(); err != nil {
		return err
	}
	if _, err := f.WriteString(text.String()); err != nil {
		return err
	}
	if err := t.journal.begin(t.plan, t.session); err != nil {
		return err
	}
	if !t.fsync {
		return nil
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return t.syncDir(".")
}

// explain appends the reason of a failure to the marker, if there is one, and if
// it is not a full disk that takes no marker's line either.
func (t *target) explain(cause error) error {
	f, err := t.root.OpenFile(MarkerName, os.O_WRONLY|os.O_APPEND, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	// No line of it may look like one of the journal.
	reason := strings.ReplaceAll(cause.Error(), "\n", "\n  ")
	if _, err := fmt.Fprintf(f, "\nThe restore failed: %s\n", reason); err != nil {
		if err = errors.Join(err, f.Close()); diskFull(cause) && diskFull(err) {
			return nil
		}
		return err
	}
	return f.Close()
}

// removeMarker declares the restore complete.
func (t *target) removeMarker() error {
	if err := t.root.Remove(MarkerName); err != nil {
		return err
	}
	return t.syncDir(".")
}
