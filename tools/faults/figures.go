package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/producer/pgtest"
	"github.com/walherd/walherd/tools/faults/link"
	"github.com/walherd/walherd/tools/faults/oracle"
)

// figures measures fleets that nothing is wrong with, one after the other: what
// PostgreSQL's archiver waits for under either policy, how a backlog's time goes
// down with workers when the store is slow, and the CPU time that the
// database host spends, beside that of a host that does all the work itself.
func figures(ctx context.Context, o options, say func(string, ...any)) error {
	o.plainDisks = true
	if !o.segmentGiven {
		o.segmentMB = 16 // PostgreSQL's own
	}
	o.queue = max(o.queue, 1<<30)
	for _, part := range []struct {
		name string
		do   func(context.Context, options, func(string, ...any)) error
	}{
		{"archiver", figureArchiver}, {"scaling", figureScaling}, {"cpu", figureCPU},
	} {
		if o.only != "" && !strings.Contains(o.only, part.name) {
			continue
		}
		if err := part.do(ctx, o, say); err != nil {
			return fmt.Errorf("figures of %s: %w", part.name, err)
		}
	}
	return nil
}

// withRig measures with a fleet of its own.
func withRig(ctx context.Context, o options, say func(string, ...any), do func(r *rig) error) error {
	return pgtest.Do("figures", say, func(t pgtest.TB) error {
		r, err := newRig(ctx, t, o, say)
		if err != nil {
			return err
		}
		return do(r)
	})
}

// figureArchiver: WAL that comes slower than it is archived, for the latency of
// one file, and faster, for what is sustained.
func figureArchiver(ctx context.Context, o options, say func(string, ...any)) error {
	for _, ack := range []string{"stored", "queued"} {
		o.ack = ack
		if err := withRig(ctx, o, say, func(r *rig) error {
			r.c.SQL("CREATE TABLE marker (id serial, at timestamptz DEFAULT now())")
			for _, mode := range []struct {
				name string
				pace time.Duration
			}{{"one file at a time", 500 * time.Millisecond}, {"as fast as it goes", 0}} {
				say("%s, %s, for %s", ack, mode.name, o.duration)
				if err := r.measureArchiver(ctx, mode.name, mode.pace); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// measureArchiver writes WAL for the run's duration and reads what
// archive_command noted. pace is how long after a file is archived the next is
// filled; 0 keeps files waiting.
func (r *rig) measureArchiver(ctx context.Context, name string, pace time.Duration) error {
	_ = os.Remove(filepath.Join(r.truth, "pushes"))
	work, stop := context.WithTimeout(ctx, r.opt.duration)
	defer stop()
	if pace == 0 {
		r.opt.pace = 10 * time.Millisecond
		r.emit(work)
	} else {
		for sleep(work, pace) == nil {
			r.c.SQL(r.filling())
			if err := until(ctx, r.opt.settle, func() (bool, error) { return r.ready() == 0, nil }); err != nil {
				return err
			}
		}
	}
	// What still waits belongs to what is sustained.
	if err := until(ctx, r.opt.settle, func() (bool, error) { return r.ready() == 0, nil }); err != nil {
		return err
	}
	all, err := r.pushes()
	if err != nil {
		return err
	}
	var times []time.Duration
	failed := 0
	for _, p := range all {
		if p.code != 0 {
			failed++
			continue
		}
		times = append(times, p.took)
	}
	if len(times) < 2 {
		return fmt.Errorf("%d files were archived in %s", len(times), r.opt.duration)
	}
	span := all[len(all)-1].ends.Sub(all[0].ends.Add(-all[0].took))
	slices.Sort(times)
	fmt.Printf("WAL_ACK=%s, %s: %d segments of %d MiB, %s", r.opt.ack, name, len(times), r.opt.segmentMB, quantiles(times))
	if pace == 0 {
		fmt.Printf(", %.1f MiB/s of WAL", float64(len(times)*r.opt.segmentMB)/span.Seconds())
	}
	if failed > 0 {
		fmt.Printf(", %d calls failed", failed)
	}
	fmt.Println()
	return r.empty(ctx)
}

// empty waits until no job is queued.
func (r *rig) empty(ctx context.Context) error { return r.queued(ctx, 0, 200*time.Millisecond) }

// queued waits until there are that many jobs.
func (r *rig) queued(ctx context.Context, want uint64, every time.Duration) error {
	deadline := time.Now().Add(r.opt.settle)
	for {
		s, err := oracle.Streams(ctx, r.b.monitors())
		if err == nil && s["WALHERD_WORK"].Messages == want {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("the queue holds %d jobs, not %d", s["WALHERD_WORK"].Messages, want), err)
		}
		if err := sleep(ctx, every); err != nil {
			return err
		}
	}
}

// figureScaling: workers with one slot each, and nothing compressed, so that
// the store is what they wait for.
func figureScaling(ctx context.Context, o options, say func(string, ...any)) error {
	// Long enough that the start of the later workers does not count for much.
	const backlog = 40
	o.queue = 2 << 30
	o.slots, o.workers, o.compress, o.byHand = 1, 4, "none", true
	return withRig(ctx, o, say, func(r *rig) error {
		files, err := r.segments(backlog)
		if err != nil {
			return err
		}
		r.store.Set(link.Fault{Delay: 25 * time.Millisecond, Rate: 20_000_000})
		var one time.Duration
		for _, n := range []int{1, 2, 4} {
			say("queueing %d segments for %d workers", len(files), n)
			took, err := r.measureBacklog(ctx, n, files)
			if err != nil {
				return err
			}
			if n == 1 {
				one = took
			}
			fmt.Printf("a backlog of %d segments of %d MiB, store at 50 ms and 20 MB/s a stream, %d workers: %.2f s, %.2f x\n",
				len(files), o.segmentMB, n, took.Seconds(), one.Seconds()/took.Seconds())
		}
		return nil
	})
}

// segments makes full WAL files of pgbench's tables and gives their copies.
func (r *rig) segments(n int) (files []string, err error) {
	r.c.SQL("ALTER SYSTEM SET wal_keep_size = '4GB'")
	r.c.Reload()
	if _, err := r.c.RunErr("pgbench", "-i", "-q", "-s", fmt.Sprint(max(1, n*r.opt.segmentMB/10)), "postgres"); err != nil {
		return nil, err
	}
	last := r.c.SQL("SELECT pg_walfile_name(pg_switch_wal())")
	all, err := filepath.Glob(filepath.Join(r.c.WALDir(), strings.Repeat("[0-9A-F]", 24)))
	if err != nil {
		return nil, err
	}
	for _, from := range all {
		// The first is of initdb's making, and those behind the last are empty.
		if name := filepath.Base(from); len(files) < n && from != all[0] && name < last {
			data, err := os.ReadFile(from)
			if err != nil {
				return nil, err
			}
			to := filepath.Join(r.truth, name)
			if err := os.WriteFile(to, data, 0o644); err != nil {
				return nil, err
			}
			files = append(files, to)
		}
	}
	if len(files) < n {
		return nil, fmt.Errorf("%d segments, want %d", len(files), n)
	}
	return files, nil
}

// measureBacklog queues the files while no worker runs, and takes the time that
// n workers need for them.
func (r *rig) measureBacklog(ctx context.Context, n int, files []string) (time.Duration, error) {
	for _, w := range r.workers {
		if _, err := w.term(20 * time.Second); err != nil {
			return 0, err
		}
	}
	for i, f := range files {
		cmd := r.walherd([]string{"WALHERD_WAL_PUSH_TIMEOUT=5m"}, "wal-push", f)
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		r.reoffers.Go(func() { _ = cmd.Wait() })
		// One after the other: a machine of two cores takes no more.
		if err := r.queued(ctx, uint64(i+1), 20*time.Millisecond); err != nil {
			return 0, err
		}
	}
	deliveries := func() (uint64, error) {
		return oracle.Deliveries(ctx, r.b.monitors(), topology.StreamWork, messages.WorkConsumer(messages.KindArchive, cluster))
	}
	before, err := deliveries()
	if err != nil {
		return 0, err
	}
	for _, w := range r.workers[:n] {
		if err := w.start(); err != nil {
			return 0, err
		}
	}
	// Their start is no part of it, but for that of the later ones.
	for now := before; now == before; {
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return 0, err
		}
		if now, err = deliveries(); err != nil {
			return 0, err
		}
	}
	start := time.Now()
	if err := r.queued(ctx, 0, 100*time.Millisecond); err != nil {
		return 0, err
	}
	took := time.Since(start)
	r.reoffers.Wait()
	return took, nil
}

// figureCPU: the same WAL and the same cluster, handed to a fleet, and stored by
// the host itself.
func figureCPU(ctx context.Context, o options, say func(string, ...any)) error {
	const pushes = 32
	o.compress, o.byHand = "lz4", true
	return withRig(ctx, o, say, func(r *rig) error {
		files, err := r.segments(pushes)
		if err != nil {
			return err
		}
		gb := float64(len(files)*r.opt.segmentMB<<20) / 1e9
		embedded := append(r.storage(), "WALHERD_NATS_URL=")
		for _, way := range []struct {
			name string
			env  []string
		}{{"fleet, wal-push", nil}, {"embedded, wal-push", embedded}} {
			var spent cpu
			say("%s: %d segments", way.name, len(files))
			for _, f := range files {
				if err := spent.run(r.walherd(way.env, "wal-push", f)); err != nil {
					return err
				}
			}
			fmt.Printf("database host, %s: %s\n", way.name, spent.per(gb, "WAL"))
		}
		for _, way := range []struct {
			name string
			env  []string
		}{{"fleet, daemon", nil}, {"embedded, daemon", embedded}} {
			say("%s: %d segments", way.name, len(files))
			spent, err := r.daemonCPU(ctx, way.env, files)
			if err != nil {
				return err
			}
			fmt.Printf("database host, %s and its client: %s\n", way.name, spent.per(gb, "WAL"))
		}
		size, err := treeSize(r.c.DataDir(), "pg_wal")
		if err != nil {
			return err
		}
		for _, way := range []struct {
			name string
			env  []string
		}{{"fleet, backup-push", nil}, {"embedded, backup-push", embedded}} {
			say("%s of %d MB", way.name, size/1e6)
			var spent cpu
			if err := spent.run(r.walherd(way.env, "backup-push", "--full", r.c.DataDir())); err != nil {
				return err
			}
			fmt.Printf("database host, %s: %s\n", way.name, spent.per(float64(size)/1e9, "data"))
		}
		return nil
	})
}

// cpu is what processes have spent.
type cpu struct{ user, system, wall time.Duration }

// run waits for a process and adds what it spent.
func (c *cpu) run(cmd *exec.Cmd) error {
	start := time.Now()
	out, err := cmd.CombinedOutput()
	c.wall += time.Since(start)
	if err != nil {
		return fmt.Errorf("%v: %w: %s", cmd.Args[1:], err, lastLine(string(out)))
	}
	c.user += cmd.ProcessState.UserTime()
	c.system += cmd.ProcessState.SystemTime()
	return nil
}

func (c *cpu) per(gb float64, what string) string {
	return fmt.Sprintf("%.2f CPU-seconds per GB of %s (user %.2f, system %.2f; %.2f GB in %.1f s)",
		(c.user+c.system).Seconds()/gb, what, c.user.Seconds()/gb, c.system.Seconds()/gb, gb, c.wall.Seconds())
}

// daemonCPU has a daemon archive the files, which it knows by their names in
// pg_wal, and adds up what it and its clients spent.
func (r *rig) daemonCPU(ctx context.Context, env, files []string) (spent cpu, err error) {
	socket := filepath.Join(r.c.SocketDir(), "walherd.sock")
	d := r.walherd(append([]string{"PGDATA=" + r.c.DataDir()}, env...), "daemon", socket)
	log, err := os.Create(filepath.Join(r.dir, "daemon.log"))
	if err != nil {
		return spent, err
	}
	defer log.Close()
	d.Stdout, d.Stderr = log, log
	if err := d.Start(); err != nil {
		return spent, err
	}
	defer func() {
		_ = d.Process.Signal(syscall.SIGTERM)
		werr := d.Wait()
		spent.user += d.ProcessState.UserTime()
		spent.system += d.ProcessState.SystemTime()
		if err = errors.Join(err, werr); err != nil {
			err = fmt.Errorf("%w: %s", err, tail(log.Name()))
		}
	}()
	if err := until(ctx, 30*time.Second, func() (bool, error) { _, err := os.Stat(socket); return err == nil, err }); err != nil {
		return spent, err
	}
	for _, f := range files {
		if err := spent.run(r.c.Command(ctx, r.bins.client, socket, "wal-push", filepath.Base(f), "-timeout", "60s")); err != nil {
			return spent, err
		}
	}
	return spent, nil
}

// treeSize is what the files of a directory take, but for those of one below.
func treeSize(dir, but string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && e.Name() == but:
			return filepath.SkipDir
		case e.Type().IsRegular():
			info, err := e.Info()
			if err != nil {
				return err
			}
			n += info.Size()
		}
		return nil
	})
	return n, err
}
