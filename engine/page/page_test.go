package page

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"

	"pgregory.net/rapid"
)

type recorded struct {
	block uint32
	page  []byte
}

// recordedPages are pages of a PostgreSQL 15 cluster with data checksums: heaps,
// indexes, a visibility and a free space map, each behind its block number.
func recordedPages(t testing.TB) []recorded {
	t.Helper()
	f, err := os.Open("testdata/pages.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	const size = 4 + DefaultSize
	if len(b) == 0 || len(b)%size != 0 {
		t.Fatalf("%d bytes of test pages", len(b))
	}
	var out []recorded
	for ; len(b) > 0; b = b[size:] {
		out = append(out, recorded{binary.LittleEndian.Uint32(b), b[4:size]})
	}
	return out
}

func TestRecordedPages(t *testing.T) {
	t.Parallel()
	checked := 0
	for i, r := range recordedPages(t) {
		h := ParseHeader(r.page)
		if h.IsNew() {
			if !IsZero(r.page) {
				t.Errorf("page %d is new and not zero", i)
			}
			continue
		}
		checked++
		if err := h.Check(DefaultSize); err != nil && h.LSN != 0 {
			t.Errorf("page %d: %v", i, err)
		}
		if h.Version != 4 || h.Size != DefaultSize || h.Checksum == 0 {
			t.Errorf("page %d: header %+v", i, h)
		}
		if got := Checksum(r.page, r.block); got != h.Checksum {
			t.Errorf("page %d, block %d: checksum %#x, PostgreSQL's is %#x", i, r.block, got, h.Checksum)
		}
		if Checksum(r.page, r.block+1) == h.Checksum {
			t.Errorf("page %d: the block number does not count", i)
		}
	}
	if checked < 8 {
		t.Errorf("%d pages checked", checked)
	}
}

// slowChecksum follows the description in PostgreSQL's checksum_impl.h word by
// word.
func slowChecksum(p []byte, block uint32) uint16 {
	p = bytes.Clone(p)
	p[8], p[9] = 0, 0
	sums := offsets
	for i := 0; i < len(p); i += 4 {
		lane := i / 4 % lanes
		sums[lane] = mix(sums[lane], binary.LittleEndian.Uint32(p[i:]))
	}
	var all uint32
	for _, s := range sums {
		all ^= mix(mix(s, 0), 0)
	}
	return uint16((all^block)%65535) + 1
}

func TestChecksumOfAnyPage(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{1024, 2048, 4096, 8192, 16384, 32768}).Draw(t, "size")
		p := make([]byte, size)
		for range rapid.IntRange(0, 30).Draw(t, "bytes") {
			p[rapid.IntRange(0, size-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
		}
		block := rapid.Uint32().Draw(t, "block")
		before := bytes.Clone(p)
		got := Checksum(p, block)
		if want := slowChecksum(p, block); got != want || got == 0 {
			t.Fatalf("checksum %#x, want %#x", got, want)
		}
		if !bytes.Equal(p, before) {
			t.Fatal("the page was changed")
		}
		binary.LittleEndian.PutUint16(p[8:], got)
		if Checksum(p, block) != got {
			t.Fatal("the stored checksum counts")
		}
		at := rapid.IntRange(24, size-1).Draw(t, "flip")
		p[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if Checksum(p, block) == got {
			t.Fatalf("a flipped bit at %d goes unnoticed", at)
		}
	})
}

func TestVerify(t *testing.T) {
	t.Parallel()
	var good recorded
	for _, r := range recordedPages(t) {
		if ParseHeader(r.page).Plausible(DefaultSize) {
			good = r
		}
	}
	alter := func(f func(p []byte)) []byte {
		p := bytes.Clone(good.page)
		f(p)
		return p
	}
	for name, tt := range map[string]struct {
		page []byte
		want Verdict
	}{
		"as it is":          {good.page, Good},
		"all zero":          {make([]byte, DefaultSize), Good},
		"no checksum":       {alter(func(p []byte) { p[8], p[9] = 0, 0 }), Unchecked},
		"another byte":      {alter(func(p []byte) { p[5000] ^= 1 }), Corrupt},
		"another LSN":       {alter(func(p []byte) { p[4] ^= 1 }), Corrupt},
		"no LSN":            {alter(func(p []byte) { clear(p[:8]) }), Implausible},
		"unknown flag":      {alter(func(p []byte) { p[10] |= 8 }), Implausible},
		"lower too low":     {alter(func(p []byte) { p[12], p[13] = 23, 0 }), Implausible},
		"lower above upper": {alter(func(p []byte) { p[12], p[13] = 0xff, 0x7f }), Implausible},
		"upper > special":   {alter(func(p []byte) { p[14], p[15] = 1, 0x20 }), Implausible},
		"special > size":    {alter(func(p []byte) { p[16], p[17] = 1, 0x20 }), Implausible},
		"another size":      {alter(func(p []byte) { p[19] = 0x10 }), Implausible},
		"another version":   {alter(func(p []byte) { p[18] = 6 }), Implausible},
	} {
		if got := Verify(tt.page, good.block); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
		if err := ParseHeader(tt.page).Check(DefaultSize); (err != nil) != (!ParseHeader(tt.page).Plausible(DefaultSize)) || err != nil && !errors.Is(err, ErrHeader) {
			t.Errorf("%s: Check says %v", name, err)
		}
	}
}

func TestIsZero(t *testing.T) {
	t.Parallel()
	p := make([]byte, 3*DefaultSize/2)
	if !IsZero(p) || !IsZero(nil) {
		t.Error("zeros are not zero")
	}
	for _, at := range []int{0, DefaultSize - 1, DefaultSize, len(p) - 1} {
		p[at] = 1
		if IsZero(p) {
			t.Errorf("a byte at %d goes unnoticed", at)
		}
		p[at] = 0
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(make([]byte, HeaderSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderSize {
			return
		}
		h := ParseHeader(b)
		if h.Plausible(DefaultSize) && (h.IsNew() || h.Check(DefaultSize) != nil) {
			t.Fatalf("%+v is plausible", h)
		}
	})
}

func BenchmarkChecksum(b *testing.B) {
	p := recordedPages(b)[0].page
	b.SetBytes(DefaultSize)
	for b.Loop() {
		Checksum(p, 1)
	}
}

func BenchmarkHeader(b *testing.B) {
	p := recordedPages(b)[0].page
	b.SetBytes(DefaultSize)
	for b.Loop() {
		if ParseHeader(p).Plausible(DefaultSize) == ParseHeader(p).IsNew() {
			b.Fatal("no page")
		}
	}
}
