package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Stored is a message as it lies in a stream.
type Stored struct {
	Seq     uint64
	Subject string
	Time    time.Time // when the broker stored it, by the broker's clock
	Message
}

// GetNext reads the first message of a subject (wildcards allowed) whose
// sequence number is from or higher, ErrNoMessage if there is none. It reads
// work queues too, without taking anything from their consumers.
func (b *Bus) GetNext(ctx context.Context, stream, subject string, from uint64) (Stored, error) {
	s, err := b.stream(ctx, stream)
	if err != nil {
		return Stored{}, err
	}
	watched, stop := b.denials.watch(ctx, getSubject(s, stream))
	defer stop()
	m, err := s.GetMsg(watched, max(from, 1), jetstream.WithGetMsgSubject(subject))
	switch err := ended(watched, err); {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return Stored{}, fmt.Errorf("read %s of %s from sequence %d: %w", subject, stream, from, ErrNoMessage)
	case err != nil:
		return Stored{}, fmt.Errorf("read %s of %s from sequence %d: %w", subject, stream, from, adminError(err))
	}
	return Stored{Seq: m.Sequence, Subject: m.Subject, Time: m.Time, Message: Message{Header: m.Header, Data: m.Data}}, nil
}

// LogOptions of OpenLog.
type LogOptions struct {
	// From is the first sequence number of interest; 0 is the oldest. A number
	// beyond the stream's end means that the stream was made anew since the
	// caller noted it, and is read as 0.
	From uint64
}

// Log is an ordered reading of a stream that is no work queue. Reading takes
// nothing away. It is for one goroutine.
type Log struct {
	b       *Bus
	stream  string
	c       jetstream.Consumer
	it      jetstream.MessagesContext
	pending uint64 // messages left when the last one was sent
	last    uint64 // the last message got
}

// OpenLog starts reading the messages of one subject (wildcards allowed).
// The caller closes the log; the context bounds the opening only.
func (b *Bus) OpenLog(ctx context.Context, stream, subject string, opt LogOptions) (*Log, error) {
	s, err := b.stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	info, err := s.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("describe stream %s: %w", stream, adminError(err))
	}
	cfg := jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{subject}, DeliverPolicy: jetstream.DeliverAllPolicy,
		InactiveThreshold: time.Minute,
	}
	if opt.From > 0 && opt.From <= info.State.LastSeq+1 {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, opt.From
	}
	watched, stop := b.denials.watch(ctx, apiConsumerCreate+stream)
	defer stop()
	c, err := b.js.OrderedConsumer(watched, stream, cfg)
	if err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", subject, stream, adminError(ended(watched, err)))
	}
	l := &Log{b: b, stream: stream, c: c}
	if i := c.CachedInfo(); i != nil {
		l.pending = i.NumPending
	}
	// By bytes, not by count: see OpenTail.
	if l.it, err = c.Messages(jetstream.PullMaxBytes(4 << 20)); err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", subject, stream, adminError(err))
	}
	return l, nil
}

// Next waits for the next message.
func (l *Log) Next(ctx context.Context) (Stored, error) {
	ctx, stop := l.b.denials.watch(ctx, apiConsumerNext+l.stream)
	defer stop()
	m, err := l.it.Next(jetstream.NextContext(ctx))
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return Stored{}, fmt.Errorf("read %s: %w", l.stream, err)
	}
	meta, err := m.Metadata()
	if err != nil {
		return Stored{}, fmt.Errorf("read %s: %w", l.stream, err)
	}
	l.pending, l.last = meta.NumPending, meta.Sequence.Stream
	return Stored{
		Seq: meta.Sequence.Stream, Subject: m.Subject(), Time: meta.Timestamp,
		Message: Message{Header: m.Headers(), Data: m.Data()},
	}, nil
}

// logIdle is after how long without a message ReadOn asks the broker whether
// one is to come at all.
const logIdle = 250 * time.Millisecond

// ReadOn returns the next message that is stored already; ok is false when
// none is left.
func (l *Log) ReadOn(ctx context.Context) (m Stored, ok bool, err error) {
	for l.pending > 0 {
		wait, cancel := context.WithTimeout(ctx, logIdle)
		m, err := l.Next(wait)
		cancel()
		switch {
		case err == nil:
			return m, true, nil
		case ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded):
			return Stored{}, false, err
		}
		// What was pending may have been removed meanwhile, or be on its way: then
		// the broker counts it as delivered.
		info, err := l.c.Info(ctx)
		if err != nil {
			return Stored{}, false, fmt.Errorf("read %s: %w", l.stream, adminError(err))
		}
		if l.pending = info.NumPending; info.Delivered.Consumer > 0 && info.Delivered.Stream > l.last {
			l.pending++
		}
	}
	return Stored{}, false, nil
}

// Close ends the reading.
func (l *Log) Close() { l.it.Stop() }
