// Package archive_library holds src/walherd_archive.c, PostgreSQL's side of the
// daemon, and the tests that compile it and run it in a real server. There is
// no Go code but those tests.
package archive_library

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/walherd/walherd/producer/daemon"
	"github.com/walherd/walherd/producer/daemon/wire"
	"github.com/walherd/walherd/producer/pgtest"
)

// daemonVar, set, makes the test program the daemon: the server does not run
// as root, and nobody but the daemon's own user may use its socket.
const daemonVar = "WALHERD_TEST_DAEMON_ARCHIVE"

func TestMain(m *testing.M) {
	if archive := os.Getenv(daemonVar); archive != "" {
		if err := runDaemon(os.Getenv("PGDATA"), archive); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runDaemon serves the cluster until it is told to end, and archives into a
// directory. It says "ready" on its standard output.
func runDaemon(data, archive string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s := daemon.New(daemon.Options{
		Socket: filepath.Join(archive, "s"), DataDir: data, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Push: func(_ context.Context, path string) error {
			if _, err := os.Stat(filepath.Join(archive, "refuse")); err == nil {
				return errors.New("told to refuse")
			}
			return copyFile(path, filepath.Join(archive, filepath.Base(path)))
		},
		Fetch: func(context.Context, string, string) error { return wire.ErrAbsent },
	})
	if err := s.Start(ctx); err != nil {
		return err
	}
	fmt.Println("ready")
	<-s.Done()
	return s.Err()
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if have, err := os.ReadFile(to); err == nil && !bytes.Equal(have, b) {
		return fmt.Errorf("%s is archived with other content", to)
	}
	if err := os.WriteFile(to+".part", b, 0o600); err != nil {
		return err
	}
	return os.Rename(to+".part", to)
}

// setup is a cluster whose archiver uses the module, and the daemon's files.
type setup struct {
	t       testing.TB
	c       *pgtest.Cluster
	archive string
	program string
}

// compile builds the module for the server that pgtest finds, or skips.
func compile(t testing.TB, c *pgtest.Cluster, dir string) string {
	t.Helper()
	if c.Major() < 15 {
		t.Skipf("PostgreSQL %d has no archive modules", c.Major())
	}
	include := os.Getenv("WALHERD_PG_INCLUDE")
	if include == "" {
		include = fmt.Sprintf("/usr/include/postgresql/%d/server", c.Major())
		// Where `make pgheaders` unpacks them.
		if home, err := os.UserHomeDir(); err == nil {
			unpacked := filepath.Join(home, ".cache/walherd-tools/pgheaders", include)
			if _, err := os.Stat(unpacked); err == nil {
				include = unpacked
			}
		}
	}
	if _, err := os.Stat(filepath.Join(include, "postgres.h")); err != nil {
		t.Skipf("no headers of PostgreSQL %d in %s: install postgresql-server-dev-%[1]d (make deps), or set WALHERD_PG_INCLUDE to the directory of postgres.h", c.Major(), include)
	}
	module := filepath.Join(dir, "walherd_archive.so")
	out, err := exec.Command("make", "-s", "-C", "src", "OUT="+module, "INCLUDEDIR="+include, "CFLAGS=-O2 -Werror").CombinedOutput()
	if err != nil {
		t.Fatalf("compile the module: %v\n%s", err, out)
	}
	return module
}

func newSetup(t testing.TB) *setup {
	t.Helper()
	s := &setup{t: t, c: pgtest.New(t, pgtest.Stopped(), pgtest.WithSegmentSize(1))}
	module := compile(t, s.c, s.c.Dir())
	s.archive = pgtest.TempDir(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// go test's own directory is closed to the server's user.
	s.program = filepath.Join(s.c.Dir(), "daemon")
	b, err := os.ReadFile(self)
	if err == nil {
		err = os.WriteFile(s.program, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.c.AppendConf("archive_mode = on", "archive_library = '"+module+"'",
		"walherd_archive.socket = '"+filepath.Join(s.archive, "s")+"'")
	return s
}

// daemon starts the daemon and waits until it takes requests.
func (s *setup) daemon() *exec.Cmd {
	s.t.Helper()
	cmd := s.c.Command(context.Background(), s.program)
	cmd.Env = append(cmd.Env, daemonVar+"="+s.archive)
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if s.t.Failed() {
			s.t.Logf("the daemon's log:\n%s", &log)
		}
	})
	ready := make([]byte, len("ready\n"))
	if _, err := io.ReadFull(out, ready); err != nil {
		s.t.Fatalf("the daemon did not start: %v\n%s", err, &log)
	}
	return cmd
}

// segments makes the server finish n segments and returns the last one's name.
func (s *setup) segments(n int) (last string) {
	s.t.Helper()
	out := s.c.SQL(strings.Repeat("SELECT pg_walfile_name(pg_switch_wal()) FROM pg_logical_emit_message(false, 'x', repeat('y', 1000));\n", n))
	lines := strings.Split(out, "\n")
	return lines[len(lines)-1]
}

func (s *setup) awaitArchived(last string) {
	s.t.Helper()
	s.c.Await(fmt.Sprintf("SELECT last_archived_wal >= '%s' FROM pg_stat_archiver", last), "t")
}

// check compares what PostgreSQL calls archived with the archive.
func (s *setup) check(want int) {
	s.t.Helper()
	done, err := filepath.Glob(filepath.Join(s.c.WALDir(), "archive_status", "*.done"))
	if err != nil || len(done) < want {
		s.t.Errorf("%d files are marked as archived, want at least %d; %v", len(done), want, err)
	}
	for _, d := range done {
		name := strings.TrimSuffix(filepath.Base(d), ".done")
		archived, err := os.ReadFile(filepath.Join(s.archive, name))
		if err != nil {
			s.t.Errorf("PostgreSQL calls %s archived: %v", name, err)
			continue
		}
		// A checkpoint may have recycled it since.
		switch original, err := os.ReadFile(filepath.Join(s.c.WALDir(), name)); {
		case err == nil && !bytes.Equal(original, archived):
			s.t.Errorf("%s is archived with other content", name)
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			s.t.Error(err)
		}
	}
}

// TestArchive: what PostgreSQL marks as done is in the archive, byte for byte,
// through a refusing daemon, a killed one and a restarted one.
func TestArchive(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	cmd := s.daemon()
	s.c.Start()
	s.awaitArchived(s.segments(10))
	s.check(10)

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	last := s.segments(5)
	s.c.Await("SELECT failed_count > 0 FROM pg_stat_archiver", "t")
	if got := s.c.SQL(fmt.Sprintf("SELECT last_archived_wal >= '%s' FROM pg_stat_archiver", last)); got != "f" {
		t.Error("archived without a daemon")
	}
	s.check(10)
	if log := s.c.Log(); !strings.Contains(log, filepath.Join(s.archive, "s")) || !strings.Contains(log, "connect:") {
		t.Errorf("the server's log does not name socket and cause:\n%s", log)
	}

	// A daemon that refuses: the same, with its own reason.
	refuse := filepath.Join(s.archive, "refuse")
	if err := os.WriteFile(refuse, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s.daemon() // in place of the socket the kill has left
	failed := s.c.SQL("SELECT failed_count FROM pg_stat_archiver")
	s.segments(1) // wakes the archiver, which waits a minute after three failures
	s.c.Await("SELECT failed_count > "+failed+" FROM pg_stat_archiver", "t")
	s.check(10)
	if err := os.Remove(refuse); err != nil {
		t.Fatal(err)
	}
	s.awaitArchived(s.segments(5))
	s.check(21)
	if log := s.c.Log(); !strings.Contains(log, "its log says why") {
		t.Errorf("the server's log does not tell of the refusal:\n%s", log)
	}
}

// TestConfiguration: without a socket nothing is archived and the log says so;
// with one given by a reload it is.
func TestConfiguration(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.c.AppendConf("walherd_archive.socket = ''")
	s.daemon()
	s.c.Start()
	last := s.segments(1)
	s.c.Run("/bin/sh", "-c", `i=0; until grep -q 'walherd_archive.socket" is not set' "$0"; do sleep 0.05; i=$((i+1)); [ $i -lt 600 ]; done`, filepath.Join(s.c.Dir(), "server.log"))
	s.c.AppendConf("walherd_archive.socket = '" + filepath.Join(s.archive, "s") + "'")
	s.c.Reload()
	s.awaitArchived(last)
	s.check(1)
}

// TestHangingDaemon: a daemon that says nothing costs its timeout, and does
// not keep the server from shutting down.
func TestHangingDaemon(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.c.AppendConf("walherd_archive.timeout = 1")
	cmd := s.daemon()
	s.c.Start()
	s.awaitArchived(s.segments(1))
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	s.segments(1)
	s.c.Await("SELECT failed_count > 0 FROM pg_stat_archiver", "t")
	if log := s.c.Log(); !strings.Contains(log, "no answer within 1 s") {
		t.Errorf("the server's log does not tell of the timeout:\n%s", log)
	}
	s.c.Stop(pgtest.Fast)
	s.check(1)
}
