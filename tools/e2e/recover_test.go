package e2e

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/producer/pgtest"
)

// TestRecoveryDoesNotEndEarly has a segment in the middle of the archive that
// cannot be read. PostgreSQL takes a restore_command that fails for the end of
// the archive, ends recovery there and goes on without what comes after; with
// the settings that --recover writes it stops instead, and goes on when the
// segment can be read again.
func TestRecoveryDoesNotEndEarly(t *testing.T) {
	t.Parallel()
	b := newBench(t, []string{"WALG_DOWNLOAD_CONCURRENCY=1"})
	b.must("backup-push", b.c.DataDir())
	b.c.SQL("CREATE TABLE t AS SELECT generate_series(1, 10) x")
	b.archived()
	segment := b.c.SQL("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
	b.c.SQL("INSERT INTO t VALUES (11)")
	b.archived()
	b.c.SQL("INSERT INTO t VALUES (12)")
	b.archived()

	object := filepath.Join(b.storage, "wal_005", segment+".lz4")
	stored, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(object, stored[:len(stored)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(pgtest.TempDir(t), "restored")
	b.must("--config", b.config(), "backup-fetch", dir, "LATEST", "--recover")
	b.stopsInRecovery(dir, segment)
	if err := os.WriteFile(object, stored, 0o644); err != nil {
		t.Fatal(err)
	}
	r := b.ready(dir)
	if got := r.SQL("SELECT sum(x) FROM t"); got != "78" {
		t.Errorf("restored rows sum up to %s, want 78", got)
	}
}

// stopsInRecovery starts what was restored with recovery settings: the server has
// to end on its own, with something in its log.
func (b *bench) stopsInRecovery(dir, says string) {
	b.t.Helper()
	r := pgtest.Open(b.t, dir, pgtest.Stopped(), pgtest.WithConf("archive_mode = off"))
	limit, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var log bytes.Buffer
	postgres := r.Command(limit, "postgres", "-D", dir, "-k", r.SocketDir(), "-c", "listen_addresses=")
	postgres.Stdout, postgres.Stderr = &log, &log
	if err := postgres.Run(); limit.Err() != nil || !failed(err) || !strings.Contains(log.String(), says) {
		b.t.Fatalf("PostgreSQL should have stopped for %q: %v\n%s", says, err, log.String())
	}
}
