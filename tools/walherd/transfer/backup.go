package transfer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
)

// ErrChain marks increments that would lose, or have lost, what they build on.
var ErrChain = errors.New("broken chain of increments")

// backup is one backup of the source, as far as the plans need it.
type backup struct {
	name     pg.BackupName
	modified time.Time // of the sentinel
	sentinel *manifest.Sentinel
	damaged  error  // the sentinel makes no sense, and is nil
	document Object // the sentinel object
}

func (b *backup) parent() pg.BackupName {
	if b.damaged != nil || b.sentinel.Increment == nil {
		return ""
	}
	return b.sentinel.Parent
}

// readers is how many sentinels are read at a time.
const readers = 8

// backups reads the sentinels of a storage, in the order of their times. One
// that makes no sense is in the list all the same: it shall not keep the others
// from being copied.
func backups(ctx context.Context, b storage.Bucket) ([]*backup, error) {
	r := repo.New(b, "source")
	var all []*backup
	for s, err := range r.Sentinels(ctx) {
		if err != nil {
			return nil, err
		}
		if _, err := pg.ParseBackupName(string(s.Name)); err != nil {
			continue // of another database that WAL-G serves
		}
		all = append(all, &backup{
			name: s.Name, modified: s.Modified, document: Object{Name: repo.SentinelKey(s.Name), Size: s.Size},
		})
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for _, one := range all {
		g.Go(func() error {
			doc, _, err := r.Sentinel(gctx, one.name)
			if err != nil {
				return fmt.Errorf("backup %s: %w", one.name, err)
			}
			if one.sentinel, err = manifest.ParseSentinel(doc); err != nil {
				one.damaged = fmt.Errorf("backup %s: %w", one.name, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	slices.SortStableFunc(all, func(a, b *backup) int { return a.modified.Compare(b.modified) })
	return all, nil
}

// choose finds the backup a user means in a list that is ordered by time.
func choose(all []*backup, name string) (*backup, error) {
	entries := make([]catalog.Entry, len(all))
	for i, b := range all {
		entries[i] = catalog.Entry{Object: string(b.name) + catalog.SentinelSuffix, Modified: b.modified}
	}
	found, err := catalog.Build(entries).Find(name)
	if err != nil {
		return nil, err
	}
	return all[slices.IndexFunc(all, func(b *backup) bool { return b.name == found.Name })], nil
}

// withAncestors adds what the chosen ones build on, and orders all: parents
// before children, otherwise by the times of the sentinels, so that LATEST
// stays what it was. A parent that is missing is ErrChain.
func withAncestors(all, chosen []*backup) ([]*backup, error) {
	byName := make(map[pg.BackupName]*backup, len(all))
	for _, b := range all {
		byName[b.name] = b
	}
	depth := map[*backup]int{}
	for _, b := range chosen {
		var path []*backup
		for at := b; ; {
			if slices.Contains(path, at) {
				return nil, fmt.Errorf("%w: %s builds on itself", ErrChain, at.name)
			}
			if at.damaged != nil {
				return nil, at.damaged
			}
			path = append(path, at)
			parent := at.parent()
			if parent == "" {
				break
			}
			next, ok := byName[parent]
			if !ok {
				return nil, fmt.Errorf("%w: %s builds on %s, which is not there", ErrChain, at.name, parent)
			}
			at = next
		}
		for i, member := range path {
			depth[member] = len(path) - 1 - i
		}
	}
	var out []*backup
	for _, b := range all {
		if _, ok := depth[b]; ok {
			out = append(out, b)
		}
	}
	return parentsFirst(out), nil
}

// parentsFirst keeps the order but where a child precedes its parent, as in a
// storage whose parents were rewritten later.
func parentsFirst(list []*backup) []*backup {
	placed := map[pg.BackupName]bool{}
	in := map[pg.BackupName]*backup{}
	for _, b := range list {
		in[b.name] = b
	}
	var out []*backup
	var place func(b *backup)
	place = func(b *backup) {
		if placed[b.name] {
			return
		}
		placed[b.name] = true
		if p, ok := in[b.parent()]; ok {
			place(p)
		}
		out = append(out, b)
	}
	for _, b := range list {
		place(b)
	}
	return out
}

// payload lists what belongs to a backup beside its sentinel: metadata.json,
// then all else.
func payload(ctx context.Context, b storage.Bucket, name pg.BackupName) (metadata, data []Object, err error) {
	objects, err := list(ctx, b, string(repo.BaseBackups)+string(name)+"/")
	for _, o := range objects {
		if o.Name == repo.MetadataKey(name) {
			metadata = append(metadata, o)
		} else {
			data = append(data, o)
		}
	}
	return metadata, data, err
}

// MoveOptions say which backups a move takes.
type MoveOptions struct {
	// Backup is the only one to take, by name or LATEST; "" is all.
	Backup string
	// Preserve leaves the backups in the source.
	Preserve bool
	// MaxFiles and MaxBackups bound how many are taken; 0 is all.
	MaxFiles, MaxBackups int
}

// family is what is moved as one: backups that build on each other, parents
// first. A chain must live in one storage, so no part of it goes alone.
type family struct {
	members  []*backup
	metadata []Object
	data     []Object
	// stale is what the target holds in the place of the family and the
	// source does not: restore would unpack it.
	stale []string
}

func (f *family) files() int { return len(f.members) + len(f.metadata) + len(f.data) }

// MoveBackups moves complete backups; WAL stays. Backups that the target has
// are skipped unless c.Overwrite, as are folders without a sentinel, whose
// backup may be under way. An increment goes with all it belongs to; taking one
// backup out of its chain is ErrChain, unless it only leaves a copy behind.
//
// A family is moved in this order: the data, metadata.json, the sentinels,
// parents first; then out of the source the sentinels, children first, and the
// data. MaxFiles and MaxBackups end the run before a family that does not fit.
func (c *Copier) MoveBackups(ctx context.Context, opt MoveOptions) (Result, error) {
	if err := c.distinct(ctx); err != nil {
		return Result{}, err
	}
	families, skipped, err := c.planMove(ctx, opt)
	if err != nil {
		return Result{}, err
	}
	all := Result{Skipped: skipped}
	moved := 0
	for _, f := range families {
		if err := f.list(ctx, c.From, c.To); err != nil {
			return all, err
		}
		name := f.members[0].name
		if opt.MaxFiles > 0 && all.Copied+f.files() > opt.MaxFiles {
			c.Log.Info(fmt.Sprintf("Backup %s has %d files with its increments, more than the limit leaves: it stays", name, f.files()))
			all.Skipped += len(f.members)
			continue
		}
		if opt.MaxBackups > 0 && moved+len(f.members) > opt.MaxBackups {
			c.Log.Info(fmt.Sprintf("Backup %s is %d backups with its increments, more than the limit leaves: it stays", name, len(f.members)))
			all.Skipped += len(f.members)
			continue
		}
		res := c.moveFamily(ctx, f, opt.Preserve)
		all.add(res)
		if res.Failed == 0 {
			moved += len(f.members)
		} else if c.FailFast || ctx.Err() != nil {
			break
		}
	}
	return all, nil
}

// planMove sorts the backups of the source into families.
func (c *Copier) planMove(ctx context.Context, opt MoveOptions) (families []*family, skipped int, err error) {
	source, err := backups(ctx, c.From)
	if err != nil {
		return nil, 0, fmt.Errorf("read the source: %w", err)
	}
	there := map[pg.BackupName]bool{}
	for s, err := range repo.New(c.To, "target").Sentinels(ctx) {
		if err != nil {
			return nil, 0, fmt.Errorf("read the target: %w", err)
		}
		there[s.Name] = true
	}
	if opt.Backup != "" {
		b, err := choose(source, opt.Backup)
		if err != nil {
			return nil, 0, err
		}
		if b.damaged != nil {
			return nil, 0, b.damaged
		}
		if there[b.name] && !c.Overwrite {
			return nil, 1, nil
		}
		if p := b.parent(); p != "" && !there[p] {
			return nil, 0, fmt.Errorf("transfer %s: %w: it builds on %s, which the target lacks: transfer that first, or all backups", b.name, ErrChain, p)
		}
		for _, other := range source {
			if other.damaged != nil && !opt.Preserve {
				return nil, 0, fmt.Errorf("transfer %s: tell whether another backup builds on it: %w", b.name, other.damaged)
			}
			if other.parent() == b.name && !opt.Preserve {
				return nil, 0, fmt.Errorf("transfer %s: %w: %s, which stays, builds on it: use --preserve, or transfer all backups", b.name, ErrChain, other.name)
			}
		}
		return []*family{{members: []*backup{b}}}, 0, nil
	}
	if err := c.tellIncomplete(ctx, source); err != nil {
		return nil, 0, err
	}
	root := map[pg.BackupName]*family{}
	for _, b := range parentsFirst(source) {
		if b.damaged != nil {
			return nil, 0, b.damaged
		}
		if there[b.name] && !c.Overwrite {
			// Its increments may still join it there.
			skipped++
			continue
		}
		f := root[b.parent()]
		if p := b.parent(); f == nil {
			if p != "" && !there[p] {
				return nil, 0, fmt.Errorf("transfer backups: %w: %s builds on %s, which neither storage has", ErrChain, b.name, p)
			}
			f = new(family)
			families = append(families, f)
		}
		f.members = append(f.members, b)
		root[b.name] = f
	}
	return families, skipped, nil
}

func (c *Copier) tellIncomplete(ctx context.Context, complete []*backup) error {
	known := map[string]bool{}
	for _, b := range complete {
		known[string(repo.BaseBackups)+string(b.name)+"/"] = true
	}
	for info, err := range c.From.List(ctx, string(repo.BaseBackups), storage.ListOptions{Shallow: true}) {
		if err != nil {
			return fmt.Errorf("read the source: %w", err)
		}
		if info.Dir && !known[info.Name] {
			c.Log.Info(fmt.Sprintf("%s has no sentinel: it is unfinished, or being made, and stays", info.Name))
		}
	}
	return nil
}

// list finds the files of the family.
func (f *family) list(ctx context.Context, from, to storage.Bucket) error {
	for _, b := range f.members {
		metadata, data, err := payload(ctx, from, b.name)
		if err != nil {
			return fmt.Errorf("list the source: %w", err)
		}
		there, err := sizes(ctx, to, string(repo.BaseBackups)+string(b.name)+"/")
		if err != nil {
			return fmt.Errorf("list the target: %w", err)
		}
		mark(metadata, there)
		mark(data, there)
		// What mark leaves in the map has no counterpart.
		f.stale = append(f.stale, slices.Sorted(maps.Keys(there))...)
		f.metadata, f.data = append(f.metadata, metadata...), append(f.data, data...)
	}
	return nil
}

// mark notes which objects are there already, and takes them out of the map.
func mark(objects []Object, there map[string]int64) {
	for i := range objects {
		_, objects[i].Present = there[objects[i].Name]
		delete(there, objects[i].Name)
	}
}

func (c *Copier) moveFamily(ctx context.Context, f *family, preserve bool) Result {
	stages := [][]Object{f.data, f.metadata}
	for _, b := range f.members {
		stages = append(stages, []Object{b.document})
	}
	var replaced []*backup
	if c.Overwrite {
		// What is being replaced is no backup until it is whole again.
		replaced = f.members
	}
	if err := removeBackups(ctx, c.To, replaced, f.stale); err != nil {
		err = fmt.Errorf("backup %s: clear its place in the target: %w", f.members[0].name, err)
		c.Log.Error(err.Error())
		var res Result
		res.fail(err)
		return res
	}
	// A set that cannot become a backup any more is not worth its transfer.
	whole := *c
	whole.FailFast = true
	res := whole.stages(ctx, stages)
	if res.Failed > 0 || preserve {
		return res
	}
	var names []string
	for _, o := range slices.Concat(f.metadata, f.data) {
		names = append(names, o.Name)
	}
	if err := removeBackups(ctx, c.From, f.members, names); err != nil {
		err = fmt.Errorf("backup %s is in the target; remove it from the source: %w", f.members[0].name, err)
		c.Log.Error(err.Error())
		res.fail(err)
	}
	return res
}

// removeBackups removes sentinels, children before their parents and so each in
// a call of its own, and then what they speak for.
func removeBackups(ctx context.Context, b storage.Bucket, parentsFirst []*backup, rest []string) error {
	for _, one := range slices.Backward(parentsFirst) {
		if err := b.Delete(ctx, one.document.Name); err != nil {
			return err
		}
	}
	return Remove(ctx, b, rest)
}
