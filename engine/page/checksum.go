package page

import (
	"encoding/binary"
)

// Verdict is what Verify finds.
type Verdict uint8

const (
	// Good: the checksum is right, or the page is new.
	Good Verdict = iota
	// Unchecked: the page has no checksum.
	Unchecked
	// Implausible: the header makes no sense; torn, or no page at all.
	Implausible
	// Corrupt: the checksum is wrong.
	Corrupt
)

// String names the verdict.
func (v Verdict) String() string {
	switch v {
	case Good:
		return "good"
	case Unchecked:
		return "unchecked"
	case Implausible:
		return "implausible"
	case Corrupt:
		return "corrupt"
	}
	return "unknown"
}

// Verify judges a page of a cluster with data checksums. block is its number in
// the relation, over all of its files: PagesPerFile times the file's number
// plus the page's number in the file.
func Verify(p []byte, block uint32) Verdict {
	h := ParseHeader(p)
	switch {
	case h.IsNew():
		return Good
	case !h.Plausible(len(p)):
		return Implausible
	case h.Checksum == 0:
		return Unchecked
	case h.Checksum != Checksum(p, block):
		return Corrupt
	}
	return Good
}

const (
	lanes = 32
	// prime is FNV's for 32 bits.
	prime = 16777619
	row   = 4 * lanes
)

// offsets are the lanes' initial values (checksumBaseOffsets in
// src/include/storage/checksum_impl.h).
var offsets = [lanes]uint32{
	0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
	0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
	0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
	0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
}

// mix is one step of a lane. FNV-1a alone leaves the high bits of a word out of
// the low bits of the sum; the shift folds them in.
func mix(sum, word uint32) uint32 {
	t := sum ^ word
	return t*prime ^ t>>17
}

// Checksum is what pg_checksum_page gives for page p at block (see Verify) of
// its relation; never 0. The checksum in the page counts as 0; p is not
// changed. len(p) is a multiple of 128.
//
// The algorithm is PostgreSQL's: 32 lanes of FNV-1a over the page's words, two
// rounds of zeros, lanes folded, block number mixed in, reduced to 1..65535.
func Checksum(p []byte, block uint32) uint16 {
	var sum uint32
	// Eight lanes at a time stay in registers; the page stays in the cache.
	for l := 0; l < lanes; l += 8 {
		sum ^= fold(p, l)
	}
	sum ^= block
	return uint16(sum%65535 + 1)
}

// fold runs the eight lanes from l on over all rows.
func fold(p []byte, l int) uint32 {
	o := (*[8]uint32)(offsets[l:])
	a, b, c, d, e, f, g, h := o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7]
	le := binary.LittleEndian
	at := 4 * l
	if l == 0 {
		// The third word holds the checksum itself and the flags.
		w := (*[32]byte)(p)
		a = mix(a, le.Uint32(w[0:]))
		b = mix(b, le.Uint32(w[4:]))
		c = mix(c, le.Uint32(w[8:])&0xffff0000)
		d = mix(d, le.Uint32(w[12:]))
		e = mix(e, le.Uint32(w[16:]))
		f = mix(f, le.Uint32(w[20:]))
		g = mix(g, le.Uint32(w[24:]))
		h = mix(h, le.Uint32(w[28:]))
		at += row
	}
	for ; at+32 <= len(p); at += row {
		w := (*[32]byte)(p[at:])
		a = mix(a, le.Uint32(w[0:]))
		b = mix(b, le.Uint32(w[4:]))
		c = mix(c, le.Uint32(w[8:]))
		d = mix(d, le.Uint32(w[12:]))
		e = mix(e, le.Uint32(w[16:]))
		f = mix(f, le.Uint32(w[20:]))
		g = mix(g, le.Uint32(w[24:]))
		h = mix(h, le.Uint32(w[28:]))
	}
	for range 2 {
		a, b, c, d = mix(a, 0), mix(b, 0), mix(c, 0), mix(d, 0)
		e, f, g, h = mix(e, 0), mix(f, 0), mix(g, 0), mix(h, 0)
	}
	return a ^ b ^ c ^ d ^ e ^ f ^ g ^ h
}
