package wal

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrNotRelation marks a path that is no relation's file.
var ErrNotRelation = errors.New("not a file of a relation")

// The tablespaces that initdb makes (src/include/catalog/pg_tablespace.dat).
const (
	DefaultTablespace uint32 = 1663 // base/
	GlobalTablespace  uint32 = 1664 // global/
)

// RelFile names the storage of a relation: PostgreSQL's RelFileNode, called
// RelFileLocator since version 16. It is comparable.
type RelFile struct {
	Tablespace uint32 // OID
	Database   uint32 // OID, 0 for the shared relations in global/
	Relation   uint32 // the number files are named by; not the relation's OID
}

// String prints it as pg_waldump does: 1663/5/1259.
func (f RelFile) String() string {
	return fmt.Sprintf("%d/%d/%d", f.Tablespace, f.Database, f.Relation)
}

// Compare orders by tablespace, database, relation.
func (f RelFile) Compare(o RelFile) int {
	return cmp.Or(
		cmp.Compare(f.Tablespace, o.Tablespace),
		cmp.Compare(f.Database, o.Database),
		cmp.Compare(f.Relation, o.Relation))
}

// Fork is one of a relation's files: ForkNumber of
// src/include/common/relpath.h.
type Fork uint8

// The forks of a relation.
const (
	MainFork Fork = iota
	FreeSpaceFork
	VisibilityFork
	InitFork
	numForks = iota
)

// String is the fork's name in file names and in pg_waldump; "main" has none
// in file names.
func (f Fork) String() string {
	switch f {
	case MainFork:
		return "main"
	case FreeSpaceFork:
		return "fsm"
	case VisibilityFork:
		return "vm"
	case InitFork:
		return "init"
	}
	return fmt.Sprintf("fork%d", uint8(f))
}

// File is one file of a relation's fork.
type File struct {
	RelFile
	Fork Fork
	// Segment counts the files of a fork, 1 GiB each as PostgreSQL is built
	// by default: the number after the dot, 0 without one.
	Segment uint32
}

// ParseFile reads the path of a relation's file below the data directory, with
// slashes: base/5/1259, global/1262_vm, pg_tblspc/16400/PG_15_202209061/5/2619.1.
// A leading slash or "./" is passed over. Temporary relations (t3_16384) are no
// relation of the WAL.
func ParseFile(path string) (File, error) {
	f, ok := parseFile(strings.Split(strings.TrimLeft(strings.TrimPrefix(path, "./"), "/"), "/"))
	if !ok {
		return File{}, fmt.Errorf("parse path %q: %w", path, ErrNotRelation)
	}
	return f, nil
}

func parseFile(parts []string) (f File, ok bool) {
	db := ""
	switch {
	case len(parts) == 2 && parts[0] == "global":
		f.Tablespace = GlobalTablespace
	case len(parts) == 3 && parts[0] == "base":
		f.Tablespace, db = DefaultTablespace, parts[1]
	case len(parts) == 5 && parts[0] == "pg_tblspc" && strings.HasPrefix(parts[2], "PG_"):
		if f.Tablespace, ok = parseNumber(parts[1]); !ok {
			return File{}, false
		}
		db = parts[3]
	default:
		return File{}, false
	}
	if db != "" {
		if f.Database, ok = parseNumber(db); !ok {
			return File{}, false
		}
	}
	name, segment, dotted := strings.Cut(parts[len(parts)-1], ".")
	if dotted {
		if f.Segment, ok = parseNumber(segment); !ok {
			return File{}, false
		}
	}
	name, fork, marked := strings.Cut(name, "_")
	if marked {
		for f.Fork = FreeSpaceFork; f.Fork < numForks && f.Fork.String() != fork; f.Fork++ {
		}
		if f.Fork == numForks {
			return File{}, false
		}
	}
	f.Relation, ok = parseNumber(name)
	return f, ok
}

// parseNumber reads a positive decimal number without leading zeros.
func parseNumber(s string) (uint32, bool) {
	if s == "" || s[0] < '1' || s[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil
}
