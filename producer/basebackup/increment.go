package basebackup

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"

	"github.com/walherd/walherd/engine/delta"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pack"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/engine/verify"
	"github.com/walherd/walherd/engine/wal"
)

// Parent is a backup that an increment is taken of.
type Parent struct {
	Name     pg.BackupName
	Sentinel *manifest.Sentinel
	// Files reads its files_metadata.json. It is called once.
	Files func(manifest.FilesVisitor) error
	// Count of the increment in its chain. WAL-G counts on from the backup
	// that was chosen, also when the increment is then taken of that one's
	// full backup.
	Count int
	// DataChecksums: the cluster had them; nil is not known.
	DataChecksums *bool
}

// errNoChecksums: pg_checksums gives every page its checksum and none a new LSN,
// nor does it write WAL, so that an increment leaves pages to the parent which
// the restored server takes for corrupt.
var errNoChecksums = errors.New("data checksums were enabled since")

func (p *Parent) increment() *manifest.Increment {
	root := p.Name
	if i := p.Sentinel.Increment; i != nil {
		root = i.Root
	}
	return &manifest.Increment{ParentLSN: *p.Sentinel.LSN, Parent: p.Name, Root: root, Count: p.Count}
}

// checkParent refuses a parent of another cluster or of the future, and drops
// one whose pages cannot be told from this server's: after a failover a nightly
// backup shall be a full one, not none.
func (b *backup) checkParent() error {
	p := b.Parent
	if p == nil {
		return nil
	}
	h, err := b.history()
	if err == nil {
		err = delta.CheckParent(p.Name, p.Sentinel, delta.Position{
			LSN: b.start.LSN, SystemID: b.server.SystemID, Version: b.server.Version, History: h,
		})
	}
	if err == nil && b.server.DataChecksums && p.DataChecksums != nil && !*p.DataChecksums {
		err = fmt.Errorf("build on backup %s: %w", p.Name, errNoChecksums)
	}
	switch {
	case errors.Is(err, delta.ErrAhead), errors.Is(err, delta.ErrOtherSystem):
		return fmt.Errorf("%w; take a full backup with --full if both are as they should be", err)
	case err != nil:
		b.Logger.Warn("taking a full backup", telemetry.KeyBackup, p.Name, "reason", err)
		b.Parent = nil
		return nil
	}
	b.Logger.Info(fmt.Sprintf("Delta backup from %s with LSN %s.", p.Name, *p.Sentinel.LSN))
	return nil
}

// history is the ancestry of the server's timeline.
func (b *backup) history() (wal.History, error) {
	tl := b.start.Timeline
	if tl == 1 {
		return wal.History{Timeline: tl}, nil // it has no file
	}
	text, err := os.ReadFile(filepath.Join(b.DataDir, "pg_wal", tl.HistoryFile()))
	if err != nil {
		return wal.History{}, fmt.Errorf("read the history of the server's timeline: %w", err)
	}
	return wal.ParseHistory(tl, text)
}

// planIncrement decides what becomes of each entry, and gives those that are
// to be stored and their size at most.
func (b *backup) planIncrement(ctx context.Context) (iter.Seq[pack.Item], int64, error) {
	p := b.Parent
	actions, err := delta.Plan(b.listing.Entries, delta.Parent{
		Start: p.Sentinel.StartTime,
		Files: func(visit func(name string, f manifest.File) error) error {
			return p.Files(manifest.FilesVisitor{File: visit})
		},
	}, b.server.BlockSize)
	if err != nil {
		return nil, 0, err
	}
	b.actions = actions
	if b.changes, err = b.changedBlocks(ctx); err != nil {
		return nil, 0, err
	}
	var size, skipped int64
	for i := range b.listing.Entries {
		if e := &b.listing.Entries[i]; actions[i] != delta.Skip {
			size += e.Size
		} else {
			skipped++
		}
	}
	b.Logger.Info("increment planned", "base", p.Name, "unchanged_files", skipped, "bytes_to_look_at", size)
	return func(yield func(pack.Item) bool) {
		for item := range pack.Items(b.listing.Entries) {
			if actions[item.Index] != delta.Skip && !yield(item) {
				return
			}
		}
	}, size, nil
}

// skipped tells whether an entry is left to the parent.
func (b *backup) skipped(i int32) bool { return b.actions != nil && b.actions[i] == delta.Skip }

// opener gives one attempt at a part its content.
func (b *backup) opener(limiter pack.Limiter, alive func() error) (pack.Opener, error) {
	files, err := b.contents(limiter, alive)
	if err != nil || !b.Verify {
		return files, err
	}
	return verify.New(files, verify.Options{Root: b.listing.Root, Start: b.start.LSN, PageSize: b.server.BlockSize, All: b.AllCorrupt})
}

func (b *backup) contents(limiter pack.Limiter, alive func() error) (pack.Opener, error) {
	if b.actions == nil {
		return pack.NewFiles(b.listing.Root), nil
	}
	return delta.NewOpener(delta.Options{
		Root: b.listing.Root, Actions: b.actions, Since: *b.Parent.Sentinel.LSN, PageSize: b.server.BlockSize,
		FileBlocks: b.server.FileBlocks, HintsLogged: b.server.DataChecksums, Changes: b.changes,
		Look: func(n int) error {
			for n > 0 {
				if err := alive(); err != nil || limiter == nil {
					return err
				}
				step := min(n, pack.LimiterBurst)
				if err := limiter.WaitN(b.run.ctx, step); err != nil {
					return fmt.Errorf("wait for the disk rate limit: %w", err)
				}
				n -= step
			}
			return nil
		},
	})
}
