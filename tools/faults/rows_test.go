package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/tools/faults/link"
	"github.com/walherd/walherd/tools/faults/oracle"
	"github.com/walherd/walherd/workers/runner"
)

// fleet is a rig whose WAL the test archives by hand, one file at a time.
type fleet struct {
	*rig
	t *testing.T
}

// command is a walherd process and what it has said.
type command struct {
	*exec.Cmd
	mu   sync.Mutex
	out  bytes.Buffer
	done chan error
}

// Write implements io.Writer.
func (c *command) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}

func (c *command) said() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.String()
}

func (f *fleet) start(env []string, args ...string) *command {
	f.t.Helper()
	c := &command{Cmd: f.walherd(env, args...), done: make(chan error, 1)}
	c.Stdout, c.Stderr = c, c
	if err := c.Start(); err != nil {
		f.t.Fatal(err)
	}
	go func() { c.done <- c.Wait() }()
	return c
}

// ends waits for a command.
func (f *fleet) ends(c *command) (string, error) {
	f.t.Helper()
	select {
	case err := <-c.done:
		return lastLine(c.said()), err
	case <-time.After(patience + time.Minute):
		_ = c.Process.Kill()
		<-c.done
		f.t.Fatalf("%v hangs:\n%s", c.Args, c.said())
		return "", nil
	}
}

func (f *fleet) succeeds(c *command) {
	f.t.Helper()
	if _, err := f.ends(c); err != nil {
		f.t.Fatalf("%v: %v\n%s", c.Args[1:], err, c.said())
	}
}

// fails wants an exit code that PostgreSQL takes for "try again", and a word
// in the last line.
func (f *fleet) fails(c *command, words ...string) {
	f.t.Helper()
	line, err := f.ends(c)
	if err == nil {
		f.t.Fatalf("%v succeeded\n%s", c.Args[1:], c.said())
	}
	if code := c.ProcessState.ExitCode(); code < 1 || code > 125 {
		f.t.Fatalf("%v ended with %d", c.Args[1:], code)
	}
	for _, w := range words {
		if !strings.Contains(strings.ToLower(line), strings.ToLower(w)) {
			f.t.Fatalf("%v said %q, which does not tell of %q", c.Args[1:], line, w)
		}
	}
}

// segment is a new WAL file of the server, with what PostgreSQL had in it.
func (f *fleet) segment() (path string, truth oracle.Truth) {
	f.t.Helper()
	name := f.c.SQL("SELECT pg_walfile_name(pg_current_wal_lsn())")
	f.c.SQL("SELECT count(pg_logical_emit_message(false, 'x', md5(i::text) || md5((i+1)::text))) FROM generate_series(1, 20000) i; SELECT pg_switch_wal()")
	path = filepath.Join(f.c.Dir(), name)
	f.c.Run("/bin/cp", filepath.Join(f.c.WALDir(), name), path)
	data, err := os.ReadFile(path)
	if err != nil {
		f.t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return path, oracle.Truth{name: hex.EncodeToString(sum[:])}
}

// stored wants a segment in the bucket, and nothing that was there changed.
func (f *fleet) stored(truth oracle.Truth) {
	f.t.Helper()
	findings, seen, err := oracle.Segments(f.t.Context(), f.bucket, truth)
	if err == nil {
		err = f.watch.Look(true)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	if findings = append(findings, f.watch.Findings()...); len(findings) > 0 || seen != 1 {
		f.t.Fatalf("%d objects seen: %v", seen, findings)
	}
}

func (f *fleet) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// patience is how long a row waits for anything: what takes a second on a
// machine of its own takes a minute on one that does much else.
const patience = 3 * time.Minute

func (f *fleet) await(what string, met func() (bool, error)) {
	f.t.Helper()
	if err := until(f.t.Context(), patience, met); err != nil {
		f.t.Fatalf("%s: %v", what, err)
	}
}

// slow lets storage take the bytes of a segment in about the given time.
func (f *fleet) slow(rate int64) { f.store.Set(link.Fault{Rate: rate}) }

// halt waits until the bytes of an object are on their way to storage, and stops
// them there, so that what a row does next comes before the object is whole.
func (f *fleet) halt(since int64) {
	f.t.Helper()
	f.await("bytes to go to storage", func() (bool, error) { return f.store.Moved() > since+100<<10, nil })
	f.store.Set(link.Fault{Silent: true})
}

// TestRows are the rows of the design's table of faults that nothing else
// makes happen in a fleet of processes. They share one fleet and follow one
// another; each leaves it whole.
func TestRows(t *testing.T) {
	t.Parallel()
	programs, err := bins()
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRig(context.Background(), t, options{
		seed: 1, ack: "stored", compress: "none", workers: 2, slots: 2, segmentMB: 4, queue: 32 << 20, plainDisks: true, byHand: true, bins: programs,
		drain: 2 * patience, env: list{"WALHERD_WAL_PUSH_TIMEOUT=" + patience.String()},
	}, t.Logf)
	if err != nil {
		if r != nil {
			for _, w := range r.workers {
				t.Logf("%s:\n%s", w.name, tail(w.log))
			}
		}
		t.Fatal(err)
	}
	for _, row := range []struct {
		name string
		do   func(f *fleet)
		long bool // only when asked
	}{
		{"a worker killed in a segment", (*fleet).workerKilledInASegment, false},
		{"two workers handle the same message", (*fleet).twoWorkersOneMessage, false},
		{"the brokers are restarted", (*fleet).brokersRestarted, false},
		{"storage refuses", (*fleet).storageRefuses, false},
		{"PostgreSQL crashes during a backup", (*fleet).postgresCrashes, false},
		{"the broker is unreachable during a backup", (*fleet).brokerUnreachable, true},
		{"messages that cannot be read", (*fleet).unreadable, false},
		{"a job that kills its workers", (*fleet).deadlyJob, true},
		{"the queue is full", (*fleet).queueFull, false},
		{"the second signal aborts", (*fleet).secondSignal, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.long {
				onlyWhenAsked(t)
			}
			// One row that fails does not bring down those behind it.
			defer func() {
				for _, w := range r.workers {
					_ = w.signal(syscall.SIGCONT)
				}
			}()
			row.do(&fleet{r, t})
			r.store.Set(link.Fault{})
			if err := r.mend(t.Context()); err != nil {
				t.Fatal(err)
			}
			if t.Failed() {
				for _, w := range r.workers {
					t.Logf("%s:\n%s", w.name, tail(w.log))
				}
			}
		})
	}
}

func (f *fleet) workerKilledInASegment() {
	path, truth := f.segment()
	f.must(f.workers[1].kill())
	f.slow(400 << 10)
	since := f.store.Moved()
	push := f.start(nil, "wal-push", path)
	f.halt(since)
	f.must(f.workers[0].kill())
	f.must(f.watch.Look(false))
	for name := range truth {
		if _, err := os.Stat(filepath.Join(f.bucket.Dir, f.bucket.Prefix, "wal_005", name)); err == nil {
			f.t.Fatal("the worker was killed too late: the object is there")
		}
	}
	f.store.Set(link.Fault{})
	f.must(f.workers[1].start())
	f.succeeds(push)
	f.stored(truth)
}

func (f *fleet) twoWorkersOneMessage() {
	path, truth := f.segment()
	f.must(f.workers[1].kill())
	f.slow(400 << 10)
	since := f.store.Moved()
	push := f.start(nil, "wal-push", path)
	f.halt(since)
	// It says no more, and so loses its job, but not its half of an upload.
	f.must(f.workers[0].signal(syscall.SIGSTOP))
	f.store.Set(link.Fault{})
	f.must(f.workers[1].start())
	f.succeeds(push)
	f.stored(truth)
	since = f.store.Moved()
	f.must(f.workers[0].signal(syscall.SIGCONT))
	f.await("the first worker to go on", func() (bool, error) { return f.store.Moved() > since, nil })
	f.await("the queue to be empty", f.idle)
	f.stored(truth)
}

// idle tells whether no job is left.
func (f *fleet) idle() (bool, error) {
	s, err := oracle.Streams(f.ctx, f.b.monitors())
	if n := s["WALHERD_WORK"].Messages; err == nil && n > 0 {
		return false, fmt.Errorf("%d jobs are left: %s", n, f.jobsLeft())
	}
	return err == nil, err
}

// jobsLeft shows the jobs in the queue.
func (f *fleet) jobsLeft() string {
	var out []string
	for from := uint64(1); ; {
		m, err := f.bus.GetNext(f.ctx, topology.StreamWork, ">", from)
		if err != nil {
			return strings.Join(out, "\n")
		}
		from = m.Seq + 1
		out = append(out, fmt.Sprintf("%d of %s: %s %.300s", m.Seq, m.Time.Format(time.TimeOnly), m.Subject, m.Data))
	}
}

func (f *fleet) brokersRestarted() {
	path, truth := f.segment()
	for _, w := range f.workers {
		f.must(w.signal(syscall.SIGSTOP))
	}
	push := f.start(nil, "wal-push", path)
	f.await("the job to be queued", func() (bool, error) {
		s, err := oracle.Streams(f.ctx, f.b.monitors())
		if err == nil && s["WALHERD_WORK"].Messages != 1 {
			err = fmt.Errorf("there are: %s; the push says %s", f.jobsLeft(), push.said())
		}
		return err == nil, err
	})
	end, _, err := f.b.killAll()
	f.must(err)
	f.must(end(f.ctx))
	f.must(f.b.await(f.ctx, time.Minute, f.b.nodes...))
	for _, w := range f.workers {
		f.must(w.signal(syscall.SIGCONT))
	}
	// Workers and the waiting producer connect again by themselves.
	f.succeeds(push)
	f.stored(truth)
}

func (f *fleet) storageRefuses() {
	path, truth := f.segment()
	f.store.Set(link.Fault{Answer: []byte("HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: 97\r\n\r\n" +
		"<Error><Code>AccessDenied</Code><Message>read only for you</Message><RequestId>1</RequestId></Error>"[:97])})
	f.fails(f.start(nil, "wal-push", path))
	f.store.Set(link.Fault{})
	f.succeeds(f.start(nil, "wal-push", path))
	f.stored(truth)
}

func (f *fleet) postgresCrashes() {
	before, err := f.bucket.Backups()
	f.must(err)
	// Storage takes so little that the backup cannot be over before the crash.
	f.slow(400 << 10)
	since := f.store.Moved()
	backup := f.start(nil, "backup-push", f.c.DataDir())
	f.halt(since)
	f.c.Kill()
	f.store.Set(link.Fault{})
	f.must(f.c.StartErr())
	f.fails(backup)
	after, err := f.bucket.Backups()
	f.must(err)
	if len(after) != len(before) {
		f.t.Fatalf("a backup of a crashed server is listed: %v", after)
	}
}

func (f *fleet) brokerUnreachable() {
	before, err := f.bucket.Backups()
	f.must(err)
	since := f.store.Moved()
	f.slow(400 << 10)
	backup := f.start([]string{"WALHERD_PART_TIMEOUT=5s"}, "backup-push", f.c.DataDir())
	f.halt(since)
	for _, l := range f.b.hosts {
		l.Set(link.Fault{Cut: true})
	}
	f.fails(backup)
	for _, l := range f.b.hosts {
		l.Set(link.Fault{})
	}
	f.store.Set(link.Fault{})
	after, err := f.bucket.Backups()
	f.must(err)
	if len(after) != len(before) {
		f.t.Fatalf("a backup that failed is listed: %v", after)
	}
	f.succeeds(f.start(nil, "backup-push", f.c.DataDir()))
}

func (f *fleet) unreadable() {
	letters, err := f.letters(f.ctx)
	f.must(err)
	before := len(letters)
	for _, data := range []string{
		"\x00 this is no job",
		`{"v":2,"kind":"archive","cluster":"faults","at":"2026-01-01T00:00:00Z","body":{}}`,
	} {
		_, err := f.bus.Publish(f.ctx, messages.WorkSubject(messages.KindArchive, cluster), nil, []byte(data))
		f.must(err)
	}
	path, truth := f.segment()
	f.succeeds(f.start(nil, "wal-push", path))
	f.stored(truth)
	f.await("two dead letters", func() (bool, error) {
		letters, err = f.letters(f.ctx)
		return len(letters) == before+2, err
	})
	reasons := letters[before].Reason + "\n" + letters[before+1].Reason
	for _, want := range []string{messages.ErrMalformed.Error(), messages.ErrVersion.Error() + ": got 2, this build speaks 1"} {
		if !strings.Contains(reasons, want) {
			f.t.Errorf("the dead letters say %q, not %q", reasons, want)
		}
	}
}

// deadlyJob: whoever gets the job dies. It ends as a dead letter with its
// content, the file is refused with the reason, and the queue goes on.
func (f *fleet) deadlyJob() {
	letters, err := f.letters(f.ctx)
	f.must(err)
	before := len(letters)
	path, truth := f.segment()
	f.must(f.workers[1].kill())
	f.slow(100 << 10)
	w := f.workers[0]
	deliveries := func() (uint64, error) {
		return oracle.Deliveries(f.ctx, f.b.monitors(), topology.StreamWork, messages.WorkConsumer(messages.KindArchive, cluster))
	}
	since, err := deliveries()
	f.must(err)
	push := f.start(nil, "wal-push", path)
	for i := range uint64(jobTries) {
		f.await("the job to be taken", func() (bool, error) {
			n, err := deliveries()
			return n > since+i, err
		})
		f.must(w.kill())
		f.must(w.start())
	}
	f.fails(push, runner.ErrUnfinished.Error())
	f.await("the queue to be empty", f.idle)
	letters, err = f.letters(f.ctx)
	f.must(err)
	if len(letters) != before+1 || letters[before].Stuck || letters[before].Object != filepath.Base(path) ||
		!strings.Contains(letters[before].Reason, runner.ErrUnfinished.Error()) {
		f.t.Fatalf("the dead letters are %+v", letters)
	}
	f.store.Set(link.Fault{})
	f.succeeds(f.start(nil, "wal-push", path))
	f.stored(truth)
}

func (f *fleet) queueFull() {
	for _, w := range f.workers {
		f.must(w.signal(syscall.SIGSTOP))
	}
	var waiting []*command
	var refused string
	var truth oracle.Truth
	for len(waiting) < 12 && refused == "" { // 32 MiB are 8 segments
		var path string
		path, truth = f.segment()
		push := f.start(nil, "wal-push", path)
		waiting = append(waiting, push)
		f.await("the push to be queued, or refused", func() (bool, error) {
			s, err := oracle.Streams(f.ctx, f.b.monitors())
			return len(push.done) > 0 || err == nil && s["WALHERD_WORK"].Messages >= uint64(len(waiting)), err
		})
		if len(push.done) > 0 {
			refused = path
		}
	}
	if refused == "" {
		f.t.Fatalf("%d segments fit into a queue for 8", len(waiting))
	}
	last := len(waiting) - 1
	f.fails(waiting[last], "maximum bytes")
	for _, w := range f.workers {
		f.must(w.signal(syscall.SIGCONT))
	}
	f.await("the queue to be empty", f.idle)
	// What was refused left nothing behind: else the queue stays full.
	f.await("the refused chunks to be gone", func() (bool, error) {
		s, err := oracle.Streams(f.ctx, f.b.monitors())
		return err == nil && s["WALHERD_WAL"].Messages == 0, fmt.Errorf("%d are left: %w", s["WALHERD_WAL"].Messages, err)
	})
	for _, push := range waiting[:last] {
		f.succeeds(push)
	}
	f.succeeds(f.start(nil, "wal-push", refused))
	f.stored(truth)
}

func (f *fleet) secondSignal() {
	path, truth := f.segment()
	f.must(f.workers[1].kill())
	f.slow(200 << 10)
	since := f.store.Moved()
	push := f.start(nil, "wal-push", path)
	f.halt(since)
	w := f.workers[0]
	f.must(w.signal(syscall.SIGTERM))
	f.await("the worker to drain", func() (bool, error) { return strings.Contains(tail(w.log), "draining"), nil })
	f.must(w.signal(syscall.SIGTERM))
	// Its job does not end, and the drain may take longer than this waits.
	f.await("the worker to end", func() (bool, error) { return !w.alive(), nil })
	f.store.Set(link.Fault{})
	f.must(f.workers[1].start())
	f.succeeds(push)
	f.stored(truth)
}
