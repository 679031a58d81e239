package azure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"

	"github.com/walherd/walherd/storage"
)

// resumeProgress is how many bytes reset the count of resumptions, as in
// storage/retry.
const resumeProgress = 1 << 20

// Open implements storage.Bucket. The body is a storage.Describer. A blob that
// is replaced while its body breaks ends the body with storage.ErrPermanent.
func (b *Bucket) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	key, err := b.key(name)
	if err != nil {
		return nil, err
	}
	if err := rng.Check(); err != nil {
		return nil, fmt.Errorf("open %s: %w", b.where(key), err)
	}
	outer := ctx
	if err := outer.Err(); err != nil {
		return nil, b.explain(outer, "open", key, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &stream{b: b, ctx: ctx, key: key, at: rng.Offset, resumes: b.opt.Resumes}
	got, err := s.get(rng.Length)
	if err == nil {
		var left int64
		if left, err = rng.Cut(got.size); err == nil {
			s.etag, s.size, s.left, s.conn = got.etag, got.size, left, got.conn
			return &body{ctx: outer, cancel: cancel, where: b.where(key), info: infoOf(name, got.size, got.modified), src: s}, nil
		}
		got.conn.Close()
	}
	cancel()
	if errors.Is(err, storage.ErrRange) {
		return nil, fmt.Errorf("open %s: %w", b.where(key), err)
	}
	return nil, b.explain(outer, "open", key, err)
}

// body is what a caller of Open reads.
type body struct {
	ctx    context.Context // the caller's
	cancel context.CancelFunc
	where  string
	info   storage.Info
	src    *stream
	err    error // the end
	closed atomic.Bool
}

// Info implements storage.Describer.
func (d *body) Info() (storage.Info, bool) { return d.info, true }

func (d *body) Read(p []byte) (int, error) {
	if d.closed.Load() {
		return 0, d.isClosed()
	}
	if err := d.ctx.Err(); err != nil {
		return 0, fmt.Errorf("read %s: %w", d.where, err)
	}
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.src.Read(p)
	switch {
	case err == nil:
		return n, nil
	case d.ctx.Err() != nil:
		d.err = fmt.Errorf("read %s: %w", d.where, d.ctx.Err())
	case d.closed.Load():
		d.err = d.isClosed()
	case err != io.EOF:
		d.err = fmt.Errorf("read %s, %d bytes before its end: %w: %w", d.where, d.src.left, io.ErrUnexpectedEOF, err)
	default:
		d.err = io.EOF
	}
	return n, d.err
}

func (d *body) isClosed() error { return fmt.Errorf("read %s: %w", d.where, errClosed) }

// Close ends the body, also while a Read waits.
func (d *body) Close() error {
	d.closed.Store(true)
	d.cancel()
	d.src.close()
	return nil
}

var errClosed = errors.New("the body is closed")

// stream reads a part of one version of a blob over as many connections as it
// takes. One goroutine reads; close may come from another.
type stream struct {
	b    *Bucket
	ctx  context.Context
	key  string
	etag azcore.ETag
	size int64 // of the whole blob
	at   int64 // offset of the next byte
	left int64

	resumes int   // left
	failed  int   // times in a row
	since   int64 // bytes since the last failure

	mu     sync.Mutex
	conn   io.ReadCloser
	closed bool
}

// answer is what a request for a blob told.
type answer struct {
	conn     io.ReadCloser
	size     int64 // of the whole blob
	modified *time.Time
	etag     azcore.ETag
}

// get asks for length bytes from s.at on; 0 is to the end.
func (s *stream) get(length int64) (answer, error) {
	opt := &blob.DownloadStreamOptions{}
	if length > math.MaxInt64-s.at {
		length = 0
	}
	opt.Range = blob.HTTPRange{Offset: s.at, Count: length}
	if s.etag != "" {
		opt.AccessConditions = &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: &s.etag}}
	}
	out, err := s.b.client.NewBlobClient(s.key).DownloadStream((&call{streams: true}).with(s.ctx, s.b), opt)
	if status(err) == http.StatusRequestedRangeNotSatisfiable {
		return s.behind(err)
	}
	if err != nil {
		return answer{}, err
	}
	a := answer{conn: out.Body, modified: out.LastModified, etag: value(out.ETag)}
	if err := a.measure(out.ContentLength, out.ContentRange, s.at, s.at > 0 || length > 0); err != nil {
		a.conn.Close()
		return answer{}, err
	}
	return a, nil
}

// measure holds the answer's numbers against one another and the request.
func (a *answer) measure(told *int64, span *string, at int64, part bool) error {
	switch {
	case a.etag == "":
		return errors.New("the store does not tell the blob's ETag")
	case told == nil || *told < 0:
		return errors.New("the store does not tell the blob's length")
	case !part:
		a.size = *told
		return nil
	case span == nil:
		return fmt.Errorf("%w: the store ignores that only a range was asked for: is there a proxy that drops the Range header?", storage.ErrPermanent)
	}
	var from, to int64
	if _, err := fmt.Sscanf(*span, "bytes %d-%d/%d", &from, &to, &a.size); err != nil {
		return fmt.Errorf("the store answers with the content range %q", *span)
	}
	// A range that starts at the end is refused by Azure, and empty for
	// Azurite.
	if from != at || *told != to-from+1 || to >= a.size || to < from && from != a.size {
		return fmt.Errorf("asked for the bytes from %d on, the store answers with range %q and %d bytes", at, *span, *told)
	}
	return nil
}

// behind answers a range that starts at the blob's end, which Azure refuses,
// or behind it.
func (s *stream) behind(cause error) (answer, error) {
	h, err := s.b.client.NewBlobClient(s.key).GetProperties(s.ctx, nil)
	if err != nil {
		return answer{}, err
	}
	if s.etag != "" && s.etag != value(h.ETag) {
		return answer{}, errReplaced
	}
	size := value(h.ContentLength)
	if s.at < size {
		return answer{}, fmt.Errorf("the blob grew while it was opened (%s)", plain(cause))
	}
	return answer{conn: http.NoBody, size: size, modified: h.LastModified, etag: value(h.ETag)}, nil
}

var errReplaced = fmt.Errorf("the blob was replaced while it was read: %w", storage.ErrPermanent)

func (s *stream) Read(p []byte) (int, error) {
	for {
		s.mu.Lock()
		c, closed := s.conn, s.closed
		s.mu.Unlock()
		if closed {
			return 0, errClosed
		}
		if s.left == 0 {
			return 0, io.EOF
		}
		n, err := c.Read(p[:min(int64(len(p)), s.left)])
		s.at += int64(n)
		s.left -= int64(n)
		s.since += int64(n)
		if n > 0 || err == nil {
			return n, nil // an error comes again, or is of no matter
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err := s.resume(err); err != nil {
			return 0, err
		}
	}
}

// resume goes on behind the last byte read, over another connection.
func (s *stream) resume(cause error) error {
	s.replace(nil)
	if s.since >= resumeProgress {
		s.resumes, s.failed = s.b.opt.Resumes, 0
	}
	s.since = 0
	for {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if s.resumes <= 0 {
			return errors.New(plain(cause))
		}
		s.resumes--
		s.failed++
		if err := sleep(s.ctx, pause(s.failed, s.b.opt.RetryDelay, s.b.opt.MaxRetryDelay)); err != nil {
			return err
		}
		got, err := s.get(s.left)
		if status(err) == http.StatusPreconditionFailed || notFound(err) {
			return errReplaced
		}
		if err != nil {
			if s.b.wayOut(err) != "" || errors.Is(err, storage.ErrPermanent) {
				return s.b.explain(s.ctx, "read", s.key, err)
			}
			cause = err
			continue
		}
		if got.size != s.size {
			got.conn.Close()
			return fmt.Errorf("the store told %d bytes and now tells %d of the same blob: %w", s.size, got.size, storage.ErrPermanent)
		}
		if !s.replace(got.conn) {
			return errClosed
		}
		return nil
	}
}

// replace closes the present connection and sets the next; false when the
// stream is closed.
func (s *stream) replace(c io.ReadCloser) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close() // broken already
	}
	s.conn = c
	if s.closed && c != nil {
		c.Close()
		s.conn = nil
	}
	return !s.closed
}

func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.conn != nil {
		// What it says is of no matter: nothing more is wanted of it.
		s.conn.Close()
		s.conn = nil
	}
}

// pause before try n+1: shortest x 2^(n-1) up to longest, less up to a half
// by chance.
func pause(n int, shortest, longest time.Duration) time.Duration {
	d := longest
	if n = max(n, 1) - 1; n < 32 && shortest<<n > 0 && shortest<<n < longest {
		d = shortest << n
	}
	return d/2 + rand.N(d/2+1)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
