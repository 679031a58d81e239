package swift

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	ncw "github.com/ncw/swift/v2"

	"github.com/walherd/walherd/storage"
)

// resumeProgress is how many bytes reset the count of resumptions, as in
// storage/retry.
const resumeProgress = 1 << 20

// Open implements storage.Bucket. The body is a storage.Describer.
//
// A body whose MD5 is not the one kept by the store ends with
// storage.ErrPermanent instead of io.EOF: its bytes are delivered already, so
// no continuation can mend them. The store keeps none of an object in
// segments.
func (b *Bucket) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	key, err := b.key(name)
	if err != nil {
		return nil, err
	}
	if err := rng.Check(); err != nil {
		return nil, fmt.Errorf("open swift://%s/%s: %w", b.opt.Container, key, err)
	}
	outer := ctx
	if err := outer.Err(); err != nil {
		return nil, b.explain(outer, "open", key, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &body{b: b, outer: outer, ctx: ctx, cancel: cancel, key: key, at: rng.Offset, resumes: b.opt.Retries}
	o, conn, err := s.get(rng.Length)
	if err == nil {
		var left int64
		if left, err = rng.Cut(o.size); err == nil {
			s.conn, s.object, s.left = conn, o, left
			s.info = storage.Info{Name: name, Size: o.size, Modified: o.modified}
			if left == o.size && !o.static && !o.dynamic && len(o.etag) == 2*md5.Size {
				s.sum = md5.New()
			}
			return s, nil
		}
		conn.Close()
	}
	cancel()
	if errors.Is(err, storage.ErrRange) {
		return nil, fmt.Errorf("open swift://%s/%s: %w", b.opt.Container, key, err)
	}
	return nil, b.missing(outer, b.explain(outer, "open", key, err))
}

// body is a part of one version of an object over as many connections as it
// takes. One goroutine reads; Close may come from another.
type body struct {
	b      *Bucket
	outer  context.Context // the caller's
	ctx    context.Context
	cancel context.CancelFunc
	key    string
	object object // pinned
	info   storage.Info
	at     int64 // offset of the next byte
	left   int64
	sum    hash.Hash // of a whole object, if the store keeps one
	err    error     // the end

	resumes int   // left
	failed  int   // times in a row
	since   int64 // bytes since the last failure

	closed atomic.Bool
	mu     sync.Mutex
	conn   io.ReadCloser
}

// Info implements storage.Describer.
func (s *body) Info() (storage.Info, bool) { return s.info, true }

var (
	errClosed   = errors.New("the body is closed")
	errReplaced = fmt.Errorf("the object was replaced while it was read: %w", storage.ErrPermanent)
)

// get asks for length bytes from s.at on; 0 is to the end.
func (s *body) get(length int64) (object, io.ReadCloser, error) {
	h := ncw.Headers{}
	if s.object.etag != "" {
		h["If-Match"] = `"` + s.object.etag + `"`
	}
	part := s.at > 0 || length > 0
	switch {
	case length > 0 && length <= math.MaxInt64-s.at:
		h["Range"] = fmt.Sprintf("bytes=%d-%d", s.at, s.at+length-1)
	case part:
		h["Range"] = fmt.Sprintf("bytes=%d-", s.at)
	}
	resp, headers, err := s.b.call(s.ctx, ncw.RequestOpts{
		Container: s.b.opt.Container, ObjectName: s.key, Operation: http.MethodGet, Headers: h,
	})
	if status(err) == http.StatusRequestedRangeNotSatisfiable {
		return s.behind(err)
	}
	if err != nil {
		return object{}, nil, err
	}
	o := objectOf(headers)
	if o.size, err = measure(resp, s.at, part); err != nil {
		resp.Body.Close()
		return object{}, nil, err
	}
	return o, resp.Body, nil
}

// measure is the size of the whole object: it holds the answer's numbers
// against one another and the request.
func measure(resp *http.Response, at int64, part bool) (int64, error) {
	length := resp.ContentLength
	told := resp.Header.Get("Content-Range")
	if told == "" {
		if length < 0 {
			return 0, errors.New("the store does not tell the object's length")
		}
		if part && length > 0 {
			return 0, fmt.Errorf("%w: the store ignores that only a range was asked for: is there a proxy that drops the Range header?", storage.ErrPermanent)
		}
		return length, nil
	}
	var from, to, size int64
	if _, err := fmt.Sscanf(told, "bytes %d-%d/%d", &from, &to, &size); err != nil {
		return 0, fmt.Errorf("the store answers with the content range %q", told)
	}
	if from != at || to < from || to >= size || length >= 0 && length != to-from+1 {
		return 0, fmt.Errorf("asked for the bytes from %d on, the store answers with range %q and %d bytes", at, told, length)
	}
	return size, nil
}

// behind answers a range that starts at the object's end, which Swift
// refuses, or behind it.
func (s *body) behind(cause error) (object, io.ReadCloser, error) {
	o, err := s.b.head(s.ctx, s.key)
	if err != nil {
		return object{}, nil, err
	}
	if s.at < o.size {
		return object{}, nil, fmt.Errorf("the object grew while it was opened: %w", &failure{plain(cause), nil})
	}
	return o, http.NoBody, nil
}

func (s *body) Read(p []byte) (int, error) {
	where := func(err error) error {
		return fmt.Errorf("read swift://%s/%s: %w", s.b.opt.Container, s.key, err)
	}
	switch {
	case s.closed.Load():
		return 0, where(errClosed)
	case s.outer.Err() != nil:
		return 0, where(s.outer.Err())
	case s.err != nil:
		return 0, s.err
	}
	n, err := s.read(p)
	if s.sum != nil {
		s.sum.Write(p[:n])
	}
	switch {
	case err == nil:
		return n, nil
	case s.outer.Err() != nil:
		s.err = where(s.outer.Err())
	case s.closed.Load():
		s.err = where(errClosed)
	case err != io.EOF:
		s.err = fmt.Errorf("read swift://%s/%s, %d bytes before its end: %w: %w", s.b.opt.Container, s.key, s.left, io.ErrUnexpectedEOF, err)
	default:
		s.err = s.prove()
	}
	return n, s.err
}

// prove is io.EOF if the bytes are those the store keeps the sum of.
func (s *body) prove() error {
	if s.sum == nil {
		return io.EOF
	}
	if got := hex.EncodeToString(s.sum.Sum(nil)); !strings.EqualFold(got, s.object.etag) {
		return fmt.Errorf("read swift://%s/%s: its bytes have the MD5 %s, the store keeps %s: they are damaged; read it again, and if that does not help restore the object from elsewhere: %w",
			s.b.opt.Container, s.key, got, s.object.etag, storage.ErrPermanent)
	}
	return io.EOF
}

func (s *body) read(p []byte) (int, error) {
	for {
		s.mu.Lock()
		c := s.conn
		s.mu.Unlock()
		if c == nil {
			return 0, errClosed
		}
		if s.left == 0 {
			return 0, io.EOF
		}
		if len(p) == 0 {
			return 0, nil
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
func (s *body) resume(cause error) error {
	if s.since >= resumeProgress {
		s.resumes, s.failed = s.b.opt.Retries, 0
	}
	s.since = 0
	for {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if s.resumes <= 0 {
			return cause
		}
		s.resumes--
		s.failed++
		if err := s.b.pause(s.ctx, s.failed); err != nil {
			return err
		}
		o, c, err := s.get(s.left)
		switch {
		case status(err) == http.StatusPreconditionFailed || status(err) == http.StatusNotFound:
			return errReplaced
		case err != nil && !passing(err):
			return s.b.explain(s.ctx, "read", s.key, err)
		case err != nil:
			cause = err
			continue
		case o.size != s.object.size || o.etag != s.object.etag || !o.modified.Equal(s.object.modified):
			c.Close()
			return errReplaced
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closed.Load() {
			c.Close()
			return errClosed
		}
		s.conn.Close()
		s.conn = c
		return nil
	}
}

// Close ends the body, also while a Read waits.
func (s *body) Close() error {
	s.closed.Store(true)
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		// What it says is of no matter: nothing more is wanted of it.
		s.conn.Close()
		s.conn = nil
	}
	return nil
}
