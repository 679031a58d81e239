package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/pkg/sftp"

	"github.com/walherd/walherd/storage"
)

// What a body holds in memory at most: ahead chunks, each read with concurrent
// requests of 32 KiB. Together they fill the 2 MiB SSH lets a server send
// without being asked for more.
const (
	chunkSize = 256 << 10
	ahead     = 8
)

// Open implements storage.Bucket. The body is a storage.Describer.
func (b *Bucket) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	if err := storage.CheckName(name); err != nil {
		return nil, err
	}
	if err := rng.Check(); err != nil {
		return nil, fmt.Errorf("open %s: %w", b.place.url(name), err)
	}
	d, err := do(ctx, b, func(l *link) (*body, error) {
		f, err := l.files.Open(b.place.at(name))
		if err != nil {
			return nil, b.absent(l, name, err)
		}
		d, err := b.newBody(ctx, l, f, name, rng)
		if err != nil {
			f.Close()
			return nil, err
		}
		l.hold()
		return d, nil
	}, func(d *body) { d.Close() })
	if err != nil {
		return nil, b.explain(ctx, "open", name, err)
	}
	return d, nil
}

func (b *Bucket) newBody(ctx context.Context, l *link, f *sftp.File, name string, rng storage.Range) (*body, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || isTemp(name) {
		return nil, storage.ErrNotExist
	}
	left, err := rng.Cut(st.Size())
	if err != nil {
		return nil, err
	}
	return &body{
		b: b, ctx: ctx, link: l, file: f,
		info:  storage.Info{Name: name, Size: st.Size(), Modified: st.ModTime()},
		fetch: rng.Offset, end: rng.Offset + left, closed: make(chan struct{}),
	}, nil
}

// body reads a file up to the length it had when it was opened, ahead of its
// reader: by one chunk at first, by one more with each that was read, since
// many readers stop after a header.
type body struct {
	b    *Bucket
	ctx  context.Context
	link *link
	file *sftp.File
	info storage.Info

	fetch, end int64 // what is still to be asked for
	depth      int
	queue      []*chunk
	rest       []byte // of queue[0], once it is there
	err        error

	once   sync.Once
	closed chan struct{}
}

// chunk is a part of a file under way. Its reader has the buffer once done is
// closed.
type chunk struct {
	buf  *[chunkSize]byte
	n    int
	err  error
	done chan struct{}
}

// Info implements storage.Describer.
func (d *body) Info() (storage.Info, bool) { return d.info, true }

func (d *body) Read(p []byte) (int, error) {
	select {
	case <-d.closed:
		return 0, fmt.Errorf("read %s: the body is closed", d.b.place.url(d.info.Name))
	default:
	}
	if err := d.ctx.Err(); err != nil {
		return 0, d.b.explain(d.ctx, "read", d.info.Name, err)
	}
	if d.err != nil || len(p) == 0 {
		return 0, d.err
	}
	if len(d.rest) == 0 {
		if d.err = d.next(); d.err != nil {
			return 0, d.err
		}
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	if len(d.rest) == 0 {
		d.b.chunks.Put(d.queue[0].buf)
		d.queue = d.queue[1:]
	}
	return n, nil
}

// next waits for a chunk and asks for those behind it.
func (d *body) next() error {
	d.depth = min(d.depth+1, ahead)
	for len(d.queue) < d.depth && d.fetch < d.end {
		c := &chunk{done: make(chan struct{})}
		c.buf, _ = d.b.chunks.Get().(*[chunkSize]byte)
		if c.buf == nil {
			c.buf = new([chunkSize]byte)
		}
		want := int(min(chunkSize, d.end-d.fetch))
		go c.fill(d.file, d.fetch, want)
		d.fetch += int64(want)
		d.queue = append(d.queue, c)
	}
	if len(d.queue) == 0 {
		return io.EOF
	}
	c := d.queue[0]
	select {
	case <-c.done:
	case <-d.ctx.Done():
		return d.b.explain(d.ctx, "read", d.info.Name, d.ctx.Err())
	case <-d.closed:
		return fmt.Errorf("read %s: the body is closed", d.b.place.url(d.info.Name))
	}
	d.rest = c.buf[:c.n]
	if c.n == 0 {
		return d.ended(c.err)
	}
	if c.err != nil { // after the bytes before it
		d.queue = []*chunk{c, {err: c.err, done: c.done}}
	}
	return nil
}

// ended is the error of a body that ends early.
func (d *body) ended(err error) error {
	if err == io.EOF && d.link.alive() {
		return fmt.Errorf("read %s: the file was cut short: %w", d.b.place.url(d.info.Name), io.ErrUnexpectedEOF)
	}
	err = d.b.explain(d.ctx, "read", d.info.Name, err)
	if errors.Is(err, storage.ErrPermanent) || d.ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w: %w", err, io.ErrUnexpectedEOF)
}

// fill reads want bytes from offset. A short answer is no end of the file: some
// servers send less than was asked for.
func (c *chunk) fill(f *sftp.File, offset int64, want int) {
	defer close(c.done)
	for c.n < want {
		n, err := f.ReadAt(c.buf[c.n:want], offset+int64(c.n))
		c.n += n
		if err == io.EOF && n > 0 {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrNoProgress
		}
		if err != nil {
			c.err = err
			return
		}
	}
}

// Close ends the body, also while a Read waits.
func (d *body) Close() error {
	d.once.Do(func() {
		close(d.closed)
		// The answer tells nothing about what was read.
		go func() {
			defer d.link.release()
			d.file.Close()
		}()
	})
	return nil
}
