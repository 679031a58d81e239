package pack

import (
	"cmp"
	"iter"
	"slices"
	"strings"

	"github.com/walherd/walherd/engine/cluster"
)

// filler fills one part after the other.
type filler struct {
	threshold int64
	parts     []Part
	part      Part
}

func newFiller(threshold int64) *filler {
	if threshold <= 0 {
		threshold = DefaultThreshold
	}
	return &filler{threshold: threshold, part: Part{Number: 1}}
}

func (f *filler) add(it Item) {
	f.part.Entries = append(f.part.Entries, it.Index)
	f.part.Size += it.Size
}

// next closes the part, unless it is empty.
func (f *filler) next() {
	if len(f.part.Entries) == 0 {
		return
	}
	f.part.Entries = slices.Clip(f.part.Entries)
	f.parts = append(f.parts, f.part)
	f.part = Part{Number: f.part.Number + 1}
}

// split takes the directories out of the items: their headers go into the
// first part.
func split(entries []cluster.Entry, items iter.Seq[Item], f *filler) (files []Item) {
	for it := range items {
		if entries[it.Index].IsDir() {
			f.add(it)
		} else {
			files = append(files, it)
		}
	}
	return files
}

// Database gives each database of the default tablespace parts of its own, so
// that a restore of one database reads no other's: one group for each
// directory below base/, and one for all that is elsewhere, tablespaces
// included. A group begins a new part and is cut as the regular composer does:
// a part is closed when it is above threshold (bytes; 0 is DefaultThreshold).
// The directories alone are the first part.
func Database(entries []cluster.Entry, threshold int64) Composer {
	return func(items iter.Seq[Item]) []Part {
		f := newFiller(threshold)
		groups := map[string][]Item{}
		for _, it := range split(entries, items, f) {
			db := databaseDir(entries[it.Index].Name)
			groups[db] = append(groups[db], it)
		}
		names := make([]string, 0, len(groups))
		for name := range groups {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			f.next()
			for _, it := range groups[name] {
				f.add(it)
				if f.part.Size > f.threshold {
					f.next()
				}
			}
		}
		f.next()
		return f.parts
	}
}

// databaseDir is the directory's name in base/; empty for what is elsewhere.
func databaseDir(name string) string {
	rest, ok := strings.CutPrefix(name, "/base/")
	dir, _, below := strings.Cut(rest, "/")
	if !ok || !below {
		return ""
	}
	return dir
}

// Rating puts files together that change alike, so that a later restore of an
// increment can pass over whole tars of its base whose files were all replaced.
// Files go by their rating, the least changed first. A part is cut before a
// file that would bring it above threshold (bytes; 0 is DefaultThreshold), and
// between the files that never change and those that do. The directories come
// first, and what never changes after them in the same part.
func Rating(entries []cluster.Entry, rating func(index int32) uint64, threshold int64) Composer {
	return func(items iter.Seq[Item]) []Part {
		f := newFiller(threshold)
		files := split(entries, items, f)
		slices.SortStableFunc(files, func(a, b Item) int { return cmp.Compare(rating(a.Index), rating(b.Index)) })
		for i, it := range files {
			changes := i > 0 && rating(files[i-1].Index) == 0 && rating(it.Index) > 0
			if changes || f.part.Size > 0 && it.Size > f.threshold-f.part.Size {
				f.next()
			}
			f.add(it)
		}
		f.next()
		return f.parts
	}
}
