package pgconn

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/walherd/walherd/engine/wal"
)

// updatesQuery gives each relation's storage and how many tuples were written
// to it, as the statistics count; an index counts as its table. A relation of
// the database's own tablespace has none of its own, mapped catalogs are found
// by their true number.
const updatesQuery = `
SELECT coalesce(nullif(c.reltablespace, 0), d.dattablespace),
       CASE WHEN c.relisshared THEN 0 ELSE d.oid END::oid,
       pg_relation_filenode(c.oid)::oid,
       s.n_tup_ins + s.n_tup_upd + s.n_tup_del
FROM pg_class c
JOIN pg_database d ON d.datname = current_database()
LEFT JOIN pg_index i ON i.indexrelid = c.oid
JOIN pg_stat_all_tables s ON s.relid = coalesce(i.indrelid, c.oid)
WHERE pg_relation_filenode(c.oid) IS NOT NULL AND s.n_tup_ins + s.n_tup_upd + s.n_tup_del > 0`

// Updates tells how many tuples were written to each relation since the
// server's statistics began, over all databases that allow connections. What is
// not in it was not written to, or cannot be told: a database that refuses is
// left out with a warning.
func (c *Conn) Updates(ctx context.Context) (map[wal.RelFile]uint64, error) {
	oids, err := c.connectable(ctx)
	if err != nil {
		return nil, err
	}
	updates := map[wal.RelFile]uint64{}
	for _, name := range slices.Sorted(maps.Keys(oids)) {
		c.log.Info("reading statistics of updates", "database", name)
		err := c.updatesOf(ctx, name, updates)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("read statistics of database %s: %w", name, context.Cause(ctx))
		}
		if err != nil {
			c.log.Warn("statistics of a database cannot be read; its files count as unchanged", "database", name, "error", err)
		}
	}
	return updates, nil
}

func (c *Conn) updatesOf(ctx context.Context, database string, updates map[wal.RelFile]uint64) error {
	s, err := c.sibling(ctx, database)
	if err != nil {
		return err
	}
	defer func() {
		// A failed farewell costs nothing: everything was read.
		if cerr := s.Close(ctx); cerr != nil {
			c.log.Debug("close session", "database", database, "error", cerr)
		}
	}()
	rows, err := s.conn.Query(ctx, updatesQuery)
	if err != nil {
		return explain("read statistics", err)
	}
	defer rows.Close()
	for rows.Next() {
		var f wal.RelFile
		var n int64
		if err := rows.Scan(&f.Tablespace, &f.Database, &f.Relation, &n); err != nil {
			return fmt.Errorf("read statistics: %w", err)
		}
		updates[f] = uint64(max(n, 0))
	}
	return rows.Err()
}
