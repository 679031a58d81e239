package basebackup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/walherd/walherd/engine/changes"
	"github.com/walherd/walherd/engine/delta"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
	"github.com/walherd/walherd/producer/pgconn"
)

// ErrNoChangeMap: nothing but reading all changed files would tell what an
// increment has to hold, and that is not wanted.
var ErrNoChangeMap = errors.New("no record of the changed blocks")

// ArchivedChanges merges the change maps that are kept beside archived WAL.
type ArchivedChanges interface {
	// Collect gives the changes of the archived segments from the one that
	// holds from up to, at most, the one before that of to, and where the
	// first begins that is not among them; m is nil if none is. The error says
	// why archived segments do not tell. History is that of the server's
	// timeline.
	Collect(ctx context.Context, from, to pg.LSN, h wal.History) (m *changes.Map, next pg.LSN, err error)
}

// summaryWait is how long the server's summarizer may take to come to the start
// of this backup; reading all changed files takes longer on all but small
// clusters.
const summaryWait = 10 * time.Second

const (
	// archiveTail is how many whole segments that are not archived yet are
	// read from pg_wal at once. For more, the archiver is given time.
	archiveTail = 2
	// archiveWait is how long nothing may be archived in that time.
	archiveWait = 5 * time.Second
	archivePoll = 100 * time.Millisecond
	// archiveTailMax bounds what is read from pg_wal in the end, in bytes:
	// with more, archiving has stopped, and the host has other troubles.
	archiveTailMax = 1 << 30
)

// changedBlocks learns which blocks have changed since the parent began; nil if
// nobody can tell, and then each changed file is read whole.
func (b *backup) changedBlocks(ctx context.Context) (delta.ChangeMap, error) {
	h, err := b.history()
	if err != nil {
		return nil, err // checkParent has read it
	}
	m, noSummaries := b.Conn.Summaries(ctx, pgconn.SummaryRange{From: *b.Parent.Sentinel.LSN, To: b.start.LSN, History: h, Wait: summaryWait})
	if noSummaries == nil {
		b.Logger.Info("changed blocks are taken from the server's WAL summaries")
		return m, nil
	}
	if !errors.Is(noSummaries, pgconn.ErrNoSummaries) {
		return nil, noSummaries
	}
	noMaps := errors.New("none are asked for")
	if b.Archived != nil {
		var told WALChanges
		told, noMaps = ChangesOf(ctx, b.Archived, WALRange{
			From: *b.Parent.Sentinel.LSN, To: b.start.LSN, History: h, Dir: filepath.Join(b.DataDir, "pg_wal"),
			SegmentSize: b.server.SegmentSize, Archiving: b.server.Archiving(),
			Layout: changes.Layout{PageSize: uint32(b.server.BlockSize), FileBlocks: uint32(b.server.FileBlocks)},
		})
		if noMaps == nil {
			b.Logger.Info("changed blocks are taken from the change maps of archived WAL", "archived_segments", told.Archived,
				"segments_read_from_pg_wal", told.Local, "no_summaries", noSummaries)
			return told.Map, nil
		}
		if ctx.Err() != nil {
			return nil, noMaps
		}
	}
	if b.ForceMap {
		return nil, fmt.Errorf("%w since %s began: %w; %w (unset WALG_FORCE_WAL_DELTA to read all changed files instead, or take a full backup with --full)",
			ErrNoChangeMap, b.Parent.Name, noSummaries, noMaps)
	}
	b.Logger.Info("changed files are read for their changed blocks", "no_summaries", noSummaries, "no_change_maps", noMaps)
	return nil, nil
}

// WALRange is the WAL between the beginnings of two backups.
type WALRange struct {
	// From and To are their start LSNs.
	From, To pg.LSN
	// History of the server's timeline.
	History wal.History
	// Dir is the server's pg_wal.
	Dir         string
	SegmentSize pg.SegmentSize
	Layout      changes.Layout
	// Archiving: the server archives WAL, so that more may come.
	Archiving bool
}

// WALChanges are the changes of a range, and in how many segments they were
// found: in the archive, and in pg_wal.
type WALChanges struct {
	Map             *changes.Map
	Archived, Local int
}

// ChangesOf puts a map together out of those kept beside the archived WAL and,
// for the end that is not archived yet, of the server's own files: the segment
// in which a backup begins is still being written. The Map covers the range; the
// error says why there is none.
func ChangesOf(ctx context.Context, in ArchivedChanges, r WALRange) (out WALChanges, err error) {
	var (
		size  = pg.LSN(r.SegmentSize)
		last  = r.To / size * size
		next  = r.From / size * size
		since = time.Now()
	)
	for {
		m, reached, err := in.Collect(ctx, max(next, r.From), r.To, r.History)
		if err != nil {
			return out, err
		}
		if m != nil {
			if err := out.add(m); err != nil {
				return out, err
			}
			out.Archived += int((reached - next) / size)
			since = time.Now()
		}
		next = reached
		if last <= next || last-next <= archiveTail*size || !r.Archiving || time.Since(since) > archiveWait {
			break
		}
		select {
		case <-time.After(archivePoll):
		case <-ctx.Done():
			return out, context.Cause(ctx)
		}
	}
	if next < r.To && r.To-next > archiveTailMax {
		return out, fmt.Errorf("%w: %d MiB of WAL are not archived", changes.ErrGap, (r.To-next)>>20)
	}
	for ; next < r.To; next += size {
		m, err := r.scan(next)
		if err == nil {
			err = out.add(m)
		}
		if err != nil {
			return out, err
		}
		out.Local++
	}
	if out.Map == nil {
		return out, fmt.Errorf("%w: no WAL from %s to %s", changes.ErrGap, r.From, r.To)
	}
	return out, out.Map.Covers(r.From, r.To, r.History)
}

func (w *WALChanges) add(m *changes.Map) error {
	if w.Map == nil {
		w.Map = m
		return nil
	}
	return w.Map.Merge(m)
}

// scan makes the map of the server's own segment that begins at start.
func (r WALRange) scan(start pg.LSN) (*changes.Map, error) {
	end := start + pg.LSN(r.SegmentSize)
	// The first segment of a timeline begins with a copy of its parent's.
	name := start.Segment(r.History.At(end-1), r.SegmentSize)
	f, err := os.Open(filepath.Join(r.Dir, name.String()))
	if err != nil {
		return nil, fmt.Errorf("read WAL that is not archived: %w", err)
	}
	defer f.Close()
	opt := changes.ScanOptions{Layout: r.Layout, Timeline: name.Timeline}
	if r.To < end {
		opt.To = r.To // what follows is of the file's former life
	}
	m, err := changes.Scan(f, opt)
	if err != nil {
		return nil, fmt.Errorf("read WAL that is not archived, %s: %w", name, err)
	}
	return m, nil
}
