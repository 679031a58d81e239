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

// node is one backup, or what is left or already there of one, with what it
// depends on.
type node struct {
	*catalog.Stored
	first, last uint64 // the WAL it needs, in segments of its timeline
	known       bool   // last is known
	parents     []*node
	children    []*node
	depth       int // 0 for what stands alone
	ranked      rank
	// whole tells that the chain is complete.
	whole bool
	// busy tells why it may be in the making or in use.
	busy string

	keep   bool
	floor  bool // keeps all WAL from its start on
	reason Reason
}

// rank is how far the walk that sets depth and whole has come.
type rank int

const (
	unranked rank = iota
	ranking
	ranked
)

func (n *node) timeline() pg.Timeline { return n.Segment.Timeline }

// base reports whether n is a listed base backup.
func (n *node) base() bool { return n.Listed && n.ID.Folder == catalog.BaseBackups }

func (n *node) full() bool {
	if n.Details.Read {
		return n.Details.Increment == nil
	}
	return !n.ID.Name.IsIncrement()
}

func (n *node) permanent() bool { return n.Listed && (n.Details.Permanent || n.Details.Unreadable) }

// finished is when the backup was surely finished: the store's clock and the
// host's may differ, and a copy is newer than what it is a copy of.
func (n *node) finished() time.Time {
	if n.Details.FinishTime.After(n.Modified) {
		return n.Details.FinishTime
	}
	return n.Modified
}

type place struct {
	storage string
	folder  catalog.Folder
	segment pg.SegmentName
}

// buildGraph makes the nodes, ordered as the inventory orders them.
func buildGraph(inv *catalog.Inventory) []*node {
	stored := inv.Backups()
	nodes := make([]*node, len(stored))
	byID := make(map[catalog.BackupID]*node, len(stored))
	byPlace := make(map[place][]*node, len(stored))
	for i, s := range stored {
		n := &node{Stored: s}
		n.first, n.last, n.known = inv.NeedsWAL(s)
		nodes[i] = n
		byID[s.ID] = n
		at := place{s.ID.Storage, s.ID.Folder, s.Segment}
		byPlace[at] = append(byPlace[at], n)
	}
	for _, n := range nodes {
		switch {
		case n.Details.Read && n.Details.Increment != nil:
			id := n.ID
			id.Name = n.Details.Increment.Parent
			if p := byID[id]; p != nil && p != n {
				n.parents = []*node{p}
			}
		case !n.Details.Read && n.ID.Name.IsIncrement():
			// The name tells only where the parent starts.
			_, parent, _ := strings.Cut(string(n.ID.Name), "_D_")
			if seg, ok := pg.FirstSegmentName(parent); ok {
				for _, p := range byPlace[place{n.ID.Storage, n.ID.Folder, seg}] {
					if p != n && p.Listed {
						n.parents = append(n.parents, p)
					}
				}
			}
		}
		for _, p := range n.parents {
			p.children = append(p.children, n)
		}
	}
	for _, n := range nodes {
		n.rank()
	}
	return nodes
}

// rank sets depth and whole. A circle of increments is broken.
func (n *node) rank() {
	if n.ranked != unranked {
		return
	}
	n.ranked = ranking
	n.whole = n.Listed && n.full()
	for _, p := range n.parents {
		p.rank()
		n.depth = max(n.depth, p.depth+1)
		if p.ranked == ranked && p.whole && n.Listed && n.fits(p) {
			n.whole = true
		}
	}
	n.ranked = ranked
}

// fits reports whether n can be built on p: a later backup that starts in the
// same segment takes over the name, and what was built on the earlier one is
// then lost.
func (n *node) fits(p *node) bool {
	inc := n.Details.Increment
	return inc == nil || inc.ParentLSN == 0 || p.Details.StartLSN == 0 || inc.ParentLSN == p.Details.StartLSN
}

// ancestors calls f for all that n is built on.
func (n *node) ancestors(f func(*node)) { n.walk(f, func(n *node) []*node { return n.parents }) }

// descendants calls f for all that is built on n.
func (n *node) descendants(f func(*node)) { n.walk(f, func(n *node) []*node { return n.children }) }

func (n *node) walk(f func(*node), next func(*node) []*node) {
	seen := map[*node]bool{n: true}
	todo := slices.Clone(next(n))
	for len(todo) > 0 {
		m := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[m] {
			continue
		}
		seen[m] = true
		f(m)
		todo = append(todo, next(m)...)
	}
}

// order compares backups by age.
type order struct{ byTime bool }

func (o order) compare(a, b *node) int {
	if o.byTime {
		return a.when().Compare(b.when())
	}
	return a.Segment.Compare(b.Segment)
}

// when is the start time; of what has no documents, its newest object's.
func (n *node) when() time.Time {
	if n.Details.StartTime.IsZero() {
		return n.Newest
	}
	return n.Details.StartTime
}

// sorted returns the listed base backups, oldest first; of equal age by name,
// so that an increment follows what it is built on.
func (o order) sorted(nodes []*node) []*node {
	var out []*node
	for _, n := range nodes {
		if n.base() {
			out = append(out, n)
		}
	}
	slices.SortStableFunc(out, func(a, b *node) int {
		return cmp.Or(o.compare(a, b), cmp.Compare(a.depth, b.depth), cmp.Compare(a.ID.Name, b.ID.Name))
	})
	return out
}

// limitTime is the time that a user's time is compared with.
func (o order) limitTime(n *node) time.Time {
	if o.byTime {
		return n.when()
	}
	return n.Modified
}

// byName finds the backup of that name, or the one whose name begins so. A
// beginning that several names share would delete nearly anything.
func byName(sorted []*node, name string) (*node, error) {
	name = strings.TrimSuffix(name, catalog.SentinelSuffix)
	var found *node
	var names []string
	for _, n := range sorted {
		if string(n.ID.Name) == name {
			return n, nil
		}
		if strings.HasPrefix(string(n.ID.Name), name) && !slices.Contains(names, string(n.ID.Name)) {
			found = n
			if names = append(names, string(n.ID.Name)); len(names) > 5 {
				break
			}
		}
	}
	switch len(names) {
	case 0:
		return nil, fmt.Errorf("find backup %q: %w: backup-list shows those there are", name, catalog.ErrNotFound)
	case 1:
		return found, nil
	}
	return nil, fmt.Errorf("find backup %q: %w: %s; give one of the names in full", name, catalog.ErrAmbiguous, strings.Join(names, ", "))
}
