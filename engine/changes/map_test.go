package changes

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
)

var testRel = wal.RelFile{Tablespace: wal.DefaultTablespace, Database: 5, Relation: 16384}

func drawBlocks(t *rapid.T) []uint32 {
	dense := rapid.Custom(func(t *rapid.T) []uint32 {
		start := rapid.Uint32Range(0, 300_000).Draw(t, "start")
		step := rapid.Uint32Range(1, 20).Draw(t, "step")
		out := make([]uint32, rapid.IntRange(0, 9000).Draw(t, "count"))
		for i := range out {
			out[i] = start + uint32(i)*step
		}
		return out
	})
	sparse := rapid.SliceOf(rapid.Uint32Range(0, noLimit-1))
	return slices.Concat(rapid.SliceOfN(rapid.OneOf(dense, sparse), 0, 5).Draw(t, "blocks")...)
}

// TestSetIsASet: a blockSet against a Go map, also after it was stored.
func TestSetIsASet(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawBlocks(t), drawBlocks(t)
		m, err := New(Layout{}, Span{1, 100, 200})
		if err != nil {
			t.Fatal(err)
		}
		other, err := New(Layout{}, Span{1, 200, 300})
		if err != nil {
			t.Fatal(err)
		}
		want := map[uint32]bool{}
		for _, x := range a {
			m.Mark(Fork{testRel, wal.MainFork}, x)
			want[x] = true
		}
		for _, x := range b {
			other.Mark(Fork{testRel, wal.MainFork}, x)
			want[x] = true
		}
		if err := m.Merge(other); err != nil {
			t.Fatal(err)
		}
		sorted := slices.Sorted(maps.Keys(want))
		for range 2 {
			var got []uint32
			for f := range m.Forks() {
				got = slices.Collect(f.Blocks)
				if f.Count != len(got) || f.Limited {
					t.Fatalf("%+v, %d blocks", f, len(got))
				}
			}
			if !slices.Equal(got, sorted) {
				t.Fatalf("%d blocks, want %d", len(got), len(sorted))
			}
			file := rapid.Uint32Range(0, 3).Draw(t, "file")
			n := rapid.Uint32Range(0, 131072).Draw(t, "length")
			list, whole := m.Changed(wal.File{RelFile: testRel, Segment: file}, n)
			part := slices.DeleteFunc(slices.Clone(sorted), func(x uint32) bool { return x < file*131072 || x >= file*131072+n })
			for i := range part {
				part[i] -= file * 131072
			}
			if got := slices.Collect(list); whole || !slices.Equal(got, part) {
				t.Fatalf("file %d of %d pages: %d, want %d", file, n, len(got), len(part))
			}
			m = roundTrip(t, m)
		}
	})
}

func roundTrip(t interface{ Fatal(...any) }, m *Map) *Map {
	var b bytes.Buffer
	if err := m.Write(&b); err != nil {
		t.Fatal(err)
	}
	raw := bytes.Clone(b.Bytes())
	out, err := Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := out.Write(&again); err != nil || !bytes.Equal(raw, again.Bytes()) {
		t.Fatal("stored again it is not the same", err)
	}
	return out
}

func TestChanged(t *testing.T) {
	t.Parallel()
	m, err := New(Layout{PageSize: 8192, FileBlocks: 100}, Span{1, 0, 10})
	if err != nil {
		t.Fatal(err)
	}
	rel := func(n uint32) wal.RelFile { return wal.RelFile{Tablespace: 1663, Database: 5, Relation: n} }
	m.Mark(Fork{rel(1), wal.MainFork}, 250)
	m.Limit(Fork{rel(2), wal.MainFork}, 0, false)
	m.Mark(Fork{rel(3), wal.MainFork}, 120)
	m.Limit(Fork{rel(3), wal.MainFork}, 195, true)
	m.Limit(Fork{rel(3), wal.MainFork}, 198, true) // later and longer: the least counts
	m.Mark(Fork{rel(4), wal.VisibilityFork}, 1)
	m.Mark(Fork{rel(4), wal.MainFork}, 32672*3)
	m.Mark(Fork{rel(4), wal.MainFork}, 32672*3-1)
	m.Limit(Fork{rel(5), wal.MainFork}, 32672*2+5, true)
	m.MarkDatabase(DatabaseDir{1663, 6})
	main, vm := wal.MainFork, wal.VisibilityFork
	for _, tc := range []struct {
		file   wal.File
		blocks uint32
		whole  bool
		want   []uint32
	}{
		{wal.File{RelFile: rel(1), Fork: main, Segment: 2}, 100, false, []uint32{50}},
		{wal.File{RelFile: rel(1), Fork: main, Segment: 2}, 50, false, nil}, // beyond its end
		{wal.File{RelFile: rel(1), Fork: main}, 100, false, nil},
		{wal.File{RelFile: rel(1), Fork: wal.FreeSpaceFork}, 3, true, nil},
		{wal.File{RelFile: rel(1), Fork: vm}, 3, false, []uint32{0}},
		{wal.File{RelFile: rel(2), Fork: main}, 100, true, nil},
		{wal.File{RelFile: rel(2), Fork: main, Segment: 1}, 1, true, nil},
		{wal.File{RelFile: rel(2), Fork: vm}, 1, true, nil},
		{wal.File{RelFile: rel(3), Fork: main}, 100, false, nil},
		{wal.File{RelFile: rel(3), Fork: main, Segment: 1}, 98, false, []uint32{20, 95, 96, 97}},
		{wal.File{RelFile: rel(3), Fork: main, Segment: 1}, 95, false, []uint32{20}},
		{wal.File{RelFile: rel(3), Fork: main, Segment: 2}, 1, true, nil},
		{wal.File{RelFile: rel(4), Fork: vm}, 9, false, []uint32{1, 2, 3}},
		{wal.File{RelFile: rel(5), Fork: vm}, 4, false, []uint32{2, 3}},
		{wal.File{RelFile: wal.RelFile{Tablespace: 1663, Database: 6, Relation: 1}}, 5, true, nil},
		{wal.File{RelFile: wal.RelFile{Tablespace: 1664, Database: 6, Relation: 1}}, 5, false, nil},
		{wal.File{RelFile: rel(9)}, 5, false, nil},
		{wal.File{RelFile: rel(1), Segment: 1 << 31}, 5, true, nil},
	} {
		for _, m := range []*Map{m, roundTrip(t, m)} {
			list, whole := m.Changed(tc.file, tc.blocks)
			if got := slices.Collect(list); whole != tc.whole || !slices.Equal(got, tc.want) {
				t.Errorf("%+v of %d: %v, whole %v", tc.file, tc.blocks, got, whole)
			}
		}
	}
}

func spanMap(t testing.TB, spans ...Span) *Map {
	t.Helper()
	var all *Map
	for _, s := range spans {
		m, err := New(Layout{}, s)
		if err != nil {
			t.Fatal(err)
		}
		if all == nil {
			all = m
		} else if err := all.Merge(m); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func TestCovers(t *testing.T) {
	t.Parallel()
	one := wal.History{Timeline: 1}
	three := wal.History{Timeline: 3, Switches: []wal.Switch{{Timeline: 1, LSN: 150}, {Timeline: 2, LSN: 250}}}
	// Segments of 100: each new timeline's first holds a copy.
	path := spanMap(t, Span{1, 0, 100}, Span{2, 100, 200}, Span{3, 200, 300})
	for _, tc := range []struct {
		m        *Map
		from, to pg.LSN
		h        wal.History
		want     error
	}{
		{spanMap(t, Span{1, 0, 100}), 0, 100, one, nil},
		{spanMap(t, Span{1, 0, 100}), 50, 50, one, nil},
		{spanMap(t, Span{1, 0, 100}), 0, 101, one, ErrGap},
		{spanMap(t, Span{1, 10, 100}), 9, 100, one, ErrGap},
		{spanMap(t, Span{1, 0, 100}), 60, 50, one, ErrGap},
		{spanMap(t, Span{1, 0, 100}, Span{1, 100, 200}, Span{1, 150, 300}), 0, 300, one, nil},
		{path, 0, 300, three, nil},
		{path, 0, 300, one, ErrTimeline},
		{spanMap(t, Span{1, 0, 200}), 0, 200, three, ErrGap}, // after the branch it is another's
		{spanMap(t, Span{1, 0, 150}, Span{2, 150, 250}, Span{3, 250, 300}), 0, 300, three, nil},
		{spanMap(t, Span{4, 0, 300}), 0, 300, three, ErrTimeline},
		{spanMap(t, Span{1, 0, 200}, Span{3, 200, 300}), 0, 300, three, ErrGap}, // timeline 2 is missing
		{spanMap(t, Span{3, 0, 300}), 0, 300, three, nil},
	} {
		if err := tc.m.Covers(tc.from, tc.to, tc.h); !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
			t.Errorf("%v from %s to %s: %v, want %v", tc.m.Spans(), tc.from, tc.to, err, tc.want)
		}
	}
}

func TestMergeRefuses(t *testing.T) {
	t.Parallel()
	other, err := New(Layout{PageSize: 4096}, Span{1, 100, 200})
	if err != nil {
		t.Fatal(err)
	}
	open := spanMap(t, Span{1, 100, 200})
	open.tail = &wal.Fragment{Start: 190, Bytes: []byte("begins"), Missing: 100}
	rest := spanMap(t, Span{1, 200, 300})
	rest.head = &wal.Fragment{Bytes: []byte("ends")}
	for name, tc := range map[string]struct {
		m, next *Map
		want    error
	}{
		"gap":             {spanMap(t, Span{1, 0, 100}), spanMap(t, Span{1, 101, 200}), ErrGap},
		"order":           {spanMap(t, Span{1, 100, 200}), spanMap(t, Span{1, 0, 100}), ErrGap},
		"timeline":        {spanMap(t, Span{2, 0, 100}), spanMap(t, Span{1, 100, 200}), ErrTimeline},
		"layout":          {spanMap(t, Span{1, 0, 100}), other, ErrLayout},
		"rest missing":    {open, spanMap(t, Span{1, 200, 300}), ErrGap},
		"rest of another": {open, rest, wal.ErrRecord},
	} {
		before := roundTrip(t, tc.m)
		if err := tc.m.Merge(tc.next); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		var a, b bytes.Buffer
		if err := errors.Join(before.Write(&a), tc.m.Write(&b)); err != nil || !bytes.Equal(a.Bytes(), b.Bytes()) {
			t.Errorf("%s: changed by a merge that failed (%v)", name, err)
		}
	}
	if open.Covers(100, 190, wal.History{Timeline: 1}) != nil || !errors.Is(open.Covers(100, 191, wal.History{Timeline: 1}), ErrGap) {
		t.Error("the record that is not known whole counts as covered")
	}
	lost := spanMap(t, Span{1, 200, 300})
	lost.lost = true
	if err := open.Merge(lost); err != nil || open.Covers(100, 300, wal.History{Timeline: 1}) != nil {
		t.Errorf("after a crash: %v", err)
	}
}

func record(m wal.Manager, info uint8, major int, fields ...uint32) *wal.Record {
	rec := &wal.Record{Start: 0x1000028, Manager: m, Info: info, Major: major}
	for _, f := range fields {
		rec.Data = binary.LittleEndian.AppendUint32(rec.Data, f)
	}
	return rec
}

// TestAdd: the records whose effect is not in their block references.
func TestAdd(t *testing.T) {
	t.Parallel()
	type limits map[Fork]uint32
	rel, two := testRel, wal.RelFile{Tablespace: 7, Database: 8, Relation: 9}
	all := func(rels ...wal.RelFile) limits {
		l := limits{}
		for _, r := range rels {
			for _, f := range []wal.Fork{wal.MainFork, wal.VisibilityFork, wal.InitFork} {
				l[Fork{r, f}] = 0
			}
		}
		return l
	}
	for name, tc := range map[string]struct {
		rec  *wal.Record
		want limits
		dirs []DatabaseDir
		err  error
	}{
		"create":           {record(wal.Storage, 0x10, 17, 1663, 5, 16384, 0), limits{{rel, wal.MainFork}: 0}, nil, nil},
		"create init":      {record(wal.Storage, 0x11, 17, 1663, 5, 16384, 3), limits{{rel, wal.InitFork}: 0}, nil, nil},
		"create fsm":       {record(wal.Storage, 0x10, 17, 1663, 5, 16384, 1), limits{}, nil, nil},
		"create cut":       {record(wal.Storage, 0x10, 17, 1663, 5, 16384), nil, nil, wal.ErrRecord},
		"create fork 4":    {record(wal.Storage, 0x10, 17, 1663, 5, 16384, 4), nil, nil, wal.ErrRecord},
		"truncate":         {record(wal.Storage, 0x20, 17, 100_000, 1663, 5, 16384, 7), limits{{rel, wal.MainFork}: 100_000, {rel, wal.VisibilityFork}: 3}, nil, nil},
		"truncate heap":    {record(wal.Storage, 0x20, 17, 100_000, 1663, 5, 16384, 1), limits{{rel, wal.MainFork}: 100_000}, nil, nil},
		"truncate fsm":     {record(wal.Storage, 0x20, 17, 100_000, 1663, 5, 16384, 4), limits{}, nil, nil},
		"truncate cut":     {record(wal.Storage, 0x20, 17, 100_000, 1663, 5, 16384), nil, nil, wal.ErrRecord},
		"commit":           {record(wal.Transaction, 0x00, 17, 0, 0), limits{}, nil, nil},
		"commit, drops":    {record(wal.Transaction, 0x80, 17, 0, 0, 0x7|0x100, 5, 1663, 2, 11, 12, 2, 1663, 5, 16384, 7, 8, 9, 99), all(rel, two), nil, nil},
		"abort, drops":     {record(wal.Transaction, 0xA0, 13, 0, 0, 0x4, 1, 1663, 5, 16384), all(rel), nil, nil},
		"commit prepared":  {record(wal.Transaction, 0xB0, 17, 0, 0, 0x14, 1, 1663, 5, 16384, 742), all(rel), nil, nil},
		"abort prepared":   {record(wal.Transaction, 0xC0, 17, 0, 0, 0x14, 1, 1663, 5, 16384, 742), all(rel), nil, nil},
		"prepare":          {record(wal.Transaction, 0x90, 17, 0, 0, 0x4, 1, 1663, 5, 16384), limits{}, nil, nil},
		"commit, other":    {record(wal.Transaction, 0x80, 17, 0, 0, 0x9, 5, 1663, 1), limits{}, nil, nil},
		"commit, cut":      {record(wal.Transaction, 0x80, 17, 0, 0, 0x4, 2, 1663, 5, 16384), nil, nil, wal.ErrRecord},
		"commit, a lie":    {record(wal.Transaction, 0x80, 17, 0, 0, 0x2, 1<<31), nil, nil, wal.ErrRecord},
		"database copied":  {record(wal.Database, 0x00, 15, 16400, 1663, 1, 1663), limits{}, []DatabaseDir{{1663, 16400}}, nil},
		"database logged":  {record(wal.Database, 0x10, 15, 16400, 1663), limits{}, []DatabaseDir{{1663, 16400}}, nil},
		"database dropped": {record(wal.Database, 0x20, 15, 16400, 2, 1663, 7), limits{}, []DatabaseDir{{7, 16400}, {1663, 16400}}, nil},
		"created, 14":      {record(wal.Database, 0x00, 14, 16400, 1663, 1, 1663), limits{}, []DatabaseDir{{1663, 16400}}, nil},
		"dropped, 14":      {record(wal.Database, 0x10, 14, 16400, 2, 1663, 7), limits{}, []DatabaseDir{{7, 16400}, {1663, 16400}}, nil},
		"dropped, cut":     {record(wal.Database, 0x10, 14, 16400, 3, 1663, 7), nil, nil, wal.ErrRecord},
		"minimal":          {record(wal.XLog, 0x60, 13, 100, 8, 10, 0, 64, 0, 0), nil, nil, ErrMinimal},
		"replica":          {record(wal.XLog, 0x60, 13, 100, 8, 10, 0, 64, 1, 0), limits{}, nil, nil},
		"parameters cut":   {record(wal.XLog, 0x60, 13, 100, 8, 10, 0, 64), nil, nil, wal.ErrRecord},
		"minimal, redo":    {record(wal.XLog, 0xE0, 17, 0), nil, nil, ErrMinimal},
		"minimal, down":    {record(wal.XLog, 0x00, 18, 0, 0, 1, 1, 1, 0), nil, nil, ErrMinimal},
		"down, 16":         {record(wal.XLog, 0x00, 16, 0, 0, 1, 1, 1, 0), limits{}, nil, nil},
		"minimal, end":     {record(wal.XLog, 0x90, 17, 0, 0, 2, 1, 0), nil, nil, ErrMinimal},
		"end, 16":          {record(wal.XLog, 0x90, 16, 0, 0, 2, 1), limits{}, nil, nil},
		"too long":         {&wal.Record{Manager: wal.Transaction, Info: 0x80, Major: 17, Cut: true}, nil, nil, wal.ErrRecord},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := spanMap(t, Span{1, 0, 1 << 30})
			before := roundTrip(t, m)
			err := m.Add(tc.rec)
			if !errors.Is(err, tc.err) || (err == nil) != (tc.err == nil) {
				t.Fatalf("got %v, want %v", err, tc.err)
			}
			if err != nil {
				if len(m.forks) != len(before.forks) || len(m.dirs) != 0 {
					t.Error("a refused record left traces")
				}
				return
			}
			got := limits{}
			for f := range m.Forks() {
				got[f.Fork] = f.Limit
			}
			if !maps.Equal(got, tc.want) || !slices.Equal(m.Databases(), tc.dirs) {
				t.Errorf("got %v, %v", got, m.Databases())
			}
		})
	}
}

func TestDelta(t *testing.T) {
	t.Parallel()
	m := spanMap(t, Span{1, 0, 1 << 30})
	a, b := testRel, wal.RelFile{Tablespace: 1663, Database: 5, Relation: 99}
	m.Mark(Fork{a, wal.MainFork}, 70_000)
	m.Mark(Fork{a, wal.MainFork}, 1)
	m.Mark(Fork{a, wal.VisibilityFork}, 5)
	m.Mark(Fork{b, wal.MainFork}, 0)
	m.Limit(Fork{b, wal.MainFork}, 0, false) // created
	m.tail = &wal.Fragment{Start: 1<<30 - 8, Bytes: []byte("half a record"), Missing: 7}
	var out bytes.Buffer
	if err := m.WriteDelta(&out); err != nil {
		t.Fatal(err)
	}
	var want []byte
	for _, v := range []uint32{1663, 5, 99, 0, 1663, 5, 16384, 1, 1663, 5, 16384, 70_000, 0, 0, 0, 0, 13} {
		want = binary.LittleEndian.AppendUint32(want, v)
	}
	want = append(want, "half a record"...)
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("wrote\n%x, want\n%x", out.Bytes(), want)
	}
	span := Span{1, 0, 1 << 30}
	got, state, err := ReadDelta(&out, Layout{}, span)
	if err != nil || string(state) != "half a record" || got.LimitsKnown() || !m.LimitsKnown() {
		t.Fatalf("%q, %v", state, err)
	}
	if list, whole := got.Changed(wal.File{RelFile: a}, 131072); whole || !slices.Equal(slices.Collect(list), []uint32{1, 70_000}) {
		t.Error("read back, it is not the same")
	}
	// Any prefix is an error or a list without end mark.
	for n := range want {
		_, _, err := ReadDelta(bytes.NewReader(want[:n]), Layout{}, span)
		if ok := n <= 48 && n%16 == 0; (err == nil) != ok || err != nil && !errors.Is(err, ErrFormat) {
			t.Errorf("%d of %d bytes: %v", n, len(want), err)
		}
	}
	if _, _, err := ReadDelta(bytes.NewReader(append(want, 0)), Layout{}, span); !errors.Is(err, ErrFormat) {
		t.Errorf("a byte too many: %v", err)
	}
	for name, spoil := range map[string]func(m *Map){
		"truncated": func(m *Map) { m.Limit(Fork{a, wal.MainFork}, 70, true) },
		"copied":    func(m *Map) { m.MarkDatabase(DatabaseDir{1663, 5}) },
		"too long":  func(m *Map) { m.tail = &wal.Fragment{Cut: true} },
	} {
		m := spanMap(t, span)
		spoil(m)
		if err := m.WriteDelta(io.Discard); !errors.Is(err, ErrInexpressible) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestReadRefuses: every change of a stored map is noticed.
func TestReadRefuses(t *testing.T) {
	t.Parallel()
	raw := storedMap(t)
	for i := range raw {
		for _, bit := range []byte{1, 0x80} {
			bad := bytes.Clone(raw)
			bad[i] ^= bit
			if _, err := Read(bytes.NewReader(bad)); !errors.Is(err, ErrFormat) {
				t.Errorf("byte %d: %v", i, err)
			}
		}
		if _, err := Read(bytes.NewReader(raw[:i])); !errors.Is(err, ErrFormat) {
			t.Errorf("%d of %d bytes: %v", i, len(raw), err)
		}
	}
	if _, err := Read(bytes.NewReader(append(raw, 0))); !errors.Is(err, ErrFormat) {
		t.Errorf("a byte too many: %v", err)
	}
}

func storedMap(t testing.TB) []byte {
	m := spanMap(t, Span{1, 0, 1 << 24}, Span{2, 1 << 24, 1 << 25})
	for i := range uint32(20) {
		m.Mark(Fork{testRel, wal.MainFork}, i*i*70_000)
	}
	m.Limit(Fork{testRel, wal.VisibilityFork}, 3, true)
	m.MarkDatabase(DatabaseDir{1663, 16400})
	m.tail = &wal.Fragment{Start: 1<<25 - 8, Bytes: []byte("begins"), Missing: 100}
	m.head = &wal.Fragment{Bytes: []byte("ends")}
	m.major = 17
	var b bytes.Buffer
	if err := m.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// FuzzRead: whatever is read can be used and stored. The checksum is made
// right, or nothing behind it would ever be reached.
func FuzzRead(f *testing.F) {
	raw := storedMap(f)
	f.Add(raw[:len(raw)-4])
	f.Fuzz(func(t *testing.T, raw []byte) {
		sum := crc32.Checksum(raw, crc32.MakeTable(crc32.Castagnoli))
		m, err := Read(bytes.NewReader(binary.LittleEndian.AppendUint32(raw, sum)))
		if err != nil {
			return
		}
		roundTrip(t, m)
		m.Changed(wal.File{RelFile: testRel, Fork: wal.VisibilityFork}, 10)
	})
}

func BenchmarkMark(b *testing.B) {
	m := spanMap(b, Span{1, 0, 1})
	x := uint32(1)
	for b.Loop() {
		x = x*1664525 + 1013904223
		m.Mark(Fork{testRel, wal.MainFork}, x%(1<<22)) // 32 GiB of pages at random
	}
}
