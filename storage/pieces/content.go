package pieces

import (
	"context"
	"errors"
	"hash"
	"io"
	"os"
	"sync"
)

// Content is the bytes of one part. It does not change while requests send it.
// One goroutine fills and releases it.
type Content struct {
	pool   *Pool
	chunks [][]byte
	size   int64
	credit int64 // bytes of a Queue's budget it holds
}

// NewContent makes an empty content, which takes its memory from p as it is
// filled.
func NewContent(p *Pool) *Content { return &Content{pool: p} }

// Size is in bytes.
func (c *Content) Size() int64 { return c.size }

// Release gives the memory back; the content is empty then. Readers of it must
// have been closed.
func (c *Content) Release() {
	c.pool.give(c.chunks)
	c.chunks, c.size = nil, 0
}

// Fill reads from s until the content has limit bytes, or until the pool has no
// more memory. more is false when s has ended. It stops between two reads when
// ctx ends, with ctx's cause.
func (c *Content) Fill(ctx context.Context, s *Source, limit int64) (more bool, err error) {
	chunk := c.pool.opt.Chunk
	for c.size < limit {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		i, at := int(c.size/chunk), c.size%chunk
		if i == len(c.chunks) {
			fresh := c.pool.take(i)
			if fresh == nil {
				break
			}
			c.chunks = append(c.chunks, fresh)
		}
		room := c.chunks[i][at:]
		room = room[:min(int64(len(room)), limit-c.size)]
		n, err := s.read(room)
		c.size += int64(n)
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return s.more()
}

// WriteTo writes all bytes to w, which keeps none of them: the way to sum them.
// It implements io.WriterTo.
func (c *Content) WriteTo(w io.Writer) (int64, error) {
	left := c.size
	for _, chunk := range c.chunks {
		n, err := w.Write(chunk[:min(left, int64(len(chunk)))])
		left -= int64(n)
		if err != nil {
			return c.size - left, err
		}
	}
	return c.size, nil
}

// Source is the reader of a Put with one byte of look-ahead: the last part must
// be known as such.
type Source struct {
	r      io.Reader
	sum    hash.Hash
	peeked bool
	next   [1]byte
	size   int64
}

// NewSource reads r; sum, unless nil, gets every byte that is taken.
func NewSource(r io.Reader, sum hash.Hash) *Source { return &Source{r: r, sum: sum} }

// Size is how many bytes were taken so far.
func (s *Source) Size() int64 { return s.size }

// ReadError is the error of a Put's own reader, to be told from the store's.
type ReadError struct{ Err error }

func (e *ReadError) Error() string { return "read its content: " + e.Err.Error() }

// Unwrap is the reader's error.
func (e *ReadError) Unwrap() error { return e.Err }

func (s *Source) read(p []byte) (int, error) {
	n := 0
	if s.peeked && len(p) > 0 {
		s.peeked = false
		p[0] = s.next[0]
		n = 1
	}
	var err error
	if n < len(p) {
		var m int
		m, err = s.r.Read(p[n:])
		if m < 0 || m > len(p)-n {
			return 0, &ReadError{errors.New("the reader tells an impossible count")}
		}
		n += m
	}
	if s.sum != nil {
		s.sum.Write(p[:n])
	}
	s.size += int64(n)
	if err != nil && err != io.EOF {
		err = &ReadError{err}
	}
	return n, err
}

func (s *Source) more() (bool, error) {
	if s.peeked {
		return true, nil
	}
	n, err := io.ReadFull(s.r, s.next[:])
	if n == 1 {
		s.peeked = true
		return true, nil
	}
	if err == io.EOF {
		return false, nil
	}
	return false, &ReadError{err}
}

// Reader gives the bytes from an offset on to one try of one request; touch,
// unless nil, is called for each read. Each try has its own: net/http may still
// read the body of a try that has failed, and must not move the next one's
// position, nor see memory that has gone on to another part.
func (c *Content) Reader(from int64, touch func()) *Reader {
	return &Reader{c: c, at: from, touch: touch}
}

// Reader is one reading of a Content. It is safe for concurrent use, so that
// Close may come while a Read runs; after that reads fail with os.ErrClosed.
type Reader struct {
	touch func()

	mu sync.Mutex
	c  *Content // nil when closed
	at int64
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.c == nil {
		return 0, os.ErrClosed
	}
	if r.touch != nil {
		// Not for a closed one: it would wake the watch of a try that is over.
		r.touch()
	}
	chunk := r.c.pool.opt.Chunk
	n := 0
	for n < len(p) && r.at < r.c.size {
		from := r.at % chunk
		end := min(chunk, r.c.size-(r.at-from))
		m := copy(p[n:], r.c.chunks[r.at/chunk][from:end])
		n += m
		r.at += int64(m)
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Seek implements io.Seeker.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.c == nil {
		return 0, os.ErrClosed
	}
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.c.size
	}
	if offset < 0 || offset > r.c.size {
		return 0, errors.New("seek outside of the content")
	}
	r.at = offset
	return offset, nil
}

// Len is how many bytes are left, which lets a client know the length without
// seeking; 0 when closed.
func (r *Reader) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.c == nil {
		return 0
	}
	return int(r.c.size - r.at)
}

// Stop ends the reading, unless all was read: then it is true.
func (r *Reader) Stop() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.c != nil && r.at == r.c.size {
		return true
	}
	r.c = nil
	return false
}

// Close takes the memory away from whoever still reads.
func (r *Reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.c = nil
	return nil
}
