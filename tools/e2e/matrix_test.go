package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/producer/pgtest"
	"github.com/walherd/walherd/tools/pgmatrix/matrix"
)

// TestEachMajor is the core cycle on each supported PostgreSQL: WAL archived,
// a full backup, an increment, and both restored from the storage and replayed,
// rows as they were. The full backup is recovered to a target, to another one on
// each version, with the settings that backup-fetch writes.
func TestEachMajor(t *testing.T) {
	t.Parallel()
	bins, err := matrix.Installed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(bins) == 0 {
		t.Skip("PostgreSQL 13 to 18 are not installed: make matrix-install (it takes a network and npm)")
	}
	for major := pg.MinMajor; major <= pg.MaxMajor; major++ {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, []string{"WALG_DELTA_MAX_STEPS=1"}, pgtest.WithBinDir(bins[major]))
			b.bin = bins[major]
			if b.c.Major() != major {
				t.Fatalf("the server is %d", b.c.Major())
			}
			b.c.Run("pgbench", "-i", "-q", "-s", "1", "postgres")
			push := func() string {
				b.c.Run("pgbench", "-n", "-t", "100", "postgres")
				b.must("backup-push", b.c.DataDir(), "--verify")
				return b.c.SQL(bankSums)
			}
			atTarget := push()
			target := []string{"--recovery-target-immediate"}
			if major > pg.MinMajor {
				b.c.Run("pgbench", "-n", "-t", "50", "postgres")
				atTarget = b.c.SQL(bankSums)
				target = recoveryTarget(b.c)
			}
			push()
			b.c.Run("pgbench", "-n", "-t", "50", "postgres")
			end := b.c.SQL(bankSums)
			b.archived()
			names := b.backups()
			if len(names) != 2 || strings.Contains(names[0], "_D_") || !strings.Contains(names[1], "_D_") {
				t.Fatalf("the backups are %v", names)
			}
			full := filepath.Join(pgtest.TempDir(t), "full")
			b.must(slices.Concat([]string{"--config", b.config(), "backup-fetch", full, names[0], "--recovery-target-action", "promote"}, target)...)
			r := b.ready(full)
			if got := r.SQL(bankSums); got != atTarget {
				t.Errorf("%s with %v restored to %s, was %s", names[0], target, got, atTarget)
			}
			// The increment, and all WAL behind it.
			dir := filepath.Join(pgtest.TempDir(t), "increment")
			b.must("backup-fetch", dir, "LATEST")
			r = b.recover(dir)
			if got := r.SQL(bankSums); got != end {
				t.Errorf("the end of the WAL is %s, was %s", got, end)
			}
			if version, err := os.ReadFile(filepath.Join(dir, "PG_VERSION")); err != nil || strings.TrimSpace(string(version)) != strconv.Itoa(major) {
				t.Errorf("PG_VERSION is %q, %v", version, err)
			}
		})
	}
}

// recoveryTarget names this moment of a cluster, in another way on each version.
func recoveryTarget(c *pgtest.Cluster) []string {
	switch c.Major() {
	case 14:
		c.SQL("SELECT pg_create_restore_point('each major')")
		return []string{"--recovery-target-name", "each major"}
	case 15:
		moment := c.SQL("SELECT clock_timestamp()")
		c.SQL("SELECT pg_sleep(0.01)")
		return []string{"--recovery-target-time", moment}
	case 16:
		return []string{"--recovery-target-lsn", c.SQL("SELECT pg_current_wal_insert_lsn()"), "--recovery-target-inclusive=false"}
	case 17:
		xid := c.SQL("SELECT pg_current_xact_id()")
		return []string{"--recovery-target-xid", xid, "--timeline", "1"}
	default:
		c.SQL("SELECT pg_create_restore_point('each major')")
		return []string{"--recovery-target-name", "each major", "--timeline", "current"}
	}
}
