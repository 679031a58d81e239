package delta

import (
	"errors"
	"fmt"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
)

// Why no increment can be made on a backup, for errors.Is.
var (
	// ErrNoLSN: the backup does not say where it started.
	ErrNoLSN = errors.New("backup has no start LSN")
	// ErrAhead: the backup ended after the position the new one starts at.
	ErrAhead = errors.New("backup is ahead of the server")
	// ErrOtherSystem: the backup is of another cluster, or of another major
	// version of it.
	ErrOtherSystem = errors.New("backup is of another cluster")
	// ErrOtherTimeline: the server's history left that of the backup before
	// the backup was complete.
	ErrOtherTimeline = errors.New("backup is of a timeline that the server does not descend from")
)

// Position is where a new backup starts.
type Position struct {
	LSN      pg.LSN
	SystemID pg.SystemID // 0 if unknown
	Version  pg.Version  // 0 if unknown
	// History is that of the server's timeline.
	History wal.History
}

// CheckParent refuses a parent that an increment which starts at p cannot be
// made on. The first of these errors is a reason for a full backup, the others
// are for a person to look at: the bucket or the server is not the right one.
//
// Ahead and of another system is what WAL-G refuses. It does not look at
// timelines: after a failover to a standby that had not replayed the whole
// parent, pages of the parent's lost end have LSNs that the server's own,
// different pages have too, and an increment by LSN is silently wrong.
func CheckParent(name pg.BackupName, parent *manifest.Sentinel, p Position) error {
	err := checkParent(name, parent, p)
	if err != nil {
		return fmt.Errorf("build on backup %s: %w", name, err)
	}
	return nil
}

func checkParent(name pg.BackupName, s *manifest.Sentinel, p Position) error {
	switch {
	case s.LSN == nil:
		return ErrNoLSN
	case s.SystemIdentifier != nil && p.SystemID != 0 && *s.SystemIdentifier != p.SystemID:
		return fmt.Errorf("%w: it is of system %d, the server is %d", ErrOtherSystem, *s.SystemIdentifier, p.SystemID)
	case s.PgVersion != 0 && p.Version != 0 && s.PgVersion.Major() != p.Version.Major():
		return fmt.Errorf("%w: it is of PostgreSQL %d, the server is %d", ErrOtherSystem, s.PgVersion.Major(), p.Version.Major())
	}
	end := *s.LSN
	if s.FinishLSN != nil {
		end = max(end, *s.FinishLSN)
	}
	if end > p.LSN {
		return fmt.Errorf("%w: it ended at %s, the server is at %s", ErrAhead, end, p.LSN)
	}
	segment, ok := name.Segment()
	if !ok || segment.Timeline == p.History.Timeline {
		return nil
	}
	for _, sw := range p.History.Switches {
		if sw.Timeline == segment.Timeline {
			if end > sw.LSN {
				return fmt.Errorf("%w: it ended at %s, the server left timeline %d at %s", ErrOtherTimeline, end, sw.Timeline, sw.LSN)
			}
			return nil
		}
	}
	return fmt.Errorf("%w: it is of timeline %d, the server is on %d", ErrOtherTimeline, segment.Timeline, p.History.Timeline)
}
