package catalog

import (
	"fmt"
	"maps"
	"slices"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
)

// Status is the verdict of a check, in the words of wal-verify.
type Status string

// The verdicts.
const (
	StatusOK      Status = "OK"
	StatusWarning Status = "WARNING"
	StatusFailure Status = "FAILURE"
)

// SegmentStatus tells what became of segments that should be stored, in the
// words of wal-verify.
type SegmentStatus string

// The states of a segment.
const (
	SegmentFound     SegmentStatus = "FOUND"
	SegmentDelayed   SegmentStatus = "MISSING_DELAYED"   // not offered for archiving yet
	SegmentUploading SegmentStatus = "MISSING_UPLOADING" // may be on its way
	SegmentLost      SegmentStatus = "MISSING_LOST"
)

// SegmentRange is a row of neighboring segments of one state.
type SegmentRange struct {
	Timeline    pg.Timeline
	First, Last pg.SegmentName
	Count       uint64
	Status      SegmentStatus
}

// IntegrityCheck says what to verify.
type IntegrityCheck struct {
	// Timeline and LSN are where the cluster is.
	Timeline pg.Timeline
	LSN      pg.LSN
	// MaxDelayed is how many segments at the head may not have been offered
	// yet, Uploading how many behind them may be on their way.
	MaxDelayed, Uploading uint64
	// Backup is where to end; empty: at the earliest backup of the
	// cluster's history that is not permanent.
	Backup pg.BackupName
	// Storages are those to look in; none: all.
	Storages []string
}

// IntegrityReport is the result of the integrity check.
type IntegrityReport struct {
	Status Status
	// Ranges are in chronological order; empty when nothing was scanned.
	Ranges []SegmentRange
	// Backup is where the scan ends; nil: no backup qualified, and the scan
	// went down to segment 1.
	Backup *Stored
	// Doubts tell a person what the check could not see. With any, the
	// status is not StatusOK.
	Doubts []string
}

// VerifyIntegrity looks whether every segment from the earliest backup's start
// up to, without it, the one the cluster is in is stored, along the history of
// the cluster's timeline.
//
// Missing segments at the head are told apart: up to MaxDelayed, ending at the
// first one found, are delayed; then within a stretch of Uploading segments,
// which begins with that first one, they are uploading; all older are lost.
// Without a backup to end at, the missing segments before the first stored one
// were needed by nobody we know: they are a warning at most. So is what hides a
// part of the archive from the check: see Doubts.
//
// ErrNotFound when the backup asked for does not exist or is not of this
// history.
func (v *Inventory) VerifyIntegrity(c IntegrityCheck) (IntegrityReport, error) {
	var rep IntegrityReport
	h, _ := v.History(c.Timeline)
	h.Timeline = c.Timeline // also of an unknown one
	backup, err := v.earliest(c, h)
	if err != nil {
		return rep, fmt.Errorf("verify WAL integrity: %w", err)
	}
	rep.Backup = backup
	first := uint64(1)
	if backup != nil {
		first, _, _ = v.NeedsWAL(backup)
	}
	segments := v.Segments(c.Storages...)
	current := uint64(c.LSN) / uint64(v.size)
	rep.Doubts = v.doubts(c, backup, first, current)

	// Newest first, to be turned round at the end.
	delayed, uploading, atHead := c.MaxDelayed, c.Uploading, c.MaxDelayed > 0
	emit := func(tl pg.Timeline, r Run, s SegmentStatus) {
		lo := pg.SegmentAt(tl, r.First, v.size)
		if n := len(rep.Ranges); n > 0 && rep.Ranges[n-1].Timeline == tl && rep.Ranges[n-1].Status == s {
			rep.Ranges[n-1].First = lo
			rep.Ranges[n-1].Count += r.Len()
			return
		}
		rep.Ranges = append(rep.Ranges, SegmentRange{Timeline: tl, First: lo, Last: pg.SegmentAt(tl, r.Last, v.size), Count: r.Len(), Status: s})
	}
	for _, leg := range slices.Backward(v.path(h)) {
		if current == 0 || leg.First > current-1 || leg.Last < first {
			continue
		}
		window := Run{max(leg.First, first), min(leg.Last, current-1)}
		rows := slices.Collect(segments[leg.Timeline].Within(window))
		found := len(rows)
		rows = slices.AppendSeq(rows, segments[leg.Timeline].Gaps(window))
		isFound := make(map[Run]bool, found)
		for _, r := range rows[:found] {
			isFound[r] = true
		}
		slices.SortFunc(rows, func(a, b Run) int { return -compareRuns(a, b) })
		for _, r := range rows {
			if isFound[r] {
				atHead = false
				uploading -= min(uploading, r.Len())
				emit(leg.Timeline, r, SegmentFound)
				continue
			}
			take := func(n uint64, s SegmentStatus) (rest bool) {
				if n = min(n, r.Len()); n == 0 {
					return true
				}
				emit(leg.Timeline, Run{r.Last - n + 1, r.Last}, s)
				if n == r.Len() {
					return false
				}
				r.Last -= n
				return true
			}
			if atHead {
				n := min(delayed, r.Len())
				delayed -= n
				atHead = delayed > 0
				if !take(n, SegmentDelayed) {
					continue
				}
			}
			n := min(uploading, r.Len())
			uploading -= n
			if take(n, SegmentUploading) {
				emit(leg.Timeline, r, SegmentLost)
			}
		}
	}
	slices.Reverse(rep.Ranges)
	rep.Status = StatusOK
	if len(rep.Doubts) > 0 {
		rep.Status = StatusWarning
	}
	leading := backup == nil
	for _, r := range rep.Ranges {
		switch {
		case r.Status == SegmentFound:
			leading = false
		case r.Status == SegmentLost && !leading:
			rep.Status = StatusFailure
		case rep.Status == StatusOK:
			rep.Status = StatusWarning
		}
	}
	return rep, nil
}

// doubts are the reasons not to call an archive whole in which the segments
// looked for are found: the scan begins at first, the server is in current.
func (v *Inventory) doubts(c IntegrityCheck, backup *Stored, first, current uint64) (list []string) {
	if _, ok := v.History(c.Timeline); !ok {
		list = append(list, fmt.Sprintf("%s is not archived, or cannot be read: what was archived before timeline %d began, and the backups of that time, are not looked at",
			c.Timeline.HistoryFile(), uint32(c.Timeline)))
	}
	if backup != nil && first > current {
		list = append(list, fmt.Sprintf("nothing is looked at: the earliest backup, %s, begins after the server's position %s: is it another cluster's?", backup.ID, c.LSN))
	}
	if d := v.Misfit(); d != "" {
		list = append(list, d)
	}
	return list
}

func compareRuns(a, b Run) int {
	switch {
	case a.First < b.First:
		return -1
	case a.First > b.First:
		return 1
	}
	return 0
}

// leg is the stretch of one timeline on the way to another; a segment in which
// the timeline changes belongs to the later one.
type leg struct {
	Timeline    pg.Timeline
	First, Last uint64
}

// path is the way to a timeline by its history, oldest leg first. An unknown
// history is a single leg.
func (v *Inventory) path(h wal.History) []leg {
	var out []leg
	next := uint64(0)
	for _, s := range h.Switches {
		end := uint64(s.LSN) / uint64(v.size)
		if end > next {
			out = append(out, leg{s.Timeline, next, end - 1})
			next = end
		}
	}
	return append(out, leg{h.Timeline, next, ^uint64(0)})
}

// within reports whether a backup was taken, from its start to its end, in that
// history. Positions tell, for a timeline may have begun or ended within the
// backup's segment; without them, the segment of a switch is on both.
func (v *Inventory) within(h wal.History, b *Stored) bool {
	tl := b.Segment.Timeline
	if start := b.Details.StartLSN; start > 0 {
		return h.At(start) == tl && h.At(max(start+1, b.Details.FinishLSN)-1) == tl
	}
	n, begin := b.Segment.Number(v.size), uint64(0)
	for _, s := range h.Switches {
		end := uint64(s.LSN) / uint64(v.size)
		if s.Timeline == tl {
			return n >= begin && n <= end
		}
		begin = end
	}
	return h.Timeline == tl && n >= begin
}

// earliest is the backup at which the integrity check ends, nil for none.
func (v *Inventory) earliest(c IntegrityCheck, h wal.History) (*Stored, error) {
	var best *Stored
	var bestFirst uint64
	for _, b := range v.Backups() {
		if !b.Listed || b.ID.Folder != BaseBackups || len(c.Storages) > 0 && !slices.Contains(c.Storages, b.ID.Storage) {
			continue
		}
		if c.Backup != "" && b.ID.Name != c.Backup || c.Backup == "" && b.Details.Permanent {
			continue
		}
		if !v.within(h, b) {
			continue
		}
		if first, _, _ := v.NeedsWAL(b); best == nil || first < bestFirst {
			best, bestFirst = b, first
		}
	}
	if best == nil && c.Backup != "" {
		return nil, fmt.Errorf("find backup %q in the history of timeline %d: %w: backup-list shows those there are", c.Backup, c.Timeline, ErrNotFound)
	}
	return best, nil
}

// TimelineCheck is the result of the timeline check: whether the cluster is on
// the highest timeline that has segments. Another one points to two clusters
// that archive to one place.
type TimelineCheck struct {
	Status Status
	// Highest is 0, and the status a warning, when no segment is stored.
	Current, Highest pg.Timeline
}

// VerifyTimeline compares the cluster's timeline with the stored ones.
func (v *Inventory) VerifyTimeline(current pg.Timeline, storages ...string) TimelineCheck {
	c := TimelineCheck{Status: StatusWarning, Current: current}
	if tls := slices.Sorted(maps.Keys(v.Segments(storages...))); len(tls) > 0 {
		c.Highest = tls[len(tls)-1]
		c.Status = StatusFailure
		if c.Highest == current {
			c.Status = StatusOK
		}
	}
	return c
}
