package catalog

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
)

// BackupID identifies a backup: the same name in two storages is two backups.
type BackupID struct {
	Storage string
	Folder  Folder
	Name    pg.BackupName
}

// String names the backup for a person.
func (id BackupID) String() string {
	s := string(id.Name)
	if id.Folder == Catchups {
		s = "catch-up " + s
	}
	if id.Storage != "" {
		s += " in storage " + id.Storage
	}
	return s
}

// Details is what a backup's documents tell.
type Details struct {
	// Read tells that the sentinel was read, so that a nil Increment means
	// a backup that stands alone. Without it the name alone tells.
	Read bool
	// Permanent is the flag that counts.
	Permanent bool
	// Unreadable tells that a document exists and could not be read. Such a
	// backup is taken for permanent: nobody knows that it is not.
	Unreadable            bool
	Increment             *manifest.Increment
	StartLSN, FinishLSN   pg.LSN      // 0 when unknown
	StartTime, FinishTime time.Time   // zero when unknown
	System                pg.SystemID // 0 when unknown
	UserData              manifest.UserData
}

// DetailsOf takes the details from a backup's documents; either is nil when it
// does not exist. The flag in metadata.json counts, and that of the sentinel,
// which backup-mark does not maintain, only where there is no metadata.json.
func DetailsOf(s *manifest.Sentinel, m *manifest.Metadata) Details {
	var d Details
	if s != nil {
		d.Read = true
		if s.Increment != nil && s.Increment.Parent != "" {
			inc := *s.Increment
			d.Increment = &inc
		}
		if m == nil {
			m = s.Metadata()
		}
	}
	if m != nil {
		d.Permanent, d.UserData = m.IsPermanent, m.UserData
		d.StartLSN, d.FinishLSN = m.StartLSN, m.FinishLSN
		d.StartTime, d.FinishTime = m.StartTime, m.FinishTime
		if m.SystemIdentifier != nil {
			d.System = *m.SystemIdentifier
		}
	}
	return d
}

// Stored is what a storage holds of one backup. Without a sentinel it is no
// backup (yet, or any more).
type Stored struct {
	ID      BackupID
	Segment pg.SegmentName // where the backup starts
	// Listed tells that there is a sentinel, stored at Modified.
	Listed   bool
	Modified time.Time
	// Newest is the time of the newest object of the backup.
	Newest time.Time
	// Metadata and Files tell which documents there are.
	Metadata, Files bool
	// Parts are the names of the tars, in the listing's order.
	Parts   []string
	Details Details
}

// Objects yields the kinds and parts of all objects of the backup, in no order
// that means anything.
func (s *Stored) Objects() iter.Seq2[Kind, string] {
	return func(yield func(Kind, string) bool) {
		if s.Listed && !yield(SentinelObject, "") {
			return
		}
		for _, p := range s.Parts {
			if !yield(PartObject, p) {
				return
			}
		}
		if s.Files && !yield(FilesObject, "") {
			return
		}
		if s.Metadata {
			yield(MetadataObject, "")
		}
	}
}

// Series is the WAL objects of one storage and timeline whose names end alike.
type Series struct {
	Storage  string
	Timeline pg.Timeline
	Suffix   string
	Kind     Kind // SegmentObject, CompanionObject, BulkObject or DeltaObject
	// Runs are segment numbers; where the series Spans, numbers divided by
	// BulkSpan.
	Runs Runs

	unsorted bool
}

// Spans tells that each object belongs to BulkSpan segments: it is of use as
// long as any of them is.
func (s *Series) Spans() bool { return s.Kind == BulkObject || s.Kind == DeltaObject }

// Key is the name of the series' object with that number.
func (s *Series) Key(number uint64, size pg.SegmentSize) string {
	switch s.Kind {
	case BulkObject:
		name := pg.SegmentAt(s.Timeline, number*BulkSpan, size).String()
		return string(WALFolder) + name[:len(name)-1] + s.Suffix
	case DeltaObject:
		number *= BulkSpan
	}
	return string(WALFolder) + pg.SegmentAt(s.Timeline, number, size).String() + s.Suffix
}

// HistoryFile is one stored object of a timeline's history.
type HistoryFile struct {
	Storage  string
	Timeline pg.Timeline
	Suffix   string
}

// Key is the object's name.
func (h HistoryFile) Key() string { return string(WALFolder) + h.Timeline.String() + h.Suffix }

// Probe is a storage check's object.
type Probe struct {
	Storage  string
	Modified time.Time
}

type seriesKey struct {
	storage, suffix string
	timeline        pg.Timeline
	spans           bool
}

// Inventory is what one or more storages hold, collected from listings in any
// order. Memory goes with the backups and their parts and with the gaps in
// the WAL, not with its length. It is not safe for use by several goroutines
// while it is filled.
type Inventory struct {
	size      pg.SegmentSize
	backups   map[BackupID]*Stored
	series    map[seriesKey]*Series
	last      map[string]*Series // the newest series by suffix: listings repeat it
	newest    map[pg.Timeline]time.Time
	histories map[pg.Timeline]wal.History
	files     []HistoryFile
	probes    []Probe
	words     map[string]string
	foreign   uint64
	misfits   uint64
	misfit    string // the first of them
}

// NewInventory makes an empty inventory of a cluster with that segment size.
func NewInventory(size pg.SegmentSize) (*Inventory, error) {
	if err := size.Validate(); err != nil {
		return nil, fmt.Errorf("take inventory: %w", err)
	}
	return &Inventory{
		size: size, backups: map[BackupID]*Stored{}, series: map[seriesKey]*Series{}, last: map[string]*Series{},
		newest: map[pg.Timeline]time.Time{}, histories: map[pg.Timeline]wal.History{}, words: map[string]string{},
	}, nil
}

// SegmentSize is the cluster's segment size.
func (v *Inventory) SegmentSize() pg.SegmentSize { return v.size }

// word returns a copy of s, the same for equal ones: part names repeat from
// backup to backup, and a slice of a key would hold all of the key.
func (v *Inventory) word(s string) string {
	w, ok := v.words[s]
	if !ok {
		w = strings.Clone(s)
		v.words[w] = w
	}
	return w
}

// Add takes one object of a listing; key is its name under the storage's
// prefix. An object must be added once.
func (v *Inventory) Add(storage, key string, modified time.Time) {
	o := Classify(key)
	switch o.Kind {
	case SentinelObject, MetadataObject, FilesObject, PartObject:
		v.addBackup(storage, o, modified)
		return
	case SegmentObject, CompanionObject, BulkObject:
		if v.addWAL(storage, o, modified) {
			return
		}
	case HistoryObject:
		v.files = append(v.files, HistoryFile{Storage: v.word(storage), Timeline: o.Timeline, Suffix: v.word(o.Suffix)})
		return
	case ProbeObject:
		v.probes = append(v.probes, Probe{Storage: v.word(storage), Modified: modified})
		return
	}
	v.foreign++
}

func (v *Inventory) addBackup(storage string, o Object, modified time.Time) {
	id := BackupID{Storage: storage, Folder: o.Folder, Name: o.Backup}
	b := v.backups[id]
	if b == nil {
		id.Storage, id.Name = v.word(storage), pg.BackupName(strings.Clone(string(o.Backup)))
		seg, _ := o.Backup.Segment()
		b = &Stored{ID: id, Segment: seg}
		v.backups[id] = b
	}
	if modified.After(b.Newest) {
		b.Newest = modified
	}
	switch o.Kind {
	case SentinelObject:
		b.Listed, b.Modified = true, modified
	case MetadataObject:
		b.Metadata = true
	case FilesObject:
		b.Files = true
	case PartObject:
		b.Parts = append(b.Parts, v.word(o.Part))
	}
}

// addWAL is false for a name whose low part no segment of this size has: it
// is not of this cluster, or the configured size is wrong.
func (v *Inventory) addWAL(storage string, o Object, modified time.Time) bool {
	if uint64(o.Segment.Seg) >= v.size.PerLog() {
		if v.misfits++; v.misfit == "" {
			v.misfit = o.Segment.String()
		}
		return false
	}
	number := o.Segment.Number(v.size)
	switch {
	case o.Kind == BulkObject && v.size.PerLog() < BulkSpan:
		return false
	case o.Kind == CompanionObject && strings.HasPrefix(o.Suffix, "_delta") && number%BulkSpan == 0:
		o.Kind = DeltaObject
	}
	spans := o.Kind == BulkObject || o.Kind == DeltaObject
	if spans {
		number /= BulkSpan
	}
	s := v.last[o.Suffix]
	if s == nil || s.Timeline != o.Timeline || s.Storage != storage || s.Spans() != spans {
		key := seriesKey{storage, o.Suffix, o.Timeline, spans}
		if s = v.series[key]; s == nil {
			key.storage, key.suffix = v.word(storage), v.word(o.Suffix)
			s = &Series{Storage: key.storage, Timeline: o.Timeline, Suffix: key.suffix, Kind: o.Kind}
			v.series[key] = s
		}
		v.last[s.Suffix] = s
	}
	if !s.Runs.add(number) {
		s.unsorted = true
	}
	if modified.After(v.newest[o.Timeline]) {
		v.newest[o.Timeline] = modified
	}
	return true
}

// Describe adds what a backup's documents tell; false when no object of the
// backup was added.
func (v *Inventory) Describe(id BackupID, d Details) bool {
	b := v.backups[id]
	if b == nil {
		return false
	}
	b.Details = d
	return true
}

// AddHistory adds the content of a timeline's history file. A timeline whose
// history is not known may have branched off anywhere.
func (v *Inventory) AddHistory(h wal.History) { v.histories[h.Timeline] = h }

// History is the known history of a timeline. Timeline 1 has none and needs
// none.
func (v *Inventory) History(tl pg.Timeline) (wal.History, bool) {
	h, ok := v.histories[tl]
	if !ok && tl == 1 {
		return wal.History{Timeline: 1}, true
	}
	return h, ok
}

// Backups returns what there is of backups, by storage, folder, position and
// name. The values are the inventory's own.
func (v *Inventory) Backups() []*Stored {
	return slices.SortedFunc(maps.Values(v.backups), func(a, b *Stored) int {
		return cmp.Or(cmp.Compare(a.ID.Storage, b.ID.Storage), cmp.Compare(a.ID.Folder, b.ID.Folder),
			a.Segment.Compare(b.Segment), cmp.Compare(a.ID.Name, b.ID.Name))
	})
}

// WAL returns the series of WAL objects by storage, timeline and suffix.
func (v *Inventory) WAL() []*Series {
	all := slices.SortedFunc(maps.Values(v.series), func(a, b *Series) int {
		return cmp.Or(cmp.Compare(a.Storage, b.Storage), cmp.Compare(a.Timeline, b.Timeline),
			cmp.Compare(a.Suffix, b.Suffix), cmp.Compare(a.Kind, b.Kind))
	})
	for _, s := range all {
		if s.unsorted {
			s.Runs, s.unsorted = s.Runs.normalize(), false
		}
	}
	return all
}

// Segments returns, per timeline, the numbers of the segments that are stored
// in any of the storages; in any at all without arguments. Partial segments
// and metadata are no segments.
func (v *Inventory) Segments(storages ...string) map[pg.Timeline]Runs {
	sets := map[pg.Timeline][]Runs{}
	for _, s := range v.WAL() {
		if s.Kind == SegmentObject && (len(storages) == 0 || slices.Contains(storages, s.Storage)) {
			sets[s.Timeline] = append(sets[s.Timeline], s.Runs)
		}
	}
	out := make(map[pg.Timeline]Runs, len(sets))
	for tl, rs := range sets {
		out[tl] = Union(rs...)
	}
	return out
}

// HistoryFiles returns the stored history objects by storage and timeline.
func (v *Inventory) HistoryFiles() []HistoryFile {
	files := slices.Clone(v.files)
	slices.SortFunc(files, func(a, b HistoryFile) int {
		return cmp.Or(cmp.Compare(a.Storage, b.Storage), cmp.Compare(a.Timeline, b.Timeline), cmp.Compare(a.Suffix, b.Suffix))
	})
	return files
}

// Timelines returns the numbers of all timelines that anything is known or
// stored of, ascending.
func (v *Inventory) Timelines() []pg.Timeline {
	seen := map[pg.Timeline]bool{}
	for tl := range v.newest {
		seen[tl] = true
	}
	for tl := range v.histories {
		seen[tl] = true
	}
	for _, f := range v.files {
		seen[f.Timeline] = true
	}
	for _, b := range v.backups {
		seen[b.Segment.Timeline] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// NewestWAL is when the newest WAL object of the timeline was stored; zero
// when there is none.
func (v *Inventory) NewestWAL(tl pg.Timeline) time.Time { return v.newest[tl] }

// Probes returns what checks of the storages left behind.
func (v *Inventory) Probes() []Probe { return v.probes }

// Foreign is the count of objects that are no part of backups or WAL.
func (v *Inventory) Foreign() uint64 { return v.foreign }

// Misfit tells a person of WAL whose names no segment of this size has; empty
// if there is none. With too large a size the rest of the names seem to follow
// one another, whatever is missing between them.
func (v *Inventory) Misfit() string {
	if v.misfits == 0 {
		return ""
	}
	return fmt.Sprintf("%d WAL objects are passed over, as no segment of %d MiB has such a name (%s is the first): is that the size of the cluster's segments (WALG_PG_WAL_SIZE)?",
		v.misfits, v.size>>20, v.misfit)
}
