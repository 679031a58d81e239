package azure

import (
	"crypto/md5"
	"errors"
	"hash/crc64"
	"io"
	"os"
	"sync"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
)

// maxChunk is what memory for uploads is taken in: a small object holds one, a
// block as many as it has bytes.
const maxChunk = 512 << 10

// nvme is the polynomial of Azure's CRC64.
var nvme = crc64.MakeTable(0x9a6c9329ac4bc9b5)

// pool hands out chunks and knows how much is out.
type pool struct {
	chunk int64
	keep  int // free chunks to hold on to

	mu   sync.Mutex
	free [][]byte
	used int64 // bytes out
	peak int64 // most bytes out so far
}

func (p *pool) init(size int64, buffers int) {
	p.chunk = min(maxChunk, size)
	p.keep = int(int64(buffers) * (size + p.chunk - 1) / p.chunk)
}

func (p *pool) get() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used += p.chunk
	p.peak = max(p.peak, p.used)
	if n := len(p.free); n > 0 {
		c := p.free[n-1]
		p.free = p.free[:n-1]
		return c
	}
	return make([]byte, p.chunk)
}

func (p *pool) put(chunks [][]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used -= int64(len(chunks)) * p.chunk
	for _, c := range chunks {
		if len(p.free) < p.keep {
			p.free = append(p.free, c)
		}
	}
}

// content is the bytes of one block. It does not change while requests send
// it.
type content struct {
	pool   *pool
	chunks [][]byte
	size   int64
	credit int64 // bytes of the Bucket's budget it holds; see upload
}

func (c *content) release() {
	c.pool.put(c.chunks)
	c.chunks, c.size = nil, 0
}

// fill reads from s until the content has limit bytes. more is false when s
// has ended.
func (c *content) fill(s *source, limit int64) (more bool, err error) {
	chunk := c.pool.chunk
	for c.size < limit {
		i, at := int(c.size/chunk), c.size%chunk
		if i == len(c.chunks) {
			c.chunks = append(c.chunks, c.pool.get())
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

// each calls f with the bytes in order.
func (c *content) each(f func(p []byte)) {
	left := c.size
	for _, chunk := range c.chunks {
		n := min(left, int64(len(chunk)))
		f(chunk[:n])
		left -= n
	}
}

// sum is what the store is to hold the content against.
func (c *content) sum(kind Checksum) blob.TransferValidationType {
	if kind == ChecksumMD5 {
		h := md5.New()
		c.each(func(p []byte) { h.Write(p) })
		return blob.TransferValidationTypeMD5(h.Sum(nil))
	}
	var crc uint64
	c.each(func(p []byte) { crc = crc64.Update(crc, nvme, p) })
	return blob.TransferValidationTypeCRC64(crc)
}

// source is the reader of a Put with one byte of look-ahead: a content of
// exactly one block must be known as such.
type source struct {
	r      io.Reader
	peeked bool
	next   [1]byte
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

// reader gives the bytes to one try of one request. Each try has its own:
// net/http may still read the body of a try that has failed, and must not move
// the next one's position, nor see memory that has gone on to another block.
func (c *content) reader() *contentReader { return &contentReader{c: c} }

type contentReader struct {
	mu sync.Mutex
	c  *content // nil when closed
	at int64
}

func (r *contentReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.c == nil {
		return 0, os.ErrClosed
	}
	chunk := r.c.pool.chunk
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

// Close takes the memory away from whoever still reads.
func (r *contentReader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.c = nil
	return nil
}
