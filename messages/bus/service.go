package bus

import (
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
// and no data; headerError, with it, is why the request failed.
const (
	headerPart  = "Walherd-Part"
	headerDone  = "Walherd-Done"
	headerError = "Walherd-Error"
	headerOut   = "Walherd-Out"
)

// Reply is the answer to one request: any number of messages, each numbered,
// so that an answer may be larger than the broker's limit for one message and
// what is lost on the way is noticed.
type Reply struct {
	b       *Bus
	subject string
	part    int
	size    int
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
	h[headerPart] = []string{strconv.Itoa(r.part)}
	r.part++
	if err := r.b.nc.PublishMsg(&nats.Msg{Subject: r.subject, Header: h, Data: data}); err != nil {
		return fmt.Errorf("answer %s: %w", r.subject, err)
	}
	return nil
}

// Serve answers requests until stop is called; stop waits for those that run,
// whose context it ends.
func (b *Bus) Serve(ctx context.Context, info ServiceInfo, log *slog.Logger, endpoints ...Endpoint) (stop func(), err error) {
	svc, err := micro.AddService(b.nc, micro.Config{
		Name: info.Name, Version: info.Version, Description: info.Description, Metadata: info.Metadata,
		ErrorHandler: func(_ micro.Service, e *micro.NATSError) {
			log.Warn("service", "subject", e.Subject, "error", e.Description)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("offer service %s: %w", info.Name, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	slots := make(chan struct{}, serviceSlots)
	for _, e := range endpoints {
		var opts []micro.EndpointOpt
		opts = append(opts, micro.WithEndpointSubject(e.Subject))
		if e.Queue != "" {
			opts = append(opts, micro.WithEndpointQueueGroup(e.Queue))
		}
		handler := micro.HandlerFunc(func(req micro.Request) {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			running.Go(func() {
				defer func() { <-slots }()
				b.answer(ctx, e, req, log)
			})
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
	return func() {
		cancel()
		if err := svc.Stop(); err != nil {
			log.Debug("stop service", "service", info.Name, "error", err)
		}
		running.Wait()
	}, nil
}

func (b *Bus) answer(ctx context.Context, e Endpoint, req micro.Request, log *slog.Logger) {
	if req.Reply() == "" {
		return
	}
	if !answerable(req.Reply()) {
		log.Warn("answer a request", "subject", e.Subject, "error", fmt.Errorf("%w: %s", errReplySubject, req.Reply()))
		return
	}
	ctx = b.TraceContext(ctx, Header(req.Headers()))
	r := &Reply{b: b, subject: req.Reply(), size: int(b.MaxPayload()) - 4096}
	err := func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				log.Error("request handler panicked", "subject", e.Subject, "panic", p)
				err = fmt.Errorf("the handler of %s panicked: %v", e.Subject, p)
			}
		}()
		return e.Handle(ctx, req.Data(), r)
	}()
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
// take, in order. silence bounds the wait for each part. An error of the
// service is an AnswerError; ErrNobody is that no process offers it.
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
			return fmt.Errorf("ask %s: %w: nothing came for %s", subject, ErrUnavailable, silence)
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
		}
		if err := take(first(m.Header, headerOut), m.Data); err != nil {
			return err
		}
	}
}

func first(h nats.Header, key string) string {
	if v := h[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}
