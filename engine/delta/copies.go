package delta

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/walherd/walherd/engine/cluster"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pack"
)

// Copy is a tar of an earlier full backup in which nothing has changed: a new
// full backup has it copied inside the storage.
type Copy struct {
	// Number counts the copies of a backup from 0.
	Number int
	// Source is the tar's object among the earlier backup's parts.
	Source string
	// Part holds its entries, as of the new backup.
	Part pack.Part
	// Damage is what the earlier backup says of pages in it that failed their
	// check; they are copied with it.
	Damage []pack.Damage
}

// Name is the copy's name without the extension of its compression.
func (c Copy) Name() string { return fmt.Sprintf("copy_%d.tar", c.Number) }

// PlanCopies finds the tars of an earlier full backup that a new one can copy:
// those of which every entry is still there and was not written to. start is
// when the earlier backup began, read reads its files_metadata.json, once. Each
// entry is in one copy at most.
//
// A time that is too close to start is not believed, see Decide. A directory
// counts as an entry, so a tar with the header of a directory in which files
// come and go is packed anew.
func PlanCopies(entries []cluster.Entry, start time.Time, read func(manifest.FilesVisitor) error) ([]Copy, error) {
	p := copyPlan{entries: entries, start: start, same: make([]bool, len(entries)), order: make([]int32, len(entries))}
	for i := range p.order {
		p.order[i] = int32(i)
	}
	slices.SortFunc(p.order, func(a, b int32) int { return cmp.Compare(entries[a].Name, entries[b].Name) })
	if err := read(manifest.FilesVisitor{File: p.file, Tar: p.tar, TarEntry: p.tarEntry}); err != nil {
		return nil, fmt.Errorf("plan copies: read the earlier backup's list of files: %w", err)
	}
	return p.copies(), nil
}

// copyPlan gathers what a list of files says; its sections come in any order.
type copyPlan struct {
	entries []cluster.Entry
	start   time.Time
	order   []int32
	same    []bool
	damage  map[int32]manifest.CorruptBlocks
	tars    []candidate
}

type candidate struct {
	object  string
	entries []int32
	refused bool
}

func (p *copyPlan) find(name string) (int32, bool) {
	at, found := slices.BinarySearchFunc(p.order, name, func(i int32, name string) int { return cmp.Compare(p.entries[i].Name, name) })
	if !found {
		return 0, false
	}
	return p.order[at], true
}

func (p *copyPlan) file(name string, f manifest.File) error {
	i, ok := p.find(name)
	if !ok {
		return nil
	}
	if f.IsIncremented || f.IsSkipped {
		return errors.New("it is of an increment")
	}
	e := &p.entries[i]
	p.same[i] = storable(e.Name) && unchanged(e, f, p.start)
	if f.CorruptBlocks != nil {
		if p.damage == nil {
			p.damage = map[int32]manifest.CorruptBlocks{}
		}
		p.damage[i] = *f.CorruptBlocks
	}
	return nil
}

func (p *copyPlan) tar(object string) error {
	p.tars = append(p.tars, candidate{object: object})
	return nil
}

func (p *copyPlan) tarEntry(_, name string) error {
	t := &p.tars[len(p.tars)-1]
	i, ok := p.find(name)
	if !ok {
		t.refused, t.entries = true, nil
	}
	if !t.refused {
		t.entries = append(t.entries, i)
	}
	return nil
}

func (p *copyPlan) copies() (out []Copy) {
	taken := make([]bool, len(p.entries))
	slices.SortFunc(p.tars, func(a, b candidate) int { return cmp.Compare(a.object, b.object) })
	for _, t := range p.tars {
		c := Copy{Number: len(out), Source: t.object, Part: pack.Part{Entries: slices.Clip(t.entries)}}
		whole := !t.refused && len(t.entries) > 0
		in := map[int32]bool{}
		for _, i := range t.entries {
			whole = whole && p.same[i] && !taken[i] && !in[i]
			in[i] = true
			c.Part.Size += p.entries[i].Size
			if d, ok := p.damage[i]; ok {
				c.Damage = append(c.Damage, pack.Damage{Index: i, Corrupt: d.Count, Blocks: d.Some})
			}
		}
		if !whole {
			continue
		}
		for _, i := range t.entries {
			taken[i] = true
		}
		out = append(out, c)
	}
	return out
}
