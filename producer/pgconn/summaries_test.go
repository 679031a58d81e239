package pgconn_test

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
	"github.com/walherd/walherd/producer/pgconn"
	"github.com/walherd/walherd/producer/pgtest"
	"github.com/walherd/walherd/tools/pgmatrix/matrix"
)

func lsn(t *testing.T, s string) pg.LSN {
	t.Helper()
	l, err := pg.ParseLSN(s)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// redo is the redo point of a fresh checkpoint, as a base backup has it.
func redo(t *testing.T, pgt *pgtest.Cluster) pg.LSN {
	t.Helper()
	return lsn(t, pgt.SQL("CHECKPOINT; SELECT redo_lsn FROM pg_control_checkpoint()"))
}

// fileOf is the main fork of a table, and its number of pages.
func fileOf(t *testing.T, pgt *pgtest.Cluster, table string) (f wal.File, blocks uint32) {
	t.Helper()
	parts := strings.Split(pgt.SQL("SELECT pg_relation_filepath('"+table+"'), pg_relation_size('"+table+"') / 8192"), "|")
	f, err := wal.ParseFile(parts[0])
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(parts[1], 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return f, uint32(n)
}

func TestSummaries(t *testing.T) {
	t.Parallel()
	bins, err := matrix.Installed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, major := range []int{17, 18} {
		bin, ok := bins[major]
		if !ok {
			t.Logf("PostgreSQL %d is not installed: go run ./tools/pgmatrix", major)
			continue
		}
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			testSummaries(t, pgtest.New(t, pgtest.WithBinDir(bin), pgtest.WithConf("summarize_wal = on", "autovacuum = off")))
		})
	}
}

func testSummaries(t *testing.T, pgt *pgtest.Cluster) {
	one := wal.History{Timeline: 1}
	c := connect(t, pgt.ConnString())
	pgt.SQL(`CREATE TABLE t (id int, v text); INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 1000) g;
CREATE TABLE shrinks AS SELECT g, repeat('x', 500) FROM generate_series(1, 1000) g; CREATE TABLE quiet AS SELECT 1 AS a; CREATE DATABASE doomed; VACUUM FREEZE`)
	from := redo(t, pgt)
	pgt.SQL(`UPDATE t SET v = 'y' WHERE id = 500; DELETE FROM shrinks WHERE g > 100; VACUUM shrinks; CREATE TABLE fresh AS SELECT 1 AS a; DROP DATABASE doomed;
CREATE DATABASE copy STRATEGY file_copy`)
	pgt.SQLIn("copy", "CREATE TABLE x AS SELECT 1 AS a")
	to := redo(t, pgt)
	// The summarizer is awaited: nobody else does.
	m, err := c.Summaries(t.Context(), pgconn.SummaryRange{From: from, To: to, History: one, Wait: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Covers(from, to, one); err != nil || m.Layout().PageSize != 8192 || m.Layout().FileBlocks != 131072 {
		t.Errorf("%+v, %v", m.Layout(), err)
	}
	changed := func(table string) ([]uint32, bool) {
		f, n := fileOf(t, pgt, table)
		list, whole := m.Changed(f, n)
		return slices.Collect(list), whole
	}
	f, n := fileOf(t, pgt, "t")
	if list, whole := changed("t"); whole || len(list) == 0 || len(list) > 3 {
		t.Errorf("t of %d pages: %v, whole %v", n, list, whole)
	}
	// The visibility map lost a bit; not every server's summary says so.
	f.Fork = wal.VisibilityFork
	if list, whole := m.Changed(f, 1); whole || !slices.Equal(slices.Collect(list), []uint32{0}) {
		t.Errorf("visibility map of t: whole %v", whole)
	}
	if list, whole := changed("quiet"); whole || len(list) != 0 {
		t.Errorf("quiet: %v, whole %v", list, whole)
	}
	if _, whole := changed("fresh"); !whole {
		t.Error("a table made in the range does not go whole")
	}
	f, n = fileOf(t, pgt, "shrinks")
	if list, whole := m.Changed(f, n+2); whole || !slices.Contains(slices.Collect(list), n+1) {
		t.Errorf("a page after the truncation of shrinks at %d is not among the changed", n)
	}
	copied, err := strconv.ParseUint(pgt.SQL("SELECT oid FROM pg_database WHERE datname = 'copy'"), 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	if _, whole := m.Changed(wal.File{RelFile: wal.RelFile{Tablespace: wal.DefaultTablespace, Database: uint32(copied), Relation: 1259}}, 10); !whole {
		t.Error("a copied database's table does not go whole")
	}

	refused := func(why string, want pgconn.SummaryRange) {
		t.Helper()
		_, err := c.Summaries(t.Context(), want)
		if !errors.Is(err, pgconn.ErrNoSummaries) || !strings.Contains(err.Error(), why) {
			t.Errorf("%+v: got %v, want a word of %q", want, err, why)
		}
	}
	refused("after a wait of", pgconn.SummaryRange{From: from, To: to + 1<<30, History: one, Wait: time.Millisecond})
	// As if they had been removed.
	refused("lack WAL from 0/1", pgconn.SummaryRange{From: 1, To: to, History: one})
	// Made on another timeline.
	two := wal.History{Timeline: 2, Switches: []wal.Switch{{Timeline: 1, LSN: from}}}
	refused("lack WAL from "+from.String(), pgconn.SummaryRange{From: from, To: to, History: two, Wait: time.Millisecond})
	pgt.SQL("ALTER SYSTEM SET summarize_wal = off")
	pgt.Reload()
	pgt.Await("SHOW summarize_wal", "off")
	c = connect(t, pgt.ConnString())
	refused("summarize_wal", pgconn.SummaryRange{From: from, To: to, History: one})
}

func TestSummariesNeedAServerThatHasThem(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t)
	c := connect(t, pgt.ConnString())
	_, err := c.Summaries(t.Context(), pgconn.SummaryRange{From: 1, To: 2, History: wal.History{Timeline: 1}})
	if !errors.Is(err, pgconn.ErrNoSummaries) {
		t.Errorf("got %v", err)
	}
	if _, err := c.Summaries(t.Context(), pgconn.SummaryRange{From: 2, To: 1, History: wal.History{Timeline: 1}}); err == nil || errors.Is(err, pgconn.ErrNoSummaries) {
		t.Errorf("a range that ends before it begins: %v", err)
	}
}
