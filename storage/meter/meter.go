// Package meter is a storage.Bucket that counts what is asked of another
// Bucket: requests, objects, bytes and errors per operation. It changes
// nothing and never fails by itself.
package meter

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync/atomic"

	"github.com/walherd/walherd/storage"
)

// Counts is what was counted for one operation.
type Counts struct {
	// Requests is how many calls were begun.
	Requests int64
	// Errors is how many calls (a Put or a body counts once) failed.
	// ErrNotExist and ErrExist are answers, not failures.
	Errors int64
	// Objects is how many entries List yielded, how many names Delete was
	// given; 0 otherwise.
	Objects int64
	// Bytes is how many bytes Put took from its readers, whether or not it
	// succeeded, and how many Open's bodies delivered; 0 otherwise.
	Bytes int64
}

// Snapshot is the counts of all operations since New. Each number is exact;
// those of calls that run at the moment may not fit one another yet.
type Snapshot struct {
	Put, Open, Stat, List, Delete Counts
}

// Bucket counts. Make one with New.
type Bucket struct {
	b                             storage.Bucket
	put, open, stat, list, delete counter
}

var _ storage.Bucket = (*Bucket)(nil)

// New wraps b.
func New(b storage.Bucket) *Bucket { return &Bucket{b: b} }

// Unwrap is the Bucket inside, uncounted.
func (b *Bucket) Unwrap() storage.Bucket { return b.b }

// Snapshot tells what was counted so far.
func (b *Bucket) Snapshot() Snapshot {
	return Snapshot{
		Put: b.put.counts(), Open: b.open.counts(), Stat: b.stat.counts(),
		List: b.list.counts(), Delete: b.delete.counts(),
	}
}

type counter struct {
	requests, errors, objects, bytes atomic.Int64
}

func (c *counter) counts() Counts {
	return Counts{
		Requests: c.requests.Load(), Errors: c.errors.Load(),
		Objects: c.objects.Load(), Bytes: c.bytes.Load(),
	}
}

func (c *counter) failed(err error) {
	if err != nil && !errors.Is(err, storage.ErrNotExist) && !errors.Is(err, storage.ErrExist) {
		c.errors.Add(1)
	}
}

// Put implements storage.Bucket.
func (b *Bucket) Put(ctx context.Context, name string, r io.Reader, opt storage.PutOptions) (storage.Info, error) {
	b.put.requests.Add(1)
	var counted io.Reader = &reader{r: r, bytes: &b.put.bytes}
	if s, ok := r.(io.Seeker); ok {
		// A store or a retry below may want to go back.
		counted = struct {
			io.Reader
			io.Seeker
		}{counted, s}
	}
	info, err := b.b.Put(ctx, name, counted, opt)
	b.put.failed(err)
	return info, err
}

// Open implements storage.Bucket.
func (b *Bucket) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	b.open.requests.Add(1)
	r, err := b.b.Open(ctx, name, rng)
	if err != nil {
		b.open.failed(err)
		return nil, err
	}
	return &body{r: r, c: &b.open}, nil
}

// Stat implements storage.Bucket.
func (b *Bucket) Stat(ctx context.Context, name string) (storage.Info, error) {
	b.stat.requests.Add(1)
	info, err := b.b.Stat(ctx, name)
	b.stat.failed(err)
	return info, err
}

// List implements storage.Bucket.
func (b *Bucket) List(ctx context.Context, prefix string, opt storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		b.list.requests.Add(1)
		for info, err := range b.b.List(ctx, prefix, opt) {
			if err != nil {
				b.list.failed(err)
			} else {
				b.list.objects.Add(1)
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// Delete implements storage.Bucket.
func (b *Bucket) Delete(ctx context.Context, names ...string) error {
	b.delete.requests.Add(1)
	b.delete.objects.Add(int64(len(names)))
	err := b.b.Delete(ctx, names...)
	b.delete.failed(err)
	return err
}

type reader struct {
	r     io.Reader
	bytes *atomic.Int64
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.bytes.Add(int64(n))
	return n, err
}

type body struct {
	r      io.ReadCloser
	c      *counter
	failed bool
}

func (b *body) Info() (storage.Info, bool) { return storage.InfoOf(b.r) }

func (b *body) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.c.bytes.Add(int64(n))
	if err != nil && err != io.EOF && !b.failed {
		b.failed = true
		b.c.failed(err)
	}
	return n, err
}

func (b *body) Close() error { return b.r.Close() }
