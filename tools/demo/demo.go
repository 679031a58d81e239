package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/walherd/walherd/producer/pgtest"
)

// demo is one run. Steps that PostgreSQL refuses end it through t.Fatalf.
type demo struct {
	ctx   context.Context
	t     pgtest.TB
	opt   options
	out   io.Writer
	begin time.Time

	c *pgtest.Cluster
	// root holds all there is: binary, settings, keys, data directory,
	// tablespace, storage.
	root, bin, config, tablespace, times string
	// storage is the directory that the objects lie in as files, also when
	// an S3 server is in between.
	storage string
	// decrypt is the command that decrypts an object without walherd; empty
	// is not encrypted.
	decrypt string

	fig figures
}

// pollEvery and pollLimit rule every wait for PostgreSQL.
const (
	pollEvery = 100 * time.Millisecond
	pollLimit = 60 * time.Second
)

func newDemo(ctx context.Context, t pgtest.TB, opt options, out io.Writer) (*demo, error) {
	// A stopped cluster first: its directory belongs to the user the server
	// runs as, and the data directory is moved out of it into root, which is
	// ours to keep.
	seed := pgtest.New(t, pgtest.WithOwnSystemID(), pgtest.WithFsync(), pgtest.Stopped())
	root, err := os.MkdirTemp("/var/tmp", "walherd-demo-")
	if err != nil {
		return nil, fmt.Errorf("make the demo's directory: %w", err)
	}
	t.Cleanup(func() {
		if opt.keep {
			fmt.Fprintf(out, "kept: %s\n", root)
			return
		}
		if err := os.RemoveAll(root); err != nil {
			t.Logf("remove %s: %v", root, err)
		}
	})
	d := &demo{
		ctx: ctx, t: t, opt: opt, out: out, begin: time.Now(), root: root,
		bin:        filepath.Join(root, "bin", "walherd"),
		config:     filepath.Join(root, "walherd.yaml"),
		tablespace: filepath.Join(root, "tablespace"),
		storage:    filepath.Join(root, "storage"),
		times:      filepath.Join(root, "wal-push.times"),
	}
	// A copy, because user postgres may not be let into the source tree.
	if err := os.Mkdir(filepath.Dir(d.bin), 0o755); err != nil {
		return nil, fmt.Errorf("make the demo's directory: %w", err)
	}
	if out, err := exec.Command("install", "-m", "755", opt.binary, d.bin).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("copy %s: %w: %s (make build builds it)", opt.binary, err, bytes.TrimSpace(out))
	}
	data := filepath.Join(root, "data")
	if err := os.Rename(seed.DataDir(), data); err != nil {
		return nil, fmt.Errorf("move the data directory: %w", err)
	}
	if err := giveTo(root, data); err != nil {
		return nil, err
	}
	// The shell around the command only takes the time.
	archive := "s=$(date +%%s%%N); " + d.command("wal-push", "%p") +
		"; r=$?; echo %f $(( $(date +%%s%%N) - s )) $r >>" + d.times + "; exit $r"
	d.c = pgtest.Open(t, data, pgtest.Stopped(), pgtest.WithArchiveCommand(archive),
		pgtest.WithConf("wal_compression = off", "max_wal_size = 1GB", "shared_buffers = 128MB"))
	d.c.Run("mkdir", d.tablespace)
	return d, d.openStorage()
}

// giveTo gives a file or directory to the owner of like.
func giveTo(path, like string) error {
	fi, err := os.Stat(like)
	if err != nil {
		return fmt.Errorf("find the owner of the data directory: %w", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 {
		return nil
	}
	if err := os.Chown(path, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("give %s to the server's user: %w", path, err)
	}
	return nil
}

// command is walherd's command line, as PostgreSQL runs it.
func (d *demo) command(args ...string) string {
	return d.bin + " --config " + d.config + " " + strings.Join(args, " ")
}

// run is the demo itself.
func (d *demo) run() error {
	d.makeCluster()
	stopWriting, err := d.startWriting()
	if err != nil {
		return err
	}
	defer stopWriting()
	if err := d.backup(); err != nil {
		return err
	}
	if err := d.writeOn(stopWriting); err != nil {
		return err
	}
	noted := d.note()
	marker, segment, err := d.archiveMarker()
	if err != nil {
		return err
	}
	if d.opt.chosen() {
		if err := d.proveObjects(segment); err != nil {
			return err
		}
	}
	if err := d.disaster(); err != nil {
		return err
	}
	if err := d.restore(); err != nil {
		return err
	}
	if err := d.prove(noted, marker); err != nil {
		return err
	}
	d.fig.print(d.out, d.opt)
	return nil
}

// say prints one step with the time since the start. An interrupted demo ends
// here, through the cleanups.
func (d *demo) say(format string, a ...any) {
	if d.ctx.Err() != nil {
		d.t.Fatalf("interrupted")
	}
	fmt.Fprintf(d.out, "[%5.1f s] "+format+"\n", append([]any{time.Since(d.begin).Seconds()}, a...)...)
}

// walherd runs the binary and returns its standard output and how long the
// whole process took. Its log goes to the screen, indented.
func (d *demo) walherd(args ...string) (string, time.Duration, error) {
	cmd := d.c.Command(d.ctx, d.bin, append([]string{"--config", d.config}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	start := time.Now()
	err := cmd.Run()
	wall := time.Since(start)
	for line := range strings.Lines(stderr.String()) {
		fmt.Fprintf(d.out, "          | %s\n", strings.TrimRight(line, "\n"))
	}
	if err != nil {
		return "", wall, fmt.Errorf("run walherd %s: %w", args[0], err)
	}
	return stdout.String(), wall, nil
}

// await polls until ok says so. what names the thing awaited.
func (d *demo) await(what string, ok func() (bool, error)) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	limit := time.NewTimer(pollLimit)
	defer limit.Stop()
	for {
		done, err := ok()
		if done {
			return nil
		}
		select {
		case <-d.ctx.Done():
			return errors.New("interrupted")
		case <-limit.C:
			return fmt.Errorf("%s: not within %s (last error: %v)", what, pollLimit, err)
		case <-tick.C:
		}
	}
}

// awaitSQL awaits that a condition holds in database postgres.
func (d *demo) awaitSQL(what, condition string) error {
	return d.await(what, func() (bool, error) {
		got, err := d.c.SQLErr("postgres", "SELECT "+condition)
		return got == "t", err
	})
}
