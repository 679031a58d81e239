package runner_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/goleak"

	"github.com/walherd/walherd/engine/service"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/deadletter"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/workers/runner"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// settled is what a handler was told of one try.
type settled struct {
	attempt int
	outcome error
	final   bool
}

// handler answers with what do returns and passes on what it is told.
type handler struct {
	do   func(ctx context.Context, job runner.Job) error
	told chan settled
}

func (h *handler) Handle(ctx context.Context, job runner.Job) error { return h.do(ctx, job) }

func (h *handler) Settled(_ context.Context, job runner.Job, outcome error, final bool) {
	h.told <- settled{job.Attempt, outcome, final}
}

type testBundle struct {
	bus    *bus.Bus
	h      *handler
	runner *runner.Runner
}

const tries = 3

func setup(t *testing.T, do func(ctx context.Context, job runner.Job) error) *testBundle {
	t.Helper()
	b := &testBundle{
		bus: bustest.New(t, topology.Config{AckWait: 2 * time.Second, MaxDeliver: tries}),
		h:   &handler{do: do, told: make(chan settled, 100)},
	}
	b.runner = runner.New(runner.Options{
		Bus: b.bus, Worker: "w1", Tracer: noop.NewTracerProvider().Tracer(""), Tries: tries, Cluster: "test",
		Heartbeat: 100 * time.Millisecond, DeadLetters: true,
	}, runner.Pool{Kind: messages.KindArchive, Slots: 2, Handler: b.h})
	if err := b.runner.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.runner.Stop(context.Background()) })
	return b
}

func (b *testBundle) publish(t *testing.T, data []byte) {
	t.Helper()
	if data == nil {
		var err error
		if data, err = messages.Encode(messages.KindArchive, "test", time.Now(), messages.ArchiveJob{Name: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.bus.Publish(t.Context(), messages.WorkSubject(messages.KindArchive, "test"), nil, data); err != nil {
		t.Fatal(err)
	}
}

func (b *testBundle) next(t *testing.T) settled {
	t.Helper()
	select {
	case s := <-b.h.told:
		return s
	case <-time.After(30 * time.Second):
		t.Fatal("no try was settled in 30 s")
		return settled{}
	}
}

// deadLetter awaits the letter of a job that is given up.
func (b *testBundle) deadLetter(t *testing.T) deadletter.Letter {
	t.Helper()
	for {
		all, err := deadletter.List(t.Context(), b.bus, "test")
		if err != nil {
			t.Fatal(err)
		}
		if len(all) > 0 {
			return all[0]
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("no dead letter")
		}
	}
}

func (b *testBundle) depth(t *testing.T) uint64 {
	t.Helper()
	n, err := b.bus.Depth(t.Context(), topology.StreamWork)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestSuccessLeavesTheQueue(t *testing.T) {
	t.Parallel()
	b := setup(t, func(context.Context, runner.Job) error { return nil })
	b.publish(t, nil)
	if s := b.next(t); s.outcome != nil || !s.final || s.attempt != 1 {
		t.Fatalf("got %+v", s)
	}
	if err := b.runner.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := b.depth(t); n != 0 {
		t.Fatalf("%d jobs are left", n)
	}
}

func TestRetryUntilItWorks(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ context.Context, job runner.Job) error {
		if job.Attempt < 3 {
			return bus.Retry(10*time.Millisecond, errors.New("not yet"))
		}
		return nil
	})
	b.publish(t, nil)
	for want := 1; want <= 3; want++ {
		s := b.next(t)
		if s.attempt != want || s.final != (want == 3) || (s.outcome == nil) != (want == 3) {
			t.Fatalf("try %d: %+v", want, s)
		}
	}
}

// TestPoisonGoesToTheDeadLetters: a job that fails every time leaves the queue
// with its reason, and the queue goes on.
func TestPoisonGoesToTheDeadLetters(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		do     func(context.Context, runner.Job) error
		tries  int
		reason string
	}{
		"rejected": {func(context.Context, runner.Job) error { return bus.Reject(errors.New("never this")) }, 1, "never this"},
		"failing": {func(context.Context, runner.Job) error {
			return bus.Retry(time.Millisecond, errors.New("disk on fire"))
		}, tries, "disk on fire"},
		"panicking": {func(_ context.Context, job runner.Job) error {
			if job.Attempt < tries {
				return bus.Retry(time.Millisecond, errors.New("about to"))
			}
			panic("poison")
		}, tries, "panicked: poison"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, func(ctx context.Context, job runner.Job) error {
				aj, err := messages.Unpack[messages.ArchiveJob](job.Envelope)
				if err != nil || aj.Name == "good" {
					return err
				}
				return tc.do(ctx, job)
			})
			b.publish(t, nil)
			var s settled
			for range tc.tries {
				s = b.next(t)
			}
			if !s.final || s.outcome == nil {
				t.Fatalf("after %d tries: %+v", tc.tries, s)
			}
			l := b.deadLetter(t)
			if !strings.Contains(l.Reason, tc.reason) || l.Object != "x" || l.Attempts != tc.tries || l.Worker != "w1" || l.Stuck {
				t.Fatalf("dead letter says %+v, want %q in its reason", l, tc.reason)
			}
			good, err := messages.Encode(messages.KindArchive, "test", time.Now(), messages.ArchiveJob{Name: "good"})
			if err != nil {
				t.Fatal(err)
			}
			b.publish(t, good)
			if s := b.next(t); s.outcome != nil {
				t.Fatalf("the next job: %+v", s)
			}
		})
	}
}

// keeping is a handler whose jobs must not be given up.
type keeping struct{ *handler }

func (keeping) Keep(runner.Job) bool { return true }

// TestJobThatNoWorkerEnds: of a job that was handed out as often as it may be,
// and of which no worker said anything, a dead letter is made and whoever waits
// for it is told, without trying it once more; unless it must not be given up.
func TestJobThatNoWorkerEnds(t *testing.T) {
	t.Parallel()
	for _, keep := range []bool{false, true} {
		t.Run(fmt.Sprint("keep ", keep), func(t *testing.T) {
			t.Parallel()
			called := make(chan int, 1)
			b := &testBundle{bus: bustest.New(t, topology.Config{}), h: &handler{told: make(chan settled, 1), do: func(_ context.Context, job runner.Job) error {
				called <- job.Attempt
				return nil
			}}}
			b.publish(t, nil)
			for range tries { // workers that took it, and no more
				d, err := b.bus.Next(t.Context(), topology.StreamWork, messages.WorkConsumer(messages.KindArchive, "test"))
				if err != nil {
					t.Fatal(err)
				}
				if err := d.GiveBack(); err != nil {
					t.Fatal(err)
				}
			}
			var h runner.Handler = b.h
			if keep {
				h = keeping{b.h}
			}
			b.runner = runner.New(runner.Options{
				Bus: b.bus, Worker: "w1", Tracer: noop.NewTracerProvider().Tracer(""), Tries: tries, Cluster: "test", DeadLetters: true,
			}, runner.Pool{Kind: messages.KindArchive, Slots: 1, Handler: h})
			if err := b.runner.Start(context.Background()); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = b.runner.Stop(context.Background()) })
			s := b.next(t)
			if keep {
				if s.outcome != nil || <-called != tries+1 {
					t.Fatalf("kept: %+v", s)
				}
			} else {
				if !s.final || !errors.Is(s.outcome, runner.ErrUnfinished) || len(called) > 0 {
					t.Fatalf("given up: %+v, called %d times", s, len(called))
				}
				if l := b.deadLetter(t); l.Stuck || l.Object != "x" || len(l.Data) == 0 || !strings.Contains(l.Reason, "handed out 3 times") {
					t.Fatalf("the letter is %+v", l)
				}
			}
			if err := b.runner.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := b.depth(t); n != 0 {
				t.Fatalf("%d jobs are left in the queue", n)
			}
		})
	}
}

// TestForeignJobIsRejected: a job of another cluster or kind that got into this
// queue is nobody's to do here.
func TestForeignJobIsRejected(t *testing.T) {
	t.Parallel()
	for name, data := range map[string]string{
		"cluster":   `{"v":1,"kind":"archive","cluster":"other","body":{"name":"x"}}`,
		"kind":      `{"v":1,"kind":"commit","cluster":"test","body":{"name":"x"}}`,
		"no JSON":   `walherd`,
		"oversized": `{"v":1,"kind":"archive","cluster":"test","body":{"name":"` + strings.Repeat("x", 900<<10) + `"`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, func(context.Context, runner.Job) error { return errors.New("called") })
			b.publish(t, []byte(data))
			if l := b.deadLetter(t); !strings.Contains(l.Reason, "malformed message") {
				t.Fatalf("dead letter: %s", l.Reason)
			}
		})
	}
}

func TestMessageOfAnotherVersionIsNotGuessedAt(t *testing.T) {
	t.Parallel()
	called := false
	b := setup(t, func(context.Context, runner.Job) error { called = true; return nil })
	b.publish(t, []byte(`{"v":99,"kind":"archive","cluster":"test","body":{}}`))
	if l := b.deadLetter(t); !strings.Contains(l.Reason, "got 99, this build speaks 1") {
		t.Fatalf("dead letter %+v", l)
	}
	if err := b.runner.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if called {
		t.Fatal("the handler saw the message")
	}
}

// TestHeartbeatKeepsAJobLongerThanTheAckWait: a job of three ack waits is done
// once.
func TestHeartbeatKeepsAJobLongerThanTheAckWait(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	calls := 0
	b := setup(t, func(ctx context.Context, _ runner.Job) error {
		mu.Lock()
		calls++
		mu.Unlock()
		select {
		case <-time.After(5 * time.Second): // the work itself takes this long
		case <-ctx.Done():
		}
		return nil
	})
	b.publish(t, nil)
	if s := b.next(t); s.outcome != nil {
		t.Fatalf("got %+v", s)
	}
	if err := b.runner.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if calls != 1 {
		t.Fatalf("handled %d times", calls)
	}
}

func TestStopWaitsForRunningJobs(t *testing.T) {
	t.Parallel()
	started, release := make(chan struct{}), make(chan struct{})
	b := setup(t, func(context.Context, runner.Job) error {
		close(started)
		<-release
		return nil
	})
	b.publish(t, nil)
	<-started
	stopped := make(chan struct{})
	go func() { _ = b.runner.Stop(context.Background()); close(stopped) }()
	select {
	case <-stopped:
		t.Fatal("stopped with a job running")
	case <-time.After(100 * time.Millisecond):
	}
	close(release)
	<-stopped
	if s := b.next(t); s.outcome != nil {
		t.Fatalf("got %+v", s)
	}
	if n := b.depth(t); n != 0 {
		t.Fatalf("%d jobs are left", n)
	}
}

// TestStopPastItsLimitHandsJobsBack: what is aborted is done by another worker,
// at once and without counting as a failure of the job.
func TestStopPastItsLimitHandsJobsBack(t *testing.T) {
	t.Parallel()
	started := make(chan struct{})
	b := setup(t, func(ctx context.Context, _ runner.Job) error {
		close(started)
		<-ctx.Done()
		return context.Cause(ctx)
	})
	b.publish(t, nil)
	<-started
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.runner.Stop(over); !errors.Is(err, service.ErrAborted) {
		t.Fatalf("stop: %v, want ErrAborted", err)
	}
	select {
	case s := <-b.h.told:
		t.Fatalf("an aborted job was settled: %+v", s)
	default:
	}
	h := &handler{do: func(context.Context, runner.Job) error { return nil }, told: make(chan settled, 1)}
	other := runner.New(runner.Options{Bus: b.bus, Worker: "w2", Tracer: noop.NewTracerProvider().Tracer(""), Cluster: "test"},
		runner.Pool{Kind: messages.KindArchive, Slots: 1, Handler: h})
	if err := other.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	defer other.Stop(context.Background())
	select {
	case s := <-h.told:
		if s.outcome != nil {
			t.Fatalf("got %+v", s)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no other worker got the job")
	}
}

// TestOneTraceFromPublisherToWorker: the worker's span belongs to the trace of
// whoever published the job.
func TestOneTraceFromPublisherToWorker(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewInMemoryExporter()
	tp := trace.NewTracerProvider(trace.WithSyncer(spans))
	tracer := tp.Tracer("test")
	b := bustest.New(t, topology.Config{})
	h := &handler{do: func(context.Context, runner.Job) error { return nil }, told: make(chan settled, 1)}
	r := runner.New(runner.Options{Bus: b, Worker: "w", Tracer: tracer, Cluster: "test"},
		runner.Pool{Kind: messages.KindArchive, Slots: 1, Handler: h})
	if err := r.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	ctx, root := tracer.Start(t.Context(), "publish")
	data, err := messages.Encode(messages.KindArchive, "test", time.Now(), messages.ArchiveJob{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Publish(ctx, messages.WorkSubject(messages.KindArchive, "test"), nil, data); err != nil {
		t.Fatal(err)
	}
	<-h.told
	root.End()
	if err := r.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, s := range spans.GetSpans() {
		if s.Name == "job archive" {
			if s.Parent.SpanID() != root.SpanContext().SpanID() {
				t.Fatalf("the job's parent is %s, want %s", s.Parent.SpanID(), root.SpanContext().SpanID())
			}
			return
		}
	}
	t.Fatal("no span of the job")
}

func TestStopBeforeAnythingAndTwice(t *testing.T) {
	t.Parallel()
	for range 20 {
		b := setup(t, func(context.Context, runner.Job) error { return nil })
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() { _ = b.runner.Stop(context.Background()) })
		}
		all.Wait()
	}
}
