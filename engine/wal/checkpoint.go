package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/walherd/walherd/engine/pg"
)

// Checkpoint is a checkpoint record.
type Checkpoint struct {
	// At is where the record is, Redo where a recovery from it begins.
	At, Redo pg.LSN
}

// The kinds of checkpoint record: src/include/catalog/pg_control.h.
const (
	opCheckpointShutdown = 0x00
	opCheckpointOnline   = 0x10
)

// LastCheckpoint reads WAL as NewReader does and returns the last checkpoint
// record that begins before a position; found is false if there is none.
// Damage behind that position is not seen.
func LastCheckpoint(src io.Reader, before pg.LSN) (c Checkpoint, found bool, err error) {
	r := NewReader(src, ReaderOptions{To: before})
	for {
		rec, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return c, found, nil
		case err != nil:
			return c, found, fmt.Errorf("find a checkpoint before %s: %w", before, err)
		case rec.Manager != XLog || rec.Op() != opCheckpointShutdown && rec.Op() != opCheckpointOnline:
			continue
		case len(rec.Data) < 8:
			return c, found, fmt.Errorf("find a checkpoint before %s: %w: the one at %s has %d bytes", before, ErrRecord, rec.Start, len(rec.Data))
		}
		c, found = Checkpoint{At: rec.Start, Redo: pg.LSN(binary.LittleEndian.Uint64(rec.Data))}, true
	}
}
