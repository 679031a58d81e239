package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/producer/pgtest"
	"github.com/walherd/walherd/tools/pgmatrix/matrix"
)

// TestIncrementWithoutItsSummaries: WAL summaries that the server cannot read, or
// may not show to the role, cost time and not the backup.
func TestIncrementWithoutItsSummaries(t *testing.T) {
	t.Parallel()
	bins, err := matrix.Installed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if bins[pg.MaxMajor] == "" {
		t.Skipf("PostgreSQL %d is not installed (make pgmatrix)", pg.MaxMajor)
	}
	b := newBench(t, []string{"WALG_DELTA_MAX_STEPS=5"}, pgtest.WithBinDir(bins[pg.MaxMajor]), pgtest.WithConf("autovacuum = off", "summarize_wal = on"))
	push := func(env ...string) string {
		t.Helper()
		r := b.run(env, "backup-push", b.c.DataDir())
		if r.code != 0 {
			t.Fatalf("backup-push: %+v", r)
		}
		return r.stderr
	}
	push()
	b.c.SQL("CREATE TABLE t AS SELECT generate_series(1, 1000)")
	if said := push(); !strings.Contains(said, "taken from the server's WAL summaries") {
		t.Fatal(said)
	}

	b.c.SQL(`CREATE ROLE plain LOGIN IN ROLE pg_monitor;
 GRANT EXECUTE ON FUNCTION pg_backup_start(text, bool) TO plain; GRANT EXECUTE ON FUNCTION pg_backup_stop(bool) TO plain;
 REVOKE EXECUTE ON FUNCTION pg_available_wal_summaries FROM PUBLIC, pg_monitor`)
	if said := push("PGUSER=plain", "PGDATABASE=postgres"); !strings.Contains(said, byScan) || !strings.Contains(said, "permission denied") {
		t.Fatal(said)
	}

	b.c.SQL("INSERT INTO t SELECT 1; SELECT pg_switch_wal(); CHECKPOINT")
	b.c.Await("SELECT summarized_lsn >= redo_lsn FROM pg_get_wal_summarizer_state(), pg_control_checkpoint()", "t")
	files, err := filepath.Glob(filepath.Join(b.c.WALDir(), "summaries", "*.summary"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		if err := os.WriteFile(name, []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if said := push(); !strings.Contains(said, byScan) || !strings.Contains(last(b.backups()), "_D_") {
		t.Fatal(said)
	}
}
