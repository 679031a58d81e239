package changes_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/changes"
	"github.com/walherd/walherd/engine/cluster"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
	"github.com/walherd/walherd/producer/pgconn"
	"github.com/walherd/walherd/producer/pgtest"
	"github.com/walherd/walherd/tools/pgmatrix/matrix"
)

const pageSize = 8192

// page is what a test keeps of a page on disk.
type page struct {
	sum  uint64
	lsn  pg.LSN
	zero bool
}

// truth is all relations of a stopped server, page by page.
type truth map[wal.File][]page

var seed = maphash.MakeSeed()

func look(t *testing.T, dir string) truth {
	t.Helper()
	all := truth{}
	see := func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, err := wal.ParseFile(filepath.ToSlash(rel))
		if err != nil {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if len(b)%pageSize != 0 {
			t.Errorf("%s has %d bytes", rel, len(b))
		}
		pages := make([]page, 0, len(b)/pageSize)
		for p := range slices.Chunk(b, pageSize) {
			lsn := pg.LSN(binary.LittleEndian.Uint32(p))<<32 | pg.LSN(binary.LittleEndian.Uint32(p[4:]))
			pages = append(pages, page{maphash.Bytes(seed, p), lsn, bytes.Count(p, []byte{0}) == len(p)})
		}
		all[f] = pages
		return nil
	}
	roots := []string{"base", "global"}
	links, err := os.ReadDir(filepath.Join(dir, "pg_tblspc"))
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range roots {
		if err := filepath.WalkDir(filepath.Join(dir, root), see); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range links {
		// WalkDir does not follow links: list behind them.
		base := filepath.Join(dir, "pg_tblspc", l.Name())
		versions, err := os.ReadDir(base)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range versions {
			if err := filepath.WalkDir(filepath.Join(base, v.Name()), see); err != nil {
				t.Fatal(err)
			}
		}
	}
	return all
}

// checkpoint is where the stopped server's shutdown checkpoint lies: all that
// came before it is on disk.
func checkpoint(t *testing.T, dir string) cluster.Control {
	t.Helper()
	c, _, err := cluster.ReadControl(t.Context(), dir)
	if err != nil || !c.State.Stopped() {
		t.Fatal(c.State, err)
	}
	return c
}

// versions are the servers to test: the one that pgtest finds, and the pinned
// ones that are installed.
func versions(t *testing.T) map[string]string {
	t.Helper()
	bins, err := matrix.Installed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{"default": ""}
	for major, bin := range bins {
		if major == 15 {
			continue // the default, as long as Debian's is that
		}
		out[fmt.Sprintf("pinned %d", major)] = bin
	}
	return out
}

const prepareSQL = `
CREATE TABLE t (id int PRIMARY KEY, v text, a int[], p point);
INSERT INTO t SELECT g, md5(g::text), ARRAY[g, g % 10], point(g, g) FROM generate_series(1, 3000) g;
CREATE INDEX t_gin ON t USING gin (a); CREATE INDEX t_gist ON t USING gist (p); CREATE INDEX t_hash ON t USING hash (v);
CREATE INDEX t_brin ON t USING brin (id) WITH (pages_per_range = 4, autosummarize = off); CREATE INDEX t_spgist ON t USING spgist (p);
CREATE TABLE shrinks (id int, v text) WITH (autovacuum_enabled = off);
INSERT INTO shrinks SELECT g, repeat('x', 500) FROM generate_series(1, 2000) g;
CREATE TABLE quiet AS SELECT g AS id, repeat('q', 100) AS v FROM generate_series(1, 5000) g;
CREATE TABLE seen WITH (autovacuum_enabled = off) AS SELECT g AS id, repeat('q', 100) AS v FROM generate_series(1, 5000) g;
CREATE TABLE emptied AS SELECT g AS id FROM generate_series(1, 5000) g;
CREATE TABLE rewritten AS SELECT g AS id FROM generate_series(1, 5000) g;
CREATE TABLE dropped AS SELECT g AS id FROM generate_series(1, 5000) g;
CREATE TABLE twophase AS SELECT g AS id FROM generate_series(1, 5000) g;
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
CREATE SEQUENCE s; SELECT nextval('s');
CREATE DATABASE doomed; CREATE DATABASE there_and_back;
VACUUM (FREEZE);`

const pgbenchScript = `\set id random(1, 3000)
UPDATE t SET v = md5(:id::text) WHERE id = :id;
INSERT INTO bulk VALUES (:id, NULL);
`

// workload changes files in every way the records tell apart.
func workload(t *testing.T, pgt *pgtest.Cluster) {
	t.Helper()
	many := ""
	for i := range 30 {
		many += fmt.Sprintf("CREATE TABLE many.t%d (id int PRIMARY KEY, v text);\n", i)
	}
	pgt.SQL(`
UPDATE t SET v = v || 'x' WHERE id % 50 = 0;
UPDATE seen SET v = 'r' WHERE id = 4000; -- clears a bit of a visibility map
SELECT count(*) FROM quiet;              -- sets no hint: all frozen
DELETE FROM t WHERE id BETWEEN 2000 AND 2500;
VACUUM t;
INSERT INTO t SELECT g, md5(g::text), ARRAY[g], point(g, g) FROM generate_series(7001, 9000) g;
SELECT brin_summarize_new_values('t_brin');
DELETE FROM shrinks WHERE id > 300;
VACUUM shrinks;
INSERT INTO shrinks SELECT g, repeat('y', 300) FROM generate_series(1, 200) g;
COPY (SELECT g, repeat('c', 200) FROM generate_series(1, 4000) g) TO '` + pgt.Dir() + `/bulk';
CREATE TABLE bulk (id int, v text);
COPY bulk FROM '` + pgt.Dir() + `/bulk';
CREATE INDEX ON bulk (id, v);
TRUNCATE emptied; INSERT INTO emptied VALUES (1);
VACUUM FULL rewritten;
DROP TABLE dropped;
BEGIN; CREATE TABLE never AS SELECT g FROM generate_series(1, 1000) g; SAVEPOINT a; CREATE INDEX ON never (g); ROLLBACK;
BEGIN; DROP TABLE twophase; PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p';
BEGIN; CREATE TABLE half AS SELECT g FROM generate_series(1, 1000) g; PREPARE TRANSACTION 'q'; ROLLBACK PREPARED 'q';
INSERT INTO unlogged SELECT generate_series(1, 1000);
CREATE TEMP TABLE passing AS SELECT generate_series(1, 1000);
SELECT count(nextval('s')) FROM generate_series(1, 100);
SELECT pg_switch_wal() IS NULL;
SELECT pg_logical_emit_message(false, 'test', repeat('walherd', 500000)) IS NULL; -- a record longer than three segments
CREATE SCHEMA many;
` + many + `
DROP SCHEMA many CASCADE;
CHECKPOINT;
UPDATE t SET v = 'z' WHERE id % 100 = 1;
DROP DATABASE doomed;
ALTER DATABASE there_and_back SET TABLESPACE aside;`)
	pgt.SQLIn("there_and_back", "CREATE TABLE x AS SELECT 1 AS a; COMMENT ON TABLE x IS 'moved'")
	pgt.SQL(`ALTER DATABASE there_and_back SET TABLESPACE pg_default`)
	strategies := []string{""}
	if pgt.Major() >= 15 {
		strategies = []string{" STRATEGY wal_log", " STRATEGY file_copy"}
	}
	for i, s := range strategies {
		pgt.SQL(fmt.Sprintf("CREATE DATABASE fresh%d%s", i, s))
		pgt.SQLIn(fmt.Sprintf("fresh%d", i), "CREATE TABLE here AS SELECT generate_series(1, 100)")
	}
	methods := []string{"on"}
	if pgt.Major() >= 15 {
		methods = []string{"pglz", "lz4", "zstd"}
	}
	for _, m := range methods {
		// Not every build has every method.
		if pgt.Major() >= 15 && !strings.Contains(pgt.SQL("SELECT enumvals FROM pg_settings WHERE name = 'wal_compression'"), m) {
			continue
		}
		pgt.SQL("SET wal_compression = " + m + "; CHECKPOINT; UPDATE t SET v = '" + m + "' WHERE id % 100 = 2; UPDATE quiet SET v = repeat('w', 50) WHERE id % 500 = 0")
	}
	script := filepath.Join(pgt.Dir(), "script")
	if err := os.WriteFile(script, []byte(pgbenchScript), 0o644); err != nil {
		t.Fatal(err)
	}
	pgt.Run("pgbench", "--client=2", "--transactions=100", "--no-vacuum", "--file="+script)
	pgt.SQL("VACUUM (FREEZE) bulk; CREATE TABLE last AS SELECT 1 AS a")
}

// run is a server before and after its workload, stopped.
type run struct {
	pgt           *pgtest.Cluster
	before, after truth
	start, end    cluster.Control
	segments      [][]byte // that hold start to end
	spgist        wal.RelFile
}

func setup(t *testing.T, opts ...pgtest.Option) run {
	t.Helper()
	opts = append([]pgtest.Option{pgtest.WithSegmentSize(1), pgtest.WithConf(
		"wal_keep_size = 2GB", "max_prepared_transactions = 5", "autovacuum = off", "max_wal_size = 2GB", "checkpoint_timeout = 1h")}, opts...)
	r := run{pgt: pgtest.New(t, opts...)}
	if r.pgt.Major() >= 17 {
		r.pgt.SQL("ALTER SYSTEM SET summarize_wal = on")
		r.pgt.Reload()
	}
	r.pgt.Run("mkdir", filepath.Join(r.pgt.Dir(), "aside"))
	r.pgt.SQL("CREATE TABLESPACE aside LOCATION '" + filepath.Join(r.pgt.Dir(), "aside") + "'")
	r.pgt.SQL(prepareSQL)
	if _, err := fmt.Sscanf(r.pgt.SQL("SELECT oid, pg_relation_filenode('t_spgist') FROM pg_database WHERE datname = 'postgres'"), "%d|%d", &r.spgist.Database, &r.spgist.Relation); err != nil {
		t.Fatal(err)
	}
	r.spgist.Tablespace = wal.DefaultTablespace
	r.pgt.Stop(pgtest.Fast)
	r.start, r.before = checkpoint(t, r.pgt.DataDir()), look(t, r.pgt.DataDir())
	r.pgt.Start()
	workload(t, r.pgt)
	r.pgt.Stop(pgtest.Fast)
	r.end, r.after = checkpoint(t, r.pgt.DataDir()), look(t, r.pgt.DataDir())
	size := r.end.SegmentSize
	for name := r.start.Checkpoint.Segment(1, size); name.Start(size) < r.end.Checkpoint; name = name.Next(size) {
		b, err := os.ReadFile(filepath.Join(r.pgt.WALDir(), name.String()))
		if err != nil {
			t.Fatal(err)
		}
		r.segments = append(r.segments, b)
	}
	return r
}

// scanAtOnce and scanApart are the two ways to the same Map.
func (r run) scanAtOnce(t *testing.T) *changes.Map {
	t.Helper()
	m, err := changes.Scan(bytes.NewReader(bytes.Join(r.segments, nil)), changes.ScanOptions{From: r.start.Checkpoint, To: r.end.Checkpoint})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// scanApart scans each segment for itself, stores and reads the Map, and merges
// them.
func (r run) scanApart(t *testing.T) *changes.Map {
	t.Helper()
	var all *changes.Map
	for i, b := range r.segments {
		opt := changes.ScanOptions{}
		if i == 0 {
			opt.From = r.start.Checkpoint
		}
		if i == len(r.segments)-1 {
			opt.To = r.end.Checkpoint
		}
		m, err := changes.Scan(bytes.NewReader(b), opt)
		if err != nil {
			t.Fatal(err)
		}
		m = stored(t, m)
		if all == nil {
			all = m
		} else if err := all.Merge(m); err != nil {
			t.Fatalf("segment %d: %v", i, err)
		}
		// In the middle of a long merge it must be storable too.
		if i%5 == 0 {
			all = stored(t, all)
		}
	}
	return all
}

func write(t *testing.T, m *changes.Map) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := m.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func stored(t *testing.T, m *changes.Map) *changes.Map {
	t.Helper()
	out, err := changes.Read(bytes.NewReader(write(t, m)))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// hold holds a Map against what is on disk. With strict, all bytes count: under
// data checksums every first hint is logged; else the page's LSN.
func (r run) hold(t *testing.T, m *changes.Map, strict bool) {
	t.Helper()
	if err := m.Covers(r.start.Checkpoint, r.end.Checkpoint, wal.History{Timeline: 1}); err != nil {
		t.Fatal(err)
	}
	unlogged := map[wal.RelFile]bool{}
	for f := range r.after {
		if f.Fork == wal.InitFork {
			unlogged[f.RelFile] = true
		}
	}
	changed, listed, missed := 0, 0, 0
	for f, pages := range r.after {
		if unlogged[f.RelFile] && f.Fork != wal.InitFork {
			continue
		}
		list, whole := m.Changed(f, uint32(len(pages)))
		if whole {
			continue
		}
		told := map[uint32]bool{}
		for b := range list {
			told[b] = true
		}
		listed += len(told)
		old, known := r.before[f]
		for i, p := range pages {
			differs := i >= len(old) && !p.zero || i < len(old) && old[i].sum != p.sum
			if !strict && differs && i < len(old) && f.Fork == wal.MainFork {
				differs = p.lsn >= r.start.Checkpoint || p.lsn != old[i].lsn
			}
			if f.Fork == wal.MainFork && p.lsn >= r.start.Checkpoint {
				differs = true
			}
			if f.RelFile == r.spgist && i == 0 {
				// Its first page remembers pages with room, as a hint
				// (SpGistUpdateMetaPage): not logged.
				differs = false
			}
			if differs {
				changed++
			}
			if differs && !told[uint32(i)] {
				missed++
				t.Errorf("missed: %s %s file %d page %d, LSN %s (file known %v, %d pages before, %d now)", f.RelFile, f.Fork, f.Segment, i, p.lsn, known, len(old), len(pages))
			}
		}
	}
	t.Logf("PostgreSQL %d: %d segments, %d changed pages in files that go in part, %d listed, %d missed", r.pgt.Major(), len(r.segments), changed, listed, missed)
	if changed < 50 {
		t.Errorf("the workload changed %d pages: it shows nothing", changed)
	}
	if listed > 4*changed {
		t.Errorf("%d pages listed for %d changed: that is no help", listed, changed)
	}
}

// TestMapMissesNothing: on every version at hand, the Map made of the WAL
// against the pages on disk, and against what the server itself says of its
// WAL.
func TestMapMissesNothing(t *testing.T) {
	t.Parallel()
	for name, bin := range versions(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var opts []pgtest.Option
			if bin != "" {
				opts = append(opts, pgtest.WithBinDir(bin))
			}
			r := setup(t, opts...)
			at, apart := r.scanAtOnce(t), r.scanApart(t)
			if a, b := write(t, at), write(t, apart); !bytes.Equal(a, b) {
				t.Errorf("scanned at once %d bytes, in segments %d", len(a), len(b))
			}
			r.hold(t, apart, true)
			if m := r.summaries(t); m != nil {
				r.hold(t, m, true)
			}
			r.askServer(t)
		})
	}
}

// TestMapWithoutChecksums: without checksums hint bits change pages and leave
// no trace.
func TestMapWithoutChecksums(t *testing.T) {
	t.Parallel()
	r := setup(t, pgtest.WithoutChecksums(), pgtest.WithConf("full_page_writes = off"))
	r.hold(t, r.scanAtOnce(t), false)
}

// summaries is the Map that the server's own summaries make, nil before 17.
func (r run) summaries(t *testing.T) *changes.Map {
	t.Helper()
	if r.pgt.Major() < 17 {
		return nil
	}
	r.pgt.Start()
	c, err := pgconn.Connect(t.Context(), pgconn.Options{ConnString: r.pgt.ConnString()})
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Summaries(t.Context(), pgconn.SummaryRange{
		From: r.start.Checkpoint, To: r.end.Checkpoint, History: wal.History{Timeline: 1}, Wait: time.Minute,
	})
	if err = errors.Join(err, c.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	r.pgt.Stop(pgtest.Fast)
	return m
}

// TestMapAcrossFiles: a relation that grows over the end of its first file. The
// file is made long beforehand, with nothing in it.
func TestMapAcrossFiles(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t, pgtest.WithSegmentSize(1), pgtest.WithConf("autovacuum = off", "wal_keep_size = 1GB", "checkpoint_timeout = 1h", "bgwriter_lru_maxpages = 0"))
	pgt.SQL("CREATE TABLE long AS SELECT 1 AS g, repeat('x', 500) AS v")
	path := filepath.Join(pgt.DataDir(), pgt.SQL("SELECT pg_relation_filepath('long')"))
	pgt.Stop(pgtest.Fast)
	start := checkpoint(t, pgt.DataDir())
	if err := os.Truncate(path, 1<<30-2*pageSize); err != nil {
		t.Fatal(err)
	}
	pgt.Start()
	pgt.SQL("INSERT INTO long SELECT g, repeat('y', 500) FROM generate_series(1, 2000) g")
	pgt.Stop(pgtest.Fast)
	end := checkpoint(t, pgt.DataDir())
	var all []byte
	for n := start.Checkpoint.Segment(1, end.SegmentSize); n.Start(end.SegmentSize) < end.Checkpoint; n = n.Next(end.SegmentSize) {
		b, err := os.ReadFile(filepath.Join(pgt.WALDir(), n.String()))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	m, err := changes.Scan(bytes.NewReader(all), changes.ScanOptions{From: start.Checkpoint, To: end.Checkpoint})
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{path, path + ".1"} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		rel, err := filepath.Rel(pgt.DataDir(), name)
		if err != nil {
			t.Fatal(err)
		}
		of, err := wal.ParseFile(rel)
		if err != nil || of.Segment != uint32(i) {
			t.Fatalf("%+v, %v", of, err)
		}
		blocks := uint32(info.Size() / pageSize)
		list, whole := m.Changed(of, blocks)
		told := slices.Collect(list)
		changed := 0
		// Of the first file only the end can have changed.
		for n := max(int64(blocks)-200, 1); n < int64(blocks); n++ {
			b := make([]byte, pageSize)
			if _, err := f.ReadAt(b, n*pageSize); err != nil {
				t.Fatal(err)
			}
			if bytes.Count(b, []byte{0}) == len(b) {
				continue
			}
			changed++
			if _, ok := slices.BinarySearch(told, uint32(n)); !ok && !whole {
				t.Errorf("missed: page %d of file %d", n, i)
			}
		}
		if want := []int{2, 50}[i]; changed < want || whole || len(told) > changed+3 {
			t.Errorf("file %d of %d pages: %d changed, %d told, whole %v", i, blocks, changed, len(told), whole)
		}
	}
}

// askServer holds the reader against pg_walinspect, which came with 15.
func (r run) askServer(t *testing.T) {
	t.Helper()
	if r.pgt.Major() < 15 {
		return
	}
	r.pgt.Start()
	r.pgt.SQL("CREATE EXTENSION pg_walinspect")
	query := func(columns, function string) []string {
		return strings.Split(r.pgt.SQL(fmt.Sprintf("SELECT %s FROM %s('%s', '%s') ORDER BY 1", columns, function, r.start.Checkpoint, r.end.Checkpoint)), "\n")
	}
	var records, blocks []string
	rd := wal.NewReader(bytes.NewReader(bytes.Join(r.segments, nil)), wal.ReaderOptions{From: r.start.Checkpoint, To: r.end.Checkpoint})
	for {
		rec, err := rd.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		records = append(records, fmt.Sprintf("%016X %s %d %016X", uint64(rec.Start), rec.Manager, rec.Length, uint64(rec.Prev)))
		for _, b := range rec.Blocks {
			blocks = append(blocks, fmt.Sprintf("%016X %02d %s %d %d", uint64(rec.Start), b.ID, b.Rel, b.Fork, b.Block))
		}
	}
	// pg_lsn - pg_lsn is a number of bytes, as numeric.
	number := func(lsn string) string {
		return "lpad(upper(to_hex((" + lsn + " - '0/0'::pg_lsn)::int8)), 16, '0')"
	}
	same := func(what string, got, want []string) {
		t.Helper()
		slices.Sort(got)
		slices.Sort(want)
		if i := slices.IndexFunc(got, func(s string) bool { _, ok := slices.BinarySearch(want, s); return !ok }); i >= 0 {
			t.Errorf("%s the server does not have: %s", what, got[i])
		}
		if i := slices.IndexFunc(want, func(s string) bool { _, ok := slices.BinarySearch(got, s); return !ok }); i >= 0 {
			t.Errorf("%s that was not read: %s", what, want[i])
		}
		if len(got) != len(want) {
			t.Errorf("%d %ss, the server has %d", len(got), what, len(want))
		}
		t.Logf("%d %ss as the server has them", len(got), what)
	}
	same("record", records, query(number("start_lsn")+" || ' ' || resource_manager || ' ' || record_length || ' ' || "+number("prev_lsn"), "pg_get_wal_records_info"))
	if r.pgt.Major() >= 16 {
		same("block reference", blocks, query(number("start_lsn")+" || ' ' || lpad(block_id::text, 2, '0') || ' ' || reltablespace || '/' || reldatabase || '/' || relfilenode || ' ' || relforknumber || ' ' || relblocknumber", "pg_get_wal_block_info"))
	}
}
