package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/producer/pgtest"
	"github.com/walherd/walherd/tools/pgmatrix/matrix"
)

// TestEachMajor is the core cycle on each supported PostgreSQL: WAL archived,
// a full backup, an increment, and both restored from the storage and replayed,
// rows as they were.
func TestEachMajor(t *testing.T) {
	t.Parallel()
	bins, err := matrix.Installed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(bins) == 0 {
		t.Skip("PostgreSQL 13 to 18 are not installed: make matrix (it takes a network and npm)")
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
			sums := map[string]string{}
			for range 2 {
				b.c.Run("pgbench", "-n", "-t", "100", "postgres")
				b.must("backup-push", b.c.DataDir(), "--verify")
				sums[last(b.backups())] = b.c.SQL(bankSums)
			}
			b.c.Run("pgbench", "-n", "-t", "50", "postgres")
			end := b.c.SQL(bankSums)
			b.archived()
			names := b.backups()
			if len(names) != 2 || strings.Contains(names[0], "_D_") || !strings.Contains(names[1], "_D_") {
				t.Fatalf("the backups are %v", names)
			}
			full := filepath.Join(pgtest.TempDir(t), "full")
			b.must("backup-fetch", full, names[0])
			r := b.recover(full, "recovery_target = 'immediate'", "recovery_target_action = 'promote'")
			if got := r.SQL(bankSums); got != sums[names[0]] {
				t.Errorf("%s restored to %s, was %s", names[0], got, sums[names[0]])
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
