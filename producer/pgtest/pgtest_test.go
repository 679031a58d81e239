package pgtest

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestClusterAnswers(t *testing.T) {
	t.Parallel()
	c := New(t, WithConf("work_mem = 7MB"))
	if got := c.SQL("SHOW work_mem; SHOW data_checksums; SHOW listen_addresses; SHOW fsync"); got != "7MB\non\n\noff" {
		t.Errorf("settings: got %q", got)
	}
	if got := c.SQL("SHOW server_version_num"); !strings.HasPrefix(got, strconv.Itoa(c.Major())) {
		t.Errorf("server_version_num %s, Major %d", got, c.Major())
	}
	if got := c.Run("sh", "-c", `echo "$PGHOST $PGPORT $PGUSER $PGDATABASE $PGDATA"; pwd; id -u`); got !=
		strings.Join([]string{c.SocketDir(), strconv.Itoa(c.Port()), "postgres", "postgres", c.DataDir()}, " ")+"\n"+c.Dir()+"\n"+strconv.Itoa(c.srv.own.uid) {
		t.Errorf("environment of Run: got %q", got)
	}
}

func TestKinds(t *testing.T) {
	t.Parallel()
	c := New(t, WithSegmentSize(1), WithoutChecksums(), WithFsync())
	if got := c.SQL("SHOW wal_segment_size; SHOW data_checksums; SHOW fsync"); got != "1MB\noff\non" {
		t.Errorf("got %q", got)
	}
}

func TestSystemIdentifier(t *testing.T) {
	t.Parallel()
	const q = "SELECT system_identifier FROM pg_control_system()"
	a, b, own := New(t).SQL(q), New(t).SQL(q), New(t, WithOwnSystemID()).SQL(q)
	if a != b {
		t.Errorf("two copies of one template: %s and %s", a, b)
	}
	if a == own {
		t.Errorf("WithOwnSystemID: shares %s with the template", a)
	}
}

// A crash keeps what was committed although fsync is off: the processes die,
// the kernel does not.
func TestStopAndCrash(t *testing.T) {
	t.Parallel()
	c := New(t)
	c.SQL("CREATE TABLE t (i int)")
	want := 0
	for _, end := range []func(){
		func() { c.Restart(Fast) },
		func() { c.Restart(Immediate) },
		func() { c.Kill(); c.Start() },
	} {
		c.SQL("INSERT INTO t VALUES (1)")
		want++
		before := c.PID()
		end()
		if got := c.SQL("SELECT count(*) FROM t"); got != strconv.Itoa(want) {
			t.Errorf("rows after a restart: got %s, want %d", got, want)
		}
		if c.PID() == before || c.PID() == 0 {
			t.Errorf("PID %d before, %d after a restart", before, c.PID())
		}
	}
	c.Stop(Fast)
	c.Stop(Fast)
	if c.PID() != 0 {
		t.Errorf("PID %d of a stopped server", c.PID())
	}
	if _, err := c.SQLErr("postgres", "SELECT 1"); err == nil {
		t.Error("a stopped server answers")
	}
}

func TestKillLeavesNoProcess(t *testing.T) {
	t.Parallel()
	c := New(t)
	kids := children(c.PID())
	if len(kids) == 0 {
		t.Fatal("no child process of a running postmaster found")
	}
	c.Kill()
	for _, k := range kids {
		if err := syscall.Kill(k, 0); err == nil && !zombie(k) {
			t.Errorf("process %d is still there", k)
		}
	}
}

func TestArchiveCommand(t *testing.T) {
	t.Parallel()
	c := New(t, WithArchiveCommand(`cp %p "../it's.%f" && mv "../it's.%f" ../kept.%f`))
	seg := c.SQL("SELECT pg_walfile_name(pg_current_wal_lsn())")
	c.SQL("CREATE TABLE t (i int); SELECT pg_switch_wal()")
	c.Await("SELECT last_archived_wal FROM pg_stat_archiver", seg)
	if _, err := os.Stat(filepath.Join(c.Dir(), "kept."+seg)); err != nil {
		t.Error(err)
	}
}

func TestStandbyFollowsAndIsPromoted(t *testing.T) {
	t.Parallel()
	p := New(t)
	p.SQL("CREATE TABLE t (i int)")
	s := p.NewStandby()
	p.SQL("INSERT INTO t VALUES (42)")
	p.CatchUp(s)
	if got := s.SQL("SELECT pg_is_in_recovery(), (SELECT i FROM t)"); got != "t|42" {
		t.Errorf("standby: got %q", got)
	}
	s.Promote()
	s.SQL("INSERT INTO t VALUES (43)")
	if got := s.SQL("SELECT pg_is_in_recovery(), count(*) FROM t"); got != "f|2" {
		t.Errorf("promoted: got %q", got)
	}
}

// Open starts a directory that was copied by whoever runs the test, and
// Recover makes it replay from an archive to a target.
func TestOpenRestoredDirectory(t *testing.T) {
	t.Parallel()
	c := New(t, WithArchiveCommand("cp %p ../archive/%f"))
	c.Run("mkdir", "archive")
	c.SQL("CREATE TABLE t (i int)")
	c.Copy(filepath.Join(c.Dir(), "copy"))
	c.SQL("INSERT INTO t VALUES (1); SELECT pg_create_restore_point('here')")
	c.SQL("INSERT INTO t VALUES (2); SELECT pg_switch_wal()")
	c.Await("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'", "0")

	dir := filepath.Join(TempDir(t), "restored")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(c.Dir(), "copy"))); err != nil {
		t.Fatal(err)
	}
	r := Open(t, dir, Stopped(), WithConf("archive_mode = off"))
	r.Recover("cp "+filepath.Join(c.Dir(), "archive")+"/%f %p", "recovery_target_name = 'here'", "recovery_target_action = promote")
	r.Start()
	r.Await("SELECT pg_is_in_recovery()", "f")
	if got := r.SQL("SELECT i FROM t"); got != "1" {
		t.Errorf("rows at the restore point: got %q, want 1", got)
	}
}

func TestStartErrTellsWhy(t *testing.T) {
	t.Parallel()
	c := New(t, Stopped(), WithConf("no_such_setting = 1"))
	err := c.StartErr()
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("got %v, want the server's own reason", err)
	}
	if err := New(t).StartErr(); err == nil {
		t.Error("a running server was started again")
	}
}

func TestRunErrTellsWhy(t *testing.T) {
	t.Parallel()
	c := New(t)
	if _, err := c.SQLErr("nowhere", "SELECT 1"); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("got %v, want the name of the database", err)
	}
	if _, err := c.RunErr("no-such-program"); err == nil {
		t.Error("a program that does not exist ran")
	}
}

func TestMissingPostgreSQLNamesTheRemedy(t *testing.T) {
	t.Parallel()
	err := Do("missing", nil, func(tb TB) error {
		New(tb, WithBinDir(t.TempDir()))
		t.Error("New returned")
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "make deps") {
		t.Errorf("got %v, want a hint to make deps", err)
	}
}

func TestDo(t *testing.T) {
	t.Parallel()
	var dir string
	if err := Do("program", t.Logf, func(tb TB) error {
		c := New(tb)
		dir = c.Dir()
		if got := c.SQL("SELECT 1"); got != "1" {
			t.Errorf("got %q", got)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s after Do: %v, want it removed", dir, err)
	}
	boom := errors.New("boom")
	if err := Do("program", nil, func(TB) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("got %v, want the function's error", err)
	}
}

func TestParseMajor(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int{
		"postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n": 15,
		"postgres (PostgreSQL) 18beta1":                          18,
	} {
		if got, err := parseMajor(in); err != nil || got != want {
			t.Errorf("parseMajor(%q) = %d, %v", in, got, err)
		}
	}
	if _, err := parseMajor("mysqld 8"); err == nil {
		t.Error("parseMajor takes another program's version")
	}
}

func TestQuoteConf(t *testing.T) {
	t.Parallel()
	if got := quoteConf(`it's \n`); got != `'it''s \\n'` {
		t.Errorf("got %s", got)
	}
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		if err := Do("bench", nil, func(tb TB) error { New(tb); return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNewOwnSystemID(b *testing.B) {
	for b.Loop() {
		if err := Do("bench", nil, func(tb TB) error { New(tb, WithOwnSystemID()); return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
