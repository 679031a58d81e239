package basebackup

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/walherd/walherd/engine/pack"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/transit"
)

// content is one reading of an object's bytes; pack.Stream is one.
type content interface {
	// Fill fills buf, or less with io.EOF at the end.
	Fill(ctx context.Context, buf []byte) (int, error)
	// Report tells what was packed, once Fill returned io.EOF.
	Report() pack.Report
	Close() error
}

// opener starts one reading of an object. alive is to be called in the reading's
// own goroutine for as long as there is work and nothing to give out; its error
// ends the reading.
type opener func(alive func() error) (content, error)

// object is one object of the backup on its way to storage.
type object struct {
	name string // messages.PartJob.Part
	size int64  // bytes to come, roughly: for the progress display
	// open is called again for another attempt.
	open opener
	// read is called when an attempt has been read to its end or has failed:
	// the disk is free for the next object.
	read func()
	// copy, if set, names the object that a worker is to copy; open is for the
	// case that it cannot. copied is the report of a copy.
	copy   *messages.PartSource
	copied pack.Report

	// The rest is guarded by run.mu.
	attempt int
	abort   func() // of the attempt under way
	reports map[int]pack.Report
	moved   time.Time // when bytes last moved
	stored  bool
	done    chan struct{} // closed once stored
	result  messages.Say
}

// stored is an object that a worker reported durable.
type stored struct {
	// Object is the name with its extension; Size in bytes.
	object string
	size   int64
	pack.Report
}

// run is the conversation of one backup with whichever workers store it: they
// claim objects, the run streams them, they report. An object whose worker
// dies is claimed again by another and is read again from the start: a later
// reading of the same files is just as good, since replay of the WAL makes
// either consistent.
type run struct {
	bus     *bus.Bus
	carrier transit.Carrier
	cluster messages.Cluster
	backup  pg.BackupName
	log     *slog.Logger
	track   Tracker
	// idle is how long an object may make no progress. quiet is after how
	// long a worker that waits for bytes hears that there will be some; 0 is
	// 20 seconds, since it gives up after 2 minutes.
	idle, quiet time.Duration

	id      string
	subject string
	ctx     context.Context
	fail    context.CancelCauseFunc
	unhear  func()
	sending sync.WaitGroup

	mu        sync.Mutex
	objects   map[string]*object
	last      time.Time // when any of them made progress
	committed chan struct{}
	over      bool
}

// ErrNoProgress means that no worker took or finished an object in time.
var ErrNoProgress = errors.New("no worker made progress")

// ErrWorker marks a failure that a worker reported as final.
var ErrWorker = errors.New("worker gave up")

// startRun begins to answer workers. The run's context ends with the returned
// run's failure; close must be called.
func startRun(ctx context.Context, r *run) (*run, error) {
	r.id = rand.Text()
	r.subject = messages.RunSubject(r.cluster, r.id)
	r.objects = map[string]*object{}
	r.committed = make(chan struct{})
	if r.quiet == 0 {
		r.quiet = 20 * time.Second
	}
	r.ctx, r.fail = context.WithCancelCause(ctx)
	unhear, err := r.bus.Listen(ctx, r.subject, r.hear)
	if err != nil {
		r.fail(err)
		return nil, err
	}
	r.unhear = unhear
	return r, nil
}

// close stops answering, ends what is being sent and waits for it.
func (r *run) close() {
	r.mu.Lock()
	r.over = true
	r.mu.Unlock()
	r.unhear()
	r.fail(context.Canceled)
	r.sending.Wait()
}

// store publishes the job for one object and waits until it is stored.
func (r *run) store(o *object) (stored, error) {
	o.done = make(chan struct{})
	o.reports = map[int]pack.Report{}
	o.moved = time.Now()
	defer func() { r.track.End(o.name, o.result.StoredBytes) }()
	r.mu.Lock()
	r.objects[o.name] = o
	r.mu.Unlock()
	err := r.publish(messages.KindPart, messages.PartJob{Backup: r.backup, Part: o.name, Run: r.subject, Copy: o.copy})
	if err != nil {
		return stored{}, err
	}
	if err := r.await(o.done, func() time.Time { return r.lastMove(o) }); err != nil {
		return stored{}, fmt.Errorf("store %s: %w", o.name, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return stored{object: o.result.Object, size: o.result.StoredBytes, Report: o.reports[o.result.Attempt]}, nil
}

// commitRoom is what the commit job holds beside the names of objects: the
// backup's two documents.
const commitRoom = 32 << 10

// fits is an error if a backup of these parts could not be committed: its one
// job names them all, and the broker bounds a message. To learn it after hours
// would be late.
func (r *run) fits(parts []pack.Part) error {
	job := messages.CommitJob{Backup: r.backup, Run: r.subject}
	for _, p := range parts {
		job.Objects = append(job.Objects, messages.StoredObject{Name: p.Name() + ".lz4", Size: p.Size})
	}
	data, err := messages.Encode(messages.KindCommit, r.cluster, time.Now(), job)
	if err != nil {
		return err
	}
	return r.within(messages.KindCommit, len(data)+commitRoom)
}

func (r *run) within(kind messages.Kind, size int) error {
	if int64(size) > r.bus.MaxPayload() {
		return fmt.Errorf("%s job of %d bytes is over the broker's limit of %d (raise max_payload, or use a larger WALG_TAR_SIZE_THRESHOLD)", kind, size, r.bus.MaxPayload())
	}
	return nil
}

// commit publishes the commit job and waits for its end.
func (r *run) commit(job messages.CommitJob) error {
	job.Run = r.subject
	began := time.Now()
	if err := r.publish(messages.KindCommit, job); err != nil {
		return err
	}
	return r.await(r.committed, func() time.Time { return began })
}

func (r *run) publish(kind messages.Kind, body any) error {
	data, err := messages.Encode(kind, r.cluster, time.Now(), body)
	if err != nil {
		return err
	}
	if err := r.within(kind, len(data)); err != nil {
		return err
	}
	_, err = r.bus.Publish(r.ctx, messages.WorkSubject(kind, r.cluster), nil, data)
	return err
}

// await waits for done, the run's failure, or idle time since moved.
func (r *run) await(done <-chan struct{}, moved func() time.Time) error {
	timer := time.NewTimer(r.idle)
	defer timer.Stop()
	for {
		select {
		case <-done:
			return nil
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		case <-timer.C:
			left := r.idle - time.Since(moved())
			if left <= 0 {
				return fmt.Errorf("%w for %s (is a worker running?)", ErrNoProgress, r.idle)
			}
			timer.Reset(left)
		}
	}
}

// hear answers one message of a worker. Claims are answered elsewhere: opening
// a transfer takes a round trip.
func (r *run) hear(m bus.Incoming) {
	var s messages.Say
	if err := json.Unmarshal(m.Data, &s); err != nil || s.Version != messages.Version {
		r.log.Warn("a worker said what this build does not understand", "version", s.Version, telemetry.KeyError, err)
		r.answer(m, messages.Answer{Verdict: messages.VerdictGone})
		return
	}
	switch s.What {
	case messages.WhatClaim:
		r.claimed(m, s)
	case messages.WhatCopying:
		r.answer(m, r.copying(s))
	case messages.WhatStored:
		r.answer(m, messages.Answer{Verdict: r.noteStored(s)})
	case messages.WhatCommitted:
		r.mu.Lock()
		select {
		case <-r.committed:
		default:
			close(r.committed)
		}
		r.mu.Unlock()
		r.answer(m, messages.Answer{Verdict: messages.VerdictGo})
	case messages.WhatFailed:
		r.answer(m, messages.Answer{Verdict: messages.VerdictGo})
		if s.Final {
			r.fail(fmt.Errorf("%w on %s: %s", ErrWorker, s.Part, s.Error))
			return
		}
		r.log.Warn("a worker failed, the job will be tried again", telemetry.KeyPart, s.Part, telemetry.KeyWorker, s.Worker, telemetry.KeyError, s.Error)
	}
}

func (r *run) answer(m bus.Incoming, a messages.Answer) {
	data, err := json.Marshal(a)
	if err == nil {
		err = m.Respond(data)
	}
	if err != nil {
		r.log.Warn("answer a worker", telemetry.KeyError, err)
	}
}

func (r *run) noteStored(s messages.Say) messages.Verdict {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.objects[s.Part]
	switch {
	case o == nil || r.over:
		return messages.VerdictGone
	case o.stored:
		return messages.VerdictDone
	}
	if _, whole := o.reports[s.Attempt]; !whole {
		// It cannot have received the end of this attempt.
		return messages.VerdictGone
	}
	o.stored, o.result = true, s
	close(o.done)
	return messages.VerdictGo
}

// copying notes that a worker begins to copy an object, or still does.
func (r *run) copying(s messages.Say) messages.Answer {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.objects[s.Part]
	switch {
	case o == nil || r.over || o.copy == nil || s.Attempt != 0 && s.Attempt != o.attempt:
		return messages.Answer{Verdict: messages.VerdictGone}
	case o.stored:
		return messages.Answer{Verdict: messages.VerdictDone}
	}
	if s.Attempt == 0 {
		o.attempt++
		o.reports[o.attempt] = o.copied
	}
	o.moved, r.last = time.Now(), time.Now()
	return messages.Answer{Verdict: messages.VerdictGo, Attempt: o.attempt}
}

// claimed starts a new attempt for the worker that claims an object.
func (r *run) claimed(m bus.Incoming, s messages.Say) {
	r.mu.Lock()
	o := r.objects[s.Part]
	verdict := messages.VerdictGo
	switch {
	case o == nil || r.over:
		verdict = messages.VerdictGone
	case o.stored:
		verdict = messages.VerdictDone
	}
	if verdict != messages.VerdictGo {
		r.mu.Unlock()
		r.answer(m, messages.Answer{Verdict: verdict})
		return
	}
	o.attempt++
	attempt := o.attempt
	if abort := o.abort; abort != nil {
		// The earlier attempt may be blocked on a worker that is dead, and
		// saying so to the broker takes a round trip.
		o.abort = nil
		r.sending.Go(abort)
	}
	o.moved, r.last = time.Now(), time.Now()
	r.sending.Add(1)
	r.mu.Unlock()
	if attempt > 1 {
		r.log.Warn("sending a part again", telemetry.KeyPart, s.Part, telemetry.KeyAttempt, attempt, telemetry.KeyWorker, s.Worker)
	}
	go func() {
		defer r.sending.Done()
		r.attempt(m, s, o, attempt)
	}()
}

// attempt opens a transfer, tells the worker, and sends.
func (r *run) attempt(m bus.Incoming, s messages.Say, o *object, attempt int) {
	sender, err := r.carrier.Stream(r.ctx, transit.StreamAddress{Cluster: r.cluster, Run: r.id, Part: o.name, Attempt: attempt})
	if err != nil {
		r.log.Warn("open a transfer", telemetry.KeyPart, o.name, telemetry.KeyError, err)
		return // the worker's question times out and it asks again
	}
	r.mu.Lock()
	current := o.attempt == attempt && !r.over
	if current {
		o.abort = sender.Abort
	}
	r.mu.Unlock()
	if !current {
		sender.Abort()
		return
	}
	r.track.Begin(o.name, o.size)
	r.answer(m, messages.Answer{Verdict: messages.VerdictGo, Attempt: attempt, Bytes: sender.Ref()})
	err = r.send(sender, o, attempt)
	sender.Abort()
	if o.read != nil {
		o.read()
	}
	switch {
	case err == nil:
	case errors.Is(err, errReading):
		// No other attempt would read better.
		r.fail(fmt.Errorf("read %s: %w", o.name, err))
	default:
		r.log.Debug("attempt ended early", telemetry.KeyPart, o.name, telemetry.KeyAttempt, attempt, telemetry.KeyWorker, s.Worker, telemetry.KeyError, err)
	}
}

var errReading = errors.New("cannot read what is to be backed up")

func (r *run) send(sender transit.Sender, o *object, attempt int) error {
	sent := time.Now()
	var lost error // the worker, while there was nothing to send
	c, err := o.open(func() error {
		r.moved(o)
		if lost == nil && time.Since(sent) > r.quiet {
			// An empty chunk is one like any other, and takes no room in buf.
			sent, lost = time.Now(), sender.Send(r.ctx, sender.Buffer()[:0])
		}
		return cmp.Or(lost, context.Cause(r.ctx))
	})
	if err != nil {
		return fmt.Errorf("%w: %w", errReading, err)
	}
	defer c.Close()
	for {
		buf := sender.Buffer()
		n, err := c.Fill(r.ctx, buf)
		if err != nil && err != io.EOF {
			if r.ctx.Err() != nil || lost != nil {
				return err // the reading was told to stop
			}
			return fmt.Errorf("%w: %w", errReading, err)
		}
		if n > 0 {
			if err := sender.Send(r.ctx, buf[:n]); err != nil {
				return err
			}
			sent = time.Now()
			r.track.Add(o.name, int64(n))
			r.moved(o)
		}
		if err != nil {
			break
		}
	}
	// The report must be there before a worker can say that it has the end. An
	// attempt that another one has replaced must not end whole: its abort is on
	// the way.
	r.mu.Lock()
	current := o.attempt == attempt
	if current {
		o.reports[attempt] = c.Report()
	}
	r.mu.Unlock()
	if !current {
		return transit.ErrAborted
	}
	return sender.Close(r.ctx)
}

// moved notes that an object makes progress.
func (r *run) moved(o *object) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o.moved, r.last = time.Now(), time.Now()
}

// lastMove is when an object made progress last. One that no worker has claimed
// yet waits its turn as long as others move: few workers may have many parts to
// store before it.
func (r *run) lastMove(o *object) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o.attempt == 0 && r.last.After(o.moved) {
		return r.last
	}
	return o.moved
}

// Tracker is told the progress of a backup. It is safe for concurrent use.
type Tracker interface {
	// Begin an attempt at an object of about size bytes; a second one starts
	// its count anew.
	Begin(object string, size int64)
	// Add bytes sent.
	Add(object string, n int64)
	// End: the object is stored in so many bytes, or, with 0, was given up.
	End(object string, stored int64)
}

// noTracker ignores progress.
type noTracker struct{}

func (noTracker) Begin(string, int64) {}
func (noTracker) Add(string, int64)   {}
func (noTracker) End(string, int64)   {}
