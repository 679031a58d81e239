package pgconn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// The pause between two looks at the archive status files. It begins short
// because an archived segment is a matter of milliseconds with a daemon, and
// grows for slow storage.
const (
	archivePollMin = 10 * time.Millisecond
	archivePollMax = 250 * time.Millisecond
)

// archiveWarning is after how long a person is told what a wait is for, as the
// server tells it; then again after twice as long.
const archiveWarning = time.Minute

// archiveStatsTimeout bounds the question why archiving hangs.
const archiveStatsTimeout = 5 * time.Second

// ArchiveWait returns when the WAL that the closed backup needs is archived:
// its last segment and, on a primary, its history file. It returns at once
// when the server does not archive (see ServerInfo.Archiving).
//
// It looks at the files in dataDir, the server's data directory on this host,
// as the server itself does: the server's own wait looks once a second. It
// lasts until ctx ends; then the error wraps the context's cause and names the
// segment and the last failure the archiver counted. So does the log, from time
// to time: without a limit a broken archive_command is waited for forever.
func (c *Conn) ArchiveWait(ctx context.Context, dataDir string, stop Stop) error {
	active, err := c.archivingNow(ctx)
	if err != nil || !active {
		return err
	}
	wal := filepath.Join(dataDir, "pg_wal")
	// A segment that is not there counts as archived: make sure that this
	// is the place where it would be.
	if _, err := os.Stat(filepath.Join(wal, "archive_status")); err != nil {
		return fmt.Errorf("await archiving of %s: %s is not the server's data directory: %w", stop.Segment, dataDir, err)
	}
	names := []string{stop.Segment.String()}
	if stop.HistoryFile != "" {
		names = append(names, stop.HistoryFile)
	}
	for _, name := range names {
		err := awaitArchived(ctx, wal, name, func(so time.Duration) {
			c.log.Warn("still waiting for WAL of the backup to be archived", "file", name, "for", so, "archiver", c.archiverSays(ctx))
		})
		if err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("await archiving of %s: %w (%s)", name, err, c.archiverSays(ctx))
			}
			return fmt.Errorf("await archiving of %s: %w", name, err)
		}
	}
	return nil
}

// archivingNow asks whether the server archives.
func (c *Conn) archivingNow(ctx context.Context) (bool, error) {
	release, err := c.acquire(ctx)
	if err != nil {
		return false, fmt.Errorf("read archive_mode: %w", err)
	}
	defer release()
	var (
		mode       string
		inRecovery bool
	)
	if err := c.conn.QueryRow(ctx, "SELECT current_setting('archive_mode'), pg_is_in_recovery()").Scan(&mode, &inRecovery); err != nil {
		return false, explain("read archive_mode", err)
	}
	return archiving(mode, inRecovery), nil
}

// awaitArchived polls until name is archived or ctx ends. waiting is told when
// that takes long.
func awaitArchived(ctx context.Context, wal, name string, waiting func(so time.Duration)) error {
	pause := archivePollMin
	began, told := time.Now(), archiveWarning
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-next.C:
		}
		busy, err := archiveBusy(wal, name)
		if err != nil || !busy {
			return err
		}
		if so := time.Since(began); so >= told {
			waiting(so.Round(time.Second))
			told *= 2
		}
		next.Reset(pause)
		pause = min(pause*3/2, archivePollMax)
	}
}

// archiveBusy is the server's rule (XLogArchiveIsBusy): name.done means
// archived, name.ready means not yet; with neither, a file that is gone was
// archived and recycled, and one that is there has not been offered yet.
func archiveBusy(wal, name string) (bool, error) {
	status := filepath.Join(wal, "archive_status", name)
	done, err := exists(status + ".done")
	if done || err != nil {
		return false, err
	}
	ready, err := exists(status + ".ready")
	if ready || err != nil {
		return true, err
	}
	// The archiver renames .ready to .done: it may have done so in between.
	done, err = exists(status + ".done")
	if done || err != nil {
		return false, err
	}
	return exists(filepath.Join(wal, name))
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// archiverSays is pg_stat_archiver's last failure in words, for an error that
// is on its way already: when it cannot be had, the words say that.
func (c *Conn) archiverSays(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), archiveStatsTimeout)
	defer cancel()
	release, err := c.acquire(ctx)
	if err != nil {
		return "pg_stat_archiver could not be read: " + err.Error()
	}
	defer release()
	var (
		failed int64
		wal    *string
		at     *time.Time
	)
	err = c.conn.QueryRow(ctx, "SELECT failed_count, last_failed_wal, last_failed_time FROM pg_stat_archiver").Scan(&failed, &wal, &at)
	switch {
	case err != nil:
		return "pg_stat_archiver could not be read: " + err.Error()
	case wal == nil || at == nil:
		return "the archiver has counted no failure: it is slow, or has not begun"
	}
	return fmt.Sprintf("the archiver failed %d times, last on %s at %s: see the server's log and archive_command",
		failed, *wal, at.UTC().Format(time.RFC3339))
}
