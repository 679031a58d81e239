package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/walherd/walherd/producer/pgtest"
	"github.com/walherd/walherd/tools/faults/link"
	"github.com/walherd/walherd/tools/faults/oracle"
)

// figures measures a fleet that nothing is wrong with: what one archiver gets
// archived, and how the time to store a backlog goes down with workers when
// the store is slow. Its workers have one slot each, and nothing is compressed,
// so that the store is what they wait for.
func figures(ctx context.Context, o options, say func(string, ...any)) error {
	return pgtest.Do("figures", say, func(t pgtest.TB) error {
		o.slots, o.workers, o.compress, o.plainDisks, o.queue = 1, 4, "none", true, 1<<30
		r, err := newRig(ctx, t, o, say)
		if err != nil {
			return err
		}
		say("one archiver, four workers, for %s", o.duration)
		if err := r.measureArchiver(ctx, o.duration); err != nil {
			return err
		}
		r.store.Set(link.Fault{Delay: 25 * time.Millisecond, Rate: 20 << 20})
		var one time.Duration
		for _, n := range []int{1, 2, 4} {
			took, err := r.measureBacklog(ctx, n, 16)
			if err != nil {
				return err
			}
			if n == 1 {
				one = took
			}
			fmt.Printf("a backlog of 16 segments of %d MiB, store at 50 ms and 20 MB/s a stream, %d workers: %.2f s, %.2f x\n",
				o.segmentMB, n, took.Seconds(), one.Seconds()/took.Seconds())
		}
		return nil
	})
}

// measureArchiver keeps files waiting for archive_command and counts.
func (r *rig) measureArchiver(ctx context.Context, d time.Duration) error {
	r.c.SQL("CREATE TABLE marker (id serial, at timestamptz DEFAULT now())")
	r.opt.pace = 50 * time.Millisecond
	work, stop := context.WithTimeout(ctx, d)
	defer stop()
	r.emit(work)
	all, err := r.pushes()
	if err != nil {
		return err
	}
	var times []time.Duration
	for _, p := range all {
		if p.code == 0 {
			times = append(times, p.took)
		}
	}
	if len(times) < 2 {
		return fmt.Errorf("%d files were archived in %s", len(times), d)
	}
	span := all[len(all)-1].ends.Sub(all[0].ends.Add(-all[0].took))
	slices.Sort(times)
	fmt.Printf("WAL_ACK=%s, one archiver: %d segments of %d MiB, %s, %.1f MiB/s of WAL\n", r.opt.ack, len(times), r.opt.segmentMB,
		quantiles(times), float64(len(times)*r.opt.segmentMB)/span.Seconds())
	if err := until(ctx, r.opt.settle, func() (bool, error) { return r.ready() == 0, nil }); err != nil {
		return err
	}
	return r.empty(ctx)
}

// empty waits until no job is queued.
func (r *rig) empty(ctx context.Context) error {
	return until(ctx, r.opt.settle, func() (bool, error) {
		s, err := oracle.Streams(ctx, r.b.monitors())
		return err == nil && s["WALHERD_WORK"].Messages == 0, err
	})
}

// measureBacklog queues jobs segments while no worker runs, and takes the time
// that n workers need for them.
func (r *rig) measureBacklog(ctx context.Context, n, jobs int) (time.Duration, error) {
	for _, w := range r.workers {
		if _, err := w.term(20 * time.Second); err != nil {
			return 0, err
		}
	}
	sums, err := filepath.Glob(filepath.Join(r.truth, "*.sha256"))
	if err != nil {
		return 0, err
	}
	if len(sums) < jobs {
		return 0, fmt.Errorf("only %d segments to queue", len(sums))
	}
	for _, s := range sums[:jobs] {
		cmd := r.walherd([]string{"WALHERD_WAL_PUSH_TIMEOUT=5m"}, "wal-push", strings.TrimSuffix(s, ".sha256"))
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		r.reoffers.Go(func() { _ = cmd.Wait() })
	}
	queued := func(want uint64) error {
		deadline := time.Now().Add(r.opt.settle)
		for {
			s, err := oracle.Streams(ctx, r.b.monitors())
			if err == nil && s["WALHERD_WORK"].Messages == want {
				return nil
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("the queue does not come to %d jobs: %d, %w", want, s["WALHERD_WORK"].Messages, err)
			}
			if err := sleep(ctx, 10*time.Millisecond); err != nil {
				return err
			}
		}
	}
	if err := queued(uint64(jobs)); err != nil {
		return 0, err
	}
	for _, w := range r.workers[:n] {
		if err := w.start(); err != nil {
			return 0, err
		}
	}
	// Their start is a part of it: a tenth of a second.
	start := time.Now()
	if err := queued(0); err != nil {
		return 0, err
	}
	took := time.Since(start)
	r.reoffers.Wait()
	return took, nil
}
