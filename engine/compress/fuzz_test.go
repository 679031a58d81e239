package compress

import (
	"bytes"
	"errors"
	"testing"
)

// fuzzRead holds for any input: no panic, the same answer with one worker and
// with several, an error that is ErrCorrupt, and what is accepted is what the
// format's library reads too.
func fuzzRead(f *testing.F, m Method) {
	f.Add([]byte{})
	for _, data := range [][]byte{nil, []byte("x"), pages(3000), noise(100)} {
		packed := pack(f, Options{Method: m}, data, 0)
		f.Add(packed)
		f.Add(packed[:len(packed)-1])
		f.Add(append(bytes.Clone(packed), packed...))
	}
	for _, name := range []string{"linked.lz4", "checked.lz4", "walg.lz4", "cli.zst"} {
		f.Add(fixture(f, name))
	}
	f.Add([]byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 'x'})
	f.Fuzz(func(t *testing.T, packed []byte) {
		if len(packed) > 64<<10 {
			return
		}
		one, err := unpack(m, packed, 1)
		two, err2 := unpack(m, packed, 2)
		if (err == nil) != (err2 == nil) || err == nil && !bytes.Equal(one, two) {
			t.Fatalf("one worker reads %d bytes (%v), two %d (%v)", len(one), err, len(two), err2)
		}
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%v is not ErrCorrupt", err)
			}
			return
		}
		if other, err := library(m, packed); err != nil || !bytes.Equal(one, other) {
			t.Fatalf("read %d bytes, the library %d (%v)", len(one), len(other), err)
		}
	})
}

func FuzzReadLZ4(f *testing.F) { fuzzRead(f, LZ4) }

func FuzzReadZstd(f *testing.F) { fuzzRead(f, Zstd) }
