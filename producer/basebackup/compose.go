package basebackup

import (
	"context"
	"fmt"
	"iter"

	"github.com/walherd/walherd/engine/delta"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pack"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/engine/wal"
	"github.com/walherd/walherd/messages"
)

// Composer names a way to distribute files over parts.
type Composer uint8

const (
	// Regular follows the order of the walk.
	Regular Composer = iota
	// Rating packs files by how many tuples were written to their relations.
	Rating
	// Copy has parts of CopyOf copied in which nothing changed, and packs the
	// rest as Regular does.
	Copy
	// Database packs each database apart.
	Database
)

// parallelCopies is how many parts are copied side by side: the work is the
// store's.
const parallelCopies = 4

// compose plans the parts, and the copies.
func (b *backup) compose(ctx context.Context, items iter.Seq[pack.Item]) ([]pack.Part, error) {
	switch b.Composer {
	case Rating:
		if err := b.rate(ctx); err != nil {
			return nil, err
		}
		return pack.Rating(b.listing.Entries, func(i int32) uint64 { return b.ratings[i] }, b.Threshold)(items), nil
	case Database:
		return pack.Database(b.listing.Entries, b.Threshold)(items), nil
	case Copy:
		if err := b.planCopies(); err != nil {
			return nil, err
		}
		items = without(items, b.copies, len(b.listing.Entries))
	}
	return pack.Regular(pack.RegularOptions{Threshold: b.Threshold, OpenParts: b.Readers})(items), nil
}

// rate finds how often the relation of each entry was written to.
func (b *backup) rate(ctx context.Context) error {
	updates, err := b.Conn.Updates(ctx)
	if err != nil {
		return fmt.Errorf("rate files by their updates: %w", err)
	}
	b.ratings = make([]uint64, len(b.listing.Entries))
	for i := range b.listing.Entries {
		// What is no relation's file counts as never written.
		if f, err := wal.ParseFile(b.listing.Entries[i].Name); err == nil {
			b.ratings[i] = updates[f.RelFile]
		}
	}
	return nil
}

// planCopies finds what need not be packed. Without a backup to copy from all
// is packed.
func (b *backup) planCopies() error {
	p := b.CopyOf
	if p == nil {
		return nil
	}
	h, err := b.history()
	if err == nil {
		err = delta.CheckParent(p.Name, p.Sentinel, delta.Position{
			LSN: b.start.LSN, SystemID: b.server.SystemID, Version: b.server.Version, History: h,
		})
	}
	if err != nil {
		b.Logger.Warn("no parts are copied", telemetry.KeyBackup, p.Name, "reason", err)
		return nil
	}
	if b.copies, err = delta.PlanCopies(b.listing.Entries, p.Sentinel.StartTime, p.Files); err != nil {
		return err
	}
	var size int64
	for _, c := range b.copies {
		size += c.Part.Size
	}
	b.Logger.Info("parts are copied from the last full backup", "base", p.Name, "parts", len(b.copies), telemetry.KeyBytes, size)
	return nil
}

// without leaves out what the copies hold.
func without(items iter.Seq[pack.Item], copies []delta.Copy, entries int) iter.Seq[pack.Item] {
	taken := make([]bool, entries)
	for _, c := range copies {
		for _, i := range c.Part.Entries {
			taken[i] = true
		}
	}
	return func(yield func(pack.Item) bool) {
		for it := range items {
			if !taken[it.Index] && !yield(it) {
				return
			}
		}
	}
}

// copied says where a part is copied from, and what it then holds; zero for a
// part that is packed.
type copied struct {
	source *messages.PartSource
	report pack.Report
}

func (b *backup) source(c delta.Copy) copied {
	return copied{
		source: &messages.PartSource{Backup: b.CopyOf.Name, Object: c.Source},
		report: pack.Report{EntryBytes: c.Part.Size, Entries: len(c.Part.Entries), Damage: c.Damage},
	}
}

// noteDamage logs and keeps what is wrong with a file. b.mu is held.
func (b *backup) noteDamage(d pack.Damage) {
	b.damage[d.Index] = d
	name := b.listing.Entries[d.Index].Name
	if d.Ragged {
		b.Logger.Warn("not checked: the file is not made of whole pages", "file", name, telemetry.KeyBytes, b.listing.Entries[d.Index].Size)
	}
	if d.Implausible > 0 {
		b.Logger.Warn("pages without a plausible header", "file", name, "pages", d.Implausible)
	}
	if d.Corrupt > 0 {
		b.Logger.Warn("corrupt pages: checksums are wrong", "file", name, "pages", d.Corrupt, "blocks", d.Blocks[:min(len(d.Blocks), loggedBlocks)])
	}
}

// loggedBlocks is how many block numbers a line of the log names.
const loggedBlocks = 10

// corruptFiles are the files with corrupt blocks for the sentinel: the first of
// them, since a sentinel is small. The list of files has them all.
func (b *backup) corruptFiles() manifest.CorruptFiles {
	var out manifest.CorruptFiles
	for i := range b.listing.Entries {
		d := b.damage[int32(i)]
		if d.Corrupt == 0 {
			continue
		}
		if out == nil {
			out = manifest.CorruptFiles{}
		}
		e := &b.listing.Entries[i]
		out[e.Name] = manifest.CorruptFile{
			CorruptBlocks: d.Blocks[:min(len(d.Blocks), maxSentinelBlocks)], IsIncremented: b.incremented[int32(i)], MTime: e.ModTime().Local(),
		}
		if len(out) == maxSentinelFiles {
			break
		}
	}
	return out
}

// A sentinel travels in a message of the broker, which has a limit of 1 MiB.
const (
	maxSentinelFiles  = 50
	maxSentinelBlocks = 1000
)
