package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/pg"
)

func TestDiverge(t *testing.T) {
	t.Parallel()
	h := func(tl pg.Timeline, switches ...Switch) History { return History{Timeline: tl, Switches: switches} }
	one := Switch{Timeline: 1, LSN: 0x3000100}
	for name, c := range map[string]struct {
		a, b History
		want Divergence
	}{
		"promoted standby":      {h(1), h(2, one), Divergence{1, 0x3000100}},
		"both promoted":         {h(2, one), h(3, Switch{Timeline: 1, LSN: 0x5000000}), Divergence{1, 0x3000100}},
		"second promotion":      {h(2, one), h(3, one, Switch{Timeline: 2, LSN: 0x7000000}), Divergence{2, 0x7000000}},
		"same number, two ways": {h(2, one), h(2, Switch{Timeline: 1, LSN: 0x3000200}), Divergence{1, 0x3000100}},
	} {
		for _, pair := range [][2]History{{c.a, c.b}, {c.b, c.a}} {
			if got, err := Diverge(pair[0], pair[1]); err != nil || got != c.want {
				t.Errorf("%s: %+v, %v; want %+v", name, got, err, c.want)
			}
		}
	}
	if _, err := Diverge(h(1), h(3, Switch{Timeline: 2, LSN: 5})); !errors.Is(err, ErrHistory) {
		t.Errorf("no common timeline: %v", err)
	}
}

// TestSegmentOf: the segment in which the timeline changes is of the new one,
// unless it changes at the segment's end.
func TestSegmentOf(t *testing.T) {
	t.Parallel()
	const size = pg.SegmentSize(1 << 20)
	for at, want := range map[pg.LSN][3]pg.Timeline{
		0x500000: {1, 2, 2},
		0x500001: {1, 2, 2},
		0x5FFFFF: {1, 2, 2},
		0x600000: {1, 1, 2},
	} {
		h := History{Timeline: 2, Switches: []Switch{{Timeline: 1, LSN: at}}}
		for i, tl := range want {
			if got := h.SegmentOf(uint64(4+i), size); got != pg.SegmentAt(tl, uint64(4+i), size) {
				t.Errorf("switch at %s: segment %d is %s, want timeline %d", at, 4+i, got, tl)
			}
		}
	}
}

// TestLastCheckpoint: of checkpoints among other records, the last that begins
// before the position is found, wherever it lies on its pages.
func TestLastCheckpoint(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := newWriter(rapid.IntRange(pg.MinMajor, pg.MaxMajor).Draw(t, "major"), 1<<20)
		var all []Checkpoint
		for i := range rapid.IntRange(1, 20).Draw(t, "records") {
			switch rapid.IntRange(0, 2).Draw(t, "kind") {
			case 0:
				redo := pg.LSN(1<<20 + i)
				data := binary.LittleEndian.AppendUint64(nil, uint64(redo))
				data = append(data, make([]byte, 80)...)
				info := rapid.SampledFrom([]uint8{opCheckpointShutdown, opCheckpointOnline}).Draw(t, "info")
				all = append(all, Checkpoint{w.record(XLog, info, nil, data), redo})
			case 1:
				w.record(XLog, 0x30, nil, make([]byte, 8)) // XLOG_NEXTOID
			case 2:
				w.record(LogicalMessage, 0, nil, make([]byte, rapid.IntRange(0, 20000).Draw(t, "size")))
			}
		}
		out := w.fill()
		before := pg.LSN(1<<20) + pg.LSN(rapid.IntRange(1, len(out)).Draw(t, "before"))
		var want Checkpoint
		for _, c := range all {
			if c.At < before {
				want = c
			}
		}
		got, found, err := LastCheckpoint(bytes.NewReader(out), before)
		if err != nil || got != want || found != (want.At != 0) {
			t.Fatalf("before %s: %+v, %t, %v; want %+v", before, got, found, err, want)
		}
	})
	if _, _, err := LastCheckpoint(bytes.NewReader(make([]byte, 100)), 1); err == nil {
		t.Error("nonsense was read")
	}
}
