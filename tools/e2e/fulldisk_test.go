package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/walherd/walherd/producer/pgtest"
)

// smallDisk mounts a file system of its own that takes size bytes, for a full
// disk that is one: a limit on files, which any user may set, fails single writes
// only, and never a mkdir or the marker's own lines.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a small file system is mounted by root only")
	}
	dir := pgtest.TempDir(t)
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%d,mode=0777", size), "walherd-e2e", dir).CombinedOutput(); err != nil {
		t.Skipf("a small file system cannot be mounted here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("unmount: %v: %s", err, out)
		}
	})
	return dir
}

// leave fills a disk up to the last free bytes. Asked again, it first makes space.
func leave(t *testing.T, disk string, free int64) {
	t.Helper()
	f, err := os.Create(filepath.Join(disk, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var s syscall.Statfs_t
	if err := syscall.Statfs(disk, &s); err != nil {
		t.Fatal(err)
	}
	if n := int64(s.Bavail)*s.Bsize - free; n > 0 {
		if err := syscall.Fallocate(int(f.Fd()), 0, 0, n); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFullDisk fetches to a disk with no space: however little is left, the error
// says so and names the way out, PostgreSQL refuses the result, and the same
// command goes on when there is space, to the tree of a fetch that never lacked
// any. With no space for WAL the recovery stops, and goes on as well.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	slow(t) // engine/restore fills the disk at each object
	const diskSize = 220 << 20
	disk := smallDisk(t, diskSize)
	b := newBench(t, []string{"WALG_DELTA_MAX_STEPS=3", "WALG_TAR_SIZE_THRESHOLD=4000000"})
	b.c.SQL("ALTER SYSTEM SET work_mem = '5MB'")
	b.c.Run("pgbench", "-i", "-q", "-s", "1", "postgres")
	b.must("backup-push", b.c.DataDir())
	full := last(b.backups())
	b.c.Run("pgbench", "-n", "-t", "100", "postgres")
	want := b.c.SQL(bankSums)
	b.must("backup-push", b.c.DataDir())
	increment := last(b.backups())
	b.archived()
	config := b.config()

	segment := strings.TrimPrefix(full, "base_")
	leave(t, disk, 3<<20)
	// One at a time: what is prefetched would come and go.
	r := b.run([]string{"WALG_DOWNLOAD_CONCURRENCY=1"}, "wal-fetch", segment, filepath.Join(disk, "segment"))
	if r.code != 1 || !strings.Contains(r.stderr, "no space left") || !strings.Contains(r.stderr, segment) {
		t.Errorf("wal-fetch to a full disk: %+v", r)
	}
	if left, err := os.ReadDir(disk); err != nil || len(left) != 1 {
		t.Errorf("wal-fetch to a full disk left %v, %v", left, err)
	}

	for name, args := range map[string][]string{
		"full": {full}, "increment": {increment}, "reverse": {increment, "--reverse-unpack"},
	} {
		t.Run(name, func(t *testing.T) {
			b := *b
			b.t = t
			fetch := func(dir string) result {
				return b.run(nil, slices.Concat([]string{"--config", config, "backup-fetch", dir}, args, []string{"--recover"})...)
			}
			whole := filepath.Join(pgtest.TempDir(t), "whole")
			if r := fetch(whole); r.code != 0 {
				t.Fatalf("backup-fetch: %+v", r)
			}
			dir := filepath.Join(disk, name)
			refused := 0
			for _, free := range []int64{0, 8 << 10, 20 << 20} {
				leave(t, disk, free)
				r := fetch(dir)
				if r.code != 1 || !strings.Contains(r.stderr, "no space left on device") || !strings.Contains(r.stderr, dir) || !strings.Contains(r.stderr, "make space") {
					t.Fatalf("with %d bytes left: %+v", free, r)
				}
				if out, err := b.c.Command(context.Background(), "postgres", "-D", dir).CombinedOutput(); !failed(err) {
					t.Fatalf("with %d bytes left: PostgreSQL runs: %v\n%s", free, err, out)
				}
				if _, err := os.Stat(filepath.Join(dir, "PG_VERSION")); err == nil {
					refused++
				}
			}
			if refused == 0 {
				t.Error("there was never enough space for a file")
			}
			leave(t, disk, diskSize)
			r := fetch(dir)
			if r.code != 0 || !strings.Contains(r.stderr, "parts were there") {
				t.Fatalf("with space: %+v", r)
			}
			sameTree(t, &b, whole, dir)
			// One segment fits, not two: recovery needs both.
			leave(t, disk, 18<<20)
			b.stopsInRecovery(dir, "no space left")
			leave(t, disk, diskSize)
			c := b.ready(dir)
			if got := c.SQL(bankSums); got != want {
				t.Errorf("restored %s, want %s", got, want)
			}
			c.Stop(pgtest.Fast)
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// failed reports whether a program ended on its own with an error.
func failed(err error) bool {
	exit := (*exec.ExitError)(nil)
	return errors.As(err, &exit) && exit.ExitCode() > 0
}
