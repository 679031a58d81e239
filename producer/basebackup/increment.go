package basebackup

import (
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
}

// Why an increment is refused, for errors.Is.
var (
	// ErrOtherSystem: the parent is of another cluster.
	ErrOtherSystem = errors.New("the base is a backup of another cluster")
	// ErrNewerBase: the parent ended after this backup began.
	ErrNewerBase = errors.New("the base is newer than this server")
)

func (p *Parent) increment() *manifest.Increment {
	root := p.Name
	if i := p.Sentinel.Increment; i != nil {
		root = i.Root
	}
	return &manifest.Increment{ParentLSN: *p.Sentinel.LSN, Parent: p.Name, Root: root, Count: p.Count}
}

// checkParent refuses a parent that cannot be one, and drops one whose pages
// cannot be told from this server's.
func (b *backup) checkParent() error {
	p := b.Parent
	if p == nil {
		return nil
	}
	s := p.Sentinel
	if s.SystemIdentifier != nil && *s.SystemIdentifier != b.server.SystemID {
		return fmt.Errorf("increment of %s: %w: its system identifier is %d, the server's %d (take a full backup with --full, or set the storage's prefix of this cluster)",
			p.Name, ErrOtherSystem, *s.SystemIdentifier, b.server.SystemID)
	}
	if s.FinishLSN != nil && *s.FinishLSN > b.start.LSN {
		return fmt.Errorf("increment of %s: %w: the base ended at %s, this backup began at %s (a server restored to an earlier time needs --full)",
			p.Name, ErrNewerBase, *s.FinishLSN, b.start.LSN)
	}
	if why := b.strayed(p); why != "" {
		b.Logger.Warn("taking a full backup: "+why, telemetry.KeyBackup, p.Name)
		b.Parent = nil
		return nil
	}
	b.Logger.Info(fmt.Sprintf("Delta backup from %s with LSN %s.", p.Name, *s.LSN))
	return nil
}

// strayed tells why the parent's WAL may not be part of this server's past. On
// a timeline that branched off before the parent ended, pages may have changed
// at positions below the parent's start, which no look at their LSN shows.
// WAL-G compares positions only.
func (b *backup) strayed(p *Parent) string {
	base, ok := p.Name.Segment()
	if !ok || base.Timeline == b.start.Timeline {
		return ""
	}
	unknown := fmt.Sprintf("the base is of timeline %s, the server on %s, and ", base.Timeline, b.start.Timeline)
	text, err := os.ReadFile(filepath.Join(b.listingRoot(), "pg_wal", b.start.Timeline.HistoryFile()))
	if err != nil {
		return unknown + "the history of that one is not in pg_wal: " + err.Error()
	}
	h, err := wal.ParseHistory(b.start.Timeline, text)
	if err != nil {
		return unknown + err.Error()
	}
	for _, s := range h.Switches {
		if s.Timeline != base.Timeline {
			continue
		}
		if p.Sentinel.FinishLSN == nil || *p.Sentinel.FinishLSN > s.LSN {
			return unknown + fmt.Sprintf("the server left that timeline at %s, before the base ended", s.LSN)
		}
		return ""
	}
	return unknown + "that one does not descend from it"
}

func (b *backup) listingRoot() string {
	if b.listing != nil {
		return b.listing.Root
	}
	return b.DataDir
}

// planIncrement decides what becomes of each entry, and gives those that are
// to be stored and their size at most.
func (b *backup) planIncrement() (iter.Seq[pack.Item], int64, error) {
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
func (b *backup) opener() (pack.Opener, error) {
	if b.actions == nil {
		return pack.NewFiles(b.listing.Root), nil
	}
	return delta.NewOpener(delta.Options{
		Root: b.listing.Root, Actions: b.actions, Since: *b.Parent.Sentinel.LSN, PageSize: b.server.BlockSize,
	})
}
