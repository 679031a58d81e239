package pgconn_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/producer/pgconn"
	"github.com/walherd/walherd/producer/pgtest"
)

func uitoa(n uint64) string { return strconv.FormatUint(n, 10) }

func TestBackupOfPrimary(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t, pgtest.WithArchiveCommand("true"))
	spc := filepath.Join(pgt.Dir(), "spc")
	pgt.Run("mkdir", spc)
	pgt.SQL("CREATE TABLESPACE aside LOCATION '" + spc + "'")
	c := connect(t, pgt.ConnString())
	start, err := c.StartBackup(t.Context(), "my label", true)
	if err != nil {
		t.Fatal(err)
	}
	if want := pgt.SQL("SELECT pg_walfile_name('" + start.LSN.String() + "')"); start.Segment.String() != want || start.InRecovery || start.Timeline != 1 {
		t.Errorf("got %+v, want segment %s", start, want)
	}
	stop, err := c.StopBackup(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if stop.LSN <= start.LSN || stop.Timeline != 1 || stop.Segment != start.Segment {
		t.Errorf("start %+v, stop %+v", start, stop)
	}
	from := "primary"
	if pgt.Major() < 14 {
		from = "master"
	}
	for _, line := range []string{
		"START WAL LOCATION: " + start.LSN.String() + " (file " + start.Segment.String() + ")\n",
		"LABEL: my label\n", "START TIMELINE: 1\n", "BACKUP FROM: " + from + "\n",
	} {
		if !strings.Contains(stop.Label, line) {
			t.Errorf("label %q lacks %q", stop.Label, line)
		}
	}
	if !strings.HasSuffix(strings.TrimSpace(stop.TablespaceMap), " "+spc) {
		t.Errorf("tablespace map %q lacks %s", stop.TablespaceMap, spc)
	}
	if err := c.ArchiveWait(t.Context(), pgt.DataDir(), stop); err != nil {
		t.Fatal(err)
	}
	// The server made a file of exactly this name.
	if _, err := os.Stat(filepath.Join(pgt.WALDir(), stop.HistoryFile)); err != nil {
		t.Errorf("history file: %v", err)
	}
	if kind, seg := pg.ClassifyWALFile(stop.HistoryFile); kind != pg.BackupFile || seg != start.Segment {
		t.Errorf("history file %s: kind %d, segment %s", stop.HistoryFile, kind, seg)
	}
	// One session can take one backup after another.
	if _, err := c.StartBackup(t.Context(), "again", true); err != nil {
		t.Error(err)
	}
	if _, err := c.StopBackup(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if _, err := c.StopBackup(t.Context(), 0); !errors.Is(err, pgconn.ErrNoBackup) {
		t.Errorf("stop without start: got %v", err)
	}
}

func TestBackupOfSmallSegments(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t, pgtest.WithSegmentSize(1))
	c := connect(t, pgt.ConnString())
	// Some way into the WAL, names with 1 MiB segments differ from those
	// with 16 MiB.
	pgt.SQL("CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 9000)")
	start, err := c.StartBackup(t.Context(), "small", true)
	if err != nil {
		t.Fatal(err)
	}
	stop, err := c.StopBackup(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(stop.Label, "(file "+start.Segment.String()+")") {
		t.Errorf("segment %s is not that of the label %q", start.Segment, stop.Label)
	}
	if start.Segment.Seg < 16 {
		t.Errorf("segment %s: the test wants one a 16 MiB cluster would name otherwise", start.Segment)
	}
}

func TestBackupOfStandby(t *testing.T) {
	t.Parallel()
	primary := pgtest.New(t)
	standby := primary.NewStandby()
	primary.SQL("CREATE TABLE t AS SELECT generate_series(1, 1000) i")
	primary.SQL("CHECKPOINT")
	primary.CatchUp(standby)
	c := connect(t, standby.ConnString())
	info, err := c.ServerInfo(t.Context())
	if err != nil || !info.InRecovery {
		t.Fatalf("standby: %+v, %v", info, err)
	}
	start, err := c.StartBackup(t.Context(), "standby", true)
	if err != nil {
		t.Fatal(err)
	}
	if !start.InRecovery || start.Segment != (start.LSN-1).Segment(1, info.SegmentSize) {
		t.Errorf("got %+v", start)
	}
	stop, err := c.StopBackup(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	// The label that is made where the server gives none.
	started := func(label string) string {
		_, at, _ := strings.Cut(label, "START TIME: ")
		at, _, _ = strings.Cut(at, "\n")
		return at
	}
	if got := start.Label("standby", time.Now()); strings.Replace(got, started(got), started(stop.Label), 1) != stop.Label {
		t.Errorf("made the label %q, the server %q", got, stop.Label)
	}
	if stop.Timeline != 1 || stop.HistoryFile != "" || !strings.Contains(stop.Label, "BACKUP FROM: standby\n") {
		t.Errorf("got %+v", stop)
	}
	// This standby does not archive: there is nothing to wait for.
	if err := c.ArchiveWait(t.Context(), standby.DataDir(), stop); err != nil {
		t.Error(err)
	}

	// A promotion during the backup is the server's error, and the timeline
	// shows it before that.
	if _, err := c.StartBackup(t.Context(), "torn", true); err != nil {
		t.Fatal(err)
	}
	if tl, err := c.Timeline(t.Context()); err != nil || tl != 1 {
		t.Errorf("timeline before the promotion: %d, %v", tl, err)
	}
	standby.Promote()
	if tl, err := c.Timeline(t.Context()); err != nil || tl != 2 {
		t.Errorf("timeline after the promotion: %d, %v", tl, err)
	}
	if _, err := c.StopBackup(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "promoted") {
		t.Errorf("stop after the promotion: got %v", err)
	}

	// The promoted server is a primary on the new timeline.
	p := connect(t, standby.ConnString())
	start, err = p.StartBackup(t.Context(), "promoted", true)
	if err != nil {
		t.Fatal(err)
	}
	stop, err = p.StopBackup(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if start.InRecovery || start.Segment.Timeline != 2 || stop.Timeline != 2 || stop.Segment.Timeline != 2 {
		t.Errorf("start %+v, stop %+v", start, stop)
	}
}

func TestArchiveWaitOnAnArchivingStandby(t *testing.T) {
	t.Parallel()
	primary := pgtest.New(t)
	standby := primary.NewStandby(pgtest.WithConf("archive_mode = always", "archive_command = 'true'"))
	// A standby archives what it has received itself, not the segments it was
	// made with: move on from those, and have a restart point behind them.
	primary.SQL("SELECT pg_switch_wal(); CREATE TABLE first (); CHECKPOINT")
	primary.CatchUp(standby)
	standby.SQL("CHECKPOINT")
	c := connect(t, standby.ConnString())
	if _, err := c.StartBackup(t.Context(), "standby", true); err != nil {
		t.Fatal(err)
	}
	stop, err := c.StopBackup(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.ArchiveWait(t.Context(), standby.DataDir(), stop) }()
	// Its segment is archived only when the primary has moved on.
	primary.SQL("SELECT pg_switch_wal(); CREATE TABLE t (); SELECT pg_switch_wal()")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got, err := standby.RunErr("ls", filepath.Join(standby.WALDir(), "archive_status", stop.Segment.String()+".done")); err != nil {
		t.Errorf("%s, %v", got, err)
	}
}

func TestArchiveWaitOnABrokenArchive(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t, pgtest.WithArchiveCommand("test -e ../mended"))
	c := connect(t, pgt.ConnString())
	if _, err := c.StartBackup(t.Context(), "l", true); err != nil {
		t.Fatal(err)
	}
	stop, err := c.StopBackup(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	pgt.Await("SELECT failed_count > 0 FROM pg_stat_archiver", "t")
	late := errors.New("too late")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, late)
	defer cancel()
	err = c.ArchiveWait(ctx, pgt.DataDir(), stop)
	failed := pgt.SQL("SELECT last_failed_wal FROM pg_stat_archiver")
	if !errors.Is(err, late) || !strings.Contains(err.Error(), stop.Segment.String()) || !strings.Contains(err.Error(), "last on "+failed) {
		t.Errorf("got %v, want the cause, segment %s and the failed %s", err, stop.Segment, failed)
	}
	if err := c.ArchiveWait(t.Context(), t.TempDir(), stop); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("in another directory: got %v", err)
	}
	pgt.Run("touch", "mended")
	// A failed archiver pauses for up to a minute; a restart ends the pause.
	pgt.Restart(pgtest.Fast)
	again := connect(t, pgt.ConnString())
	if err := again.ArchiveWait(t.Context(), pgt.DataDir(), stop); err != nil {
		t.Error(err)
	}
	for _, name := range []string{stop.Segment.String(), stop.HistoryFile} {
		if _, err := os.Stat(filepath.Join(pgt.WALDir(), "archive_status", name+".done")); err != nil {
			t.Errorf("returned before the archiver was done: %v", err)
		}
	}
}

// A label longer than the server takes is its error; the session stays whole.
func TestStartBackupRefused(t *testing.T) {
	t.Parallel()
	c := connect(t, pgtest.New(t).ConnString())
	if _, err := c.StartBackup(t.Context(), strings.Repeat("x", 2000), true); err == nil {
		t.Error("started")
	}
	if _, err := c.StopBackup(t.Context(), 0); !errors.Is(err, pgconn.ErrNoBackup) {
		t.Errorf("got %v", err)
	}
	if _, err := c.StartBackup(t.Context(), "short", true); err != nil {
		t.Error(err)
	}
}

func TestCloseEndsBackupMode(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t)
	c, err := pgconn.Connect(t.Context(), pgconn.Options{ConnString: pgt.ConnString()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.StartBackup(t.Context(), "l", true); err != nil {
		t.Fatal(err)
	}
	// Also with a context that has ended: that is when backups are abandoned.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	pgt.Await("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'wal-g'", "0")
	if _, err := c.StopBackup(t.Context(), 0); err == nil {
		t.Error("a closed session stopped a backup")
	}
}

func TestAliveCheckLeavesAHealthySessionAlone(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t)
	c := connect(t, pgt.ConnString())
	if _, err := c.StartBackup(t.Context(), "l", true); err != nil {
		t.Fatal(err)
	}
	ctx, stop := c.AliveCheck(t.Context(), time.Second)
	// Other calls use the session at the same time.
	for range 200 {
		if _, err := c.Timeline(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := context.Cause(ctx); err != nil {
		t.Errorf("a healthy session: %v", err)
	}
	stop()
	stop()
	if ctx.Err() == nil {
		t.Error("the context outlives the check")
	}
	if _, err := c.StopBackup(t.Context(), 0); err != nil {
		t.Errorf("after the check: %v", err)
	}
}

func TestAliveCheckOff(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t)
	c := connect(t, pgt.ConnString())
	ctx, stop := c.AliveCheck(t.Context(), 0)
	pgt.Stop(pgtest.Immediate)
	if ctx.Err() != nil {
		t.Errorf("got %v", context.Cause(ctx))
	}
	stop()
}

func TestAliveCheckNoticesARestart(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t)
	c := connect(t, pgt.ConnString())
	ctx, stop := c.AliveCheck(t.Context(), 50*time.Millisecond)
	defer stop()
	pgt.Restart(pgtest.Fast)
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, pgconn.ErrSessionLost) {
		t.Errorf("got %v", err)
	}
}

// A server that hangs keeps the connection open: only the limit notices.
func TestAliveCheckNoticesAHang(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t)
	c := connect(t, pgt.ConnString())
	backend, err := strconv.Atoi(pgt.SQL("SELECT pid FROM pg_stat_activity WHERE application_name = 'wal-g'"))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(backend, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(backend, syscall.SIGCONT)
	ctx, stop := c.AliveCheck(t.Context(), 50*time.Millisecond)
	defer stop()
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, pgconn.ErrSessionLost) {
		t.Errorf("got %v", err)
	}
}

// BenchmarkBackup is an empty backup from start to archived: what the server
// and the wait cost.
func BenchmarkBackup(b *testing.B) {
	pgt := pgtest.New(b, pgtest.WithArchiveCommand("true"))
	c, err := pgconn.Connect(b.Context(), pgconn.Options{ConnString: pgt.ConnString()})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close(context.Background())
	for b.Loop() {
		if _, err := c.StartBackup(b.Context(), "bench", true); err != nil {
			b.Fatal(err)
		}
		stop, err := c.StopBackup(b.Context(), 0)
		if err != nil {
			b.Fatal(err)
		}
		if err := c.ArchiveWait(b.Context(), pgt.DataDir(), stop); err != nil {
			b.Fatal(err)
		}
	}
}

// TestStartsAreUnique: the segment that a backup starts in is its name, and no
// two sessions get the same at a time.
func TestStartsAreUnique(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t, pgtest.WithSegmentSize(1))
	const sessions = 5
	var conns [sessions]*pgconn.Conn
	for i := range conns {
		conns[i] = connect(t, pgt.ConnString())
	}
	var starts [sessions]pgconn.Start
	for range 4 {
		g, ctx := errgroup.WithContext(t.Context())
		for i, c := range conns {
			g.Go(func() (err error) {
				starts[i], err = c.StartBackup(ctx, "at once", true)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for i, s := range starts {
			if seen[s.Segment.String()] {
				t.Fatalf("two backups start in %s", s.Segment)
			}
			seen[s.Segment.String()] = true
			if _, err := conns[i].StopBackup(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
		}
	}

	standby := pgt.NewStandby()
	pgt.SQL("CHECKPOINT")
	pgt.CatchUp(standby)
	first, second := connect(t, standby.ConnString()), connect(t, standby.ConnString())
	if _, err := first.StartBackup(t.Context(), "first", true); err != nil {
		t.Fatal(err)
	}
	if _, err := second.StartBackup(t.Context(), "second", true); !errors.Is(err, pgconn.ErrSameStart) {
		t.Fatalf("a second backup from one restart point: %v", err)
	}
	if err := first.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	third := connect(t, standby.ConnString())
	standby.Await("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", "0")
	if _, err := third.StartBackup(t.Context(), "third", true); err != nil {
		t.Fatal(err)
	}
}
