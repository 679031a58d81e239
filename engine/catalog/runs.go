package catalog

import (
	"cmp"
	"iter"
	"slices"
)

// Run is a row of neighboring numbers, both ends included.
type Run struct{ First, Last uint64 }

// Len is the count of numbers in the run.
func (r Run) Len() uint64 { return r.Last - r.First + 1 }

// Runs is a set of numbers as rows, ascending, disjoint and with a gap between
// two neighbors. A million segments without a gap is one run; so memory goes
// with the gaps, not with the count.
type Runs []Run

// add puts n into the set; ascending numbers cost nothing, others wait for
// normalize. It reports whether the order still holds.
func (r *Runs) add(n uint64) (sorted bool) {
	s := *r
	if len(s) == 0 {
		*r = append(s, Run{n, n})
		return true
	}
	last := &s[len(s)-1]
	switch {
	case n >= last.First && n <= last.Last:
		return true
	case n == last.Last+1:
		last.Last = n
		return true
	}
	*r = append(s, Run{n, n})
	return n > last.Last
}

// normalize sorts and joins.
func (r Runs) normalize() Runs {
	slices.SortFunc(r, func(a, b Run) int { return cmp.Compare(a.First, b.First) })
	out := r[:0]
	for _, run := range r {
		if n := len(out); n > 0 && (run.First <= out[n-1].Last || run.First-1 == out[n-1].Last) {
			out[n-1].Last = max(out[n-1].Last, run.Last)
			continue
		}
		out = append(out, run)
	}
	return out
}

// Union is the set of all numbers in any of the sets.
func Union(sets ...Runs) Runs { return slices.Concat(sets...).normalize() }

// Len is the count of numbers in the set.
func (r Runs) Len() (n uint64) {
	for _, run := range r {
		n += run.Len()
	}
	return n
}

// Covers reports whether all of the run is in the set.
func (r Runs) Covers(run Run) bool {
	i, ok := slices.BinarySearchFunc(r, run.First, func(x Run, n uint64) int { return cmp.Compare(x.First, n) })
	if !ok {
		i--
	}
	return i >= 0 && r[i].Last >= run.Last
}

// Within yields what the set and the window share, ascending.
func (r Runs) Within(window Run) iter.Seq[Run] {
	return func(yield func(Run) bool) {
		i, _ := slices.BinarySearchFunc(r, window.First, func(x Run, n uint64) int { return cmp.Compare(x.Last, n) })
		for ; i < len(r) && r[i].First <= window.Last; i++ {
			if !yield(Run{max(r[i].First, window.First), min(r[i].Last, window.Last)}) {
				return
			}
		}
	}
}

// Gaps yields what the window has and the set lacks, ascending.
func (r Runs) Gaps(window Run) iter.Seq[Run] {
	return func(yield func(Run) bool) {
		next := window.First
		for have := range r.Within(window) {
			if have.First > next && !yield(Run{next, have.First - 1}) {
				return
			}
			if have.Last == window.Last {
				return
			}
			next = have.Last + 1
		}
		if next <= window.Last {
			yield(Run{next, window.Last})
		}
	}
}
