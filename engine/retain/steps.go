package retain

import (
	"cmp"
	"iter"
	"slices"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/pg"
)

// Phase is a part of the work, in the order of the constants.
type Phase int

// The phases.
const (
	Sentinels Phase = iota // the backup is no more; what is built on it first
	Parts                  // its tars
	Documents              // its metadata
	WALObjects
	Rest // history files, probes
)

// String names the phase.
func (p Phase) String() string {
	return [...]string{"sentinels", "parts", "documents", "WAL", "rest"}[p]
}

// Step is one object to delete.
type Step struct {
	// Stage orders the steps: those of one stage may be done in any order
	// and together; none may be done before all earlier stages are
	// durable. A stage that fails in part ends the work: the next plan
	// takes it up.
	Stage   int
	Phase   Phase
	Storage string
	// Key is the object's name under the storage's prefix.
	Key    string
	Reason Reason
}

// Steps yields the objects to delete, each once. They are only objects that
// were in the inventory. Cut anywhere, what is left is whole or not listed:
// sentinels go first, of the longest chains first, so that an increment is
// never listed without what it is built on; then parts, documents and at last
// WAL, which a backup that is still listed may need, oldest first.
func (pl *Plan) Steps() iter.Seq[Step] {
	return func(yield func(Step) bool) {
		var gone []*node
		for _, n := range pl.nodes {
			if !n.keep {
				gone = append(gone, n)
			}
		}
		slices.SortStableFunc(gone, func(a, b *node) int { return cmp.Compare(b.depth, a.depth) })
		stage := 0
		for i, n := range gone {
			if i > 0 && n.depth != gone[i-1].depth {
				stage++
			}
			if n.Listed && !yield(n.step(stage, Sentinels, catalog.SentinelObject, "")) {
				return
			}
		}
		stage++
		for _, phase := range []Phase{Parts, Documents} {
			for _, n := range gone {
				for kind, part := range n.Objects() {
					if kind == catalog.SentinelObject || (kind == catalog.PartObject) != (phase == Parts) {
						continue
					}
					if !yield(n.step(stage, phase, kind, part)) {
						return
					}
				}
			}
			stage++
		}
		for _, s := range pl.series {
			zones := pl.zonesOf(s)
			for r, i := range pieces(s, zones) {
				z := &zones[i]
				if !z.drop {
					continue
				}
				for n := r.First; ; n++ {
					if !yield(Step{stage, WALObjects, s.Storage, s.Key(n, pl.size), z.reason}) {
						return
					}
					if n == r.Last {
						break
					}
				}
			}
		}
		stage++
		for _, h := range pl.Histories {
			if h.Delete && !yield(Step{stage, Rest, h.File.Storage, h.File.Key(), h.Reason}) {
				return
			}
		}
		for _, p := range pl.probes {
			if !yield(Step{stage, Rest, p.Storage, catalog.ProbeName, pl.probeWhy}) {
				return
			}
		}
	}
}

func (n *node) step(stage int, phase Phase, kind catalog.Kind, part string) Step {
	return Step{stage, phase, n.ID.Storage, n.ID.Key(kind, part), n.reason}
}

// Objects counts the objects to delete by phase, without making their names.
func (pl *Plan) Objects() (count [Rest + 1]uint64) {
	for _, n := range pl.nodes {
		if n.keep {
			continue
		}
		for kind := range n.Objects() {
			switch kind {
			case catalog.SentinelObject:
				count[Sentinels]++
			case catalog.PartObject:
				count[Parts]++
			default:
				count[Documents]++
			}
		}
	}
	for _, w := range pl.WAL {
		if w.Delete {
			count[WALObjects] += w.Objects
		}
	}
	for _, h := range pl.Histories {
		if h.Delete {
			count[Rest]++
		}
	}
	count[Rest] += uint64(len(pl.probes))
	return count
}

// NeedsSegment tells whether the plan keeps the WAL segment with that number.
func (pl *Plan) NeedsSegment(tl pg.Timeline, number uint64) bool {
	zones := pl.zones[tl]
	i := zoneAt(zones, number)
	return i >= len(zones) || !zones[i].drop
}
