package e2e

import (
	"strings"
	"testing"

	"github.com/walherd/walherd/producer/pgtest"
)

// TestChecksumsEnabledBetween: pg_checksums changes every page, and no LSN. An
// increment on a backup from before would restore to pages without the checksums
// that the control file promises.
func TestChecksumsEnabledBetween(t *testing.T) {
	t.Parallel()
	b := newBench(t, []string{"WALG_DELTA_MAX_STEPS=5"}, pgtest.WithoutChecksums(), pgtest.WithConf("autovacuum = off"))
	b.c.SQL("CREATE TABLE t AS SELECT generate_series(1, 5000) g")
	b.must("backup-push", b.c.DataDir())
	b.c.Stop(pgtest.Fast)
	b.c.Run("pg_checksums", "--enable", "-D", b.c.DataDir())
	b.c.Start()
	r := b.run(nil, "backup-push", b.c.DataDir())
	b.archived()
	restored := b.restoreTo("LATEST")
	if got := restored.SQL("SELECT count(*) FROM t"); got != "5000" {
		t.Fatalf("%s rows of 5000", got)
	}
	checksums(t, restored)
	if r.code != 0 || !strings.Contains(r.stderr, "data checksums were enabled since") || strings.Contains(last(b.backups()), "_D_") {
		t.Fatalf("on a base without checksums: %+v", r)
	}
	// A full backup that has them is a base again.
	if r := b.run(nil, "backup-push", b.c.DataDir()); r.code != 0 || !strings.Contains(last(b.backups()), "_D_") {
		t.Fatalf("on a base with checksums: %+v", r)
	}
}
