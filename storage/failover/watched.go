package failover

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"sync/atomic"

	"github.com/walherd/walherd/storage"
)

// watched is a member's Bucket that tells the Set of failures. It belongs
// around the retries: what reaches it is final.
type watched struct {
	b   storage.Bucket
	set *Set
	m   *member
}

var _ storage.Bucket = (*watched)(nil)

// Unwrap is the Bucket inside, whose failures nobody is told of.
func (w *watched) Unwrap() storage.Bucket { return w.b }

// report judges how an operation ended; nil is well. answers are the errors
// that are no failure of this operation.
func (w *watched) report(ctx context.Context, err error, answers ...error) {
	if !innocent(ctx, err, answers...) {
		w.set.doubt(ctx, w.m, err)
	}
}

// innocent tells what does not speak against the storage: an answer, a
// mistake of the caller, or that the caller has lost interest. That its time
// ran out does speak against the storage, though not for certain.
func innocent(ctx context.Context, err error, answers ...error) bool {
	if err == nil || errors.Is(err, storage.ErrName) || errors.Is(ctx.Err(), context.Canceled) {
		return true
	}
	return slices.ContainsFunc(answers, func(answer error) bool { return errors.Is(err, answer) })
}

// Put implements storage.Bucket.
func (w *watched) Put(ctx context.Context, name string, r io.Reader, opt storage.PutOptions) (storage.Info, error) {
	since := w.set.opt.Now().Round(0)
	source := &source{r: r}
	var from io.Reader = source
	if seeker, ok := r.(io.Seeker); ok {
		// A store or a retry below may want to go back.
		from = struct {
			io.Reader
			io.Seeker
		}{source, seeker}
	}
	info, err := w.b.Put(ctx, name, from, opt)
	switch {
	case source.failed.Load() || innocent(ctx, err, storage.ErrExist):
	case ctx.Err() != nil:
		// The reader may have been the slow one.
		w.set.doubt(ctx, w.m, err)
	default:
		w.set.learn(ctx, w.m, err, since)
	}
	return info, err
}

// source notices when a Put fails for its reader's sake.
type source struct {
	r      io.Reader
	failed atomic.Bool
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.failed.Store(true)
	}
	return n, err
}

// Open implements storage.Bucket.
func (w *watched) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	r, err := w.b.Open(ctx, name, rng)
	if err != nil {
		w.report(ctx, err, storage.ErrNotExist, storage.ErrRange)
		return nil, err
	}
	return &body{ctx: ctx, r: r, w: w}, nil
}

// body reports the first failure of a read, unless it was closed before.
type body struct {
	ctx    context.Context
	r      io.ReadCloser
	w      *watched
	silent atomic.Bool
}

func (b *body) Info() (storage.Info, bool) { return storage.InfoOf(b.r) }

func (b *body) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && err != io.EOF && !b.silent.Swap(true) {
		b.w.report(b.ctx, err, storage.ErrNotExist) // it was deleted meanwhile
	}
	return n, err
}

func (b *body) Close() error {
	b.silent.Store(true)
	return b.r.Close()
}

// Stat implements storage.Bucket.
func (w *watched) Stat(ctx context.Context, name string) (storage.Info, error) {
	info, err := w.b.Stat(ctx, name)
	w.report(ctx, err, storage.ErrNotExist)
	return info, err
}

// List implements storage.Bucket.
func (w *watched) List(ctx context.Context, prefix string, opt storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		for info, err := range w.b.List(ctx, prefix, opt) {
			w.report(ctx, err)
			if !yield(info, err) {
				return
			}
		}
	}
}

// Delete implements storage.Bucket.
func (w *watched) Delete(ctx context.Context, names ...string) error {
	err := w.b.Delete(ctx, names...)
	w.report(ctx, err)
	return err
}
