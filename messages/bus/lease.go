package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// LeaseBucket is the key-value bucket of leases.
const LeaseBucket = "walherd_lease"

// ErrHeld means that another process holds the lease.
var ErrHeld = errors.New("held by another process")

// ErrLost means that a lease is not this holder's any more.
var ErrLost = errors.New("lease lost")

// Lease is a right that one process at a time has, until it runs out unless
// renewed. Revision grows with every holder: a fencing token for what is done
// under the lease, since a holder that was asleep cannot know it lost it.
type Lease struct {
	Key      string
	Revision uint64

	b      *Bus
	holder string
	ttl    time.Duration
}

// LeaseTTL is how long a lease lasts without renewal. The broker's clock
// counts, and an election of its own takes up to 9 s.
const LeaseTTL = 45 * time.Second

// Acquire takes a lease, ErrHeld if somebody has it. key is made of subject
// tokens ("main.schedule"), holder is told to whoever asks. ttl 0 is LeaseTTL;
// the broker counts whole seconds.
func (b *Bus) Acquire(ctx context.Context, key, holder string, ttl time.Duration) (*Lease, error) {
	if ttl == 0 {
		ttl = LeaseTTL
	}
	kv, err := b.leases(ctx)
	if err != nil {
		return nil, fmt.Errorf("acquire lease %s: %w", key, err)
	}
	// Create is a compare-and-set by the stream's leader: reads may be served
	// by a replica that lags.
	rev, err := kv.Create(ctx, key, []byte(holder), jetstream.KeyTTL(ttl))
	switch {
	case errors.Is(err, jetstream.ErrKeyExists):
		return nil, fmt.Errorf("acquire lease %s: %w", key, ErrHeld)
	case err != nil:
		return nil, fmt.Errorf("acquire lease %s: %w", key, adminError(err))
	}
	return &Lease{Key: key, Revision: rev, b: b, holder: holder, ttl: ttl}, nil
}

// Holder tells who holds a lease now; "" nobody. It may lag a little.
func (b *Bus) Holder(ctx context.Context, key string) (string, error) {
	kv, err := b.leases(ctx)
	if err != nil {
		return "", err
	}
	e, err := kv.Get(ctx, key)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("look at lease %s: %w", key, adminError(err))
	}
	return string(e.Value()), nil
}

// leases opens the bucket, and makes it where it is missing.
func (b *Bus) leases(ctx context.Context) (jetstream.KeyValue, error) {
	if kv, ok := b.streams.Load(LeaseBucket); ok {
		return kv.(jetstream.KeyValue), nil
	}
	watched, stop := b.denials.watch(ctx, "$JS.API.STREAM.INFO.KV_"+LeaseBucket)
	defer stop()
	kv, err := b.js.KeyValue(watched, LeaseBucket)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", LeaseBucket, adminError(ended(watched, err)))
	}
	b.streams.Store(LeaseBucket, kv)
	return kv, nil
}

// CreateLeases makes the bucket of leases if it is missing, for topology.
func (b *Bus) CreateLeases(ctx context.Context, replicas int, inMemory bool) error {
	watched, stop := b.denials.watch(ctx, "$JS.API.STREAM.INFO.KV_"+LeaseBucket)
	defer stop()
	_, err := b.js.KeyValue(watched, LeaseBucket)
	if err == nil || !errors.Is(err, jetstream.ErrBucketNotFound) {
		return adminError(ended(watched, err))
	}
	store := jetstream.FileStorage
	if inMemory {
		store = jetstream.MemoryStorage
	}
	_, err = b.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: LeaseBucket, Description: "walherd: rights that one process at a time has", Storage: store, Replicas: replicas,
		// With more history a key whose time ran out is free again only
		// after the marker's time too.
		History: 1, LimitMarkerTTL: time.Second, MaxBytes: 1 << 20,
	})
	if errors.Is(err, jetstream.ErrBucketExists) {
		return nil // another process was faster
	}
	return adminError(err)
}

// Renew starts the lease's time anew; ErrLost when it is somebody else's, or
// ran out.
func (l *Lease) Renew(ctx context.Context) error {
	// The library's Update drops the time to live and would make the lease
	// last for ever.
	m := &nats.Msg{Subject: "$KV." + LeaseBucket + "." + l.Key, Data: []byte(l.holder), Header: nats.Header{
		jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(l.Revision, 10)},
		jetstream.MsgTTLHeader:              {l.ttl.String()},
	}}
	ack, err := l.b.js.PublishMsg(ctx, m)
	switch {
	case overtaken(err):
		return fmt.Errorf("renew lease %s: %w", l.Key, ErrLost)
	case err != nil:
		return fmt.Errorf("renew lease %s: %w", l.Key, adminError(err))
	}
	l.Revision = ack.Sequence
	return nil
}

// Release gives the lease up, if it is still this holder's.
func (l *Lease) Release(ctx context.Context) error {
	kv, err := l.b.leases(ctx)
	if err != nil {
		return fmt.Errorf("release lease %s: %w", l.Key, err)
	}
	err = kv.Delete(ctx, l.Key, jetstream.LastRevision(l.Revision))
	if overtaken(err) {
		return nil // it ran out, and is another's by now
	}
	if err != nil {
		return fmt.Errorf("release lease %s: %w", l.Key, adminError(err))
	}
	return nil
}

// overtaken tells a compare-and-set that somebody else won; a replicated
// stream has a code of its own for it.
func overtaken(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) &&
		(api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// Hold does work under the lease: it renews it at a third of its time, and
// ends work's context when the lease is lost or could not be renewed in time.
// The lease is released at the end.
func (l *Lease) Hold(ctx context.Context, work func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		t := time.NewTicker(l.ttl / 3)
		defer t.Stop()
		deadline := time.Now().Add(l.ttl)
		for {
			select {
			case <-done:
				return
			case <-t.C:
			}
			start := time.Now()
			try, stop := context.WithDeadline(ctx, deadline)
			err := l.Renew(try)
			stop()
			switch {
			case err == nil:
				deadline = start.Add(l.ttl)
			case errors.Is(err, ErrLost), time.Now().After(deadline):
				cancel(fmt.Errorf("%w: %w", ErrLost, err))
				return
			default:
				l.b.log.Warn("cannot renew a lease, trying again", "lease", l.Key, "error", err)
			}
		}
	}()
	err := work(ctx)
	close(done)
	<-renewed
	if cause := context.Cause(ctx); errors.Is(cause, ErrLost) {
		return errors.Join(err, cause)
	}
	clean, stop := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer stop()
	if rerr := l.Release(clean); rerr != nil {
		l.b.log.Warn("release a lease; it runs out by itself", "lease", l.Key, "error", rerr)
	}
	return err
}
