package changes

import (
	"iter"
	"math"
	"math/bits"
	"slices"
)

// noLimit is InvalidBlockNumber, which no block has.
const noLimit = math.MaxUint32

// A set of block numbers is kept as roaring bitmaps keep theirs: in chunks of
// 65536, each a sorted list while that is smaller, then a bitmap. So a chunk
// takes at most 8 KiB (for 512 MiB of relation), and what is sparse takes two
// bytes a block.
const (
	chunkBits  = 16
	chunkSize  = 1 << chunkBits
	maxList    = chunkSize / 16 // as long a list is as large as the bitmap
	chunkWords = chunkSize / 64
)

type bitmap [chunkWords]uint64

type chunk struct {
	number uint16
	list   []uint16 // sorted
	bits   *bitmap  // instead of list
}

func (c *chunk) add(low uint16) {
	if c.bits != nil {
		c.bits[low/64] |= 1 << (low % 64)
		return
	}
	n := len(c.list)
	at := n
	if n > 0 && low <= c.list[n-1] {
		var found bool
		if at, found = slices.BinarySearch(c.list, low); found {
			return
		}
	}
	if n < maxList {
		c.list = slices.Insert(c.list, at, low)
		return
	}
	c.widen()
	c.add(low)
}

func (c *chunk) widen() {
	c.bits = new(bitmap)
	for _, low := range c.list {
		c.bits[low/64] |= 1 << (low % 64)
	}
	c.list = nil
}

// or adds all of o.
func (c *chunk) or(o *chunk) {
	if o.bits == nil {
		for _, low := range o.list {
			c.add(low)
		}
		return
	}
	if c.bits == nil {
		c.widen()
	}
	for i, w := range o.bits {
		c.bits[i] |= w
	}
}

func (c *chunk) len() int {
	if c.bits == nil {
		return len(c.list)
	}
	n := 0
	for _, w := range c.bits {
		n += bits.OnesCount64(w)
	}
	return n
}

// all gives the members, ascending.
func (c *chunk) all() iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		for _, low := range c.list {
			if !yield(low) {
				return
			}
		}
		if c.bits == nil {
			return
		}
		for i, w := range c.bits {
			for ; w != 0; w &= w - 1 {
				if !yield(uint16(i*64 + bits.TrailingZeros64(w))) {
					return
				}
			}
		}
	}
}

// blockSet is what is known of one fork.
type blockSet struct {
	chunks []chunk // sorted by number
	// limit: this block and all after it count as changed.
	limit uint32
	// truncated: the fork was cut shorter at some time. Else a limit is that
	// of a fork that was created or dropped.
	truncated bool
}

func (s *blockSet) chunk(number uint16) *chunk {
	n := len(s.chunks)
	if n > 0 && s.chunks[n-1].number == number {
		return &s.chunks[n-1]
	}
	at, found := slices.BinarySearchFunc(s.chunks, number, func(c chunk, n uint16) int { return int(c.number) - int(n) })
	if !found {
		s.chunks = slices.Insert(s.chunks, at, chunk{number: number})
	}
	return &s.chunks[at]
}

func (s *blockSet) add(block uint32) { s.chunk(uint16(block >> chunkBits)).add(uint16(block)) }

func (s *blockSet) or(o *blockSet) {
	for i := range o.chunks {
		s.chunk(o.chunks[i].number).or(&o.chunks[i])
	}
	s.limit = min(s.limit, o.limit)
	s.truncated = s.truncated || o.truncated
}

func (s *blockSet) len() int {
	n := 0
	for i := range s.chunks {
		n += s.chunks[i].len()
	}
	return n
}

// blocks gives the members in [from, to), ascending; the limit is not looked
// at.
func (s *blockSet) blocks(from, to uint32) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for i := range s.chunks {
			c := &s.chunks[i]
			base := uint32(c.number) << chunkBits
			if base >= to {
				return
			}
			if base+(chunkSize-1) < from {
				continue
			}
			for low := range c.all() {
				switch b := base + uint32(low); {
				case b < from:
				case b >= to:
					return
				case !yield(b):
					return
				}
			}
		}
	}
}
