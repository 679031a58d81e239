package retain

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/walherd/walherd/engine/catalog"
)

// PlanMark names the backups whose flag has to change, in the order in which
// to change it, so that the backup becomes permanent or no more. None when it
// is in that state already.
//
// A permanent backup needs its chain, so what it is built on is marked too,
// and first: cut anywhere, no permanent backup stands on one that is not. Only
// the named backup becomes impermanent, and ErrDependants refuses it while
// anything permanent is built on it, however far off. LATEST is ErrLatest: it
// may be another backup by the time it is read. An increment whose chain is not
// whole is ErrBroken: it is kept for nothing, and who wants it kept must hear so.
func PlanMark(inv *catalog.Inventory, id catalog.BackupID, permanent bool) ([]catalog.BackupID, error) {
	if string(id.Name) == catalog.LatestName {
		return nil, fmt.Errorf("mark LATEST: %w; give the backup's name (see backup-list)", ErrLatest)
	}
	nodes := buildGraph(inv)
	i := slices.IndexFunc(nodes, func(n *node) bool { return n.ID == id && n.Listed })
	if i < 0 {
		return nil, fmt.Errorf("mark %s: %w: backup-list shows those there are", id, catalog.ErrNotFound)
	}
	target := nodes[i]
	if !permanent {
		var dependant *node
		target.descendants(func(d *node) {
			if d.permanent() {
				dependant = d
			}
		})
		switch {
		case dependant != nil:
			return nil, fmt.Errorf("mark %s impermanent: %w: %s is permanent; mark that one first", id, ErrDependants, dependant.ID)
		case target.Details.Permanent:
			return []catalog.BackupID{id}, nil
		}
		return nil, nil
	}
	if !target.whole {
		return nil, fmt.Errorf("mark %s permanent: %w", id, ErrBroken)
	}
	chain := []*node{target}
	target.ancestors(func(a *node) { chain = append(chain, a) })
	slices.SortFunc(chain, func(a, b *node) int { return cmp.Compare(a.depth, b.depth) })
	var ids []catalog.BackupID
	for _, n := range chain {
		if !n.Details.Permanent {
			ids = append(ids, n.ID)
		}
	}
	return ids, nil
}
