package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Cluster is one PostgreSQL cluster. Its methods end the test on failure;
// those that are expected to fail have a twin that returns the error. It may
// be used from several goroutines, but Start, Stop, Restart and Kill are the
// test's own to order.
type Cluster struct {
	t    TB
	opt  options
	srv  *server
	base string

	session session
}

// New makes a cluster and starts it: data checksums on, trust authentication,
// locale C, superuser postgres, a socket and no TCP port, fsync off. It is
// stopped and removed at the end of the test.
func New(t TB, opts ...Option) *Cluster {
	t.Helper()
	c := prepare(t, opts)
	create := cloneTemplate
	if c.opt.ownSystemID {
		create = initdb
	}
	if err := create(c.srv.in, c.srv.own, c.opt, c.DataDir()); err != nil {
		t.Fatalf("make PostgreSQL cluster: %v", err)
	}
	c.configure()
	if !c.opt.stopped {
		c.Start()
	}
	return c
}

// Open starts the data directory dir, which somebody else has made: what a
// test has restored. The directory is given to the server's user, WithConf's
// lines are appended to its postgresql.conf. It is stopped at the end of the
// test, and not removed. dir must be reachable for the server's user: see
// TempDir.
func Open(t TB, dir string, opts ...Option) *Cluster {
	t.Helper()
	c := prepare(t, opts)
	c.srv.data = dir
	if err := c.srv.own.take(dir); err != nil {
		t.Fatalf("give data directory to the server's user: %v", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatalf("close data directory to others: %v", err)
	}
	if err := c.srv.own.reachable(dir); err != nil {
		t.Fatalf("open data directory: %v", err)
	}
	c.AppendConf(c.opt.conf...)
	if !c.opt.stopped {
		c.Start()
	}
	return c
}

// prepare makes everything but the data directory.
func prepare(t TB, opts []Option) *Cluster {
	t.Helper()
	opt := collect(opts)
	in, err := findInstall(opt.binDir)
	if err != nil {
		t.Fatalf("find PostgreSQL: %v", err)
	}
	own, err := findOwner()
	if err != nil {
		t.Fatalf("find user for PostgreSQL: %v", err)
	}
	base := TempDir(t)
	// The path of a unix socket is limited to 107 bytes: a directory with a
	// short name of its own, whatever the test is called.
	sock, err := own.tempDir("/tmp", "pg-")
	if err != nil {
		t.Fatalf("make socket directory: %v", err)
	}
	c := &Cluster{t: t, opt: opt, base: base, srv: &server{
		in: in, own: own, sock: sock, listen: opt.listen,
		data:    filepath.Join(base, "data"),
		logPath: filepath.Join(base, "server.log"),
	}}
	t.Cleanup(func() {
		c.leave()
		if err := c.srv.stop(Immediate); err != nil {
			t.Logf("stop PostgreSQL: %v", err)
		}
		if t.Failed() {
			t.Logf("PostgreSQL's log of %s:\n%s", c.DataDir(), c.srv.logTail())
		}
		if err := os.RemoveAll(sock); err != nil {
			t.Logf("remove socket directory: %v", err)
		}
	})
	return c
}

// configure writes the settings of a new cluster.
func (c *Cluster) configure() {
	c.t.Helper()
	lines := []string{
		"# pgtest",
		"max_connections = 30",
		"shared_buffers = 32MB",
		"wal_level = replica",
		"max_wal_senders = 10",
		"hot_standby = on",
		// A standby on a loaded machine may connect after a checkpoint has
		// removed the segment it starts with, and then waits for ever.
		"wal_keep_size = 256MB",
		"log_line_prefix = '%m [%p] %q%u@%d/%a '",
	}
	if !c.opt.fsync {
		lines = append(lines, "fsync = off")
	}
	c.AppendConf(append(lines, c.opt.conf...)...)
	if c.opt.hba != nil {
		c.SetHBA(c.opt.hba...)
	}
}

// AppendConf appends lines to postgresql.conf. They count from the next
// start, or from Reload where PostgreSQL allows.
func (c *Cluster) AppendConf(lines ...string) {
	c.t.Helper()
	if len(lines) == 0 {
		return
	}
	f, err := os.OpenFile(filepath.Join(c.DataDir(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		c.t.Fatalf("configure PostgreSQL: %v", err)
	}
	_, err = f.WriteString("\n" + strings.Join(lines, "\n") + "\n")
	if err := errors.Join(err, f.Close()); err != nil {
		c.t.Fatalf("configure PostgreSQL: %v", err)
	}
}

// SetHBA replaces pg_hba.conf. It counts from the next start, or from Reload.
func (c *Cluster) SetHBA(lines ...string) {
	c.t.Helper()
	path := filepath.Join(c.DataDir(), "pg_hba.conf")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		c.t.Fatalf("write pg_hba.conf: %v", err)
	}
}

// Start starts the server and waits until it takes connections: a primary
// when it has recovered, a standby when it is consistent.
func (c *Cluster) Start() {
	c.t.Helper()
	if err := c.StartErr(); err != nil {
		c.t.Fatalf("%v", err)
	}
}

// StartErr is Start for a server that may refuse; the error holds the end of
// its log.
func (c *Cluster) StartErr() error { return c.srv.start() }

// Stop shuts the server down. Stopping a stopped server does nothing.
func (c *Cluster) Stop(mode StopMode) {
	c.t.Helper()
	c.leave()
	if err := c.srv.stop(mode); err != nil {
		c.t.Fatalf("%v", err)
	}
}

// Restart is Stop and Start.
func (c *Cluster) Restart(mode StopMode) {
	c.t.Helper()
	c.Stop(mode)
	c.Start()
}

// Kill ends all processes of the server with SIGKILL: a crash. Start recovers.
func (c *Cluster) Kill() {
	c.t.Helper()
	c.leave()
	if err := c.srv.kill(); err != nil {
		c.t.Fatalf("%v", err)
	}
}

// PID is the postmaster's process id, 0 when the server does not run.
func (c *Cluster) PID() int { return c.srv.pid() }

// Reload makes the server read its configuration files again.
func (c *Cluster) Reload() {
	c.t.Helper()
	c.SQL("SELECT pg_reload_conf()")
}

// DataDir is the data directory.
func (c *Cluster) DataDir() string { return c.srv.data }

// WALDir is the directory of the WAL segments.
func (c *Cluster) WALDir() string { return filepath.Join(c.DataDir(), "pg_wal") }

// Dir is a directory beside the data directory which the server's user owns,
// for archives, scripts, sockets. It is removed with the cluster.
func (c *Cluster) Dir() string { return c.base }

// SocketDir is what PGHOST is set to.
func (c *Cluster) SocketDir() string { return c.srv.sock }

// Port is what PGPORT is set to.
func (c *Cluster) Port() int { return port }

// Major is the server's major version.
func (c *Cluster) Major() int { return c.srv.in.major }

// Log is the end of the server's log.
func (c *Cluster) Log() string { return c.srv.logTail() }

// ConnString is a libpq connection string for the superuser and database
// postgres; append " dbname=..." to reach another.
func (c *Cluster) ConnString() string {
	return fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres sslmode=disable", c.srv.sock, port)
}

// Env is the libpq environment of the cluster, as "PGHOST=..." and so on.
func (c *Cluster) Env() []string {
	return []string{
		"PGHOST=" + c.srv.sock,
		"PGPORT=" + strconv.Itoa(port),
		"PGUSER=postgres",
		"PGDATABASE=postgres",
		"PGSSLMODE=disable",
		"PGDATA=" + c.DataDir(),
	}
}

// Command prepares a command that runs as the server's user with the
// cluster's environment, in Dir. A name without a slash is looked for among
// PostgreSQL's programs first, then in $PATH.
func (c *Cluster) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if !strings.Contains(name, "/") {
		if p, err := c.srv.in.client(name); err == nil {
			name = p
		}
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = c.base
	// HOME keeps a developer's ~/.psqlrc and ~/.pgpass out of the test.
	cmd.Env = append(append(cleanEnv(), "HOME="+c.base, "LC_ALL=C"), c.Env()...)
	c.srv.own.become(cmd)
	return cmd
}

// Run runs a command as Command does and returns its standard output without
// the last newline.
func (c *Cluster) Run(name string, args ...string) string {
	c.t.Helper()
	out, err := c.RunErr(name, args...)
	if err != nil {
		c.t.Fatalf("%v", err)
	}
	return out
}

// RunErr is Run for a command that may fail; the error holds its standard
// error output.
func (c *Cluster) RunErr(name string, args ...string) (string, error) {
	return c.run("", name, args...)
}

func (c *Cluster) run(stdin, name string, args ...string) (string, error) {
	cmd := c.Command(context.Background(), name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	text := strings.TrimSuffix(string(out), "\n")
	if err != nil {
		return text, fmt.Errorf("run %s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return text, nil
}

// SQL runs statements in database postgres through psql and returns the rows
// of the results: columns separated by "|", one row a line. Each statement is
// a transaction of its own.
func (c *Cluster) SQL(statements string) string {
	c.t.Helper()
	return c.SQLIn("postgres", statements)
}

// SQLIn is SQL in another database.
func (c *Cluster) SQLIn(database, statements string) string {
	c.t.Helper()
	out, err := c.SQLErr(database, statements)
	if err != nil {
		c.t.Fatalf("%v", err)
	}
	return out
}

// SQLErr is SQLIn for statements that may fail.
func (c *Cluster) SQLErr(database, statements string) (string, error) {
	if database == "postgres" && kept(statements) {
		if text, err, asked := c.ask(statements); asked {
			return text, err
		}
	}
	if strings.Contains(statements, reload) {
		defer c.leave()
	}
	return c.run(statements, "psql", psqlArgs(database)...)
}

// awaitLimit bounds Await.
const awaitLimit = 60 * time.Second

// Await repeats a query in database postgres until its result is want. It
// ends the test after a minute.
func (c *Cluster) Await(query, want string) {
	c.t.Helper()
	pause := pollEvery
	next := time.NewTimer(pause)
	defer next.Stop()
	deadline := time.Now().Add(awaitLimit)
	for {
		got, err := c.SQLErr("postgres", query)
		if err == nil && got == want {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("await %q from %q: got %q, %v", want, query, got, err)
		}
		<-next.C
		// Each try is a process: do not take the machine from the server.
		pause = min(pause*2, 200*time.Millisecond)
		next.Reset(pause)
	}
}
