// Package e2e runs the walherd program as its users do, against real
// PostgreSQL servers, and looks only at what they would see: exit codes, error
// lines, files in the storage, and the database after a restore.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/walherd/walherd/producer/pgtest"
)

func TestMain(m *testing.M) {
	// Most of these tests wait for processes of theirs most of the time, so
	// more of them than there are processors run at once.
	flag.Parse()
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		if err := parallel.Value.Set(strconv.Itoa(2 * runtime.GOMAXPROCS(0))); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	if dir := built.dir; dir != "" {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

var built struct {
	once sync.Once
	dir  string
	err  error
}

// program builds walherd once and returns its path, which every user may run.
func program(t testing.TB) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("/var/tmp", "walherd-e2e-"); built.err != nil {
			return
		}
		built.err = os.Chmod(built.dir, 0o755)
		if built.err != nil {
			return
		}
		out, err := exec.Command("go", "build", "-ldflags=-s -w", "-o", filepath.Join(built.dir, "walherd"), "../walherd").CombinedOutput()
		if err != nil {
			built.err = fmt.Errorf("build walherd: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "walherd")
}

// bench is a cluster with a storage and the program that joins them.
type bench struct {
	t       testing.TB
	c       *pgtest.Cluster
	program string
	storage string
	// bin holds the server's programs; empty for the default ones.
	bin string
	// env goes before the cluster's own environment.
	env []string
}

// newBench makes a storage and a cluster that archives into it.
func newBench(t testing.TB, env []string, opts ...pgtest.Option) *bench {
	t.Helper()
	b := &bench{t: t, program: program(t), env: env}
	b.storage = filepath.Join(pgtest.TempDir(t), "storage")
	opts = append(opts, pgtest.WithArchiveCommand(fmt.Sprintf("env %s %s wal-push %%p", shellWords(b.environ()), b.program)))
	b.c = pgtest.New(t, opts...)
	b.c.Run("/bin/mkdir", "-p", b.storage)
	return b
}

func (b *bench) environ() []string {
	return append([]string{"WALG_FILE_PREFIX=" + b.storage}, b.env...)
}

func shellWords(words []string) string {
	var out []string
	for _, w := range words {
		out = append(out, "'"+w+"'")
	}
	return strings.Join(out, " ")
}

// result is what one command did.
type result struct {
	code           int
	stdout, stderr string
}

// command prepares walherd as the server's user.
func (b *bench) command(ctx context.Context, env []string, args ...string) *exec.Cmd {
	cmd := b.c.Command(ctx, b.program, args...)
	cmd.Env = append(append(cmd.Env, b.environ()...), env...)
	return cmd
}

// run runs walherd to its end.
func (b *bench) run(env []string, args ...string) result {
	b.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := b.command(context.Background(), env, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.t.Fatalf("run walherd %v: %v", args, err)
	}
	return result{code: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
}

// must runs walherd, which has to succeed, and returns its standard output.
func (b *bench) must(args ...string) string {
	b.t.Helper()
	r := b.run(nil, args...)
	if r.code != 0 {
		b.t.Fatalf("walherd %v: exit code %d\n%s", args, r.code, r.stderr)
	}
	return r.stdout
}

// archived waits until everything the server has written so far is archived.
func (b *bench) archived() {
	b.t.Helper()
	// Right at the border of two segments, versions name one or the other.
	b.c.SQL("SELECT pg_logical_emit_message(false, 'e2e', 'archived')")
	last := b.c.SQL("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
	b.c.SQL("SELECT pg_switch_wal()")
	b.c.Await(fmt.Sprintf("SELECT last_archived_wal >= '%s' FROM pg_stat_archiver", last), "t")
}

// restore fetches a backup into a directory of its own, recovers it from the
// archive to its end, and returns the running server.
func (b *bench) restore(args ...string) *pgtest.Cluster {
	b.t.Helper()
	dir := filepath.Join(pgtest.TempDir(b.t), "restored")
	b.must(append([]string{"backup-fetch", dir}, args...)...)
	return b.recover(dir)
}

// recover starts a restored directory and waits for the end of recovery. Lines
// for a recovery target may be given.
func (b *bench) recover(dir string, lines ...string) *pgtest.Cluster {
	b.t.Helper()
	r := pgtest.Open(b.t, dir, pgtest.Stopped(), pgtest.WithBinDir(b.bin), pgtest.WithConf("archive_mode = off"))
	r.Recover(fmt.Sprintf(`env %s %s wal-fetch %%f "%%p"`, shellWords(b.environ()), b.program), lines...)
	r.Start()
	r.Await("SELECT pg_is_in_recovery()", "f")
	return r
}

// objects lists what is in the storage, by name, without what is unfinished.
func (b *bench) objects() []string {
	b.t.Helper()
	var names []string
	err := filepath.WalkDir(b.storage, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(b.storage, path)
		names = append(names, rel)
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return names
}

// bankSums is a fingerprint of a pgbench database: equal balances and the
// same history, row by row.
const bankSums = `SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),
 (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT count(*) FROM pgbench_history),
 (SELECT md5(string_agg(h::text, ',' ORDER BY h::text)) FROM pgbench_history h)`

// amcheck has the server check every table and index.
func amcheck(t testing.TB, c *pgtest.Cluster) {
	t.Helper()
	c.Run("pg_amcheck", "--all", "--install-missing", "--heapallindexed")
}

// checksums stops the server and checks every page.
func checksums(t testing.TB, c *pgtest.Cluster) {
	t.Helper()
	c.Stop(pgtest.Fast)
	c.Run("pg_checksums", "--check", "-D", c.DataDir())
}
