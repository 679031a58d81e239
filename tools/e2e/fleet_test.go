package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walherd/walherd/messages/broker"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/producer/pgtest"
)

// fleet is a bench whose producers know a broker and no storage, with workers
// that know the storage.
type fleet struct {
	*bench
	url string
}

// newFleet starts a broker and a cluster that archives through it.
func newFleet(t *testing.T, opts ...pgtest.Option) *fleet {
	t.Helper()
	f := &fleet{url: bustest.Broker(t, broker.Options{Listen: "127.0.0.1:0", StoreDir: t.TempDir(), MaxMemory: 2 << 30}).URL()}
	f.bench = newBench(t, []string{"WALHERD_NATS_URL=" + f.url, "WALHERD_ACK_WAIT=2s"}, opts...)
	return f
}

// push runs a producer: it has the broker's address and no storage.
func (f *fleet) producer(ctx context.Context, env []string, args ...string) (*exec.Cmd, *syncBuffer) {
	cmd := f.c.Command(ctx, f.program, args...)
	cmd.Env = append(append(cmd.Env, f.env...), env...)
	var out syncBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	return cmd, &out
}

// syncBuffer is written by a process and read by the test.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// worker starts a worker process that ends with the test.
func (f *fleet) worker(name string) (*exec.Cmd, *syncBuffer) {
	f.t.Helper()
	var out syncBuffer
	cmd := f.command(context.Background(), nil, "worker", "--drain", "20s")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if f.t.Failed() {
			f.t.Logf("worker %s:\n%s", name, out.String())
		}
	})
	await(f.t, "worker "+name+" to take jobs", func() bool { return strings.Contains(out.String(), "taking jobs") })
	return cmd, &out
}

// await polls a condition of another process.
func await(t testing.TB, what string, met func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(90 * time.Second)
	for !met() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waited 90 s for %s", what)
		}
	}
}

// holds reports whether a process has a file open whose path contains part.
func holds(pid int, part string) bool {
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return false
	}
	for _, l := range links {
		if target, err := os.Readlink(l); err == nil && strings.Contains(target, part) {
			return true
		}
	}
	return false
}

// TestWorkerKilledInAPart: the worker that is storing a part is killed in the
// middle of it. Another takes the part over from the start, the backup
// finishes, and what it stored restores.
func TestWorkerKilledInAPart(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	workers := map[string]*exec.Cmd{}
	for _, name := range []string{"a", "b"} {
		workers[name], _ = f.worker(name)
	}
	f.c.Run("pgbench", "-i", "-q", "-s", "3", "postgres")
	want := f.c.SQL(bankSums)

	// Slow enough that a part takes seconds.
	backup, out := f.producer(t.Context(), []string{"WALG_DISK_RATE_LIMIT=12000000"}, "backup-push", f.c.DataDir())
	if err := backup.Start(); err != nil {
		t.Fatal(err)
	}
	var victim string
	await(t, "a worker to be in the middle of a part", func() bool {
		for name, w := range workers {
			if holds(w.Process.Pid, "part_001.tar.lz4.tmp") && largest(f.storage, "part_001.tar.lz4.tmp") > 256<<10 {
				victim = name
				return true
			}
		}
		return false
	})
	if err := workers[victim].Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := backup.Wait(); err != nil {
		t.Fatalf("backup-push: %v\n%s", err, out.String())
	}
	if !strings.Contains(out.String(), "sending a part again") {
		t.Fatalf("no part was sent again: the worker was killed too late\n%s", out.String())
	}
	f.archived()
	r := f.restore("LATEST")
	if got := r.SQL(bankSums); got != want {
		t.Fatalf("restored sums %s, want %s", got, want)
	}
	amcheck(t, r)
	checksums(t, r)
}

// largest is the size of the largest file below dir whose name contains part.
func largest(dir, part string) int64 {
	var size int64
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.Contains(d.Name(), part) {
			if info, err := d.Info(); err == nil {
				size = max(size, info.Size())
			}
		}
		return nil // files come and go
	})
	return size
}

// TestProducerKilledLeavesNothingVisible: the process that takes the backup
// dies; workers give its parts up, no backup is listed, and the next backup
// works.
func TestProducerKilledLeavesNothingVisible(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	worker, log := f.worker("a")
	f.c.Run("pgbench", "-i", "-q", "-s", "2", "postgres")
	backup, out := f.producer(t.Context(), []string{"WALG_DISK_RATE_LIMIT=8000000"}, "backup-push", f.c.DataDir())
	if err := backup.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the part to be under way", func() bool { return holds(worker.Process.Pid, "part_001.tar.lz4.tmp") })
	if err := backup.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = backup.Wait()
	if got := f.must("backup-list", "--json"); strings.TrimSpace(got) != "[]" {
		t.Fatalf("listed: %s\n%s", got, out.String())
	}
	// PostgreSQL notices that the session is gone and leaves backup mode by
	// itself; the second backup must work beside the ruins of the first.
	second, out := f.producer(t.Context(), nil, "backup-push", f.c.DataDir())
	if err := second.Run(); err != nil {
		t.Fatalf("second backup: %v\n%s\nworker:\n%s", err, out.String(), log.String())
	}
	r := f.restore("LATEST")
	amcheck(t, r)
}

// TestWorkerDrains: SIGTERM lets a worker finish what it is storing.
func TestWorkerDrains(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	worker, log := f.worker("a")
	f.c.Run("pgbench", "-i", "-q", "-s", "2", "postgres")
	backup, out := f.producer(t.Context(), []string{"WALG_DISK_RATE_LIMIT=15000000"}, "backup-push", f.c.DataDir())
	if err := backup.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the part to be under way", func() bool { return holds(worker.Process.Pid, "part_001.tar.lz4.tmp") })
	f.worker("b") // for what comes after
	if err := worker.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := worker.Wait(); err != nil {
		t.Fatalf("worker: %v\n%s", err, log.String())
	}
	if err := backup.Wait(); err != nil {
		t.Fatalf("backup-push: %v\n%s", err, out.String())
	}
	if strings.Contains(out.String(), "sending a part again") {
		t.Fatalf("the worker handed its part back instead of finishing it\n%s", out.String())
	}
}

// TestNoWorker: without a worker nothing is archived, PostgreSQL is told, and
// the log says why it takes so long.
func TestNoWorker(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	push, out := f.producer(t.Context(), []string{"WALHERD_WAL_PUSH_TIMEOUT=5s"}, "wal-push", segmentFile(t, f.bench))
	if err := push.Run(); err == nil {
		t.Fatal("archived by nobody")
	}
	if got := lastLine(out.String()); !strings.Contains(got, "no worker stored it within 5s") {
		t.Fatalf("error: %s", got)
	}
	if got := out.String(); !strings.Contains(got, "no worker of cluster default answers: waiting up to 5s") {
		t.Fatalf("nothing is said of the worker that is not there: %s", got)
	}
}

// TestNoBroker: an unreachable broker is an error within its limit.
func TestNoBroker(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	r := b.run([]string{"WALHERD_NATS_URL=nats://127.0.0.1:1"}, "wal-push", segmentFile(t, b))
	if r.code != 1 || !strings.Contains(lastLine(r.stderr), "WALHERD_NATS_URL") {
		t.Fatalf("got %+v", r)
	}
}

// segmentFile is a copy of a real, complete WAL segment under its own name.
func segmentFile(t testing.TB, b *bench) string {
	t.Helper()
	name := b.c.SQL("SELECT pg_walfile_name(pg_current_wal_lsn())")
	b.c.SQL("SELECT pg_switch_wal()")
	dir := pgtest.TempDir(t)
	b.c.Run("/bin/cp", filepath.Join(b.c.WALDir(), name), dir)
	return filepath.Join(dir, name)
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
