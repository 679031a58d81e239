// Package runner works off the job queue: a pool of slots per kind of job,
// heartbeats while a job runs, recovery of panics, and the outcome of each job
// told first to whoever waits for it and then to the broker.
//
// A job that fails is retried with a growing pause, at most Tries times, then
// becomes a dead letter with its reason; the queue goes on. So does a job that
// was handed out Tries times and of which no worker said what became of it: it
// may be what killed them. Only a Keeper's jobs are not given up for that.
// Slots of one kind are never taken by another kind, so a base backup cannot
// delay WAL.
package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/walherd/walherd/engine/service"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/deadletter"
	"github.com/walherd/walherd/messages/topology"
)

// Job is one job handed to a Handler.
type Job struct {
	messages.Envelope
	// Attempt counts from 1 how often this job was handed to a worker.
	Attempt int
	// Worker is the name of this worker.
	Worker string
}

// Handler does jobs of one kind. It is called from several goroutines.
type Handler interface {
	// Handle does the job. It must be safe to do twice, also at the same
	// time on another worker. The outcome is nil, an error to be retried,
	// bus.Retry or bus.Reject.
	Handle(ctx context.Context, job Job) error
	// Settled is called once after each Handle, before the broker hears of
	// the outcome: here the handler tells whoever waits for the job. final
	// means that the job will not be tried again.
	Settled(ctx context.Context, job Job, outcome error, final bool)
}

// Keeper is a Handler some of whose jobs must not be given up because workers
// that had them are gone.
type Keeper interface {
	// Keep reports whether job is to be tried however often that was so.
	Keep(job Job) bool
}

// ErrUnfinished is why a job is given up that no worker has ended.
var ErrUnfinished = errors.New("no worker that took it said what became of it: each died, hung, or lost the broker")

// Pool is a number of slots for one kind of job.
type Pool struct {
	Kind    messages.Kind
	Slots   int
	Handler Handler
}

// Options of New. Bus and Worker are required.
type Options struct {
	Bus    *bus.Bus
	Worker string
	Logger *slog.Logger
	Tracer trace.Tracer
	// Heartbeat is how often a running job is reported to the broker: well
	// below the consumer's ack wait. 0 is 10 s.
	Heartbeat time.Duration
	// Tries bounds how often a job is tried. 0 is 5.
	Tries int
	// Cluster whose jobs are taken.
	Cluster messages.Cluster
	// DeadLetters keeps a copy of every job that is given up. A command that
	// works its own jobs reports them itself.
	DeadLetters bool
	// Gate, unless nil, keeps this worker from jobs that only others can do.
	Gate *Gate
}

// Runner runs pools. It is a service.Service: Stop takes no more jobs and waits
// for the running ones; what is aborted is handed back to the queue.
type Runner struct {
	service.Base
	opt   Options
	pools []Pool
}

var _ service.Service = (*Runner)(nil)

// New makes a runner that is not started yet.
func New(opt Options, pools ...Pool) *Runner {
	if opt.Heartbeat == 0 {
		opt.Heartbeat = 10 * time.Second
	}
	if opt.Tries == 0 {
		opt.Tries = 5
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	return &Runner{opt: opt, pools: pools}
}

// Start implements service.Service.
func (r *Runner) Start(ctx context.Context) error {
	return r.Launch(ctx, nil, func(fetch, work context.Context) error {
		var slots sync.WaitGroup
		for _, p := range r.pools {
			for range p.Slots {
				slots.Go(func() { r.slot(fetch, work, p) })
			}
		}
		r.announce(work, messages.WorkerJoined) // nobody waits for it
		slots.Wait()
		r.announce(context.WithoutCancel(work), messages.WorkerLeft)
		if work.Err() != nil {
			return service.ErrAborted
		}
		return nil
	})
}

func (r *Runner) announce(ctx context.Context, what messages.EventName) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err := PublishEvent(ctx, r.opt.Bus, messages.Event{Cluster: r.opt.Cluster, What: what, Object: r.opt.Worker, Worker: r.opt.Worker})
	if err != nil {
		r.opt.Logger.Debug("publish event", "event", what, telemetry.KeyError, err)
	}
}

// slot takes jobs one after the other.
func (r *Runner) slot(fetch, work context.Context, p Pool) {
	for fails := 1; ; fails++ {
		inside, leave := r.opt.Gate.enter(fetch)
		d, err := r.opt.Bus.Next(inside, topology.StreamWork, messages.WorkConsumer(p.Kind, r.opt.Cluster))
		outside := inside.Err() != nil
		leave()
		if outside {
			if d != nil {
				_ = d.GiveBack() // else it comes back after the ack wait
			}
			if fetch.Err() != nil {
				return
			}
			fails = 0
			continue
		}
		if err != nil {
			r.opt.Logger.Warn("cannot take jobs, trying again", telemetry.KeyKind, p.Kind, telemetry.KeyError, err)
			select {
			case <-time.After(min(bus.Backoff(fails), 10*time.Second)):
				continue
			case <-fetch.Done():
				return
			}
		}
		fails = 0
		r.run(work, p, d)
	}
}

// run does one job and settles it.
func (r *Runner) run(work context.Context, p Pool, d *bus.Delivery) {
	job := Job{Attempt: d.Attempt, Worker: r.opt.Worker}
	ctx := r.opt.Bus.TraceContext(work, d.Header())
	ctx, span := r.opt.Tracer.Start(ctx, "job "+string(p.Kind), trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(attribute.String(telemetry.KeyWorker, r.opt.Worker), attribute.Int(telemetry.KeyAttempt, d.Attempt)))
	defer span.End()

	outcome := func() error {
		env, err := messages.Decode(d.Data())
		if err != nil {
			return bus.Reject(err)
		}
		if env.Cluster != r.opt.Cluster || env.Kind != p.Kind {
			return bus.Reject(fmt.Errorf("%w: a %s job of cluster %q in the queue of %s jobs of %s", messages.ErrMalformed, env.Kind, env.Cluster, p.Kind, r.opt.Cluster))
		}
		job.Envelope = env
		span.SetAttributes(attribute.String(telemetry.KeyCluster, string(env.Cluster)))
		if keeper, ok := p.Handler.(Keeper); d.Attempt > r.opt.Tries && !(ok && keeper.Keep(job)) {
			return bus.Reject(fmt.Errorf("handed out %d times: %w", d.Attempt-1, ErrUnfinished))
		}
		return r.handle(ctx, p.Handler, job, d)
	}()

	if outcome != nil && work.Err() != nil {
		// Not the job's fault: hand it back at once.
		span.SetStatus(codes.Error, "worker stopped")
		if err := d.GiveBack(); err != nil {
			r.opt.Logger.Warn("hand job back", telemetry.KeyKind, p.Kind, telemetry.KeyError, err)
		}
		return
	}
	// What waits for the job and the broker must hear of it even when this
	// worker is told to stop meanwhile.
	settle, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	final := d.Final(r.opt.Tries, outcome)
	if outcome != nil {
		span.RecordError(outcome)
		span.SetStatus(codes.Error, "failed")
		r.opt.Logger.Warn("job failed", telemetry.KeyKind, p.Kind, telemetry.KeyAttempt, d.Attempt, "final", final, telemetry.KeyError, outcome)
	}
	if job.Version != 0 {
		p.Handler.Settled(settle, job, outcome, final)
	}
	if outcome != nil && final && r.opt.DeadLetters {
		if err := deadletter.Post(settle, r.opt.Bus, r.opt.Cluster, p.Kind, d, r.opt.Worker, outcome); err != nil {
			// Ending the job now would lose it without a trace.
			r.opt.Logger.Error("cannot keep a dead letter, the job stays queued", telemetry.KeyKind, p.Kind, telemetry.KeyError, err)
			_ = d.GiveBack()
			return
		}
	}
	if err := d.Settle(settle, r.opt.Tries, outcome); err != nil {
		// The job will be handed out again, and doing it again is harmless.
		r.opt.Logger.Warn("settle job", telemetry.KeyKind, p.Kind, telemetry.KeyError, err)
	}
}

// handle calls the handler under heartbeats and turns a panic into an error.
func (r *Runner) handle(ctx context.Context, h Handler, job Job, d *bus.Delivery) error {
	stop := make(chan struct{})
	var beat sync.WaitGroup
	beat.Add(1)
	go func() {
		defer beat.Done()
		t := time.NewTicker(r.opt.Heartbeat)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				if err := d.Working(); err != nil {
					r.opt.Logger.Warn("heartbeat of a job", telemetry.KeyError, err)
				}
			case <-stop:
				return
			}
		}
	}()
	defer beat.Wait()
	defer close(stop)
	err := service.Catch(func() error { return h.Handle(ctx, job) })
	var p *service.PanicError
	if errors.As(err, &p) {
		r.opt.Logger.Error("job handler panicked", telemetry.KeyKind, job.Kind, "panic", p.Value, "stack", string(p.Stack))
		return fmt.Errorf("handler panicked: %v", p.Value)
	}
	return r.opt.Gate.outcome(ctx, err)
}

// PublishEvent publishes a fact. Event fields Version and At are filled in.
func PublishEvent(ctx context.Context, b *bus.Bus, e messages.Event) error {
	data, err := messages.EncodeEvent(e, time.Now())
	if err != nil {
		return err
	}
	_, err = b.Publish(ctx, messages.EventSubject(e.Cluster, e.What), nil, data)
	return err
}
