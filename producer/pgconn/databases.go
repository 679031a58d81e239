package pgconn

import (
	"context"
	"fmt"
	"maps"
	"slices"
)

// Database is what files_metadata.json keeps of a database under
// DatabasesByNames, for restoring single databases and tables.
type Database struct {
	OID uint32
	// Tables holds the top-level relations by "schema.relation".
	Tables map[string]Table
}

// Table is a relation: a table, an index, a toast table, a sequence ...
type Table struct {
	OID uint32
	// RelFileNode is the number its files are named by, also for a catalog
	// whose number only the relation map knows; 0 for a partitioned table or
	// index, which has no files.
	RelFileNode uint32
	// Owner is the OID of the table that an index, a TOAST table or an owned
	// sequence belongs to, and of a TOAST table that its index belongs to; 0
	// for what stands on its own.
	Owner uint32
	// Subtables holds all partitions and inheritance children, of whatever
	// depth, by "schema.relation". Theirs is empty.
	Subtables map[string]Table
}

// Databases lists the relations of every database that allows connections,
// by the database's name. It opens one session after another, each on the
// server this session is on. A database that refuses, or is dropped
// meanwhile, is left out with a warning: it is backed up all the same, only a
// partial restore will not know it by name.
func (c *Conn) Databases(ctx context.Context) (map[string]Database, error) {
	oids, err := c.connectable(ctx)
	if err != nil {
		return nil, err
	}
	dbs := make(map[string]Database, len(oids))
	for _, name := range slices.Sorted(maps.Keys(oids)) {
		tables, err := c.tablesOf(ctx, name)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("list relations of database %s: %w", name, context.Cause(ctx))
		}
		if err != nil {
			c.log.Warn("database left out of the list for partial restores", "database", name, "error", err)
			continue
		}
		dbs[name] = Database{OID: oids[name], Tables: tables}
	}
	return dbs, nil
}

func (c *Conn) connectable(ctx context.Context) (map[string]uint32, error) {
	release, err := c.acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("list databases: %w", err)
	}
	defer release()
	rows, err := c.conn.Query(ctx, "SELECT datname, oid FROM pg_database WHERE datallowconn")
	if err != nil {
		return nil, explain("list databases", err)
	}
	defer rows.Close()
	oids := make(map[string]uint32)
	for rows.Next() {
		var (
			name string
			oid  uint32
		)
		if err := rows.Scan(&name, &oid); err != nil {
			return nil, fmt.Errorf("list databases: %w", err)
		}
		oids[name] = oid
	}
	if err := rows.Err(); err != nil {
		return nil, explain("list databases", err)
	}
	return oids, nil
}

func (c *Conn) tablesOf(ctx context.Context, database string) (_ map[string]Table, err error) {
	s, err := c.sibling(ctx, database)
	if err != nil {
		return nil, err
	}
	defer func() {
		// A failed farewell costs nothing: everything was read.
		if cerr := s.Close(ctx); cerr != nil {
			c.log.Debug("close session", "database", database, "error", cerr)
		}
	}()
	rels, err := s.relations(ctx)
	if err != nil {
		return nil, fmt.Errorf("list relations of database %s: %w", database, err)
	}
	return topLevel(rels), nil
}

// relation is one row of the catalog.
type relation struct {
	oid, fileNode, owner uint32
	name                 string
	parents              []uint32
}

// Partitioned tables (p) and indexes (I) have no files but gather those that
// have. pg_relation_filenode is null for whatever else has no files: a view,
// a type, a foreign table. A sequence is owned by a column that is serial (a)
// or an identity (i).
const relationsQuery = `
SELECT c.oid, coalesce(pg_relation_filenode(c.oid), 0)::oid, n.nspname || '.' || c.relname,
       coalesce((SELECT array_agg(i.inhparent) FROM pg_inherits i WHERE i.inhrelid = c.oid), '{}'),
       coalesce(x.indrelid, toasted.oid,
         CASE WHEN c.relkind = 'S' THEN
           (SELECT min(d.refobjid) FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
            AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i'))
         END, 0)::oid
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_index x ON x.indexrelid = c.oid
LEFT JOIN pg_class toasted ON toasted.reltoastrelid = c.oid
WHERE pg_relation_filenode(c.oid) IS NOT NULL OR c.relkind IN ('p', 'I')`

func (c *Conn) relations(ctx context.Context) (map[uint32]relation, error) {
	rows, err := c.conn.Query(ctx, relationsQuery)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	rels := make(map[uint32]relation)
	for rows.Next() {
		var r relation
		if err := rows.Scan(&r.oid, &r.fileNode, &r.name, &r.parents, &r.owner); err != nil {
			return nil, err
		}
		rels[r.oid] = r
	}
	return rels, rows.Err()
}

// topLevel gathers the children of all depths under their top-level
// ancestors; a child of several parents is under each one's. A relation whose
// parent is not in the list (a foreign table can be one) is top-level itself,
// so that none is lost.
func topLevel(rels map[uint32]relation) map[string]Table {
	tables := make(map[string]Table)
	for _, r := range rels {
		if len(r.known(rels)) == 0 {
			tables[r.name] = Table{OID: r.oid, RelFileNode: r.fileNode, Owner: r.owner}
		}
	}
	for _, r := range rels {
		for _, root := range r.roots(rels) {
			if root == r.oid {
				continue
			}
			t := tables[rels[root].name]
			if t.Subtables == nil {
				t.Subtables = make(map[string]Table)
			}
			t.Subtables[r.name] = Table{OID: r.oid, RelFileNode: r.fileNode, Owner: r.owner}
			tables[rels[root].name] = t
		}
	}
	return tables
}

// known are the parents that are in the list.
func (r relation) known(rels map[uint32]relation) []uint32 {
	var in []uint32
	for _, p := range r.parents {
		if _, ok := rels[p]; ok {
			in = append(in, p)
		}
	}
	return in
}

// roots are the ancestors without a parent, r itself if it has none. The
// catalog is read in one statement and cannot hold a circle, but a damaged
// one must not hang a backup: each relation is visited once.
func (r relation) roots(rels map[uint32]relation) []uint32 {
	var roots []uint32
	seen := map[uint32]bool{r.oid: true}
	todo := []relation{r}
	for len(todo) > 0 {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		parents := at.known(rels)
		if len(parents) == 0 {
			roots = append(roots, at.oid)
		}
		for _, p := range parents {
			if !seen[p] {
				seen[p] = true
				todo = append(todo, rels[p])
			}
		}
	}
	return roots
}
