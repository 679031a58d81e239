package cluster

import (
	"io/fs"
	"math"
	"time"
)

// Names with a place of their own in a backup.
const (
	// ControlName is the control file's name in a backup. It is stored in a
	// tar of its own so that a restore can write it last: a half-restored
	// directory must not be startable.
	ControlName = "/global/pg_control"
	// WALDirName is stored as an empty directory.
	WALDirName = "/pg_wal"
	// TablespaceDirName holds the links to the tablespaces.
	TablespaceDirName = "/pg_tblspc"
)

// Entry is one file or directory of a backup as the walk saw it. It takes 48
// bytes and the name.
type Entry struct {
	// Name is the name in the tar and in the file list: the path relative
	// to the data directory with a leading slash and none at the end; "/"
	// is the data directory itself. A file of a tablespace is named through
	// the link: /pg_tblspc/16384/PG_15_202209061/16386/1259. So root+Name
	// is always a path that can be opened.
	Name string
	// Size in bytes. A backup stores exactly so many, whatever becomes of
	// the file. 0 for a directory.
	Size int64
	// MTime is the modification time in nanoseconds since the epoch: an
	// increment compares it exactly.
	MTime int64
	// UID and GID of the owner.
	UID, GID uint32
	// Mode holds the permission bits, and fs.ModeDir for a directory.
	// Nothing else is ever an entry.
	Mode fs.FileMode
}

// IsDir reports whether e is a directory; else it is a regular file.
func (e *Entry) IsDir() bool { return e.Mode&fs.ModeDir != 0 }

// ModTime is MTime as a time in UTC.
func (e *Entry) ModTime() time.Time { return time.Unix(0, e.MTime).UTC() }

// Path is where the entry lies, given the data directory.
func (e *Entry) Path(root string) string {
	if e.Name == "/" {
		return root
	}
	return root + e.Name
}

func newEntry(name string, info fs.FileInfo) Entry {
	uid, gid := owner(info)
	e := Entry{
		Name: name, MTime: unixNano(info.ModTime()), UID: uid, GID: gid,
		Mode: info.Mode() & (fs.ModePerm | fs.ModeDir),
	}
	if !info.IsDir() {
		e.Size = info.Size()
	}
	return e
}

// unixNano clamps what does not fit 64 bits (years before 1678 or after
// 2262, from a broken clock): UnixNano is undefined there.
func unixNano(t time.Time) int64 {
	switch s := t.Unix(); {
	case s < math.MinInt64/int64(time.Second)+1:
		return math.MinInt64
	case s > math.MaxInt64/int64(time.Second)-1:
		return math.MaxInt64
	}
	return t.UnixNano()
}

// Tablespace is one symbolic link in pg_tblspc.
type Tablespace struct {
	// OID is the link's name: the tablespace's object id in decimal.
	OID string
	// Location is the link's target, absolute, without a slash at the end.
	Location string
}

// Summary is what a walk finds besides its entries.
type Summary struct {
	// Control is /global/pg_control, which Walk never hands to its
	// function; nil when there is none.
	Control *Entry
	// Tablespaces in the order of their link names.
	Tablespaces []Tablespace
	// CatalogSize is the sum of the sizes of everything visited, directories
	// and left-out files included: the sentinel's DataCatalogSize.
	CatalogSize int64
	// DataSize is the sum of Entry.Size over the entries.
	DataSize int64
	// Files and Dirs count the entries.
	Files, Dirs int
}

// Listing is a whole walk in memory.
type Listing struct {
	// Root is the data directory with symbolic links resolved.
	Root string
	// Entries in the order of the walk, without the control file.
	Entries []Entry
	Summary
}

// Path is where entry i lies.
func (l *Listing) Path(i int) string { return l.Entries[i].Path(l.Root) }
