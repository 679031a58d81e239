package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/producer/pgtest"
)

// mapsOf are the change maps in the storage, by name.
func (b *bench) mapsOf() (names []string) {
	for _, o := range b.objects() {
		if strings.Contains(o, "_changes") {
			names = append(names, filepath.Join(b.storage, o))
		}
	}
	slices.Sort(names)
	return names
}

const (
	fromMaps = "taken from the change maps of archived WAL"
	byScan   = "changed files are read for their changed blocks"
)

// TestIncrementsFromMaps: what workers keep beside archived WAL serves an
// increment, in both shapes; what is lost of it is made anew, and where too much
// is missing all is read, or, where that is not wanted, nothing is taken.
func TestIncrementsFromMaps(t *testing.T) {
	t.Parallel()
	for name, fleetShape := range map[string]bool{"embedded": false, "fleet": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var b *bench
			var f *fleet
			// In a fleet, only workers are told to keep maps.
			keep := "WALG_USE_WAL_DELTA=true"
			steps := "WALG_DELTA_MAX_STEPS=9"
			conf := []pgtest.Option{pgtest.WithSegmentSize(1), pgtest.WithConf("autovacuum = off", "wal_keep_size = 0")}
			if fleetShape {
				f = newFleet(t, conf...)
				b = f.bench
				f.env = append(f.env, "WALG_PG_WAL_SIZE=1")
				told := *b
				told.env = append(slices.Clone(f.env), keep)
				(&fleet{bench: &told, url: f.url}).worker("a")
				b.c.SQL("ALTER SYSTEM SET archive_command = 'env " + strings.ReplaceAll(shellWords(f.env), "'", "") + " " + b.program + " wal-push %p'")
				b.c.SQL("SELECT pg_reload_conf()")
			} else {
				b = newBench(t, []string{keep, "WALG_PG_WAL_SIZE=1"}, conf...)
			}
			push := func(want int, env ...string) string {
				t.Helper()
				env = append([]string{steps}, env...)
				if fleetShape {
					_, stderr, code := f.ask(env, "backup-push", b.c.DataDir())
					if code != want {
						t.Fatalf("backup-push: exit code %d\n%s", code, stderr)
					}
					return stderr
				}
				r := b.run(env, "backup-push", b.c.DataDir())
				if r.code != want {
					t.Fatalf("backup-push: %+v", r)
				}
				return r.stderr
			}
			must := func(said, want string) {
				t.Helper()
				if !strings.Contains(said, want) {
					t.Fatalf("no %q in:\n%s", want, said)
				}
			}
			b.c.Run("pgbench", "-i", "-q", "-s", "1", "postgres")
			push(0)
			b.c.Run("pgbench", "-n", "-t", "50", "-c", "2", "postgres")
			must(push(0, "WALG_FORCE_WAL_DELTA=true"), fromMaps)
			sums := map[string]string{last(b.backups()): b.c.SQL(bankSums)}

			// Lost, damaged, older than its segment: three maps are made anew.
			b.c.SQL("SELECT count(pg_logical_emit_message(false, 'test', repeat('x', 1000000))) FROM generate_series(1, 4)")
			b.c.Run("pgbench", "-n", "-t", "50", "-c", "2", "postgres")
			b.archived()
			maps := b.mapsOf()
			if len(maps) < 4 {
				t.Fatalf("there are %d maps: %v", len(maps), maps)
			}
			maps = maps[len(maps)-4:]
			if err := os.Remove(maps[0]); err != nil {
				t.Fatal(err)
			}
			writeFile(t, b, maps[1], []byte("damaged"))
			old := time.Now().Add(-time.Hour)
			if err := os.Chtimes(maps[2], old, old); err != nil {
				t.Fatal(err)
			}
			said := push(0, "WALG_FORCE_WAL_DELTA=true", "WALG_LOG_LEVEL=DEVEL")
			must(said, fromMaps)
			if !fleetShape { // else the worker says it
				if n := strings.Count(said, "made a change map from an archived segment"); n != 3 {
					t.Fatalf("%d maps were made anew:\n%s", n, said)
				}
			}

			// A segment is gone with its map.
			b.c.SQL("SELECT count(pg_logical_emit_message(false, 'test', repeat('x', 1000000))) FROM generate_series(1, 3)")
			b.archived()
			maps = b.mapsOf()
			gone := maps[len(maps)-2]
			for _, name := range []string{gone, strings.Replace(gone, "_changes", "", 1)} {
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
			}
			said = push(1, "WALG_FORCE_WAL_DELTA=true")
			must(said, "no record of the changed blocks")
			must(said, "WALG_FORCE_WAL_DELTA")
			before := b.backups()
			said = push(0)
			must(said, byScan)
			if got := b.backups(); len(got) != len(before)+1 {
				t.Fatalf("backups %v", got)
			}
			sums[last(b.backups())] = b.c.SQL(bankSums)
			if !fleetShape {
				said = push(0, "WALG_USE_WAL_DELTA=false")
				must(said, byScan)
				must(said, "WALG_USE_WAL_DELTA")
			}
			b.archived()
			for name, want := range sums {
				r := b.restoreTo(name)
				if got := r.SQL(bankSums); got != want {
					t.Fatalf("%s restored to %s, was %s", name, got, want)
				}
				amcheck(t, r)
			}
		})
	}
}

// restoreTo restores a backup to the moment it became consistent.
func (b *bench) restoreTo(name string) *pgtest.Cluster {
	b.t.Helper()
	dir := filepath.Join(pgtest.TempDir(b.t), "restored")
	b.must("backup-fetch", dir, name)
	return b.recover(dir, "recovery_target = 'immediate'", "recovery_target_action = 'promote'")
}

// TestMapsOverAPromotion: the increment after a failover to a standby is made of
// the maps of two timelines.
func TestMapsOverAPromotion(t *testing.T) {
	t.Parallel()
	slow(t)
	b := newBench(t, []string{"WALG_USE_WAL_DELTA=true", "WALG_PG_WAL_SIZE=1", "WALG_DELTA_MAX_STEPS=3"},
		pgtest.WithSegmentSize(1), pgtest.WithConf("autovacuum = off"))
	b.c.SQL("CREATE TABLE t AS SELECT g, repeat('x', 500) v FROM generate_series(1, 5000) g; VACUUM FREEZE t")
	b.must("backup-push", b.c.DataDir())
	b.c.SQL("UPDATE t SET v = 'old' WHERE g % 100 = 1")
	b.archived()
	standby := b.c.NewStandby()
	b.c.SQL("UPDATE t SET v = 'moved' WHERE g % 100 = 2")
	b.c.CatchUp(standby)
	standby.Promote()
	b.c.Stop(pgtest.Fast)
	b.c = standby
	b.c.SQL("UPDATE t SET v = 'new' WHERE g % 100 = 3; SELECT pg_switch_wal()")
	b.archived()
	b.c.SQL("UPDATE t SET v = 'newer' WHERE g % 100 = 4")
	want := b.c.SQL("SELECT md5(string_agg(t::text, ',' ORDER BY g)) FROM t")
	r := b.run([]string{"WALG_FORCE_WAL_DELTA=true"}, "backup-push", b.c.DataDir())
	if r.code != 0 || !strings.Contains(r.stderr, fromMaps) {
		t.Fatalf("backup-push after the promotion: %+v", r)
	}
	if name := last(b.backups()); !strings.HasPrefix(name, "base_00000002") || !strings.Contains(name, "_D_") {
		t.Fatalf("backups: %v", b.backups())
	}
	b.archived()
	restored := b.restoreTo("LATEST")
	if got := restored.SQL("SELECT md5(string_agg(t::text, ',' ORDER BY g)) FROM t"); got != want {
		t.Fatal(fmt.Sprintf("restored %s, was %s", got, want))
	}
	amcheck(t, restored)
}
