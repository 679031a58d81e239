package pgbackrest

import (
	"cmp"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/walherd/walherd/engine/pg"
)

// Label names a backup: 20260821-101500F for a full one, and for one that
// builds on it the same and _20260822-101500D or I, of that backup's local time.
type Label string

var (
	labelForm   = regexp.MustCompile(`^[0-9]{8}-[0-9]{6}F(_[0-9]{8}-[0-9]{6}[DI])?$`)
	stanzaForm  = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]*$`)
	versionForm = regexp.MustCompile(`^[0-9]{1,2}(\.[0-9]{1,2})?$`)
)

// ParseLabel reads a label. Labels become names of folders, so anything else is
// refused.
func ParseLabel(s string) (Label, error) {
	if !labelForm.MatchString(s) {
		return "", fmt.Errorf("%q is no name of a pgBackRest backup (want 20260821-101500F, or 20260821-101500F_20260822-101500D or I)", s)
	}
	return Label(s), nil
}

// UnmarshalText implements encoding.TextUnmarshaler, by ParseLabel.
func (l *Label) UnmarshalText(text []byte) (err error) {
	*l, err = ParseLabel(string(text))
	return err
}

// BackupType is how much a backup holds.
type BackupType string

// The types of backup.
const (
	Full         BackupType = "full"
	Differential BackupType = "diff" // what changed since the full backup
	Incremental  BackupType = "incr" // what changed since the backup before
)

// seconds is a time as the documents have it, in seconds since 1970.
type seconds int64

func (s seconds) time() time.Time { return time.Unix(int64(s), 0).UTC() }

// Backup is a completed backup, as backup.info lists it.
type Backup struct {
	Label Label
	Type  BackupType
	// Start and Stop are when it was begun and completed.
	Start, Stop time.Time
	// ArchiveStart is the segment it starts in; empty for a backup that was
	// taken while the server was down.
	ArchiveStart string
	// Error tells that pages with wrong checksums were found.
	Error bool
}

type backupJSON struct {
	Type         BackupType `json:"backup-type"`
	Start        *seconds   `json:"backup-timestamp-start"`
	Stop         *seconds   `json:"backup-timestamp-stop"`
	ArchiveStart string     `json:"backup-archive-start"`
	Error        bool       `json:"backup-error"`
}

// BackupInfo is backup.info: the list of a stanza's backups.
type BackupInfo struct {
	// Backups by time of completion, the oldest first.
	Backups    []Backup
	passphrase string
}

// ParseBackupInfo reads a backup.info.
func ParseBackupInfo(r io.Reader) (*BackupInfo, error) {
	info := new(BackupInfo)
	var err error
	info.passphrase, err = parse(r, func(section, key string, value []byte) error {
		if section != "backup:current" {
			return nil
		}
		label, err := ParseLabel(key)
		if err != nil {
			return corrupt("%w", err)
		}
		var b backupJSON
		if err := decode(value, &b); err != nil {
			return err
		}
		if b.Type == "" || b.Start == nil || b.Stop == nil {
			return corrupt("backup %s has no type or no time", label)
		}
		info.Backups = append(info.Backups, Backup{
			Label: label, Type: b.Type, Start: b.Start.time(), Stop: b.Stop.time(), ArchiveStart: b.ArchiveStart, Error: b.Error,
		})
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(info.Backups, func(a, b Backup) int { return cmp.Or(a.Stop.Compare(b.Stop), cmp.Compare(a.Label, b.Label)) })
	return info, nil
}

// Latest is the backup that was completed last; false when there is none.
func (i *BackupInfo) Latest() (Backup, bool) {
	if len(i.Backups) == 0 {
		return Backup{}, false
	}
	return i.Backups[len(i.Backups)-1], true
}

// Find is the backup of that label.
func (i *BackupInfo) Find(label Label) (Backup, bool) {
	at := slices.IndexFunc(i.Backups, func(b Backup) bool { return b.Label == label })
	if at < 0 {
		return Backup{}, false
	}
	return i.Backups[at], true
}

// Database is a cluster whose WAL an archive holds. A stanza has another one
// after an upgrade.
type Database struct {
	ID       int
	SystemID pg.SystemID
	// Version of PostgreSQL as in the name of the folder: 9.6, 15.
	Version string
}

// Folder is the archive's folder of the cluster, the archive id.
func (d Database) Folder() string { return d.Version + "-" + strconv.Itoa(d.ID) }

// ArchiveInfo is archive.info: whose WAL is archived.
type ArchiveInfo struct {
	// Databases, the newest first, which is the current one.
	Databases  []Database
	passphrase string
}

type databaseJSON struct {
	// The system identifier is above 2^53 and must be read as an integer.
	SystemID pg.SystemID `json:"db-id"`
	Version  string      `json:"db-version"`
}

// ParseArchiveInfo reads an archive.info.
func ParseArchiveInfo(r io.Reader) (*ArchiveInfo, error) {
	info := new(ArchiveInfo)
	var err error
	info.passphrase, err = parse(r, func(section, key string, value []byte) error {
		if section != "db:history" {
			return nil
		}
		var d databaseJSON
		if err := decode(value, &d); err != nil {
			return err
		}
		id, err := strconv.Atoi(key)
		if err != nil || id < 1 || strconv.Itoa(id) != key {
			return corrupt("database id %.20q is no number", key)
		}
		if !versionForm.MatchString(d.Version) {
			return corrupt("%.20q is no version of PostgreSQL", d.Version)
		}
		info.Databases = append(info.Databases, Database{ID: id, SystemID: d.SystemID, Version: d.Version})
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case len(info.Databases) == 0:
		return nil, corrupt("it lists no database")
	}
	slices.SortFunc(info.Databases, func(a, b Database) int { return cmp.Compare(b.ID, a.ID) })
	return info, nil
}

// Of are the databases with that system identifier, of all if it is 0.
func (i *ArchiveInfo) Of(id pg.SystemID) []Database {
	var of []Database
	for _, d := range i.Databases {
		if id == 0 || d.SystemID == id {
			of = append(of, d)
		}
	}
	return of
}
