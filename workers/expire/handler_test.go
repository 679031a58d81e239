package expire_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/workers/expire"
	"github.com/walherd/walherd/workers/runner"
)

// testBundle is a handler that deletes in a world, and its asker.
type testBundle struct {
	t    *testing.T
	w    *world
	bus  *bus.Bus
	h    *expire.Handler
	said chan messages.ExpireReply
	// events are those published.
	events chan messages.Event
	// wrap is put around the stores; nil is nothing.
	wrap func(storage.Bucket) storage.Bucket
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	b := &testBundle{t: t, w: typical(t), bus: bustest.New(t, topology.Config{}), said: make(chan messages.ExpireReply, 1000), events: make(chan messages.Event, 100)}
	b.h = &expire.Handler{Bus: b.bus, Logger: slog.New(slog.DiscardHandler), Open: func(_ context.Context, log *slog.Logger) (*expire.Work, error) {
		w := b.w.work(&life{})
		w.Logger = log
		if b.wrap != nil {
			for i, r := range w.Stores {
				w.Stores[i] = repo.New(b.wrap(r.Bucket()), r.Name())
			}
		}
		return w, nil
	}}
	listen(t, b.bus, reply, b.said)
	listen(t, b.bus, messages.EventSubject(bustest.Cluster, "expire.*"), b.events)
	return b
}

func listen[T any](t *testing.T, b *bus.Bus, subject string, to chan T) {
	t.Helper()
	stop, err := b.Listen(t.Context(), subject, func(m bus.Incoming) {
		var v T
		if err := json.Unmarshal(m.Data, &v); err != nil {
			t.Error(err)
		}
		to <- v
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
}

const reply = "walherd.reply." + string(bustest.Cluster) + ".r1"

func (b *testBundle) job(attempt int, change func(*messages.ExpireJob), lines ...string) runner.Job {
	b.t.Helper()
	var commands []expire.Command
	for _, l := range lines {
		commands = append(commands, command(l))
	}
	j := expire.JobOf(commands...)
	j.Reply, j.BeginBy = reply, time.Now().Add(time.Minute)
	if change != nil {
		change(&j)
	}
	data, err := messages.Encode(messages.KindExpire, bustest.Cluster, time.Now(), j)
	if err != nil {
		b.t.Fatal(err)
	}
	env, err := messages.Decode(data)
	if err != nil {
		b.t.Fatal(err)
	}
	return runner.Job{Envelope: env, Attempt: attempt, Worker: "w1"}
}

// answer is all that was said, up to the end.
func (b *testBundle) answer() (stdout, stderr string, end messages.ExpireReply) {
	b.t.Helper()
	for part := 0; ; part++ {
		select {
		case r := <-b.said:
			if r.Part != part {
				b.t.Fatalf("part %d where %d was expected", r.Part, part)
			}
			switch r.Out {
			case "stdout":
				stdout += string(r.Data)
			case "stderr":
				stderr += string(r.Data)
			}
			if r.Final {
				return stdout, stderr, r
			}
		case <-time.After(30 * time.Second):
			b.t.Fatal("no end in 30 s")
		}
	}
}

func (b *testBundle) event() messages.Event {
	b.t.Helper()
	select {
	case e := <-b.events:
		return e
	case <-time.After(30 * time.Second):
		b.t.Fatal("no event in 30 s")
		return messages.Event{}
	}
}

func TestJob(t *testing.T) {
	t.Parallel()
	b := setup(t)
	n := len(b.w.names())
	if err := b.h.Handle(t.Context(), b.job(1, nil, "retain FULL 1", "garbage")); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, end := b.answer()
	gone := n - len(b.w.names())
	if end.Error != "" || end.Deleted != uint64(gone) || gone == 0 || stdout != "" || strings.Count(stderr, "Object marked for deletion: ") != gone ||
		!strings.Contains(stderr, "Objects deleted successfully: count=") || !strings.Contains(stderr, "No objects matched the deletion criteria.") {
		t.Errorf("%d objects gone: %+v\n%s", gone, end, stderr)
	}
	if e := b.event(); e.What != messages.ExpireDone || e.Objects != uint64(gone) || e.Object != "retain FULL 1; garbage" || e.Worker != "w1" {
		t.Errorf("event %+v", e)
	}
	if who, err := b.bus.Holder(t.Context(), expire.LeaseKey(bustest.Cluster)); who != "" || err != nil {
		t.Errorf("the lease is still held by %q, %v", who, err)
	}
	// Again, as the broker may hand it out again; and as JSON.
	if err := b.h.Handle(t.Context(), b.job(2, func(j *messages.ExpireJob) { j.JSON = true }, "retain FULL 1")); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, end = b.answer()
	if end.Error != "" || end.Deleted != 0 || !json.Valid([]byte(stdout)) || !strings.Contains(stderr, "No objects matched the deletion criteria.") {
		t.Errorf("again: %+v\n%s\n%s", end, stdout, stderr)
	}
}

// Of two deletions at once the second is refused with the name of the first,
// by whatever worker; a job handed out again waits for the lease of the worker
// that died with it.
func TestOneAtATime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	lease, err := b.bus.Acquire(t.Context(), expire.LeaseKey(bustest.Cluster), "worker-on-host-7", 0)
	if err != nil {
		t.Fatal(err)
	}
	n := len(b.w.names())
	if err := b.h.Handle(t.Context(), b.job(1, nil, "retain FULL 1")); err != nil {
		t.Fatal(err)
	}
	if _, _, end := b.answer(); !strings.Contains(end.Error, "worker-on-host-7") || len(b.w.names()) != n {
		t.Errorf("%+v", end)
	}
	if e := b.event(); e.What != messages.ExpireFailed {
		t.Errorf("event %+v", e)
	}
	var retry *bus.RetryError
	if err := b.h.Handle(t.Context(), b.job(2, nil, "retain FULL 1")); !errors.As(err, &retry) || len(b.w.names()) != n {
		t.Errorf("handed out again: %v", err)
	}
	if err := lease.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.h.Handle(t.Context(), b.job(3, nil, "retain FULL 1")); err != nil || len(b.w.names()) == n {
		t.Errorf("free again: %v", err)
	}
}

// stealing is a store at whose first deletion somebody else gets the lease: as
// if the process had been asleep for longer than it lasts.
type stealing struct {
	storage.Bucket
	steal func()
}

func (s *stealing) Delete(ctx context.Context, names ...string) error {
	s.steal()
	return s.Bucket.Delete(ctx, names...)
}

// Who has lost the lease deletes no second batch, though nobody told it.
func TestLeaseLostUnnoticed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	batches := 0
	b.wrap = func(store storage.Bucket) storage.Bucket {
		return &stealing{store, func() {
			if batches++; batches > 1 {
				return
			}
			b.take()
		}}
	}
	err := b.h.Handle(t.Context(), b.job(1, nil, "retain FULL 1"))
	if !errors.Is(err, bus.ErrLost) || batches != 1 {
		t.Fatalf("%d batches, then %v", batches, err)
	}
	var rejected *bus.RejectError
	if errors.As(err, &rejected) {
		t.Error("the job is given up")
	}
}

// take hands the lease to somebody else, as its end would.
func (b *testBundle) take() {
	ctx := context.Background()
	if err := b.bus.Purge(ctx, "KV_"+bus.LeaseBucket, "$KV."+bus.LeaseBucket+"."+expire.LeaseKey(bustest.Cluster)); err != nil {
		b.t.Error(err)
	}
	if _, err := b.bus.Acquire(ctx, expire.LeaseKey(bustest.Cluster), "somebody else", 0); err != nil {
		b.t.Error(err)
	}
}

func TestJobsThatAreNotDone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	n := len(b.w.names())
	late := func(j *messages.ExpireJob) { j.BeginBy = time.Now().Add(-time.Second) }
	for _, tc := range []struct {
		job  runner.Job
		says string
	}{
		{b.job(1, nil, "retain 0"), "at least 1"},
		{b.job(1, nil, "everything"), "permanent"},
		{b.job(1, nil, "retain 1"), "FIND_FULL"},
		{b.job(1, late, "retain FULL 1"), "given up"},
		{b.job(1, func(j *messages.ExpireJob) { j.LogLevel = "LOUD" }, "retain FULL 1"), "LOUD"},
	} {
		if err := b.h.Handle(t.Context(), tc.job); err != nil {
			t.Errorf("%s: %v", tc.says, err)
		}
		if _, _, end := b.answer(); !strings.Contains(end.Error, tc.says) {
			t.Errorf("want %q in %+v", tc.says, end)
		}
		if e := b.event(); e.What != messages.ExpireFailed || e.Error == "" {
			t.Errorf("%s: event %+v", tc.says, e)
		}
	}
	for _, hostile := range []func(*messages.ExpireJob){
		func(j *messages.ExpireJob) { j.Reply = "$JS.API.STREAM.DELETE.WALHERD_WAL" },
		func(j *messages.ExpireJob) { j.Reply = "walherd.reply.other.x" },
		func(j *messages.ExpireJob) { j.Commands = nil },
		func(j *messages.ExpireJob) { j.Commands = make([]messages.ExpireCommand, 100) },
		func(j *messages.ExpireJob) { j.Commands[0].Words = make([]string, 100) },
	} {
		job := b.job(1, hostile, "retain FULL 1")
		var rejected *bus.RejectError
		if err := b.h.Handle(t.Context(), job); !errors.As(err, &rejected) || !errors.Is(err, messages.ErrMalformed) {
			t.Errorf("%s: %v", job.Body, err)
		}
		b.h.Settled(t.Context(), job, messages.ErrMalformed, true)
	}
	if len(b.w.names()) != n {
		t.Error("objects are gone")
	}
	// During a backup nothing goes that it may need.
	if _, err := b.bus.Acquire(t.Context(), string(bustest.Cluster)+".backup", "host-1", 0); err != nil {
		t.Fatal(err)
	}
	if err := b.h.Handle(t.Context(), b.job(1, nil, "target FIND_FULL LATEST")); err != nil {
		t.Fatal(err)
	}
	if _, _, end := b.answer(); !strings.Contains(end.Error, "host-1") {
		t.Errorf("%+v", end)
	}
}

// What fails is told to the asker with each try.
func TestJobThatFails(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.wrap = func(store storage.Bucket) storage.Bucket { return &killer{store, &life{at: 40}} }
	job := b.job(1, nil, "retain FULL 1")
	err := b.h.Handle(t.Context(), job)
	if !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	b.h.Settled(t.Context(), job, err, true)
	if _, _, end := b.lastAnswer(); !strings.Contains(end.Error, errKilled.Error()) {
		t.Errorf("%+v", end)
	}
	if e := b.event(); e.What != messages.ExpireFailed {
		t.Errorf("event %+v", e)
	}
}

// lastAnswer is answer for a try whose parts and whose end are counted apart.
func (b *testBundle) lastAnswer() (stdout, stderr string, end messages.ExpireReply) {
	b.t.Helper()
	for {
		select {
		case r := <-b.said:
			if r.Final {
				return stdout, stderr, r
			}
		case <-time.After(30 * time.Second):
			b.t.Fatal("no end in 30 s")
		}
	}
}
