package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/changes"
	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/delta"
	"github.com/walherd/walherd/engine/page"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/restore"
	"github.com/walherd/walherd/engine/wal"
	"github.com/walherd/walherd/messages/transit"
	"github.com/walherd/walherd/producer/basebackup"
	"github.com/walherd/walherd/producer/pgconn"
	"github.com/walherd/walherd/producer/pgtest"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/tools/pgmatrix/matrix"
	"github.com/walherd/walherd/workers/changemap"
	"github.com/walherd/walherd/workers/intake"
)

// casesVar is how many increments TestIncrementsOfRandomWorkloads takes.
const casesVar = "WALHERD_DELTA_CASES"

// TestIncrementsOfRandomWorkloads: whatever a server does between two backups,
// and whichever way the changed blocks are learned (from the maps that workers
// keep, from the server's summaries, by reading pages), the chain restores to
// the files that a full backup of the same moment would have, byte for byte. A
// printed seed makes the same workload again.
func TestIncrementsOfRandomWorkloads(t *testing.T) {
	t.Parallel()
	cases := 8
	if text := os.Getenv(casesVar); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("%s: %v", casesVar, err)
		}
		cases = n
	}
	bins, err := matrix.Installed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	type server struct {
		name string
		opts []pgtest.Option
	}
	servers := []server{{"default", nil}, {"without checksums", []pgtest.Option{pgtest.WithoutChecksums()}}}
	for major, bin := range bins {
		// The newest has summaries; all of them, if time was given.
		if major == pg.MaxMajor || major != 15 && cases > 500 {
			servers = append(servers, server{fmt.Sprintf("pinned %d", major), []pgtest.Option{pgtest.WithBinDir(bin)}})
		}
	}
	for _, s := range servers {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			newChaos(t, s.opts...).run((cases + len(servers) - 1) / len(servers))
		})
	}
}

// chaos is a server that is used at random, and backed up.
type chaos struct {
	t         *testing.T
	c         *pgtest.Cluster
	rng       *rand.Rand
	seed      uint64
	conn      *pgconn.Conn
	checksums bool
	// crashes: the server is killed at times. Not where relations are
	// unlogged: one whose TRUNCATE was rolled back before the crash, and
	// PostgreSQL 18 does not start again ("could not create file: File exists").
	crashes bool

	repo     *repo.Repo
	codec    intake.Codec
	keep     *changemap.Keeper
	archived pg.LSN // up to where segments are in the repo

	tables    []string
	databases []string
	made      int
	log       []string // statements since the last full backup
	chain     []*coldBackup
	counts    map[string]int
	pages     int64
}

const chaosSegment = 1 << 20

func newChaos(t *testing.T, opts ...pgtest.Option) *chaos {
	t.Helper()
	c := &chaos{t: t, seed: uint64(time.Now().UnixNano()), repo: repo.New(mem.New(), "default"), counts: map[string]int{}}
	if text := os.Getenv("WALHERD_DELTA_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		c.seed = n
	}
	c.rng = rand.New(rand.NewPCG(c.seed, 1))
	c.crashes = c.rng.IntN(2) == 0
	c.codec = intake.Codec{Compress: compress.Options{Method: compress.LZ4}}
	c.keep = changemap.NewKeeper(c.codec, changes.Layout{}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	// Nothing may write a page between the checkpoint and the look at the files.
	c.c = pgtest.New(t, append([]pgtest.Option{pgtest.WithSegmentSize(1), pgtest.WithConf(
		"autovacuum = off", "bgwriter_lru_maxpages = 0", "checkpoint_timeout = 1h", "max_wal_size = 4GB", "wal_keep_size = 2GB",
		"max_prepared_transactions = 5", "shared_buffers = 32MB")}, opts...)...)
	c.checksums = c.c.SQL("SHOW data_checksums") == "on"
	if c.c.Major() >= 17 {
		c.c.SQL("ALTER SYSTEM SET summarize_wal = on")
		c.c.SQL("SELECT pg_reload_conf()")
	}
	c.c.SQL("CREATE DATABASE model")
	c.c.SQLIn("model", "CREATE TABLE m AS SELECT generate_series(1, 1000)")
	side := pgtest.TempDir(t)
	c.c.SQL("CREATE TABLESPACE side LOCATION '" + side + "'")
	c.connect()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("WALHERD_DELTA_SEED=%d; since the full backup:\n%s", c.seed, strings.Join(c.log, "\n"))
		}
	})
	return c
}

func (c *chaos) connect() {
	c.t.Helper()
	var err error
	if c.conn, err = pgconn.Connect(c.t.Context(), pgconn.Options{ConnString: c.c.ConnString()}); err != nil {
		c.t.Fatal(err)
	}
}

// lsn asks for a position.
func (c *chaos) lsn(query string) pg.LSN {
	c.t.Helper()
	out := c.c.SQL(query)
	l, err := pg.ParseLSN(out[strings.LastIndexByte(out, '\n')+1:])
	if err != nil {
		c.t.Fatal(err)
	}
	return l
}

func (c *chaos) run(cases int) {
	defer func() { _ = c.conn.Close(context.Background()) }()
	for done := 0; done < cases && !c.t.Failed(); {
		if len(c.chain) == 0 || len(c.chain) > 6 || c.rng.IntN(12) == 0 {
			c.chain, c.log = nil, nil
			at, began := c.still()
			b := backUpStill(c.t, c.c.DataDir(), at, began, nil, nil)
			b.began = began
			c.chain = []*coldBackup{b}
		}
		c.work()
		done += c.increment()
	}
	c.t.Logf("PostgreSQL %d, checksums %v, seed %d: %v, %d pages in increments", c.c.Major(), c.checksums, c.seed, c.counts, c.pages)
}

// still makes the files hold all that was written, and gives the position. As at
// the beginning of a backup, that is in a new segment.
func (c *chaos) still() (pg.LSN, time.Time) {
	began := time.Now()
	return c.lsn("SELECT pg_switch_wal() IS NULL; CHECKPOINT; SELECT redo_lsn FROM pg_control_checkpoint()"), began
}

// increment takes one increment in every way there is, on any of the chain's
// backups, restores each, and compares. The chain goes on with one of them.
func (c *chaos) increment() (n int) {
	t := c.t
	t.Helper()
	at, began := c.still()
	parent := c.chain[c.rng.IntN(len(c.chain))]
	if c.rng.IntN(3) > 0 {
		parent = c.chain[len(c.chain)-1]
	}
	from := *parent.link.Sentinel.LSN
	c.archive(at)
	ways := map[string]delta.ChangeMap{"scan": nil, "maps": c.maps(from, at)}
	if c.c.Major() >= 17 {
		m, err := c.conn.Summaries(t.Context(), pgconn.SummaryRange{From: from, To: at, History: wal.History{Timeline: 1}, Wait: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		ways["summaries"] = m
	}
	var taken []*coldBackup
	for _, way := range []string{"scan", "maps", "summaries"} {
		m, ok := ways[way]
		if !ok {
			continue
		}
		b := backUpStill(t, c.c.DataDir(), at, parent.began, parent, m)
		b.began = began
		taken = append(taken, b)
		c.compare(way, b)
		c.counts[way]++
		c.pages += b.pages
		n++
	}
	next := taken[c.rng.IntN(len(taken))]
	if next.link.Backup != parent.link.Backup {
		c.chain = append(c.chain, next)
	}
	return n
}

// archive gives the complete segments to workers, in any order.
func (c *chaos) archive(to pg.LSN) {
	var names []pg.SegmentName
	if c.archived == 0 {
		c.archived = *c.chain[0].link.Sentinel.LSN / chaosSegment * chaosSegment
	}
	// Some are left for pg_wal.
	end := to/chaosSegment*chaosSegment - pg.LSN(c.rng.IntN(3))*chaosSegment
	for ; c.archived < end; c.archived += chaosSegment {
		names = append(names, c.archived.Segment(1, chaosSegment))
	}
	c.rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, n := range names {
		b, err := os.ReadFile(filepath.Join(c.c.WALDir(), n.String()))
		if err != nil {
			c.t.Fatal(err)
		}
		scan := c.keep.Begin(n.String())
		in := scan.Tap(&oneChunk{b})
		var body bytes.Buffer
		if _, err := transit.Copy(c.t.Context(), &body, in); err != nil {
			c.t.Fatal(err)
		}
		// What is in the segment is not read again.
		if _, err := c.repo.PutWAL(c.t.Context(), n.String()+".lz4", strings.NewReader("segment"), storage.PutOptions{}); err != nil {
			c.t.Fatal(err)
		}
		scan.Keep(c.t.Context(), c.repo)
	}
	if err := c.keep.Close(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
}

// oneChunk is a transfer of one chunk.
type oneChunk struct{ left []byte }

func (o *oneChunk) Next(context.Context) ([]byte, error) {
	if o.left == nil {
		return nil, io.EOF
	}
	b := o.left
	o.left = nil
	return b, nil
}

func (o *oneChunk) Close() {}

// Collect implements basebackup.ArchivedChanges.
func (c *chaos) Collect(ctx context.Context, from, to pg.LSN, h wal.History) (*changes.Map, pg.LSN, error) {
	collector := changemap.Collector{Repos: []*repo.Repo{c.repo}, Codec: c.codec, Logger: slog.New(slog.DiscardHandler)}
	res, err := collector.Collect(ctx, changemap.Range{From: from, To: to, History: h, SegmentSize: chaosSegment})
	if err == nil && res.Made > 0 {
		err = fmt.Errorf("%d maps were missing", res.Made)
	}
	return res.Map, res.Next, err
}

func (c *chaos) maps(from, to pg.LSN) *changes.Map {
	c.t.Helper()
	out, err := basebackup.ChangesOf(c.t.Context(), c, basebackup.WALRange{
		From: from, To: to, History: wal.History{Timeline: 1}, Dir: c.c.WALDir(), SegmentSize: chaosSegment,
		Layout: changes.Layout{PageSize: page.DefaultSize, FileBlocks: page.PagesPerFile(page.DefaultSize)},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return out.Map
}

// compare restores a chain and holds it against the server's files.
func (c *chaos) compare(way string, b *coldBackup) {
	t := c.t
	t.Helper()
	var links []restore.Link
	var sources []restore.Source
	for at := b; at != nil; at = at.parent {
		links = slices.Insert(links, 0, at.link)
		sources = slices.Insert(sources, 0, restore.Source(at))
	}
	req := restore.Request{Destination: filepath.Join(pgtest.TempDir(t), "restored"), Reverse: c.rng.IntN(2) == 0}
	req.SkipRedundant = req.Reverse && c.rng.IntN(2) == 0
	defer os.RemoveAll(filepath.Dir(req.Destination))
	p, err := restore.NewChainPlan(links, req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := restore.RunChain(t.Context(), p, sources, restoreConfig()); err != nil {
		t.Fatal(err)
	}
	unlogged := map[wal.RelFile]bool{}
	for i := range b.entries {
		if f, err := wal.ParseFile(b.entries[i].Name); err == nil && f.Fork == wal.InitFork {
			unlogged[f.RelFile] = true
		}
	}
	for i := range b.entries {
		e := &b.entries[i]
		if e.IsDir() {
			continue
		}
		want, err := os.ReadFile(e.Path(c.c.DataDir()))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(e.Path(req.Destination))
		if err != nil {
			t.Errorf("%s: %v", way, err)
			continue
		}
		f, err := wal.ParseFile(e.Name)
		if bytes.Equal(got, want) || err == nil && unlogged[f.RelFile] {
			continue // what an unlogged relation holds is gone after any recovery
		}
		if err != nil || len(got) != len(want) {
			t.Errorf("%s: %s has %d bytes, not as the server's %d (%v)", way, e.Name, len(got), len(want), b.actions[i])
			continue
		}
		for n := 0; n < len(want); n += page.DefaultSize {
			g, w := got[n:min(n+page.DefaultSize, len(got))], want[n:min(n+page.DefaultSize, len(want))]
			if bytes.Equal(g, w) || !c.checksums && onlyHints(page.ParseHeader(g), page.ParseHeader(w)) {
				continue
			}
			t.Errorf("%s: %s, page %d of %d differs: LSN %s, the server's %s (%v, reverse %v)", way, e.Name, n/page.DefaultSize, len(want)/page.DefaultSize,
				page.ParseHeader(g).LSN, page.ParseHeader(w).LSN, b.actions[i], req.Reverse)
			if out, err := exec.Command("cmp", e.Path(c.c.DataDir()), e.Path(req.Destination)).CombinedOutput(); err != nil {
				t.Logf("%s", out)
			}
		}
	}
}

// onlyHints tells whether two versions of a page differ in hint bits alone, which
// only with checksums are logged: the LSN is the same, and so is the mark that
// all tuples are visible, which is no hint, as the visibility map relies on it.
func onlyHints(a, b page.Header) bool {
	return a.LSN == b.LSN && a.LSN != 0 && a.Flags&page.AllVisible == b.Flags&page.AllVisible
}

// work changes the database in some ways.
func (c *chaos) work() {
	var sql []string
	for range 1 + c.rng.IntN(5) {
		sql = append(sql, c.statement())
	}
	text := strings.Join(sql, ";\n") + ";\n"
	c.log = append(c.log, text)
	c.c.SQL(text)
	switch n := c.rng.IntN(25); {
	case n == 0 && c.crashes: // what was not yet on disk is replayed
		c.log = append(c.log, "-- crash")
		_ = c.conn.Close(context.Background())
		c.c.Stop(pgtest.Immediate)
		c.c.Start()
		c.connect()
	case n < 4:
		c.database()
	}
}

// database makes, moves or drops one.
func (c *chaos) database() {
	do := func(statement string) {
		c.log = append(c.log, statement)
		c.c.SQL(statement)
	}
	if n := len(c.databases); n > 0 && c.rng.IntN(2) == 0 {
		name := c.databases[n-1]
		if c.rng.IntN(2) == 0 {
			do("ALTER DATABASE " + name + " SET TABLESPACE " + []string{"side", "pg_default"}[c.rng.IntN(2)])
			return
		}
		oid := c.c.SQL("SELECT oid FROM pg_database WHERE datname = '" + name + "'")
		do("DROP DATABASE " + name)
		c.databases = c.databases[:n-1]
		if c.c.Major() >= 15 && c.rng.IntN(2) == 0 {
			// The number comes back, with files of the same names and
			// pages as old as those that are copied.
			c.made++
			name = fmt.Sprintf("d%d", c.made)
			do("CREATE DATABASE " + name + " OID = " + oid + " STRATEGY file_copy TEMPLATE " + []string{"template0", "model"}[c.rng.IntN(2)])
			c.databases = append(c.databases, name)
		}
		return
	}
	c.made++
	name := fmt.Sprintf("d%d", c.made)
	strategy := ""
	if c.c.Major() >= 15 {
		strategy = []string{"", " STRATEGY file_copy", " STRATEGY wal_log"}[c.rng.IntN(3)]
	}
	do("CREATE DATABASE " + name + strategy + " TEMPLATE " + []string{"template1", "model"}[c.rng.IntN(2)])
	c.databases = append(c.databases, name)
}

// statement is something to do, and valid.
func (c *chaos) statement() string {
	n := func(most int) int { return 1 + c.rng.IntN(most) }
	if len(c.tables) < 2 || len(c.tables) < 12 && c.rng.IntN(6) == 0 {
		c.made++
		name := fmt.Sprintf("t%d", c.made)
		c.tables = append(c.tables, name)
		kind := ""
		if !c.crashes && c.rng.IntN(8) == 0 {
			kind = "UNLOGGED "
		}
		return fmt.Sprintf(`CREATE %sTABLE %s (id int, v text, a int[], p point) WITH (fillfactor = %d) TABLESPACE %s;
INSERT INTO %s SELECT g, repeat(md5(g::text), %d), ARRAY[g, g %% 10], point(g, g) FROM generate_series(1, %d) g`,
			kind, name, 50+10*c.rng.IntN(6), []string{"pg_default", "side"}[c.rng.IntN(2)], name, n(10), n(3000))
	}
	i := c.rng.IntN(len(c.tables))
	table := c.tables[i]
	index := func(how string) string { return fmt.Sprintf("CREATE INDEX ON %s USING %s", table, how) }
	switch c.rng.IntN(28) {
	case 0, 1, 2:
		return fmt.Sprintf("INSERT INTO %s SELECT g, repeat('i', %d), ARRAY[g], point(g, 1) FROM generate_series(1, %d) g", table, n(300), n(3000))
	case 3, 4, 5:
		return fmt.Sprintf("UPDATE %s SET v = v || '%d' WHERE id %% %d = 0", table, n(100), n(100))
	case 6:
		return fmt.Sprintf("DELETE FROM %s WHERE id > %d", table, n(2000))
	case 7, 8:
		return []string{"VACUUM ", "VACUUM (FREEZE) ", "VACUUM (TRUNCATE off) "}[c.rng.IntN(3)] + table
	case 9:
		return "VACUUM FULL " + table
	case 10:
		return fmt.Sprintf("TRUNCATE %s; INSERT INTO %s VALUES (%d, 'after')", table, table, n(100))
	case 11:
		return fmt.Sprintf("BEGIN; TRUNCATE %s; INSERT INTO %s SELECT generate_series(1, 500); ROLLBACK", table, table)
	case 12:
		c.tables = slices.Delete(c.tables, i, i+1)
		return "DROP TABLE " + table
	case 13:
		return []string{index("btree (id)"), index("gin (a)"), index("hash (id)"), index("brin (id)"), index("gist (p)")}[c.rng.IntN(5)]
	case 14:
		return "REINDEX TABLE " + table
	case 15:
		return fmt.Sprintf("ALTER TABLE %s SET TABLESPACE %s", table, []string{"pg_default", "side"}[c.rng.IntN(2)])
	case 16:
		return fmt.Sprintf("ALTER TABLE %s ALTER id TYPE %s", table, []string{"int", "bigint"}[c.rng.IntN(2)])
	case 17:
		return fmt.Sprintf("BEGIN; INSERT INTO %s SELECT generate_series(1, 300); SAVEPOINT s; UPDATE %s SET v = 'lost'; ROLLBACK TO s; COMMIT", table, table)
	case 18:
		return fmt.Sprintf("BEGIN; UPDATE %s SET v = 'prepared' WHERE id %% 7 = 0; PREPARE TRANSACTION 'p'; %s PREPARED 'p'", table, []string{"COMMIT", "ROLLBACK"}[c.rng.IntN(2)])
	case 19:
		return fmt.Sprintf("BEGIN; CREATE TABLE never AS SELECT * FROM %s; CREATE INDEX ON never (id); ROLLBACK", table)
	case 20:
		return fmt.Sprintf("SELECT pg_logical_emit_message(false, 'm', repeat('m', %d)) IS NULL", n(4)*700000)
	case 21:
		return "SELECT pg_switch_wal() IS NULL"
	case 22:
		return "CHECKPOINT"
	case 23:
		return fmt.Sprintf("BEGIN; SELECT count(*) FROM (SELECT 1 FROM %s WHERE id %% 5 = 0 FOR SHARE) x; SAVEPOINT s; SELECT count(*) FROM (SELECT 1 FROM %s WHERE id %% 10 = 0 FOR UPDATE) x; COMMIT", table, table)
	case 24:
		if c.crashes {
			return "CHECKPOINT"
		}
		return fmt.Sprintf("ALTER TABLE %s SET %s", table, []string{"LOGGED", "UNLOGGED"}[c.rng.IntN(2)])
	case 25:
		return []string{"VACUUM FULL ", "REINDEX TABLE ", "VACUUM "}[c.rng.IntN(3)] + []string{"pg_class", "pg_attribute", "pg_depend", "pg_database"}[c.rng.IntN(4)]
	case 26:
		return "ALTER SYSTEM SET full_page_writes = " + []string{"on", "off"}[c.rng.IntN(2)] + "; SELECT pg_reload_conf()"
	default:
		return "SELECT count(*) FROM " + table // sets hints
	}
}
