package expire

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/walherd/walherd/engine/retain"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/workers/runner"
)

// LeaseKey is the right to delete in a cluster.
func LeaseKey(c messages.Cluster) string { return string(c) + ".expire" }

// Handler does delete jobs. It answers the asker with all that the command has
// to say and with its end.
type Handler struct {
	// Open gives the work for one job, ready but for Fence and Backing.
	Open func(ctx context.Context, log *slog.Logger) (*Work, error)
	Bus  *bus.Bus
	// Alone is whether no other process can have the lease, because the broker
	// is this command's own. There are no leases then.
	Alone  bool
	Logger *slog.Logger
}

var _ runner.Handler = (*Handler)(nil)

// retryHeld is the pause before a redelivered job asks for the lease again: it
// may be that of the worker that died with the job.
const retryHeld = 12 * time.Second

// leaseTTL is how long the lease of a worker that died stands in the way: less
// than all tries of a job take.
const leaseTTL = 30 * time.Second

// Handle implements runner.Handler. What is refused has been answered, and is
// no failure of the job.
func (h *Handler) Handle(ctx context.Context, job runner.Job) error {
	ej, err := messages.Unpack[messages.ExpireJob](job.Envelope)
	if err == nil {
		err = ej.Check(job.Cluster)
	}
	if err != nil {
		return bus.Reject(err)
	}
	what := title(ej)
	out := &answer{ctx: ctx, h: h, job: job, to: ej.Reply}
	if job.Attempt == 1 && !ej.BeginBy.IsZero() && time.Now().After(ej.BeginBy) {
		h.refuse(ctx, job, what, out, fmt.Errorf("delete %s: it was to begin by %s, and whoever asked has given up", what, ej.BeginBy.Format(time.RFC3339)))
		return nil
	}
	stop := out.keepAlive()
	defer stop()
	deleted, err := h.underLease(ctx, job, func(ctx context.Context, fence func(context.Context) error) (uint64, error) {
		return h.do(ctx, job.Cluster, ej, out, fence)
	})
	stop()
	var refusal *Refusal
	switch {
	case err == nil:
		h.event(ctx, job, messages.Event{What: messages.ExpireDone, Object: what, Objects: deleted})
		out.end(messages.ExpireReply{Deleted: deleted})
		return nil
	case errors.As(err, &refusal):
		h.refuse(ctx, job, what, out, err)
		return nil
	case errors.Is(err, bus.ErrHeld) && (job.Attempt > 1 || ej.Reply == ""):
		return bus.Retry(retryHeld, err)
	case errors.Is(err, bus.ErrHeld):
		h.refuse(ctx, job, what, out, err)
		return nil
	case errors.Is(err, storage.ErrPermanent):
		return bus.Reject(err)
	}
	return err
}

func commandOf(e messages.ExpireCommand) Command {
	return Command{
		Verb: e.Verb, Words: e.Words, UseStartTime: e.UseSentinelTime,
		Flags: retain.Flags{After: e.After, UserData: e.UserData, Window: e.Window, WithoutBackupCheck: e.WithoutBackupCheck},
	}
}

// JobOf is the job that carries commands.
func JobOf(commands ...Command) messages.ExpireJob {
	var j messages.ExpireJob
	for _, c := range commands {
		j.Commands = append(j.Commands, messages.ExpireCommand{
			Verb: c.Verb, Words: c.Words, UseSentinelTime: c.UseStartTime,
			After: c.Flags.After, UserData: c.Flags.UserData, Window: c.Flags.Window, WithoutBackupCheck: c.Flags.WithoutBackupCheck,
		})
	}
	return j
}

// title names a job's commands.
func title(j messages.ExpireJob) string {
	var all []string
	for _, e := range j.Commands {
		all = append(all, commandOf(e).String())
	}
	return strings.Join(all, "; ")
}

// underLease does work while no other process of the cluster deletes. The
// lease's first revision is the fencing token: holder and token together name
// this one holding of it.
func (h *Handler) underLease(ctx context.Context, job runner.Job, work func(ctx context.Context, fence func(context.Context) error) (uint64, error)) (deleted uint64, err error) {
	if h.Alone {
		return work(ctx, nil)
	}
	key := LeaseKey(job.Cluster)
	// Unique for this try, so that who holds the lease tells whether it is
	// still this one.
	holder := fmt.Sprintf("%s/%d", job.Worker, time.Now().UnixNano())
	lease, err := h.Bus.Acquire(ctx, key, holder, leaseTTL)
	if errors.Is(err, bus.ErrHeld) {
		who, herr := h.Bus.Holder(ctx, key)
		if herr != nil || who == "" {
			who = "another worker"
		}
		return 0, fmt.Errorf("another delete runs in cluster %s, by %s: %w", job.Cluster, who, err)
	}
	if err != nil {
		return 0, err
	}
	token := lease.Revision
	h.Logger.Info("deleting under a lease", "lease", key, "token", token)
	fence := func(ctx context.Context) error {
		who, err := h.Bus.Holder(ctx, key)
		switch {
		case err != nil:
			return fmt.Errorf("see whether the lease %s is still held: %w", key, err)
		case who != holder:
			return fmt.Errorf("%w: %s with token %d, it is %q's now", bus.ErrLost, key, token, who)
		}
		return nil
	}
	err = lease.Hold(ctx, func(ctx context.Context) error {
		var err error
		deleted, err = work(ctx, fence)
		return err
	})
	return deleted, err
}

func (h *Handler) do(ctx context.Context, cluster messages.Cluster, ej messages.ExpireJob, out *answer, fence func(context.Context) error) (uint64, error) {
	lines, log := out.stream("stderr"), h.Logger
	if ej.Reply != "" {
		level, err := telemetry.ParseLogLevel(ej.LogLevel)
		if err != nil {
			return 0, &Refusal{err}
		}
		log = slog.New(telemetry.NewHandler(lines, level))
	}
	w, err := h.Open(ctx, log)
	if err != nil {
		return 0, err
	}
	w.Fence = fence
	if !h.Alone {
		w.Backing = func(ctx context.Context) (string, error) { return h.Bus.Holder(ctx, string(cluster)+".backup") }
	}
	var deleted uint64
	for _, e := range ej.Commands {
		n, err := h.one(ctx, w, ej, commandOf(e), out, lines)
		deleted += n
		if err != nil {
			if deleted > 0 {
				log.Warn(fmt.Sprintf("%d objects were deleted before this failed", deleted))
			}
			return deleted, errors.Join(err, lines.Flush())
		}
	}
	return deleted, lines.Flush()
}

// one carries out one command of a job.
func (h *Handler) one(ctx context.Context, w *Work, ej messages.ExpireJob, c Command, out *answer, lines *bufio.Writer) (uint64, error) {
	n, err := w.Do(ctx, c, func(pl *retain.Plan) error {
		if ej.JSON && ej.Reply != "" {
			stdout := out.stream("stdout")
			return errors.Join(WriteJSON(stdout, c, true, pl), stdout.Flush())
		}
		Tell(w.Logger, pl)
		return lines.Flush()
	})
	if err == nil {
		TellEnd(w.Logger, false, n)
	}
	return n, err
}

// refuse answers that the command is not done.
func (h *Handler) refuse(ctx context.Context, job runner.Job, what string, out *answer, err error) {
	if out.to == "" {
		h.Logger.Error("delete "+what+" was not done", telemetry.KeyError, err)
	}
	h.event(ctx, job, messages.Event{What: messages.ExpireFailed, Object: what, Error: err.Error()})
	out.end(messages.ExpireReply{Error: err.Error()})
}

// Settled implements runner.Handler.
func (h *Handler) Settled(ctx context.Context, job runner.Job, outcome error, final bool) {
	ej, err := messages.Unpack[messages.ExpireJob](job.Envelope)
	if err != nil || outcome == nil || ej.Check(job.Cluster) != nil {
		return
	}
	out := &answer{ctx: ctx, h: h, job: job, to: ej.Reply}
	if !final {
		lines := out.stream("stderr")
		slog.New(telemetry.NewHandler(lines, slog.LevelInfo)).Warn("the delete failed and is tried again", telemetry.KeyAttempt, job.Attempt, telemetry.KeyError, outcome)
		if err := lines.Flush(); err != nil {
			h.Logger.Warn("answer the asker of a delete", telemetry.KeyError, err)
		}
		return
	}
	h.refuse(ctx, job, title(ej), out, outcome)
}

func (h *Handler) event(ctx context.Context, job runner.Job, e messages.Event) {
	e.Cluster, e.Worker = job.Cluster, job.Worker
	if err := runner.PublishEvent(ctx, h.Bus, e); err != nil {
		h.Logger.Warn("publish event", "event", e.What, telemetry.KeyError, err)
	}
}

// answer sends what a try has to say to the asker, if there is one.
type answer struct {
	ctx context.Context
	h   *Handler
	job runner.Job
	to  string

	mu   sync.Mutex
	part int
}

func (a *answer) send(r messages.ExpireReply) error {
	if a.to == "" {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	r.Attempt, r.Part = a.job.Attempt, a.part
	a.part++
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode an answer: %w", err)
	}
	return a.h.Bus.Notify(a.ctx, a.to, nil, data)
}

func (a *answer) end(r messages.ExpireReply) {
	r.Final = true
	if err := a.send(r); err != nil {
		a.h.Logger.Warn("answer the asker of a delete", telemetry.KeyError, err)
	}
}

// answerPiece is how much text one message carries; JSON makes it a third more.
const answerPiece = 256 << 10

// stream is a writer of one stream of the answer, in pieces.
func (a *answer) stream(out string) *bufio.Writer {
	return bufio.NewWriterSize(&pieces{a, out}, answerPiece)
}

type pieces struct {
	a   *answer
	out string
}

var _ io.Writer = (*pieces)(nil)

func (p *pieces) Write(data []byte) (int, error) {
	for rest := data; len(rest) > 0; {
		n := min(len(rest), answerPiece)
		if err := p.a.send(messages.ExpireReply{Out: p.out, Data: rest[:n]}); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(data), nil
}

// aliveEvery is how often the asker hears that the job runs.
const aliveEvery = 10 * time.Second

// keepAlive tells the asker at once, and again and again until stop, that the
// job runs: a listing says nothing for minutes.
func (a *answer) keepAlive() (stop func()) {
	done := make(chan struct{})
	var once sync.Once
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(aliveEvery)
		defer t.Stop()
		for {
			if err := a.send(messages.ExpireReply{}); err != nil {
				a.h.Logger.Debug("answer the asker of a delete", telemetry.KeyError, err)
			}
			select {
			case <-t.C:
			case <-done:
				return
			}
		}
	})
	return func() { once.Do(func() { close(done); wg.Wait() }) }
}
