package retain

import (
	"fmt"
	"slices"
	"time"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/pg"
)

// Code is a reason for a program.
type Code string

// The reasons to keep.
const (
	KeepChosen    Code = "chosen"       // the policy keeps it
	KeepBase      Code = "window-base"  // the window begins with it
	KeepPermanent Code = "permanent"    // marked so, or nobody can read whether
	KeepChain     Code = "chain"        // a kept increment is built on it
	KeepBusy      Code = "in-progress"  // may be in the making, or is in use
	KeepScope     Code = "out-of-scope" // the command does not touch it
	KeepWAL       Code = "wal-from"     // WAL a kept backup replays onwards
	KeepConsist   Code = "wal-backup"   // WAL a kept backup needs to be consistent
	KeepBranch    Code = "wal-branch"   // WAL of a timeline that may be in use
	KeepHistory   Code = "history"      // a history file that recovery looks for
)

// The reasons to delete.
const (
	DropOlder      Code = "older"      // older than what the policy ends at
	DropTarget     Code = "target"     // asked for
	DropDependant  Code = "dependant"  // built on what was asked for
	DropLeftover   Code = "leftover"   // no sentinel, and nobody is making it
	DropEverything Code = "everything" // the command deletes all
	DropWAL        Code = "wal-unused" // no kept backup leads to it
	DropHistory    Code = "history-unused"
	DropProbe      Code = "probe" // left behind by a check of the storage
)

// Reason says why.
type Reason struct {
	Code Code
	// Text is for a person, a clause without a full stop.
	Text string
}

// BackupDecision is what becomes of one backup or leftover.
type BackupDecision struct {
	Backup *catalog.Stored
	Delete bool
	Reason Reason
}

// WALDecision is what becomes of a stretch of one timeline in one storage,
// with all that belongs to its segments.
type WALDecision struct {
	Storage     string
	First, Last pg.SegmentName // both included, at the stored objects' ends
	Objects     uint64
	Delete      bool
	Reason      Reason
}

// HistoryDecision is what becomes of a stored history file.
type HistoryDecision struct {
	File   catalog.HistoryFile
	Delete bool
	Reason Reason
}

// Plan is what a policy comes to. It does not change; the inventory it was
// made of must not either while it is used.
type Plan struct {
	// Backups has each backup and leftover, by storage, folder and position.
	Backups []BackupDecision
	// WAL has each stretch that holds objects, by storage, timeline and
	// position.
	WAL       []WALDecision
	Histories []HistoryDecision
	// Note tells why there is nothing to do; empty otherwise.
	Note string
	// Warnings tell what a person should look at.
	Warnings []string
	// Foreign is the count of objects of unknown names. They stay.
	Foreign uint64
	// Uploads are what killed uploads have left, which goes after all else. No
	// listing shows them: whoever has the storages adds them.
	Uploads []Upload

	nodes    []*node
	size     pg.SegmentSize
	series   []*catalog.Series
	zones    map[pg.Timeline][]zone
	bulk     map[pg.Timeline][]zone
	probes   []catalog.Probe
	probeWhy Reason
}

// Upload is an unfinished upload in a storage; ID tells those of one name apart.
// Moved is its last sign of life.
type Upload struct {
	Storage, Name, ID string
	Moved             time.Time
}

// walScope is how far a policy goes with WAL.
type walScope int

const (
	walNone   walScope = iota // leaves it alone
	walUnused                 // deletes what no kept backup leads to
	walAll                    // deletes all but what backups need to be consistent
)

// planner is the state of one NewPlan.
type planner struct {
	inv     *catalog.Inventory
	opt     Options
	now     time.Time
	order   order
	current pg.Timeline
	nodes   []*node
	sorted  []*node // listed base backups, oldest first
	// extra are leased backups that have no object yet.
	extra []*node
	// quiet is how long nothing must have been archived on a timeline that
	// no backup leads to before its WAL goes.
	quiet time.Duration

	wal       walScope
	histories bool
	dropAll   bool
	plan      *Plan
}

// NewPlan decides what the policy deletes and keeps at the time now. It
// refuses with one of this package's errors, catalog.ErrNotFound or
// catalog.ErrAmbiguous.
func NewPlan(inv *catalog.Inventory, policy Policy, opt Options, now time.Time) (*Plan, error) {
	if err := policy.check(now); err != nil {
		return nil, fmt.Errorf("plan deletion: %w", err)
	}
	p := &planner{inv: inv, opt: opt, now: now, quiet: opt.safetyAge(), plan: &Plan{Foreign: inv.Foreign(), size: inv.SegmentSize()}}
	if err := p.run(policy); err != nil {
		return nil, fmt.Errorf("plan deletion: %w", err)
	}
	return p.plan, nil
}

func (p *planner) run(policy Policy) error {
	p.nodes = buildGraph(p.inv)
	p.current = p.opt.Current
	if tls := p.inv.Timelines(); p.current == 0 && len(tls) > 0 {
		p.current = tls[len(tls)-1]
	}
	p.order = order{byTime: p.opt.UseStartTime}
	for _, n := range p.nodes {
		if p.order.byTime && n.base() && n.Details.StartTime.IsZero() {
			p.warn("%s has no readable start time: backups are ordered by name", n.ID)
			p.order.byTime = false
		}
	}
	p.sorted = p.order.sorted(p.nodes)
	p.findBusy()
	if err := p.checkSegmentSize(); err != nil {
		return err
	}
	for _, n := range p.nodes {
		if n.Listed && !n.whole {
			p.warn("%s cannot be restored: a backup it is built on is missing or was replaced", n.ID)
		}
		if n.Listed && n.Details.Unreadable {
			p.warn("%s: its documents exist and cannot be read; it is kept as if it were permanent", n.ID)
		}
	}
	var err error
	switch policy := policy.(type) {
	case Retain:
		err = p.retain(policy)
	case Before:
		err = p.before(policy)
	case Target:
		err = p.target(policy)
	case Everything:
		err = p.everything(policy)
	case Garbage:
		err = p.garbage(policy)
	case Window:
		err = p.window(policy)
	default:
		err = fmt.Errorf("%w: unknown policy %T", ErrUsage, policy)
	}
	if err != nil {
		return err
	}
	if !p.dropAll {
		p.protect()
	}
	p.decideWAL()
	p.decideHistories()
	p.finish()
	return nil
}

func (p *planner) warn(format string, args ...any) {
	p.plan.Warnings = append(p.plan.Warnings, fmt.Sprintf(format, args...))
}

// findBusy marks what is in use and what may be in the making: another host's
// backup that has run for hours looks like one that failed.
func (p *planner) findBusy() {
	var newest *node
	var modified time.Time
	for _, n := range p.nodes {
		if n.base() {
			if newest == nil || n.Segment.Compare(newest.Segment) > 0 {
				newest = n
			}
			if n.Modified.After(modified) {
				modified = n.Modified
			}
		}
	}
	for _, n := range p.nodes {
		if n.Listed {
			continue
		}
		age := p.now.Sub(n.Newest)
		switch {
		case p.opt.SafetyAge >= 0 && age < p.opt.safetyAge():
			n.busy = fmt.Sprintf("it has no sentinel, and its newest object is only %s old: it may be in the making", age.Round(time.Second))
		case newest != nil && n.Segment.Compare(newest.Segment) > 0,
			newest != nil && p.opt.SafetyAge >= 0 && n.Newest.After(modified):
			n.busy = "it has no sentinel, and it is newer than the newest backup: it may be in the making"
		}
	}
	for _, l := range p.opt.Leases {
		if l.ID.Folder == "" {
			l.ID.Folder = catalog.BaseBackups
		}
		found := false
		for _, n := range p.nodes {
			if n.ID.Name == l.ID.Name && n.ID.Folder == l.ID.Folder && (l.ID.Storage == "" || l.ID.Storage == n.ID.Storage) {
				n.busy, found = "it is in use by "+l.Holder, true
			}
		}
		if found {
			continue
		}
		if seg, ok := l.ID.Name.Segment(); ok {
			n := &node{Stored: &catalog.Stored{ID: l.ID, Segment: seg}, busy: "it is in use by " + l.Holder}
			n.first, n.last, _ = p.inv.NeedsWAL(n.Stored)
			for _, c := range p.nodes {
				// What is being made may be built on a backup that its
				// name points to.
				if c.Listed && c.ID.Folder == l.ID.Folder && (l.ID.Storage == "" || l.ID.Storage == c.ID.Storage) &&
					n.ID.Name == pg.IncrementName(seg, c.ID.Name) && n.ID.Name != c.ID.Name {
					n.parents = append(n.parents, c)
					c.children = append(c.children, n)
				}
			}
			p.extra = append(p.extra, n)
		}
	}
}

// checkSegmentSize refuses to judge WAL by positions that are not where we
// think. An older backup may be of a cluster that had another size.
func (p *planner) checkSegmentSize() error {
	var newest, wrong *node
	size := uint64(p.inv.SegmentSize())
	for _, n := range p.nodes {
		start := uint64(n.Details.StartLSN)
		if !n.Listed || start == 0 {
			continue
		}
		if newest == nil || n.Modified.After(newest.Modified) {
			newest = n
		}
		at := n.Segment.Number(p.inv.SegmentSize())
		if uint64(n.Segment.Seg) < p.inv.SegmentSize().PerLog() && (at == start/size || at == (start-1)/size) {
			continue
		}
		p.warn("%s starts at %s, which is not in the segment of its name with WAL segments of %d MiB", n.ID, n.Details.StartLSN, size>>20)
		if n == newest {
			wrong = n
		}
	}
	if wrong != nil && wrong == newest {
		return fmt.Errorf("%w: %s starts at %s, which is not in the segment of its name with segments of %d MiB; set WALG_PG_WAL_SIZE to the cluster's wal_segment_size",
			ErrSegmentSize, wrong.ID, wrong.Details.StartLSN, size>>20)
	}
	return nil
}

func (n *node) decide(keep, floor bool, code Code, format string, args ...any) {
	n.keep, n.floor, n.reason = keep, floor, Reason{code, fmt.Sprintf(format, args...)}
}

// protect overrules the policy: what is in use, permanent, or needed by
// something kept, stays.
func (p *planner) protect() {
	for _, n := range p.nodes {
		switch {
		case n.busy != "":
			n.decide(true, true, KeepBusy, "%s", n.busy)
		case n.keep:
		case n.permanent() && n.Details.Unreadable:
			n.decide(true, false, KeepPermanent, "its documents exist and cannot be read, so nobody knows that it is not permanent")
		case n.permanent():
			n.decide(true, false, KeepPermanent, "it is marked permanent")
		}
	}
	for _, n := range p.extra {
		n.keep, n.floor = true, true
	}
	// Each backup is come by once: a chain may be as long as the list.
	seen := map[*node]bool{}
	for _, kept := range slices.Concat(p.nodes, p.extra) {
		// A leftover needs nothing: a delete that was cut would else keep the
		// chain of what it had begun with.
		if !kept.keep || !kept.Listed && kept.busy == "" {
			continue
		}
		for todo := []*node{kept}; len(todo) > 0; {
			n := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			if seen[n] {
				continue
			}
			seen[n] = true
			if !n.keep {
				n.decide(true, false, KeepChain, "%s, which is kept, is built on it", kept.ID)
			}
			todo = append(todo, n.parents...)
		}
	}
}

// finish turns the nodes into decisions.
func (p *planner) finish() {
	pl := p.plan
	pl.nodes = p.nodes
	deletes := 0
	for _, n := range p.nodes {
		pl.Backups = append(pl.Backups, BackupDecision{Backup: n.Stored, Delete: !n.keep, Reason: n.reason})
		if !n.keep {
			deletes++
		}
	}
	for _, w := range pl.WAL {
		if w.Delete {
			deletes++
		}
	}
	for _, h := range pl.Histories {
		if h.Delete {
			deletes++
		}
	}
	if deletes+len(pl.probes) == 0 && pl.Note == "" {
		pl.Note = "nothing matches: all that is stored is kept by this policy"
	}
}
