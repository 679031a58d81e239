package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/producer/pgtest"
)

// config writes the bench's settings into a file that the server's user reads.
func (b *bench) config() string {
	b.t.Helper()
	var text strings.Builder
	for _, setting := range b.environ() {
		name, value, _ := strings.Cut(setting, "=")
		fmt.Fprintf(&text, "%s: '%s'\n", name, value)
	}
	path := filepath.Join(pgtest.TempDir(b.t), "wal herd's 100%.yaml")
	if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// ready starts what was restored with recovery settings.
func (b *bench) ready(dir string) *pgtest.Cluster {
	b.t.Helper()
	r := pgtest.Open(b.t, dir, pgtest.Stopped(), pgtest.WithBinDir(b.bin), pgtest.WithConf("archive_mode = off"))
	r.Start()
	r.Await("SELECT pg_is_in_recovery()", "f")
	return r
}

// TestRestoreOnly restores one table, and one with partitions, of one database
// of three, from a chain of backups taken under load: the server starts, the
// tables are whole with all that belongs to them, and the rest can be dropped.
func TestRestoreOnly(t *testing.T) {
	t.Parallel()
	b := newBench(t, []string{"WALG_DELTA_MAX_STEPS=3", "WALG_TAR_SIZE_THRESHOLD=2000000"})
	for _, db := range []string{"app1", "app2", `"app 3"`} {
		b.c.SQL("CREATE DATABASE " + db)
	}
	const tables = `CREATE SCHEMA s2;
		CREATE TABLE t1 (id serial PRIMARY KEY, v text, big text);
		ALTER TABLE t1 ALTER big SET STORAGE EXTERNAL;
		INSERT INTO t1 (v, big) SELECT 'v' || g, CASE WHEN g % 50 = 0 THEN repeat(md5(g::text), 300) END FROM generate_series(1, 5000) g;
		CREATE INDEX t1_v ON t1 (v);
		CREATE TABLE t2 AS SELECT g, repeat('x', 100) FROM generate_series(1, 5000) g;
		CREATE TABLE s2.t3 AS SELECT g FROM generate_series(1, 1000) g;
		CREATE TABLE part (k int PRIMARY KEY) PARTITION BY RANGE (k);
		CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (0) TO (500);
		CREATE TABLE part_high PARTITION OF part FOR VALUES FROM (500) TO (1000);
		INSERT INTO part SELECT generate_series(0, 999);`
	b.c.SQLIn("app1", tables)
	b.c.SQLIn("app 3", tables)
	b.c.SQLIn("app1", "VACUUM FULL pg_class") // its file has a number as of a user's table
	b.c.Run("pgbench", "-i", "-q", "-s", "2", "app2")
	load, stop := context.WithCancel(t.Context())
	defer stop()
	pgbench := b.c.Command(load, "pgbench", "-n", "-c", "2", "-T", "600", "app2")
	if err := pgbench.Start(); err != nil {
		t.Fatal(err)
	}
	b.must("backup-push", b.c.DataDir())
	b.c.SQLIn("app1", "UPDATE t1 SET v = v || '!' WHERE id % 40 = 0; UPDATE t2 SET g = -g WHERE g < 50; INSERT INTO s2.t3 VALUES (0); DELETE FROM part WHERE k % 7 = 0")
	b.must("backup-push", b.c.DataDir())
	b.c.SQLIn("app1", "DELETE FROM t1 WHERE id % 90 = 0; UPDATE t2 SET g = 0 WHERE g = 60; VACUUM t2")
	stop()
	_ = pgbench.Wait() // killed
	const sum = `SELECT (SELECT count(*) || md5(string_agg(t::text, ',' ORDER BY id)) FROM t1 t), (SELECT count(*) || ' ' || sum(k) FROM part)`
	want := b.c.SQLIn("app1", sum)
	b.archived()
	names := b.backups()
	config := b.config()

	for _, name := range names {
		dir := filepath.Join(pgtest.TempDir(t), "restored")
		r := b.run(nil, "--config", config, "backup-fetch", dir, name, "--restore-only", `app1/t1,app1/"part"`, "--recover")
		if r.code != 0 || !strings.Contains(r.stderr, "the newest backup is unpacked first") {
			t.Fatalf("backup-fetch: %+v", r)
		}
		c := b.ready(dir)
		if got := c.SQLIn("app1", sum); got != want {
			t.Errorf("%s: restored %s, want %s", name, got, want)
		}
		c.Run("pg_amcheck", "--install-missing", "--heapallindexed", "-d", "app1", "-t", "public.t1", "-t", "public.part_low", "-t", "public.part_high")
		if got := c.SQLIn("app1", "SELECT nextval('t1_id_seq') > 5000"); got != "t" {
			t.Errorf("%s: the table's sequence began again", name)
		}
		c.SQLIn("app1", "INSERT INTO t1 (v) VALUES ('after')")
		for _, table := range []string{"t2", "s2.t3"} {
			if got := c.SQLIn("app1", "SELECT count(*) FROM (SELECT pg_relation_filepath('"+table+"') f) x WHERE pg_stat_file(f, true) IS NOT NULL AND (pg_stat_file(f)).size > 200000"); got != "0" {
				t.Errorf("%s: %s was restored", name, table)
			}
			c.SQLIn("app1", "DROP TABLE "+table)
		}
		for _, db := range []string{"app2", `"app 3"`} {
			c.SQL("DROP DATABASE " + db)
		}
		c.SQL("CHECKPOINT")
		c.Stop(pgtest.Fast)
	}

	refused := func(says string, args ...string) {
		t.Helper()
		dir := filepath.Join(pgtest.TempDir(t), "refused")
		r := b.run(nil, append([]string{"backup-fetch", dir, names[0]}, args...)...)
		if r.code != 1 || !strings.Contains(r.stderr, says) {
			t.Errorf("%v: %+v, want it to say %q", args, r, says)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%v: the directory was made", args)
		}
	}
	refused(`"app1/nothing"`, "--restore-only", "app1/t1,app1/nothing")
	refused("too many slashes", "--restore-only", "app1/a/b/c")
	refused("--restore-only", "--allow-missing")
	dir := filepath.Join(pgtest.TempDir(t), "wild")
	r := b.run(nil, "backup-fetch", dir, "LATEST", "--restore-only", "app1/s*.t3,app 3,gone", "--allow-missing")
	if r.code != 0 || !strings.Contains(r.stderr, `not in the backup: "gone"`) {
		t.Errorf("with a wildcard: %+v", r)
	}
	for db, tables := range map[string]map[string]bool{"app1": {"s2.t3": true, "t1": false, "t2": false}, "app 3": {"t2": true, "t1_v": true}} {
		for table, want := range tables {
			_, err := os.Stat(filepath.Join(dir, b.c.SQLIn(db, "SELECT pg_relation_filepath('"+table+"')")))
			if (err == nil) != want {
				t.Errorf("%s of %s: %v", table, db, err)
			}
		}
	}
	// Names are not kept.
	b.must("backup-push", b.c.DataDir(), "--full")
	r = b.run([]string{"WALG_DISABLE_PARTIAL_RESTORE=true"}, "backup-push", b.c.DataDir(), "--full")
	if r.code != 0 {
		t.Fatalf("backup-push: %+v", r)
	}
	names = []string{last(b.backups())}
	refused("no names of databases", "--restore-only", "app1")
}

// TestRecoveryTargets recovers to a point before a table was dropped, named in
// every way, with no more than a fetch and a start.
func TestRecoveryTargets(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	// What an earlier recovery may have left.
	b.c.SQL("ALTER SYSTEM SET recovery_target_name = 'of an earlier recovery'")
	b.c.SQL("CREATE TABLE kept AS SELECT g, md5(g::text) m FROM generate_series(1, 2000) g")
	before := b.c.SQL("SELECT now()")
	b.must("backup-push", b.c.DataDir())
	name := last(b.backups())
	atBackup := b.c.SQL("SELECT count(*) || md5(string_agg(m, ',' ORDER BY g)) FROM kept")
	b.c.SQL("INSERT INTO kept SELECT g, md5(g::text) FROM generate_series(2001, 3000) g")
	want := b.c.SQL("SELECT count(*) || md5(string_agg(m, ',' ORDER BY g)) FROM kept")
	b.c.SQL("SELECT pg_create_restore_point('before it''s gone')")
	moment := b.c.SQL("SELECT clock_timestamp()")
	lsn := b.c.SQL("SELECT pg_current_wal_insert_lsn()")
	xid := b.c.SQL("BEGIN; SELECT txid_current(); DROP TABLE kept; COMMIT")
	xid = strings.TrimSpace(strings.NewReplacer("BEGIN", "", "DROP TABLE", "", "COMMIT", "").Replace(xid))
	b.c.SQL("CREATE TABLE later (x int)")
	b.archived()
	config := b.config()
	for target, args := range map[string][]string{
		"time":      {"--recovery-target-time", moment},
		"lsn":       {"--recovery-target-lsn", lsn, "--recovery-target-inclusive=false"},
		"name":      {"--recovery-target-name", "before it's gone", "--timeline", "current"},
		"xid":       {"--recovery-target-xid", xid, "--recovery-target-inclusive=false", "--timeline", "1"},
		"immediate": {"--recovery-target-immediate"},
	} {
		t.Run(target, func(t *testing.T) {
			b := *b
			b.t = t
			dir := filepath.Join(pgtest.TempDir(t), "restored")
			b.must(append([]string{"--config", config, "backup-fetch", dir, "LATEST", "--recovery-target-action", "promote"}, args...)...)
			c := b.ready(dir)
			want := want
			if target == "immediate" {
				want = atBackup
			}
			if got := c.SQL("SELECT count(*) || md5(string_agg(m, ',' ORDER BY g)) FROM kept"); got != want {
				t.Errorf("restored %s, want %s", got, want)
			}
		})
	}
	for says, args := range map[string][]string{
		"has no zone":                   {"--recovery-target-time", "2026-01-31 02:55:00"},
		"no backup is old enough":       {"--recovery-target-time", before},
		"in the future":                 {"--recovery-target-time", "2999-01-31 02:55:00Z"},
		"one target only":               {"--recovery-target-immediate", "--recovery-target-xid", "5"},
		name + " ended at":              {"--recovery-target-lsn", "0/1000000"},
		"needs a recovery target":       {"--recovery-target-action", "promote"},
		"is not latest, current":        {"--timeline", "newest"},
		"masked restore is not":         {"--recover", "--mask", "base/*/PG_VERSION"},
		"not pause, promote":            {"--recovery-target-immediate", "--recovery-target-action", "stop"},
		"--recovery-target-xid is empt": {"--recovery-target-xid", ""},
	} {
		dir := filepath.Join(pgtest.TempDir(t), "refused")
		r := b.run(nil, append([]string{"--config", config, "backup-fetch", dir, "LATEST"}, args...)...)
		if r.code != 1 || !strings.Contains(r.stderr, says) {
			t.Errorf("%v: %+v, want it to say %q", args, r, says)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%v: the directory was made", args)
		}
	}
}

// killedFetch runs a fetch into dir and kills it once it has restored more parts,
// or lets it end.
func (b *bench) killedFetch(env []string, dir string, more int, args ...string) (out string, killed bool) {
	b.t.Helper()
	parts := func() int {
		text, _ := os.ReadFile(filepath.Join(dir, "walherd-restore-incomplete"))
		return strings.Count(string(text), `{"done"`)
	}
	until := parts() + more
	var said bytes.Buffer
	cmd := b.command(b.t.Context(), env, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case err := <-ended:
			if err != nil && cmd.ProcessState.ExitCode() != -1 {
				b.t.Fatalf("walherd %v: %v\n%s", args, err, said.String())
			}
			return said.String(), err != nil
		case <-look.C:
			if parts() >= until {
				_ = cmd.Process.Kill() // it may have ended
			}
		}
	}
}

// TestFetchResumes kills fetches at random points and has a disk full: what goes
// on with them makes the tree of a fetch without interruption.
func TestFetchResumes(t *testing.T) {
	t.Parallel()
	slow(t)
	b := newBench(t, []string{"WALG_DELTA_MAX_STEPS=3", "WALG_TAR_SIZE_THRESHOLD=1000000"})
	b.c.Run("pgbench", "-i", "-q", "-s", "2", "postgres")
	b.must("backup-push", b.c.DataDir())
	full := last(b.backups())
	b.c.Run("pgbench", "-n", "-t", "300", "postgres")
	b.c.SQL("CHECKPOINT")
	b.must("backup-push", b.c.DataDir())
	increment := last(b.backups())
	slow := []string{"WALG_NETWORK_RATE_LIMIT=3000000", "WALG_DOWNLOAD_CONCURRENCY=2"}
	for name, args := range map[string][]string{
		"full": {full}, "increment": {increment}, "reverse": {increment, "--reverse-unpack"}, "only": {increment, "--restore-only", "postgres"},
	} {
		t.Run(name, func(t *testing.T) {
			b := *b
			b.t = t
			whole, dir := filepath.Join(pgtest.TempDir(t), "whole"), filepath.Join(pgtest.TempDir(t), "dir")
			b.must(append([]string{"backup-fetch", whole}, args...)...)
			args := append([]string{"backup-fetch", dir}, args...)
			kills, resumed := 0, false
			for range 2 {
				out, killed := b.killedFetch(slow, dir, 1+rand.IntN(4), args...)
				resumed = resumed || strings.Contains(out, "parts were there")
				if !killed {
					break
				}
				kills++
				if _, err := os.Stat(filepath.Join(dir, "global", "pg_control")); err == nil {
					t.Error("a killed fetch looks complete")
				}
			}
			if _, err := os.Stat(filepath.Join(dir, "walherd-restore-incomplete")); err == nil {
				other := full
				if name == "full" {
					other = increment
				}
				if r := b.run(nil, "backup-fetch", dir, other); r.code != 1 || !strings.Contains(r.stderr, "unfinished restore of "+strings.Fields(args[2])[0]) {
					t.Errorf("another backup: %+v", r)
				}
				r := b.run(nil, args...)
				if r.code != 0 {
					t.Fatalf("backup-fetch: %+v", r)
				}
				resumed = resumed || strings.Contains(r.stderr, "parts were there")
			}
			if kills > 0 && !resumed {
				t.Errorf("after %d kills no part was taken over", kills)
			}
			sameTree(t, &b, whole, dir)
		})
	}
	t.Run("full disk", func(t *testing.T) {
		b := *b
		b.t = t
		whole, dir := filepath.Join(pgtest.TempDir(t), "whole"), filepath.Join(pgtest.TempDir(t), "dir")
		b.must("backup-fetch", whole, full)
		cmd := b.c.Command(t.Context(), "/bin/sh", "-c", `ulimit -f 4096; exec "$0" "$@"`, b.program, "backup-fetch", dir, full)
		cmd.Env = append(cmd.Env, b.environ()...)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "file too large") || !strings.Contains(string(out), "base/") {
			t.Fatalf("on a full disk: %v\n%s", err, out)
		}
		marker := read(t, filepath.Join(dir, "walherd-restore-incomplete"))
		if !strings.Contains(marker, "file too large") {
			t.Errorf("the marker does not say why:\n%s", marker)
		}
		if _, err := os.Stat(filepath.Join(dir, "global", "pg_control")); err == nil {
			t.Error("the result looks complete")
		}
		b.must("backup-fetch", dir, full)
		sameTree(t, &b, whole, dir)
	})
}
