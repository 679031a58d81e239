package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
)

// ServiceInfo describes a NATS micro service: the ordinary `nats micro` tools
// find it, ping it and show its counters.
type ServiceInfo struct {
	// Name of letters, digits, - and _; Version is a semantic version.
	Name, Version, Description string
	Metadata                   map[string]string
	// Alive is how often an asker hears that its request is worked on. 0 is
	// 10 s.
	Alive time.Duration
}

// Endpoint is one subject that a service answers.
type Endpoint struct {
	Name, Subject string
	// Queue, of the processes that share it one gets a request. Empty is the
	// library's default, one queue for all of the service's name.
	Queue string
	// Handle answers one request by writing to the reply. It may run for
	// long and side by side with others. An error is told to the asker.
	Handle func(ctx context.Context, data []byte, reply *Reply) error
}

// Concurrent requests that one service handles; more wait.
const serviceSlots = 16

// Headers of a reply's messages. The last message of a reply has headerDone
// and no data; headerError, with it, is why the request failed. A message with
// headerAlive and no data says that the request is worked on, and within which
// time there will be another message.
const (
	headerPart  = "Walherd-Part"
	headerDone  = "Walherd-Done"
	headerError = "Walherd-Error"
	headerOut   = "Walherd-Out"
	headerAlive = "Walherd-Alive"
)

const (
	// aliveEvery is the default of ServiceInfo.Alive.
	aliveEvery = 10 * time.Second
	// aliveMissed in a row, and who answered is gone.
	aliveMissed = 4
)

// Reply is the answer to one request: any number of messages, each numbered,
// so that an answer may be larger than the broker's limit for one message and
// what is lost on the way is noticed.
type Reply struct {
	b       *Bus
	subject string
	size    int

	mu   sync.Mutex
	part int
}

// Write sends data as one message or more of the stream called out ("stdout").
func (r *Reply) Write(out string, data []byte) error {
	for len(data) > 0 {
		n := min(len(data), r.size)
		if err := r.send(nats.Header{headerOut: {out}}, data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func (r *Reply) send(h nats.Header, data []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	h[headerPart] = []string{strconv.Itoa(r.part)}
	r.part++
	if err := r.b.nc.PublishMsg(&nats.Msg{Subject: r.subject, Header: h, Data: data}); err != nil {
		return fmt.Errorf("answer %s: %w", r.subject, err)
	}
	return nil
}

// keepAlive tells the asker at once, and again and again until stop, that its
// request is worked on: a listing or a backup says nothing for a long time, and
// an asker must know that from a process that died.
func (r *Reply) keepAlive(every time.Duration, log *slog.Logger) (stop func()) {
	say := func() {
		if err := r.send(nats.Header{headerAlive: {every.String()}}, nil); err != nil {
			log.Debug("answer a request", "error", err)
		}
	}
	say()
	done := make(chan struct{})
	var beat sync.WaitGroup
	beat.Go(func() {
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				say()
			case <-done:
				return
			}
		}
	})
	return func() { close(done); beat.Wait() }
}

// errStopping is the answer of a process that is about to end.
var errStopping = errors.New("this process is stopping: ask again")

// desk takes requests until it is closed.
type desk struct {
	slots   chan struct{}
	closing chan struct{}

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
}

// enter waits for room; false once the desk is closed. The caller calls leave.
func (d *desk) enter() bool {
	select {
	case d.slots <- struct{}{}:
	case <-d.closing:
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		<-d.slots
		return false
	}
	d.running.Add(1)
	return true
}

func (d *desk) leave() {
	<-d.slots
	d.running.Done()
}

func (d *desk) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	close(d.closing)
}

// Serve answers requests until stop is called; stop refuses further ones and
// waits for those that run. When drain ends first, it ends their context. stop
// is called once.
func (b *Bus) Serve(ctx context.Context, info ServiceInfo, log *slog.Logger, endpoints ...Endpoint) (stop func(drain context.Context), err error) {
	svc, err := micro.AddService(b.nc, micro.Config{
		Name: info.Name, Version: info.Version, Description: info.Description, Metadata: info.Metadata,
		ErrorHandler: func(_ micro.Service, e *micro.NATSError) {
			log.Warn("service", "subject", e.Subject, "error", e.Description)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("offer service %s: %w", info.Name, err)
	}
	alive := cmp.Or(info.Alive, aliveEvery)
	ctx, cancel := context.WithCancel(ctx)
	d := &desk{slots: make(chan struct{}, serviceSlots), closing: make(chan struct{})}
	for _, e := range endpoints {
		var opts []micro.EndpointOpt
		opts = append(opts, micro.WithEndpointSubject(e.Subject))
		if e.Queue != "" {
			opts = append(opts, micro.WithEndpointQueueGroup(e.Queue))
		}
		handler := micro.HandlerFunc(func(req micro.Request) {
			if !d.enter() {
				refusing := e
				refusing.Handle = func(context.Context, []byte, *Reply) error { return errStopping }
				b.answer(ctx, refusing, req, alive, log)
				return
			}
			go func() {
				defer d.leave()
				b.answer(ctx, e, req, alive, log)
			}()
		})
		if err := svc.AddEndpoint(e.Name, handler, opts...); err != nil {
			cancel()
			_ = svc.Stop()
			return nil, fmt.Errorf("offer %s: %w", e.Subject, err)
		}
	}
	flush, done := context.WithTimeout(ctx, 10*time.Second)
	defer done()
	if err := b.nc.FlushWithContext(flush); err != nil {
		cancel()
		_ = svc.Stop()
		return nil, fmt.Errorf("offer service %s: %w: %w", info.Name, ErrUnavailable, err)
	}
	if refused, ok := deniedSubscription(b.nc.LastError()); ok && slices.ContainsFunc(endpoints, func(e Endpoint) bool { return e.Subject == refused }) {
		cancel()
		_ = svc.Stop()
		return nil, fmt.Errorf("offer service %s: %w: listen on %s", info.Name, ErrDenied, refused)
	}
	return func(drain context.Context) {
		defer cancel()
		d.close()
		if err := svc.Stop(); err != nil {
			log.Debug("stop service", "service", info.Name, "error", err)
		}
		defer context.AfterFunc(drain, cancel)()
		d.running.Wait()
	}, nil
}

func (b *Bus) answer(ctx context.Context, e Endpoint, req micro.Request, alive time.Duration, log *slog.Logger) {
	if req.Reply() == "" {
		return
	}
	if !answerable(req.Reply()) {
		log.Warn("answer a request", "subject", e.Subject, "error", fmt.Errorf("%w: %s", errReplySubject, req.Reply()))
		return
	}
	ctx = b.TraceContext(ctx, Header(req.Headers()))
	r := &Reply{b: b, subject: req.Reply(), size: int(b.MaxPayload()) - 4096}
	stop := r.keepAlive(alive, log)
	err := func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				log.Error("request handler panicked", "subject", e.Subject, "panic", p)
				err = fmt.Errorf("the handler of %s panicked: %v", e.Subject, p)
			}
		}()
		return e.Handle(ctx, req.Data(), r)
	}()
	stop()
	h := nats.Header{headerDone: {"1"}}
	if err != nil {
		h[headerError] = []string{reason(err)}
	}
	if err := r.send(h, nil); err != nil {
		log.Warn("answer a request", "subject", e.Subject, "error", err)
	}
}

// ErrBrokenReply means that a part of an answer was lost on the way.
var ErrBrokenReply = errors.New("answer incomplete")

// maxUntaken bounds the bytes of an answer that have come and are not taken.
const maxUntaken = 256 << 20

// AnswerError is what the asked process said instead of an answer.
type AnswerError struct{ Text string }

func (e *AnswerError) Error() string { return e.Text }

// Ask sends a request to a service and passes every part of its answer to
// take, in order. silence bounds the wait for each part: it must do for the first,
// since a busy process lets a request wait. From then on it is no longer than what
// the process says of itself (see headerAlive), so that its death is noticed. An
// error of the service is an AnswerError; ErrNobody is that no process offers it.
func (b *Bus) Ask(ctx context.Context, subject string, data []byte, silence time.Duration, take func(out string, data []byte) error) error {
	inbox := b.nc.NewInbox()
	sub, err := b.nc.SubscribeSync(inbox)
	if err != nil {
		return fmt.Errorf("ask %s: %w", subject, err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	// Nothing holds the answer back while take is slow, such as a terminal.
	if err := sub.SetPendingLimits(-1, maxUntaken); err != nil {
		return fmt.Errorf("ask %s: %w", subject, err)
	}
	ctx, stop := b.denials.watch(ctx, subject)
	defer stop()
	m := b.message(ctx, subject, nil, data)
	m.Reply = inbox
	if err := b.nc.PublishMsg(m); err != nil {
		return fmt.Errorf("ask %s: %w", subject, err)
	}
	for want := 0; ; want++ {
		wait, cancel := context.WithTimeout(ctx, silence)
		m, err := sub.NextMsgWithContext(wait)
		cancel()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return fmt.Errorf("ask %s: %w", subject, context.Cause(ctx))
		case errors.Is(err, nats.ErrNoResponders):
			return fmt.Errorf("ask %s: %w", subject, ErrNobody)
		case errors.Is(err, context.DeadlineExceeded):
			return fmt.Errorf("ask %s: %w: nothing came for %s%s", subject, ErrUnavailable, silence, midway(want))
		case errors.Is(err, nats.ErrSlowConsumer):
			return fmt.Errorf("ask %s: %w: more than %d bytes of it waited to be taken", subject, ErrBrokenReply, maxUntaken)
		default:
			return fmt.Errorf("ask %s: %w", subject, err)
		}
		switch {
		case first(m.Header, headerPart) != strconv.Itoa(want):
			return fmt.Errorf("ask %s: %w: part %q where %d was expected", subject, ErrBrokenReply, first(m.Header, headerPart), want)
		case first(m.Header, headerError) != "":
			return &AnswerError{first(m.Header, headerError)}
		case first(m.Header, headerDone) != "":
			return nil
		case first(m.Header, headerAlive) != "":
			if every, err := time.ParseDuration(first(m.Header, headerAlive)); err == nil && every > 0 {
				silence = min(silence, aliveMissed*every)
			}
			continue
		}
		if err := take(first(m.Header, headerOut), m.Data); err != nil {
			return err
		}
	}
}

// midway tells what it means that an answer stopped after so many parts.
func midway(parts int) string {
	if parts == 0 {
		return ""
	}
	return " in the middle of the answer: the process that gave it died or lost the broker; what it was asked for may be done, or half done"
}

func first(h nats.Header, key string) string {
	if v := h[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}
