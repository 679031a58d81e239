package compress

import (
	"encoding/binary"
	"math/rand/v2"
)

func zeros(n int) []byte { return make([]byte, n) }

// noise does not compress.
func noise(n int) []byte {
	b := make([]byte, n+8)
	r := rand.NewPCG(1, uint64(n))
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b[:n]
}

// pages looks like a heap after some traffic: 8 KiB pages with header, line
// pointers from the front, rows of 121 bytes from the back (transaction id,
// tuple header, three integers, blank filler), of which some were updated.
// It packs 10.4 times with lz4 and 16.7 times with zstd; a pgbench cluster
// packs 8.5 and 17.9 times.
func pages(n int) []byte {
	const page, row = 8192, 128
	b := make([]byte, n+page)
	r := rand.New(rand.NewPCG(2, 3))
	for at, id := 0, uint32(1); at < n; at += page {
		p := b[at : at+page]
		binary.LittleEndian.PutUint64(p, uint64(at)<<7|uint64(r.Uint32()>>20))
		binary.LittleEndian.PutUint16(p[8:], uint16(r.Uint32())) // checksum
		const rows = (page - 24) / (row + 4)
		binary.LittleEndian.PutUint16(p[12:], 24+4*rows)
		binary.LittleEndian.PutUint16(p[14:], page-row*rows)
		for i := range rows {
			binary.LittleEndian.PutUint32(p[24+4*i:], uint32(page-row*(i+1))|1<<15|121<<17)
			t := p[page-row*(i+1):][:row]
			xid := uint32(745)
			if r.IntN(3) == 0 {
				xid += r.Uint32() >> 14
				binary.LittleEndian.PutUint32(t[32:], uint32(int32(r.IntN(10000)-5000)))
			}
			binary.LittleEndian.PutUint32(t, xid)
			binary.LittleEndian.PutUint32(t[12:], uint32(at/page))
			binary.LittleEndian.PutUint16(t[16:], uint16(i+1))
			copy(t[18:], "\x04\x00\x02\x09\x18\x00")
			binary.LittleEndian.PutUint32(t[24:], id)
			binary.LittleEndian.PutUint32(t[28:], id/100000+1)
			t[36] = 0xab
			for j := 37; j < 121; j++ {
				t[j] = ' '
			}
			id++
		}
	}
	return b[:n]
}

// mixed changes between the three every 100,000 bytes.
func mixed(n int) []byte {
	var b []byte
	for i := 0; len(b) < n; i++ {
		b = append(b, []func(int) []byte{pages, noise, zeros}[i%3](100_000)...)
	}
	return b[:n]
}
