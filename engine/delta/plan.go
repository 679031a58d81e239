package delta

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/walherd/walherd/engine/cluster"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/wal"
)

// Action is what an increment backup does with an entry.
type Action uint8

const (
	// Whole stores the entry as a full backup does.
	Whole Action = iota
	// Increment stores the pages that changed, or the file whole if there
	// is no telling which.
	Increment
	// Skip stores nothing: the parent has it.
	Skip
)

// String names the action.
func (a Action) String() string {
	switch a {
	case Whole:
		return "whole"
	case Increment:
		return "increment"
	case Skip:
		return "skip"
	}
	return fmt.Sprintf("action %d", uint8(a))
}

// Clock is how coarse a file's time may be: some file systems keep whole
// seconds or pairs of them. See Decide.
const Clock = 2 * time.Second

// Parent is the backup an increment is made on.
type Parent struct {
	// Start is when the parent began. Zero is unknown: then no file's time
	// is believed.
	Start time.Time
	// Files gives what the parent's files_metadata.json says, in any order:
	// manifest.ReadFiles with the File function of a visitor.
	Files func(visit func(name string, f manifest.File) error) error
}

// Paged reports whether an increment can be made of a file: one of the files of
// a relation's main fork, by its name, and a whole number of pages long. name is
// relative to the data directory, with or without the leading slash. The
// relations in global/ are not among them, as in WAL-G, nor are other forks.
//
// WAL-G looks for "base" anywhere in the absolute path, so that a data
// directory such as /srv/database makes every file with a number for a name
// paged. Here the place of the data directory has no say.
func Paged(name string, size int64, pageSize int) bool {
	if size <= 0 || size > MaxFileSize || size%int64(pageSize) != 0 {
		return false
	}
	name = strings.TrimPrefix(name, "/")
	if !strings.HasPrefix(name, "base/") && !strings.HasPrefix(name, "pg_tblspc/") {
		return false
	}
	// OrioleDB's pages are of another kind.
	if strings.Contains(name, "orioledb_data") {
		return false
	}
	file, segment, dotted := strings.Cut(name[strings.LastIndexByte(name, '/')+1:], ".")
	return digits(file) && (!dotted || digits(segment))
}

func digits(s string) bool {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return s != ""
}

// Decide tells what to do with an entry of which the parent says old. Entries
// the parent does not list are Whole.
//
// A file whose time is exactly the parent's is unchanged, with one exception: a
// file the server wrote to right before the parent looked at it may have been
// written to again within one tick of the file system's clock, after the parent
// had read it. WAL replay mends that for the parent, but not for an increment
// that begins later and skips the file. So a time is believed only if it was
// Clock older than the parent's start.
func Decide(e *cluster.Entry, old manifest.File, parentStart time.Time, pageSize int) Action {
	switch {
	case e.IsDir() || !storable(e.Name):
		return Whole
	case unchanged(e, old, parentStart):
		return Skip
	case Paged(e.Name, e.Size, pageSize):
		return Increment
	}
	return Whole
}

// unchanged reports whether nothing was written to e since the parent read it.
func unchanged(e *cluster.Entry, old manifest.File, parentStart time.Time) bool {
	return !parentStart.IsZero() && e.MTime != math.MinInt64 && e.MTime != math.MaxInt64 &&
		e.ModTime().Equal(old.MTime) && e.ModTime().Before(parentStart.Add(-Clock))
}

// storable reports whether a name stays itself in JSON, where each byte that is
// not UTF-8 becomes U+FFFD: another's entry may be meant otherwise.
func storable(name string) bool {
	return utf8.ValidString(name) && !strings.ContainsRune(name, utf8.RuneError)
}

// Plan decides for each of a backup's entries. It takes five bytes for an entry
// on top of the entries, whatever the parent lists.
//
// The parent's names are compared letter for letter: those of a streamed backup
// have no slash in front, so nothing of it can be built on, which is also how
// WAL-G would restore it.
func Plan(entries []cluster.Entry, parent Parent, pageSize int) ([]Action, error) {
	if !validPageSize(pageSize) {
		return nil, fmt.Errorf("plan increment: page size %d is not a power of two from 1024 to 32768", pageSize)
	}
	actions := make([]Action, len(entries))
	order := make([]int32, len(entries))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(a, b int32) int { return cmp.Compare(entries[a].Name, entries[b].Name) })
	kept := map[int32]bool{}
	err := parent.Files(func(name string, f manifest.File) error {
		at, found := slices.BinarySearchFunc(order, name, func(i int32, name string) int { return cmp.Compare(entries[i].Name, name) })
		if found {
			i := order[at]
			actions[i] = Decide(&entries[i], f, parent.Start, pageSize)
			if _, ok := versionOf(name); ok && entries[i].ModTime().Equal(f.MTime) {
				kept[i] = true
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("plan increment: read the parent's list of files: %w", err)
	}
	renew(entries, actions, kept, parent.Start)
	return actions, nil
}

// replayLag is by how much a standby may have been behind when it gave the
// parent, generously.
const replayLag = 24 * time.Hour

// renew has the files of databases stored whole that were made or moved since
// the parent: CREATE DATABASE with the strategy FILE_COPY copies pages with
// their LSNs, older than the parent, and a number may come back (CREATE DATABASE
// ... OID). What tells is the file PG_VERSION in a database's directory, which
// nothing ever writes to again. kept are those that are as the parent has them.
//
// On a server that was restored or cloned, all these files are new; there, only
// their time tells what came after the parent.
func renew(entries []cluster.Entry, actions []Action, kept map[int32]bool, start time.Time) {
	renewed := map[uint32]bool{}
	for i := range entries {
		e := &entries[i]
		if db, ok := versionOf(e.Name); ok && !kept[int32(i)] && (start.IsZero() || e.ModTime().After(start.Add(-replayLag))) {
			renewed[db] = true
		}
	}
	for i := range entries {
		if actions[i] != Increment {
			continue
		}
		if f, err := wal.ParseFile(entries[i].Name); err == nil && renewed[f.Database] {
			actions[i] = Whole
		}
	}
}

// versionOf gives the database that name is the file PG_VERSION of.
func versionOf(name string) (db uint32, ok bool) {
	dir, ok := strings.CutSuffix(name, "/PG_VERSION")
	if !ok {
		return 0, false
	}
	// As a file of the database's, to have its path taken apart.
	f, err := wal.ParseFile(dir + "/1")
	return f.Database, err == nil && f.Database != 0
}
