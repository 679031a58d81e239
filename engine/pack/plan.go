package pack

import (
	"fmt"
	"iter"
	"slices"

	"github.com/walherd/walherd/engine/cluster"
)

// DefaultThreshold is WALG_TAR_SIZE_THRESHOLD's default in bytes.
const DefaultThreshold = 1<<30 - 1

// Item is one entry to be stored.
type Item struct {
	// Index into the backup's list of entries.
	Index int32
	// Size is how many bytes the entry is expected to take in its part: the
	// file's size, or the increment's.
	Size int64
}

// Items are all entries with their sizes: a full backup.
func Items(entries []cluster.Entry) iter.Seq[Item] {
	return func(yield func(Item) bool) {
		for i := range entries {
			if !yield(Item{Index: int32(i), Size: entries[i].Size}) {
				return
			}
		}
	}
}

// Part is one tar of a backup.
type Part struct {
	// Number counts from 1. Numbers may have gaps.
	Number int
	// Entries are indexes into the list of entries, in the tar's order.
	Entries []int32
	// Size is the sum of the items' sizes: no headers, no padding.
	Size int64
}

// Name is the tar's name without the extension of its compression.
func (p Part) Name() string { return fmt.Sprintf("part_%03d.tar", p.Number) }

// Composer distributes items over parts. It is pure: the same items give the
// same parts. Each item ends up in exactly one part, and no part is empty.
//
// What a composer needs to know besides an item's size (update counts, paths,
// the parent's tars) it holds itself.
type Composer func(items iter.Seq[Item]) []Part

// RegularOptions tunes the regular composer.
type RegularOptions struct {
	// Threshold closes a part whose size is above it, in bytes. 0 is
	// DefaultThreshold. A part exceeds it by up to one file, as files are
	// never split.
	Threshold int64
	// OpenParts is how many parts are filled side by side, so that as many
	// can be produced in parallel. 0 is 1, which keeps the order of the walk.
	OpenParts int
}

// Regular keeps the order of the walk and gives each item to the open part
// that is least filled, tar headers counted, so that a flood of empty files
// spreads as well. A part's number is taken when it is planned, as in WAL-G.
func Regular(opt RegularOptions) Composer {
	threshold, open := opt.Threshold, max(opt.OpenParts, 1)
	if threshold <= 0 {
		threshold = DefaultThreshold
	}
	return func(items iter.Seq[Item]) []Part {
		type slot struct {
			part   Part
			filled int64
		}
		slots := make([]slot, open)
		for i := range slots {
			slots[i].part.Number = i + 1
		}
		next := open + 1
		var parts []Part
		closePart := func(p Part) {
			if len(p.Entries) > 0 {
				p.Entries = slices.Clip(p.Entries)
				parts = append(parts, p)
			}
		}
		for it := range items {
			s := &slots[0]
			for i := range slots {
				if slots[i].filled < s.filled {
					s = &slots[i]
				}
			}
			s.part.Entries = append(s.part.Entries, it.Index)
			s.part.Size += it.Size
			s.filled += blockSize + padded(it.Size)
			if s.part.Size > threshold {
				closePart(s.part)
				*s = slot{part: Part{Number: next}}
				next++
			}
		}
		for _, s := range slots {
			closePart(s.part)
		}
		slices.SortFunc(parts, func(a, b Part) int { return a.Number - b.Number })
		return parts
	}
}
