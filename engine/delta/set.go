package delta

import (
	"encoding/binary"
	"iter"
	"math/bits"
)

// set is a set of page numbers below a limit, one bit each: 16 KiB for a file
// of 1 GiB.
type set struct {
	limit int64
	words []uint64
}

func newSet(limit int64) *set { return &set{limit: limit, words: make([]uint64, (limit+63)/64)} }

// fullSet holds all numbers below limit.
func fullSet(limit int64) *set {
	s := newSet(limit)
	for i := range s.words {
		s.words[i] = ^uint64(0)
	}
	if n := limit % 64; n > 0 {
		s.words[len(s.words)-1] = 1<<n - 1
	}
	return s
}

func (s *set) add(n int64)      { s.words[n/64] |= 1 << (n % 64) }
func (s *set) remove(n int64)   { s.words[n/64] &^= 1 << (n % 64) }
func (s *set) has(n int64) bool { return n < s.limit && s.words[n/64]&(1<<(n%64)) != 0 }

func (s *set) count() int64 {
	n := 0
	for _, w := range s.words {
		n += bits.OnesCount64(w)
	}
	return int64(n)
}

func (s *set) empty() bool {
	for _, w := range s.words {
		if w != 0 {
			return false
		}
	}
	return true
}

// cut removes all numbers from n on.
func (s *set) cut(n int64) {
	if n >= s.limit {
		return
	}
	at := n / 64
	s.words[at] &= 1<<(n%64) - 1
	clear(s.words[at+1:])
}

// next is the first member at or after n; limit if there is none.
func (s *set) next(n int64) int64 { return s.find(n, 0) }

// gap is the first number at or after n that is not a member.
func (s *set) gap(n int64) int64 { return s.find(n, ^uint64(0)) }

func (s *set) find(n int64, flip uint64) int64 {
	for n < s.limit {
		if w := (s.words[n/64] ^ flip) >> (n % 64); w != 0 {
			return min(s.limit, n+int64(bits.TrailingZeros64(w)))
		}
		n = (n/64 + 1) * 64
	}
	return s.limit
}

// runs yields the members as ranges: the first and how many.
func (s *set) runs() iter.Seq2[int64, int64] {
	return func(yield func(int64, int64) bool) {
		for at := s.next(0); at < s.limit; {
			end := s.gap(at)
			if !yield(at, end-at) {
				return
			}
			at = s.next(end)
		}
	}
}

// bytes and setOf turn a set into bytes and back.
func (s *set) bytes() []byte {
	b := make([]byte, 0, 8*len(s.words))
	for _, w := range s.words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

func setOf(limit int64, b []byte) *set {
	s := newSet(limit)
	for i := range s.words {
		s.words[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return s
}
