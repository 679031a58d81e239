package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/walherd/walherd/engine/pg"
)

// ControlSize is the size of global/pg_control in bytes.
const ControlSize = 8192

// State is the cluster's state in the control file.
type State uint32

// The states, in PostgreSQL's order.
const (
	Startup State = iota
	ShutDown
	ShutDownInRecovery
	ShuttingDown
	InCrashRecovery
	InArchiveRecovery
	InProduction
)

// String is the state as pg_controldata prints it.
func (s State) String() string {
	names := [...]string{"starting up", "shut down", "shut down in recovery", "shutting down",
		"in crash recovery", "in archive recovery", "in production"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint32(s))
}

// Stopped reports whether the server was shut down cleanly.
func (s State) Stopped() bool { return s == ShutDown || s == ShutDownInRecovery }

// Control is what the control file says, as far as a backup needs it.
type Control struct {
	SystemID pg.SystemID
	// ControlVersion is pg_control_version: 1300 (PostgreSQL 13 to 16),
	// 1700, 1800.
	ControlVersion uint32
	// CatalogVersion is catalog_version_no; it tells the majors apart.
	CatalogVersion uint32
	State          State
	// Modified is when the file was last written, in whole seconds.
	Modified time.Time
	// Checkpoint is the location of the latest checkpoint record, Redo where
	// replay from it starts.
	Checkpoint, Redo pg.LSN
	// CheckpointTime is in whole seconds.
	CheckpointTime         time.Time
	Timeline, PrevTimeline pg.Timeline
	// MinRecovery is how far a standby must replay to be consistent; 0 on a
	// primary.
	MinRecovery         pg.LSN
	MinRecoveryTimeline pg.Timeline
	// BackupStart and BackupEnd are set while a restored backup has not
	// reached its end.
	BackupStart, BackupEnd pg.LSN
	// BlockSize and WALBlockSize in bytes; SegmentBlocks is the number of
	// blocks in a full relation file (131072, that is 1 GiB).
	BlockSize, SegmentBlocks, WALBlockSize uint32
	SegmentSize                            pg.SegmentSize
	// DataChecksums reports whether data pages carry checksums.
	DataChecksums bool
}

// ErrControl marks a control file that cannot be believed.
var ErrControl = errors.New("invalid control file")

// ParseControl reads a control file of PostgreSQL 13 to 18, little-endian.
// The layout is ControlFileData of src/include/catalog/pg_control.h; up to
// version 1700 the CRC stands at 288, from 1800 on at 292, after
// default_char_signedness. A later version is read as 1800 is, provided that
// its checksum agrees.
func ParseControl(b []byte) (Control, error) {
	le := binary.LittleEndian
	if len(b) < 296 {
		return Control{}, fmt.Errorf("parse control file: %w: %d bytes, want %d", ErrControl, len(b), ControlSize)
	}
	c := Control{ControlVersion: le.Uint32(b[8:])}
	crcAt := 292
	switch v := c.ControlVersion; {
	case v < 1300:
		return Control{}, fmt.Errorf("parse control file: %w: version %d (PostgreSQL 13 and later are supported)", ErrControl, v)
	case v < 1800:
		crcAt = 288
	}
	if want, got := le.Uint32(b[crcAt:]), crc32.Checksum(b[:crcAt], crc32.MakeTable(crc32.Castagnoli)); want != got {
		return Control{}, fmt.Errorf("parse control file: %w: version %d, checksum %08x, want %08x", ErrControl, c.ControlVersion, got, want)
	}
	lsn := func(at int) pg.LSN { return pg.LSN(le.Uint64(b[at:])) }
	when := func(at int) time.Time { return time.Unix(int64(le.Uint64(b[at:])), 0).UTC() }
	c.SystemID = pg.SystemID(le.Uint64(b))
	c.CatalogVersion = le.Uint32(b[12:])
	c.State = State(le.Uint32(b[16:]))
	c.Modified = when(24)
	c.Checkpoint, c.Redo = lsn(32), lsn(40)
	c.Timeline, c.PrevTimeline = pg.Timeline(le.Uint32(b[48:])), pg.Timeline(le.Uint32(b[52:]))
	c.CheckpointTime = when(104)
	c.MinRecovery, c.MinRecoveryTimeline = lsn(136), pg.Timeline(le.Uint32(b[144:]))
	c.BackupStart, c.BackupEnd = lsn(152), lsn(160)
	c.BlockSize, c.SegmentBlocks, c.WALBlockSize = le.Uint32(b[216:]), le.Uint32(b[220:]), le.Uint32(b[224:])
	c.SegmentSize = pg.SegmentSize(le.Uint32(b[228:]))
	c.DataChecksums = le.Uint32(b[252:]) != 0
	if err := c.SegmentSize.Validate(); err != nil {
		return Control{}, fmt.Errorf("parse control file: %w: %w", ErrControl, err)
	}
	if c.SystemID == 0 || c.Timeline == 0 {
		return Control{}, fmt.Errorf("parse control file: %w: system identifier %d, timeline %d", ErrControl, c.SystemID, c.Timeline)
	}
	return c, nil
}

// ReadControl reads root's control file; raw are the bytes that were checked,
// which is what a backup should store. A running server may be writing the
// file at this moment, and not every file system hides that (PostgreSQL's own
// tools retry since 2023): a wrong checksum is read again some times.
func ReadControl(ctx context.Context, root string) (c Control, raw []byte, err error) {
	const tries, pause = 10, 20 * time.Millisecond
	path := filepath.Join(root, "global", "pg_control")
	for try := 1; ; try++ {
		if raw, err = readAtMost(path, ControlSize); err != nil {
			return Control{}, nil, fmt.Errorf("read control file: %w", hint(err))
		}
		if c, err = ParseControl(raw); err == nil && len(raw) != ControlSize {
			err = fmt.Errorf("%w: %d bytes, want %d", ErrControl, len(raw), ControlSize)
		}
		if err == nil {
			return c, raw, nil
		}
		if try == tries {
			return Control{}, nil, fmt.Errorf("read control file %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			return Control{}, nil, fmt.Errorf("read control file %s: %w", path, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

func readAtMost(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return b, err
}
