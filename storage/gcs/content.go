package gcs

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"strings"
	"sync"
)

const (
	// blockSize is what memory for uploads is taken in: a small object holds
	// one block, a chunk as many as it has bytes.
	blockSize = 512 << 10
	// freeBlocks is what each content may hold without asking: so each
	// running Put can go on, however little memory is left.
	freeBlocks = 2
)

// memory hands out blocks, up to a limit beyond what is free for each content,
// and shares it among the running Puts.
type memory struct {
	mu    sync.Mutex
	chunk int64
	limit int64 // bytes in all but the free blocks
	taken int64 // of limit
	puts  int64 // running
	spare [][]byte
	keep  int   // most of spare
	used  int64 // bytes out
	peak  int64 // most bytes out so far
}

func newMemory(limit, chunk int64) memory {
	return memory{chunk: chunk, limit: limit, keep: int(min(limit, 2*chunk)/blockSize) + freeBlocks}
}

// begin and end count the running Puts.
func (m *memory) begin() { m.mu.Lock(); m.puts++; m.mu.Unlock() }
func (m *memory) end()   { m.mu.Lock(); m.puts--; m.mu.Unlock() }

// share is the size of the next chunk: a Put holds two of them, one that is
// sent and one that is read. Chunks on the way are not cut; whoever finds the
// memory taken gets along with less until they are through.
func (m *memory) share() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	share := m.limit / (2 * max(m.puts, 1)) / blockSize * blockSize
	return min(max(share, freeBlocks*blockSize), m.chunk)
}

// take gives a block; nil when there is no room.
func (m *memory) take(free bool) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !free {
		if m.taken+blockSize > m.limit {
			return nil
		}
		m.taken += blockSize
	}
	m.used += blockSize
	m.peak = max(m.peak, m.used)
	if n := len(m.spare); n > 0 {
		block := m.spare[n-1]
		m.spare = m.spare[:n-1]
		return block
	}
	return make([]byte, blockSize)
}

func (m *memory) give(blocks [][]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used -= int64(len(blocks)) * blockSize
	m.taken -= int64(max(len(blocks)-freeBlocks, 0)) * blockSize
	for _, block := range blocks {
		if len(m.spare) < m.keep {
			m.spare = append(m.spare, block)
		}
	}
}

// content is the bytes of one chunk. It does not change while requests send
// it.
type content struct {
	mem    *memory
	blocks [][]byte
	size   int64
}

func (c *content) release() {
	c.mem.give(c.blocks)
	c.blocks, c.size = nil, 0
}

// fill reads a chunk from s. more is false when s has ended. It stops between
// two reads when ctx ends.
func (c *content) fill(ctx context.Context, s *source) (more bool, err error) {
	limit := c.mem.share()
	for c.size < limit {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		i, at := int(c.size/blockSize), int(c.size%blockSize)
		if i == len(c.blocks) {
			block := c.mem.take(i < freeBlocks)
			if block == nil {
				break
			}
			c.blocks = append(c.blocks, block)
		}
		room := c.blocks[i][at:]
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

// source is the reader of a Put with one byte of look-ahead: the last chunk
// must be known as such.
type source struct {
	r      io.Reader
	peeked bool
	next   [1]byte
	crc    uint32 // CRC32C of everything read
	size   int64
}

// readError is the reader's own error, to be told from the store's.
type readError struct{ err error }

func (e *readError) Error() string { return "read its content: " + e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

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
			return 0, &readError{errors.New("the reader tells an impossible count")}
		}
		n += m
	}
	s.crc = crc32.Update(s.crc, castagnoli, p[:n])
	s.size += int64(n)
	if err != nil && err != io.EOF {
		err = &readError{err}
	}
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
	return false, &readError{err}
}

// reader gives the bytes from an offset on to one try of one request; touch is
// called for each read.
func (c *content) reader(from int64, touch func()) *contentReader {
	return &contentReader{c: c, at: from, touch: touch}
}

type contentReader struct {
	touch func()

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
	r.touch()
	n := 0
	for n < len(p) && r.at < r.c.size {
		block := r.c.blocks[r.at/blockSize]
		end := min(blockSize, r.c.size-r.at/blockSize*blockSize)
		m := copy(p[n:], block[r.at%blockSize:end])
		n += m
		r.at += int64(m)
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Close ends the reading: the content's memory may go to others.
func (r *contentReader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.c = nil
	return nil
}

// encodeCRC writes a sum as the API does: base64 of big-endian bytes.
func encodeCRC(crc uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc))
}

func decodeCRC(s string) (crc uint32, ok bool) {
	raw, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(raw) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(raw), true
}

// hashCRC finds the CRC32C among the values of X-Goog-Hash
// ("crc32c=n03x6A==,md5=Ojk9c3dhfxgoKVVHYwFbHQ==").
func hashCRC(values []string) (crc uint32, ok bool) {
	for _, value := range values {
		for one := range strings.SplitSeq(value, ",") {
			if sum, found := strings.CutPrefix(strings.TrimSpace(one), "crc32c="); found {
				return decodeCRC(sum)
			}
		}
	}
	return 0, false
}
