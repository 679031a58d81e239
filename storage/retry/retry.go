// Package retry is a storage.Bucket that tries again, with growing and
// randomized pauses, what another Bucket failed to do, and that continues a
// body or a listing where it broke.
//
// It gives up after Options.Tries tries, and at once on what another try
// cannot change: a missing or existing object, a bad name or range, a permanent
// error, an ended context. A Put is only tried again when its reader was not touched
// or can be sought back; otherwise the caller has to produce the bytes anew.
//
// It belongs around the other decorators: retry(limit(meter(store))).
package retry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/walherd/walherd/storage"
)

// Options tunes a Bucket. The zero value is ready for use.
type Options struct {
	// Tries is how often an operation is tried in all; 0 is 10. For a body
	// and a listing the count starts anew with each progress (of at least
	// 1 MiB of a body).
	Tries int
	// First is the pause before the second try, randomized by half up or
	// down; 0 is 200 ms. Each further pause is twice as long, up to Max.
	First time.Duration
	// Max is the longest pause (before randomizing); 0 is 15 s.
	Max time.Duration
	// Log gets a record at Info for each new try; nil is silence.
	Log *slog.Logger
	// Wait pauses, or returns the context's error; nil is the real clock.
	Wait func(ctx context.Context, d time.Duration) error
	// Notify hears of each new try before the pause; nil is nobody. It is
	// called by the goroutine that is waiting for the operation.
	Notify func(Event)
}

// Event is one failure that is followed by another try.
type Event struct {
	// Op is put, open, read, stat, list or delete.
	Op string
	// Name of the object, the prefix of a listing or the first name of a
	// deletion.
	Name string
	// Try that failed, counted from 1.
	Try int
	// Pause until the next one.
	Pause time.Duration
	Err   error
}

// Keys of the log attributes.
const (
	keyOp    = "op"
	keyName  = "object"
	keyTry   = "try"
	keyPause = "pause"
	keyErr   = "err"
)

// bodyProgress is how many bytes of a body reset the count of tries: a link
// that breaks every few gigabytes must not end a long download, one that
// carries a few bytes per try must.
const bodyProgress = 1 << 20

// Bucket retries. Make one with New.
type Bucket struct {
	b   storage.Bucket
	opt Options
}

var _ storage.Bucket = (*Bucket)(nil)

// New wraps b.
func New(b storage.Bucket, opt Options) *Bucket {
	if opt.Tries <= 0 {
		opt.Tries = 10
	}
	if opt.First <= 0 {
		opt.First = 200 * time.Millisecond
	}
	if opt.Max <= 0 {
		opt.Max = 15 * time.Second
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Wait == nil {
		opt.Wait = wait
	}
	return &Bucket{b: b, opt: opt}
}

// Unwrap is the Bucket inside, without the retries.
func (b *Bucket) Unwrap() storage.Bucket { return b.b }

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// final tells an error that another try cannot change.
func final(err error) bool {
	for _, target := range []error{
		storage.ErrNotExist, storage.ErrExist, storage.ErrName, storage.ErrRange, storage.ErrPermanent,
		context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// tries counts the tries of one operation.
type tries struct {
	b      *Bucket
	op     string
	name   string
	failed int
	pauses backoff.ExponentialBackOff
}

func (b *Bucket) tries(op, name string) *tries {
	t := &tries{b: b, op: op, name: name}
	t.reset()
	return t
}

// reset starts the count anew.
func (t *tries) reset() {
	t.failed = 0
	t.pauses = backoff.ExponentialBackOff{
		InitialInterval:     t.b.opt.First,
		RandomizationFactor: 0.5,
		Multiplier:          2,
		MaxInterval:         t.b.opt.Max,
	}
	t.pauses.Reset()
}

// again takes a failure and pauses: nil is another try, else the operation
// ends with the error.
func (t *tries) again(ctx context.Context, err error) error {
	t.failed++
	switch {
	case final(err):
		return err
	case ctx.Err() != nil:
		// Some clients hide the context's error behind one of the network.
		return fmt.Errorf("%w: %w", err, ctx.Err())
	case t.failed >= t.b.opt.Tries:
		return fmt.Errorf("gave up after %d tries: %w", t.failed, err)
	}
	e := Event{Op: t.op, Name: t.name, Try: t.failed, Pause: t.pauses.NextBackOff(), Err: err}
	t.b.opt.Log.LogAttrs(ctx, slog.LevelInfo, "storage operation failed, trying again",
		slog.String(keyOp, e.Op), slog.String(keyName, e.Name), slog.Int(keyTry, e.Try),
		slog.Duration(keyPause, e.Pause), slog.Any(keyErr, e.Err))
	if t.b.opt.Notify != nil {
		t.b.opt.Notify(e)
	}
	if waitErr := t.b.opt.Wait(ctx, e.Pause); waitErr != nil {
		return fmt.Errorf("%w: %w", err, waitErr)
	}
	return nil
}

// Put implements storage.Bucket.
//
// With IfAbsent, ErrExist after a failed try may mean that the failed try has
// stored the object and its answer was lost. The error then holds that
// failure as well; a caller that must know compares the content.
func (b *Bucket) Put(ctx context.Context, name string, r io.Reader, opt storage.PutOptions) (storage.Info, error) {
	rewind, touched := rewinder(r)
	if touched != nil {
		r = touched
	}
	t := b.tries("put", name)
	var before error
	for {
		info, err := b.b.Put(ctx, name, r, opt)
		if err == nil {
			return info, nil
		}
		if before != nil && errors.Is(err, storage.ErrExist) {
			return info, fmt.Errorf("%w (an earlier try may have stored it; it failed with: %w)", err, before)
		}
		if touched != nil && touched.touched {
			return info, err
		}
		if err := t.again(ctx, err); err != nil {
			return info, err
		}
		if rewind != nil {
			if seekErr := rewind(); seekErr != nil {
				return info, fmt.Errorf("%w: go back to the start of the content for another try: %w", err, seekErr)
			}
		}
		before = err
	}
}

// rewinder tells how to read r again from where it is now: by seeking, or
// else only as long as the returned reader was not touched. A pipe has a Seek
// that fails, so it is asked.
func rewinder(r io.Reader) (rewind func() error, t *touchReader) {
	if s, ok := r.(io.Seeker); ok {
		if at, err := s.Seek(0, io.SeekCurrent); err == nil {
			return func() error { _, err := s.Seek(at, io.SeekStart); return err }, nil
		}
	}
	return nil, &touchReader{r: r}
}

type touchReader struct {
	r       io.Reader
	touched bool
}

func (t *touchReader) Read(p []byte) (int, error) {
	t.touched = true
	return t.r.Read(p)
}

// Stat implements storage.Bucket.
func (b *Bucket) Stat(ctx context.Context, name string) (storage.Info, error) {
	t := b.tries("stat", name)
	for {
		info, err := b.b.Stat(ctx, name)
		if err == nil {
			return info, nil
		}
		if err := t.again(ctx, err); err != nil {
			return info, err
		}
	}
}

// Delete implements storage.Bucket.
func (b *Bucket) Delete(ctx context.Context, names ...string) error {
	first := ""
	if len(names) > 0 {
		first = names[0]
	}
	t := b.tries("delete", first)
	for {
		err := b.b.Delete(ctx, names...)
		if err == nil {
			return nil
		}
		if err := t.again(ctx, err); err != nil {
			return err
		}
	}
}

// List implements storage.Bucket. A listing that breaks goes on behind the
// last name it yielded.
func (b *Bucket) List(ctx context.Context, prefix string, opt storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		t := b.tries("list", prefix)
		opt := opt
		for {
			var broken error
			for info, err := range b.b.List(ctx, prefix, opt) {
				if err != nil {
					broken = err
					break
				}
				if t.failed > 0 {
					t.reset()
				}
				opt.After = info.Name
				if !yield(info, nil) {
					return
				}
			}
			if broken == nil {
				return
			}
			if err := t.again(ctx, broken); err != nil {
				yield(storage.Info{}, err)
				return
			}
		}
	}
}

// Open implements storage.Bucket. A body that breaks is opened anew at the
// offset reached. When that fails for good, or the object has become another
// one meanwhile (where the store can tell, see storage.Describer), Read fails
// with io.ErrUnexpectedEOF and the cause.
func (b *Bucket) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	t := b.tries("open", name)
	for {
		r, err := b.b.Open(ctx, name, rng)
		if err == nil {
			bd := &body{b: b, ctx: ctx, cancel: cancel, name: name, rng: rng, r: r, tries: b.tries("read", name)}
			bd.info, bd.described = storage.InfoOf(r)
			return bd, nil
		}
		if err := t.again(ctx, err); err != nil {
			cancel()
			return nil, err
		}
	}
}

// body is an object's bytes across several opens. One goroutine reads; Close
// may come from another, also during a pause.
type body struct {
	b         *Bucket
	ctx       context.Context
	cancel    context.CancelFunc
	name      string
	rng       storage.Range // what was asked for
	info      storage.Info  // of the first open
	described bool

	tries  *tries
	offset int64 // bytes delivered
	since  int64 // of them since the last failure
	err    error // the end

	mu     sync.Mutex
	r      io.ReadCloser // nil between a failure and the next open
	closed bool
}

// Info implements storage.Describer.
func (b *body) Info() (storage.Info, bool) { return b.info, b.described }

func (b *body) Read(p []byte) (int, error) {
	for b.err == nil {
		r, err := b.current()
		if err != nil {
			b.err = err
			break
		}
		n, err := r.Read(p)
		b.offset += int64(n)
		b.since += int64(n)
		if err == io.EOF {
			b.err = io.EOF
			return n, b.err
		}
		if err != nil {
			b.resume(err)
			// What goes wrong with resuming is told by the next Read.
			if n == 0 && b.err == nil {
				continue
			}
			return n, nil
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
	return 0, b.err
}

func (b *body) current() (io.Reader, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, b.broken(errClosed)
	}
	return b.r, nil
}

var errClosed = errors.New("the body is closed")

// resume replaces the broken body, or sets b.err.
func (b *body) resume(cause error) {
	b.replace(nil)
	if b.since >= bodyProgress {
		b.tries.reset()
	}
	b.since = 0
	for {
		if err := b.tries.again(b.ctx, cause); err != nil {
			b.err = b.broken(err)
			return
		}
		rest := storage.Range{Offset: b.rng.Offset + b.offset}
		if b.rng.Length > 0 {
			rest.Length = b.rng.Length - b.offset
			if rest.Length <= 0 {
				b.err = io.EOF
				return
			}
		}
		r, err := b.b.b.Open(b.ctx, b.name, rest)
		if err != nil {
			cause = err
			continue
		}
		if now, ok := storage.InfoOf(r); ok && b.described && !same(now, b.info) {
			r.Close()
			b.err = b.broken(fmt.Errorf("the object was replaced while it was read (%d bytes of %s, now %d bytes of %s)",
				b.info.Size, b.info.Modified.UTC().Format(time.RFC3339Nano), now.Size, now.Modified.UTC().Format(time.RFC3339Nano)))
			return
		}
		b.replace(r)
		return
	}
}

func same(a, b storage.Info) bool { return a.Size == b.Size && a.Modified.Equal(b.Modified) }

// replace closes the present body and sets the next.
func (b *body) replace(r io.ReadCloser) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.r != nil {
		b.r.Close() // it is broken already
	}
	b.r = r
	if b.closed && r != nil {
		r.Close()
		b.r = nil
	}
}

// broken is the error of a body that ends before the object does.
func (b *body) broken(cause error) error {
	if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) || errors.Is(cause, errClosed) {
		return fmt.Errorf("read object %s at %d: %w", b.name, b.rng.Offset+b.offset, cause)
	}
	return fmt.Errorf("read object %s at %d: %w: %w", b.name, b.rng.Offset+b.offset, io.ErrUnexpectedEOF, cause)
}

// Close ends the body; a Read that pauses returns.
func (b *body) Close() error {
	b.cancel()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	if b.r == nil {
		return nil
	}
	err := b.r.Close()
	b.r = nil
	return err
}
