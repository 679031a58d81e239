// Package mem is a storage.Bucket in memory, for tests and demonstrations. It
// keeps every promise of the interface but durability: its objects end with
// the process. It fails only as the caller makes it fail (a bad name, a
// missing object, a reader's error, an ended context).
package mem

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/walherd/walherd/storage"
)

// Bucket holds objects in memory. Make one with New.
type Bucket struct {
	now func() time.Time

	mu      sync.RWMutex
	objects map[string]object
}

// object is never changed once it is in the map: readers share data.
type object struct {
	data     []byte
	modified time.Time
}

var _ storage.Bucket = (*Bucket)(nil)

// New makes an empty Bucket.
func New() *Bucket { return NewAt(time.Now) }

// NewAt makes an empty Bucket whose objects get the times that now tells.
func NewAt(now func() time.Time) *Bucket {
	return &Bucket{now: now, objects: make(map[string]object)}
}

// Put implements storage.Bucket.
func (b *Bucket) Put(ctx context.Context, name string, r io.Reader, opt storage.PutOptions) (storage.Info, error) {
	if err := storage.CheckName(name); err != nil {
		return storage.Info{}, err
	}
	data, err := io.ReadAll(&contextReader{ctx: ctx, r: r})
	if err != nil {
		return storage.Info{}, fmt.Errorf("put object %s: %w", name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return storage.Info{}, fmt.Errorf("put object %s: %w", name, err)
	}
	if _, ok := b.objects[name]; ok && opt.IfAbsent {
		return storage.Info{}, fmt.Errorf("put object %s: %w", name, storage.ErrExist)
	}
	o := object{data: data, modified: b.now()}
	b.objects[name] = o
	return o.info(name), nil
}

// Open implements storage.Bucket.
func (b *Bucket) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	o, err := b.get(ctx, "open", name)
	if err != nil {
		return nil, err
	}
	n, err := rng.Cut(int64(len(o.data)))
	if err != nil {
		return nil, fmt.Errorf("open object %s: %w", name, err)
	}
	return &body{
		contextReader: contextReader{ctx: ctx, r: bytes.NewReader(o.data[rng.Offset : rng.Offset+n])},
		info:          o.info(name),
	}, nil
}

// Stat implements storage.Bucket.
func (b *Bucket) Stat(ctx context.Context, name string) (storage.Info, error) {
	o, err := b.get(ctx, "stat", name)
	if err != nil {
		return storage.Info{}, err
	}
	return o.info(name), nil
}

func (b *Bucket) get(ctx context.Context, verb, name string) (object, error) {
	if err := storage.CheckName(name); err != nil {
		return object{}, err
	}
	if err := ctx.Err(); err != nil {
		return object{}, fmt.Errorf("%s object %s: %w", verb, name, err)
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	o, ok := b.objects[name]
	if !ok {
		return object{}, fmt.Errorf("%s object %s: %w", verb, name, storage.ErrNotExist)
	}
	return o, nil
}

// List implements storage.Bucket. It takes the names at its start; an object
// deleted since is left out.
func (b *Bucket) List(ctx context.Context, prefix string, opt storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		var lastDir string
		for _, name := range b.names(prefix) {
			if err := ctx.Err(); err != nil {
				yield(storage.Info{}, fmt.Errorf("list objects %s*: %w", prefix, err))
				return
			}
			if i := strings.IndexByte(name[len(prefix):], '/'); opt.Shallow && i >= 0 {
				dir := name[:len(prefix)+i+1]
				if dir == lastDir || dir <= opt.After {
					continue
				}
				lastDir = dir
				if !yield(storage.Info{Name: dir, Dir: true}, nil) {
					return
				}
				continue
			}
			if name <= opt.After {
				continue
			}
			b.mu.RLock()
			o, ok := b.objects[name]
			b.mu.RUnlock()
			if ok && !yield(o.info(name), nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(storage.Info{}, fmt.Errorf("list objects %s*: %w", prefix, err))
		}
	}
}

func (b *Bucket) names(prefix string) []string {
	b.mu.RLock()
	defer b.mu.RUnlock()
	var names []string
	for name := range b.objects {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Delete implements storage.Bucket.
func (b *Bucket) Delete(ctx context.Context, names ...string) error {
	if err := storage.CheckNames(names); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("delete objects: %w", err)
	}
	for _, name := range names {
		delete(b.objects, name)
	}
	return nil
}

func (o object) info(name string) storage.Info {
	return storage.Info{Name: name, Size: int64(len(o.data)), Modified: o.modified}
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

type body struct {
	contextReader
	info   storage.Info
	closed bool
}

func (b *body) Info() (storage.Info, bool) { return b.info, true }

func (b *body) Read(p []byte) (int, error) {
	if b.closed {
		return 0, fmt.Errorf("read object %s: %w", b.info.Name, os.ErrClosed)
	}
	return b.contextReader.Read(p)
}

func (b *body) Close() error {
	b.closed = true
	return nil
}
