package s3

import (
	"errors"
	"hash/crc32"
	"io"
	"os"
	"sync"
)

// chunkSize is what memory for uploads is taken in: a small object holds one,
// a part as many as it has bytes.
const chunkSize = 512 << 10

// pool hands out chunks and knows how much is out.
type pool struct {
	mu   sync.Mutex
	free [][]byte
	keep int   // free chunks to hold on to
	used int64 // bytes out
	peak int64 // most bytes out so far
}

func (p *pool) get() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used += chunkSize
	p.peak = max(p.peak, p.used)
	if n := len(p.free); n > 0 {
		c := p.free[n-1]
		p.free = p.free[:n-1]
		return c
	}
	return make([]byte, chunkSize)
}

func (p *pool) put(chunks [][]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used -= int64(len(chunks)) * chunkSize
	for _, c := range chunks {
		if len(p.free) < p.keep {
			p.free = append(p.free, c)
		}
	}
}

// content is the bytes of one part. It does not change while requests send
// it.
type content struct {
	pool   *pool
	chunks [][]byte
	size   int64
	crc    uint32 // CRC32C of the bytes
	credit int64  // bytes of the Bucket's budget it holds; see uploader
}

func (c *content) reset() { c.size, c.crc = 0, 0 }

func (c *content) release() {
	c.pool.put(c.chunks)
	c.chunks = nil
	c.reset()
}

// fill reads from s until the content has limit bytes. more is false when s
// has ended.
func (c *content) fill(s *source, limit int64) (more bool, err error) {
	for c.size < limit {
		i, at := int(c.size/chunkSize), int(c.size%chunkSize)
		if i == len(c.chunks) {
			c.chunks = append(c.chunks, c.pool.get())
		}
		room := c.chunks[i][at:]
		room = room[:min(int64(len(room)), limit-c.size)]
		n, err := s.read(room)
		c.crc = crc32.Update(c.crc, castagnoli, room[:n])
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

// source is the reader of a Put with one byte of look-ahead: the last part
// must be known as such.
type source struct {
	r      io.Reader
	peeked bool
	next   [1]byte
	whole  uint32 // CRC32C of everything read
	size   int64
}

func (s *source) read(p []byte) (int, error) {
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
			return 0, errors.New("the content's reader tells an impossible count")
		}
		n += m
	}
	s.whole = crc32.Update(s.whole, castagnoli, p[:n])
	s.size += int64(n)
	return n, err
}

func (s *source) more() (bool, error) {
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
	return false, err
}

// reader gives the bytes to one try of one request; touch is called for each
// read. Each try has its own: net/http may still read the body of a try that
// has failed, and must not move the next one's position, nor see memory that
// has gone on to another part.
func (c *content) reader(touch func()) *contentReader {
	return &contentReader{c: c, touch: touch}
}

type contentReader struct {
	touch func()

	mu sync.Mutex
	c  *content // nil when closed
	at int64
}

func (r *contentReader) Read(p []byte) (int, error) {
	r.touch()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.c == nil {
		return 0, os.ErrClosed
	}
	n := 0
	for n < len(p) && r.at < r.c.size {
		chunk := r.c.chunks[r.at/chunkSize]
		end := min(chunkSize, r.c.size-r.at/chunkSize*chunkSize)
		m := copy(p[n:], chunk[r.at%chunkSize:end])
		n += m
		r.at += int64(m)
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (r *contentReader) Seek(offset int64, whence int) (int64, error) {
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

// Len lets the SDK know the length without seeking.
func (r *contentReader) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.c == nil {
		return 0
	}
	return int(r.c.size - r.at)
}

// stop ends the reading, unless all was read: then it is true.
func (r *contentReader) stop() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.c != nil && r.at == r.c.size {
		return true
	}
	r.c = nil
	return false
}

func (r *contentReader) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.c = nil
}

func crcOf(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }
