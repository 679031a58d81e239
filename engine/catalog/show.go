package catalog

import (
	"iter"
	"maps"
	"slices"

	"github.com/walherd/walherd/engine/pg"
)

// The states of a stored timeline, in the words of wal-show.
const (
	TimelineOK   = "OK"
	TimelineLost = "LOST_SEGMENTS"
)

// TimelineReport is wal-show's row of one timeline that has segments.
type TimelineReport struct {
	Timeline pg.Timeline
	// Parent and SwitchPoint are 0 without a known history file.
	Parent      pg.Timeline
	SwitchPoint pg.LSN
	// Start and End are the lowest and the highest stored segment.
	Start, End pg.SegmentName
	// Range counts from Start to End, Found the stored ones of these.
	Range, Found uint64
	// Gaps are the rows of missing segment numbers, ascending.
	Gaps Runs
	// Status is TimelineOK or TimelineLost.
	Status string
	// Backups are those of this timeline whose first and last segment lie
	// between Start and End, oldest first.
	Backups []*Stored

	size pg.SegmentSize
}

// Missing yields the names of the missing segments, newest first.
func (r *TimelineReport) Missing() iter.Seq[pg.SegmentName] {
	return func(yield func(pg.SegmentName) bool) {
		for _, gap := range slices.Backward(r.Gaps) {
			for n := gap.Last; ; n-- {
				if !yield(pg.SegmentAt(r.Timeline, n, r.size)) {
					return
				}
				if n == gap.First {
					break
				}
			}
		}
	}
}

// Show reports the timelines stored, ascending: those of the named storages,
// or of all. A backup whose finish is not known is taken to end where it
// starts.
func (v *Inventory) Show(storages ...string) []TimelineReport {
	segments := v.Segments(storages...)
	backups := map[pg.Timeline][]*Stored{}
	for _, b := range v.Backups() {
		if b.Listed && b.ID.Folder == BaseBackups && (len(storages) == 0 || slices.Contains(storages, b.ID.Storage)) {
			backups[b.Segment.Timeline] = append(backups[b.Segment.Timeline], b)
		}
	}
	var out []TimelineReport
	for _, tl := range slices.Sorted(maps.Keys(segments)) {
		runs := segments[tl]
		whole := Run{runs[0].First, runs[len(runs)-1].Last}
		r := TimelineReport{
			Timeline: tl, Start: pg.SegmentAt(tl, whole.First, v.size), End: pg.SegmentAt(tl, whole.Last, v.size),
			Range: whole.Len(), Found: runs.Len(), Gaps: slices.Collect(runs.Gaps(whole)), Status: TimelineOK, size: v.size,
		}
		if h, ok := v.History(tl); ok {
			if parent, ok := h.Parent(); ok {
				r.Parent, r.SwitchPoint = parent.Timeline, parent.LSN
			}
		}
		if len(r.Gaps) > 0 {
			r.Status = TimelineLost
		}
		for _, b := range backups[tl] {
			if first, last, _ := v.NeedsWAL(b); first >= whole.First && last <= whole.Last {
				r.Backups = append(r.Backups, b)
			}
		}
		out = append(out, r)
	}
	return out
}

// NeedsWAL is the first and the last segment number, on the timeline of the
// backup's name, without which the backup does not become consistent. known
// is false when the finish is not known; last is then first.
//
// The lower of the name's segment and that of the byte before the start
// counts as first: a backup of a standby is named so, one of a primary is not.
func (v *Inventory) NeedsWAL(b *Stored) (first, last uint64, known bool) {
	first = b.Segment.Number(v.size)
	last = first
	if start := b.Details.StartLSN; start > 0 {
		first = min(first, uint64(start-1)/uint64(v.size))
	}
	if finish := b.Details.FinishLSN; finish > 0 {
		known = true
		last = max(last, uint64(finish-1)/uint64(v.size))
	}
	return first, last, known
}
