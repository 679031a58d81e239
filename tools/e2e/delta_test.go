package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/walherd/walherd/producer/pgtest"
)

// listed is one line of backup-list --json --detail.
type listed struct {
	Name string `json:"backup_name"`
}

func (b *bench) backups() []string {
	b.t.Helper()
	var all []listed
	if err := json.Unmarshal([]byte(b.must("backup-list", "--json")), &all); err != nil {
		b.t.Fatal(err)
	}
	names := make([]string, len(all))
	for i, l := range all {
		names[i] = l.Name
	}
	return names
}

// sameTree compares what two fetches of one backup made, byte for byte.
func sameTree(t *testing.T, b *bench, one, other string) {
	t.Helper()
	if out, err := b.c.Command(context.Background(), "diff", "-r", "--brief", one, other).CombinedOutput(); err != nil {
		t.Fatalf("the trees differ: %v\n%s", err, out)
	}
}

// TestIncrementsRestore takes a full backup and three increments of a database
// that grows, shrinks and changes, under load, and restores every one of them in
// both orders: equal trees, and rows as they were.
func TestIncrementsRestore(t *testing.T) {
	t.Parallel()
	for name, fleetShape := range map[string]bool{"embedded": false, "fleet": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var b *bench
			push := func(args ...string) string {
				r := b.run(nil, append([]string{"backup-push", b.c.DataDir()}, args...)...)
				if r.code != 0 {
					t.Fatalf("backup-push: %+v", r)
				}
				return r.stderr
			}
			steps := []string{"WALG_DELTA_MAX_STEPS=3"}
			if fleetShape {
				f := newFleet(t)
				b = f.bench
				f.worker("a")
				push = func(args ...string) string {
					_, stderr, code := f.ask(steps, append([]string{"backup-push", b.c.DataDir()}, args...)...)
					if code != 0 {
						t.Fatalf("backup-push: exit code %d\n%s", code, stderr)
					}
					return stderr
				}
			} else {
				b = newBench(t, steps)
			}
			summaries := b.c.Major() >= 17
			if summaries {
				b.c.SQL("ALTER SYSTEM SET summarize_wal = on")
				b.c.SQL("SELECT pg_reload_conf()")
			}
			place := pgtest.TempDir(t)
			b.c.SQL(fmt.Sprintf("CREATE TABLESPACE side LOCATION '%s'", place))
			b.c.Run("pgbench", "-i", "-q", "-s", "3", "postgres")
			b.c.SQL("CREATE TABLE gone AS SELECT g, repeat('x', 200) FROM generate_series(1, 20000) g")
			b.c.SQL("CREATE TABLE aside TABLESPACE side AS SELECT g, repeat('y', 200) t FROM generate_series(1, 20000) g")
			changes := []string{
				"",
				"DROP TABLE gone; UPDATE aside SET t = t || 'z' WHERE g % 50 = 0; CREATE TABLE later AS SELECT g FROM generate_series(1, 5000) g",
				"TRUNCATE aside; INSERT INTO aside SELECT g, 'short' FROM generate_series(1, 100) g; VACUUM FULL pgbench_branches",
				"CREATE INDEX ON later (g); DELETE FROM pgbench_accounts WHERE aid % 97 = 0; VACUUM pgbench_accounts",
			}
			sums := map[string]string{}
			const sum = bankSums + `, (SELECT count(*) || coalesce(md5(string_agg(t, ',' ORDER BY g)), '') FROM aside)`
			for i, sql := range changes {
				for statement := range strings.SplitSeq(sql, ";") {
					if strings.TrimSpace(statement) != "" {
						b.c.SQL(statement)
					}
				}
				b.c.Run("pgbench", "-n", "-t", "300", "-c", "2", "postgres")
				b.c.SQL("CHECKPOINT")
				said := push()
				if i > 0 && summaries != strings.Contains(said, "taken from the server's WAL summaries") {
					t.Fatalf("PostgreSQL %d: %s", b.c.Major(), said)
				}
				names := b.backups()
				if len(names) != i+1 {
					t.Fatalf("%d backups after %d: %v", len(names), i+1, names)
				}
				if last := names[i]; strings.Contains(last, "_D_") != (i > 0) {
					t.Fatalf("backup %d is %s", i, last)
				}
				sums[names[i]] = b.c.SQL(sum)
			}
			// The chain is full: the next is a full backup.
			push()
			names := b.backups()
			if last := names[len(names)-1]; strings.Contains(last, "_D_") {
				t.Fatalf("after three increments comes %s", last)
			}
			push("--full")
			b.archived()
			for name, want := range sums {
				dir := filepath.Join(pgtest.TempDir(t), "normal")
				reverse := filepath.Join(filepath.Dir(dir), "reverse")
				b.must("backup-fetch", dir, name)
				b.must("backup-fetch", reverse, name, "--reverse-unpack", "--skip-redundant-tars")
				sameTree(t, b, dir, reverse)
				r := b.recover(dir, "recovery_target = 'immediate'", "recovery_target_action = 'promote'")
				if got := r.SQL(sum); got != want {
					t.Fatalf("%s restored to %s, was %s", name, got, want)
				}
				amcheck(t, r)
				if b.c.Major() == 15 { // the program knows its own version only
					checksums(t, r)
				}
			}
		})
	}
}

// TestIncrementRefusals: an increment that could not be restored is never
// taken, and a broken chain is never restored.
func TestIncrementRefusals(t *testing.T) {
	t.Parallel()
	steps := []string{"WALG_DELTA_MAX_STEPS=5"}
	b := newBench(t, steps)
	push := func(env []string, args ...string) result {
		return b.run(append(steps, env...), append([]string{"backup-push", b.c.DataDir()}, args...)...)
	}
	if r := push(nil, "--delta-from-name", "base_000000010000000000000099"); r.code != 1 || !strings.Contains(r.stderr, "base_000000010000000000000099") {
		t.Fatalf("a base that is not there: %+v", r)
	}
	if r := push(nil, "--delta-from-name", "LATEST", "--delta-from-user-data", "1"); r.code != 1 {
		t.Fatalf("both kinds of base: %+v", r)
	}
	if r := push(nil); r.code != 0 || !strings.Contains(r.stderr, "taking a full backup: there is no backup") {
		t.Fatalf("first: %+v", r)
	}
	if r := push(nil, "--delta-from-user-data", `"nobody"`); r.code != 0 || !strings.Contains(r.stderr, "taking a full backup: no backup has the user data") {
		t.Fatalf("user data of nobody: %+v", r)
	}
	b.c.SQL("CREATE TABLE x AS SELECT generate_series(1, 1000)")
	if r := push(nil); r.code != 0 {
		t.Fatalf("increment: %+v", r)
	}
	names := b.backups()
	increment := names[len(names)-1]
	if !strings.Contains(increment, "_D_") {
		t.Fatalf("the last is no increment: %v", names)
	}
	base := filepath.Join(b.storage, "basebackups_005", names[len(names)-2])

	// A base whose list of files is missing, and so cannot be built on.
	list := filepath.Join(b.storage, "basebackups_005", increment, "files_metadata.json")
	if err := os.Rename(list, list+".away"); err != nil {
		t.Fatal(err)
	}
	if r := push(nil); r.code != 0 || !strings.Contains(r.stderr, "list of files") || strings.Contains(last(b.backups()), "_D_") {
		t.Fatalf("without its base's list: %+v", r)
	}
	dir := pgtest.TempDir(t)
	refused := func(what string, want ...string) {
		t.Helper()
		to := filepath.Join(dir, what)
		r := b.run(nil, "backup-fetch", to, increment)
		if r.code != 1 {
			t.Errorf("%s: exit code %d", what, r.code)
		}
		for _, w := range want {
			if !strings.Contains(r.stderr, w) {
				t.Errorf("%s: %q is not in: %s", what, w, r.stderr)
			}
		}
		if _, err := os.Stat(filepath.Join(to, "global", "pg_control")); err == nil {
			t.Errorf("%s: the result looks complete", what)
		}
	}
	refused("no list", "list of files")
	if err := os.Rename(list+".away", list); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(base+"_backup_stop_sentinel.json", base+".away"); err != nil {
		t.Fatal(err)
	}
	refused("no base", filepath.Base(base), "base is missing")
	if err := os.Rename(base+".away", base+"_backup_stop_sentinel.json"); err != nil {
		t.Fatal(err)
	}
	b.must("backup-fetch", filepath.Join(dir, "whole"), increment)

	// Another cluster in the same place.
	other := pgtest.New(t, pgtest.WithSegmentSize(32)) // of another initdb
	cmd := other.Command(t.Context(), b.program, "backup-push", other.DataDir())
	cmd.Env = append(cmd.Env, append(append(b.environ(), "WALG_PG_WAL_SIZE=32"), steps...)...)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "backup is of another cluster") {
		t.Fatalf("an increment of another cluster's backup: %v\n%s", err, out)
	}
}

func last(names []string) string { return names[len(names)-1] }
