// Package limit is a storage.Bucket that moves no more bytes per second to
// and from another Bucket than it may. It slows reads and writes down and
// fails only when a context ends, or when its deadline would pass before the
// bytes may flow.
package limit

import (
	"context"
	"fmt"
	"io"
	"iter"

	"golang.org/x/time/rate"

	"github.com/walherd/walherd/storage"
)

// burst is how much may pass at once after a rest. Larger buffers are paid
// for in pieces.
const burst = 64 << 10

// PerSecond is a limiter of so many bytes per second, for one or for several
// Buckets that share it. nil, no limit, for 0 and less.
func PerSecond(bytes int64) *rate.Limiter {
	if bytes <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytes), burst)
}

// Bucket limits. Make one with New.
type Bucket struct {
	b        storage.Bucket
	up, down *rate.Limiter
}

var _ storage.Bucket = (*Bucket)(nil)

// New wraps b: up limits the bytes of Put, down those of Open's bodies; nil
// is no limit. They may be one and the same. A limiter's tokens are bytes,
// and its burst must be above 0.
func New(b storage.Bucket, up, down *rate.Limiter) *Bucket {
	return &Bucket{b: b, up: up, down: down}
}

// Unwrap is the Bucket inside, without the limits.
func (b *Bucket) Unwrap() storage.Bucket { return b.b }

// Put implements storage.Bucket.
func (b *Bucket) Put(ctx context.Context, name string, r io.Reader, opt storage.PutOptions) (storage.Info, error) {
	if b.up == nil {
		return b.b.Put(ctx, name, r, opt)
	}
	limited := &reader{ctx: ctx, r: r, limiter: b.up}
	if s, ok := r.(io.Seeker); ok {
		// A store or a retry below may want to go back.
		return b.b.Put(ctx, name, struct {
			io.Reader
			io.Seeker
		}{limited, s}, opt)
	}
	return b.b.Put(ctx, name, limited, opt)
}

// Open implements storage.Bucket.
func (b *Bucket) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	r, err := b.b.Open(ctx, name, rng)
	if err != nil || b.down == nil {
		return r, err
	}
	return &body{reader: reader{ctx: ctx, r: r, limiter: b.down}, body: r}, nil
}

// Stat implements storage.Bucket.
func (b *Bucket) Stat(ctx context.Context, name string) (storage.Info, error) {
	return b.b.Stat(ctx, name)
}

// List implements storage.Bucket.
func (b *Bucket) List(ctx context.Context, prefix string, opt storage.ListOptions) iter.Seq2[storage.Info, error] {
	return b.b.List(ctx, prefix, opt)
}

// Delete implements storage.Bucket.
func (b *Bucket) Delete(ctx context.Context, names ...string) error {
	return b.b.Delete(ctx, names...)
}

// reader pays for what it has read before it hands it on.
type reader struct {
	ctx     context.Context
	r       io.Reader
	limiter *rate.Limiter
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if payErr := r.pay(n); payErr != nil {
		// The bytes are read and lost to the caller's count, so the read
		// must fail whatever it brought.
		return 0, payErr
	}
	return n, err
}

// pay takes n tokens in pieces a limiter can give.
func (r *reader) pay(n int) error {
	for n > 0 {
		piece := min(n, max(r.limiter.Burst(), 1))
		if err := r.limiter.WaitN(r.ctx, piece); err != nil {
			if r.ctx.Err() == nil {
				// WaitN refuses at once when the deadline would pass
				// while it waits, with an error of its own.
				err = fmt.Errorf("%w (%w)", context.DeadlineExceeded, err)
			}
			return fmt.Errorf("wait for the rate limit: %w", err)
		}
		n -= piece
	}
	return nil
}

type body struct {
	reader
	body io.ReadCloser
}

func (b *body) Info() (storage.Info, bool) { return storage.InfoOf(b.body) }

func (b *body) Close() error { return b.body.Close() }
