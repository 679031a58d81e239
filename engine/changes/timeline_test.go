package changes_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/walherd/walherd/engine/changes"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
	"github.com/walherd/walherd/producer/pgtest"
)

// TestMapOverATimelineSwitch: segments of the old primary up to the promotion,
// then those of the new, as an archive has them.
func TestMapOverATimelineSwitch(t *testing.T) {
	t.Parallel()
	primary := pgtest.New(t, pgtest.WithSegmentSize(1), pgtest.WithConf("autovacuum = off"))
	primary.SQL("CREATE TABLE t AS SELECT g AS id, repeat('x', 500) AS v FROM generate_series(1, 1000) g; VACUUM FREEZE t")
	standby := primary.NewStandby()
	lsn := func(c *pgtest.Cluster, query string) pg.LSN {
		l, err := pg.ParseLSN(c.SQL(query))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	const size = 1 << 20
	from := lsn(primary, "SELECT pg_current_wal_insert_lsn()")
	primary.SQL("UPDATE t SET v = 'old' WHERE id = 100; SELECT pg_switch_wal() IS NULL")
	primary.CatchUp(standby)
	file := primary.SQL("SELECT pg_relation_filepath('t')")
	standby.Promote()
	// What the old primary writes now is on an abandoned branch.
	primary.SQL("UPDATE t SET v = 'lost' WHERE id = 500; SELECT pg_switch_wal() IS NULL")
	standby.SQL("UPDATE t SET v = 'new' WHERE id = 900; CHECKPOINT")
	to := lsn(standby, "SELECT pg_current_wal_insert_lsn()")
	raw, err := os.ReadFile(filepath.Join(standby.WALDir(), "00000002.history"))
	if err != nil {
		t.Fatal(err)
	}
	history, err := wal.ParseHistory(2, raw)
	if err != nil {
		t.Fatal(err)
	}
	branch := history.Switches[0].LSN

	scan := func(c *pgtest.Cluster, name pg.SegmentName) *changes.Map {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(c.WALDir(), name.String()))
		if err != nil {
			t.Fatal(err)
		}
		opt := changes.ScanOptions{Timeline: name.Timeline, From: max(from, name.Start(size))}
		if name.Next(size).Start(size) > to {
			opt.To = to
		}
		m, err := changes.Scan(bytes.NewReader(b), opt)
		if err != nil {
			t.Fatal(err)
		}
		return stored(t, m)
	}
	var all *changes.Map
	add := func(m *changes.Map) {
		if all == nil {
			all = m
		} else if err := all.Merge(m); err != nil {
			t.Fatal(err)
		}
	}
	seg := from.Segment(1, size)
	for ; seg.Next(size).Start(size) <= branch; seg = seg.Next(size) {
		add(scan(primary, seg))
	}
	old := stored(t, all)
	if err := old.Merge(scan(primary, seg)); err != nil {
		t.Fatal(err)
	}
	if err := old.Covers(from, branch+8, history); !errors.Is(err, changes.ErrGap) && !errors.Is(err, changes.ErrTimeline) {
		t.Errorf("the old timeline's WAL serves after the branch: %v", err)
	}
	if err := all.Covers(from, to, history); !errors.Is(err, changes.ErrGap) {
		t.Errorf("without the new timeline: %v", err)
	}
	for seg = branch.Segment(2, size); seg.Start(size) < to; seg = seg.Next(size) {
		add(scan(standby, seg))
	}
	if err := all.Covers(from, to, history); err != nil {
		t.Fatal(err)
	}
	f, err := wal.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	list, whole := all.Changed(f, 100)
	// Some 15 rows a page: rows 100 and 900, and the page new versions go to.
	if got := slices.Collect(list); whole || !slices.Contains(got, 6) || !slices.Contains(got, 59) || slices.Contains(got, 33) {
		t.Errorf("changed: %v, whole %v", got, whole)
	}
}
