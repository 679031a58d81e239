package bus

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// LeaseBucket is the key-value bucket of leases.
const LeaseBucket = "walherd_lease"

// leaseSubject, and a key, is what a lease is stored under.
const leaseSubject = "$KV." + LeaseBucket + "."

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
	// token is this holding's own: holders of one name are told apart by it.
	token string
	ttl   time.Duration
}

// headerLease carries the token.
const headerLease = "Walherd-Lease"

// LeaseTTL is how long a lease lasts without renewal. The broker's clock
// counts, and an election of its own takes up to 9 s.
const LeaseTTL = 45 * time.Second

// Acquire takes a lease, ErrHeld if somebody has it. key is made of subject
// tokens ("main.schedule"), holder, not empty, is told to whoever asks. ttl 0 is LeaseTTL;
// the broker counts whole seconds.
func (b *Bus) Acquire(ctx context.Context, key, holder string, ttl time.Duration) (*Lease, error) {
	if ttl == 0 {
		ttl = LeaseTTL
	}
	if _, err := b.leases(ctx); err != nil {
		return nil, fmt.Errorf("acquire lease %s: %w", key, err)
	}
	// A compare-and-set by the stream's leader; a lease that was released left a
	// marker in its place.
	l := &Lease{Key: key, b: b, holder: holder, token: rand.Text(), ttl: ttl}
	err := l.put(ctx, 0)
	if overtaken(err) {
		var last word
		if last, err = b.lease(ctx, key); err == nil && last.holder != "" {
			return nil, fmt.Errorf("acquire lease %s: %w", key, ErrHeld)
		}
		if err == nil {
			err = l.put(ctx, last.rev)
		}
	}
	switch {
	case overtaken(err):
		return nil, fmt.Errorf("acquire lease %s: %w", key, ErrHeld)
	case err != nil:
		return nil, fmt.Errorf("acquire lease %s: %w", key, adminError(err))
	}
	return l, nil
}

// put writes the lease if the last word on it has the number rev. The library's
// Update drops the time to live and would make the lease last for ever.
func (l *Lease) put(ctx context.Context, rev uint64) error {
	m := &nats.Msg{Subject: leaseSubject + l.Key, Data: []byte(l.holder), Header: nats.Header{
		jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(rev, 10)},
		jetstream.MsgTTLHeader:              {l.ttl.String()},
		headerLease:                         {l.token},
	}}
	watched, stop := l.b.denials.watch(ctx, m.Subject)
	defer stop()
	ack, err := l.b.js.PublishMsg(watched, m)
	if err != nil {
		return ended(watched, err)
	}
	l.Revision = ack.Sequence
	return nil
}

// Holder tells who holds a lease now; "" nobody.
func (b *Bus) Holder(ctx context.Context, key string) (string, error) {
	if _, err := b.leases(ctx); err != nil {
		return "", err
	}
	last, err := b.lease(ctx, key)
	if err != nil {
		return "", fmt.Errorf("look at lease %s: %w", key, adminError(err))
	}
	return last.holder, nil
}

// word is the last word on a lease: holder is "" if nobody holds it, rev 0 if
// there is none.
type word struct {
	holder, token string
	rev           uint64
}

// lease reads the last word on a lease. The library would ask for the bare message (DIRECT.GET), which
// a broker sends wherever the asker wants: with the right to do that goes the
// right to publish anything as anybody.
func (b *Bus) lease(ctx context.Context, key string) (word, error) {
	ask, err := json.Marshal(map[string]string{"last_by_subj": leaseSubject + key})
	if err != nil {
		return word{}, err
	}
	subject := apiGet + "KV_" + LeaseBucket
	watched, stop := b.denials.watch(ctx, subject)
	defer stop()
	m, err := b.nc.RequestMsgWithContext(watched, &nats.Msg{Subject: subject, Data: ask})
	if err != nil {
		return word{}, ended(watched, err)
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Seq  uint64 `json:"seq"`
			Data []byte `json:"data"`
			Hdrs []byte `json:"hdrs"`
		} `json:"message"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return word{}, fmt.Errorf("unreadable answer: %w", err)
	}
	switch {
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return word{}, nil
	case answer.Error != nil:
		return word{}, answer.Error
	}
	// A marker (released, or run out) holds nothing; a holder has a name.
	out := word{holder: string(answer.Message.Data), rev: answer.Message.Seq}
	if len(answer.Message.Hdrs) > 0 {
		h, err := nats.DecodeHeadersMsg(answer.Message.Hdrs)
		if err != nil {
			return word{}, fmt.Errorf("unreadable answer: %w", err)
		}
		out.token = h.Get(headerLease)
	}
	return out, nil
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
	making, stop := b.denials.watch(ctx, "$JS.API.STREAM.CREATE.KV_"+LeaseBucket)
	defer stop()
	_, err = b.js.CreateKeyValue(making, jetstream.KeyValueConfig{
		Bucket: LeaseBucket, Description: "walherd: rights that one process at a time has", Storage: store, Replicas: replicas,
		// With more history a key whose time ran out is free again only
		// after the marker's time too.
		History: 1, LimitMarkerTTL: time.Second, MaxBytes: 1 << 20,
	})
	if errors.Is(err, jetstream.ErrBucketExists) {
		return nil // another process was faster
	}
	return adminError(ended(making, err))
}

// Renew starts the lease's time anew; ErrLost when it is somebody else's, or
// ran out.
func (l *Lease) Renew(ctx context.Context) error {
	err := l.put(ctx, l.Revision)
	if overtaken(err) {
		// By this holder itself, if the answer to its last word was lost.
		last, lerr := l.b.lease(ctx, l.Key)
		switch {
		case lerr != nil:
			err = lerr
		case last.holder != "" && last.token == l.token:
			err = l.put(ctx, last.rev)
		}
	}
	switch {
	case overtaken(err):
		return fmt.Errorf("renew lease %s: %w", l.Key, ErrLost)
	case err != nil:
		return fmt.Errorf("renew lease %s: %w", l.Key, adminError(err))
	}
	return nil
}

// Release gives the lease up, if it is still this holder's.
func (l *Lease) Release(ctx context.Context) error {
	kv, err := l.b.leases(ctx)
	if err != nil {
		return fmt.Errorf("release lease %s: %w", l.Key, err)
	}
	watched, stop := l.b.denials.watch(ctx, leaseSubject+l.Key)
	defer stop()
	err = ended(watched, kv.Delete(watched, l.Key, jetstream.LastRevision(l.Revision)))
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
	return l.hold(ctx, work, func(err error, overdue bool) error {
		if errors.Is(err, ErrLost) || overdue {
			return fmt.Errorf("%w: %w", ErrLost, err)
		}
		return nil
	})
}

// Keep is Hold for work that is better finished than safe from a second holder:
// it goes on while the broker is away, and takes a lease that ran out meanwhile
// anew. Only a lease that another has taken ends it.
func (l *Lease) Keep(ctx context.Context, work func(ctx context.Context) error) error {
	return l.hold(ctx, work, func(err error, _ bool) error {
		if !errors.Is(err, ErrLost) {
			return nil
		}
		again, err := l.b.Acquire(ctx, l.Key, l.holder, l.ttl)
		switch {
		case err == nil:
			l.Revision, l.token = again.Revision, again.token
		case errors.Is(err, ErrHeld):
			return fmt.Errorf("%w: %w", ErrLost, err)
		}
		return nil
	})
}

// hold renews while work runs; failed tells whether a failure to renew is its
// end. overdue is that the lease has run out by this host's clock.
func (l *Lease) hold(ctx context.Context, work func(ctx context.Context) error, failed func(err error, overdue bool) error) error {
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
			try, stop := context.WithTimeout(ctx, l.ttl/3)
			err := l.Renew(try)
			stop()
			if err == nil {
				deadline = start.Add(l.ttl)
				continue
			}
			if end := failed(err, time.Now().After(deadline)); end != nil {
				cancel(end)
				return
			}
			l.b.log.Warn("cannot renew a lease, trying again", "lease", l.Key, "error", err)
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
