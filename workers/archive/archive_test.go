package archive_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/messages/transit"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/workers/archive"
	"github.com/walherd/walherd/workers/intake"
	"github.com/walherd/walherd/workers/runner"
)

const segment = "000000010000000000000001"

// handlerBench is a handler, without a runner, over a queue and a bucket.
type handlerBench struct {
	t    *testing.T
	b    *bus.Bus
	q    *transit.Queue
	h    *archive.Handler
	away error // what the choice of a storage fails with
}

func newHandlerBench(t *testing.T) *handlerBench {
	b := &handlerBench{t: t, b: bustest.New(t, topology.Config{})}
	b.q = transit.NewQueue(b.b, transit.QueueOptions{})
	r := repo.New(mem.New(), "default")
	b.h = &archive.Handler{
		Choose:  func(context.Context) (*repo.Repo, error) { return r, b.away },
		Carrier: b.q, Bus: b.b, Logger: slog.New(slog.DiscardHandler),
		Codec: intake.Codec{Compress: compress.Options{Method: compress.LZ4}},
	}
	return b
}

func (b *handlerBench) deposit(content string) messages.Ref {
	b.t.Helper()
	ref, err := b.q.Deposit(b.t.Context(), transit.DepositAddress{Cluster: bustest.Cluster, Timeline: 1}, int64(len(content)),
		func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader([]byte(content))), nil })
	if err != nil {
		b.t.Fatal(err)
	}
	return ref
}

// try is one try at a job, as the runner makes it.
func (b *handlerBench) try(job messages.ArchiveJob, attempt int) error {
	b.t.Helper()
	body, err := json.Marshal(job)
	if err != nil {
		b.t.Fatal(err)
	}
	j := runner.Job{Attempt: attempt, Worker: "w", Envelope: messages.Envelope{
		Version: messages.Version, Kind: messages.KindArchive, Cluster: bustest.Cluster, At: time.Now(), Body: body,
	}}
	outcome := b.h.Handle(b.t.Context(), j)
	var reject *bus.RejectError
	b.h.Settled(b.t.Context(), j, outcome, outcome == nil || errors.As(outcome, &reject) || attempt >= 5)
	return outcome
}

func (b *handlerBench) queued() (out []messages.ArchiveJob) {
	b.t.Helper()
	err := transit.PendingArchives(b.t.Context(), b.b, bustest.Cluster, func(j transit.Queued) { out = append(out, j.ArchiveJob) })
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// lastEvent is the newest WAL event, if there is one.
func (b *handlerBench) lastEvent() (e messages.Event) {
	b.t.Helper()
	for from := uint64(1); ; {
		m, err := b.b.GetNext(b.t.Context(), topology.StreamEvent, messages.WALEvents(bustest.Cluster), from)
		if errors.Is(err, bus.ErrNoMessage) {
			return e
		}
		if err != nil {
			b.t.Fatal(err)
		}
		if err := json.Unmarshal(m.Data, &e); err != nil {
			b.t.Fatal(err)
		}
		from = m.Seq + 1
	}
}

func TestStoredEventNamesTheContent(t *testing.T) {
	t.Parallel()
	b := newHandlerBench(t)
	ref := b.deposit("content")
	if err := b.try(messages.ArchiveJob{Name: segment, Bytes: ref, Acknowledged: true}, 1); err != nil {
		t.Fatal(err)
	}
	if e := b.lastEvent(); e.What != messages.WALStored || e.File != segment || e.SHA256 != ref.SHA256 || e.Object != segment+".lz4" {
		t.Fatalf("the event is %+v", e)
	}
	if n, err := b.b.Depth(t.Context(), topology.StreamWAL); n != 0 || err != nil {
		t.Fatalf("%d chunks are left, %v", n, err)
	}
}

// TestOutageDoesNotEndAnAcknowledgedJob: what PostgreSQL may have recycled
// stays in the queue, with growing pauses, until it is stored.
func TestOutageDoesNotEndAnAcknowledgedJob(t *testing.T) {
	t.Parallel()
	b := newHandlerBench(t)
	b.away = errors.New("storage is away")
	job := messages.ArchiveJob{Name: segment, Bytes: b.deposit("content"), Acknowledged: true}
	var retry *bus.RetryError
	var pause time.Duration
	for attempt := 1; attempt <= 3; attempt++ {
		if err := b.try(job, attempt); !errors.As(err, &retry) || retry.After <= pause {
			t.Fatalf("try %d: %v after %s", attempt, err, retry.After)
		}
		pause = retry.After
	}
	if err := b.try(job, 4); err != nil {
		t.Fatalf("the last try but one: %v", err)
	}
	again := b.queued()
	if len(again) != 1 || again[0].Round != 1 || !again[0].Acknowledged || again[0].Name != segment || again[0].Bytes.ID != job.Bytes.ID {
		t.Fatalf("queued anew: %+v", again)
	}
	if e := b.lastEvent(); e.What != messages.WALFailed || e.Reason != "" || e.SHA256 != job.Bytes.SHA256 {
		t.Fatalf("the event is %+v", e)
	}
	if err := b.try(again[0], 1); !errors.As(err, &retry) || retry.After <= pause {
		t.Fatalf("the next round begins with %v after %s", err, retry.After)
	}
	b.away = nil
	if err := b.try(again[0], 2); err != nil {
		t.Fatal(err)
	}
	if e := b.lastEvent(); e.What != messages.WALStored {
		t.Fatalf("the event is %+v", e)
	}
	// Nobody was told anything: that one ends.
	b.away = errors.New("storage is away")
	job.Acknowledged = false
	if err := b.try(job, 4); err == nil || len(b.queued()) != 1 {
		t.Fatalf("a job that was not acknowledged: %v, %d queued", err, len(b.queued()))
	}
}

// TestAcknowledgedJobIsHeld where it cannot be queued anew, however often it
// was handed out, and is not given up with the workers that had it.
func TestAcknowledgedJobIsHeld(t *testing.T) {
	t.Parallel()
	b := newHandlerBench(t)
	b.away = errors.New("storage is away")
	job := messages.ArchiveJob{Name: segment, Bytes: b.deposit("content"), Acknowledged: true}
	body, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	j := runner.Job{Attempt: 9, Envelope: messages.Envelope{
		Version: messages.Version, Kind: messages.KindArchive, Cluster: bustest.Cluster, At: time.Now(), Body: body,
	}}
	if !b.h.Keep(j) {
		t.Fatal("it may be given up")
	}
	b.b.Close() // nothing can be published
	var retry *bus.RetryError
	outcome := b.h.Handle(t.Context(), j)
	if !errors.As(outcome, &retry) || !retry.Hold || retry.After == 0 {
		t.Fatalf("the outcome is %v", outcome)
	}
	if d := (&bus.Delivery{Attempt: 9}); d.Final(5, outcome) {
		t.Fatal("that is taken to be final")
	}
	job.Acknowledged = false
	if j.Body, err = json.Marshal(job); err != nil || b.h.Keep(j) {
		t.Fatalf("one that nobody was told of is kept, %v", err)
	}
}

// TestLostChunkIsCalledDamage, so that the host sends the file again.
func TestLostChunkIsCalledDamage(t *testing.T) {
	t.Parallel()
	b := newHandlerBench(t)
	job := messages.ArchiveJob{Name: segment, Bytes: b.deposit("content"), Acknowledged: true}
	if err := b.b.Remove(t.Context(), topology.StreamWAL, job.Bytes.Seqs[0].First); err != nil {
		t.Fatal(err)
	}
	for attempt := 1; attempt <= 5; attempt++ { // another replica may have it
		if e := b.lastEvent(); e.What != "" {
			t.Fatalf("before try %d: %+v", attempt, e)
		}
		if err := b.try(job, attempt); !errors.Is(err, transit.ErrDamaged) {
			t.Fatalf("try %d: %v", attempt, err)
		}
	}
	if e := b.lastEvent(); e.What != messages.WALFailed || e.Reason != messages.ReasonDamaged || e.File != segment || e.SHA256 != job.Bytes.SHA256 {
		t.Fatalf("the event is %+v", e)
	}
	if got := b.queued(); len(got) != 0 {
		t.Fatalf("queued anew: %+v", got)
	}
}

// TestConflictIsCalledSo and ends the job, acknowledged or not.
func TestConflictIsCalledSo(t *testing.T) {
	t.Parallel()
	b := newHandlerBench(t)
	if err := b.try(messages.ArchiveJob{Name: segment, Bytes: b.deposit("one")}, 1); err != nil {
		t.Fatal(err)
	}
	replies := make(chan messages.ArchiveReply, 1)
	stop, err := b.b.Listen(t.Context(), "walherd.reply.test.x", func(m bus.Incoming) {
		var r messages.ArchiveReply
		_ = json.Unmarshal(m.Data, &r)
		replies <- r
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	job := messages.ArchiveJob{Name: segment, Bytes: b.deposit("two"), KeepExisting: true, Acknowledged: true, Reply: "walherd.reply.test.x"}
	var reject *bus.RejectError
	if err := b.try(job, 1); !errors.As(err, &reject) || !errors.Is(err, archive.ErrConflict) {
		t.Fatalf("got %v", err)
	}
	if r := <-replies; !r.Final || r.Reason != messages.ReasonConflict {
		t.Fatalf("the reply is %+v", r)
	}
	if e := b.lastEvent(); e.What != messages.WALFailed || e.Reason != messages.ReasonConflict {
		t.Fatalf("the event is %+v", e)
	}
}

// TestAnOldJobLeavesTheChunksOfOthers: the stream of WAL was made anew, and the
// sequence numbers of a job from before are those of another file, whose only
// copy they may be.
func TestAnOldJobLeavesTheChunksOfOthers(t *testing.T) {
	t.Parallel()
	b := newHandlerBench(t)
	ref := b.deposit("content")
	if err := b.try(messages.ArchiveJob{Name: segment, Bytes: ref, Acknowledged: true}, 1); err != nil {
		t.Fatal(err)
	}
	other := b.deposit("of another")
	old := ref
	old.Seqs = other.Seqs
	if err := b.try(messages.ArchiveJob{Name: segment, Bytes: old, Acknowledged: true}, 1); err != nil {
		t.Fatal(err)
	}
	if n, err := b.b.Depth(t.Context(), topology.StreamWAL); n != 1 || err != nil {
		t.Fatalf("%d chunks are left, %v", n, err)
	}
}
