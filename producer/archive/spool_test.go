package archive

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace/noop"
	"pgregory.net/rapid"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/messages/transit"
)

// queueBench is a host that acknowledges queued files, with the broker in
// memory: what is proven of a broker is ProveQueued's test.
type queueBench struct {
	t     *testing.T
	b     *bus.Bus
	q     *transit.Queue
	dir   string // the spool's
	spool *Spool
	p     *Pusher
	file  string
}

const historyFile = "00000002.history"

func newQueueBench(t *testing.T) *queueBench {
	q := &queueBench{t: t, b: bustest.New(t, topology.Config{}), dir: t.TempDir()}
	q.q = transit.NewQueue(q.b, transit.QueueOptions{})
	q.file = filepath.Join(t.TempDir(), historyFile)
	if err := os.WriteFile(q.file, []byte(strings.Repeat("1\t0/3000000\tno reason\n", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	q.restart()
	return q
}

// restart is a new process on the same host.
func (q *queueBench) restart() {
	q.t.Helper()
	var err error
	q.spool, err = OpenSpool(SpoolOptions{Dir: q.dir, MaxBytes: 1 << 20, Cluster: bustest.Cluster, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		q.t.Fatal(err)
	}
	q.p = &Pusher{
		Bus: q.b, Carrier: q.q, Cluster: bustest.Cluster, Logger: slog.New(slog.DiscardHandler),
		Tracer: noop.NewTracerProvider().Tracer(""), SegmentSize: testSegment, Ack: Ack{spool: q.spool},
	}
}

func (q *queueBench) push() {
	q.t.Helper()
	r, err := q.p.Push(q.t.Context(), q.file)
	if err != nil || !r.Queued || r.Name != historyFile {
		q.t.Fatalf("push: %+v, %v", r, err)
	}
}

func (q *queueBench) jobs() (out []messages.ArchiveJob) {
	q.t.Helper()
	if err := transit.PendingArchives(q.t.Context(), q.b, bustest.Cluster, func(j transit.Queued) { out = append(out, j.ArchiveJob) }); err != nil {
		q.t.Fatal(err)
	}
	return out
}

// finish takes the oldest job out of the queue as a worker that is done with
// it, and says what became of it.
func (q *queueBench) finish(what messages.EventName, why messages.Reason) {
	q.t.Helper()
	d, err := q.b.Next(q.t.Context(), topology.StreamWork, messages.WorkConsumer(messages.KindArchive, bustest.Cluster))
	if err != nil {
		q.t.Fatal(err)
	}
	env, err := messages.Decode(d.Data())
	if err != nil {
		q.t.Fatal(err)
	}
	job, err := messages.Unpack[messages.ArchiveJob](env)
	if err != nil {
		q.t.Fatal(err)
	}
	q.event(messages.Event{Cluster: bustest.Cluster, What: what, File: job.Name, SHA256: job.Bytes.SHA256, Reason: why})
	if err := d.Settle(q.t.Context(), 5, nil); err != nil {
		q.t.Fatal(err)
	}
}

func (q *queueBench) event(e messages.Event) {
	q.t.Helper()
	data, err := messages.EncodeEvent(e, time.Now())
	if err != nil {
		q.t.Fatal(err)
	}
	if _, err := q.b.Publish(q.t.Context(), messages.EventSubject(e.Cluster, e.What), nil, data); err != nil {
		q.t.Fatal(err)
	}
}

func (q *queueBench) settle() {
	q.t.Helper()
	if err := q.spool.Settle(q.t.Context(), q.p); err != nil {
		q.t.Fatal(err)
	}
}

func (q *queueBench) want(files, jobs int) {
	q.t.Helper()
	s, err := q.spool.State()
	if err != nil || s.Files != files {
		q.t.Fatalf("the spool holds %+v, %v; want %d files", s, err, files)
	}
	if got := q.jobs(); len(got) != jobs {
		q.t.Fatalf("%d jobs are queued, want %d", len(got), jobs)
	}
}

// overdue makes everything in the spool old.
func (q *queueBench) overdue() {
	q.t.Helper()
	all, err := q.spool.list()
	if err != nil {
		q.t.Fatal(err)
	}
	for _, k := range all {
		if err := os.Chtimes(q.spool.path(k.entry), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
			q.t.Fatal(err)
		}
	}
}

// TestQueuedFileIsKeptUntilItIsStored, by this process or the next.
func TestQueuedFileIsKeptUntilItIsStored(t *testing.T) {
	t.Parallel()
	q := newQueueBench(t)
	q.push()
	q.want(1, 1)
	if job := q.jobs()[0]; !job.Acknowledged || job.Bytes.SHA256 == "" {
		t.Fatalf("the job is %+v", job)
	}
	kept, err := os.ReadFile(q.spool.path(entry{name: historyFile, sha256: q.jobs()[0].Bytes.SHA256}))
	want, werr := os.ReadFile(q.file)
	if err != nil || werr != nil || string(kept) != string(want) {
		t.Fatalf("the copy differs: %v %v", err, werr)
	}
	q.settle() // too early for anything
	q.want(1, 1)
	q.restart()
	q.finish(messages.WALStored, "")
	q.settle()
	q.want(0, 0)
	q.settle()
}

// TestAnotherContentStoredIsNotThisOne: names come again.
func TestAnotherContentStoredIsNotThisOne(t *testing.T) {
	t.Parallel()
	q := newQueueBench(t)
	q.push()
	q.event(messages.Event{Cluster: bustest.Cluster, What: messages.WALStored, File: historyFile, SHA256: strings.Repeat("0", 64)})
	q.event(messages.Event{Cluster: bustest.Cluster, What: messages.WALStored, File: "../" + historyFile, SHA256: q.jobs()[0].Bytes.SHA256})
	q.event(messages.Event{Cluster: bustest.Cluster, What: messages.WALFailed, File: historyFile, SHA256: q.jobs()[0].Bytes.SHA256})
	q.settle()
	q.want(1, 1)
}

func TestDamagedFileIsSentAgain(t *testing.T) {
	t.Parallel()
	q := newQueueBench(t)
	q.push()
	q.finish(messages.WALFailed, messages.ReasonDamaged)
	q.want(1, 0)
	q.restart()
	q.settle()
	q.want(1, 1)
	q.settle() // the event is old news
	q.want(1, 1)
	q.finish(messages.WALStored, "")
	q.settle()
	q.want(0, 0)
}

// TestOverdueFileIsSentAgainUnlessItsJobWaits: while no worker runs, sending
// again would only fill the queue.
func TestOverdueFileIsSentAgainUnlessItsJobWaits(t *testing.T) {
	t.Parallel()
	q := newQueueBench(t)
	q.push()
	q.overdue()
	q.settle()
	q.want(1, 1)
	// The job is lost with its event.
	d, err := q.b.Next(t.Context(), topology.StreamWork, messages.WorkConsumer(messages.KindArchive, bustest.Cluster))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Settle(t.Context(), 5, nil); err != nil {
		t.Fatal(err)
	}
	q.settle() // it was looked after a moment ago
	q.want(1, 0)
	q.overdue()
	q.settle()
	q.want(1, 1)
}

// TestConflictIsNotSentAgain: it would end the same way.
func TestConflictIsNotSentAgain(t *testing.T) {
	t.Parallel()
	q := newQueueBench(t)
	q.push()
	q.finish(messages.WALFailed, messages.ReasonConflict)
	q.overdue()
	q.settle()
	q.want(1, 0)
}

func TestFullSpoolRefuses(t *testing.T) {
	t.Parallel()
	q := newQueueBench(t)
	q.push()
	big := filepath.Join(t.TempDir(), "00000003.history")
	if err := os.WriteFile(big, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := q.p.Push(t.Context(), big); !errors.Is(err, ErrSpoolFull) || !errors.Is(err, ErrNotArchived) {
		t.Fatalf("got %v", err)
	}
	q.want(1, 1)
	q.push() // what is there already needs no room
	q.want(1, 2)
}

// dying is a carrier whose process dies before or after a deposit.
type dying struct {
	transit.Carrier
	after bool
}

var errDied = errors.New("the process died")

func (d dying) Deposit(ctx context.Context, to transit.DepositAddress, size int64, open func() (io.ReadCloser, error)) (messages.Ref, error) {
	if d.after {
		if _, err := d.Carrier.Deposit(ctx, to, size, open); err != nil {
			return messages.Ref{}, err
		}
	}
	return messages.Ref{}, errDied
}

// TestACrashInAPush: whatever was reached, the next process makes the file
// stored, and the queue can be swept of the rest.
func TestACrashInAPush(t *testing.T) {
	t.Parallel()
	for name, after := range map[string]bool{"before the deposit": false, "before the job": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := newQueueBench(t)
			q.p.Carrier = dying{q.q, after}
			if _, err := q.p.Push(t.Context(), q.file); !errors.Is(err, errDied) {
				t.Fatalf("got %v", err)
			}
			q.want(1, 0)
			q.restart()
			q.overdue()
			q.settle()
			q.want(1, 1)
			swept, err := q.q.Sweep(t.Context(), bustest.Cluster, -time.Hour, nil)
			if want := map[bool]int{true: 1}[after]; err != nil || swept.Transfers != want {
				t.Fatalf("swept %+v, %v; want %d transfers", swept, err, want)
			}
			q.finish(messages.WALStored, "")
			q.settle()
			q.want(0, 0)
		})
	}
}

// TestASpoolFileThatRottedIsNotSent as if it were the file, and does not hold
// up the others.
func TestASpoolFileThatRottedIsNotSent(t *testing.T) {
	t.Parallel()
	q := newQueueBench(t)
	q.push()
	q.finish(messages.WALFailed, messages.ReasonDamaged)
	all, err := q.spool.list()
	if err != nil {
		t.Fatal(err)
	}
	path := q.spool.path(all[0].entry)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[100] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := q.spool.Settle(t.Context(), q.p); err == nil || !strings.Contains(err.Error(), "returns other bytes") {
		t.Fatalf("got %v", err)
	}
	q.want(1, 0)
	if n, err := q.b.Depth(t.Context(), topology.StreamWAL); err != nil || n != 1 { // the first push's chunk
		t.Fatalf("%d chunks, %v", n, err)
	}
	// As long as PostgreSQL has the file and asks, it is archived.
	q.push()
	q.want(1, 1)
	if e, err := digest(path, historyFile); err != nil || e != all[0].entry {
		t.Fatalf("the copy is %+v, %v", e, err)
	}
	if err := os.Truncate(path, 7); err != nil {
		t.Fatal(err)
	}
	q.push()
	q.want(1, 2)
}

// TestRunFollowsTheEvents of a resident process.
func TestRunFollowsTheEvents(t *testing.T) {
	t.Parallel()
	q := newQueueBench(t)
	q.push()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- q.spool.Run(ctx, q.p) }()
	q.finish(messages.WALFailed, messages.ReasonDamaged)
	q.finish(messages.WALStored, "") // the job that Run sends
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for {
		s, err := q.spool.State()
		if err != nil {
			t.Fatal(err)
		}
		if s.Files == 0 {
			break
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("the stored file stays in the spool")
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func TestEntryNamesSurvive(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		e := entry{
			name:   rapid.StringMatching(`[0-9A-F]{8,24}(\.partial|\.history|\.[0-9A-F]{8}\.backup)?`).Draw(t, "name"),
			sha256: rapid.StringMatching(`[0-9a-f]{64}`).Draw(t, "sum"),
		}
		got, ok := parseEntry(filepath.Base((&Spool{dir: "x"}).path(e)))
		if !ok || got != e {
			t.Fatalf("got %+v %v, want %+v", got, ok, e)
		}
	})
	for _, bad := range []string{"", cursorFile, "." + strings.Repeat("0", 64), "X." + strings.Repeat("A", 64), "X." + strings.Repeat("0", 63)} {
		if _, ok := parseEntry(bad); ok {
			t.Errorf("%q was taken for a file of the spool", bad)
		}
	}
}
