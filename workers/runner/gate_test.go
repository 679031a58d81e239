package runner_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace/noop"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/deadletter"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/workers/runner"
)

// TestGate: a worker that fails every job for good leaves them to one that does
// not, gives none up, and takes jobs again once it can do them, or nobody can.
func TestGate(t *testing.T) {
	t.Parallel()
	errNo := errors.New("this worker may not write")
	var broken, others atomic.Bool
	broken.Store(true)
	others.Store(true)
	gate := runner.NewGate(runner.GateOptions{
		Suspect: func(err error) bool { return errors.Is(err, errNo) },
		Check: func(context.Context) error {
			if broken.Load() {
				return errNo
			}
			return nil
		},
		Others: func(context.Context) bool { return others.Load() },
		Every:  20 * time.Millisecond,
	})
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan struct{})
	go func() { defer close(watched); gate.Run(ctx) }()
	defer func() { cancel(); <-watched }()

	b := &testBundle{bus: bustest.New(t, topology.Config{AckWait: 2 * time.Second}), h: &handler{told: make(chan settled, 100), do: func(context.Context, runner.Job) error { return nil }}}
	bad := &handler{told: make(chan settled, 100), do: func(context.Context, runner.Job) error {
		if broken.Load() {
			return bus.Reject(errNo)
		}
		return nil
	}}
	start := func(name string, h runner.Handler, g *runner.Gate) *runner.Runner {
		r := runner.New(runner.Options{
			Bus: b.bus, Worker: name, Tracer: noop.NewTracerProvider().Tracer(""), Tries: tries, Cluster: "test", DeadLetters: true, Gate: g,
		}, runner.Pool{Kind: messages.KindArchive, Slots: 2, Handler: h})
		if err := r.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Stop(context.Background()) })
		return r
	}
	start("bad", bad, gate)
	const jobs = 10
	for range jobs {
		b.publish(t, nil)
	}
	if s := <-bad.told; s.final || !errors.Is(s.outcome, errNo) {
		t.Fatalf("the bad worker's job: %+v", s)
	}
	good := start("good", b.h, nil)
	for range jobs {
		if s := b.next(t); s.outcome != nil {
			t.Fatalf("got %+v", s)
		}
	}
	if all, err := deadletter.List(t.Context(), b.bus, "test"); err != nil || len(all) > 0 {
		t.Fatalf("given up: %v, %v", all, err)
	}
	if !errors.Is(gate.Unfit(), errNo) {
		t.Fatalf("unfit: %v", gate.Unfit())
	}
	// One for each slot, and none after that.
	if n := len(bad.told); n > 1 {
		t.Fatalf("the bad worker took %d jobs more", n)
	}
	if err := good.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}

	// Nobody can: whoever waits for a job hears why at once.
	others.Store(false)
	b.publish(t, nil)
	for s := range bad.told {
		if s.final {
			break
		}
	}
	if l := b.deadLetter(t); l.Reason != errNo.Error() {
		t.Fatalf("letter %+v", l)
	}
	broken.Store(false)
	b.publish(t, nil)
	for s := range bad.told {
		if s.outcome == nil {
			break
		}
	}
	for gate.Unfit() != nil { // until it has looked again
		select {
		case <-time.After(time.Millisecond):
		case <-t.Context().Done():
			t.Fatal(gate.Unfit())
		}
	}
}
