package runner

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages/bus"
)

// Gate keeps a worker from taking jobs that it cannot do and others can: one
// whose credentials are wrong fails every job at once, is free before the others
// are, and would have most of a queue given up. What fails here is handed back for
// them, and the gate is shut until the worker can do jobs again, or nobody can:
// then it is better that jobs fail with the reason than that they wait.
//
// A nil Gate is always open.
type Gate struct {
	opt GateOptions
	// looking is held while the worker is looked at.
	looking sync.Mutex

	mu    sync.Mutex
	unfit error
	open  context.Context // ends when the gate is shut
	shut  context.CancelFunc
	// opened is closed when the gate opens; nil while it is open.
	opened chan struct{}
}

// GateOptions of NewGate. All but Every and Logger are required.
type GateOptions struct {
	// Suspect tells the failures that may mean that this worker can do no job.
	Suspect func(error) bool
	// Check looks whether it can.
	Check func(context.Context) error
	// Others tells whether another worker can.
	Others func(context.Context) bool
	// Every is how often a worker that cannot is looked at. 0 is 10 s.
	Every  time.Duration
	Logger *slog.Logger
}

// NewGate makes a gate that is open.
func NewGate(opt GateOptions) *Gate {
	if opt.Every == 0 {
		opt.Every = 10 * time.Second
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	g := &Gate{opt: opt}
	g.open, g.shut = context.WithCancel(context.Background())
	return g
}

// Unfit is why this worker can do no jobs, nil if it can as far as is known.
func (g *Gate) Unfit() error {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.unfit
}

// Run looks after the gate until ctx ends.
func (g *Gate) Run(ctx context.Context) {
	t := time.NewTicker(g.opt.Every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		if g.Unfit() != nil {
			g.look(ctx)
		}
	}
}

// look sees whether this worker and others can do jobs.
func (g *Gate) look(ctx context.Context) (isShut bool) {
	g.looking.Lock()
	defer g.looking.Unlock()
	err := g.opt.Check(ctx)
	if ctx.Err() != nil {
		return false // nothing was learned
	}
	g.mu.Lock()
	before := g.unfit
	g.unfit = err // also to those who ask meanwhile, of which this worker is one
	g.mu.Unlock()
	others := err != nil && g.opt.Others(ctx)
	switch {
	case err != nil && before == nil:
		g.opt.Logger.Error("this worker can do no jobs", "others_can", others, telemetry.KeyError, err)
	case err == nil && before != nil:
		g.opt.Logger.Info("this worker can do jobs again")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case others && g.opened == nil:
		g.opt.Logger.Warn("taking no more jobs, other workers do them")
		g.opened = make(chan struct{})
		g.shut()
	case !others && g.opened != nil:
		g.opt.Logger.Warn("taking jobs again", "can_do_them", err == nil)
		g.open, g.shut = context.WithCancel(context.Background())
		close(g.opened)
		g.opened = nil
	}
	return others
}

// handBack is the pause before a job is handed to another worker: by then no
// slot of this one waits for jobs.
const handBack = time.Second

// outcome is what becomes of a job that failed here: it is handed back, however
// often it was tried, if the fault is the worker's and another can do it.
func (g *Gate) outcome(ctx context.Context, err error) error {
	if g == nil || err == nil || !g.opt.Suspect(err) || !g.look(ctx) {
		return err
	}
	var reject *bus.RejectError
	if errors.As(err, &reject) {
		err = reject.Err
	}
	return bus.Hold(handBack, err)
}

// enter waits until the gate is open, or ctx ends, and returns a context that
// ends when it is shut. The caller calls leave.
func (g *Gate) enter(ctx context.Context) (_ context.Context, leave func()) {
	if g == nil {
		return ctx, func() {}
	}
	for {
		g.mu.Lock()
		open, opened := g.open, g.opened
		g.mu.Unlock()
		if opened == nil {
			inside, cancel := context.WithCancel(ctx)
			unhook := context.AfterFunc(open, cancel)
			return inside, func() { unhook(); cancel() }
		}
		select {
		case <-opened:
		case <-ctx.Done():
			return ctx, func() {}
		}
	}
}
