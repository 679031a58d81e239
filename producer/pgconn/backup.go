package pgconn

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/walherd/walherd/engine/pg"
)

// Start is an opened base backup.
type Start struct {
	// LSN where replay of the backup begins.
	LSN pg.LSN
	// Timeline of that position.
	Timeline pg.Timeline
	// Segment names the backup: on a primary the one that holds LSN, on a
	// standby the one that holds the byte before it, as in WAL-G.
	Segment pg.SegmentName
	// InRecovery: the backup is taken from a standby.
	InRecovery bool
	// Checkpoint is where the checkpoint record of LSN is; 0 on a primary, and
	// if a restart point came in between.
	Checkpoint pg.LSN

	segmentSize pg.SegmentSize
}

// Stop is a closed base backup.
type Stop struct {
	// LSN up to which WAL is needed to make the backup consistent.
	LSN pg.LSN
	// Timeline of that position.
	Timeline pg.Timeline
	// Segment is the last one needed.
	Segment pg.SegmentName
	// HistoryFile is the name of the backup history file that a primary
	// archives after Segment; a standby writes none.
	HistoryFile string
	// Label and TablespaceMap are the texts of the files backup_label and
	// tablespace_map of the backup; the map may be empty.
	Label, TablespaceMap string
}

// ErrSameStart: another session takes a backup that starts in the same segment
// and so has the same name.
var ErrSameStart = errors.New("a backup from the same start is being taken")

// startTries is how often a primary is asked for a start of its own.
const startTries = 5

// ErrNoBackup is StopBackup without a started backup.
var ErrNoBackup = errors.New("no backup was started in this session")

// StartBackup opens a non-exclusive base backup. The server begins with a
// checkpoint, at full speed if fast is set, else spread over minutes
// (checkpoint_completion_target); the call lasts as long. The session must
// stay open until StopBackup.
//
// The name of a backup is its start segment. A primary begins a segment for each
// backup, but one for two that begin at once, and a standby has one start until
// its next restart point: parts of one backup would take the place of the
// other's. So the session locks the segment's name, for as long as it lasts,
// against all that use the same database of the server. On a primary a start that
// is taken is given up for a later one; on a standby it is ErrSameStart.
//
// A role that is no superuser needs EXECUTE on pg_backup_start and
// pg_backup_stop; before version 15 on pg_start_backup and pg_stop_backup.
func (c *Conn) StartBackup(ctx context.Context, label string, fast bool) (Start, error) {
	release, err := c.acquire(ctx)
	if err != nil {
		return Start{}, fmt.Errorf("start backup: %w", err)
	}
	defer release()
	for try := 1; ; try++ {
		start, err := c.startOnce(ctx, label, fast)
		if err != nil {
			return Start{}, err
		}
		var alone bool
		err = c.conn.QueryRow(ctx, "SELECT pg_try_advisory_lock(hashtextextended($1, 0))", "walherd backup "+start.Segment.String()).Scan(&alone)
		switch {
		case err != nil:
			return Start{}, explain("start backup: lock its name", err)
		case alone:
			c.backup = &start
			return start, nil
		case start.InRecovery:
			return Start{}, fmt.Errorf("start backup: %w by another session, at %s (wait for it, or for the next restart point)", ErrSameStart, start.LSN)
		case try == startTries:
			return Start{}, fmt.Errorf("start backup: %w by another session, at %s (try again)", ErrSameStart, start.LSN)
		}
		c.log.Info("another backup starts in the same segment, starting in a later one", "segment", start.Segment)
		if _, err := c.conn.Exec(ctx, "SELECT lsn FROM "+c.stopCall()); err != nil {
			return Start{}, explain("start backup: give a start up", err)
		}
	}
}

func (c *Conn) startOnce(ctx context.Context, label string, fast bool) (Start, error) {
	call := "pg_backup_start(label => $1, fast => $2)"
	if c.version.Major() < 15 {
		call = "pg_start_backup(label => $1, fast => $2, exclusive => false)"
	}
	var lsn string
	if err := c.conn.QueryRow(ctx, "SELECT "+call+"::text", label, fast).Scan(&lsn); err != nil {
		return Start{}, explain("start backup", err)
	}
	return c.describeStart(ctx, lsn)
}

func (c *Conn) stopCall() string {
	if c.version.Major() < 15 {
		return "pg_stop_backup(exclusive => false, wait_for_archive => false)"
	}
	return "pg_backup_stop(wait_for_archive => false)"
}

func (c *Conn) describeStart(ctx context.Context, lsn string) (Start, error) {
	pos, err := pg.ParseLSN(lsn)
	if err != nil {
		return Start{}, fmt.Errorf("start backup: %w", err)
	}
	var size int64
	start := Start{LSN: pos}
	err = c.conn.QueryRow(ctx, "SELECT pg_is_in_recovery(), bytes_per_wal_segment FROM pg_control_init()").Scan(&start.InRecovery, &size)
	if err != nil {
		return Start{}, explain("start backup: read segment size", err)
	}
	start.segmentSize = pg.SegmentSize(size)
	if err := start.segmentSize.Validate(); err != nil {
		return Start{}, fmt.Errorf("start backup: %w", err)
	}
	if start.Timeline, err = c.timeline(ctx); err != nil {
		return Start{}, fmt.Errorf("start backup: %w", err)
	}
	if start.InRecovery {
		if err := c.checkpoint(ctx, &start); err != nil {
			return Start{}, err
		}
	}
	start.Segment = startSegment(pos, start.Timeline, start.segmentSize, start.InRecovery)
	return start, nil
}

// checkpoint finds the checkpoint that a standby's backup starts from. The
// server tells it in the label only, and the label only when the backup ends
// well.
func (c *Conn) checkpoint(ctx context.Context, start *Start) error {
	var redo, at string
	if err := c.conn.QueryRow(ctx, "SELECT redo_lsn::text, checkpoint_lsn::text FROM pg_control_checkpoint()").Scan(&redo, &at); err != nil {
		return explain("start backup: read checkpoint", err)
	}
	if lsn, err := pg.ParseLSN(redo); err != nil || lsn != start.LSN {
		return nil // it is that of a later restart point
	}
	var err error
	if start.Checkpoint, err = pg.ParseLSN(at); err != nil {
		return fmt.Errorf("start backup: read checkpoint: %w", err)
	}
	return nil
}

// Label is the text of backup_label as the server would have written it, for a
// standby's backup that it refused to end, taken at the time started with the
// given label. It is empty if the checkpoint is not known.
func (s Start) Label(label string, started time.Time) string {
	if s.Checkpoint == 0 {
		return ""
	}
	return fmt.Sprintf("START WAL LOCATION: %s (file %s)\nCHECKPOINT LOCATION: %s\nBACKUP METHOD: streamed\nBACKUP FROM: standby\n"+
		"START TIME: %s\nLABEL: %s\nSTART TIMELINE: %d\n", s.LSN, s.LSN.Segment(s.Timeline, s.segmentSize), s.Checkpoint,
		started.UTC().Format("2006-01-02 15:04:05 UTC"), label, s.Timeline)
}

// startSegment does by arithmetic what the server's pg_walfile_name would
// answer: up to version 16 that gives the previous segment for a position on
// a boundary, and on a standby it cannot be called at all.
func startSegment(lsn pg.LSN, tl pg.Timeline, size pg.SegmentSize, inRecovery bool) pg.SegmentName {
	if inRecovery && lsn > 0 {
		lsn--
	}
	return lsn.Segment(tl, size)
}

// StopBackup closes the backup and does not wait for its WAL to be archived:
// see ArchiveWait. A timeout above 0 limits the server's work on it
// (WALG_STOP_BACKUP_TIMEOUT). After an error the backup is lost; Close the
// session, which ends backup mode.
func (c *Conn) StopBackup(ctx context.Context, timeout time.Duration) (Stop, error) {
	release, err := c.acquire(ctx)
	if err != nil {
		return Stop{}, fmt.Errorf("stop backup: %w", err)
	}
	defer release()
	if c.backup == nil {
		return Stop{}, fmt.Errorf("stop backup: %w", ErrNoBackup)
	}
	start := *c.backup
	if timeout > 0 {
		// Rounded up: 0 would mean no limit at all.
		ms := strconv.FormatInt(int64((timeout+time.Millisecond-1)/time.Millisecond), 10)
		if _, err := c.conn.Exec(ctx, "SELECT set_config('statement_timeout', $1, false)", ms); err != nil {
			return Stop{}, fmt.Errorf("stop backup: set timeout: %w", err)
		}
	}
	var (
		stop Stop
		lsn  string
	)
	err = c.conn.QueryRow(ctx, "SELECT lsn::text, coalesce(labelfile, ''), coalesce(spcmapfile, '') FROM "+c.stopCall()).
		Scan(&lsn, &stop.Label, &stop.TablespaceMap)
	switch {
	case err != nil && timeout > 0 && sqlState(err) == codeQueryCanceled:
		return Stop{}, fmt.Errorf("stop backup: not done within %s (WALG_STOP_BACKUP_TIMEOUT): %w", timeout, err)
	case err != nil:
		return Stop{}, explain("stop backup", err)
	}
	c.backup = nil
	if timeout > 0 {
		if _, err := c.conn.Exec(ctx, "SET statement_timeout = 0"); err != nil {
			return Stop{}, fmt.Errorf("stop backup: lift timeout: %w", err)
		}
	}
	if stop.LSN, err = pg.ParseLSN(lsn); err != nil {
		return Stop{}, fmt.Errorf("stop backup: %w", err)
	}
	if err := checkLabel(stop.Label, start); err != nil {
		return Stop{}, fmt.Errorf("stop backup: %w", err)
	}
	stop.Timeline = start.Timeline
	if start.InRecovery {
		var tl uint32
		if err := c.conn.QueryRow(ctx, "SELECT min_recovery_end_timeline::int8 FROM pg_control_recovery()").Scan(&tl); err != nil {
			return Stop{}, explain("stop backup: read timeline", err)
		}
		// A server promoted just now has cleared the field; then the start's
		// timeline is the best that is known.
		if tl != 0 {
			stop.Timeline = pg.Timeline(tl)
		}
	}
	stop.name(start)
	return stop, nil
}

// name fills in the file names, which follow from the positions alone: the
// segment of the byte before the stop position, and the history file, which
// is named after the start position but the stop's timeline.
func (s *Stop) name(start Start) {
	last := s.LSN
	if last > 0 {
		last--
	}
	s.Segment = last.Segment(s.Timeline, start.segmentSize)
	if !start.InRecovery {
		s.HistoryFile = fmt.Sprintf("%s.%08X.backup", start.LSN.Segment(s.Timeline, start.segmentSize), uint64(start.LSN)%uint64(start.segmentSize))
	}
}

// checkLabel compares what the server wrote into backup_label with what the
// backup was named after. On a standby, name and start position are read one
// after the other, and a restart point may come between.
func checkLabel(label string, start Start) error {
	tl, ok := labelField(label, "START TIMELINE: ")
	if !ok {
		return errors.New("backup_label has no line START TIMELINE")
	}
	if tl != strconv.FormatUint(uint64(start.Timeline), 10) {
		return fmt.Errorf("backup_label starts on timeline %s, the backup was named after timeline %d: take it again", tl, start.Timeline)
	}
	at, ok := labelField(label, "START WAL LOCATION: ")
	if !ok {
		return errors.New("backup_label has no line START WAL LOCATION")
	}
	pos, _, _ := strings.Cut(at, " ")
	lsn, err := pg.ParseLSN(pos)
	if err != nil {
		return fmt.Errorf("read backup_label: %w", err)
	}
	if lsn != start.LSN {
		return fmt.Errorf("backup_label starts at %s, the backup at %s", lsn, start.LSN)
	}
	return nil
}

func labelField(label, key string) (string, bool) {
	for line := range strings.Lines(label) {
		if v, ok := strings.CutPrefix(line, key); ok {
			return strings.TrimSpace(v), true
		}
	}
	return "", false
}
