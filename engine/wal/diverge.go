package wal

import (
	"fmt"
	"math"

	"github.com/walherd/walherd/engine/pg"
)

// Divergence is where two servers of one cluster went apart: up to LSN both
// have the WAL of Timeline.
type Divergence struct {
	Timeline pg.Timeline
	LSN      pg.LSN
}

// Diverge finds the last position that two histories have in common, as
// pg_rewind does. ErrHistory when they have none.
func Diverge(a, b History) (Divergence, error) {
	x, y := a.stretches(), b.stretches()
	n := 0
	for n < min(len(x), len(y)) && x[n].timeline == y[n].timeline && x[n].begin == y[n].begin {
		n++
	}
	if n == 0 {
		return Divergence{}, fmt.Errorf("find the common ancestor of timelines %d and %d: %w: they share none", a.Timeline, b.Timeline, ErrHistory)
	}
	return Divergence{Timeline: x[n-1].timeline, LSN: min(x[n-1].end, y[n-1].end)}, nil
}

// stretch is the part of a history that is on one timeline.
type stretch struct {
	timeline   pg.Timeline
	begin, end pg.LSN
}

func (h History) stretches() []stretch {
	var out []stretch
	begin := pg.LSN(0)
	for _, s := range h.Switches {
		out = append(out, stretch{s.Timeline, begin, s.LSN})
		begin = s.LSN
	}
	return append(out, stretch{h.Timeline, begin, math.MaxUint64})
}

// SegmentOf names the file that holds segment number n for a server on
// h.Timeline. The segment in which the timeline changes is of the new one,
// which begins with a copy of the old one's part.
func (h History) SegmentOf(n uint64, size pg.SegmentSize) pg.SegmentName {
	return pg.SegmentAt(h.At(pg.LSN((n+1)*uint64(size)-1)), n, size)
}
