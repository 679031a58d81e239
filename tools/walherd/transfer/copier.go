package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/walherd/walherd/storage"
)

// ErrConflict marks an object that the target holds with other content.
var ErrConflict = errors.New("the target holds another object of this name")

// Object is one object of the source to copy.
type Object struct {
	Name string
	// Size in bytes, as listed. A body of another length is not stored.
	Size int64
	// Present tells that the target holds an object of this name. It may be
	// what an earlier run left: equal bytes count as copied.
	Present bool
}

// Stage is a writer that ends well or not at all: a compressor or a sealer.
type Stage interface {
	io.WriteCloser
	// Abort gives up, so that what was written so far reads as damaged.
	Abort()
}

// Copier copies objects from one storage to another. From, To and Log are
// required.
type Copier struct {
	From, To storage.Bucket
	Log      *slog.Logger

	// Concurrency is how many objects are under way; 0 is 8.
	Concurrency int
	// Overwrite replaces objects of the target. Without it an object that
	// appears there meanwhile is ErrConflict, unless its bytes are equal.
	Overwrite bool
	// FailFast starts no further object after the first failure.
	FailFast bool
	// Recode, if not nil, changes the bytes on their way. Closing its reader
	// does not close body.
	Recode func(ctx context.Context, name string, body io.Reader) (io.ReadCloser, error)

	// AppearChecks is how often the target is asked for a new object before
	// it counts as lost, AppearInterval the pause between. 0 does not ask.
	AppearChecks   int
	AppearInterval time.Duration
}

// Result counts what a run did.
type Result struct {
	// Copied objects, and their Bytes in the source. Equal bytes found in
	// the target count as copied.
	Copied int
	Bytes  int64
	// Skipped objects stay where they are.
	Skipped int
	// Failed objects; First is the error of one of them. Each was logged.
	Failed int
	First  error
}

// Err sums the failures up; nil if there are none.
func (r Result) Err() error {
	if r.Failed == 0 {
		return nil
	}
	return fmt.Errorf("finished with %d errors; the first: %w", r.Failed, r.First)
}

func (r *Result) add(o Result) {
	r.Copied += o.Copied
	r.Bytes += o.Bytes
	r.Skipped += o.Skipped
	r.Failed += o.Failed
	if r.First == nil {
		r.First = o.First
	}
}

func (r *Result) fail(err error) {
	r.Failed++
	if r.First == nil {
		r.First = err
	}
}

// Copy copies the objects side by side, in any order; then, if not nil, is
// called for each that is in the target.
func (c *Copier) Copy(ctx context.Context, objects []Object, then func(context.Context, Object) error) Result {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var (
		mu  sync.Mutex
		res Result
		g   errgroup.Group
	)
	limit := c.Concurrency
	if limit <= 0 {
		limit = 8
	}
	g.SetLimit(limit)
	for _, o := range objects {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			err := c.one(ctx, o)
			if err == nil && then != nil {
				err = then(ctx, o)
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				res.Copied++
				res.Bytes += o.Size
				return nil
			}
			// What FailFast interrupts is no failure of its own.
			if res.Failed > 0 && c.FailFast && errors.Is(err, context.Canceled) {
				return nil
			}
			err = fmt.Errorf("copy %s: %w", o.Name, err)
			c.Log.Error(err.Error())
			res.fail(err)
			if c.FailFast {
				stop()
			}
			return nil
		})
	}
	_ = g.Wait() // failures are counted in res
	if err := ctx.Err(); err != nil && res.Failed == 0 {
		res.fail(err)
	}
	return res
}

// one brings one object into the target.
func (c *Copier) one(ctx context.Context, o Object) error {
	if o.Present {
		same, err := c.same(ctx, o.Name)
		if err != nil || same {
			return err
		}
	}
	body := &content{size: o.Size, open: func() (io.ReadCloser, error) { return c.read(ctx, o) }}
	if c.Recode != nil {
		body.size = -1 // read checks the stored bytes
	}
	defer body.Close()
	info, err := c.To.Put(ctx, o.Name, body, storage.PutOptions{IfAbsent: !c.Overwrite && !o.Present})
	if errors.Is(err, storage.ErrExist) {
		// Somebody else's, or our own whose answer was lost on the way.
		same, cmpErr := c.same(ctx, o.Name)
		switch {
		case cmpErr != nil:
			return fmt.Errorf("%w; compare: %w", err, cmpErr)
		case !same:
			return fmt.Errorf("%w: %w", ErrConflict, err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	return c.appear(ctx, info)
}

// read opens an object of the source, with its length checked.
func (c *Copier) read(ctx context.Context, o Object) (io.ReadCloser, error) {
	body, err := c.From.Open(ctx, o.Name, storage.Range{})
	if err != nil || c.Recode == nil {
		return body, err
	}
	sized := &content{size: o.Size, open: func() (io.ReadCloser, error) { return body, nil }}
	plain, err := c.Recode(ctx, o.Name, sized)
	if err != nil {
		return nil, errors.Join(err, body.Close())
	}
	return &chained{ReadCloser: plain, below: body}, nil
}

// appear waits until the target shows what was put.
func (c *Copier) appear(ctx context.Context, put storage.Info) error {
	var last error
	for i := range c.AppearChecks {
		if i > 0 {
			t := time.NewTimer(c.AppearInterval)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return ctx.Err()
			}
		}
		info, err := c.To.Stat(ctx, put.Name)
		switch {
		case err == nil && info.Size == put.Size:
			return nil
		case err == nil:
			last = fmt.Errorf("the target shows %d bytes, %d were put", info.Size, put.Size)
		case !errors.Is(err, storage.ErrNotExist):
			return err
		default:
			last = err
		}
	}
	if last != nil {
		return fmt.Errorf("stored, but not to be seen in the target after %d checks: %w", c.AppearChecks, last)
	}
	return nil
}

// same compares the bytes of both storages. With Recode they are never known
// to be the same: sealing twice gives two results.
func (c *Copier) same(ctx context.Context, name string) (bool, error) {
	if c.Recode != nil {
		return false, nil
	}
	a, err := c.From.Open(ctx, name, storage.Range{})
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := c.To.Open(ctx, name, storage.Range{})
	if errors.Is(err, storage.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer b.Close()
	return sameBytes(a, b)
}

const compareChunk = 64 << 10

func sameBytes(a, b io.Reader) (bool, error) {
	pa, pb := make([]byte, compareChunk), make([]byte, compareChunk)
	for {
		na, endA, errA := fill(a, pa)
		nb, endB, errB := fill(b, pb)
		if err := errors.Join(errA, errB); err != nil {
			return false, err
		}
		if !bytes.Equal(pa[:na], pb[:nb]) {
			return false, nil
		}
		if endA || endB {
			return endA == endB, nil
		}
	}
}

// fill is io.ReadFull, which would take a body that broke for one that ended:
// both are io.ErrUnexpectedEOF there.
func fill(r io.Reader, p []byte) (n int, end bool, err error) {
	for n < len(p) {
		k, err := r.Read(p[n:])
		n += k
		if err == io.EOF {
			return n, true, nil
		}
		if err != nil {
			return n, false, err
		}
	}
	return n, false, nil
}

// content is a body that opens at its first Read and can go back to its start,
// so that a storage that tries again can do so without us. It fails where the
// body is not size bytes long (-1: unknown), so that no such object is stored.
type content struct {
	open func() (io.ReadCloser, error)
	size int64
	r    io.ReadCloser
	pos  int64
}

var errSeek = errors.New("only the start can be sought")

// Seek implements io.Seeker for the current position and the start.
func (c *content) Seek(offset int64, whence int) (int64, error) {
	switch {
	case offset == 0 && whence == io.SeekCurrent:
		return c.pos, nil
	case offset == 0 && whence == io.SeekStart:
		err := c.Close()
		c.pos = 0
		return 0, err
	}
	return 0, errSeek
}

func (c *content) Read(p []byte) (int, error) {
	if c.r == nil {
		r, err := c.open()
		if err != nil {
			return 0, err
		}
		c.r = r
	}
	n, err := c.r.Read(p)
	c.pos += int64(n)
	switch {
	case c.size < 0:
	case c.pos > c.size:
		return 0, fmt.Errorf("the source has more than the %d bytes it listed: it changed meanwhile, start again", c.size)
	case err == io.EOF && c.pos < c.size:
		return n, fmt.Errorf("the source ended after %d of %d bytes: %w", c.pos, c.size, io.ErrUnexpectedEOF)
	}
	return n, err
}

func (c *content) Close() error {
	if c.r == nil {
		return nil
	}
	r := c.r
	c.r = nil
	return r.Close()
}

// chained closes a stage and what is below it.
type chained struct {
	io.ReadCloser
	below io.Closer
}

func (c *chained) Close() error { return errors.Join(c.ReadCloser.Close(), c.below.Close()) }

// Through is what r yields after the stage that start puts before a writer. An
// error of r or of the stage is the reader's. The caller closes the reader,
// which ends its goroutine and waits for it; r is not closed, and a Read of it
// under way is waited for.
func Through(r io.Reader, start func(io.Writer) (Stage, error)) io.ReadCloser {
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(through(pw, r, start)) // nil is io.EOF
	}()
	return &piped{PipeReader: pr, done: done}
}

func through(w io.Writer, r io.Reader, start func(io.Writer) (Stage, error)) error {
	s, err := start(w)
	if err != nil {
		return err
	}
	if _, err := io.Copy(s, r); err != nil {
		// Half a source must not end as a well-formed object.
		s.Abort()
		return err
	}
	return s.Close()
}

type piped struct {
	*io.PipeReader
	done chan struct{}
}

func (p *piped) Close() error {
	err := p.PipeReader.Close()
	<-p.done
	return err
}
