package e2e

import (
	"strings"
	"testing"

	"github.com/walherd/walherd/producer/pgtest"
)

// TestScanSeesAllVisiblePages: without checksums, VACUUM marks a heap page all
// visible and leaves its LSN alone. Were the page taken from the parent and the
// visibility map from the increment, the restored server would not clear the
// map's bit when a row of the page is deleted, and index-only scans would count
// deleted rows.
func TestScanSeesAllVisiblePages(t *testing.T) {
	t.Parallel()
	b := newBench(t, []string{"WALG_DELTA_MAX_STEPS=3"}, pgtest.WithoutChecksums(), pgtest.WithConf("autovacuum = off"))
	b.c.SQL("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 5000)")
	b.must("backup-push", b.c.DataDir())
	b.c.SQL("VACUUM t")
	r := b.run(nil, "backup-push", b.c.DataDir())
	if r.code != 0 || !strings.Contains(r.stderr, byScan) || !strings.Contains(last(b.backups()), "_D_") {
		t.Fatalf("increment: %+v", r)
	}
	b.archived()
	restored := b.restoreTo("LATEST")
	restored.SQL("DELETE FROM t WHERE id <= 10")
	const count = "SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT count(*) FROM t WHERE id > 0"
	if plan := restored.SQL(strings.Replace(count, "SELECT", "EXPLAIN SELECT", 1)); !strings.Contains(plan, "Index Only Scan") {
		t.Fatal(plan)
	}
	if got := last(strings.Split(restored.SQL(count), "\n")); got != "4990" {
		t.Fatalf("an index-only scan finds %s rows of 4990", got)
	}
}
