package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"
)

// StreamState is how full a stream is.
type StreamState struct {
	// At is now, by the broker's clock.
	At              time.Time
	Messages, Bytes uint64
	// MaxBytes is its bound; 0 is none.
	MaxBytes int64
	// Leader is the server that leads it; empty without one, or on a broker
	// of one server. Replicas counts those that are up to date, with the leader.
	Leader            string
	Replicas, Current int
}

// StreamState looks at a stream.
func (b *Bus) StreamState(ctx context.Context, stream string) (StreamState, error) {
	s, err := b.stream(ctx, stream)
	if err != nil {
		return StreamState{}, err
	}
	watched, stop := b.denials.watch(ctx, apiInfo+stream)
	defer stop()
	info, err := s.Info(watched)
	if err != nil {
		return StreamState{}, fmt.Errorf("describe stream %s: %w", stream, adminError(ended(watched, err)))
	}
	out := StreamState{
		At: info.TimeStamp, Messages: info.State.Msgs, Bytes: info.State.Bytes, MaxBytes: max(info.Config.MaxBytes, 0),
		Replicas: max(info.Config.Replicas, 1), Current: 1,
	}
	if c := info.Cluster; c != nil {
		out.Leader = c.Leader
		for _, p := range c.Replicas {
			if p.Current && !p.Offline {
				out.Current++
			}
		}
	}
	return out, nil
}

// ConsumerState is the backlog of a durable consumer.
type ConsumerState struct {
	// Pending messages wait, Working are handed out and not settled.
	Pending uint64
	Working int
	// Redelivered counts the messages handed out more than once and not
	// settled yet.
	Redelivered int
}

// ConsumerState looks at a durable consumer; ok is false if there is none.
func (b *Bus) ConsumerState(ctx context.Context, stream, name string) (s ConsumerState, ok bool, err error) {
	watched, stop := b.denials.watch(ctx, apiConsumerInfo+stream)
	defer stop()
	c, err := b.js.Consumer(watched, stream, name)
	switch err := ended(watched, err); {
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		return ConsumerState{}, false, nil
	case err != nil:
		return ConsumerState{}, false, fmt.Errorf("describe consumer %s of %s: %w", name, stream, adminError(err))
	}
	info := c.CachedInfo()
	return ConsumerState{Pending: info.NumPending, Working: info.NumAckPending, Redelivered: info.NumRedelivered}, true, nil
}

// Last reads the newest message of a subject, ErrNoMessage if there is none.
func (b *Bus) Last(ctx context.Context, stream, subject string) (Stored, error) {
	s, err := b.stream(ctx, stream)
	if err != nil {
		return Stored{}, err
	}
	watched, stop := b.denials.watch(ctx, getSubject(s, stream))
	defer stop()
	m, err := s.GetLastMsgForSubject(watched, subject)
	switch err := ended(watched, err); {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return Stored{}, fmt.Errorf("read the newest %s: %w", subject, ErrNoMessage)
	case err != nil:
		return Stored{}, fmt.Errorf("read the newest %s: %w", subject, adminError(err))
	}
	return Stored{Seq: m.Sequence, Subject: m.Subject, Time: m.Time, Message: Message{Header: m.Header, Data: m.Data}}, nil
}

// Subjects are those that a stream holds messages of, with their counts, as
// far as they match filter.
func (b *Bus) Subjects(ctx context.Context, stream, filter string) (map[string]uint64, error) {
	s, err := b.stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	watched, stop := b.denials.watch(ctx, apiInfo+stream)
	defer stop()
	info, err := s.Info(watched, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return nil, fmt.Errorf("list %s of stream %s: %w", filter, stream, adminError(ended(watched, err)))
	}
	return info.State.Subjects, nil
}

// Found is a running service that answered.
type Found struct {
	ID       string            `json:"id"`
	Version  string            `json:"version"`
	Metadata map[string]string `json:"metadata"`
}

// Services asks who offers the service of a name. Nobody knows how many there
// are, so this waits until none has answered for a while (quiet).
func (b *Bus) Services(ctx context.Context, name string, quiet time.Duration) ([]Found, error) {
	subject, err := micro.ControlSubject(micro.InfoVerb, name, "")
	if err != nil {
		return nil, fmt.Errorf("look for services %s: %w", name, err)
	}
	inbox := b.nc.NewInbox()
	sub, err := b.nc.SubscribeSync(inbox)
	if err != nil {
		return nil, fmt.Errorf("look for services %s: %w", name, err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	ctx, stop := b.denials.watch(ctx, subject)
	defer stop()
	if err := b.nc.PublishRequest(subject, inbox, nil); err != nil {
		return nil, fmt.Errorf("look for services %s: %w", name, err)
	}
	var out []Found
	for {
		wait, cancel := context.WithTimeout(ctx, quiet)
		m, err := sub.NextMsgWithContext(wait)
		cancel()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return out, fmt.Errorf("look for services %s: %w", name, context.Cause(ctx))
		case errors.Is(err, nats.ErrNoResponders), errors.Is(err, context.DeadlineExceeded):
			return out, nil
		default:
			return out, fmt.Errorf("look for services %s: %w", name, err)
		}
		var f Found
		if err := json.Unmarshal(m.Data, &f); err != nil {
			return out, fmt.Errorf("look for services %s: unreadable answer: %w", name, err)
		}
		out = append(out, f)
	}
}
