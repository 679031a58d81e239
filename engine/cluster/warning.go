package cluster

import "fmt"

// WarningKind tells why something is not in a backup.
type WarningKind int

// The kinds of warning.
const (
	// Vanished: the file was removed while the walk was under way. Ordinary:
	// a running server drops tables.
	Vanished WarningKind = iota + 1
	// TablespaceMissing: a link in pg_tblspc points nowhere. The backup does
	// not hold this tablespace.
	TablespaceMissing
	// Symlink: a symbolic link that is no tablespace. WAL-G stores a wrong
	// target for it and cannot restore a chain that has one.
	Symlink
	// CoreSymlink is a Symlink where the cluster's own data should be (base,
	// global, ...): what it points to is missing from the backup.
	CoreSymlink
	// Special: a socket, a FIFO or a device.
	Special
	// StaleLabel: a backup_label or tablespace_map in the data directory.
	// The backup writes its own, a stale one would win on restore.
	StaleLabel
	// NestedTablespace: a directory that is the location of a tablespace, or
	// the data directory itself below a tablespace's location. It is stored
	// once, under its own name.
	NestedTablespace
	// Unreadable: a lost+found, whose contents only root may see.
	Unreadable
)

// Warning names a path that is not in the backup, or not where expected.
type Warning struct {
	Kind WarningKind
	// Path in the file system.
	Path string
	// Target of a symbolic link or a tablespace.
	Target string
}

// LosesData reports whether the backup is incomplete because of it. A caller
// that promises a restorable backup should refuse then, or at least be loud.
func (w Warning) LosesData() bool { return w.Kind == TablespaceMissing || w.Kind == CoreSymlink }

// String says what happened and, where a person can act, the way out.
func (w Warning) String() string {
	switch w.Kind {
	case Vanished:
		return fmt.Sprintf("%s was removed during the scan", w.Path)
	case TablespaceMissing:
		return fmt.Sprintf("tablespace %s points to %s, which does not exist: the backup will not hold it (mount the location, or drop the tablespace)", w.Path, w.Target)
	case Symlink:
		return fmt.Sprintf("%s is a symbolic link to %s and is left out (keep such files in place, or back them up otherwise)", w.Path, w.Target)
	case CoreSymlink:
		return fmt.Sprintf("%s is a symbolic link to %s: the backup will NOT hold its data (use a tablespace, or move the data back)", w.Path, w.Target)
	case Special:
		return fmt.Sprintf("%s is a socket, FIFO or device and is left out", w.Path)
	case StaleLabel:
		return fmt.Sprintf("%s is left over from another backup and is left out", w.Path)
	case NestedTablespace:
		return fmt.Sprintf("%s is a tablespace's location or the data directory and is stored under its own name only", w.Path)
	case Unreadable:
		return fmt.Sprintf("%s may not be read and is stored as an empty directory", w.Path)
	}
	return w.Path
}
