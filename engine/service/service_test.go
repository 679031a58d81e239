package service

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// loop is a service of one goroutine: it takes jobs until told to stop, and
// finishes the job at hand unless told to abort.
type loop struct {
	Base
	setup func(context.Context) error
	jobs  chan chan struct{} // a job is done when its channel is closed
	taken chan struct{}      // one for each job begun
	cause error              // of the fetch context, when it ended
}

func newLoop() *loop {
	return &loop{jobs: make(chan chan struct{}), taken: make(chan struct{}, 100)}
}

func (l *loop) Start(ctx context.Context) error { return l.Launch(ctx, l.setup, l.run) }

func (l *loop) run(fetch, work context.Context) error {
	for {
		select {
		case <-fetch.Done():
			l.cause = context.Cause(fetch)
			return fetch.Err()
		case job := <-l.jobs:
			l.taken <- struct{}{}
			select {
			case <-job:
			case <-work.Done():
				return work.Err()
			}
		}
	}
}

var _ Service = (*loop)(nil)

func hasEnded(s Service) bool {
	select {
	case <-s.Done():
		return true
	default:
		return false
	}
}

func TestStartStop(t *testing.T) {
	t.Parallel()
	l := newLoop()
	if err := l.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if hasEnded(l) || l.Err() != nil {
		t.Error("a running service has ended")
	}
	if err := l.Start(t.Context()); !errors.Is(err, ErrStarted) {
		t.Errorf("second start: %v", err)
	}
	for range 3 {
		if err := l.Stop(t.Context()); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	if !hasEnded(l) || l.cause != ErrStopped {
		t.Errorf("ended %v, cause %v", hasEnded(l), l.cause)
	}
	if err := l.Start(t.Context()); !errors.Is(err, ErrStarted) {
		t.Errorf("start after the end: %v", err)
	}
}

func TestStopBeforeStart(t *testing.T) {
	t.Parallel()
	l := newLoop()
	done := l.Done()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := errors.Join(l.Stop(gone), l.Stop(t.Context())); err != nil {
		t.Error(err)
	}
	<-done
	if err := l.Start(t.Context()); !errors.Is(err, ErrStopped) {
		t.Errorf("start after stop: %v", err)
	}
	if l.Err() != nil {
		t.Error(l.Err())
	}
}

func TestContextEnds(t *testing.T) {
	t.Parallel()
	why := errors.New("SIGTERM")
	ctx, cancel := context.WithCancelCause(t.Context())
	l := newLoop()
	if err := l.Start(ctx); err != nil {
		t.Fatal(err)
	}
	job := make(chan struct{})
	l.jobs <- job
	<-l.taken
	cancel(why)
	if hasEnded(l) {
		t.Error("the end of the context cut current work off")
	}
	close(job)
	<-l.Done()
	if l.cause != why || l.Err() != nil {
		t.Errorf("cause %v, error %v", l.cause, l.Err())
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLoop()
		if err := l.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		job := make(chan struct{})
		l.jobs <- job
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		stopped := make(chan error)
		go func() { stopped <- l.Stop(ctx) }()
		synctest.Wait()
		if hasEnded(l) {
			t.Fatal("stopped with work at hand")
		}
		close(job) // done within the limit
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
}

func TestDrainLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLoop()
		if err := l.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.jobs <- make(chan struct{}) // never done
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		err := l.Stop(ctx)
		if !errors.Is(err, ErrAborted) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stop at the limit: %v", err)
		}
		if d := time.Since(begin); d != time.Minute {
			t.Errorf("it took %v", d)
		}
		if err := l.Stop(t.Context()); !errors.Is(err, ErrAborted) {
			t.Errorf("a later stop: %v", err)
		}
	})
}

// TestSecondStopInsists has one caller wait without a limit and another abort.
func TestSecondStopInsists(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLoop()
		if err := l.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.jobs <- make(chan struct{})
		patient := make(chan error)
		go func() { patient <- l.Stop(context.WithoutCancel(t.Context())) }()
		synctest.Wait()
		now, cancel := context.WithCancel(t.Context())
		cancel()
		if err := l.Stop(now); !errors.Is(err, ErrAborted) {
			t.Error(err)
		}
		if err := <-patient; !errors.Is(err, ErrAborted) {
			t.Error(err)
		}
	})
}

func TestSetup(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, setup := range map[string]func(context.Context) error{
		"fails":  func(context.Context) error { return broken },
		"panics": func(context.Context) error { panic(broken) },
	} {
		l := newLoop()
		l.setup = setup
		if err := l.Start(t.Context()); !errors.Is(err, broken) || !errors.Is(l.Err(), broken) || !hasEnded(l) {
			t.Errorf("setup %s: %v, %v, ended %v", name, err, l.Err(), hasEnded(l))
		}
		if err := l.Stop(t.Context()); !errors.Is(err, broken) {
			t.Errorf("stop after setup %s: %v", name, err)
		}
	}

	l := newLoop()
	hangs := make(chan struct{})
	l.setup = func(ctx context.Context) error {
		close(hangs)
		<-ctx.Done()
		return ctx.Err()
	}
	started := make(chan error)
	go func() { started <- l.Start(t.Context()) }()
	<-hangs
	if err := l.Stop(t.Context()); err != nil {
		t.Errorf("stop during setup: %v", err)
	}
	if err := <-started; err != ErrStopped {
		t.Errorf("start that was stopped: %v", err)
	}
}

// runs is a service that is a function.
type runs struct {
	Base
	run func(fetch, work context.Context) error
}

func (r *runs) Start(ctx context.Context) error { return r.Launch(ctx, nil, r.run) }

func TestEndsByItself(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	cases := []struct {
		name string
		run  func(fetch, work context.Context) error
		want error
	}{
		{"nothing left to do", func(_, _ context.Context) error { return nil }, nil},
		{"error", func(_, _ context.Context) error { return broken }, broken},
		{"panic", func(_, _ context.Context) error { panic(broken) }, broken},
		{"goexit", func(_, _ context.Context) error { runtime.Goexit(); return nil }, errGoexit},
		{"canceled by another", func(_, _ context.Context) error { return context.Canceled }, context.Canceled},
	}
	for _, c := range cases {
		r := &runs{run: c.run}
		if err := r.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-r.Done()
		if !errors.Is(r.Err(), c.want) {
			t.Errorf("%s: %v, want %v", c.name, r.Err(), c.want)
		}
		if err := r.Stop(t.Context()); err != r.Err() {
			t.Errorf("%s: stop says %v", c.name, err)
		}
		var p *PanicError
		if c.name == "panic" && (!errors.As(r.Err(), &p) || !strings.Contains(r.Err().Error(), "TestEndsByItself")) {
			t.Errorf("a panic without its stack: %v", r.Err())
		}
	}
}

func TestErrorWhileDraining(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	r := &runs{run: func(fetch, _ context.Context) error { <-fetch.Done(); return broken }}
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Stop(t.Context()); !errors.Is(err, broken) || errors.Is(err, ErrAborted) {
		t.Error(err)
	}
}

func TestStartAll(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var order []string
	named := func(name string, setup func(context.Context) error) Service {
		return &setupRuns{setup: setup, runs: runs{run: func(fetch, _ context.Context) error {
			<-fetch.Done()
			mu.Lock()
			defer mu.Unlock()
			order = append(order, name)
			return nil
		}}}
	}
	a, b, c := named("a", nil), named("b", nil), named("c", nil)
	if err := StartAll(t.Context(), a, b, c); err != nil {
		t.Fatal(err)
	}
	if err := StopAll(t.Context(), a, b, c); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(order); got != "[c b a]" {
		t.Errorf("stopped in the order %s", got)
	}

	order = nil
	broken := errors.New("broken")
	a, b = named("a", nil), named("b", nil)
	bad := named("bad", func(context.Context) error { return broken })
	never := newLoop()
	if err := StartAll(t.Context(), a, b, bad, never); !errors.Is(err, broken) {
		t.Error(err)
	}
	if got := fmt.Sprint(order); got != "[b a]" || hasEnded(never) {
		t.Errorf("stopped in the order %s", got)
	}
}

type setupRuns struct {
	runs
	setup func(context.Context) error
}

func (s *setupRuns) Start(ctx context.Context) error { return s.Launch(ctx, s.setup, s.run) }

// TestStress calls everything from everywhere; the race detector and goleak
// are the judges, and each service must end.
func TestStress(t *testing.T) {
	t.Parallel()
	for range 500 {
		l := newLoop()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := l.Start(ctx); err != nil && !errors.Is(err, ErrStarted) && !errors.Is(err, ErrStopped) {
					t.Errorf("start: %v", err)
				}
			})
			wg.Go(func() {
				limit, insist := context.WithCancel(context.Background())
				if rand.IntN(2) == 0 {
					insist()
				}
				defer insist()
				if err := l.Stop(limit); err != nil && !errors.Is(err, ErrAborted) {
					t.Errorf("stop: %v", err)
				}
				if !hasEnded(l) {
					t.Error("stop returned before the end")
				}
			})
			wg.Go(func() {
				select {
				case l.jobs <- make(chan struct{}):
					// Never done: somebody has to insist.
					now, insist := context.WithCancel(context.Background())
					insist()
					_ = l.Stop(now)
				case <-l.Done():
				}
			})
			wg.Go(func() { _ = l.Err(); <-l.Done() })
		}
		if rand.IntN(4) == 0 {
			cancel()
		}
		wg.Wait()
		cancel()
	}
}

func TestWithin(t *testing.T) {
	t.Parallel()
	var now, most, all atomic.Int64
	err := Within(t.Context(), 3, func(_ context.Context, s *Scope) error {
		for range 100 {
			s.Go(func(context.Context) error {
				n := now.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				runtime.Gosched()
				all.Add(1)
				now.Add(-1)
				return nil
			})
		}
		return nil
	})
	if err != nil || all.Load() != 100 || most.Load() > 3 {
		t.Errorf("%d ran, at most %d at a time, error %v", all.Load(), most.Load(), err)
	}
}

func TestWithinFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	waits := func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }
	cases := map[string]func(context.Context, *Scope) error{
		"a goroutine": func(ctx context.Context, s *Scope) error {
			s.Go(waits)
			s.Go(func(context.Context) error { return broken })
			return waits(ctx)
		},
		"body": func(_ context.Context, s *Scope) error {
			s.Go(waits)
			return broken
		},
		"a panic": func(_ context.Context, s *Scope) error {
			s.Go(waits)
			s.Go(func(context.Context) error { panic(broken) })
			return nil
		},
		"a panic of body": func(_ context.Context, s *Scope) error {
			s.Go(waits)
			panic(broken)
		},
		"while Go waits for room": func(_ context.Context, s *Scope) error {
			s.Go(waits)
			s.Go(func(context.Context) error { return broken })
			for range 10 {
				s.Go(waits)
			}
			return nil
		},
	}
	for name, body := range cases {
		if err := Within(t.Context(), 2, body); !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Within(t.Context(), 0, func(_ context.Context, s *Scope) error {
		s.Go(func(context.Context) error { runtime.Goexit(); return nil })
		return nil
	}); !errors.Is(err, errGoexit) {
		t.Errorf("goexit: %v", err)
	}
}

// TestWithinCanceled must not let skipped work look done.
func TestWithinCanceled(t *testing.T) {
	t.Parallel()
	why := errors.New("why")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	err := Within(ctx, 1, func(_ context.Context, s *Scope) error {
		s.Go(func(context.Context) error { t.Error("it ran"); return nil })
		return nil
	})
	if !errors.Is(err, why) {
		t.Error(err)
	}
}
