package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
)

// ErrWALMissing marks backups whose WAL the source does not have.
var ErrWALMissing = errors.New("WAL is missing in the source")

// History says how much WAL goes with the backups.
type History int

const (
	// RequiredHistory is what makes each backup consistent, and every
	// timeline's history file.
	RequiredHistory History = iota
	// NoHistory is none.
	NoHistory
	// WholeHistory goes on from there to the newest segment.
	WholeHistory
)

// Request says what PlanCopy is to plan.
type Request struct {
	// Backup is a name or LATEST; "" is every backup. Its ancestors come too.
	Backup string
	// History is how much WAL comes along.
	History History
	// SegmentSize of the source's WAL.
	SegmentSize pg.SegmentSize
}

// Plan is what Carry does: the stages one after the other, the objects of a
// stage in any order. Sentinels have stages of their own, parents first, then in
// the order of their times in the source, so that LATEST stays the same.
type Plan struct {
	Stages [][]Object
	// Backups that are copied, and the Skipped objects that the target has.
	Backups []pg.BackupName
	Skipped int
}

// Size sums up what is to be copied, in bytes.
func (p *Plan) Size() int64 {
	var n int64
	for _, s := range p.Stages {
		for _, o := range s {
			n += o.Size
		}
	}
	return n
}

// PlanCopy reads both storages and plans the copy of backups with their WAL.
// Objects that the target has with equal size are left out. It refuses what
// could not be restored afterwards: an ancestor that is missing (ErrChain), a
// WAL segment (ErrWALMissing), an object of the target with another size or one
// among the parts of a backup that the source does not have (ErrConflict).
func PlanCopy(ctx context.Context, from, to storage.Bucket, req Request) (*Plan, error) {
	all, err := backups(ctx, from)
	if err != nil {
		return nil, fmt.Errorf("read the source: %w", err)
	}
	chosen := all
	if req.Backup != "" {
		b, err := choose(all, req.Backup)
		if err != nil {
			return nil, err
		}
		chosen = []*backup{b}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("copy backups: %w: the source holds none; check --from", catalog.ErrNotFound)
	}
	if chosen, err = withAncestors(all, chosen); err != nil {
		return nil, err
	}
	var p Plan
	var data, metadata []Object
	for _, b := range chosen {
		p.Backups = append(p.Backups, b.name)
		meta, rest, err := payload(ctx, from, b.name)
		if err != nil {
			return nil, fmt.Errorf("list the source: %w", err)
		}
		there, err := sizes(ctx, to, string(repo.BaseBackups)+string(b.name)+"/")
		if err != nil {
			return nil, fmt.Errorf("list the target: %w", err)
		}
		if meta, err = p.absent(meta, there); err != nil {
			return nil, err
		}
		if rest, err = p.absent(rest, there); err != nil {
			return nil, err
		}
		for name := range there {
			return nil, fmt.Errorf("copy %s: %w: the source has no %s, which a restore would unpack; remove it with st rm", b.name, ErrConflict, name)
		}
		metadata, data = append(metadata, meta...), append(data, rest...)
	}
	if req.History != NoHistory {
		wal, err := p.wal(ctx, from, to, chosen, req)
		if err != nil {
			return nil, err
		}
		data = append(data, wal...)
	}
	p.Stages = [][]Object{data, metadata}
	for _, b := range chosen {
		there := map[string]int64{}
		if info, err := to.Stat(ctx, b.document.Name); err == nil {
			there[info.Name] = info.Size
		} else if !errors.Is(err, storage.ErrNotExist) {
			return nil, fmt.Errorf("look into the target: %w", err)
		}
		todo, err := p.absent([]Object{b.document}, there)
		if err != nil {
			return nil, err
		}
		p.Stages = append(p.Stages, todo)
	}
	return &p, nil
}

// Carry carries a plan out. A stage with a failure is the last.
func (c *Copier) Carry(ctx context.Context, p *Plan) Result {
	res := c.stages(ctx, p.Stages)
	res.Skipped = p.Skipped
	return res
}

// absent leaves out what the target has, and takes it out of the map.
func (p *Plan) absent(objects []Object, there map[string]int64) ([]Object, error) {
	var todo []Object
	for _, o := range objects {
		size, ok := there[o.Name]
		delete(there, o.Name)
		switch {
		case !ok:
			todo = append(todo, o)
		case size != o.Size:
			return nil, fmt.Errorf("copy %s: %w: it has %d bytes there and %d in the source", o.Name, ErrConflict, size, o.Size)
		default:
			p.Skipped++
		}
	}
	return todo, nil
}

// wal chooses the archived files that go with the backups.
func (p *Plan) wal(ctx context.Context, from, to storage.Bucket, chosen []*backup, req Request) ([]Object, error) {
	files, err := list(ctx, from, repo.WALFolder)
	if err != nil {
		return nil, fmt.Errorf("list the source: %w", err)
	}
	selected, err := SelectWAL(files, ranges(chosen), req)
	if err != nil {
		return nil, err
	}
	there, err := sizes(ctx, to, repo.WALFolder)
	if err != nil {
		return nil, fmt.Errorf("list the target: %w", err)
	}
	return p.absent(selected, there)
}

// Range is the WAL that one backup needs to become consistent.
type Range struct {
	Backup pg.BackupName
	// Start and Finish are the backup's; nil is unknown.
	Start, Finish *pg.LSN
}

func ranges(chosen []*backup) []Range {
	out := make([]Range, len(chosen))
	for i, b := range chosen {
		out[i] = Range{Backup: b.name, Start: b.sentinel.LSN, Finish: b.sentinel.FinishLSN}
	}
	return out
}

// segments are the first and last segment of the range. Both positions are
// ends of what lies before them, so that one at a segment's border belongs to
// the segment that it ends.
func (r Range) segments(size pg.SegmentSize) (first, last pg.SegmentName, err error) {
	named, ok := r.Backup.Segment()
	if !ok || r.Start == nil || r.Finish == nil || *r.Start == 0 || *r.Finish < *r.Start {
		return first, last, fmt.Errorf("backup %s: its sentinel does not tell which WAL it needs; copy it with --without-history", r.Backup)
	}
	return (*r.Start - 1).Segment(named.Timeline, size), (*r.Finish - 1).Segment(named.Timeline, size), nil
}

// SelectWAL chooses, among the objects of wal_005/, the segments the ranges need
// with all that is named after them, and every timeline's history. With
// WholeHistory all that follows the first needed segment comes too. A segment
// that is missing, needed or between two that were chosen, is ErrWALMissing.
func SelectWAL(files []Object, needed []Range, req Request) ([]Object, error) {
	present := map[pg.SegmentName]bool{}
	for _, o := range files {
		if seg, ok := segmentObject(o.Name); ok {
			present[seg] = true
		}
	}
	wanted := map[pg.SegmentName]bool{}
	var from pg.SegmentName
	for _, r := range needed {
		first, last, err := r.segments(req.SegmentSize)
		if err != nil {
			return nil, err
		}
		if from.IsZero() || first.Compare(from) < 0 {
			from = first
		}
		for seg := first; seg.Compare(last) <= 0; seg = seg.Next(req.SegmentSize) {
			if !present[seg] {
				return nil, fmt.Errorf("backup %s: %w: it needs %s to %s, and there is no %s (--without-history copies it all the same)",
					r.Backup, ErrWALMissing, first, last, seg)
			}
			wanted[seg] = true
		}
	}
	if req.History == WholeHistory {
		var follow []pg.SegmentName
		for seg := range present {
			if seg.Compare(from) >= 0 {
				follow = append(follow, seg)
				wanted[seg] = true
			}
		}
		if err := noGap(follow, present, req.SegmentSize); err != nil {
			return nil, err
		}
	}
	var out []Object
	for _, o := range files {
		if belongs(o.Name, wanted) || req.History == WholeHistory && follows(o.Name, from) {
			out = append(out, o)
		}
	}
	return out, nil
}

// noGap checks that the segments of each timeline follow each other, and that
// none begins behind a gap. A timeline begins in the segment that its parent ended
// in, or in the next; a parent's number is lower. Of which parent it is only its
// history file tells, so the best stored of them is taken.
func noGap(segments []pg.SegmentName, present map[pg.SegmentName]bool, size pg.SegmentSize) error {
	slices.SortFunc(segments, pg.SegmentName.Compare)
	for i := 1; i < len(segments); i++ {
		before, at := segments[i-1], segments[i]
		if before.Timeline != at.Timeline {
			if n := at.Number(size); n > 0 && !reached(present, at.Timeline, n-1, size) {
				return fmt.Errorf("copy the history: %w: timeline %d begins with %s, and no timeline before it comes up to there", ErrWALMissing, uint32(at.Timeline), at)
			}
			continue
		}
		if next := before.Next(size); next != at {
			return fmt.Errorf("copy the history: %w: after %s comes %s, and there is no %s", ErrWALMissing, before, at, next)
		}
	}
	return nil
}

// reached tells whether a timeline below tl has segment number n or a later one.
func reached(present map[pg.SegmentName]bool, tl pg.Timeline, n uint64, size pg.SegmentSize) bool {
	for seg := range present {
		if seg.Timeline < tl && seg.Number(size) >= n {
			return true
		}
	}
	return false
}

// bulkLen is the length of a name that stands for sixteen segments: the
// metadata of WALG_UPLOAD_WAL_METADATA=BULK.
const bulkLen = pg.SegmentNameLen - 1

// belongs tells history files, and what is named after one of the segments.
func belongs(object string, wanted map[pg.SegmentName]bool) bool {
	base := strings.TrimPrefix(object, repo.WALFolder)
	stem, _, _ := strings.Cut(base, ".")
	if kind, _ := pg.ClassifyWALFile(stem + ".history"); kind == pg.TimelineHist && strings.HasPrefix(base, stem+".history") {
		return true
	}
	if seg, ok := leading(base); ok {
		return wanted[seg]
	}
	if len(stem) == bulkLen {
		for _, digit := range "0123456789ABCDEF" {
			if seg, err := pg.ParseSegmentName(stem + string(digit)); err == nil && wanted[seg] {
				return true
			}
		}
	}
	return false
}

// follows tells what is named after a segment from that one on, whether the
// segment itself is there (as a partial one is not) or not.
func follows(object string, from pg.SegmentName) bool {
	seg, ok := leading(strings.TrimPrefix(object, repo.WALFolder))
	return ok && seg.Compare(from) >= 0
}

func leading(base string) (pg.SegmentName, bool) {
	seg, err := pg.ParseSegmentName(base[:min(len(base), pg.SegmentNameLen)])
	return seg, err == nil
}

// segmentObject tells the segment an object holds whole, in whatever
// compression.
func segmentObject(object string) (pg.SegmentName, bool) {
	base := strings.TrimPrefix(object, repo.WALFolder)
	seg, ok := leading(base)
	if !ok {
		return seg, false
	}
	ending := base[pg.SegmentNameLen:]
	if ending == "" || ending == "." {
		return seg, true
	}
	// lzo is WAL-E's: not for us to read, but to copy.
	return seg, ending[0] == '.' && (ending == ".lzo" || slices.Contains(compress.Extensions(), ending[1:]))
}
