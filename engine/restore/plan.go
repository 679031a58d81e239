package restore

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pack"
	"github.com/walherd/walherd/engine/pg"
)

// DefaultConcurrency is how many parts are restored at once unless a request
// says otherwise.
const DefaultConcurrency = 10

// Request is what a user wants restored.
type Request struct {
	// Backup is the backup's name, for messages.
	Backup pg.BackupName
	// Sentinel is the backup's sentinel.
	Sentinel *manifest.Sentinel
	// Destination is the data directory to make: an absolute path.
	Destination string
	// Spec moves the tablespaces; nil leaves the choice to the plan, see
	// NewPlan.
	Spec *manifest.TablespaceSpec
	// Keep limits what is restored; nil is everything. KeepText says so in
	// words: requests with the same text keep the same files. Without it a
	// limited restore that was interrupted cannot be resumed.
	Keep     Filter
	KeepText string
	// Recovery are the recovery settings to write; nil is none.
	Recovery *Recovery
	// Expected are the parts that must be there, if the caller knows them
	// from files_metadata.json; a lost part would otherwise go unnoticed.
	Expected []string
	// Concurrency is how many parts may be restored at once; 0 is
	// DefaultConcurrency.
	Concurrency int
	// Reverse restores a chain from the target down to its base, so that a
	// page is written once; see NewChainPlan. The result is the same.
	Reverse bool
	// SkipRedundant leaves out the tars of a chain's older backups that,
	// by their lists, hold nothing which is still needed; with Keep also those
	// of the target. A tar that is not listed is read.
	SkipRedundant bool
	// PageSize of the cluster in bytes, of a chain; 0 is
	// page.DefaultSize.
	PageSize int
}

// Plan is what Run will do. It is a value to print, and not changed by Run.
type Plan struct {
	Backup      pg.BackupName
	Destination string
	// Data are restored first, Concurrency of them at once, then Label,
	// then Control, each in the order given.
	Data, Label, Control []Object
	Concurrency          int
	// Bases are the backups that an increment builds on, base first; none
	// for a full backup.
	Bases []Step
	// chain is nil for a full backup.
	chain *chain
	// Tablespaces are made before the first entry is written.
	Tablespaces []Placement
	// DropTablespaceMap leaves the backup's tablespace_map out: PostgreSQL
	// would read it at its first start and point the links at the original
	// directories, perhaps those of a running server.
	DropTablespaceMap bool
	Keep              Filter
	KeepText          string
	// Recovery are the recovery settings to write; nil is none.
	Recovery *Recovery
	// Notes tell the user what the plan decided on its own.
	Notes []string
}

// Placement is where one tablespace goes.
type Placement struct {
	// OID names the link pg_tblspc/<OID> in the destination.
	OID string
	// Directory is the absolute directory the link points to. It must be
	// absent or empty.
	Directory string
}

// MappedDir is the folder below the destination that receives the
// tablespaces of a backup restored elsewhere.
const MappedDir = "tablespaces"

// isTar reports whether an object is the tar called base, compressed or not.
// Objects are told apart by name only and as WAL-G does it, which matches the
// name anywhere: ^.*?pg_control\.tar(\..+$|$).
func isTar(object, base string) bool {
	i := strings.Index(object, base)
	for i >= 0 {
		rest := object[i+len(base):]
		if rest == "" || len(rest) > 1 && rest[0] == '.' {
			return true
		}
		next := strings.Index(object[i+1:], base)
		if next < 0 {
			return false
		}
		i += 1 + next
	}
	return false
}

// isWALE reports whether the name is one of WAL-E's (base_SEG_OFFSET), whose
// backups have neither object: pg_control is in a part.
func isWALE(name pg.BackupName) bool {
	const offset = len("base_") + pg.SegmentNameLen + len("_00000000")
	_, err := pg.ParseBackupName(string(name))
	return err == nil && len(name) == offset
}

// NewPlan plans the restore of a full backup out of parts. It refuses an
// increment (ErrIncrement), which takes NewChainPlan, and a list that cannot be a whole backup
// (ErrIncomplete).
//
// The tablespaces go where the request's Spec says. Without one, and restored
// to the directory it was taken from, they go where they were. Otherwise each
// goes to <destination>/tablespaces/<OID>: the original directories may belong
// to the cluster that is still running on this host, and a restore into a
// fresh directory must not need a spec to be safe.
func NewPlan(parts []Object, r Request) (*Plan, error) {
	if r.Sentinel != nil && r.Sentinel.Increment != nil {
		return nil, fmt.Errorf("plan restore of %s: it is an increment of %q: %w", r.Backup, r.Sentinel.Parent, ErrIncrement)
	}
	files := func(v manifest.FilesVisitor) error {
		for _, name := range r.Expected {
			if err := v.Tar(name); err != nil {
				return err
			}
		}
		return nil
	}
	return NewChainPlan([]Link{{Backup: r.Backup, Sentinel: r.Sentinel, Parts: parts, Files: files}}, r)
}

// StoredBytes is the sum of the sizes of all objects the plan reads; with
// redundant tars left out it may be less.
func (p *Plan) StoredBytes() int64 {
	var n int64
	groups := [][]Object{p.Data, p.Label, p.Control}
	for _, b := range p.Bases {
		if b.Wanted > 0 {
			groups = append(groups, b.Data)
		}
	}
	for _, group := range groups {
		for _, o := range group {
			n += o.Size
		}
	}
	return n
}

// group is a backup's objects by kind, each sorted by name.
type group struct{ data, label, control []Object }

// sortObjects tells the objects apart, and misses those that are expected.
func sortObjects(parts []Object, expected []string) (g group, err error) {
	sorted := slices.SortedFunc(slices.Values(parts), func(a, b Object) int { return cmp.Compare(a.Name, b.Name) })
	for i, o := range sorted {
		if i > 0 && sorted[i-1].Name == o.Name {
			return group{}, fmt.Errorf("object %s is listed twice", o.Name)
		}
		switch {
		case isTar(o.Name, pack.ControlTarName):
			g.control = append(g.control, o)
		case isTar(o.Name, pack.LabelTarName):
			g.label = append(g.label, o)
		default:
			g.data = append(g.data, o)
		}
	}
	var lost []string
	for _, name := range expected {
		_, found := slices.BinarySearchFunc(sorted, name, func(o Object, name string) int { return cmp.Compare(o.Name, name) })
		if !found {
			lost = append(lost, name)
		}
	}
	switch {
	case len(lost) > 0:
		return group{}, fmt.Errorf("%w: the storage lacks %s", ErrIncomplete, strings.Join(lost, ", "))
	case len(g.data) == 0:
		return group{}, fmt.Errorf("%w: the storage holds no data part", ErrIncomplete)
	}
	return g, nil
}

// complete refuses objects that cannot make a directory which starts.
func (g group) complete(backup pg.BackupName) error {
	if len(g.control)+len(g.label) == 0 && !isWALE(backup) {
		return fmt.Errorf("%w: the storage holds neither pg_control.tar nor backup_label.tar", ErrIncomplete)
	}
	return nil
}

// concurrency is how many of n parts to restore at once.
func concurrency(n, asked int) int {
	return min(n, cmp.Or(max(asked, 0), DefaultConcurrency))
}

func (p *Plan) placeTablespaces(original, wanted *manifest.TablespaceSpec) error {
	switch {
	case wanted != nil:
		return p.placeAsWanted(original, wanted)
	case original == nil || len(original.Tablespaces) == 0:
		return nil
	}
	if err := original.Validate(); err != nil {
		return fmt.Errorf("the backup's tablespaces cannot be used, give their places with --restore-spec: %w", err)
	}
	if original.BasePrefix == p.Destination {
		for _, t := range original.Tablespaces {
			p.Tablespaces = append(p.Tablespaces, Placement{OID: t.OID, Directory: t.Location})
		}
		return p.checkPlacements()
	}
	p.DropTablespaceMap = true
	for _, t := range original.Tablespaces {
		dir := filepath.Join(p.Destination, MappedDir, t.OID)
		p.Tablespaces = append(p.Tablespaces, Placement{OID: t.OID, Directory: dir})
		p.Notes = append(p.Notes, fmt.Sprintf("tablespace %s goes to %s instead of %s, because the destination is not %s; --restore-spec places it elsewhere",
			t.OID, dir, t.Location, original.BasePrefix))
	}
	return nil
}

func (p *Plan) placeAsWanted(original, wanted *manifest.TablespaceSpec) error {
	if err := wanted.Validate(); err != nil {
		return fmt.Errorf("use the restore spec: %w", err)
	}
	if original != nil {
		var missing []string
		for _, t := range original.Tablespaces {
			if _, ok := wanted.Get(t.OID); !ok {
				missing = append(missing, t.OID)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("use the restore spec: the backup has tablespace %s, for which the spec names no place", strings.Join(missing, ", "))
		}
	}
	if wanted.BasePrefix != p.Destination {
		p.Notes = append(p.Notes, fmt.Sprintf("the restore spec's base_prefix is %s; the links are made in %s all the same",
			wanted.BasePrefix, p.Destination))
	}
	p.DropTablespaceMap = true
	for _, t := range wanted.Tablespaces {
		p.Tablespaces = append(p.Tablespaces, Placement{OID: t.OID, Directory: t.Location})
		if _, ok := original.Get(t.OID); !ok {
			p.Notes = append(p.Notes, fmt.Sprintf("the restore spec places tablespace %s, which the backup does not mention", t.OID))
		}
	}
	return p.checkPlacements()
}

// checkPlacements refuses a tablespace that is the destination or around it.
func (p *Plan) checkPlacements() error {
	for _, t := range p.Tablespaces {
		if rel, err := filepath.Rel(t.Directory, p.Destination); err == nil && filepath.IsLocal(rel) {
			return fmt.Errorf("tablespace %s would go to %s, which holds the destination %s; give another place with --restore-spec",
				t.OID, t.Directory, p.Destination)
		}
	}
	return nil
}
