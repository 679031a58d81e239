package retain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/pg"
)

// keepAll is the start of policies that delete what they name.
func (p *planner) keepAll(text string) {
	for _, n := range p.nodes {
		n.decide(true, false, KeepScope, "%s", text)
	}
}

// nothing ends a policy that has nothing to end at.
func (p *planner) nothing(format string, args ...any) error {
	p.keepAll("the policy deletes nothing")
	p.wal, p.histories = walNone, false
	p.plan.Note = "no backup to delete: " + fmt.Sprintf(format, args...)
	return nil
}

// retain finds the Count-th newest backup. Copies in several storages count as
// one, and what cannot be restored does not count: both keep more, never less.
//
// All that was made after a limit stays in any case: for Full and FindFull the
// limit moves on to the older full backup, not to the newer one, which would
// delete increments made after the limit; and the limit alone deletes nothing
// while there are fewer than Count backups.
func (p *planner) retain(r Retain) error {
	after, err := p.limit(r.After)
	if err != nil {
		return err
	}
	var target *node
	counted := map[pg.BackupName]bool{}
	for _, n := range slices.Backward(p.sorted) {
		if !n.whole || r.Mode == Full && !n.full() {
			continue
		}
		counted[n.ID.Name] = true
		if len(counted) == r.Count {
			target = n
			break
		}
	}
	if target == nil {
		return p.nothing("there are %d that count, and %d are to be kept", len(counted), r.Count)
	}
	if after != nil && p.order.compare(after, target) < 0 {
		target = after
	} else if after == nil && !r.After.IsZero() {
		p.warn("no backup was made after the limit; the number alone counts")
	}
	return p.olderThan(target, r.Mode)
}

func (p *planner) before(b Before) error {
	target, err := p.limit(b.Limit)
	if err != nil {
		return err
	}
	if target == nil {
		return p.nothing("none was made at or after %s", b.Limit.Time.Format(time.RFC3339))
	}
	mode := Any
	if b.FindFull {
		mode = FindFull
	}
	return p.olderThan(target, mode)
}

// limit finds the first backup at or after the limit; nil without a limit, or
// when all are older than its time.
func (p *planner) limit(l Limit) (*node, error) {
	if l.Name != "" {
		return byName(p.sorted, l.Name)
	}
	if !l.Time.IsZero() {
		for _, n := range p.sorted {
			if !p.order.limitTime(n).Before(l.Time) {
				return n, nil
			}
		}
	}
	return nil, nil
}

// olderThan deletes what is older than the target, or than the full backup
// that the mode asks for. Nothing else but the order is looked at: protect
// does the rest.
func (p *planner) olderThan(target *node, mode Mode) error {
	if mode != Any && !(target.full() && target.whole) {
		found := (*node)(nil)
		for _, n := range slices.Backward(p.sorted) {
			if n.full() && p.order.compare(n, target) <= 0 {
				found = n
				break
			}
		}
		if found == nil {
			return p.nothing("no full one is as old as %s", target.ID)
		}
		target = found
	}
	if !target.full() {
		return fmt.Errorf("delete what is older than %s: %w, and what it is built on cannot go; FIND_FULL goes on to the full backup", target.ID, ErrIncrement)
	}
	for _, n := range p.nodes {
		switch {
		case p.order.compare(n, target) < 0:
			if !n.Listed {
				n.decide(false, false, DropLeftover, "it has no sentinel and is older than %s", target.ID)
				continue
			}
			n.decide(false, false, DropOlder, "it is older than %s, the oldest backup to keep", target.ID)
			if err := p.checkOrder(n, target); err != nil {
				return err
			}
		case !n.Listed:
			n.decide(true, false, KeepScope, "it has no sentinel, and delete garbage removes it when it is surely abandoned")
		default:
			n.decide(true, n.ID.Folder == catalog.BaseBackups, KeepChosen, "it is not older than %s, the oldest backup to keep", target.ID)
		}
	}
	p.wal = walUnused
	return nil
}

// checkOrder refuses to delete a newer backup for an older one because its
// timeline has a lower number, or its segment, which tells nothing between two
// clusters. That happens when a cluster was upgraded, or made anew, over the
// same storage, and when an old primary goes on. On one timeline of one cluster
// a later start may be at an earlier place: on a standby that lags.
func (p *planner) checkOrder(n, target *node) error {
	ordered := n.timeline() == target.timeline() &&
		(n.Details.System == target.Details.System || n.Details.System == 0 || target.Details.System == 0)
	if p.order.byTime || n.permanent() || n.ID.Folder != catalog.BaseBackups || ordered ||
		n.Details.StartTime.IsZero() || target.Details.StartTime.IsZero() || !n.Details.StartTime.After(target.Details.StartTime) {
		return nil
	}
	return fmt.Errorf("%w: by its name %s is older than %s, but it was started later; if the start times are right use --use-sentinel-time",
		ErrOrder, n.ID, target.ID)
}

// target deletes a backup with what is built on it. Each storage's copy is
// judged by itself: one that is permanent there stays there.
func (p *planner) target(t Target) error {
	picked, err := p.pick(t)
	if err != nil {
		return err
	}
	p.keepAll("it was not asked for")
	p.wal = walNone
	deleted := false
	var refused error
	for _, n := range picked {
		root := n
		if t.FindFull {
			n.ancestors(func(a *node) {
				if len(a.parents) == 0 {
					root = a
				}
			})
		}
		family := []*node{root}
		root.descendants(func(d *node) { family = append(family, d) })
		if err := checkFamily(t, n, family); err != nil {
			if refused == nil {
				refused = err
			}
			continue
		}
		deleted = true
		for _, m := range family {
			m.decide(false, false, DropDependant, "it belongs to the chain of %s, which is to go", n.ID)
		}
		n.decide(false, false, DropTarget, "it was asked for")
	}
	if !deleted {
		return refused
	}
	if refused != nil {
		p.warn("one copy stays: %s", refused)
	}
	return nil
}

// pick finds the copies of the target.
func (p *planner) pick(t Target) ([]*node, error) {
	sorted := slices.DeleteFunc(slices.Clone(p.sorted), func(n *node) bool { return t.Storage != "" && n.ID.Storage != t.Storage })
	var name pg.BackupName
	switch {
	case len(t.UserData) > 0:
		for _, n := range sorted {
			if len(n.Details.UserData) == 0 || !n.Details.UserData.Equal(t.UserData) || n.ID.Name == name {
				continue
			}
			if name != "" {
				return nil, fmt.Errorf("find backup with user data %s: %w: %s and %s; give the name instead", t.UserData, catalog.ErrAmbiguous, name, n.ID.Name)
			}
			name = n.ID.Name
		}
	case t.Name == catalog.LatestName:
		var latest time.Time
		for _, n := range sorted {
			if !n.Modified.Before(latest) {
				name, latest = n.ID.Name, n.Modified
			}
		}
	default:
		name = pg.BackupName(t.Name)
	}
	var picked []*node
	for _, n := range sorted {
		if n.ID.Name == name {
			picked = append(picked, n)
		}
	}
	if len(picked) == 0 {
		what := t.Name
		if what == "" {
			what = "with user data " + t.UserData.String()
		}
		return nil, fmt.Errorf("find backup %s: %w: backup-list --detail shows those there are", what, catalog.ErrNotFound)
	}
	return picked, nil
}

func checkFamily(t Target, target *node, family []*node) error {
	for _, m := range family {
		if m.permanent() {
			if m != target {
				return fmt.Errorf("delete %s: %w: %s of its chain; backup-mark -i makes it impermanent", target.ID, ErrPermanent, m.ID)
			}
			return fmt.Errorf("delete %s: %w; backup-mark -i makes it impermanent", target.ID, ErrPermanent)
		}
		if m.busy != "" {
			return fmt.Errorf("delete %s: %w: %s: %s", target.ID, ErrInUse, m.ID, m.busy)
		}
	}
	if len(family) > 1 && !t.FindFull && !t.Dependants {
		var names []string
		for _, m := range family[1:] {
			names = append(names, string(m.ID.Name))
		}
		slices.Sort(names)
		return fmt.Errorf("delete %s: %w: %s; FIND_FULL deletes the whole family", target.ID, ErrDependants, strings.Join(names, ", "))
	}
	return nil
}

func (p *planner) everything(e Everything) error {
	if !e.Force {
		for _, n := range slices.Concat(p.nodes, p.extra) {
			switch {
			case n.permanent():
				return fmt.Errorf("delete everything: %w: %s; everything FORCE deletes it too", ErrPermanent, n.ID)
			case n.busy != "":
				return fmt.Errorf("delete everything: %w: %s: %s; everything FORCE deletes it too", ErrInUse, n.ID, n.busy)
			}
		}
	}
	for _, n := range p.nodes {
		n.decide(false, false, DropEverything, "everything is to go")
	}
	p.dropAll, p.wal, p.histories = true, walAll, true
	p.dropProbes(Reason{DropEverything, "everything is to go"}, 0)
	return nil
}

// garbage deletes what no listed backup uses. Leftovers go wherever they are,
// not only those older than the oldest backup: a target deleted half-way would
// stay for ever.
func (p *planner) garbage(g Garbage) error {
	var oldest *node
	for _, n := range p.sorted {
		if !n.permanent() {
			oldest = n
			break
		}
	}
	if oldest == nil && !g.WithoutBackupCheck {
		return p.nothing("there is none that is not permanent, so nothing tells what is outdated; --without-backup-check goes on regardless")
	}
	windowed := map[*node]bool{}
	if g.Window > 0 {
		for _, n := range p.windowBases(p.now.Add(-g.Window)) {
			windowed[n] = true
		}
		p.quiet = max(p.quiet, g.Window)
	}
	for _, n := range p.nodes {
		switch {
		case n.Listed && n.ID.Folder == catalog.Catchups && g.Scope == AllGarbage && (oldest == nil || p.order.compare(n, oldest) < 0):
			n.decide(false, false, DropOlder, "it is a catch-up backup older than all backups that are not permanent")
		case n.Listed:
			// A permanent backup in the window serves the window.
			floor := n.base() && (!n.permanent() || windowed[n] || g.Window > 0 && n.finished().After(p.now.Add(-g.Window)))
			n.decide(true, floor, KeepScope, "it is a backup")
		case g.Scope == Archives, g.Scope == Backups && n.ID.Folder != catalog.BaseBackups:
			n.decide(true, false, KeepScope, "the command does not look at it")
		default:
			n.decide(false, false, DropLeftover, "it has no sentinel, and nothing was added to it for %s", p.now.Sub(n.Newest).Round(time.Second))
		}
	}
	if g.Scope != Backups {
		p.wal, p.histories = walUnused, true
		if oldest == nil {
			p.wal = walAll
		}
	}
	if g.Scope == AllGarbage {
		p.dropProbes(Reason{DropProbe, "it was left behind by a check of the storage"}, p.opt.safetyAge())
	}
	return nil
}

func (p *planner) dropProbes(why Reason, age time.Duration) {
	p.plan.probeWhy = why
	for _, probe := range p.inv.Probes() {
		if p.now.Sub(probe.Modified) >= age || p.dropAll {
			p.plan.probes = append(p.plan.probes, probe)
		}
	}
}

// window keeps what the last Length needs: the backups finished in it, and for
// each timeline that was in use in it the newest backup finished before it
// that leads there.
func (p *planner) window(w Window) error {
	cutoff := p.now.Add(-w.Length)
	bases := p.windowBases(cutoff)
	base := map[*node]bool{}
	for _, n := range bases {
		base[n] = true
	}
	if len(bases) == 0 {
		return p.nothing("none that can be restored was finished before %s, so the window of %s begins with the oldest", cutoff.UTC().Format(time.RFC3339), w.Length)
	}
	for _, n := range p.nodes {
		switch {
		case base[n]:
			n.decide(true, true, KeepBase, "it is the newest backup finished before %s that leads to a timeline used since", cutoff.UTC().Format(time.RFC3339))
		case !n.Listed:
			n.decide(true, false, KeepScope, "it has no sentinel, and delete garbage removes it when it is surely abandoned")
		case n.finished().After(cutoff):
			n.decide(true, n.base(), KeepChosen, "it was finished after %s, in the window", cutoff.UTC().Format(time.RFC3339))
		default:
			n.decide(false, false, DropOlder, "it was finished before %s, and another backup covers the window", cutoff.UTC().Format(time.RFC3339))
		}
	}
	p.wal = walUnused
	p.quiet = max(p.quiet, w.Length)
	return nil
}

// windowBases finds, for each timeline in use since the cutoff, the newest
// restorable backup finished before it from which recovery gets there. For a
// timeline that none leads to for sure, all that may lead there count.
func (p *planner) windowBases(cutoff time.Time) []*node {
	segments := p.inv.Segments()
	active := map[pg.Timeline]bool{p.current: true}
	for _, tl := range p.inv.Timelines() {
		if !p.inv.NewestWAL(tl).Before(cutoff) {
			active[tl] = true
		}
	}
	var old []*node
	for _, n := range p.sorted {
		if n.finished().After(cutoff) {
			active[n.timeline()] = true
			continue
		}
		old = append(old, n)
	}
	var able []*node
	for _, n := range old {
		if n.whole && segments[n.timeline()].Covers(catalog.Run{First: n.first, Last: n.last}) {
			able = append(able, n)
		}
	}
	var bases []*node
	added := map[*node]bool{}
	add := func(n *node) {
		if !added[n] {
			added[n] = true
			bases = append(bases, n)
		}
	}
	for tl := range active {
		var best *node
		for _, n := range able {
			if p.leads(n, tl) && (best == nil || n.further(best)) {
				best = n
			}
		}
		if best != nil {
			add(best)
		} else if _, known := p.inv.History(tl); !known {
			p.warn("the history of timeline %d is not known: all backups it may have come from are kept", tl)
			for _, n := range able {
				if n.timeline() < tl {
					add(n)
				}
			}
		}
	}
	if len(bases) == 0 {
		return nil
	}
	for tl := range active {
		_, known := p.inv.History(tl)
		if known && !slices.ContainsFunc(bases, func(n *node) bool { return p.leads(n, tl) }) {
			p.warn("no restorable backup finished before %s leads to timeline %d: its part of the window begins later", cutoff.UTC().Format(time.RFC3339), tl)
			for _, n := range old {
				if p.mayLead(n.timeline(), n.first, tl) {
					add(n)
				}
			}
		}
	}
	return bases
}

// further reports whether n becomes consistent after o, on a way that both are
// on. Times do not tell: a copy of an old backup is new. The nearer to the
// window, the less WAL has to be without a gap.
func (n *node) further(o *node) bool {
	return cmp.Or(cmp.Compare(n.timeline(), o.timeline()), cmp.Compare(n.last, o.last),
		cmp.Compare(n.Details.FinishLSN, o.Details.FinishLSN)) >= 0
}

// leads reports whether recovery from n surely reaches timeline tl: the
// backup must be consistent before the path leaves its timeline.
func (p *planner) leads(n *node, tl pg.Timeline) bool {
	if n.timeline() == tl {
		return true
	}
	h, _ := p.inv.History(tl)
	for _, s := range h.Switches {
		if s.Timeline == n.timeline() {
			if finish := n.Details.FinishLSN; finish > 0 {
				return finish <= s.LSN
			}
			return n.last < uint64(s.LSN)/uint64(p.inv.SegmentSize())
		}
	}
	return false
}

// mayLead reports whether a backup of timeline from that needs WAL from
// segment first on can lead to timeline to.
func (p *planner) mayLead(from pg.Timeline, first uint64, to pg.Timeline) bool {
	if from == to {
		return true
	}
	h, ok := p.inv.History(to)
	if !ok {
		return from < to
	}
	for _, s := range h.Switches {
		if s.Timeline == from {
			return first <= uint64(s.LSN)/uint64(p.inv.SegmentSize())
		}
	}
	return false
}
