package retain

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
)

// model is a cluster's life as the storages see it: what was done to them and
// what that should be good for. It knows nothing of plans.
type model struct {
	t    *rapid.T
	now  time.Time
	objs map[object]time.Time

	lines   map[pg.Timeline]*line
	current pg.Timeline
	next    int // the next segment of the current timeline
	backups map[catalog.BackupID]*made
	running []catalog.BackupID // in the making, known by a lease or by age
	leases  []Lease
	moments []moment
	unknown bool // a history cannot be read
}

type object struct{ storage, key string }

type line struct {
	parent pg.Timeline
	branch int // the segment in which it begins
	lost   bool
}

type made struct {
	id          catalog.BackupID
	first, last int
	parent      catalog.BackupID
	details     catalog.Details
	objects     []object
	at          time.Time // of the newest object
	leased      bool
}

// moment is a state that someone may want back.
type moment struct {
	tl  pg.Timeline
	seg int
	at  time.Time
}

func newModel(t *rapid.T) *model {
	return &model{
		t: t, now: epoch, objs: map[object]time.Time{}, lines: map[pg.Timeline]*line{1: {}}, current: 1, next: 1,
		backups: map[catalog.BackupID]*made{},
	}
}

func (m *model) storage() string {
	return rapid.SampledFrom([]string{"a", "a", "b"}).Draw(m.t, "storage")
}

func (m *model) chance(percent int, what string) bool {
	return rapid.IntRange(0, 99).Draw(m.t, what) < percent
}

func segmentKey(tl pg.Timeline, n int) string {
	return string(catalog.WALFolder) + segment(tl, n).String() + ".lz4"
}

// archive stores the next n segments of the current timeline, but for gaps.
func (m *model) archive(n int) {
	for range n {
		if !m.chance(2, "gap") {
			m.objs[object{m.storage(), segmentKey(m.current, m.next)}] = m.now
		}
		m.moments = append(m.moments, moment{m.current, m.next, m.now})
		m.next++
		m.now = m.now.Add(time.Hour)
	}
}

func (m *model) has(tl pg.Timeline, n int) bool {
	key := segmentKey(tl, n)
	_, a := m.objs[object{"a", key}]
	_, b := m.objs[object{"b", key}]
	return a || b
}

// backup makes one, whole, failed or running.
func (m *model) backup() {
	storage := m.storage()
	b := &made{first: m.next}
	seg := segment(m.current, b.first)
	name := pg.FullBackupName(seg)
	var parents []*made
	for _, p := range m.listed() {
		if p.id.Storage == storage && m.whole(p) && m.leads(p, m.current, b.first) {
			parents = append(parents, p)
		}
	}
	start := m.now
	if len(parents) > 0 && m.chance(60, "increment") {
		p := rapid.SampledFrom(parents).Draw(m.t, "parent")
		b.parent, name = p.id, pg.IncrementName(seg, p.id.Name)
		b.details.Increment = &manifest.Increment{Parent: p.id.Name, ParentLSN: p.details.StartLSN}
	}
	b.id = catalog.BackupID{Storage: storage, Folder: catalog.BaseBackups, Name: name}
	parts := rapid.IntRange(1, 3).Draw(m.t, "parts")
	for i := range parts {
		b.objects = append(b.objects, object{storage, b.id.Key(catalog.PartObject, fmt.Sprintf("part_%03d.tar.lz4", i+1))})
	}
	fate := rapid.SampledFrom([]string{"whole", "whole", "whole", "failed", "running", "leased"}).Draw(m.t, "fate")
	if fate == "leased" {
		m.leases = append(m.leases, Lease{ID: b.id, Holder: "the test"})
		m.running = append(m.running, b.id)
		b.objects = b.objects[:rapid.IntRange(0, parts).Draw(m.t, "stored")]
	}
	m.archive(rapid.IntRange(1, 3).Draw(m.t, "length"))
	for _, o := range b.objects {
		m.objs[o] = m.now
	}
	b.last, b.at, b.leased = m.next-1, m.now, fate == "leased"
	m.backups[b.id] = b
	switch fate {
	case "running":
		m.running = append(m.running, b.id)
		return
	case "failed", "leased":
		return
	}
	b.details.Read = true
	b.details.StartLSN, b.details.FinishLSN = lsn(b.first, 0x28), lsn(b.last, 0x100)
	b.details.StartTime, b.details.FinishTime = start, m.now
	for _, k := range []catalog.Kind{catalog.SentinelObject, catalog.MetadataObject, catalog.FilesObject} {
		o := object{storage, b.id.Key(k, "")}
		b.objects = append(b.objects, o)
		m.objs[o] = m.now
	}
	m.archive(1)
}

func (b *made) sentinel() object { return object{b.id.Storage, b.id.Key(catalog.SentinelObject, "")} }

func (m *model) listed() []*made {
	var out []*made
	for _, b := range m.backups {
		if _, ok := m.objs[b.sentinel()]; ok {
			out = append(out, b)
		}
	}
	slices.SortFunc(out, func(a, b *made) int { return strings.Compare(a.id.String(), b.id.String()) })
	return out
}

// whole tells that a backup and its chain can be restored and get consistent.
func (m *model) whole(b *made) bool {
	tl, _ := b.id.Name.Segment()
	for n := b.first; n <= b.last; n++ {
		if !m.has(tl.Timeline, n) {
			return false
		}
	}
	return m.stored(b)
}

func (m *model) stored(b *made) bool {
	for {
		for _, o := range b.objects {
			if _, ok := m.objs[o]; !ok {
				return false
			}
		}
		if b.parent.Name == "" {
			return true
		}
		b = m.backups[b.parent]
	}
}

// leads tells that the way to segment seg of a timeline goes through b.
func (m *model) leads(b *made, tl pg.Timeline, seg int) bool {
	at, _ := b.id.Name.Segment()
	for tl != at.Timeline {
		l := m.lines[tl]
		if l.parent == 0 {
			return false
		}
		tl, seg = l.parent, min(seg, l.branch)
	}
	return b.last < seg || b.last == seg && b.first <= seg
}

// reaches tells that recovery from b gets to the moment.
func (m *model) reaches(b *made, to moment) bool {
	if !m.leads(b, to.tl, to.seg) || !m.whole(b) {
		return false
	}
	tl, n := to.tl, to.seg
	at, _ := b.id.Name.Segment()
	for ; n >= b.first; n-- {
		for tl != at.Timeline && n < m.lines[tl].branch {
			tl = m.lines[tl].parent
		}
		if !m.has(tl, n) {
			return false
		}
	}
	return true
}

func (m *model) reachable(to moment, from []*made) bool {
	return slices.ContainsFunc(from, func(b *made) bool { return m.reaches(b, to) })
}

// branch starts a timeline in segment n of another one.
func (m *model) branch(from pg.Timeline, n int) {
	tl := slices.Max(slices.Collect(maps.Keys(m.lines))) + 1
	l := &line{parent: from, branch: n, lost: m.chance(5, "history lost")}
	m.unknown = m.unknown || l.lost
	m.lines[tl] = l
	m.objs[object{m.storage(), string(catalog.WALFolder) + tl.HistoryFile() + ".lz4"}] = m.now
	m.current, m.next = tl, n
}

// recover goes back to a moment and on from there.
func (m *model) recover() {
	listed := m.listed()
	var can []moment
	for _, to := range m.moments {
		if m.reachable(to, listed) {
			can = append(can, to)
		}
	}
	if len(can) == 0 {
		return
	}
	to := rapid.SampledFrom(can).Draw(m.t, "moment")
	m.branch(to.tl, to.seg+1)
	m.archive(1)
}

func (m *model) permanent() {
	listed := m.listed()
	if len(listed) == 0 {
		return
	}
	for b := rapid.SampledFrom(listed).Draw(m.t, "permanent"); ; b = m.backups[b.parent] {
		b.details.Permanent = true
		if b.parent.Name == "" {
			return
		}
	}
}

// copy puts a backup and its chain into the other storage.
func (m *model) copy() {
	listed := slices.DeleteFunc(m.listed(), func(b *made) bool { return b.id.Storage != "a" || !m.stored(b) })
	if len(listed) == 0 {
		return
	}
	for b := rapid.SampledFrom(listed).Draw(m.t, "copied"); ; b = m.backups[b.parent] {
		c := *b
		c.id.Storage, c.details.Permanent, c.objects = "b", false, nil
		if old := m.backups[c.id]; old != nil {
			c.details.Permanent = old.details.Permanent
		}
		if c.parent.Name != "" {
			c.parent.Storage = "b"
		}
		for _, o := range b.objects {
			o.storage = "b"
			c.objects = append(c.objects, o)
			m.objs[o] = m.now
		}
		m.backups[c.id] = &c
		if b.parent.Name == "" {
			return
		}
	}
}

func (m *model) inventory() *catalog.Inventory {
	inv, err := catalog.NewInventory(size)
	if err != nil {
		m.t.Fatal(err)
	}
	for o, modified := range m.objs {
		inv.Add(o.storage, o.key, modified)
	}
	for _, b := range m.listed() {
		inv.Describe(b.id, b.details)
	}
	for tl, l := range m.lines {
		if l.lost || tl == 1 {
			continue
		}
		h := wal.History{Timeline: tl}
		for ; l.parent != 0; l = m.lines[l.parent] {
			// A branch of a branch may go back behind the first one.
			at := lsn(l.branch, 0)
			if n := len(h.Switches); n > 0 {
				at = min(at, h.Switches[n-1].LSN)
			}
			h.Switches = append(h.Switches, wal.Switch{Timeline: l.parent, LSN: at})
		}
		slices.Reverse(h.Switches)
		inv.AddHistory(h)
	}
	return inv
}

func (m *model) options() Options {
	o := Options{UseStartTime: rapid.Bool().Draw(m.t, "by start time"), Leases: m.leases}
	if rapid.Bool().Draw(m.t, "current known") {
		o.Current = m.current
	}
	return o
}

func (m *model) policy() Policy {
	t := m.t
	limit := func() Limit {
		if listed := m.listed(); len(listed) > 0 && rapid.Bool().Draw(t, "by name") {
			return Limit{Name: string(rapid.SampledFrom(listed).Draw(t, "name").id.Name)}
		}
		return Limit{Time: m.now.Add(-time.Duration(rapid.IntRange(0, 100).Draw(t, "hours ago")) * time.Hour)}
	}
	length := func() time.Duration { return time.Duration(rapid.IntRange(1, 100).Draw(t, "window")) * time.Hour }
	switch rapid.IntRange(0, 6).Draw(t, "policy") {
	case 0, 1:
		r := Retain{Count: rapid.IntRange(1, 4).Draw(t, "count"), Mode: rapid.SampledFrom([]Mode{Any, Full, FindFull}).Draw(t, "mode")}
		if m.chance(30, "after") {
			r.After = limit()
		}
		return r
	case 2:
		return Before{Limit: limit(), FindFull: rapid.Bool().Draw(t, "find full")}
	case 3:
		if listed := m.listed(); len(listed) > 0 {
			return Target{Name: string(rapid.SampledFrom(listed).Draw(t, "target").id.Name), FindFull: rapid.Bool().Draw(t, "family"), Dependants: rapid.Bool().Draw(t, "dependants")}
		}
		return Garbage{}
	case 4:
		return Garbage{Scope: rapid.SampledFrom([]Scope{AllGarbage, Archives, Backups}).Draw(t, "scope"), WithoutBackupCheck: m.chance(10, "without backup check")}
	}
	return Window{Length: length()}
}

// apply plans, checks the plan at a random cut, and carries it out.
func (m *model) apply(p Policy) {
	t, o := m.t, m.options()
	pl, err := NewPlan(m.inventory(), p, o, m.now)
	if err != nil {
		for _, ok := range []error{ErrIncrement, ErrPermanent, ErrDependants, ErrInUse, ErrOrder, catalog.ErrNotFound, catalog.ErrAmbiguous} {
			if errors.Is(err, ok) {
				return
			}
		}
		t.Fatalf("%+v: %v", p, err)
	}
	wholeBefore := map[catalog.BackupID]bool{}
	for _, b := range m.listed() {
		if m.whole(b) {
			wholeBefore[b.id] = true
		}
	}
	// What each backup that keeps its WAL is good for.
	type promise struct {
		b  *made
		to moment
	}
	var promises []promise
	var held []object
	for _, b := range m.busy() {
		at, _ := b.id.Name.Segment()
		for n := b.first; n < m.next; n++ {
			for _, storage := range []string{"a", "b"} {
				o := object{storage, segmentKey(at.Timeline, n)}
				if _, ok := m.objs[o]; ok {
					held = append(held, o)
				}
			}
		}
	}
	var inWindow []moment
	for _, d := range pl.Backups {
		b := m.backups[d.Backup.ID]
		if d.Delete || !d.Backup.Listed || b.details.Permanent || d.Reason.Code == KeepChain {
			continue
		}
		for _, to := range m.moments {
			if m.reaches(b, to) {
				promises = append(promises, promise{b, to})
			}
		}
	}
	if w, ok := p.(Window); ok {
		listed := m.listed()
		for _, to := range m.moments {
			if to.at.After(m.now.Add(-w.Length)) && m.reachable(to, listed) {
				inWindow = append(inWindow, to)
			}
		}
	}

	all := slices.Collect(pl.Steps())
	var count uint64
	for _, c := range pl.Objects() {
		count += c
	}
	if count != uint64(len(all)) {
		t.Fatalf("%+v: %d objects counted, %d steps", p, count, len(all))
	}
	cut := rapid.IntRange(0, len(all)).Draw(t, "cut")
	for i, s := range all {
		if i == cut {
			m.checkWhole(p, wholeBefore)
		}
		k := object{s.Storage, s.Key}
		if _, ok := m.objs[k]; !ok {
			t.Fatalf("%+v: step %d deletes %v, which does not exist", p, i, k)
		}
		if catalog.Classify(s.Key).Kind == catalog.Foreign {
			t.Fatalf("%+v: deletes the foreign %v", p, k)
		}
		delete(m.objs, k)
	}
	m.checkWhole(p, wholeBefore)
	for _, b := range m.backups {
		_, kept := m.objs[b.sentinel()]
		if wholeBefore[b.id] && b.details.Permanent && !kept {
			t.Fatalf("%+v: deletes the permanent %s", p, b.id)
		}
	}
	for _, pr := range promises {
		if !m.reaches(pr.b, pr.to) {
			t.Fatalf("%+v: %s no more reaches segment %X of timeline %d", p, pr.b.id, pr.to.seg, pr.to.tl)
		}
	}
	for _, o := range held {
		if _, ok := m.objs[o]; !ok {
			t.Fatalf("%+v: deletes %v, which a running backup needs", p, o)
		}
	}
	listed := m.listed()
	for _, to := range inWindow {
		if !m.reachable(to, listed) {
			t.Fatalf("%+v: segment %X of timeline %d, archived at %s, is not reachable any more", p, to.seg, to.tl, to.at)
		}
	}
	if _, ok := p.(Target); ok {
		return
	}
	again, err := NewPlan(m.inventory(), p, o, m.now)
	if err != nil {
		if errors.Is(err, catalog.ErrNotFound) {
			return // the name that the limit is was deleted
		}
		t.Fatalf("%+v again: %v", p, err)
	}
	for s := range again.Steps() {
		t.Fatalf("%+v: the second run deletes %s: %s", p, s.Key, s.Reason.Text)
	}
}

func (m *model) checkWhole(p Policy, before map[catalog.BackupID]bool) {
	for _, b := range m.listed() {
		if before[b.id] && !m.whole(b) {
			m.t.Fatalf("%+v: %s is listed and not whole", p, b.id)
		}
	}
	for _, b := range m.busy() {
		for _, o := range b.objects {
			if _, ok := m.objs[o]; !ok {
				m.t.Fatalf("%+v: %v of a running backup was deleted", p, o)
			}
		}
	}
}

// busy are the running backups that can be told from failed ones.
func (m *model) busy() []*made {
	var out []*made
	for _, id := range m.running {
		if b := m.backups[id]; b.leased || m.now.Sub(b.at) < DefaultSafetyAge {
			out = append(out, b)
		}
	}
	return out
}

// settle ends what is running: after a long time only a lease keeps a backup
// from being taken for a failed one.
func (m *model) settle() { m.running, m.leases = nil, nil }

func TestModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		foreign := []object{{"a", "notes/000000010000000000000001.txt"}, {"b", "basebackups_005/base_000000010000000000000001/x"}, {"a", "wal_005/README"}}
		for _, o := range foreign {
			m.objs[o] = m.now
		}
		m.archive(2)
		for range rapid.IntRange(1, 25).Draw(t, "actions") {
			switch rapid.IntRange(0, 11).Draw(t, "action") {
			case 0, 1, 2, 3, 4:
				m.backup()
			case 5:
				m.archive(rapid.IntRange(1, 8).Draw(t, "segments"))
			case 6:
				m.branch(m.current, m.next) // a failover
				m.archive(1)
			case 7:
				m.recover()
			case 8:
				m.permanent()
			case 9:
				m.copy()
			case 10:
				m.settle()
				m.now = m.now.Add(time.Duration(rapid.IntRange(1, 80).Draw(t, "idle")) * time.Hour)
			}
			if m.chance(25, "delete") {
				m.apply(m.policy())
			}
		}

		// Long after, with a new backup, garbage leaves nothing that is good
		// for nothing.
		m.settle()
		m.now = m.now.Add(1000 * time.Hour)
		seg := segment(m.current, m.next)
		b := &made{id: catalog.BackupID{Storage: "a", Folder: catalog.BaseBackups, Name: pg.FullBackupName(seg)}, first: m.next, last: m.next,
			details: catalog.Details{Read: true, StartLSN: lsn(m.next, 0x28), FinishLSN: lsn(m.next, 0x100), StartTime: m.now, FinishTime: m.now}}
		b.objects = []object{b.sentinel()}
		m.objs[b.sentinel()] = m.now
		m.objs[object{"a", segmentKey(m.current, m.next)}] = m.now
		m.backups[b.id] = b
		m.now = m.now.Add(100 * time.Hour)
		m.apply(Garbage{})
		inv := m.inventory()
		for _, s := range inv.Backups() {
			if !s.Listed {
				// A timeline with a higher number may have been used last
				// without being the current one.
				if s.Segment.Compare(seg) > 0 {
					continue
				}
				t.Fatalf("%s is left over", s.ID)
			}
		}
		if !m.unknown {
			m.checkWALUsed(inv)
		}
		for _, o := range foreign {
			if _, ok := m.objs[o]; !ok {
				t.Fatalf("%v is gone", o)
			}
		}
	})
}

// checkWALUsed fails on WAL that no backup could use.
func (m *model) checkWALUsed(inv *catalog.Inventory) {
	listed := m.listed()
	for _, s := range inv.WAL() {
		for _, r := range s.Runs {
			for n := int(r.First); n <= int(r.Last); n++ {
				used := slices.ContainsFunc(listed, func(b *made) bool {
					at, _ := b.id.Name.Segment()
					if b.details.Permanent {
						return b.first <= n && n <= b.last
					}
					if at.Timeline == s.Timeline {
						return b.first <= n
					}
					// Where it may lead to, if consistent before or not.
					tl, branch := s.Timeline, n
					for tl != at.Timeline {
						l := m.lines[tl]
						if l.parent == 0 {
							return b.first <= n // the ancestor's segment of the switch
						}
						tl, branch = l.parent, min(branch, l.branch)
					}
					return b.first <= branch
				})
				if !used {
					m.t.Fatalf("segment %X of timeline %d is left and nobody can use it", n, s.Timeline)
				}
			}
		}
	}
}
