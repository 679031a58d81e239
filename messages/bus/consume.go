package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Delivery is one message handed out by a consumer. It must be settled once.
type Delivery struct {
	msg jetstream.Msg
	// Attempt counts from 1 how often the message was handed out.
	Attempt int
	// Queued is how long the message had been waiting.
	Queued time.Duration
}

// Header of the message.
func (d *Delivery) Header() Header { return d.msg.Headers() }

// Data of the message.
func (d *Delivery) Data() []byte { return d.msg.Data() }

// Working tells the broker that the message is still being worked on, which
// starts its ack wait anew.
func (d *Delivery) Working() error { return d.msg.InProgress() }

// RetryError asks for another delivery after a while.
type RetryError struct {
	After time.Duration
	// Hold: however often it was tried, it is not given up.
	Hold bool
	Err  error
}

// Retry makes an outcome: try again after d.
func Retry(after time.Duration, err error) error { return &RetryError{After: after, Err: err} }

// Hold makes an outcome: try again after d, and never give it up.
func Hold(after time.Duration, err error) error {
	return &RetryError{After: after, Hold: true, Err: err}
}

func (e *RetryError) Error() string { return e.Err.Error() }
func (e *RetryError) Unwrap() error { return e.Err }

// RejectError is final: the message becomes a dead letter.
type RejectError struct{ Err error }

// Reject makes an outcome: never try again.
func Reject(err error) error { return &RejectError{Err: err} }

func (e *RejectError) Error() string { return e.Err.Error() }
func (e *RejectError) Unwrap() error { return e.Err }

// Backoff is the delay before the next try of a message that failed with a
// plain error for the nth time: 1 s, 2 s, 4 s ... 60 s.
func Backoff(attempt int) time.Duration {
	if attempt > 6 {
		return time.Minute
	}
	return time.Second << max(attempt-1, 0)
}

// Settle tells the broker the outcome of a delivery; the one place where
// outcomes become acknowledgements. nil is acknowledged (twice over the wire,
// so that the broker is known to have it), RetryError is handed out again
// later, RejectError is terminated with its reason, and any other error is
// retried with Backoff. tries bounds all of it but Hold: a message that failed
// for the last time is terminated with its reason too, because a message that
// merely exhausts its deliveries stays in the queue unseen.
func (d *Delivery) Settle(ctx context.Context, tries int, outcome error) error {
	var reject *RejectError
	var retry *RetryError
	switch {
	case outcome == nil:
		return d.msg.DoubleAck(ctx)
	case errors.As(outcome, &reject):
		return d.msg.TermWithReason(reason(outcome))
	case errors.As(outcome, &retry) && retry.Hold:
		return d.msg.NakWithDelay(retry.After)
	case d.Attempt >= tries:
		return d.msg.TermWithReason(reason(fmt.Errorf("gave up after %d tries: %w", d.Attempt, outcome)))
	case errors.As(outcome, &retry):
		return d.msg.NakWithDelay(retry.After)
	}
	return d.msg.NakWithDelay(Backoff(d.Attempt))
}

// Final reports whether outcome is the last word on this delivery.
func (d *Delivery) Final(tries int, outcome error) bool {
	var reject *RejectError
	var retry *RetryError
	switch {
	case outcome == nil, errors.As(outcome, &reject):
		return true
	case errors.As(outcome, &retry) && retry.Hold:
		return false
	}
	return d.Attempt >= tries
}

// GiveBack returns the message at once, as if it had not been handed out but
// for its count.
func (d *Delivery) GiveBack() error { return d.msg.Nak() }

// reason cuts an error to what fits an acknowledgement line.
func reason(err error) string {
	s := []rune(err.Error())
	if len(s) > 500 {
		s = append(s[:500], '…')
	}
	for i, r := range s {
		if r == '\r' || r == '\n' {
			s[i] = ' '
		}
	}
	return string(s)
}

// Next waits for the next message of a durable consumer. It returns an error
// when ctx ends, but for a message that came just then, and ErrUnavailable when
// the broker does not answer; then the caller may try again after a pause.
func (b *Bus) Next(ctx context.Context, stream, consumer string) (*Delivery, error) {
	c, err := b.consumer(ctx, stream, consumer)
	if err != nil {
		return nil, fmt.Errorf("open consumer %s of %s: %w", consumer, stream, err)
	}
	d, err := b.next(ctx, c, stream, consumer)
	if err != nil {
		b.consumers.Delete(consumerName{stream, consumer}) // it may be gone: the next look says so
	}
	return d, err
}

// consumerName is a consumer's key in Bus.consumers.
type consumerName struct{ stream, consumer string }

func (b *Bus) consumer(ctx context.Context, stream, name string) (jetstream.Consumer, error) {
	key := consumerName{stream, name}
	if c, ok := b.consumers.Load(key); ok {
		return c.(jetstream.Consumer), nil
	}
	ctx, stop := b.denials.watch(ctx, apiConsumerInfo+stream)
	defer stop()
	c, err := b.js.Consumer(ctx, stream, name)
	if err != nil {
		return nil, adminError(ended(ctx, err))
	}
	b.consumers.Store(key, c)
	return c, nil
}

func (b *Bus) next(ctx context.Context, c jetstream.Consumer, stream, consumer string) (*Delivery, error) {
	ctx, stop := b.denials.watch(ctx, apiConsumerNext+stream)
	defer stop()
	it, err := c.Messages(jetstream.PullMaxMessages(1), jetstream.StopAfter(1), jetstream.PullHeartbeat(nextHeartbeat))
	if err != nil {
		return nil, fmt.Errorf("fetch from %s of %s: %w", consumer, stream, adminError(err))
	}
	defer it.Stop()
	m, err := it.Next(jetstream.NextContext(ctx))
	if err != nil {
		// A message on its way here would be nobody's until its ack wait ends.
		it.Drain()
		if late, none := it.Next(jetstream.NextMaxWait(nextHeartbeat)); none == nil {
			m, err = late, nil
		}
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, fmt.Errorf("fetch from %s of %s: %w", consumer, stream, adminError(err))
	}
	d := &Delivery{msg: m, Attempt: 1}
	if meta, err := m.Metadata(); err == nil {
		d.Attempt = int(meta.NumDelivered)
		d.Queued = time.Since(meta.Timestamp)
	}
	return d, nil
}

// nextHeartbeat is how often the broker is to say that it has no message. After
// twice as long the consumer has no leader, or is gone.
const nextHeartbeat = time.Second

// Tail is an ordered reading of one subject of a work-queue stream, by a
// consumer that exists for this reading alone.
type Tail struct {
	b      *Bus
	stream string
	name   string
	it     jetstream.MessagesContext
}

// OpenTail starts reading subject. window bounds the bytes that the broker
// sends ahead: pulling by count instead lets large messages exceed the broker's
// limit of pending bytes, and it cuts the connection.
func (b *Bus) OpenTail(ctx context.Context, stream, subject string, window int) (*Tail, error) {
	watched, stop := b.denials.watch(ctx, apiConsumerCreate+stream)
	defer stop()
	c, err := b.js.CreateConsumer(watched, stream, jetstream.ConsumerConfig{
		FilterSubject: subject, AckPolicy: jetstream.AckExplicitPolicy,
		// A chunk is settled in order or the attempt is over: redelivery
		// would only disorder them.
		AckWait: time.Hour, MaxAckPending: -1, InactiveThreshold: 2 * time.Minute, MemoryStorage: true,
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", subject, adminError(ended(watched, err)))
	}
	it, err := c.Messages(jetstream.PullMaxBytes(window), jetstream.PullHeartbeat(tailHeartbeat))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", subject, adminError(err))
	}
	return &Tail{b: b, stream: stream, name: c.CachedInfo().Name, it: it}, nil
}

// tailHeartbeat is how often the broker is to say that it has nothing to send;
// tailSilences of twice as long in a row, and the reading is given up. One alone
// says little: the client can take an answer before it notes that it asked, with
// few messages in a window (nats.go 1.55, checkPending), and asks again only then.
const (
	tailHeartbeat = time.Second
	tailSilences  = 15
)

// Next waits for the next message. Ack removes it from the stream.
func (t *Tail) Next(ctx context.Context) (h Header, data []byte, ack func() error, err error) {
	ctx, stop := t.b.denials.watch(ctx, apiConsumerNext+t.stream)
	defer stop()
	var m jetstream.Msg
	for range tailSilences {
		if m, err = t.it.Next(jetstream.NextContext(ctx)); !errors.Is(err, jetstream.ErrNoHeartbeat) {
			break
		}
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, nil, nil, fmt.Errorf("read %s: %w", t.stream, err)
	}
	return m.Headers(), m.Data(), m.Ack, nil
}

// Close ends the reading and removes its consumer.
func (t *Tail) Close(ctx context.Context) {
	t.it.Stop()
	if err := t.b.js.DeleteConsumer(ctx, t.stream, t.name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		t.b.log.Debug("remove chunk consumer", "error", err)
	}
}
