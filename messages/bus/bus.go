// Package bus is walherd's connection to a broker, and the only importer of
// nats.go: publishing with acknowledgement, pulling jobs, settling them by
// their outcome, core requests, and the admin calls that topology needs.
//
// It fails by returning errors: a publish that was not acknowledged in time is
// an error (the message may or may not be stored), a lost connection is
// retried for ever in the background while calls fail by their own contexts.
// Nothing here blocks without a context.
package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/propagation"

	"github.com/walherd/walherd/messages/topology"
)

// Bus is one connection. It is safe for concurrent use.
type Bus struct {
	nc  *nats.Conn
	js  jetstream.JetStream
	log *slog.Logger
	// trace writes and reads the W3C traceparent header.
	trace propagation.TraceContext
	// streams keeps handles by name: opening one costs a round trip.
	streams sync.Map
	// consumers are handles by consumerName, for the same reason.
	consumers sync.Map
	denials   denials
	back      chan struct{}
}

// Back yields after the connection was lost and is there again, once for any
// number of times. It is for one receiver.
func (b *Bus) Back() <-chan struct{} { return b.back }

func (b *Bus) stream(ctx context.Context, name string) (jetstream.Stream, error) {
	if s, ok := b.streams.Load(name); ok {
		return s.(jetstream.Stream), nil
	}
	watched, stop := b.denials.watch(ctx, "$JS.API.STREAM.INFO."+name)
	defer stop()
	s, err := b.js.Stream(watched, name)
	if err != nil {
		return nil, fmt.Errorf("open stream %s: %w", name, adminError(ended(watched, err)))
	}
	b.streams.Store(name, s)
	return s, nil
}

// Close flushes what was published and closes the connection.
func (b *Bus) Close() {
	if err := b.nc.FlushTimeout(2 * time.Second); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		b.log.Warn("flush message broker connection", "error", err)
	}
	b.nc.Close()
}

// MaxPayload is the broker's limit for one message in bytes.
func (b *Bus) MaxPayload() int64 { return b.nc.MaxPayload() }

// Header carries a message's metadata; keys are case-sensitive.
type Header = nats.Header

// carrier lets the propagator read and write a header. The propagator's own
// key is lower-case and NATS keeps case, so keys are used as they are.
type carrier Header

func (c carrier) Get(key string) string {
	if v := c[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}
func (c carrier) Set(key, value string) { c[key] = []string{value} }
func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for k := range c {
		keys = append(keys, k)
	}
	return keys
}

// message builds a message with the context's trace in its header.
func (b *Bus) message(ctx context.Context, subject string, h Header, data []byte) *nats.Msg {
	if h == nil {
		h = Header{}
	}
	b.trace.Inject(ctx, carrier(h))
	return &nats.Msg{Subject: subject, Header: h, Data: data}
}

// TraceContext returns ctx with the trace that a message carries.
func (b *Bus) TraceContext(ctx context.Context, h Header) context.Context {
	return b.trace.Extract(ctx, carrier(h))
}

// Publish stores a message in the stream of its subject and returns its
// sequence number once the broker acknowledged it. Every error means: not
// acknowledged.
func (b *Bus) Publish(ctx context.Context, subject string, h Header, data []byte) (uint64, error) {
	watched, stop := b.denials.watch(ctx, subject)
	defer stop()
	ack, err := b.js.PublishMsg(watched, b.message(ctx, subject, h, data))
	if err != nil {
		return 0, publishError(subject, ended(watched, err))
	}
	return ack.Sequence, nil
}

// Pending is an acknowledgement that is still to come.
type Pending struct {
	b       *Bus
	subject string
	future  jetstream.PubAckFuture
}

// PublishAsync publishes without waiting. data must stay as it is until Wait
// returns.
func (b *Bus) PublishAsync(ctx context.Context, subject string, h Header, data []byte) (Pending, error) {
	// The library's default stall wait of 200 ms trips whenever the broker
	// syncs every message.
	f, err := b.js.PublishMsgAsync(b.message(ctx, subject, h, data), jetstream.WithStallWait(30*time.Second))
	if err != nil {
		return Pending{}, publishError(subject, err)
	}
	return Pending{b: b, subject: subject, future: f}, nil
}

// Wait returns the sequence number once the broker acknowledged the message.
func (p Pending) Wait(ctx context.Context) (uint64, error) {
	ctx, stop := p.b.denials.watch(ctx, p.subject)
	defer stop()
	select {
	case ack := <-p.future.Ok():
		return ack.Sequence, nil
	case err := <-p.future.Err():
		return 0, publishError(p.subject, err)
	case <-ctx.Done():
		return 0, publishError(p.subject, context.Cause(ctx))
	}
}

// ErrNoStream means that no stream takes a subject: nobody has set the broker
// up yet, or its streams have no leader now. It is ErrUnavailable too.
var ErrNoStream = fmt.Errorf("%w: no stream takes the message", ErrUnavailable)

func publishError(subject string, err error) error {
	switch {
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return fmt.Errorf("publish %s: %w: %w", subject, ErrNoStream, err)
	case unavailable(err):
		return fmt.Errorf("publish %s: %w: %w", subject, ErrUnavailable, err)
	}
	return fmt.Errorf("publish %s: %w", subject, err)
}

func unavailable(err error) bool {
	for _, e := range []error{
		nats.ErrTimeout, nats.ErrNoResponders, nats.ErrConnectionClosed, nats.ErrConnectionReconnecting,
		nats.ErrDisconnected, nats.ErrNoServers, nats.ErrReconnectBufExceeded, jetstream.ErrNoStreamResponse, jetstream.ErrAsyncPublishTimeout, jetstream.ErrNoHeartbeat,
		context.DeadlineExceeded,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Notify sends a message that nobody acknowledges: at most once.
func (b *Bus) Notify(ctx context.Context, subject string, h Header, data []byte) error {
	if err := b.nc.PublishMsg(b.message(ctx, subject, h, data)); err != nil {
		return fmt.Errorf("send %s: %w", subject, err)
	}
	return nil
}

// ErrNobody means that no process listens on the subject of a Request.
var ErrNobody = errors.New("nobody answers")

// Request sends a message and awaits one answer.
func (b *Bus) Request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	watched, stop := b.denials.watch(ctx, subject)
	defer stop()
	m, err := b.nc.RequestMsgWithContext(watched, b.message(ctx, subject, nil, data))
	err = ended(watched, err)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return nil, fmt.Errorf("request %s: %w", subject, ErrNobody)
	case err != nil:
		return nil, fmt.Errorf("request %s: %w", subject, err)
	}
	return m.Data, nil
}

// Incoming is a message got by Listen.
type Incoming struct {
	Header Header
	Data   []byte
	msg    *nats.Msg
}

// Respond answers a Request; for a Notify it does nothing.
func (m Incoming) Respond(data []byte) error {
	if m.msg.Reply == "" {
		return nil
	}
	if !answerable(m.msg.Reply) {
		return fmt.Errorf("respond to %s: %w: %s", m.msg.Subject, errReplySubject, m.msg.Reply)
	}
	if err := m.msg.Respond(data); err != nil {
		return fmt.Errorf("respond to %s: %w", m.msg.Subject, err)
	}
	return nil
}

// errReplySubject refuses an answer that would go elsewhere than into an inbox.
var errReplySubject = errors.New("the asker wants the answer where no answers go")

// answerable tells whether a reply subject is an inbox. The broker lets an
// asker name any: it could have this process publish, with rights that the
// asker has not, what then passes for a job or an event.
func answerable(reply string) bool { return strings.HasPrefix(reply, nats.InboxPrefix) }

// Listen calls fn for every message on subject, one at a time, until the
// returned function is called. The subscription is known to the broker when
// Listen returns: a message published after that is not missed.
func (b *Bus) Listen(ctx context.Context, subject string, fn func(Incoming)) (stop func(), err error) {
	sub, err := b.nc.Subscribe(subject, func(m *nats.Msg) { fn(Incoming{Header: m.Header, Data: m.Data, msg: m}) })
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", subject, err)
	}
	flush, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := b.nc.FlushWithContext(flush); err != nil {
		_ = sub.Unsubscribe()
		return nil, fmt.Errorf("listen on %s: %w: %w", subject, ErrUnavailable, err)
	}
	// The broker complains before it answers the flush.
	if refused, ok := deniedSubscription(b.nc.LastError()); ok && refused == subject {
		_ = sub.Unsubscribe()
		return nil, fmt.Errorf("%w: listen on %s", ErrDenied, subject)
	}
	return func() { _ = sub.Unsubscribe() }, nil
}

// Message is a stored message read by its sequence number.
type Message struct {
	Header Header
	Data   []byte
}

// ErrNoMessage means that the stream holds no message with that number: it
// was removed, expired, or the broker lost it.
var ErrNoMessage = errors.New("no such message in the stream")

// The broker's questions whose refusal must be noticed; a stream's name, and
// after a point a consumer's, follows.
const (
	apiInfo           = "$JS.API.STREAM.INFO."
	apiGet            = "$JS.API.STREAM.MSG.GET."
	apiDirect         = "$JS.API.DIRECT.GET."
	apiConsumerInfo   = "$JS.API.CONSUMER.INFO."
	apiConsumerCreate = "$JS.API.CONSUMER.CREATE."
	apiConsumerNext   = "$JS.API.CONSUMER.MSG.NEXT."
)

// getSubject is what the library asks for a message on.
func getSubject(s jetstream.Stream, stream string) string {
	if s.CachedInfo().Config.AllowDirect {
		return apiDirect + stream
	}
	return apiGet + stream
}

// Get reads the message with one sequence number: from any replica where the
// stream lets them answer (topology.Stream.Direct), else from its leader.
func (b *Bus) Get(ctx context.Context, stream string, seq uint64) (Message, error) {
	s, err := b.stream(ctx, stream)
	if err != nil {
		return Message{}, err
	}
	if s.CachedInfo().Config.AllowDirect {
		watched, stop := b.denials.watch(ctx, apiDirect+stream)
		m, err := s.GetMsg(watched, seq)
		stop()
		if err == nil {
			return Message{Header: m.Header, Data: m.Data}, nil
		}
		if ctx.Err() != nil {
			return Message{}, fmt.Errorf("read %s sequence %d: %w", stream, seq, adminError(err))
		}
		// A replica may lag behind, or have lost what another still has.
	}
	return b.GetFromLeader(ctx, stream, seq)
}

// GetFromLeader reads the message with one sequence number from the stream's
// leader, which knows of every message that was acknowledged.
func (b *Bus) GetFromLeader(ctx context.Context, stream string, seq uint64) (Message, error) {
	fail := func(err error) (Message, error) {
		return Message{}, fmt.Errorf("read %s sequence %d: %w", stream, seq, err)
	}
	watched, stop := b.denials.watch(ctx, apiGet+stream)
	defer stop()
	// Not with the library, which leaves the choice to a replica wherever the
	// stream admits that.
	limited, cancel := context.WithTimeout(watched, leaderTimeout)
	defer cancel()
	m, err := b.nc.RequestMsgWithContext(limited, b.message(ctx, apiGet+stream, nil, fmt.Appendf(nil, `{"seq":%d}`, seq)))
	if err != nil {
		return fail(adminError(ended(watched, err)))
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Header []byte `json:"hdrs"`
			Data   []byte `json:"data"`
		} `json:"message"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return fail(err)
	}
	switch e := answer.Error; {
	case e != nil && e.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return fail(ErrNoMessage)
	case e != nil:
		return fail(adminError(e))
	}
	out := Message{Data: answer.Message.Data}
	if len(answer.Message.Header) > 0 {
		h, err := nats.DecodeHeadersMsg(answer.Message.Header)
		if err != nil {
			return fail(err)
		}
		out.Header = Header(h)
	}
	return out, nil
}

// leaderTimeout is how long an answer may take while nodes elect a leader.
const leaderTimeout = 5 * time.Second

// Remove deletes one message; one that is gone already is no error.
func (b *Bus) Remove(ctx context.Context, stream string, seq uint64) error {
	s, err := b.stream(ctx, stream)
	if err != nil {
		return err
	}
	watched, stop := b.denials.watch(ctx, "$JS.API.STREAM.MSG.DELETE."+stream)
	defer stop()
	err = ended(watched, s.DeleteMsg(watched, seq))
	if errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
		// The library keeps the broker's reason as text only; ask instead.
		if _, gerr := b.Get(ctx, stream, seq); errors.Is(gerr, ErrNoMessage) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("remove %s sequence %d: %w", stream, seq, adminError(err))
	}
	return nil
}

// Purge removes every message of one subject.
func (b *Bus) Purge(ctx context.Context, stream, subject string) error {
	s, err := b.stream(ctx, stream)
	if err != nil {
		return err
	}
	watched, stop := b.denials.watch(ctx, "$JS.API.STREAM.PURGE."+stream)
	defer stop()
	if err := ended(watched, s.Purge(watched, jetstream.WithPurgeSubject(subject))); err != nil {
		return fmt.Errorf("purge %s of %s: %w", subject, stream, adminError(err))
	}
	return nil
}

// Depth is how many messages a stream holds.
func (b *Bus) Depth(ctx context.Context, stream string) (uint64, error) {
	s, err := b.stream(ctx, stream)
	if err != nil {
		return 0, err
	}
	info, err := s.Info(ctx)
	if err != nil {
		return 0, fmt.Errorf("describe stream %s: %w", stream, adminError(err))
	}
	return info.State.Msgs, nil
}

var _ topology.Admin = (*Bus)(nil)
