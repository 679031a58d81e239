package pgtest

import (
	"fmt"
	"os"
	"path/filepath"
)

// Copy makes dir, which must not exist and whose parent the server's user must
// be able to write to, a copy of the running cluster: with pg_basebackup, or,
// where the installation has none (the one of an older version refuses a
// newer server), by stopping c for the time of a copy, which breaks open
// sessions.
func (c *Cluster) Copy(dir string) {
	c.t.Helper()
	if executable(filepath.Join(c.srv.in.bin, "pg_basebackup")) {
		c.Run("pg_basebackup", "--pgdata="+dir, "--checkpoint=fast", "--wal-method=stream", "--no-sync")
		return
	}
	c.Stop(Fast)
	err := copyTree(c.srv.own, c.DataDir(), dir)
	c.Start()
	if err != nil {
		c.t.Fatalf("copy cluster: %v", err)
	}
}

// NewStandby makes a streaming standby of c with Copy and starts it. It runs
// the same binaries.
//
// A standby shares the primary's postgresql.conf; WithConf's lines are added.
func (c *Cluster) NewStandby(opts ...Option) *Cluster {
	c.t.Helper()
	s := prepare(c.t, append([]Option{WithBinDir(c.srv.in.bin)}, opts...))
	c.Copy(s.DataDir())
	s.AppendConf(append([]string{
		"primary_conninfo = " + quoteConf(c.ConnString()),
		"recovery_target_timeline = 'latest'",
	}, s.opt.conf...)...)
	s.signalFile("standby.signal")
	if !s.opt.stopped {
		s.Start()
	}
	return s
}

// Recover makes the stopped cluster recover from an archive at its next
// start: it sets restore_command and writes recovery.signal. Lines for a
// recovery target are added to postgresql.conf.
func (c *Cluster) Recover(restoreCommand string, lines ...string) {
	c.t.Helper()
	c.AppendConf(append([]string{"restore_command = " + quoteConf(restoreCommand)}, lines...)...)
	c.signalFile("recovery.signal")
}

// Promote ends a standby's or a paused server's recovery and waits until it
// is a primary.
func (c *Cluster) Promote() {
	c.t.Helper()
	if got := c.SQL("SELECT pg_promote(true, 60)"); got != "t" {
		c.t.Fatalf("promote: pg_promote returned %q", got)
	}
}

// CatchUp waits until the standby s has replayed all that c has written.
func (c *Cluster) CatchUp(s *Cluster) {
	c.t.Helper()
	lsn := c.SQL("SELECT pg_current_wal_flush_lsn()")
	s.Await(fmt.Sprintf("SELECT pg_last_wal_replay_lsn() >= '%s'", lsn), "t")
}

func (c *Cluster) signalFile(name string) {
	c.t.Helper()
	path := filepath.Join(c.DataDir(), name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		c.t.Fatalf("write %s: %v", name, err)
	}
	if err := os.Lchown(path, c.srv.own.uid, c.srv.own.gid); err != nil {
		c.t.Fatalf("give %s to the server's user: %v", name, err)
	}
}
