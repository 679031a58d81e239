package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/walherd/walherd/messages/topology"
)

// Stream looks a stream up, for topology.
func (b *Bus) Stream(ctx context.Context, name string) (topology.Stream, bool, error) {
	watched, stop := b.denials.watch(ctx, "$JS.API.STREAM.INFO."+name)
	defer stop()
	s, err := b.js.Stream(watched, name)
	err = ended(watched, err)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return topology.Stream{}, false, nil
	case err != nil:
		return topology.Stream{}, false, adminError(err)
	}
	c := s.CachedInfo().Config
	out := topology.Stream{
		Name: c.Name, Subjects: c.Subjects, Retention: topology.Limits, Storage: topology.File,
		Replicas: c.Replicas, MaxAge: c.MaxAge,
		DropOld: c.Discard == jetstream.DiscardOld, Direct: c.AllowDirect,
	}
	// The broker reports "no bound" as -1.
	out.MaxBytes = max(c.MaxBytes, 0)
	out.MaxPerSubject = max(c.MaxMsgsPerSubject, 0)
	if c.Retention == jetstream.WorkQueuePolicy {
		out.Retention = topology.WorkQueue
	}
	if c.Storage == jetstream.MemoryStorage {
		out.Storage = topology.Memory
	}
	return out, true, nil
}

// CreateStream makes a stream, for topology.
func (b *Bus) CreateStream(ctx context.Context, s topology.Stream) error {
	c := jetstream.StreamConfig{
		Name: s.Name, Subjects: s.Subjects, Replicas: s.Replicas, MaxAge: s.MaxAge,
		MaxBytes: -1, Discard: jetstream.DiscardNew, AllowDirect: s.Direct,
	}
	if s.MaxBytes > 0 {
		c.MaxBytes = s.MaxBytes
	}
	if s.Retention == topology.WorkQueue {
		c.Retention = jetstream.WorkQueuePolicy
	}
	if s.Storage == topology.Memory {
		c.Storage = jetstream.MemoryStorage
	}
	if s.DropOld {
		c.Discard = jetstream.DiscardOld
	}
	if s.MaxPerSubject > 0 {
		c.MaxMsgsPerSubject = s.MaxPerSubject
		c.DiscardNewPerSubject = true
	}
	watched, stop := b.denials.watch(ctx, "$JS.API.STREAM.CREATE."+s.Name)
	defer stop()
	_, err := b.js.CreateStream(watched, c)
	err = ended(watched, err)
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return nil // another process was faster
	}
	return adminError(err)
}

// Consumer looks a durable consumer up, for topology.
func (b *Bus) Consumer(ctx context.Context, stream, name string) (topology.Consumer, bool, error) {
	watched, stop := b.denials.watch(ctx, "$JS.API.CONSUMER.INFO."+stream)
	defer stop()
	c, err := b.js.Consumer(watched, stream, name)
	err = ended(watched, err)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		return topology.Consumer{}, false, nil
	case err != nil:
		return topology.Consumer{}, false, adminError(err)
	}
	cfg := c.CachedInfo().Config
	return topology.Consumer{
		Stream: stream, Name: cfg.Durable, Filter: cfg.FilterSubject,
		AckWait: cfg.AckWait, MaxDeliver: cfg.MaxDeliver, MaxAckPending: cfg.MaxAckPending,
	}, true, nil
}

// CreateConsumer makes a durable pull consumer, for topology.
func (b *Bus) CreateConsumer(ctx context.Context, c topology.Consumer) error {
	watched, stop := b.denials.watch(ctx, "$JS.API.CONSUMER.CREATE."+c.Stream)
	defer stop()
	_, err := b.js.CreateConsumer(watched, c.Stream, jetstream.ConsumerConfig{
		Durable: c.Name, FilterSubject: c.Filter, AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: c.AckWait, MaxDeliver: c.MaxDeliver, MaxAckPending: c.MaxAckPending,
	})
	err = ended(watched, err)
	if errors.Is(err, jetstream.ErrConsumerExists) {
		return nil // another process was faster
	}
	return adminError(err)
}

func adminError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return fmt.Errorf("%w (walherd needs a nats-server with JetStream: start it with -js)", err)
	case unavailable(err):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}
