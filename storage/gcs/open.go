package gcs

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/walherd/walherd/storage"
)

// resumeProgress is how many bytes reset the count of resumptions, as in
// storage/retry.
const resumeProgress = 1 << 20

// Open implements storage.Bucket. The body is a storage.Describer.
//
// A body that does not have the CRC32C kept by the store ends with
// storage.ErrPermanent instead of io.EOF: its bytes are delivered already, so
// no continuation can mend them. So does a continuation of an object that was
// replaced or deleted meanwhile.
func (b *Bucket) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	key, err := b.key(name)
	if err != nil {
		return nil, err
	}
	if err := rng.Check(); err != nil {
		return nil, fmt.Errorf("open %s: %w", b.where(key), err)
	}
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	s := &stream{b: b, ctx: ctx, key: key, at: rng.Offset, tries: b.newTries()}
	got, err := s.open(rng.Length)
	if err == nil {
		var left int64
		if left, err = rng.Cut(got.size); err == nil {
			s.generation, s.size, s.left, s.conn = got.generation, got.size, left, got.conn
			return &body{
				ctx: outer, cancel: cancel, where: b.where(key), src: s, left: left, crc: got.crc, check: got.whole && got.summed,
				info:  storage.Info{Name: name, Size: got.size, Modified: got.modified.Truncate(time.Second)},
				known: got.dated,
			}, nil
		}
		got.conn.Close()
	}
	cancel()
	if errors.Is(err, storage.ErrRange) {
		return nil, fmt.Errorf("open %s: %w", b.where(key), err)
	}
	return nil, b.missing(outer, b.explain(outer, "open", key, err))
}

// body is what a caller of Open reads.
type body struct {
	ctx    context.Context // the caller's
	cancel context.CancelFunc
	where  string
	info   storage.Info
	known  bool
	src    *stream

	left  int64
	check bool
	crc   uint32 // the store's
	have  uint32
	err   error // the end

	closed atomic.Bool
}

// Info implements storage.Describer.
func (d *body) Info() (storage.Info, bool) { return d.info, d.known }

func (d *body) Read(p []byte) (int, error) {
	if d.closed.Load() {
		return 0, fmt.Errorf("read %s: the body is closed", d.where)
	}
	if err := d.ctx.Err(); err != nil {
		return 0, fmt.Errorf("read %s: %w", d.where, err)
	}
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.src.Read(p)
	d.left -= int64(n)
	if d.check {
		d.have = crc32.Update(d.have, castagnoli, p[:n])
	}
	switch {
	case err == nil:
		return n, nil
	case d.ctx.Err() != nil:
		d.err = fmt.Errorf("read %s: %w", d.where, d.ctx.Err())
	case d.closed.Load():
		d.err = fmt.Errorf("read %s: the body is closed", d.where)
	case err != io.EOF:
		d.err = fmt.Errorf("read %s, %d bytes before its end: %w: %w", d.where, d.left, io.ErrUnexpectedEOF, err)
	case d.check && d.have != d.crc:
		d.err = fmt.Errorf("read %s: its bytes have the CRC32C %08x, the store keeps %08x: they are damaged; read it again, and if that does not help restore the object from elsewhere: %w",
			d.where, d.have, d.crc, storage.ErrPermanent)
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

// stream reads a part of one generation of an object over as many connections
// as it takes. One goroutine reads; Close may come from another.
type stream struct {
	b          *Bucket
	ctx        context.Context
	key        string
	generation int64 // 0 before it is known
	size       int64 // of the whole object
	at         int64 // offset of the next byte
	left       int64

	tries *tries
	since int64 // bytes since the last failure

	mu     sync.Mutex
	conn   *conn
	closed bool
}

// media is what a download told at its start.
type media struct {
	conn       *conn
	size       int64 // of the whole object
	generation int64
	whole      bool // all of it was asked for
	crc        uint32
	summed     bool // crc is known
	modified   time.Time
	dated      bool // modified is known
}

// open gets length bytes from s.at on, with retries; 0 is to the end.
func (s *stream) open(length int64) (media, error) {
	limited, cancel := s.b.limited(s.ctx)
	defer cancel()
	for {
		m, err := s.get(length)
		if err == nil {
			return m, nil
		}
		if err := s.tries.again(limited, err); err != nil {
			return media{}, err
		}
	}
}

func (s *stream) get(length int64) (media, error) {
	query := url.Values{"alt": {"media"}}
	if s.generation != 0 {
		query.Set("generation", strconv.FormatInt(s.generation, 10))
	}
	// Else the store would unpack an object that somebody labelled as gzip,
	// and net/http would too.
	header := http.Header{"Accept-Encoding": {"gzip"}}
	part := s.at > 0 || length > 0
	switch {
	case length > 0 && length <= math.MaxInt64-s.at:
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", s.at, s.at+length-1))
	case part:
		header.Set("Range", fmt.Sprintf("bytes=%d-", s.at))
	}
	res, c, err := s.b.send(s.ctx, &request{method: http.MethodGet, url: s.b.objectURL(s.key, query), header: header, secret: true})
	if err != nil {
		return media{}, err
	}
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusPartialContent {
		text, _ := io.ReadAll(io.LimitReader(c, 4<<10)) // a reason that breaks off is still one
		c.Close()
		if res.StatusCode == http.StatusRequestedRangeNotSatisfiable {
			return s.behind()
		}
		return media{}, newAPIError(res, text)
	}
	m := media{conn: c, whole: !part}
	if err := m.read(res, s.at); err != nil {
		c.Close()
		return media{}, err
	}
	return m, nil
}

// read takes what the headers tell and holds it against what was asked for.
func (m *media) read(res *http.Response, at int64) error {
	m.crc, m.summed = hashCRC(res.Header.Values("X-Goog-Hash"))
	var err error
	if m.generation, err = strconv.ParseInt(res.Header.Get("X-Goog-Generation"), 10, 64); err != nil {
		return fmt.Errorf("the store tells no generation of the object: %w: is there a proxy that drops headers?", storage.ErrPermanent)
	}
	// Last-Modified is that of the metadata: after a change of it, it is not
	// the time of the Put any more.
	if res.Header.Get("X-Goog-Metageneration") == "1" {
		m.modified, err = http.ParseTime(res.Header.Get("Last-Modified"))
		m.dated = err == nil
	}
	if m.whole {
		if m.size = res.ContentLength; m.size < 0 {
			return errors.New("the store does not tell the object's length")
		}
		return nil
	}
	var from, to int64
	told := res.Header.Get("Content-Range")
	if told == "" {
		return fmt.Errorf("the store ignores that only a range was asked for: %w: is there a proxy that drops the Range header?", storage.ErrPermanent)
	}
	if _, err := fmt.Sscanf(told, "bytes %d-%d/%d", &from, &to, &m.size); err != nil {
		return fmt.Errorf("the store answers with the content range %q", told)
	}
	if from != at || to < from || to >= m.size || res.ContentLength >= 0 && res.ContentLength != to-from+1 {
		return fmt.Errorf("asked for the bytes from %d on, the store answers with range %q and %d bytes", at, told, res.ContentLength)
	}
	return nil
}

// behind answers a range that starts at the object's end, which the store
// refuses, or behind it.
func (s *stream) behind() (media, error) {
	o, err := s.b.stat(s.ctx, s.key, s.generation)
	if err != nil {
		return media{}, err
	}
	if s.at < o.Size {
		return media{}, errors.New("the object grew while it was opened")
	}
	c := newConn(func(error) {}, s.b.opt.StallTimeout)
	c.watch.Stop()
	c.rc = http.NoBody
	return media{conn: c, size: o.Size, generation: o.Generation, modified: o.Created, dated: true}, nil
}

var errReplaced = fmt.Errorf("the object was replaced or deleted while it was read: %w", storage.ErrPermanent)

var errClosed = errors.New("the body is closed")

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
		s.tries.reset()
	}
	s.since = 0
	if err := s.tries.again(s.ctx, cause); err != nil {
		return err
	}
	m, err := s.open(s.left)
	if status(err) == http.StatusNotFound {
		return errReplaced
	}
	if err != nil {
		if way := wayOut(err); way != "" {
			return fmt.Errorf("%w: %s: %w", err, way, storage.ErrPermanent)
		}
		return err
	}
	if m.generation != s.generation || m.size != s.size {
		m.conn.Close()
		return errReplaced
	}
	s.replace(m.conn)
	return nil
}

// replace closes the present connection and sets the next.
func (s *stream) replace(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close() // it is broken, or done
	}
	s.conn = c
	if s.closed && c != nil {
		c.Close()
		s.conn = nil
	}
}

func (s *stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.conn == nil {
		return nil
	}
	c := s.conn
	s.conn = nil
	return c.Close()
}
