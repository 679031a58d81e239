package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/walherd/walherd/producer/pgtest"
)

// background starts a long-running walherd that has the given environment and
// no other settings; it is killed with the test.
func (f *fleet) background(name string, env []string, ready string, args ...string) (*exec.Cmd, *syncBuffer) {
	f.t.Helper()
	cmd, out := f.producer(context.Background(), env, args...)
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if f.t.Failed() {
			f.t.Logf("%s:\n%s", name, out.String())
		}
	})
	await(f.t, name+" to be ready", func() bool {
		if cmd.ProcessState != nil {
			f.t.Fatalf("%s ended: %s", name, out.String())
		}
		return strings.Contains(out.String(), ready)
	})
	return cmd, out
}

// ask runs a command on a host that has no storage.
func (f *fleet) ask(env []string, args ...string) (stdout, stderr string, code int) {
	f.t.Helper()
	cmd, _ := f.producer(context.Background(), env, args...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	_ = cmd.Run() // the code tells
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

func (f *fleet) mustAsk(env []string, args ...string) string {
	f.t.Helper()
	stdout, stderr, code := f.ask(env, args...)
	if code != 0 {
		f.t.Fatalf("walherd %v: exit code %d\n%s", args, code, stderr)
	}
	return stdout
}

// freeAddress is a loopback address that was free a moment ago.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func get(t testing.TB, url string) (int, string) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// TestRequestsOverTheQueue: a host that has a broker's address and no storage
// has a backup taken, lists it, looks into the storage, and sees the state of
// everything; what it may not do is refused.
func TestRequestsOverTheQueue(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	if _, stderr, code := f.ask(nil, "backup-list"); code != 1 || !strings.Contains(stderr, "no worker of cluster default answers") {
		t.Fatalf("without a worker: exit code %d, %s", code, stderr)
	}
	for _, args := range [][]string{{"status"}, {"deadletter", "ls"}} {
		if _, stderr, code := f.ask(nil, args...); code != 1 || !strings.Contains(stderr, "queue setup") {
			t.Fatalf("%v before the broker is set up: exit code %d, %s", args, code, stderr)
		}
	}
	if _, stderr, code := f.ask([]string{"PGDATA=/nonexistent"}, "agent"); code != 1 || !strings.Contains(stderr, "PGDATA") || !strings.Contains(stderr, "/nonexistent") {
		t.Fatalf("agent of a directory that is not there: exit code %d, %s", code, stderr)
	}
	health := freeAddress(t)
	f.env = append(f.env, "WALHERD_HEALTH_LISTEN="+health)
	f.worker("a")
	f.env = f.env[:len(f.env)-1]
	if _, stderr, code := f.ask(nil, "request", "push"); code != 1 || !strings.Contains(stderr, "no agent of cluster default answers") {
		t.Fatalf("without an agent: exit code %d, %s", code, stderr)
	}
	f.background("agent", []string{"PGDATA=" + f.c.DataDir()}, "ready", "agent")

	if got := strings.TrimSpace(f.mustAsk(nil, "backup-list", "--json")); got != "[]" {
		t.Fatalf("listed before there is a backup: %s", got)
	}
	if _, stderr, code := f.ask(nil, "request", "push", "--", "--permanent"); code != 0 || !strings.Contains(stderr, "Wrote backup with name base_") {
		t.Fatalf("push: exit code %d\n%s", code, stderr)
	}
	var there []struct {
		Name      string `json:"backup_name"`
		Permanent bool   `json:"is_permanent"`
	}
	if err := json.Unmarshal([]byte(f.mustAsk(nil, "backup-list", "--json", "--detail")), &there); err != nil || len(there) != 1 || !there[0].Permanent {
		t.Fatalf("listed over the queue: %+v, %v", there, err)
	}
	if here := f.must("backup-list", "--json", "--detail"); !strings.Contains(here, there[0].Name) {
		t.Fatalf("listed from the storage: %s", here)
	}
	if got := f.mustAsk(nil, "st", "ls", "-r", "basebackups_005"); !strings.Contains(got, there[0].Name+"_backup_stop_sentinel.json") {
		t.Fatalf("st ls: %s", got)
	}
	for _, args := range [][]string{{"st", "cat", "x"}, {"st", "rm", "x"}} {
		if _, stderr, code := f.ask(nil, args...); code != 1 || !strings.Contains(stderr, "WALG_FILE_PREFIX") {
			t.Errorf("%v: exit code %d, %s", args, code, stderr)
		}
	}
	if _, stderr, code := f.ask(nil, "request", "push", "--", "--turbo"); code != 1 || !strings.Contains(stderr, "--turbo") {
		t.Errorf("a flag that is a setting: exit code %d, %s", code, stderr)
	}

	var state struct {
		Workers, Agents []struct{ Metadata map[string]string }
		LastBackup      struct{ Object string } `json:"last_backup"`
		DeadLetters     int                     `json:"dead_letters"`
	}
	if err := json.Unmarshal([]byte(f.mustAsk(nil, "status", "--json")), &state); err != nil {
		t.Fatal(err)
	}
	if len(state.Workers) != 1 || len(state.Agents) != 1 || state.LastBackup.Object != there[0].Name || state.DeadLetters != 0 {
		t.Fatalf("status: %+v", state)
	}
	if got := f.mustAsk(nil, "status"); !strings.Contains(got, there[0].Name) {
		t.Fatalf("status: %s", got)
	}
	if got, stderr, code := f.ask([]string{"WALHERD_CLUSTER=misspelt"}, "status"); code != 0 || !strings.Contains(got, "other clusters") || !strings.Contains(stderr, "not set up for cluster misspelt") {
		t.Errorf("status of a cluster that is not there: exit code %d, %s%s", code, got, stderr)
	}
	var agent struct {
		DataDir string `json:"data_dir"`
		Storage bool   `json:"has_storage"`
	}
	if err := json.Unmarshal([]byte(f.mustAsk(nil, "request", "agent")), &agent); err != nil || agent.DataDir != f.c.DataDir() || agent.Storage {
		t.Fatalf("agent: %+v, %v", agent, err)
	}
	f.mustAsk([]string{"WALHERD_HEALTH_LISTEN=" + health}, "health")
	if _, stderr, code := f.ask([]string{"WALHERD_HEALTH_LISTEN=127.0.0.1:1"}, "health"); code != 1 || !strings.Contains(stderr, "127.0.0.1:1") {
		t.Errorf("health of nobody: exit code %d, %s", code, stderr)
	}
	for path, want := range map[string]string{"/livez": "ok", "/readyz": "ok", "/queue": `"cluster":"default"`} {
		if code, body := get(t, "http://"+health+path); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
}

// TestSocketReadsAhead: an agent archives over its socket, also what was not
// asked for yet.
func TestSocketReadsAhead(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.worker("a")
	socket := filepath.Join(pgtest.TempDir(t), "s")
	f.background("agent", []string{"PGDATA=" + f.c.DataDir(), "WALHERD_SOCKET=" + socket}, "ready", "agent")
	f.archived()
	// Segments pile up while nothing archives.
	f.c.SQL("ALTER SYSTEM SET archive_command = 'false'")
	f.c.SQL("SELECT pg_reload_conf()")
	var names []string
	for range 4 {
		f.c.SQL("SELECT pg_logical_emit_message(false, 'x', 'y')")
		names = append(names, f.c.SQL("SELECT pg_walfile_name(pg_switch_wal())"))
	}
	await(t, "the last segment to be ready", func() bool {
		_, err := os.Stat(filepath.Join(f.c.WALDir(), "archive_status", names[3]+".ready"))
		return err == nil
	})
	f.mustAsk(nil, "daemon-client", socket, "wal-push", names[0])
	await(t, "the others to be shipped ahead", func() bool {
		return strings.Contains(strings.Join(f.objects(), " "), names[3])
	})
	for _, n := range names[1:] {
		f.mustAsk(nil, "daemon-client", socket, "wal-push", n)
	}
}

// TestDeadLetterIsTriedAgain: a file that conflicts with what is archived is
// kept with the reason, and stored when the reason is gone.
func TestDeadLetterIsTriedAgain(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.worker("a")
	f.archived()
	segment := segmentFile(t, f.bench)
	f.archived()
	name := filepath.Base(segment)
	// The same name with other content, as a second cluster would send it.
	other := f.c.SQL("SELECT pg_walfile_name(pg_current_wal_lsn())")
	object := filepath.Join(f.storage, "wal_005", name+".lz4")
	if err := os.WriteFile(object, []byte("not "+other), 0o644); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := f.ask([]string{"WALG_PREVENT_WAL_OVERWRITE=true", "WALHERD_JOB_TRIES=1", "WALHERD_WAL_PUSH_TIMEOUT=20s"}, "wal-push", segment)
	if code != 1 {
		t.Fatalf("archived over a conflict: %s", stderr)
	}
	var letters []struct {
		ID     uint64
		Object string
		Reason string
	}
	await(t, "the dead letter", func() bool {
		letters = nil
		if err := json.Unmarshal([]byte(f.mustAsk(nil, "deadletter", "ls", "--json")), &letters); err != nil {
			t.Fatal(err)
		}
		return len(letters) == 1
	})
	if letters[0].Object != name || letters[0].Reason == "" {
		t.Fatalf("letter %+v", letters[0])
	}
	id := strconv.FormatUint(letters[0].ID, 10)
	if got := f.mustAsk(nil, "deadletter", "show", id); !strings.Contains(got, `"kind": "archive"`) {
		t.Fatalf("show: %s", got)
	}
	if _, stderr, code := f.ask(nil, "deadletter", "retry", "999"); code != 1 || !strings.Contains(stderr, "999") {
		t.Fatalf("an unknown one: exit code %d, %s", code, stderr)
	}
	if _, stderr, code := f.ask([]string{"WALHERD_CLUSTER=another"}, "deadletter", "show", id); code != 1 {
		t.Fatalf("another cluster's: exit code %d, %s", code, stderr)
	}
	f.mustAsk(nil, "deadletter", "drop", id)
	if got := strings.TrimSpace(f.mustAsk(nil, "deadletter", "ls", "--json")); got != "[]" {
		t.Fatalf("after drop: %s", got)
	}
}

// TestFetchFromTheQueue: WAL that no worker has stored yet can be recovered
// from; a broker that does not answer only means that it is not there.
func TestFetchFromTheQueue(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	segment := segmentFile(t, f.bench)
	name := filepath.Base(segment)
	push, out := f.producer(t.Context(), []string{"WALHERD_WAL_PUSH_TIMEOUT=2s"}, "wal-push", segment)
	if err := push.Run(); err == nil {
		t.Fatalf("archived by nobody: %s", out.String())
	}
	to := filepath.Join(pgtest.TempDir(t), "RECOVERYXLOG")
	if r := f.run(nil, "wal-fetch", name, to); r.code != 0 {
		t.Fatalf("fetch: %+v", r)
	}
	if _, err := f.c.Command(t.Context(), "cmp", segment, to).CombinedOutput(); err != nil {
		t.Fatalf("another content: %v", err)
	}
	if r := f.run([]string{"WALHERD_NATS_URL=nats://127.0.0.1:1"}, "wal-fetch", name, to+"2"); r.code != 74 {
		t.Fatalf("with a dead broker: %+v", r)
	}
}

// TestPrefetch: a fetch brings the segments after it too.
func TestPrefetch(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	var names []string
	for range 4 {
		b.c.SQL("SELECT pg_logical_emit_message(false, 'x', 'y')")
		names = append(names, b.c.SQL("SELECT pg_walfile_name(pg_switch_wal())"))
	}
	b.archived()
	dir := pgtest.TempDir(t)
	if r := b.run(nil, "wal-fetch", names[0], filepath.Join(dir, "a")); r.code != 0 {
		t.Fatalf("fetch: %+v", r)
	}
	await(t, "the next to be there", func() bool {
		for _, n := range names[1:] {
			if _, err := os.Stat(filepath.Join(dir, ".wal-g/prefetch", n)); err != nil {
				return false
			}
		}
		return true
	})
	// Without the storage, what is prefetched is still had.
	if r := b.run([]string{"WALG_DOWNLOAD_CONCURRENCY=2", "WALG_FILE_PREFIX=" + pgtest.TempDir(t)}, "wal-fetch", names[2], filepath.Join(dir, "c")); r.code != 0 {
		t.Fatalf("fetch of what is prefetched: %+v", r)
	}
	if out, err := b.c.Command(t.Context(), "cmp", filepath.Join(b.c.WALDir(), names[2]), filepath.Join(dir, "c")).CombinedOutput(); err != nil {
		t.Logf("the server may have recycled it: %s", out)
	}
	alone := pgtest.TempDir(t)
	if r := b.run([]string{"WALG_DOWNLOAD_CONCURRENCY=1"}, "wal-fetch", names[0], filepath.Join(alone, "d")); r.code != 0 {
		t.Fatalf("without prefetch: %+v", r)
	}
	// In a directory of their own, and so not beside the destination.
	apart := pgtest.TempDir(t)
	if r := b.run([]string{"WALG_PREFETCH_DIR=" + apart}, "wal-fetch", names[0], filepath.Join(alone, "e")); r.code != 0 {
		t.Fatalf("prefetch elsewhere: %+v", r)
	}
	await(t, "the last to be there", func() bool {
		_, err := os.Stat(filepath.Join(apart, ".wal-g/prefetch", names[3]))
		return err == nil
	})
	if _, err := os.Stat(filepath.Join(alone, ".wal-g")); err == nil {
		t.Error("prefetched beside the destination")
	}
}

// TestQueuedNeedsProof: PostgreSQL is told "queued" only where the broker is
// shown to keep its word, or the operator says otherwise by name; then it is
// told without any worker, and the host keeps a copy until one has stored it.
func TestQueuedNeedsProof(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	segment := segmentFile(t, f.bench)
	spool := filepath.Join(pgtest.TempDir(t), "spool")
	queued := []string{"WALHERD_WAL_ACK=queued", "WALHERD_SPOOL_DIR=" + spool}
	for want, env := range map[string][]string{
		"replicas":          queued,
		"WALHERD_SPOOL_DIR": {"WALHERD_WAL_ACK=queued"},
		"WALHERD_NATS_URL":  append([]string{"WALHERD_NATS_URL=", "WALG_FILE_PREFIX=" + f.storage}, queued...),
		"no risk":           append([]string{"WALHERD_WAL_ACK_ACCEPT=everything"}, queued...),
	} {
		if _, stderr, code := f.ask(env, "wal-push", segment); code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("with %v: exit code %d, %q is not in: %s", env, code, want, stderr)
		}
	}
	accepted := append([]string{"WALHERD_WAL_ACK_ACCEPT=replicas,sync", "PGDATA=" + f.c.DataDir()}, queued...)
	if _, stderr, code := f.ask(accepted, "wal-push", segment); code != 0 || !strings.Contains(stderr, "queued: "+filepath.Base(segment)) {
		t.Fatalf("accepted: exit code %d, %s", code, stderr)
	}
	copies := func() int {
		n := 0
		_ = filepath.WalkDir(spool, func(path string, d os.DirEntry, err error) error {
			if err == nil && strings.Contains(d.Name(), filepath.Base(segment)) {
				n++
			}
			return nil
		})
		return n
	}
	if n := copies(); n != 1 {
		t.Fatalf("%d copies in the spool", n)
	}
	f.background("agent", accepted, "ready", "agent")
	f.worker("a")
	await(t, "the copy to go", func() bool { return copies() == 0 })
	if got := strings.Join(f.objects(), " "); !strings.Contains(got, filepath.Base(segment)) {
		t.Fatalf("stored: %s", got)
	}
}

// TestServe: one process brings everything; its broker is killed and comes
// back with what it had; SIGTERM ends all of it.
func TestServe(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	dir := filepath.Join(pgtest.TempDir(t), "serve")
	listen, health := freeAddress(t), freeAddress(t)
	var out syncBuffer
	cmd := b.command(context.Background(), []string{
		"WALHERD_SERVE_DIR=" + dir, "WALHERD_SERVE_LISTEN=" + listen, "WALHERD_HEALTH_LISTEN=" + health, "PGDATA=" + b.c.DataDir(),
		"WALHERD_QUEUE_WAL_BYTES=1073741824", "WALHERD_SERVE_MEMORY=268435456", "WALHERD_ACK_WAIT=2s",
	}, "serve", "--drain", "20s")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("serve:\n%s", out.String())
		}
	})
	await(t, "serve to be ready", func() bool { return strings.Contains(out.String(), "taking jobs") })
	token, err := os.ReadFile(filepath.Join(dir, "token"))
	if err != nil {
		t.Fatal(err)
	}
	short := []string{"WALG_FILE_PREFIX=", "WALHERD_NATS_URL=nats://" + listen, "WALHERD_NATS_TOKEN=" + strings.TrimSpace(string(token))}
	if r := b.run(short, "backup-push", b.c.DataDir()); r.code != 0 {
		t.Fatalf("backup-push: %+v", r)
	}
	if r := b.run([]string{"WALG_FILE_PREFIX=", "WALHERD_NATS_URL=nats://" + listen}, "backup-list"); r.code != 1 || !strings.Contains(r.stderr, "WALHERD_NATS_TOKEN") {
		t.Fatalf("without the token: %+v", r)
	}

	broker := childOf(t, cmd.Process.Pid)
	if err := syscall.Kill(broker, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	segment := segmentFile(t, b)
	await(t, "WAL to be archived over the new broker", func() bool { return b.run(short, "wal-push", segment).code == 0 })
	if again := childOf(t, cmd.Process.Pid); again == broker {
		t.Fatal("the broker was not replaced")
	}
	// What the broker had in memory is made anew, or no backup could be taken.
	if r := b.run(short, "backup-push", b.c.DataDir()); r.code != 0 {
		t.Fatalf("backup-push over the new broker: %+v", r)
	}
	await(t, "serve to be ready again", func() bool { code, _ := get(t, "http://"+health+"/readyz"); return code == 200 })

	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("serve: %v", err)
	}
	await(t, "the broker to be gone", func() bool {
		c, err := net.Dial("tcp", listen)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	b.restore("LATEST")
}

// childOf is a process's only child.
func childOf(t testing.TB, pid int) int {
	t.Helper()
	var child int
	await(t, fmt.Sprintf("the child of %d", pid), func() bool {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
		for _, path := range tasks {
			data, err := os.ReadFile(path)
			if err != nil {
				continue
			}
			if n, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
				child = n
				return true
			}
		}
		return false
	})
	return child
}
