package pgconn

import (
	"context"
	"fmt"

	"github.com/walherd/walherd/engine/pg"
)

// Position is where a server is in its WAL.
type Position struct {
	Timeline pg.Timeline
	// LSN is the end of what a primary has written, or of what a standby has
	// received or replayed.
	LSN pg.LSN
	// SegmentSize of its WAL.
	SegmentSize pg.SegmentSize
}

// The order of the functions' answers does not matter much: the segment before
// the position is finished by any of them.
const positionQuery = `
SELECT CASE WHEN pg_is_in_recovery()
            THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
            ELSE pg_current_wal_lsn() END::text,
       (SELECT bytes_per_wal_segment FROM pg_control_init())`

// Position asks the server where it is.
func (c *Conn) Position(ctx context.Context) (Position, error) {
	release, err := c.acquire(ctx)
	if err != nil {
		return Position{}, fmt.Errorf("read WAL position: %w", err)
	}
	defer release()
	var p Position
	if p.Timeline, err = c.timeline(ctx); err != nil {
		return Position{}, err
	}
	var lsn string
	var size int64
	if err := c.conn.QueryRow(ctx, positionQuery).Scan(&lsn, &size); err != nil {
		return Position{}, explain("read WAL position", err)
	}
	if p.LSN, err = pg.ParseLSN(lsn); err != nil {
		return Position{}, fmt.Errorf("read WAL position: %w", err)
	}
	p.SegmentSize = pg.SegmentSize(size)
	return p, nil
}
