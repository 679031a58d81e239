package wal

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/walherd/walherd/engine/pg"
)

// image is a block reference with a page image of length bytes as stored.
func image(length, hole, offset int, info byte, compressHeader bool) []byte {
	le := binary.LittleEndian
	b := []byte{0, blockHasImage, 0, 0}
	b = le.AppendUint16(b, uint16(length))
	b = le.AppendUint16(b, uint16(offset))
	b = append(b, info)
	if compressHeader {
		b = le.AppendUint16(b, uint16(hole))
	}
	for _, v := range []uint32{1663, 5, 16384, 77} {
		b = le.AppendUint32(b, v)
	}
	return b
}

// TestPageImages: what the bits of an image mean changed in 15.
func TestPageImages(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name      string
		from, to  int // versions
		raw       []byte
		payload   int
		ok, apply bool
		hole      uint16
	}{
		{"whole page", 13, 18, image(8192, 0, 0, 0, false), 8192, true, false, 0},
		{"hole", 13, 18, image(8000, 0, 100, 0x01, false), 8000, true, false, 192},
		{"hole, to apply", 13, 14, image(8000, 0, 100, 0x01|0x04, false), 8000, true, true, 192},
		{"hole, to apply", 15, 18, image(8000, 0, 100, 0x01|0x02, false), 8000, true, true, 192},
		{"compressed, hole", 13, 14, image(900, 300, 100, 0x01|0x02|0x04, true), 900, true, true, 300},
		{"pglz, hole", 15, 18, image(900, 300, 100, 0x01|0x02|0x04, true), 900, true, true, 300},
		{"lz4, hole", 15, 18, image(900, 300, 100, 0x01|0x02|0x08, true), 900, true, true, 300},
		{"zstd, no hole", 15, 18, image(900, 0, 0, 0x02|0x10, false), 900, true, true, 0},
		{"compressed, no hole", 13, 14, image(900, 0, 0, 0x02|0x04, false), 900, true, true, 0},
		{"lz4 before its time", 13, 14, image(900, 300, 100, 0x01|0x08, true), 900, false, false, 0},
		{"unknown method", 15, 18, image(900, 300, 100, 0x01|0x20, true), 900, false, false, 0},
		{"short without hole", 13, 18, image(900, 0, 0, 0, false), 900, false, false, 0},
		{"hole of nothing", 13, 18, image(8192, 0, 100, 0x01, false), 8192, false, false, 0},
		{"hole at the beginning", 13, 18, image(8000, 0, 0, 0x01, false), 8000, false, false, 0},
		{"compressed to a page", 15, 18, image(8192, 300, 100, 0x01|0x04, true), 8192, false, false, 0},
		{"longer than a page", 13, 18, image(8193, 0, 0, 0, false), 8193, false, false, 0},
		{"compressed hole of nothing", 15, 18, image(900, 0, 100, 0x01|0x04, true), 900, false, false, 0},
	} {
		for major := pg.MinMajor; major <= pg.MaxMajor; major++ {
			if major < tc.from || major > tc.to {
				continue
			}
			raw := rawRecord(8, Heap, 0, tc.raw, nil)
			raw = slices.Concat(raw, make([]byte, tc.payload))
			rec, err := ParseRecord(reseal(raw), 64, major, 0)
			if !tc.ok {
				if !errors.Is(err, ErrRecord) {
					t.Errorf("%s, %d: got %+v, %v", tc.name, major, rec, err)
				}
				continue
			}
			want := BlockRef{Rel: RelFile{1663, 5, 16384}, Block: 77, Image: true, Apply: tc.apply, HoleLen: tc.hole}
			if err != nil || len(rec.Blocks) != 1 || rec.Blocks[0] != want {
				t.Errorf("%s, %d: got %+v, %v", tc.name, major, rec, err)
			}
		}
	}
}

// reseal makes length and checksum right again.
func reseal(raw []byte) []byte {
	le := binary.LittleEndian
	fresh := rawRecord(pg.LSN(le.Uint64(raw[8:])), Manager(raw[17]), raw[16], raw[recordHeader:], nil)
	return fresh
}

func TestRecordHeaders(t *testing.T) {
	t.Parallel()
	le := binary.LittleEndian
	rel := RelFile{1663, 5, 16384}
	same := func(id byte, block uint32) []byte {
		return le.AppendUint32([]byte{id, blockSameRel | blockWillInit, 0, 0}, block)
	}
	for name, tc := range map[string]struct {
		headers  []byte
		manager  Manager
		from, to int
		want     []BlockRef
		ok       bool
	}{
		"none":            {nil, Heap, 13, 18, nil, true},
		"same relation":   {slices.Concat(blockHeader(BlockRef{Rel: rel, Block: 4}), same(1, 5)), Btree, 13, 18, []BlockRef{{Rel: rel, Block: 4}, {ID: 1, Rel: rel, Block: 5, Inits: true}}, true},
		"same as none":    {same(0, 5), Btree, 13, 18, nil, false},
		"origin":          {[]byte{idOrigin, 1, 0}, Heap, 13, 18, nil, true},
		"top-level xid":   {[]byte{idTopLevelXID, 1, 0, 0, 0}, Heap, 14, 18, nil, true},
		"not yet in 13":   {[]byte{idTopLevelXID, 1, 0, 0, 0}, Heap, 13, 13, nil, false},
		"last id":         {blockHeader(BlockRef{ID: 32, Rel: rel}), Heap, 13, 18, []BlockRef{{ID: 32, Rel: rel}}, true},
		"id too high":     {blockHeader(BlockRef{ID: 33, Rel: rel}), Heap, 13, 18, nil, false},
		"out of order":    {slices.Concat(blockHeader(BlockRef{ID: 1, Rel: rel}), same(1, 5)), Heap, 13, 18, nil, false},
		"no such fork":    {blockHeader(BlockRef{Rel: rel, Fork: 4}), Heap, 13, 18, nil, false},
		"cut":             {blockHeader(BlockRef{Rel: rel})[:19], Heap, 13, 18, nil, false},
		"data, no flag":   {append([]byte{0, 0, 3, 0}, make([]byte, 16+3)...), Heap, 13, 18, nil, false},
		"flag, no data":   {append([]byte{0, blockHasData, 0, 0}, make([]byte, 16)...), Heap, 13, 18, nil, false},
		"data":            {append([]byte{0, blockHasData, 3, 0}, make([]byte, 16+3)...), Heap, 13, 18, []BlockRef{{}}, true},
		"too much data":   {append([]byte{0, blockHasData, 4, 0}, make([]byte, 16+3)...), Heap, 13, 18, nil, false},
		"no such manager": {nil, 22, 13, 18, nil, false},
		"extension":       {nil, 128, 15, 18, nil, true},
		"no extension":    {nil, 128, 13, 14, nil, false},
	} {
		for major := tc.from; major <= tc.to; major++ {
			rec, err := ParseRecord(rawRecord(8, tc.manager, 0, tc.headers, nil), 64, major, 0)
			switch {
			case !tc.ok && !errors.Is(err, ErrRecord):
				t.Errorf("%s, %d: got %+v, %v", name, major, rec, err)
			case tc.ok && (err != nil || !slices.Equal(rec.Blocks, tc.want)):
				t.Errorf("%s, %d: got %+v, %v", name, major, rec, err)
			}
		}
	}
}

func TestParseFile(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]File{
		"base/5/1259":       {RelFile: RelFile{1663, 5, 1259}},
		"/base/5/1259.12":   {RelFile: RelFile{1663, 5, 1259}, Segment: 12},
		"./base/5/1259_fsm": {RelFile: RelFile{1663, 5, 1259}, Fork: FreeSpaceFork},
		"base/5/1259_vm.1":  {RelFile: RelFile{1663, 5, 1259}, Fork: VisibilityFork, Segment: 1},
		"base/5/16384_init": {RelFile: RelFile{1663, 5, 16384}, Fork: InitFork},
		"global/1262":       {RelFile: RelFile{1664, 0, 1262}},
		"pg_tblspc/16400/PG_15_202209061/5/2619.1": {RelFile: RelFile{16400, 5, 2619}, Segment: 1},
		"base/5/4294967295":                        {RelFile: RelFile{1663, 5, 1<<32 - 1}},
		"base/5/4294967296":                        {},
		"base/5/t3_16384":                          {},
		"base/5/PG_VERSION":                        {},
		"base/5/1259_main":                         {},
		"base/5/1259_":                             {},
		"base/5/1259.":                             {},
		"base/5/1259.0":                            {},
		"base/5/01259":                             {},
		"base/5":                                   {},
		"base/5/6/1259":                            {},
		"base/x/1259":                              {},
		"global/5/1262":                            {},
		"global/pg_control":                        {},
		"pg_xact/0000":                             {},
		"pg_tblspc/16400/5/2619":                   {},
		"pg_tblspc/x/PG_15_202209061/5/2619":       {},
		"pg_tblspc/16400/other/5/2619":             {},
		"":                                         {},
	} {
		got, err := ParseFile(path)
		if got != want || (err == nil) != (want != File{}) || err != nil && !errors.Is(err, ErrNotRelation) {
			t.Errorf("%q: %+v, %v", path, got, err)
		}
	}
}
