package retain

import (
	"cmp"
	"fmt"
	"iter"
	"math"
	"slices"
	"sort"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/pg"
)

// zone is a verdict on a stretch of a timeline. The zones of a timeline are
// ascending and leave nothing out.
type zone struct {
	catalog.Run
	drop   bool
	reason Reason
}

// floors is, per timeline, the backup that starts first of those that keep the
// WAL after them. Only that one matters: what a later one reaches, it reaches.
func (p *planner) floors() map[pg.Timeline]*node {
	out := map[pg.Timeline]*node{}
	for _, n := range slices.Concat(p.nodes, p.extra) {
		if n.keep && n.floor {
			if f := out[n.timeline()]; f == nil || n.first < f.first {
				out[n.timeline()] = n
			}
		}
	}
	return out
}

// needs is, per timeline, the WAL without which kept backups do not become
// consistent. WAL of an ancestor belongs to it when the timeline changed in
// the segment the backup starts in, or later; and that of a descendant which
// left in one of its segments, behind what the backup needs of it. Such a
// segment may be archived whole on the descendant alone: a backup of a standby
// ends without a switch of the segment, and if that standby is promoted there,
// the old timeline is left with a partial one, which no recovery reads.
func (p *planner) needs() map[pg.Timeline][]zone {
	out := map[pg.Timeline][]zone{}
	timelines, size := p.inv.Timelines(), uint64(p.inv.SegmentSize())
	for _, n := range p.nodes {
		if !n.keep || !n.Listed && n.busy == "" {
			continue
		}
		r := catalog.Run{First: n.first, Last: n.last}
		if !n.known {
			r.Last = math.MaxUint64
		}
		why := Reason{KeepConsist, fmt.Sprintf("%s is kept and needs it to be consistent", n.ID)}
		out[n.timeline()] = append(out[n.timeline()], zone{Run: r, reason: why})
		h, _ := p.inv.History(n.timeline())
		for _, s := range slices.Backward(h.Switches) {
			end := uint64(s.LSN) / size
			if end < r.First {
				break
			}
			out[s.Timeline] = append(out[s.Timeline], zone{Run: catalog.Run{First: r.First, Last: end}, reason: why})
		}
		if n.floor {
			continue // it keeps all of what it leads to
		}
		for _, tl := range timelines {
			if at, ok := p.leaves(n, tl); ok && at >= r.First && at <= r.Last {
				out[tl] = append(out[tl], zone{Run: catalog.Run{First: at, Last: at}, reason: why})
			}
		}
	}
	return out
}

// leaves is the segment in which timeline tl, a descendant of n's, left n's
// timeline, if it did so where n was consistent. Without a history it may have
// been in n's last.
func (p *planner) leaves(n *node, tl pg.Timeline) (segment uint64, ok bool) {
	if tl <= n.timeline() {
		return 0, false
	}
	h, known := p.inv.History(tl)
	if !known {
		return n.last, true
	}
	for _, s := range h.Switches {
		if s.Timeline == n.timeline() {
			return uint64(s.LSN) / uint64(p.inv.SegmentSize()), n.Details.FinishLSN <= s.LSN
		}
	}
	return 0, false
}

// decideWAL makes the zones of all timelines and counts what lies in them.
func (p *planner) decideWAL() {
	pl := p.plan
	pl.series = p.inv.WAL()
	pl.zones, pl.bulk = map[pg.Timeline][]zone{}, map[pg.Timeline][]zone{}
	floors, needs := p.floors(), p.needs()
	// The lowest start of all bounds what can be old without doubt.
	var oldest *node
	highest := pg.Timeline(0)
	for tl, n := range floors {
		if oldest == nil || n.first < oldest.first || n.first == oldest.first && tl < oldest.timeline() {
			oldest = n
		}
		highest = max(highest, tl)
	}
	for _, tl := range p.inv.Timelines() {
		keep := needs[tl]
		var floor *node
		for from, n := range floors {
			if p.mayLead(from, n.first, tl) && (floor == nil || n.first < floor.first || n.first == floor.first && from < floor.timeline()) {
				floor = n
			}
		}
		if floor != nil {
			keep = append(keep, zone{Run: catalog.Run{First: floor.first, Last: math.MaxUint64},
				reason: Reason{KeepWAL, fmt.Sprintf("recovery from %s, which is kept, replays it", floor.ID)}})
		}
		if p.dropAll {
			keep = nil
		}
		pl.zones[tl] = partition(keep, func(gap catalog.Run) []zone { return p.judge(tl, gap, floor, oldest, highest) })
		pl.bulk[tl] = bulkZones(pl.zones[tl])
	}
	p.countWAL()
}

// judge decides what no kept backup needs.
//
// Below the start of all of them it is old. Beside them, on a timeline that
// none leads to, it is of a branch that was given up, or of one whose first
// backup has not stored anything yet: that one may be the cluster's current
// timeline, or be archived to this day.
func (p *planner) judge(tl pg.Timeline, gap catalog.Run, floor, oldest *node, highest pg.Timeline) []zone {
	keep := func(code Code, format string, args ...any) []zone {
		return []zone{{Run: gap, reason: Reason{code, fmt.Sprintf(format, args...)}}}
	}
	drop := func(r catalog.Run, format string, args ...any) zone {
		return zone{Run: r, drop: true, reason: Reason{DropWAL, fmt.Sprintf(format, args...)}}
	}
	switch {
	case p.dropAll:
		return []zone{{Run: gap, drop: true, reason: Reason{DropEverything, "everything is to go"}}}
	case p.wal == walNone:
		return keep(KeepScope, "the command leaves WAL alone")
	case p.wal == walAll:
		return []zone{drop(gap, "no kept backup needs it")}
	case oldest == nil:
		return keep(KeepScope, "there is no backup to measure its age by")
	case floor != nil && floor.timeline() == tl:
		return []zone{drop(gap, "it is older than %s, the oldest kept backup that replays this timeline", floor.ID)}
	case tl == p.current:
		return keep(KeepBranch, "it is of the current timeline, which has no backup yet")
	}
	var out []zone
	// Lower timelines are history before the oldest backup's start.
	if tl <= highest && oldest.first > gap.First {
		old := catalog.Run{First: gap.First, Last: min(gap.Last, oldest.first-1)}
		out = append(out, drop(old, "it is older than %s, the oldest kept backup", oldest.ID))
		if old.Last == gap.Last {
			return out
		}
		gap.First = old.Last + 1
	}
	if age := p.now.Sub(p.inv.NewestWAL(tl)); p.opt.SafetyAge >= 0 && age < p.quiet {
		return append(out, keep(KeepBranch, "no kept backup leads to it, but timeline %d was archived %s ago and may be in use", tl, age.Round(1e9))...)
	}
	return append(out, drop(gap, "no kept backup leads to it, and nothing is archived on timeline %d any more", tl))
}

// partition makes the zones of a timeline from the kept stretches, which may
// overlap; gap judges what is between them.
func partition(keep []zone, gap func(catalog.Run) []zone) []zone {
	slices.SortStableFunc(keep, func(a, b zone) int { return cmp.Compare(a.First, b.First) })
	var out []zone
	next, done := uint64(0), false
	for _, z := range keep {
		if done || z.Last < next {
			continue
		}
		if z.First > next {
			out = append(out, gap(catalog.Run{First: next, Last: z.First - 1})...)
		}
		z.First = max(z.First, next)
		if n := len(out); n > 0 && !out[n-1].drop && out[n-1].reason == z.reason {
			out[n-1].Last = z.Last
		} else {
			out = append(out, z)
		}
		if next, done = z.Last+1, z.Last == math.MaxUint64; done {
			return out
		}
	}
	return append(out, gap(catalog.Run{First: next, Last: math.MaxUint64})...)
}

// bulkZones is the zones in numbers of what spans several segments (bulk
// metadata, maps of changed blocks): such an object goes when all its segments
// go.
func bulkZones(zones []zone) []zone {
	var keep []zone
	var drops []zone
	for _, z := range zones {
		if z.drop {
			drops = append(drops, z)
			continue
		}
		z.First /= catalog.BulkSpan
		if z.Last != math.MaxUint64 { // that is the end in either count
			z.Last /= catalog.BulkSpan
		}
		keep = append(keep, z)
	}
	return partition(keep, func(gap catalog.Run) []zone {
		// The reason is that of the zone its first segment is in.
		i := zoneAt(drops, gap.First*catalog.BulkSpan)
		return []zone{{Run: gap, drop: true, reason: drops[i].reason}}
	})
}

// zoneAt is the index of the first zone that ends at or after n.
func zoneAt(zones []zone, n uint64) int {
	return sort.Search(len(zones), func(i int) bool { return zones[i].Last >= n })
}

func (pl *Plan) zonesOf(s *catalog.Series) []zone {
	if s.Spans() {
		return pl.bulk[s.Timeline]
	}
	return pl.zones[s.Timeline]
}

// pieces yields the stretches of a series with the index of the zone each lies
// in.
func pieces(s *catalog.Series, zones []zone) iter.Seq2[catalog.Run, int] {
	return func(yield func(catalog.Run, int) bool) {
		for _, r := range s.Runs {
			for i := zoneAt(zones, r.First); i < len(zones) && zones[i].First <= r.Last; i++ {
				if !yield(catalog.Run{First: max(r.First, zones[i].First), Last: min(r.Last, zones[i].Last)}, i) {
					return
				}
			}
		}
	}
}

// countWAL reports the stretches that hold objects; bulk metadata has its own.
func (p *planner) countWAL() {
	pl, size := p.plan, p.inv.SegmentSize()
	type key struct {
		bulk bool
		zone int
	}
	for rest := pl.series; len(rest) > 0; {
		storage, tl := rest[0].Storage, rest[0].Timeline
		n := slices.IndexFunc(rest, func(s *catalog.Series) bool { return s.Storage != storage || s.Timeline != tl })
		if n < 0 {
			n = len(rest)
		}
		found := map[key]*WALDecision{}
		for _, s := range rest[:n] {
			bulk, zones := s.Spans(), pl.zonesOf(s)
			for r, i := range pieces(s, zones) {
				count := r.Len()
				if bulk {
					r = catalog.Run{First: r.First * catalog.BulkSpan, Last: r.Last*catalog.BulkSpan + catalog.BulkSpan - 1}
				}
				first, last := pg.SegmentAt(tl, r.First, size), pg.SegmentAt(tl, r.Last, size)
				d := found[key{bulk, i}]
				if d == nil {
					d = &WALDecision{Storage: storage, First: first, Last: last, Delete: zones[i].drop, Reason: zones[i].reason}
					found[key{bulk, i}] = d
				}
				d.Objects += count
				if first.Compare(d.First) < 0 {
					d.First = first
				}
				if last.Compare(d.Last) > 0 {
					d.Last = last
				}
			}
		}
		at := len(pl.WAL)
		for _, d := range found {
			pl.WAL = append(pl.WAL, *d)
		}
		slices.SortFunc(pl.WAL[at:], func(a, b WALDecision) int {
			return cmp.Or(a.First.Compare(b.First), a.Last.Compare(b.Last), cmp.Compare(a.Reason.Text, b.Reason.Text))
		})
		rest = rest[n:]
	}
}

// decideHistories finds history files that nothing needs.
//
// A recovering server looks for the files of timelines one after the other,
// upwards from its backup's, and takes the first absent one for the end: a
// hole would make it miss the timelines above, and choose one of their numbers
// for itself. So only what is below all kept backups can go.
func (p *planner) decideHistories() {
	pl := p.plan
	lowest := p.current
	for _, n := range slices.Concat(p.nodes, p.extra) {
		if n.keep && (n.Listed || n.busy != "") {
			lowest = min(lowest, n.timeline())
		}
	}
	for _, w := range pl.WAL {
		if !w.Delete {
			lowest = min(lowest, w.First.Timeline)
		}
	}
	for _, f := range p.inv.HistoryFiles() {
		d := HistoryDecision{File: f, Reason: Reason{KeepHistory, "recovery looks for it"}}
		switch {
		case p.dropAll:
			d.Delete, d.Reason = true, Reason{DropEverything, "everything is to go"}
		case !p.histories:
			d.Reason = Reason{KeepScope, "the command leaves history files alone"}
		case f.Timeline < lowest:
			d.Delete, d.Reason = true, Reason{DropHistory, fmt.Sprintf("all kept backups and WAL are of timeline %d or later", lowest)}
		}
		pl.Histories = append(pl.Histories, d)
	}
}
