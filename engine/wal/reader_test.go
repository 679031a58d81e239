package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/pg"
)

// seen is a record without the Reader's buffers.
type seen struct {
	start, prev pg.LSN
	manager     Manager
	data        string
	blocks      []BlockRef
}

func readAll(src io.Reader, opt ReaderOptions) (out []seen, r *Reader, err error) {
	r = NewReader(src, opt)
	for {
		rec, err := r.Next()
		if err != nil {
			if _, again := r.Next(); again != err {
				return out, r, fmt.Errorf("after %w: %w", err, again)
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return out, r, err
		}
		out = append(out, seen{rec.Start, rec.Prev, rec.Manager, string(rec.Data), slices.Clone(rec.Blocks)})
	}
}

func equalSeen(a, b seen) bool {
	return a.start == b.start && a.prev == b.prev && a.manager == b.manager && a.data == b.data && slices.Equal(a.blocks, b.blocks)
}

// TestReaderReadsWhatWasWritten: records of all sizes around the page's and the
// segment's, read whole, in two halves at any segment's border, and in ranges.
func TestReaderReadsWhatWasWritten(t *testing.T) {
	t.Parallel()
	noise := make([]byte, 3<<20)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	rapid.Check(t, func(t *rapid.T) {
		major := rapid.IntRange(pg.MinMajor, pg.MaxMajor).Draw(t, "major")
		w := newWriter(major, pg.LSN(rapid.SampledFrom([]uint64{1 << 20, 0x2_FFF0_0000}).Draw(t, "start")))
		var want []seen
		size := rapid.OneOf(rapid.IntRange(0, 300), rapid.IntRange(8192-120, 8192+40), rapid.IntRange(0, 3<<20),
			rapid.Custom(func(*rapid.T) int { // to the end of the page, or almost
				rest := w.page - len(w.out)%w.page
				return max(rest-recordHeader-2-rapid.IntRange(0, 40).Draw(t, "rest"), 0)
			}))
		for i := range rapid.IntRange(1, 12).Draw(t, "records") {
			n := size.Draw(t, "size")
			off := rapid.IntRange(0, len(noise)-n).Draw(t, "offset")
			s := seen{manager: LogicalMessage, prev: w.prev, data: string(noise[off : off+n])}
			var headers []byte
			if n < 300 {
				s.blocks = []BlockRef{{ID: 3, Rel: RelFile{1663, 5, 16384}, Block: uint32(i), Fork: VisibilityFork}}
				s.manager, headers = Heap, blockHeader(s.blocks[0])
			}
			s.start = w.record(s.manager, 0, headers, noise[off:off+n])
			want = append(want, s)
			if rapid.IntRange(0, 9).Draw(t, "switch") == 0 {
				p := w.prev
				w.switchSegment()
				want = append(want, seen{start: w.prev, prev: p, manager: XLog})
			}
		}
		end := w.at()
		all := w.fill()
		var src io.Reader = bytes.NewReader(all)
		if rapid.Bool().Draw(t, "one byte at a time") {
			src = iotest.OneByteReader(src)
		}
		got, r, err := readAll(src, ReaderOptions{})
		if err != nil || !slices.EqualFunc(got, want, equalSeen) {
			t.Fatalf("%d records, want %d: %v", len(got), len(want), err)
		}
		if aligned := (end + 7) &^ 7; r.End() != aligned || r.Tail() != nil || r.Head() != nil {
			t.Fatalf("end %s, want %s; tail %v, head %v", r.End(), aligned, r.Tail(), r.Head())
		}
		if r.Major() != major || r.SystemID() != testSystem || r.Timeline() != 1 || r.SegmentSize() != w.size {
			t.Fatalf("%+v", r.all)
		}

		// In ranges.
		from := want[rapid.IntRange(0, len(want)-1).Draw(t, "from")].start + pg.LSN(rapid.IntRange(0, 1).Draw(t, "past"))
		to := from + pg.LSN(rapid.IntRange(0, 2<<20).Draw(t, "length"))
		got, _, err = readAll(bytes.NewReader(all), ReaderOptions{From: from, To: to})
		part := slices.DeleteFunc(slices.Clone(want), func(s seen) bool { return s.start < from || s.start >= to })
		if err != nil || !slices.EqualFunc(got, part, equalSeen) {
			t.Fatalf("%s to %s: %d records, want %d: %v", from, to, len(got), len(part), err)
		}

		// In two halves.
		if cut := int(w.size) * rapid.IntRange(0, len(all)/int(w.size)-1).Draw(t, "cut"); cut > 0 {
			a, ra, err := readAll(bytes.NewReader(all[:cut]), ReaderOptions{})
			b, rb, err2 := readAll(bytes.NewReader(all[cut:]), ReaderOptions{})
			if err != nil || err2 != nil {
				t.Fatal(err, err2)
			}
			joined := a
			switch tail, head := ra.Tail(), rb.Head(); {
			case (tail == nil) != (head == nil):
				t.Fatalf("tail %v, head %v", tail, head)
			case tail != nil && head.Missing == 0:
				if int(tail.Missing) != len(head.Bytes) {
					t.Fatalf("%d bytes missing, %d there", tail.Missing, len(head.Bytes))
				}
				rec, err := ParseRecord(slices.Concat(tail.Bytes, head.Bytes), tail.Start, major, 0)
				if err != nil {
					t.Fatal(err)
				}
				joined = append(joined, seen{rec.Start, rec.Prev, rec.Manager, string(rec.Data), rec.Blocks})
			case tail != nil:
				joined = append(joined, want[len(a)])
			}
			if joined = append(joined, b...); !slices.EqualFunc(joined, want, equalSeen) {
				t.Fatalf("cut at %d: %d records, want %d", cut, len(joined), len(want))
			}
		}
	})
}

// TestReaderKeepsLittle: a record too long to keep is checked all the same.
func TestReaderKeepsLittle(t *testing.T) {
	t.Parallel()
	w := newWriter(16, 1<<20)
	big := bytes.Repeat([]byte("walherd "), 400_000)
	ref := BlockRef{Rel: RelFile{1663, 5, 16384}, Block: 9}
	w.record(Generic, 0, blockHeader(ref), big)
	w.record(Heap, 0, nil, []byte("next"))
	all := w.fill()
	r := NewReader(bytes.NewReader(all), ReaderOptions{MaxRecord: 1})
	rec, err := r.Next()
	if err != nil || !rec.Cut || rec.Data != nil || !slices.Equal(rec.Blocks, []BlockRef{ref}) || int(rec.Length) < len(big) {
		t.Fatalf("%+v, %v", rec, err)
	}
	if cap(r.buf) > 64<<10 {
		t.Errorf("%d bytes kept", cap(r.buf))
	}
	if rec, err = r.Next(); err != nil || string(rec.Data) != "next" {
		t.Fatalf("%+v, %v", rec, err)
	}
	all[1<<20+5000] ^= 1
	if _, err := NewReader(bytes.NewReader(all), ReaderOptions{MaxRecord: 1}).Next(); !errors.Is(err, ErrRecord) {
		t.Errorf("a bit turned over: %v", err)
	}
	// The fragments of what is too long are empty, not wrong.
	_, r, err = readAll(bytes.NewReader(all[:1<<20]), ReaderOptions{MaxRecord: 1})
	if tail := r.Tail(); err != nil || tail == nil || !tail.Cut || tail.Bytes != nil || tail.Missing == 0 {
		t.Errorf("tail %+v, %v", tail, err)
	}
}

// TestReaderAfterCrash: a record that was never completed, within one segment
// and over the border of two.
func TestReaderAfterCrash(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]int{"within": 0, "over the border": 1<<20 - 3*8192} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWriter(17, 1<<20)
			first := w.record(Heap, 0, nil, make([]byte, before+100))
			w.abandon(90_000, 25_000)
			second := w.record(XLog, 0xD0, nil, make([]byte, 16))
			all := w.fill()
			got, r, err := readAll(bytes.NewReader(all), ReaderOptions{})
			if err != nil || len(got) != 2 || got[0].start != first || got[1].start != second || r.Tail() != nil {
				t.Fatalf("%+v, %v, %v", got, r.Tail(), err)
			}
			if len(all) == 1<<20 {
				return
			}
			got, r, err = readAll(bytes.NewReader(all[1<<20:]), ReaderOptions{})
			// The record's beginning fills the first segment and some of this.
			if err != nil || len(got) != 1 || got[0].start != second || !r.HeadLost() || r.Head() != nil {
				t.Fatalf("second segment: %+v, head %v, lost %v, %v", got, r.Head(), r.HeadLost(), err)
			}
		})
	}
}

// TestReaderRefuses: each damage has its error, and the error its position.
func TestReaderRefuses(t *testing.T) {
	t.Parallel()
	const start = pg.LSN(5 << 20)
	var long, after pg.LSN
	build := func() []byte {
		w := newWriter(15, start)
		w.record(Heap, 0, nil, make([]byte, 500))
		long = w.record(LogicalMessage, 0, nil, make([]byte, 20_000))
		after = w.record(Heap, 0, nil, make([]byte, 50))
		w.record(Heap, 0, nil, make([]byte, 1<<20))
		return w.fill()
	}
	build()
	page := func(n int) pg.LSN { return start + pg.LSN(n*8192) }
	le := binary.LittleEndian
	for name, tc := range map[string]struct {
		damage func(b []byte) []byte
		want   error
		at     pg.LSN
	}{
		"empty":                 {func(b []byte) []byte { return b[:0] }, nil, 0},
		"shorter than a header": {func(b []byte) []byte { return b[:39] }, io.ErrUnexpectedEOF, 0},
		"cut within a page":     {func(b []byte) []byte { return b[:9000] }, io.ErrUnexpectedEOF, page(1)},
		"zeros":                 {func(b []byte) []byte { return make([]byte, 8192) }, ErrMagic, 0},
		"newer server":          {func(b []byte) []byte { le.PutUint16(b, 0xD140); return b }, ErrMagic, start},
		"older server":          {func(b []byte) []byte { le.PutUint16(b, 0xD101); return b }, ErrMagic, start},
		"not a first page":      {func(b []byte) []byte { return b[8192:] }, ErrHeader, page(1)},
		"size of WAL pages":     {func(b []byte) []byte { le.PutUint32(b[36:], 5000); return b }, ErrHeader, start},
		"size of segments":      {func(b []byte) []byte { le.PutUint32(b[32:], 3<<20); return b }, ErrAddress, start},
		"segments too small":    {func(b []byte) []byte { le.PutUint32(b[32:], 1<<19); return b }, ErrHeader, start},
		"other magic":           {func(b []byte) []byte { b[8192]++; return b }, ErrMagic, page(1)},
		"unknown flag":          {func(b []byte) []byte { b[8192+2] |= 0x40; return b }, ErrHeader, page(1)},
		"long header inside":    {func(b []byte) []byte { b[8192+2] |= 2; return b }, ErrHeader, page(1)},
		"recycled page":         {func(b []byte) []byte { b[8192+12]++; return b }, ErrAddress, page(1)},
		"no timeline":           {func(b []byte) []byte { le.PutUint32(b[8192+4:], 0); return b }, ErrTimeline, page(1)},
		"earlier timeline":      {func(b []byte) []byte { le.PutUint32(b[4:], 2); return b }, ErrTimeline, page(1)},
		"other cluster":         {func(b []byte) []byte { b[1<<20+24]++; return b }, ErrSystemID, start + 1<<20},
		"other segment size":    {func(b []byte) []byte { le.PutUint32(b[1<<20+32:], 2<<20); return b }, ErrSize, start + 1<<20},
		"no continuation":       {func(b []byte) []byte { b[8192+2] &^= 1; return b }, ErrRecord, long},
		"other continuation":    {func(b []byte) []byte { b[8192+16]++; return b }, ErrRecord, long},
		"both flags":            {func(b []byte) []byte { b[8192+2] |= 8; return b }, ErrHeader, page(1)},
		"nothing to go on":      {func(b []byte) []byte { le.PutUint32(b[8192+16:], 0); return b }, ErrHeader, page(1)},
		"body":                  {func(b []byte) []byte { b[40+100] ^= 1; return b }, ErrRecord, start + 40},
		"body on a page":        {func(b []byte) []byte { b[8192+100] ^= 1; return b }, ErrRecord, long},
		"header":                {func(b []byte) []byte { b[40+16] ^= 1; return b }, ErrRecord, start + 40},
		"checksum":              {func(b []byte) []byte { b[40+20] ^= 1; return b }, ErrRecord, start + 40},
		"length of 23":          {func(b []byte) []byte { le.PutUint32(b[after-start:], 23); return b }, ErrRecord, after},
		"length of 2 GiB":       {func(b []byte) []byte { le.PutUint32(b[after-start:], 1<<31); return b }, ErrRecord, after},
		"length of 0":           {func(b []byte) []byte { le.PutUint32(b[after-start:], 0); return b }, ErrRecord, after},
		"zeros in between":      {func(b []byte) []byte { clear(b[after-start : (after-start+8191)/8192*8192]); return b }, ErrRecord, after},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWriter(15, start)
			w.record(Heap, 0, nil, make([]byte, 500))
			w.record(LogicalMessage, 0, nil, make([]byte, 20_000))
			w.record(Heap, 0, nil, make([]byte, 50))
			w.record(Heap, 0, nil, make([]byte, 1<<20))
			_, _, err := readAll(bytes.NewReader(tc.damage(w.fill())), ReaderOptions{})
			if !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if at := (*RecordError)(nil); err != nil && (!errors.As(err, &at) || at.LSN != tc.at) {
				t.Errorf("got %v, want it at %s", err, tc.at)
			}
		})
	}
	t.Run("record before", func(t *testing.T) {
		t.Parallel()
		w := newWriter(15, start)
		w.record(Heap, 0, nil, nil)
		w.prev -= 8
		at := w.record(Heap, 0, nil, nil)
		_, _, err := readAll(bytes.NewReader(w.fill()), ReaderOptions{})
		if e := (*RecordError)(nil); !errors.As(err, &e) || e.LSN != at || !strings.Contains(err.Error(), "record before") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("input", func(t *testing.T) {
		t.Parallel()
		broken := errors.New("cut line")
		_, _, err := readAll(io.MultiReader(bytes.NewReader(build()[:100_000]), iotest.ErrReader(broken)), ReaderOptions{})
		if !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
	})
}

// FuzzReader: whatever the bytes are, reading ends, with an error or without.
// Checksums are made right, or nothing behind them would ever be reached.
func FuzzReader(f *testing.F) {
	for major := pg.MinMajor; major <= pg.MaxMajor; major++ {
		w := newWriter(major, 1<<20)
		w.page = 1 << 10 // short seeds: the fuzzer's time goes by their length
		w.record(Heap, 0, blockHeader(BlockRef{Rel: RelFile{1663, 5, 16384}, Block: 7}), []byte("data"))
		w.record(Heap, 0, nil, make([]byte, 600))
		w.abandon(900, 900)
		w.record(Storage, 0x10, nil, make([]byte, 16))
		for len(w.out)%w.page != 0 {
			w.out = append(w.out, 0)
		}
		f.Add(w.out, uint64(0), uint64(0))
		f.Add(w.out, uint64(1<<20+100), uint64(1<<20+200))
	}
	f.Fuzz(func(t *testing.T, b []byte, from, to uint64) {
		r := NewReader(bytes.NewReader(b), ReaderOptions{From: pg.LSN(from), To: pg.LSN(to), MaxRecord: 4 << 10})
		for n := 0; ; n++ {
			if _, err := r.Next(); err != nil {
				break
			}
			if n > len(b) {
				t.Fatal("more records than bytes")
			}
		}
	})
}

// FuzzParseRecord: a record's headers, with the right checksum.
func FuzzParseRecord(f *testing.F) {
	f.Add([]byte{0, 0x10 | 0x20, 2, 0, 100, 0, 30, 0, 0x05, 9, 0}, []byte("data"), uint8(15))
	f.Add(blockHeader(BlockRef{Rel: RelFile{1663, 5, 16384}}), []byte{}, uint8(13))
	f.Fuzz(func(t *testing.T, headers, payload []byte, major uint8) {
		v := pg.MinMajor + int(major)%(pg.MaxMajor-pg.MinMajor+1)
		rec, err := ParseRecord(rawRecord(8, Heap, 0, headers, payload), 64, v, 0)
		if err == nil && len(rec.Blocks) > maxBlockID+1 {
			t.Errorf("%d block references", len(rec.Blocks))
		}
	})
}

func BenchmarkReader(b *testing.B) {
	w := newWriter(15, 1<<20)
	w.size = 16 << 20
	w.start = 16 << 20
	ref := blockHeader(BlockRef{Rel: RelFile{1663, 5, 16384}, Block: 7})
	for i := 0; len(w.out) < 60<<20; i++ {
		w.record(Heap, 0, ref, make([]byte, 20+i%100)) // no images: the worst case
	}
	all := w.fill()
	b.SetBytes(int64(len(all)))
	for b.Loop() {
		r := NewReader(bytes.NewReader(all), ReaderOptions{})
		for {
			if _, err := r.Next(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
	}
}
