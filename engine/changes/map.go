package changes

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
)

// Why a Map cannot answer, for errors.Is.
var (
	// ErrGap: WAL between the two positions is not covered.
	ErrGap = errors.New("changes not known for the whole range")
	// ErrTimeline: the covered WAL is of a timeline the backup's does not
	// descend from, or of one after the point where it branched off.
	ErrTimeline = errors.New("changes of another timeline")
	// ErrLayout: pages or files of different sizes.
	ErrLayout = errors.New("changes counted in other blocks")
	// ErrMinimal: WAL of wal_level=minimal.
	ErrMinimal = errors.New("WAL written with wal_level=minimal, in which changes are missing")
	// ErrFormat: what was read is no stored map, or a damaged one.
	ErrFormat = errors.New("invalid change map")
)

// Layout is how a server cuts its relations. The zero value is PostgreSQL as
// built by default; pg_control_init tells both (database_block_size,
// blocks_per_segment).
type Layout struct {
	// PageSize of a data page in bytes. 0: 8192.
	PageSize uint32
	// FileBlocks is how many pages a file of a relation holds at most. 0:
	// as many as make 1 GiB.
	FileBlocks uint32
}

// defaults fills the zero fields in.
func (l Layout) defaults() Layout {
	if l.PageSize == 0 {
		l.PageSize = 8192
	}
	if l.FileBlocks == 0 {
		l.FileBlocks = 1 << 30 / l.PageSize
	}
	return l
}

func (l Layout) validate() error {
	if l.PageSize < 1<<10 || l.PageSize > 1<<15 || l.PageSize&(l.PageSize-1) != 0 || l.FileBlocks == 0 {
		return fmt.Errorf("%w: pages of %d bytes, files of %d pages", ErrLayout, l.PageSize, l.FileBlocks)
	}
	return nil
}

// heapPages is how many heap pages one page of a visibility map stands for: two
// bits each, on what a page has beside its header of 24 bytes
// (src/backend/access/heap/visibilitymap.c).
func (l Layout) heapPages() uint32 { return (l.PageSize - 24) * 4 }

// Span is a covered range of WAL: all records that start in [Start, End), in
// the segments of one timeline.
type Span struct {
	Timeline   pg.Timeline
	Start, End pg.LSN
}

// String prints "0/2000028 to 0/5000000 of timeline 1".
func (s Span) String() string {
	return fmt.Sprintf("%s to %s of timeline %d", s.Start, s.End, s.Timeline)
}

// Fork names one fork of a relation.
type Fork struct {
	wal.RelFile
	Fork wal.Fork
}

func (f Fork) compare(o Fork) int {
	if c := f.RelFile.Compare(o.RelFile); c != 0 {
		return c
	}
	return int(f.Fork) - int(o.Fork)
}

// DatabaseDir is the directory of a database in a tablespace.
type DatabaseDir struct{ Tablespace, Database uint32 }

// Map is the set of blocks that changed in the ranges of WAL it covers. It only
// ever grows: a block too many makes an increment larger, a block too few makes
// it wrong. Its size goes with what changed: two bytes a block, at most 8 KiB
// for 512 MiB of a relation, some 150 bytes for a fork, and the pieces of records
// at its borders.
//
// The zero value is not usable; see New, Scan, Read. A Map may be read by
// several goroutines while none changes it.
type Map struct {
	layout Layout
	// spans are contiguous and ascending. End of the last is that of the
	// scanned WAL; the record in tail is not covered yet.
	spans []Span
	major int // PostgreSQL's version, 0 for a Map that is not of WAL
	head  *wal.Fragment
	tail  *wal.Fragment
	// lost: the record that runs into the first span was never completed.
	lost bool

	forks     map[Fork]*blockSet
	dirs      map[DatabaseDir]struct{}
	unlimited bool // see LimitsKnown

	// The fork marked last: neighbouring records are of the same few.
	lastFork Fork
	lastSet  *blockSet
}

// New is an empty Map that covers the given span; marking what changed in it is
// the caller's affair.
func New(layout Layout, span Span) (*Map, error) {
	m := empty(layout.defaults())
	if err := m.layout.validate(); err != nil {
		return nil, fmt.Errorf("make change map: %w", err)
	}
	if span.Timeline == 0 || span.End < span.Start {
		return nil, fmt.Errorf("make change map: %w: no range is %s", ErrFormat, span)
	}
	m.spans = []Span{span}
	return m, nil
}

func empty(layout Layout) *Map {
	return &Map{layout: layout, forks: make(map[Fork]*blockSet), dirs: make(map[DatabaseDir]struct{})}
}

// set is the fork's, made if need be.
func (m *Map) set(f Fork) *blockSet {
	if m.lastSet != nil && m.lastFork == f {
		return m.lastSet
	}
	s := m.forks[f]
	if s == nil {
		s = &blockSet{limit: noLimit}
		m.forks[f] = s
	}
	m.lastFork, m.lastSet = f, s
	return s
}

// Mark adds a block, counted over all files of the fork.
func (m *Map) Mark(f Fork, block uint32) {
	if block != noLimit {
		m.set(f).add(block)
	}
}

// Limit adds all blocks of the fork from block on: it was created, dropped
// (block 0) or truncated there.
func (m *Map) Limit(f Fork, block uint32, truncated bool) {
	s := m.set(f)
	s.limit = min(s.limit, block)
	s.truncated = s.truncated || truncated
}

// MarkDatabase adds all relations of a database in a tablespace.
func (m *Map) MarkDatabase(d DatabaseDir) { m.dirs[d] = struct{}{} }

// Layout is what blocks are counted in.
func (m *Map) Layout() Layout { return m.layout }

// LimitsKnown tells whether truncated and created relations are known: not so
// in a Map that was made out of a WAL-G delta file, which has no room for them.
func (m *Map) LimitsKnown() bool { return !m.unlimited }

// Spans are the ranges of WAL the Map covers, contiguous and ascending. The end
// of the last is where a record begins that is not known whole, if there is
// one: then it covers less than was scanned, until the next range is merged.
func (m *Map) Spans() []Span {
	spans := slices.Clone(m.spans)
	for m.tail != nil && len(spans) > 0 {
		last := &spans[len(spans)-1]
		if last.Start < m.tail.Start {
			last.End = min(last.End, m.tail.Start)
			break
		}
		spans = spans[:len(spans)-1]
	}
	return spans
}

// End is where the next range to be merged is to begin, at the latest: the end
// of what was scanned.
func (m *Map) End() pg.LSN { return m.spans[len(m.spans)-1].End }

// Covers reports whether every record that starts in [from, to) was looked at,
// on the timelines that a server with history took. The error wraps ErrGap or
// ErrTimeline and says what is missing.
//
// The segments of a new timeline begin with a copy of its parent's, so a span
// of a later timeline of the history serves for the time before its branch,
// and one of an earlier only up to the branch.
func (m *Map) Covers(from, to pg.LSN, history wal.History) error {
	if to < from {
		return fmt.Errorf("look for changes from %s to %s: %w: it ends before it begins", from, to, ErrGap)
	}
	at := from
	for _, s := range m.Spans() {
		if at >= to || s.Start > at {
			break
		}
		if s.End <= at {
			continue
		}
		end, ok := branchEnd(history, s.Timeline)
		if !ok || at >= end {
			return fmt.Errorf("look for changes from %s to %s: %w: timeline %d at %s, known are those %s", from, to, ErrTimeline, history.At(at), at, s)
		}
		at = min(s.End, end)
	}
	if at < to {
		return fmt.Errorf("look for changes from %s to %s: %w: nothing known from %s on", from, to, ErrGap, at)
	}
	return nil
}

// branchEnd is where a timeline of the history ends; false if it is none.
func branchEnd(h wal.History, tl pg.Timeline) (pg.LSN, bool) {
	for _, s := range h.Switches {
		if s.Timeline == tl {
			return s.LSN, true
		}
	}
	return ^pg.LSN(0), tl == h.Timeline
}

// Merge adds next, whose range begins where that of m ends, or before it. A
// record that lies on both sides of the border is put together and added. An
// error leaves m as it was; next is not changed and may not be afterwards.
func (m *Map) Merge(next *Map) error {
	if err := m.merge(next); err != nil {
		return fmt.Errorf("merge changes: %w", err)
	}
	return nil
}

func (m *Map) merge(next *Map) error {
	if len(m.spans) == 0 || len(next.spans) == 0 {
		return fmt.Errorf("%w: a range is missing", ErrGap)
	}
	last, first := m.spans[len(m.spans)-1], next.spans[0]
	switch {
	case m.layout != next.layout:
		return fmt.Errorf("%w: %+v and %+v", ErrLayout, m.layout, next.layout)
	case first.Start > last.End:
		return fmt.Errorf("%w: nothing between %s and %s", ErrGap, last, first)
	case first.Start < last.Start:
		return fmt.Errorf("%w: %s comes after %s", ErrGap, first, last)
	case first.Timeline < last.Timeline:
		return fmt.Errorf("%w: %s after %s", ErrTimeline, first, last)
	}
	b, err := m.join(next)
	if err != nil {
		return err
	}
	if b.record != nil {
		if err := m.Add(b.record); err != nil {
			return err
		}
	}
	m.head, m.tail, m.lost = b.head, b.tail, b.lost
	for f, s := range next.forks {
		m.set(f).or(s)
	}
	maps.Copy(m.dirs, next.dirs)
	m.unlimited = m.unlimited || next.unlimited
	if m.major == 0 {
		m.major = next.major
	}
	m.extend(next.spans)
	return nil
}

// extend appends spans that begin within the last, or at its end.
func (m *Map) extend(spans []Span) {
	for _, s := range spans {
		last := &m.spans[len(m.spans)-1]
		if s.Timeline == last.Timeline {
			last.End = max(last.End, s.End)
			continue
		}
		// The later timeline's segments hold both: theirs count from where
		// they begin.
		last.End = s.Start
		m.spans = append(m.spans, s)
		if n := len(m.spans); n > 1 && m.spans[n-2].Start == m.spans[n-2].End {
			m.spans = slices.Delete(m.spans, n-2, n-1)
		}
	}
}

// maxJoined bounds what is kept of a record that is put together, in bytes. Only
// logical messages and commits of a million subtransactions are longer.
const maxJoined = 64 << 20

// borders is what becomes of the pieces of records at the borders.
type borders struct {
	head, tail *wal.Fragment
	lost       bool
	record     *wal.Record // put together, to be added
}

// join puts the record together that begins in m and goes on in next.
func (m *Map) join(next *Map) (borders, error) {
	b := borders{head: m.head, tail: next.tail, lost: m.lost}
	end := m.spans[len(m.spans)-1].End
	overlap := next.spans[0].Start < end
	open := m.tail
	through := open == nil && m.head != nil && m.head.Missing > 0 // m lies within one record
	if through {
		open = m.head
	}
	switch {
	case overlap:
		// Out of two looks at one range: whatever is open at m's end lies in
		// next whole, unless it begins before it.
		if open != nil && open.Start < next.spans[0].Start {
			return b, fmt.Errorf("%w: %s overlaps the range before, which ends within a record", ErrGap, next.spans[0])
		}
		if next.spans[len(next.spans)-1].End < end {
			b.tail = m.tail
		}
		return b, nil
	case open == nil:
		// What begins before next was read by m, if m read its own end.
		return b, nil
	case next.lost:
		// It was being written when the server crashed.
		if through {
			b.head, b.lost = nil, true
		}
		return b, nil
	case next.head == nil:
		return b, fmt.Errorf("%w: the range before ends within a record, %s does not begin with its rest", ErrGap, next.spans[0])
	case uint64(next.head.Missing)+uint64(len(next.head.Bytes)) != uint64(open.Missing) && !next.head.Cut:
		return b, fmt.Errorf("%w: %d bytes of a record are to follow at %s, there are %d", wal.ErrRecord, open.Missing, next.spans[0].Start, len(next.head.Bytes)+int(next.head.Missing))
	}
	whole := &wal.Fragment{Start: open.Start, Missing: next.head.Missing, Cut: open.Cut || next.head.Cut}
	// A record has up to a gigabyte, and there is one in memory for each Map.
	whole.Cut = whole.Cut || len(open.Bytes)+len(next.head.Bytes) > maxJoined
	if !whole.Cut {
		whole.Bytes = slices.Concat(open.Bytes, next.head.Bytes)
	}
	switch {
	case through:
		b.head = whole
	case whole.Missing > 0:
		b.tail = whole
	case whole.Cut:
		return b, fmt.Errorf("%w: the record at %s is too long to keep", ErrGap, whole.Start)
	default:
		rec, err := wal.ParseRecord(whole.Bytes, whole.Start, m.major, int(m.layout.PageSize))
		if err != nil {
			return b, err
		}
		b.record = rec
	}
	return b, nil
}

// Changed tells what an increment needs of a file that is now blocks pages
// long: all of it (whole), or the pages of list, numbered within the file,
// ascending. Whether the Map covers the range is to be asked first.
//
// The increment also needs the file's length: pages beyond that of the file
// before, which are not listed, are zeros.
func (m *Map) Changed(f wal.File, blocks uint32) (list iter.Seq[uint32], whole bool) {
	none := func(func(uint32) bool) {}
	if _, ok := m.dirs[DatabaseDir{f.Tablespace, f.Database}]; ok || f.Fork == wal.FreeSpaceFork {
		return none, true
	}
	start := uint64(f.Segment) * uint64(m.layout.FileBlocks)
	if start >= noLimit {
		return none, true // no such file can be
	}
	from := uint32(start)
	to := uint32(min(start+uint64(blocks), noLimit))
	set, found := m.forks[Fork{f.RelFile, f.Fork}]
	if f.Fork == wal.VisibilityFork {
		set, found = m.visibility(f.RelFile)
	}
	switch {
	case !found:
		return none, false
	case set.limit <= from:
		return none, true
	}
	return func(yield func(uint32) bool) {
		for b := range set.blocks(from, min(to, set.limit)) {
			if !yield(b - from) {
				return
			}
		}
		for b := max(from, set.limit); b < to; b++ {
			if !yield(b - from) {
				return
			}
		}
	}, false
}

// visibility is what is known of a relation's visibility map: what records say
// of it, and what they say of the heap.
func (m *Map) visibility(rel wal.RelFile) (*blockSet, bool) {
	out := &blockSet{limit: noLimit}
	own, found := m.forks[Fork{rel, wal.VisibilityFork}]
	if found {
		out.or(own)
	}
	heap, marked := m.forks[Fork{rel, wal.MainFork}]
	if !marked {
		return out, found
	}
	per := m.layout.heapPages()
	for i := range heap.chunks {
		for low := range heap.chunks[i].all() {
			out.add((uint32(heap.chunks[i].number)<<chunkBits + uint32(low)) / per)
		}
	}
	if heap.limit != noLimit {
		out.limit = min(out.limit, heap.limit/per)
	}
	return out, true
}

// ForkChanges is what is known of one fork.
type ForkChanges struct {
	Fork
	// Limited: Limit and all blocks after it count as changed.
	Limited bool
	Limit   uint32
	// Count of the blocks marked one by one, which Blocks gives, ascending.
	Count  int
	Blocks iter.Seq[uint32]
}

// Forks gives the forks with changes, ordered by name; those of whole
// databases (Databases) are not among them unless they changed by themselves.
func (m *Map) Forks() iter.Seq[ForkChanges] {
	return func(yield func(ForkChanges) bool) {
		for _, f := range m.sorted() {
			s := m.forks[f]
			if !yield(ForkChanges{Fork: f, Limited: s.limit != noLimit, Limit: s.limit, Count: s.len(), Blocks: s.blocks(0, noLimit)}) {
				return
			}
		}
	}
}

func (m *Map) sorted() []Fork { return slices.SortedFunc(maps.Keys(m.forks), Fork.compare) }

// Databases are the directories of databases all of whose relations count as
// changed, in order.
func (m *Map) Databases() []DatabaseDir {
	return slices.SortedFunc(maps.Keys(m.dirs), func(a, b DatabaseDir) int {
		return wal.RelFile{Tablespace: a.Tablespace, Database: a.Database}.Compare(wal.RelFile{Tablespace: b.Tablespace, Database: b.Database})
	})
}
