package compress

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

// fuzzRead holds for any input: no panic, the same answer with one worker and
// with several, an error that is ErrCorrupt, and what is accepted is what the
// format's library reads too.
func fuzzRead(f *testing.F, m Method) {
	f.Add([]byte{})
	for _, data := range [][]byte{nil, []byte("x"), pages(3000), noise(100)} {
		packed := lean(m, packMethod(f, m, data))
		f.Add(packed)
		f.Add(packed[:len(packed)-1])
		f.Add(append(bytes.Clone(packed), packed...))
	}
	for _, name := range []string{"linked.lz4", "checked.lz4", "walg.lz4", "cli.zst", "walg.br", "segment.br", "cli.lzma"} {
		f.Add(fixture(f, name))
	}
	f.Add([]byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 'x'})
	f.Fuzz(func(t *testing.T, packed []byte) {
		if len(packed) > 64<<10 {
			return
		}
		one, err := unpackSome(m, packed, 1)
		two, err2 := unpackSome(m, packed, 2)
		if errors.Is(err, errTooMuch) {
			return
		}
		if (err == nil) != (err2 == nil) || err == nil && !bytes.Equal(one, two) {
			t.Fatalf("one worker reads %d bytes (%v), two %d (%v)", len(one), err, len(two), err2)
		}
		if err != nil {
			if !errors.Is(err, ErrCorrupt) || errors.Is(err, errCodecPanic) {
				t.Fatalf("%v is not ErrCorrupt, or it is a panic", err)
			}
			return
		}
		if other, err := library(m, packed); err != nil || !bytes.Equal(one, other) {
			t.Fatalf("read %d bytes, the library %d (%v)", len(one), len(other), err)
		}
	})
}

var errTooMuch = errors.New("more than a fuzz run shall hold")

// unpackSome is unpack within 64 MiB: some bytes of brotli or LZMA can stand
// for any number of plain ones.
func unpackSome(m Method, packed []byte, workers int) ([]byte, error) {
	r, err := NewReader(iotest.HalfReader(bytes.NewReader(packed)), m, workers)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	const most = 64 << 20
	got, err := io.ReadAll(io.LimitReader(r, most))
	if len(got) == most {
		return nil, errTooMuch
	}
	return got, err
}

func FuzzReadLZ4(f *testing.F) { fuzzRead(f, LZ4) }

func FuzzReadZstd(f *testing.F) { fuzzRead(f, Zstd) }

func FuzzReadBrotli(f *testing.F) { fuzzRead(f, Brotli) }

func FuzzReadLZMA(f *testing.F) { fuzzRead(f, LZMA) }

func FuzzReadGzip(f *testing.F) { fuzzRead(f, Gzip) }
