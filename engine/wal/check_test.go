package wal

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/walherd/walherd/engine/pg"
)

// head is the beginning of a segment that a real server wrote.
type head struct {
	major int
	name  pg.SegmentName
	bytes []byte
}

func heads(t testing.TB) []head {
	t.Helper()
	paths, err := filepath.Glob("testdata/head.*")
	if err != nil || len(paths) == 0 {
		t.Fatal(paths, err)
	}
	var out []head
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(filepath.Base(path), ".")
		major, name, _ := strings.Cut(rest, ".")
		h := head{bytes: b}
		if h.major, err = strconv.Atoi(major); err != nil {
			t.Fatal(err)
		}
		if h.name, err = pg.ParseSegmentName(name); err != nil {
			t.Fatal(err)
		}
		out = append(out, h)
	}
	return out
}

// headerSystemID reads the identifier without the code under test.
func headerSystemID(b []byte) pg.SystemID { return pg.SystemID(binary.LittleEndian.Uint64(b[24:])) }

func TestCheckSegmentAcceptsRealServers(t *testing.T) {
	t.Parallel()
	var majors []int
	for _, h := range heads(t) {
		size := int64(pg.DefaultSegmentSize)
		if h.major == 14 {
			size = 1 << 20 // initdb --wal-segsize=1
		}
		for _, want := range []Expect{{}, {SystemID: headerSystemID(h.bytes), SegmentSize: pg.SegmentSize(size)}} {
			v, err := CheckSegment(h.bytes[:LongHeaderSize], h.name, size, want)
			if err != nil {
				t.Errorf("PostgreSQL %d, %s: %v", h.major, h.name, err)
			}
			if v.Major != h.major || v.Newer || v.Header.SegmentSize != pg.SegmentSize(size) || v.Header.BlockSize != 8192 {
				t.Errorf("PostgreSQL %d, %s: %+v", h.major, h.name, v)
			}
		}
		majors = append(majors, h.major)
	}
	slices.Sort(majors)
	majors = slices.Compact(majors)
	if len(majors) != pg.MaxMajor-pg.MinMajor+1 {
		t.Errorf("samples of %v only", majors)
	}
}

// The first segment of a new timeline still holds its parent's pages.
func TestCheckSegmentAfterTimelineSwitch(t *testing.T) {
	t.Parallel()
	found := 0
	for _, h := range heads(t) {
		v, err := CheckSegment(h.bytes, h.name, int64(pg.DefaultSegmentSize), Expect{})
		if h.name.Timeline == 1 || h.major == 14 {
			continue
		}
		found++
		if err != nil || v.Header.Timeline != h.name.Timeline-1 {
			t.Errorf("%s: page of timeline %d, %v", h.name, v.Header.Timeline, err)
		}
	}
	if found != 2 {
		t.Errorf("%d samples", found)
	}
}

func TestCheckSegmentRefusals(t *testing.T) {
	t.Parallel()
	var good head
	for _, h := range heads(t) {
		if h.major == 15 && h.name.Timeline == 1 {
			good = h
		}
	}
	const full = int64(pg.DefaultSegmentSize)
	le := binary.LittleEndian
	for name, c := range map[string]struct {
		edit func([]byte) []byte
		name string
		size int64
		want Expect
		err  error
	}{
		"empty":                 {size: -1, err: ErrSize},
		"short":                 {size: full - 1, err: ErrSize},
		"short, expected":       {size: full - 8192, want: Expect{SegmentSize: 16 << 20}, err: ErrSize},
		"other segment size":    {want: Expect{SegmentSize: 32 << 20}, err: ErrSize},
		"header cut":            {edit: func(b []byte) []byte { return b[:39] }, err: ErrHeader},
		"zeros":                 {edit: func(b []byte) []byte { return make([]byte, len(b)) }, err: ErrMagic},
		"PostgreSQL 12":         {edit: func(b []byte) []byte { le.PutUint16(b, 0xD101); return b }, err: ErrMagic},
		"a development version": {edit: func(b []byte) []byte { le.PutUint16(b, 0xD10A); return b }, err: ErrMagic},
		"no magic":              {edit: func(b []byte) []byte { le.PutUint16(b, 0xFFFF); return b }, err: ErrMagic},
		"big endian":            {edit: func(b []byte) []byte { b[0], b[1] = b[1], b[0]; return b }, err: ErrMagic},
		"no long header":        {edit: func(b []byte) []byte { b[2] &^= 2; return b }, err: ErrHeader},
		"unknown flag":          {edit: func(b []byte) []byte { b[2] |= 0x10; return b }, err: ErrHeader},
		"block size":            {edit: func(b []byte) []byte { le.PutUint32(b[36:], 8191); return b }, err: ErrHeader},
		"odd segment size":      {edit: func(b []byte) []byte { le.PutUint32(b[32:], 3<<20); return b }, err: ErrHeader},
		"other cluster":         {want: Expect{SystemID: 1}, err: ErrSystemID},
		"timeline 0":            {edit: func(b []byte) []byte { le.PutUint32(b[4:], 0); return b }, err: ErrTimeline},
		"newer timeline":        {edit: func(b []byte) []byte { le.PutUint32(b[4:], 2); return b }, err: ErrTimeline},
		"renamed":               {name: "000000010000000000000005", err: ErrAddress},
		"recycled":              {edit: func(b []byte) []byte { le.PutUint64(b[8:], 0x1000000); return b }, err: ErrAddress},
		"impossible name":       {name: "000000010000000000000104", err: ErrAddress},
		"other log":             {name: "000000010000000100000004", err: ErrAddress},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			header, seg, size := slices.Clone(good.bytes), good.name, full
			if c.edit != nil {
				header = c.edit(header)
			}
			if c.name != "" {
				var err error
				if seg, err = pg.ParseSegmentName(c.name); err != nil {
					t.Fatal(err)
				}
			}
			if c.size != 0 {
				size = max(c.size, 0)
			}
			_, err := CheckSegment(header, seg, size, c.want)
			if !errors.Is(err, c.err) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			if !strings.Contains(err.Error(), seg.String()) {
				t.Errorf("%q does not name the segment", err)
			}
		})
	}
}

func TestCheckSegmentLetsANewerMajorThrough(t *testing.T) {
	t.Parallel()
	h := heads(t)[len(heads(t))-1]
	for _, magic := range []uint16{0xD119, 0xD120, 0xD1FF} {
		b := slices.Clone(h.bytes)
		binary.LittleEndian.PutUint16(b, magic)
		b[2] |= 0x10 // a flag of the future
		v, err := CheckSegment(b, h.name, int64(pg.DefaultSegmentSize), Expect{SystemID: headerSystemID(b)})
		if err != nil || !v.Newer || v.Major != 0 {
			t.Errorf("magic %#x: %+v, %v", magic, v, err)
		}
		if _, err := CheckSegment(b, h.name, int64(pg.DefaultSegmentSize), Expect{SystemID: 1}); !errors.Is(err, ErrSystemID) {
			t.Errorf("magic %#x of another cluster: %v", magic, err)
		}
	}
}

// Nothing but the right name passes.
func TestCheckSegmentOnlyUnderItsName(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, h := range heads(t) {
		size := int64(pg.DefaultSegmentSize)
		if h.major == 14 {
			size = 1 << 20
		}
		for range 1000 {
			n := pg.SegmentName{Timeline: pg.Timeline(rnd.Uint32N(4)), Log: rnd.Uint32N(2), Seg: rnd.Uint32N(64)}
			_, err := CheckSegment(h.bytes, n, size, Expect{})
			page := pg.Timeline(binary.LittleEndian.Uint32(h.bytes[4:]))
			right := n.Log == h.name.Log && n.Seg == h.name.Seg && n.Timeline >= page
			if right != (err == nil) {
				t.Fatalf("%s under the name %s: %v", h.name, n, err)
			}
		}
	}
}

func FuzzCheckSegment(f *testing.F) {
	for _, h := range heads(f) {
		f.Add(h.bytes, h.name.String(), int64(pg.DefaultSegmentSize))
	}
	f.Fuzz(func(t *testing.T, b []byte, name string, size int64) {
		n, err := pg.ParseSegmentName(name)
		if err != nil {
			return
		}
		v, err := CheckSegment(b, n, size, Expect{})
		if err == nil && (v.Header.Address != n.Start(v.Header.SegmentSize) || v.Header.Timeline > n.Timeline || int64(v.Header.SegmentSize) != size) {
			t.Fatalf("accepted %+v as %s", v, n)
		}
	})
}
