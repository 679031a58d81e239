package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/broker"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/messages/transit"
	"github.com/walherd/walherd/producer/pgtest"
)

// TestAgentDrainsABackup: SIGTERM lets an agent finish the backup that somebody
// asked it for, and whoever asked hears of its end.
func TestAgentDrainsABackup(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	worker, _ := f.worker("a")
	agent, log := f.background("agent", []string{"PGDATA=" + f.c.DataDir(), "WALG_DISK_RATE_LIMIT=15000000"}, "ready", "agent", "--drain", "80s")
	asker, out := f.producer(t.Context(), nil, "request", "push")
	if err := asker.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the part to be under way", func() bool { return holds(worker.Process.Pid, "part_001.tar.lz4.tmp") })
	if err := agent.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := asker.Wait(); err != nil || !strings.Contains(out.String(), "Wrote backup with name base_") {
		t.Fatalf("request push: %v\n%s", err, out.String())
	}
	if err := agent.Wait(); err != nil {
		t.Fatalf("agent: %v\n%s", err, log.String())
	}
	if !strings.Contains(log.String(), "draining") {
		t.Fatalf("the agent ended before it was told to: %s", log.String())
	}
}

// TestBrokerComesBackEmpty: a broker whose store is lost is set up anew by the
// processes that live on, which say so; what PostgreSQL archives then is stored,
// and a backup can be taken. So it is by an agent without a worker.
func TestBrokerComesBackEmpty(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	start := func() *broker.Embedded {
		return bustest.Broker(t, broker.Options{Listen: address, StoreDir: t.TempDir(), MaxMemory: 2 << 30})
	}
	first := start()
	f := &fleet{url: first.URL()}
	f.bench = newBench(t, []string{"WALHERD_NATS_URL=" + f.url, "WALHERD_ACK_WAIT=2s"})
	worker, log := f.worker("a")
	_, said := f.background("agent", []string{"PGDATA=" + f.c.DataDir()}, "ready", "agent")
	f.archived()
	first.Stop()
	second := start()
	await(t, "the worker to tell of the loss", func() bool { return strings.Contains(log.String(), "THE BROKER LOST ITS STORE") })
	f.archived()
	f.mustAsk(nil, "backup-push", f.c.DataDir())
	if strings.Contains(said.String(), "THE BROKER LOST") {
		t.Error("the agent was faster than the worker, which knows the settings")
	}

	if err := worker.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	second.Stop()
	start()
	await(t, "the agent to tell of the loss", func() bool { return strings.Contains(said.String(), "THE BROKER LOST ITS STORE") })
	var state struct {
		Streams []struct{ Name string }
	}
	if err := json.Unmarshal([]byte(f.mustAsk(nil, "status", "--json")), &state); err != nil || len(state.Streams) == 0 {
		t.Fatalf("status: %+v, %v", state, err)
	}
}

// TestWorkerWithoutRights: of two workers one's storage refuses everything. It
// fails at once what the other could do, so it must leave that to the other, and
// not be ready; nothing is given up. Alone, it says why nothing can be stored.
func TestWorkerWithoutRights(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	// Nothing but what the test pushes.
	f.c.SQL("ALTER SYSTEM SET archive_command = 'true'")
	f.c.SQL("SELECT pg_reload_conf()")
	closed := pgtest.TempDir(t)
	mode := func(m os.FileMode) {
		if err := os.Chmod(closed, m); err != nil {
			t.Fatal(err)
		}
	}
	mode(0o555)
	t.Cleanup(func() { _ = os.Chmod(closed, 0o755) })
	health := freeAddress(t)
	ready := func() int { code, _ := get(t, "http://"+health+"/readyz"); return code }
	_, log := f.background("the bad worker", []string{"WALG_FILE_PREFIX=" + closed, "WALHERD_HEALTH_LISTEN=" + health}, "taking jobs", "worker")
	if code := ready(); code != 200 {
		t.Fatalf("not ready before it tried anything: %d", code)
	}
	var letters []struct{ Object string }
	given := func() int {
		if err := json.Unmarshal([]byte(f.mustAsk(nil, "deadletter", "ls", "--json")), &letters); err != nil {
			t.Fatal(err)
		}
		return len(letters)
	}
	// Nobody else can do it: the push must not wait for minutes to hear so.
	if _, stderr, code := f.ask(nil, "wal-push", segmentFile(t, f.bench)); code != 1 || !strings.Contains(stderr, "permission denied") {
		t.Fatalf("pushed by a worker that cannot store: exit code %d, %s", code, stderr)
	}
	alone := given()
	await(t, "the bad worker not to be ready", func() bool { return ready() == 503 })

	good, _ := f.worker("good")
	for range 10 {
		if _, stderr, code := f.ask(nil, "wal-push", segmentFile(t, f.bench)); code != 0 {
			t.Fatalf("wal-push: exit code %d, %s\nthe bad worker: %s", code, stderr, log.String())
		}
	}
	f.mustAsk(nil, "backup-push", f.c.DataDir())
	if n := given(); n != alone {
		t.Fatalf("%d jobs were given up beside a worker that could do them: %v", n-alone, letters)
	}
	if !strings.Contains(log.String(), "taking no more jobs") {
		t.Fatalf("the bad worker: %s", log.String())
	}

	if err := good.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	mode(0o755)
	await(t, "the worker to be ready when it may write", func() bool { return ready() == 200 })
	if _, stderr, code := f.ask(nil, "wal-push", segmentFile(t, f.bench)); code != 0 {
		t.Fatalf("wal-push: exit code %d, %s", code, stderr)
	}
}

// TestFetchOfAGivenUpFile: WAL that PostgreSQL was told is archived, and whose job
// was given up, is recovered from the bytes that the queue keeps for it.
func TestFetchOfAGivenUpFile(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	segment := segmentFile(t, f.bench)
	push, out := f.producer(t.Context(), []string{"WALHERD_WAL_PUSH_TIMEOUT=2s"}, "wal-push", segment)
	if err := push.Run(); err == nil {
		t.Fatalf("archived by nobody: %s", out.String())
	}
	b, err := bus.Connect(t.Context(), bus.Options{URL: f.url})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	name := filepath.Base(segment)
	var jobs []transit.Queued
	if err := transit.PendingArchives(t.Context(), b, "default", func(q transit.Queued) { jobs = append(jobs, q) }); err != nil {
		t.Fatal(err)
	}
	for _, q := range jobs {
		if err := b.Remove(t.Context(), topology.StreamWork, q.Seq); err != nil {
			t.Fatal(err)
		}
		q.Acknowledged = true
		letter, err := messages.Encode(messages.KindArchive, "default", time.Now(), q.ArchiveJob)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Publish(t.Context(), messages.DeadSubject("default", messages.KindArchive), nil, letter); err != nil {
			t.Fatal(err)
		}
	}
	to := filepath.Join(pgtest.TempDir(t), "RECOVERYXLOG")
	if r := f.run(nil, "wal-fetch", name, to); r.code != 0 {
		t.Fatalf("fetch: %+v", r)
	}
	if _, err := f.c.Command(t.Context(), "cmp", segment, to).CombinedOutput(); err != nil {
		t.Fatalf("another content: %v", err)
	}
	if r := f.run(nil, "wal-fetch", "0000000100000000000000FF", to+"2"); r.code != 74 {
		t.Fatalf("a file that is nowhere: %+v", r)
	}
}
