package pgconn

import (
	"context"
	"fmt"

	"github.com/walherd/walherd/engine/pg"
)

// ServerInfo is what a server says about itself.
type ServerInfo struct {
	Version  pg.Version
	SystemID pg.SystemID
	// DataDirectory as the server was started with; it may hold symbolic
	// links.
	DataDirectory string
	// SegmentSize of WAL; BlockSize of data pages and WALBlockSize of WAL
	// pages in bytes.
	SegmentSize             pg.SegmentSize
	BlockSize, WALBlockSize int
	// FileBlocks is how many pages a file of a relation holds at most.
	FileBlocks int
	// DataChecksums: data pages carry checksums.
	DataChecksums bool
	// InRecovery: the server is a standby, or still recovers.
	InRecovery bool
	// Timeline as Conn.Timeline gives it.
	Timeline pg.Timeline
	// ArchiveMode is archive_mode: off, on or always.
	ArchiveMode string
	// ArchiverSet: archive_command or archive_library is not empty. Without
	// either an archive_mode of on only collects WAL.
	ArchiverSet bool
}

// Archiving reports whether the server archives the WAL it has: archive_mode
// is on, or always on a standby.
func (i ServerInfo) Archiving() bool { return archiving(i.ArchiveMode, i.InRecovery) }

func archiving(mode string, inRecovery bool) bool {
	return mode == "always" || mode == "on" && !inRecovery
}

// The second argument of current_setting covers archive_library, which came
// with version 15.
const infoQuery = `
SELECT s.system_identifier,
       current_setting('data_directory'),
       i.bytes_per_wal_segment, i.database_block_size, i.wal_block_size, i.blocks_per_segment,
       i.data_page_checksum_version <> 0,
       pg_is_in_recovery(),
       current_setting('archive_mode'),
       -- with archive_mode off the server shows (disabled)
       current_setting('archive_command') NOT IN ('', '(disabled)')
         OR coalesce(current_setting('archive_library', true), '') <> ''
FROM pg_control_system() s, pg_control_init() i`

// ServerInfo asks the server about itself. The role needs pg_monitor (for
// data_directory) if it is no superuser.
func (c *Conn) ServerInfo(ctx context.Context) (ServerInfo, error) {
	release, err := c.acquire(ctx)
	if err != nil {
		return ServerInfo{}, fmt.Errorf("read PostgreSQL server information: %w", err)
	}
	defer release()
	info := ServerInfo{Version: c.version}
	var (
		sysID   int64 // the catalog has no unsigned type: half of all identifiers would be negative
		segment int64
	)
	err = c.conn.QueryRow(ctx, infoQuery).Scan(&sysID, &info.DataDirectory,
		&segment, &info.BlockSize, &info.WALBlockSize, &info.FileBlocks, &info.DataChecksums,
		&info.InRecovery, &info.ArchiveMode, &info.ArchiverSet)
	if err != nil {
		return ServerInfo{}, explain("read PostgreSQL server information", err)
	}
	info.SystemID = pg.SystemID(uint64(sysID))
	info.SegmentSize = pg.SegmentSize(segment)
	if err := info.SegmentSize.Validate(); err != nil {
		return ServerInfo{}, fmt.Errorf("read PostgreSQL server information: %w", err)
	}
	if info.Timeline, err = c.timeline(ctx); err != nil {
		return ServerInfo{}, err
	}
	return info, nil
}

// Timeline asks for the current timeline: of a primary the one it writes, of
// a standby the one of its last restart point. A standby that was promoted
// therefore answers with its new timeline at once; one that follows its
// primary to a new timeline does so with its next restart point.
func (c *Conn) Timeline(ctx context.Context) (pg.Timeline, error) {
	release, err := c.acquire(ctx)
	if err != nil {
		return 0, fmt.Errorf("read timeline: %w", err)
	}
	defer release()
	return c.timeline(ctx)
}

// The control file of a freshly promoted server still names the old timeline
// until its first checkpoint, so a primary is asked for the file it writes.
const timelineQuery = `
SELECT CASE WHEN pg_is_in_recovery()
            THEN (SELECT lpad(to_hex(timeline_id), 8, '0') FROM pg_control_checkpoint())
            ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END`

func (c *Conn) timeline(ctx context.Context) (pg.Timeline, error) {
	var hex string
	if err := c.conn.QueryRow(ctx, timelineQuery).Scan(&hex); err != nil {
		return 0, explain("read timeline", err)
	}
	var tl uint32
	if _, err := fmt.Sscanf(hex, "%X", &tl); err != nil || tl == 0 {
		return 0, fmt.Errorf("read timeline: the server answered %q", hex)
	}
	return pg.Timeline(tl), nil
}
