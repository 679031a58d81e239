package s3

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/walherd/walherd/storage"
)

// resumeProgress is how many bytes reset the count of resumptions, as in
// storage/retry.
const resumeProgress = 1 << 20

// Open implements storage.Bucket. The body is a storage.Describer.
//
// A body that damages the checksum kept by the store ends with
// storage.ErrPermanent instead of io.EOF: its bytes are delivered already, so
// no continuation can mend them.
func (b *Bucket) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	key, err := b.key(name)
	if err != nil {
		return nil, err
	}
	if err := rng.Check(); err != nil {
		return nil, fmt.Errorf("open s3://%s/%s: %w", b.opt.Bucket, key, err)
	}
	outer := ctx
	if err := outer.Err(); err != nil {
		return nil, b.explain(outer, "open", key, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &stream{b: b, ctx: ctx, key: key, at: rng.Offset, resumes: b.opt.Resumes}
	got, err := s.get(ctx, rng.Length)
	if err == nil {
		var left int64
		if left, err = rng.Cut(got.size); err == nil {
			s.etag, s.size, s.left, s.conn = got.etag, got.size, left, got.conn
			body := &body{ctx: outer, cancel: cancel, where: b.opt.Bucket + "/" + key, left: left, src: s, sum: got.sum}
			body.info = infoOf(name, got.size, got.modified)
			if n := b.opt.ReadRange; b.opt.ReadParallel > 1 && left > 2*n {
				body.src = newAhead(s, n, b.opt.ReadParallel)
			}
			return body, nil
		}
		got.conn.Close()
	}
	cancel()
	if errors.Is(err, storage.ErrRange) {
		return nil, fmt.Errorf("open s3://%s/%s: %w", b.opt.Bucket, key, err)
	}
	return nil, b.explain(outer, "open", key, err)
}

// body is what a caller of Open reads.
type body struct {
	ctx    context.Context // the caller's
	cancel context.CancelFunc
	where  string
	info   storage.Info
	src    io.ReadCloser

	left int64
	crc  uint32
	sum  *uint32 // of a whole object, if the store keeps one
	err  error   // the end

	closed atomic.Bool
}

// Info implements storage.Describer.
func (d *body) Info() (storage.Info, bool) { return d.info, true }

func (d *body) Read(p []byte) (int, error) {
	if d.closed.Load() {
		return 0, fmt.Errorf("read s3://%s: the body is closed", d.where)
	}
	if err := d.ctx.Err(); err != nil {
		return 0, fmt.Errorf("read s3://%s: %w", d.where, err)
	}
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.src.Read(p)
	d.left -= int64(n)
	if d.sum != nil {
		d.crc = crc32.Update(d.crc, castagnoli, p[:n])
	}
	switch {
	case err == nil:
		return n, nil
	case d.ctx.Err() != nil:
		d.err = fmt.Errorf("read s3://%s: %w", d.where, d.ctx.Err())
	case d.closed.Load():
		d.err = fmt.Errorf("read s3://%s: the body is closed", d.where)
	case err != io.EOF:
		d.err = fmt.Errorf("read s3://%s, %d bytes before its end: %w: %w", d.where, d.left, io.ErrUnexpectedEOF, err)
	case d.sum != nil && d.crc != *d.sum:
		d.err = fmt.Errorf("read s3://%s: its bytes have the CRC32C %08x, the store keeps %08x: they are damaged; read it again, and if that does not help restore the object from elsewhere: %w",
			d.where, d.crc, *d.sum, storage.ErrPermanent)
	default:
		d.err = io.EOF
	}
	return n, d.err
}

// Close ends the body, also while a Read waits.
func (d *body) Close() error {
	d.closed.Store(true)
	d.cancel()
	return d.src.Close()
}

// stream reads a part of one version of an object over as many connections as
// it takes. One goroutine reads; Close may come from another.
type stream struct {
	b    *Bucket
	ctx  context.Context
	key  string
	etag string
	size int64 // of the whole object; 0 is not known
	at   int64 // offset of the next byte
	left int64

	resumes int   // left
	failed  int   // times in a row
	since   int64 // bytes since the last failure

	mu     sync.Mutex
	conn   *conn
	closed bool
}

// answer is what a GetObject told.
type answer struct {
	conn     *conn
	size     int64 // of the whole object
	modified *time.Time
	etag     string
	sum      *uint32
}

// get asks for length bytes from s.at on; 0 is to the end.
func (s *stream) get(ctx context.Context, length int64) (answer, error) {
	b := s.b
	in := &awss3.GetObjectInput{
		Bucket: &b.opt.Bucket, Key: &s.key, IfMatch: optional(s.etag),
		SSECustomerAlgorithm: b.ssec.algorithm, SSECustomerKey: b.ssec.key, SSECustomerKeyMD5: b.ssec.sum,
	}
	var opts []func(*awss3.Options)
	part := s.at > 0 || length > 0
	switch {
	case length > 0 && length <= math.MaxInt64-s.at:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", s.at, s.at+length-1))
	case part:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", s.at))
	case b.checksum() == ChecksumCRC32C:
		opts = append(opts, askSum)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	out, err := b.client.GetObject((&call{streams: true}).with(ctx), in, opts...)
	if err != nil {
		cancel(nil)
		if status(err) == http.StatusRequestedRangeNotSatisfiable || code(err) == "InvalidRange" {
			return s.behind(ctx, err)
		}
		return answer{}, err
	}
	a := answer{modified: out.LastModified, etag: aws.ToString(out.ETag)}
	a.conn = newConn(out.Body, cancel, b.opt.StallTimeout)
	if out.ChecksumType == types.ChecksumTypeFullObject && out.ChecksumCRC32C != nil && !part {
		if sum, err := decodeCRC(*out.ChecksumCRC32C); err == nil {
			a.sum = &sum
		}
	}
	if err := a.measure(out, s.at, part); err != nil {
		a.conn.Close()
		return answer{}, err
	}
	return a, nil
}

// measure holds the answer's numbers against one another and the request.
func (a *answer) measure(out *awss3.GetObjectOutput, at int64, part bool) error {
	length := int64(-1)
	if out.ContentLength != nil {
		length = *out.ContentLength
	}
	if !part {
		if length < 0 {
			return errors.New("the store does not tell the object's length")
		}
		a.size = length
		return nil
	}
	var from, to int64
	if out.ContentRange == nil {
		return fmt.Errorf("%w: the store ignores that only a range was asked for: is there a proxy that drops the Range header?", storage.ErrPermanent)
	}
	if _, err := fmt.Sscanf(*out.ContentRange, "bytes %d-%d/%d", &from, &to, &a.size); err != nil {
		return fmt.Errorf("the store answers with the content range %q", *out.ContentRange)
	}
	if from != at || to < from || to >= a.size || length >= 0 && length != to-from+1 {
		return fmt.Errorf("asked for the bytes from %d on, the store answers with range %q and %d bytes", at, *out.ContentRange, length)
	}
	return nil
}

// behind answers a range that starts at the object's end, which S3 refuses,
// or behind it.
func (s *stream) behind(ctx context.Context, cause error) (answer, error) {
	h, err := s.b.head(s.ctx, s.key)
	if err != nil {
		return answer{}, err
	}
	if s.etag != "" && s.etag != aws.ToString(h.ETag) {
		return answer{}, errReplaced
	}
	size := aws.ToInt64(h.ContentLength)
	if s.at < size {
		return answer{}, fmt.Errorf("the object grew while it was opened: %w", cause)
	}
	return answer{conn: newConn(http.NoBody, func(error) {}, s.b.opt.StallTimeout), size: size, modified: h.LastModified, etag: aws.ToString(h.ETag)}, nil
}

var errReplaced = fmt.Errorf("the object was replaced while it was read: %w", storage.ErrPermanent)

// askSum asks for the checksum without having the SDK check it: a body may
// come in pieces.
func askSum(o *awss3.Options) {
	o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
		return smithyhttp.SetHeaderValue("X-Amz-Checksum-Mode", "ENABLED")(stack)
	})
}

func (s *stream) Read(p []byte) (int, error) {
	for {
		s.mu.Lock()
		c, closed := s.conn, s.closed
		s.mu.Unlock()
		if closed {
			return 0, errClosed
		}
		if s.left == 0 {
			return 0, s.end(c)
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

var errClosed = errors.New("the body is closed")

// end is io.EOF, unless the store sends more than it promised.
func (s *stream) end(c *conn) error {
	if !c.whole {
		return io.EOF
	}
	var one [1]byte
	if n, _ := c.Read(one[:]); n > 0 {
		return fmt.Errorf("%w: the store sends more bytes than it told", storage.ErrPermanent)
	}
	return io.EOF
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
			return cause
		}
		s.resumes--
		s.failed++
		if err := sleep(s.ctx, pause(s.failed, s.b.opt.MinRetryDelay, s.b.opt.MaxRetryDelay)); err != nil {
			return err
		}
		got, err := s.get(s.ctx, s.left)
		if status(err) == http.StatusPreconditionFailed || notFound(err) {
			return errReplaced
		}
		if err != nil {
			if wayOut(err) != "" || errors.Is(err, storage.ErrPermanent) {
				return explain(s.ctx, "read", s.b.opt.Bucket, s.key, err)
			}
			cause = err
			continue
		}
		if s.size > 0 && got.size != s.size {
			got.conn.Close()
			return fmt.Errorf("the store told %d bytes and now tells %d of the same object: %w", s.size, got.size, storage.ErrPermanent)
		}
		if !s.replace(got.conn) {
			return errClosed
		}
		return nil
	}
}

// replace closes the present connection and sets the next; false when the
// stream is closed.
func (s *stream) replace(c *conn) bool {
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

func (s *stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.conn != nil {
		// What it says is of no matter: nothing more is wanted of it.
		s.conn.Close()
		s.conn = nil
	}
	return nil
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

// conn is the body of one answer. A Read in which nothing comes for the stall
// limit ends it.
type conn struct {
	rc     io.ReadCloser
	cancel context.CancelCauseFunc
	stall  time.Duration
	watch  *time.Timer
	stale  atomic.Bool
	whole  bool // the answer's own end is the end of what was asked for
}

func newConn(rc io.ReadCloser, cancel context.CancelCauseFunc, stall time.Duration) *conn {
	c := &conn{rc: rc, cancel: cancel, stall: stall, whole: true}
	c.watch = time.AfterFunc(stall, func() {
		c.stale.Store(true)
		cancel(errStalled)
	})
	c.watch.Stop()
	return c
}

func (c *conn) Read(p []byte) (int, error) {
	c.watch.Reset(c.stall)
	n, err := c.rc.Read(p)
	c.watch.Stop()
	if err != nil && err != io.EOF && c.stale.Load() {
		err = &stalledError{after: c.stall, err: err}
	}
	return n, err
}

func (c *conn) Close() error {
	c.watch.Stop()
	c.cancel(nil)
	return c.rc.Close()
}
