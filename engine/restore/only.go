package restore

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/walherd/walherd/engine/manifest"
)

var (
	// ErrNoNames: the backup does not tell which files belong to which
	// database and table.
	ErrNoNames = errors.New("the backup has no names of databases and tables")
	// ErrNoSuchRelation: a name to restore matches nothing in the backup.
	ErrNoSuchRelation = errors.New("no such database or table in the backup")
)

// FirstNormalOID is the first OID that PostgreSQL gives to objects of users;
// those below are the system's.
const FirstNormalOID = 16384

// Only is a wish for single databases and tables.
type Only struct {
	items []onlyItem
}

// onlyItem is one database, or the tables of databases.
type onlyItem struct {
	text     string
	database *regexp.Regexp
	table    *regexp.Regexp // of schema.name; nil is the whole database
}

// ParseOnly reads lists of databases and tables, separated by commas: db,
// db/table (of schema public), db/schema.table or db/schema/table. An asterisk
// stands for any characters. Double quotes are passed over, as WAL-G does: they
// protect spaces from a shell.
func ParseOnly(lists []string) (*Only, error) {
	o := new(Only)
	for _, list := range lists {
		for text := range strings.SplitSeq(strings.ReplaceAll(list, `"`, ""), ",") {
			item, err := parseOnlyItem(text)
			if err != nil {
				return nil, fmt.Errorf("parse %q: %w (give db, db/table, db/schema.table or db/schema/table, separated by commas)", text, err)
			}
			o.items = append(o.items, item)
		}
	}
	if len(o.items) == 0 {
		return nil, errors.New("no database or table is named")
	}
	return o, nil
}

func parseOnlyItem(text string) (onlyItem, error) {
	parts := strings.Split(text, "/")
	if len(parts) > 3 {
		return onlyItem{}, errors.New("too many slashes")
	}
	if slices.Contains(parts, "") {
		return onlyItem{}, errors.New("a name is missing")
	}
	item := onlyItem{text: text, database: wildcard(parts[0])}
	switch {
	case len(parts) == 3:
		item.table = wildcard(parts[1] + "." + parts[2])
	case len(parts) == 2 && strings.Contains(parts[1], "."):
		item.table = wildcard(parts[1])
	case len(parts) == 2:
		item.table = wildcard("public." + parts[1])
	}
	return item, nil
}

// wildcard matches the whole of a name, * being any characters.
func wildcard(pattern string) *regexp.Regexp {
	return regexp.MustCompile(`(?s)^` + strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, `.*`) + `$`)
}

// String is the wish as it was given, in one form: equal wishes for the same
// files have equal text if they name them in the same order.
func (o *Only) String() string {
	var all []string
	for _, item := range o.items {
		all = append(all, item.text)
	}
	return strings.Join(all, ",")
}

// Resolve finds the files of what is wanted by the names in files, the list of
// the backup to restore (manifest.ReadFiles). Notes are for the user.
//
// The filter keeps everything outside of the databases' directories; every
// system catalog, and the databases that initdb makes; the databases and tables
// that are named; and with a table its partitions and children, its indexes,
// its TOAST table and the sequences of its columns. In a database of which
// something is named it also keeps files that the list knows no relation for: a
// table that was rewritten between the listing and the start of the backup has
// such. Nothing stands in for the files that are left out. Using such a relation
// is an error in PostgreSQL, rather than an empty table; replay makes the files
// again that it needs, for the first change to a page since the backup's start
// comes with the whole page.
//
// A name that matches nothing is ErrNoSuchRelation, and with allowMissing a
// note. A list without any name is ErrNoNames. Memory goes with the relations of
// the databases of which tables are named, 12 bytes each.
func (o *Only) Resolve(files func(manifest.FilesVisitor) error, allowMissing bool) (keep Filter, notes []string, err error) {
	r := &resolver{only: o, matched: make([]bool, len(o.items)), databases: map[uint32]*keptDatabase{}}
	if err := files(manifest.FilesVisitor{Database: r.database, Table: r.relation}); err != nil {
		return nil, nil, err
	}
	if len(r.databases) == 0 {
		return nil, nil, ErrNoNames
	}
	var missing []string
	for i, item := range o.items {
		if !r.matched[i] {
			missing = append(missing, strconv.Quote(item.text))
		}
	}
	if len(missing) > 0 {
		if err := fmt.Errorf("%w: %s", ErrNoSuchRelation, strings.Join(missing, ", ")); !allowMissing {
			return nil, nil, err
		}
		notes = append(notes, "not in the backup: "+strings.Join(missing, ", "))
	}
	if r.tables && !r.owners {
		notes = append(notes, "the backup does not tell which indexes and sequences belong to a table, since WAL-G took it: those that are not named themselves are not restored; REINDEX the tables")
	}
	return func(path string) bool { return keeps(r.databases, path) }, notes, nil
}

// keptDatabase is what is kept of one database.
type keptDatabase struct {
	// all keeps the whole database.
	all bool
	// named tells that something of it is wanted; drop are the files that
	// are not.
	named bool
	drop  map[uint32]struct{}
	// system are the files of system catalogs that have been rewritten, whose
	// numbers look like those of users' tables.
	system map[uint32]struct{}
}

func (d *keptDatabase) keeps(node uint32) bool {
	switch {
	case d == nil:
		// One that the list does not know: it allows no connections, or was
		// made after the listing.
		return node < FirstNormalOID
	case d.all:
		return true
	case d.named:
		_, drop := d.drop[node]
		return !drop
	}
	_, system := d.system[node]
	return system || node < FirstNormalOID
}

// keeps is the filter.
func keeps(databases map[uint32]*keptDatabase, path string) bool {
	elements := strings.Split(path, "/")
	switch {
	case elements[0] == "base" && len(elements) == 3:
		elements = elements[1:]
	case elements[0] == "pg_tblspc" && len(elements) == 5:
		elements = elements[3:]
	default:
		return true
	}
	database, err := strconv.ParseUint(elements[0], 10, 32)
	if err != nil || database < FirstNormalOID {
		return true
	}
	number, _, _ := strings.Cut(elements[1], ".")
	number, _, _ = strings.Cut(number, "_")
	node, err := strconv.ParseUint(number, 10, 32)
	return err != nil || databases[uint32(database)].keeps(uint32(node))
}

// resolver reads the names of a backup.
type resolver struct {
	only      *Only
	matched   []bool
	databases map[uint32]*keptDatabase
	// tables tells that tables are wanted; owners that some relation has one.
	tables, owners bool

	// name is the database whose relations come now.
	name    string
	started bool
	// items are the wishes for its tables, with their places in only.
	items []int
	kept  keptDatabase
	// relations and wanted are of a database of which tables are wanted.
	relations []ownedFile
	wanted    map[uint32]struct{}
}

// ownedFile is a relation's file and what it belongs to.
type ownedFile struct{ oid, node, owner uint32 }

func (r *resolver) begin(database string) {
	r.name, r.started = database, true
	r.items, r.relations, r.kept = nil, nil, keptDatabase{}
	r.wanted = map[uint32]struct{}{}
	for i, item := range r.only.items {
		switch {
		case !item.database.MatchString(database):
		case item.table == nil:
			r.kept.all, r.matched[i] = true, true
		default:
			r.items = append(r.items, i)
		}
	}
}

// relation takes in a top-level relation, and those below it.
func (r *resolver) relation(database, name string, t manifest.Table) error {
	if !r.started || r.name != database {
		r.begin(database)
	}
	r.one(name, t, false)
	return nil
}

func (r *resolver) one(name string, t manifest.Table, wanted bool) {
	r.owners = r.owners || t.Owner != 0
	if t.OID < FirstNormalOID {
		if t.RelFileNode >= FirstNormalOID && !r.kept.all {
			if r.kept.system == nil {
				r.kept.system = map[uint32]struct{}{}
			}
			r.kept.system[t.RelFileNode] = struct{}{}
		}
		return
	}
	for _, i := range r.items {
		if r.only.items[i].table.MatchString(name) {
			r.matched[i], wanted = true, true
		}
	}
	if len(r.items) > 0 {
		if wanted {
			r.wanted[t.OID] = struct{}{}
		}
		owner := t.Owner
		if owner == 0 {
			owner = toastOwner(name)
		}
		r.relations = append(r.relations, ownedFile{t.OID, t.RelFileNode, owner})
	}
	for below, sub := range t.Subtables {
		r.one(below, sub, wanted)
	}
}

// toastOwner is the table whose TOAST table or its index has this name, which
// tells it also in a backup that records no owners; else 0.
func toastOwner(name string) uint32 {
	rest, ok := strings.CutPrefix(name, "pg_toast.pg_toast_")
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(rest, "_index"), 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// database ends a database, whose relations have come.
func (r *resolver) database(name string, oid uint32) error {
	if !r.started || r.name != name {
		r.begin(name)
	}
	r.started = false
	d := r.kept
	if d.all {
		d = keptDatabase{all: true}
	} else if len(r.wanted) > 0 {
		r.tables, d.named = true, true
		d.drop = r.unwanted()
	}
	r.databases[oid] = &d
	return nil
}

// unwanted are the files of relations that are not wanted and belong to none
// that is. A file number that two relations have stays.
func (r *resolver) unwanted() map[uint32]struct{} {
	// An index of a TOAST table belongs to it, and that to a table.
	for more := true; more; {
		more = false
		for _, f := range r.relations {
			_, has := r.wanted[f.oid]
			if _, ok := r.wanted[f.owner]; ok && !has {
				r.wanted[f.oid] = struct{}{}
				more = true
			}
		}
	}
	drop := map[uint32]struct{}{}
	for _, f := range r.relations {
		if _, ok := r.wanted[f.oid]; !ok {
			drop[f.node] = struct{}{}
		}
	}
	for _, f := range r.relations {
		if _, ok := r.wanted[f.oid]; ok {
			delete(drop, f.node)
		}
	}
	for node := range r.kept.system {
		delete(drop, node)
	}
	delete(drop, 0)
	return drop
}
