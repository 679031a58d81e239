package pgconn_test

import (
	"testing"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/producer/pgtest"
)

// TestPosition: a primary tells the end of its WAL, a standby that of what it
// has, and after its promotion the new timeline.
func TestPosition(t *testing.T) {
	t.Parallel()
	primary := pgtest.New(t, pgtest.WithSegmentSize(1))
	standby := primary.NewStandby()
	primary.SQL("CREATE TABLE t (x int)")
	primary.SQL("SELECT pg_switch_wal()")
	primary.CatchUp(standby)
	want, err := pg.ParseLSN(primary.SQL("SELECT pg_current_wal_lsn()"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*pgtest.Cluster{"primary": primary, "standby": standby} {
		// The background writer may write a little at any time.
		at, err := connect(t, c.ConnString()).Position(t.Context())
		if err != nil || at.Timeline != 1 || at.SegmentSize != 1<<20 || at.LSN < want || at.LSN > want+0x10000 {
			t.Errorf("%s: %+v, %v; want %s or a little more", name, at, err, want)
		}
	}
	standby.Promote()
	if at, err := connect(t, standby.ConnString()).Position(t.Context()); err != nil || at.Timeline != 2 || at.LSN < want {
		t.Errorf("promoted: %+v, %v", at, err)
	}
}
