package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/walherd/walherd/engine/manifest"
)

// TestPromotionDuringBackup promotes a standby while a backup reads it: the
// backup is not finalized, and all that a person needs to do so is stored or
// said. (TestStandbyBackup is the one that ends well.)
func TestPromotionDuringBackup(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.c.Run("pgbench", "-i", "-q", "-s", "1", "postgres")
	standby := b.c.NewStandby()
	b.c.SQL("CHECKPOINT")
	b.c.CatchUp(standby)
	from := *b
	from.c = standby
	var out syncBuffer
	cmd := from.command(context.Background(), []string{"WALG_DISK_RATE_LIMIT=20000000"}, "backup-push", standby.DataDir())
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the backup to read", func() bool { return strings.Contains(out.String(), "Starting part 1") })
	stop := func(s syscall.Signal) {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	stop(syscall.SIGSTOP)
	standby.Promote()
	stop(syscall.SIGCONT)
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 1 {
		t.Fatalf("a backup with a promotion: exit code %d\n%s", code, out.String())
	}
	if now := b.backups(); len(now) != 0 {
		t.Fatalf("there are the backups %v", now)
	}
	said := out.String()
	for _, want := range []string{"not finalized", "promoted", "START WAL LOCATION: ", "BACKUP FROM: standby", "START TIMELINE: 1", "start_lsn=", "stop_lsn=", "timeline=00000001", "sentinel=", "metadata="} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not said: %s", want, said)
		}
	}
	// The documents are complete, and all that goes before them is stored.
	_, doc, _ := strings.Cut(said, `sentinel="`)
	doc, _, _ = strings.Cut(doc, `}" `)
	s, err := manifest.ParseSentinel([]byte(strings.ReplaceAll(doc, `\"`, `"`) + "}"))
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	if s.LSN == nil || s.FinishLSN == nil || *s.FinishLSN <= *s.LSN || s.CompressedSize == 0 {
		t.Errorf("the sentinel is %+v", s)
	}
	unfinished := ""
	list, err := os.ReadDir(filepath.Join(b.storage, "basebackups_005"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.IsDir() {
			unfinished = filepath.Join(b.storage, "basebackups_005", e.Name())
		}
	}
	for _, object := range []string{"files_metadata.json", "tar_partitions/part_001.tar.lz4", "tar_partitions/pg_control.tar.lz4", "tar_partitions/backup_label.tar.lz4"} {
		if _, err := os.Stat(filepath.Join(unfinished, object)); err != nil {
			t.Error(err)
		}
	}
}
