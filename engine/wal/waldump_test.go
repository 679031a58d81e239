package wal_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
	"github.com/walherd/walherd/producer/pgtest"
)

// TestReaderAgreesWithWaldump: every record of a real server's WAL, with its
// block references, as PostgreSQL's own program tells them.
func TestReaderAgreesWithWaldump(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t, pgtest.WithSegmentSize(1), pgtest.WithConf("wal_compression = on", "max_prepared_transactions = 2"))
	from := pgt.SQL("SELECT pg_current_wal_insert_lsn()")
	pgt.SQL(`
CREATE TABLE t (id int PRIMARY KEY, v text, p point, a int[]);
INSERT INTO t SELECT g, repeat(md5(g::text), 1 + g % 9), point(g, g), ARRAY[g, g % 10] FROM generate_series(1, 4000) g;
CREATE INDEX ON t USING gin (a); CREATE INDEX ON t USING gist (p); CREATE INDEX ON t USING hash (v); CREATE INDEX ON t USING brin (id); CREATE INDEX ON t USING spgist (p);
CHECKPOINT;
UPDATE t SET v = v || 'x' WHERE id % 7 = 0;
DELETE FROM t WHERE id > 3000;
VACUUM t;
SELECT pg_switch_wal() IS NULL;
SELECT pg_logical_emit_message(false, 'test', repeat('walherd', 500000)) IS NULL;
CREATE SEQUENCE s; SELECT nextval('s'); TRUNCATE t;
BEGIN; DROP TABLE t; PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p';
CREATE DATABASE copy STRATEGY wal_log;
CREATE UNLOGGED TABLE u (v int PRIMARY KEY);
CHECKPOINT`)
	to := pgt.SQL("SELECT pg_current_wal_flush_lsn()")
	want := strings.Split(pgt.Run("pg_waldump", "--path="+pgt.WALDir(), "--start="+from, "--end="+to), "\n")
	// It gives the record that starts at the end, too, if there is one.
	want = slices.DeleteFunc(want, func(line string) bool { return strings.Contains(line, "lsn: "+padded(t, to)) })

	start, end := parse(t, from), parse(t, to)
	names, err := filepath.Glob(filepath.Join(pgt.WALDir(), "[0-9A-F]*[0-9A-F]"))
	if err != nil {
		t.Fatal(err)
	}
	var segments []io.Reader
	for _, name := range names {
		seg, err := pg.ParseSegmentName(filepath.Base(name))
		if err != nil || seg.Start(1<<20)+1<<20 <= start || seg.Start(1<<20) >= end {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		segments = append(segments, bytes.NewReader(b))
	}
	r := wal.NewReader(io.MultiReader(segments...), wal.ReaderOptions{From: start, To: end})
	managers, images := map[wal.Manager]int{}, 0
	for i := 0; ; i++ {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			if i != len(want) {
				t.Fatalf("%d records, pg_waldump has %d; its next: %s", i, len(want), want[i])
			}
			break
		}
		if err != nil || i >= len(want) {
			t.Fatalf("record %d of %d: %v", i, len(want), err)
		}
		if got, want := describe(rec), normalize(want[i]); got != want {
			t.Fatalf("record %d:\n got %s\nwant %s", i, got, want)
		}
		managers[rec.Manager]++
		for _, b := range rec.Blocks {
			if b.Image {
				images++
			}
		}
	}
	for _, m := range []wal.Manager{wal.XLog, wal.Transaction, wal.Storage, wal.Database, wal.Heap, wal.Heap2, wal.Btree, wal.Gin, wal.Gist, wal.Hash, wal.SPGist, wal.BRIN, wal.Sequence, wal.LogicalMessage} {
		if managers[m] == 0 {
			t.Errorf("no record of %s", m)
		}
	}
	if images == 0 {
		t.Error("no page images")
	}
}

func parse(t *testing.T, s string) pg.LSN {
	t.Helper()
	l, err := pg.ParseLSN(s)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func padded(t *testing.T, s string) string {
	l := parse(t, s)
	return fmt.Sprintf("%X/%08X,", uint32(l>>32), uint32(l))
}

func describe(rec *wal.Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d %d %X/%08X %X/%08X", rec.Manager, rec.Length, rec.XID, uint32(rec.Start>>32), uint32(rec.Start), uint32(rec.Prev>>32), uint32(rec.Prev))
	for _, ref := range rec.Blocks {
		fork, image := "", ""
		if ref.Fork != wal.MainFork {
			fork = " fork " + ref.Fork.String()
		}
		if ref.Image {
			image = " FPW"
		}
		fmt.Fprintf(&b, ", #%d: rel %s%s blk %d%s", ref.ID, ref.Rel, fork, ref.Block, image)
	}
	return b.String()
}

var (
	recordPattern = regexp.MustCompile(`^rmgr: (\S+) +len \(rec/tot\): +\d+/ *(\d+), tx: +(\d+), lsn: (\S+), prev (\S+), desc: `)
	blockPattern  = regexp.MustCompile(`blkref (#\d+: rel \d+/\d+/\d+(?: fork \w+)? blk \d+(?: FPW)?)`)
)

// normalize is describe for a line of pg_waldump.
func normalize(line string) string {
	m := recordPattern.FindStringSubmatch(line)
	if m == nil {
		return "? " + line
	}
	out := strings.Join(m[1:], " ")
	for _, b := range blockPattern.FindAllStringSubmatch(line, -1) {
		out += ", " + b[1]
	}
	return out
}
