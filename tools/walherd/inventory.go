package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/engine/wal"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/workers/intake"
)

// documentsAtOnce is how many small documents are read side by side: ten
// thousand backups have as many of each kind, and a store answers a request
// in milliseconds whatever its size.
const documentsAtOnce = 32

// inventory is what the storages hold, as far as a command had it looked up.
type inventory struct {
	*catalog.Inventory
	// metadata is that of the backups described, of those that have one.
	metadata map[catalog.BackupID]*manifest.Metadata
	repos    map[string]*repo.Repo
}

func newInventory(size pg.SegmentSize, repos []*repo.Repo) (*inventory, error) {
	v, err := catalog.NewInventory(size)
	if err != nil {
		return nil, fmt.Errorf("setting WALG_PG_WAL_SIZE: %w", err)
	}
	inv := &inventory{Inventory: v, metadata: map[catalog.BackupID]*manifest.Metadata{}, repos: map[string]*repo.Repo{}}
	for _, r := range repos {
		inv.repos[r.Name()] = r
	}
	return inv, nil
}

// addWAL lists the archived WAL and reads the histories of its timelines.
func (v *inventory) addWAL(ctx context.Context, a *app, repos []*repo.Repo) error {
	for _, r := range repos {
		for info, err := range r.Bucket().List(ctx, repo.WALFolder, storage.ListOptions{Shallow: true}) {
			if err != nil {
				return fmt.Errorf("list WAL in storage %s: %w", r.Name(), err)
			}
			if !info.Dir {
				v.Add(r.Name(), info.Name, info.Modified)
			}
		}
	}
	files := v.HistoryFiles()
	if len(files) == 0 {
		return nil
	}
	codec, err := a.codec(ctx)
	if err != nil {
		return err
	}
	// One that cannot be read leaves its timeline without a parent, which
	// is what a person is told; it is not worth the rest of the report.
	for _, f := range files {
		if _, known := v.History(f.Timeline); known {
			continue
		}
		h, err := readHistory(ctx, codec, v.repos[f.Storage], f)
		if err != nil {
			a.log.Warn("a timeline's history cannot be read", telemetry.KeyError, err)
			continue
		}
		v.AddHistory(h)
	}
	return nil
}

// historyMax bounds what is read of a history file.
const historyMax = 1 << 20

func readHistory(ctx context.Context, codec intake.Codec, r *repo.Repo, f catalog.HistoryFile) (wal.History, error) {
	fail := func(err error) (wal.History, error) { return wal.History{}, fmt.Errorf("read %s: %w", f.Key(), err) }
	stored, err := r.OpenObject(ctx, f.Key(), storage.Range{})
	if err != nil {
		return fail(err)
	}
	defer stored.Close()
	ext := strings.TrimPrefix(strings.TrimPrefix(f.Suffix, ".history"), ".")
	plain, err := codec.Open(ctx, stored, ext)
	if err != nil {
		return fail(err)
	}
	defer plain.Close()
	text, err := io.ReadAll(io.LimitReader(plain, historyMax))
	if err != nil {
		return fail(err)
	}
	h, err := wal.ParseHistory(f.Timeline, text)
	if err != nil {
		return fail(err)
	}
	return h, nil
}

// addBackups lists the base backups, by their sentinels.
func (v *inventory) addBackups(ctx context.Context, repos []*repo.Repo) error {
	for _, r := range repos {
		for s, err := range r.Sentinels(ctx) {
			if err != nil {
				return err
			}
			v.Add(r.Name(), repo.SentinelKey(s.Name), s.Modified)
		}
	}
	return nil
}

// listed are the backups that are wanted of those that have a sentinel.
func (v *inventory) listed(want func(*catalog.Stored) bool) []*catalog.Stored {
	return slices.DeleteFunc(v.Backups(), func(b *catalog.Stored) bool { return !b.Listed || !want(b) })
}

// describe reads the documents of backups. The metadata tells nearly all;
// links adds the sentinel, which tells what a backup is built on.
func (v *inventory) describe(ctx context.Context, a *app, links bool, backups ...*catalog.Stored) error {
	type found struct {
		details  catalog.Details
		metadata *manifest.Metadata
	}
	all := make([]found, len(backups))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(documentsAtOnce)
	for i, b := range backups {
		g.Go(func() (err error) {
			all[i].details, all[i].metadata, err = a.details(ctx, v.repos[b.ID.Storage], b.ID.Name, links)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, b := range backups {
		v.Describe(b.ID, all[i].details)
		if m := all[i].metadata; m != nil {
			v.metadata[b.ID] = m
		}
	}
	return nil
}

// details reads a backup's documents. One that cannot be understood is warned
// of, and the backup taken for one that must be kept; one that cannot be read
// is an error.
func (a *app) details(ctx context.Context, r *repo.Repo, name pg.BackupName, link bool) (catalog.Details, *manifest.Metadata, error) {
	unreadable := false
	document := func(what string, read func(context.Context, pg.BackupName) ([]byte, storage.Info, error), parse func([]byte) error) error {
		doc, _, err := read(ctx, name)
		switch {
		case errors.Is(err, storage.ErrNotExist):
			return nil
		case err != nil:
			return fmt.Errorf("read the %s of %s in storage %s: %w", what, name, r.Name(), err)
		}
		if err := parse(doc); err != nil {
			a.log.Warn("unreadable "+what, telemetry.KeyBackup, name, telemetry.KeyError, err)
			unreadable = true
		}
		return nil
	}
	var s *manifest.Sentinel
	var m *manifest.Metadata
	err := document("metadata", r.Metadata, func(doc []byte) (err error) { m, err = manifest.ParseMetadata(doc); return err })
	if err == nil && (link || m == nil) {
		err = document("sentinel", r.Sentinel, func(doc []byte) (err error) { s, err = manifest.ParseSentinel(doc); return err })
	}
	d := catalog.DetailsOf(s, m)
	d.Unreadable = unreadable
	if m == nil && s != nil {
		m = s.Metadata()
	}
	return d, m, err
}

// warnOfDown says which storages are missing from what a command reports.
func (a *app) warnOfDown(ctx context.Context, stores *storages) {
	if down := stores.down(ctx); len(down) > 0 {
		slices.Sort(down)
		a.log.Warn("storage " + strings.Join(down, ", ") + " cannot be read now: what only it holds is taken to be missing")
	}
}
