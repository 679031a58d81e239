package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/walherd/walherd/producer/pgtest"
)

// bench is one run of the program.
type bench struct {
	ctx    context.Context
	t      pgtest.TB
	opt    options
	stdout io.Writer
	logf   func(string, ...any)
	// programs are walherd and, if there is one, WAL-G.
	programs []program
}

// program is a binary with WAL-G's command line.
type program struct{ name, path string }

// newBench copies the binaries to where user postgres can run them.
func newBench(ctx context.Context, t pgtest.TB, opt options, stdout io.Writer, logf func(string, ...any)) (*bench, error) {
	b := &bench{ctx: ctx, t: t, opt: opt, stdout: stdout, logf: logf}
	dir := pgtest.TempDir(t)
	for _, p := range []program{{"walherd", opt.binary}, {"wal-g", opt.reference}} {
		if p.path == "" {
			continue
		}
		copied := filepath.Join(dir, p.name)
		if out, err := exec.Command("install", "-m", "755", p.path, copied).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("copy %s: %w: %s (make build builds walherd)", p.path, err, bytes.TrimSpace(out))
		}
		b.programs = append(b.programs, program{p.name, copied})
	}
	return b, nil
}

// selected reports whether a measurement is to be run.
func (b *bench) selected(names ...string) bool {
	for _, n := range names {
		if b.opt.only.MatchString(n) {
			return true
		}
	}
	return false
}

func (b *bench) run() error {
	// Each in a scope of its own, so that its cluster is gone before the
	// next one is made. The stages come last: what this process has grown to
	// by then would count as memory of the commands it starts; see usage.
	for _, f := range []func(pgtest.TB) error{b.compressible, b.incompressible, b.increments, b.memory, b.objects, b.stages} {
		if b.ctx.Err() != nil {
			return fmt.Errorf("interrupted: %w", context.Cause(b.ctx))
		}
		if err := pgtest.Do("bench", b.logf, f); err != nil {
			return err
		}
	}
	return nil
}

// quiet are the settings of a server that changes nothing by itself, so that
// all contenders read the same files. archive_mode is off: backup-push then
// does not wait for the archiver, which no other contender does.
func quiet() pgtest.Option {
	return pgtest.WithConf("archive_mode = off", "autovacuum = off", "max_wal_size = 8GB", "wal_keep_size = 1GB",
		"shared_buffers = 256MB", "maintenance_work_mem = 256MB", "checkpoint_timeout = 1h")
}

// compressible measures a cluster as pgbench makes it.
func (b *bench) compressible(t pgtest.TB) error {
	name := "pgbench scale " + strconv.Itoa(b.opt.scale)
	if !b.selected(append(names(name), "wal-push", "wal-fetch")...) {
		return nil
	}
	b.logf("making a cluster: %s", name)
	c := pgtest.New(t, quiet(), pgtest.WithOwnSystemID())
	c.Run("pgbench", "-i", "-q", "-s", strconv.Itoa(b.opt.scale))
	if err := b.wal(c); err != nil {
		return err
	}
	return b.backups(c, name)
}

// incompressible measures a cluster of random content.
func (b *bench) incompressible(t pgtest.TB) error {
	name := fmt.Sprintf("random %d MB", b.opt.random)
	if !b.selected(names(name)...) {
		return nil
	}
	b.logf("making a cluster: %s", name)
	c := pgtest.New(t, quiet(), pgtest.WithOwnSystemID())
	// Half of it random bytes, which no method can shrink; half of it
	// hexadecimal text, which only an entropy coder can.
	half := b.opt.random << 20 / 2
	c.SQL(fmt.Sprintf(`CREATE EXTENSION pgcrypto;
		CREATE TABLE bytes (b bytea);
		ALTER TABLE bytes ALTER b SET STORAGE plain;
		INSERT INTO bytes SELECT gen_random_bytes(1000) FROM generate_series(1, %d);
		CREATE TABLE digests AS SELECT md5(i::text) || md5((-i)::text) AS t FROM generate_series(1, %d) i`,
		half/1000, half/96))
	return b.backups(c, name)
}

// methods are the compared compression methods with the tool that does the
// same: level and threads are those of walherd's defaults.
func methods() []method {
	return []method{
		{"lz4", "lz4 -1 -q -c", "lz4 -d -q -c"},
		{"zstd", "zstd -3 -T2 -q -c", "zstd -d -q -c"},
	}
}

type method struct{ name, pack, unpack string }

// names lists the measurements of one cluster.
func names(cluster string) []string {
	var out []string
	for _, m := range methods() {
		for _, f := range []string{"backup-push %s, %s", "backup-fetch %s, %s, without sync", "backup-fetch %s, %s, with sync"} {
			out = append(out, fmt.Sprintf(f, m.name, cluster))
		}
	}
	return out
}

// backups measures backup-push and backup-fetch of one cluster.
func (b *bench) backups(c *pgtest.Cluster, cluster string) error {
	c.SQL("VACUUM ANALYZE; CHECKPOINT")
	size, err := dataSize(c)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.stdout, "\n## %s: %d MiB without WAL, PostgreSQL %d, archive_mode off\n", cluster, size>>20, c.Major())
	for _, m := range methods() {
		n := names(cluster)
		if m.name == "zstd" {
			n = n[3:]
		}
		if err := b.push(c, n[0], m, size); err != nil {
			return err
		}
		if err := b.fetch(c, n[1], n[2], m, size); err != nil {
			return err
		}
	}
	return nil
}

// dataSize is the size of what a backup reads: all but the WAL.
func dataSize(c *pgtest.Cluster) (int64, error) {
	all, err := treeSize(c.DataDir())
	if err != nil {
		return 0, err
	}
	wal, err := treeSize(c.WALDir())
	return all - wal, err
}

// tar is the command that reads what a backup reads.
func tar(c *pgtest.Cluster) string {
	return "tar -C " + c.DataDir() + " --exclude='./pg_wal/*' --exclude=./postmaster.pid --exclude=./postmaster.opts -cf - ."
}

func (b *bench) env(m method, storage string) []string {
	return []string{"WALG_FILE_PREFIX=" + storage, "WALG_COMPRESSION_METHOD=" + m.name}
}

func (b *bench) push(c *pgtest.Cluster, title string, m method, size int64) error {
	if !b.selected(title) {
		return nil
	}
	var list []contender
	for _, p := range b.programs {
		out := filepath.Join(c.Dir(), "push-"+p.name)
		list = append(list, contender{
			name: p.name + " backup-push", script: p.path + " backup-push --full " + c.DataDir(),
			env: b.env(m, out), out: out, count: true, wantBytes: size / 1000,
		})
	}
	out := filepath.Join(c.Dir(), "push-tar")
	pipe := tar(c) + " | " + m.pack + " > " + out + "/out"
	list = append(list,
		contender{name: "tar | " + toolName(m.pack), script: pipe, out: out, count: true, wantBytes: size / 1000},
		// A backup has to be on disk before it is reported: the same for tar.
		contender{name: "tar | " + toolName(m.pack) + ", sync", script: pipe + " && sync " + out + "/out", out: out, count: true, wantBytes: size / 1000})
	return b.rotate(c, title, b.opt.runs, list)
}

// toolName is a tool's command line without what only keeps it quiet.
func toolName(command string) string {
	return strings.ReplaceAll(command, " -q -c", "")
}

func (b *bench) fetch(c *pgtest.Cluster, plain, synced string, m method, size int64) error {
	if !b.selected(plain, synced) {
		return nil
	}
	packed := filepath.Join(c.Dir(), "packed")
	defer os.RemoveAll(packed)
	c.Run("/bin/bash", "-c", "set -eo pipefail; mkdir "+packed+"; "+tar(c)+" | "+m.pack+" > "+packed+"/all")
	for _, p := range b.programs {
		cmd := c.Command(b.ctx, p.path, "backup-push", "--full", c.DataDir())
		cmd.Env = append(cmd.Env, b.env(m, packed+"/"+p.name)...)
		c.Run("mkdir", packed+"/"+p.name)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("take the backup to be fetched with %s: %w\n%s", p.name, err, tail(string(out)))
		}
	}
	for _, title := range []string{plain, synced} {
		if !b.selected(title) {
			continue
		}
		sync, end := "true", ""
		target := filepath.Join(c.Dir(), "fetched")
		if title == synced {
			sync, end = "false", " && sync -f "+target
		}
		var list []contender
		for _, p := range b.programs {
			list = append(list, contender{
				name: p.name + " backup-fetch", script: p.path + " backup-fetch " + target + " LATEST",
				env: append(b.env(m, packed+"/"+p.name), "WALG_TAR_DISABLE_FSYNC="+sync), out: target, wantBytes: size * 95 / 100,
			})
		}
		list = append(list, contender{
			name:   toolName(m.unpack) + " | tar x" + map[bool]string{true: ", sync -f"}[title == synced],
			script: m.unpack + " < " + packed + "/all | tar -C " + target + " -xf -" + end,
			out:    target, wantBytes: size * 95 / 100,
		})
		if err := b.rotate(c, title, b.opt.runs, list); err != nil {
			return err
		}
		if err := os.RemoveAll(target); err != nil {
			return fmt.Errorf("remove the last result: %w", err)
		}
	}
	return nil
}
