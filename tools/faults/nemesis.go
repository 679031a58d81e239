package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/tools/faults/link"
)

// step is one fault. begin makes it and gives what ends it; nil is that it
// needs no end. Two steps of different groups may hold at once.
type step struct {
	name, group string
	// disk: it needs disks that can be cut and filled.
	disk bool
	// weight of it among the others.
	weight int
	begin  func(ctx context.Context, r *rig, rnd *rand.Rand) (end func(context.Context) error, note string, err error)
}

// planned is a step with the time it holds and what it needs to be the same
// again: a source of numbers of its own.
type planned struct {
	step
	seed uint64
}

type round struct {
	pause, hold time.Duration
	steps       []planned
}

// plan makes the rounds of a run: first each fault once, in any order, then by
// their weights. It depends on its arguments only.
func plan(seed uint64, total, hold time.Duration, from []step) (out []round) {
	rnd := rand.New(rand.NewPCG(seed, 0))
	var weights int
	for _, s := range from {
		weights += s.weight
	}
	first := rnd.Perm(len(from))
	pick := func() step {
		if len(first) > 0 {
			s := from[first[0]]
			first = first[1:]
			return s
		}
		n := rnd.IntN(weights)
		for _, s := range from {
			if n -= s.weight; n < 0 {
				return s
			}
		}
		panic("weights do not add up")
	}
	for spent := time.Duration(0); spent < total; {
		rd := round{
			pause: time.Duration(500+rnd.IntN(3500)) * time.Millisecond,
			hold:  300*time.Millisecond + time.Duration(rnd.Int64N(int64(max(hold-300*time.Millisecond, 1)))),
		}
		rd.steps = append(rd.steps, planned{pick(), rnd.Uint64()})
		if rnd.IntN(4) == 0 {
			if len(first) > 0 && from[first[0]].group == rd.steps[0].group {
				// It has a round of its own: each is to be made.
			} else if second := pick(); second.group != rd.steps[0].group {
				rd.steps = append(rd.steps, planned{second, rnd.Uint64()})
			}
		}
		out = append(out, rd)
		spent += rd.pause + rd.hold
	}
	return out
}

// leftOut begins the note of a step that was not made.
const leftOut = "left out: "

// happened is one step as it went.
type happened struct {
	name, note string
	at         time.Duration
	hold       time.Duration
}

// nemesis carries the rounds out until deadline and ends every fault.
func (r *rig) nemesis(ctx context.Context, rounds []round, deadline time.Time) (out []happened, err error) {
	start := time.Now()
	for _, rd := range rounds {
		if time.Now().After(deadline) {
			break
		}
		if err := sleep(ctx, rd.pause); err != nil {
			return out, err
		}
		var ends []func(context.Context) error
		for _, p := range rd.steps {
			at := time.Since(start)
			end, note, err := p.begin(ctx, r, rand.New(rand.NewPCG(p.seed, 1)))
			r.say("%6.1fs  %s: %s (for %.1fs)", at.Seconds(), p.name, note, rd.hold.Seconds())
			out = append(out, happened{p.name, note, at, rd.hold})
			if end != nil {
				ends = append(ends, end)
			}
			if err != nil {
				err = fmt.Errorf("step %s: %w", p.name, err)
				for _, end := range ends {
					err = errors.Join(err, end(ctx))
				}
				return out, err
			}
		}
		herr := sleep(ctx, rd.hold)
		for _, end := range slices.Backward(ends) {
			if err := end(context.WithoutCancel(ctx)); err != nil {
				return out, fmt.Errorf("end of %v: %w", rd.steps[0].name, err)
			}
		}
		if herr != nil {
			return out, herr
		}
	}
	return out, nil
}

// steps are all faults.
func steps() []step {
	answer := func(status string) link.Fault {
		return link.Fault{Answer: []byte("HTTP/1.1 " + status + "\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")}
	}
	return []step{
		{name: "worker-kill", group: "worker", weight: 4, begin: func(_ context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			w := r.workers[rnd.IntN(len(r.workers))]
			return func(context.Context) error { return w.start() }, w.name, w.kill()
		}},
		{name: "workers-kill", group: "worker", weight: 1, begin: func(_ context.Context, r *rig, _ *rand.Rand) (func(context.Context) error, string, error) {
			var err error
			for _, w := range r.workers {
				err = errors.Join(err, w.kill())
			}
			return func(context.Context) error {
				var err error
				for _, w := range r.workers {
					err = errors.Join(err, w.start())
				}
				return err
			}, "all", err
		}},
		{name: "worker-stop", group: "worker", weight: 4, begin: func(_ context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			w := r.workers[rnd.IntN(len(r.workers))]
			return func(context.Context) error { return w.signal(syscall.SIGCONT) }, w.name, w.signal(syscall.SIGSTOP)
		}},
		{name: "worker-term", group: "worker", weight: 2, begin: func(_ context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			w := r.workers[rnd.IntN(len(r.workers))]
			clean, err := w.term(30 * time.Second)
			note := w.name + " drained"
			if !clean {
				note = w.name + " did not end in order"
			}
			return func(context.Context) error { return w.start() }, note, err
		}},
		{name: "push-kill", group: "producer", weight: 3, begin: func(ctx context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			n := 0
			for range 1 + rnd.IntN(4) {
				n += r.killProducers("wal-push")
				if err := sleep(ctx, time.Duration(rnd.IntN(300))*time.Millisecond); err != nil {
					return nil, "", err
				}
			}
			return nil, fmt.Sprintf("%d of archive_command", n), nil
		}},
		{name: "backup-kill", group: "producer", weight: 1, begin: func(ctx context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			// One begins every while.
			err := until(ctx, 2*r.opt.between, func() (bool, error) { return len(r.producers("backup-push")) > 0, nil })
			if errors.Is(err, errLimit) {
				return nil, leftOut + "no backup runs", nil
			}
			if err == nil {
				err = sleep(ctx, time.Duration(rnd.IntN(700))*time.Millisecond)
			}
			return nil, fmt.Sprintf("%d backup-push", r.killProducers("backup-push")), err
		}},
		{name: "reoffer", group: "producer", weight: 2, begin: func(_ context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			return nil, fmt.Sprintf("%d segments that are archived already, at once", r.reoffer(rnd, 4)), nil
		}},
		{name: "duplicate-jobs", group: "messages", weight: 2, begin: func(ctx context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			n := 0
			for _, data := range r.jobs.some(rnd, 8) {
				if _, err := r.bus.Publish(ctx, messages.WorkSubject(messages.KindArchive, cluster), nil, data); err == nil {
					n++
				}
			}
			return nil, fmt.Sprintf("%d archive jobs published again in another order", n), nil
		}},
		{name: "poison", group: "messages", weight: 1, begin: func(ctx context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			kinds := messages.Kinds()
			kind := kinds[rnd.IntN(len(kinds))]
			_, err := r.bus.Publish(ctx, messages.WorkSubject(kind, cluster), nil, []byte("\x00 this is no job"))
			if err != nil {
				return nil, "the broker did not take it: " + err.Error(), nil
			}
			r.poisoned.Add(1)
			return nil, string(kind), nil
		}},
		{name: "newer-version", group: "messages", weight: 1, begin: func(ctx context.Context, r *rig, _ *rand.Rand) (func(context.Context) error, string, error) {
			_, err := r.bus.Publish(ctx, messages.WorkSubject(messages.KindArchive, cluster), nil,
				[]byte(fmt.Sprintf(`{"v":%d,"kind":"archive","cluster":%q,"at":"2026-01-01T00:00:00Z","body":{"name":"00000001000000FF00000001"}}`, messages.Version+1, cluster)))
			if err != nil {
				return nil, "the broker did not take it: " + err.Error(), nil
			}
			r.newer.Add(1)
			return nil, "a job of the next version", nil
		}},
		{name: "queue-full", group: "worker", weight: 1, begin: func(ctx context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			var err error
			for _, w := range r.workers {
				err = errors.Join(err, w.signal(syscall.SIGSTOP))
			}
			n := r.reoffer(rnd, int(r.opt.queue>>20)/r.opt.segmentMB+4)
			return func(context.Context) error {
				var err error
				for _, w := range r.workers {
					err = errors.Join(err, w.signal(syscall.SIGCONT))
				}
				return err
			}, fmt.Sprintf("no worker moves, %d segments are pushed", n), err
		}},
		{name: "broker-kill", group: "broker", weight: 4, begin: func(_ context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			n := r.b.nodes[rnd.IntN(3)]
			return func(context.Context) error { return n.begin() }, n.name, n.kill()
		}},
		{name: "brokers-kill", group: "broker", weight: 1, begin: func(_ context.Context, r *rig, _ *rand.Rand) (func(context.Context) error, string, error) {
			return r.b.killAll()
		}},
		{name: "broker-stop", group: "broker", weight: 3, begin: func(_ context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			n := r.b.nodes[rnd.IntN(3)]
			return func(context.Context) error { return n.signal(syscall.SIGCONT) }, n.name, n.signal(syscall.SIGSTOP)
		}},
		{name: "broker-restart", group: "broker", weight: 2, begin: func(_ context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			n := r.b.nodes[rnd.IntN(3)]
			_, err := n.term(20 * time.Second)
			return func(context.Context) error { return n.begin() }, n.name, err
		}},
		{name: "partition", group: "broker", weight: 4, begin: func(_ context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			i, f := rnd.IntN(3), link.Fault{Cut: rnd.IntN(2) == 0}
			f.Silent = !f.Cut
			r.b.isolate(i, f)
			clients := rnd.IntN(2) == 0
			if clients {
				r.b.hosts[i].Set(f)
				r.b.workers[i].Set(f)
			}
			return func(context.Context) error {
				r.b.isolate(i, link.Fault{})
				if clients {
					r.b.hosts[i].Set(link.Fault{})
					r.b.workers[i].Set(link.Fault{})
				}
				return nil
			}, fmt.Sprintf("%s from the others (%s, clients too: %t)", r.b.nodes[i].name, kind(f), clients), nil
		}},
		{name: "host-cut", group: "net", weight: 2, begin: func(_ context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			return spoil(r.b.hosts, rnd, "the database host from the brokers")
		}},
		{name: "workers-cut", group: "net", weight: 2, begin: func(_ context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			return spoil(r.b.workers, rnd, "the workers from the brokers")
		}},
		{name: "power-one", group: "broker", weight: 2, disk: true, begin: func(_ context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			n := r.b.nodes[rnd.IntN(3)]
			if err := n.kill(); err != nil {
				return nil, "", err
			}
			said, err := n.disk.cut()
			return func(context.Context) error { return n.begin() }, n.name + ": " + said, err
		}},
		{name: "power-all", group: "broker", weight: 2, disk: true, begin: func(_ context.Context, r *rig, _ *rand.Rand) (func(context.Context) error, string, error) {
			end, _, err := r.b.killAll()
			var notes []string
			for _, n := range r.b.nodes {
				said, cerr := n.disk.cut()
				err = errors.Join(err, cerr)
				notes = append(notes, said)
			}
			return end, strings.Join(notes, "; "), err
		}},
		{name: "disk-full", group: "broker", weight: 1, disk: true, begin: func(ctx context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			n := r.b.nodes[rnd.IntN(3)]
			if !r.b.well(ctx) {
				return nil, leftOut + "the brokers are not well yet", nil
			}
			return func(context.Context) error {
				// A server whose disk was full goes on only after a restart.
				return errors.Join(n.disk.empty(), n.kill(), n.begin())
			}, n.name, n.disk.fill()
		}},
		{name: "bit-flip", group: "broker", weight: 1, begin: func(ctx context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			return r.damage(ctx, rnd, (*disk).flip)
		}},
		{name: "truncate", group: "broker", weight: 1, begin: func(ctx context.Context, r *rig, rnd *rand.Rand) (func(context.Context) error, string, error) {
			return r.damage(ctx, rnd, (*disk).truncate)
		}},
		{name: "s3-cut", group: "store", weight: 2, begin: store(link.Fault{Cut: true})},
		{name: "s3-silent", group: "store", weight: 2, begin: store(link.Fault{Silent: true})},
		{name: "s3-503", group: "store", weight: 2, begin: store(answer("503 Slow Down"))},
		{name: "s3-500", group: "store", weight: 1, begin: store(answer("500 Internal Server Error"))},
		{name: "s3-reset", group: "store", weight: 3, begin: store(link.Fault{ResetAfter: 300 << 10})},
		{name: "s3-slow", group: "store", weight: 2, begin: store(link.Fault{Delay: 50 * time.Millisecond, Rate: 1 << 20})},
		{name: "s3-restart", group: "store", weight: 1, begin: func(_ context.Context, r *rig, _ *rand.Rand) (func(context.Context) error, string, error) {
			return r.s3.Restart, "killed", r.s3.Stop()
		}},
		{name: "s3-freeze", group: "store", weight: 1, begin: func(_ context.Context, r *rig, _ *rand.Rand) (func(context.Context) error, string, error) {
			return func(context.Context) error { return r.s3.Thaw() }, "SIGSTOP", r.s3.Freeze()
		}},
		{name: "postgres-kill", group: "postgres", weight: 1, begin: func(_ context.Context, r *rig, _ *rand.Rand) (func(context.Context) error, string, error) {
			r.c.Kill()
			return func(context.Context) error { return r.c.StartErr() }, "SIGKILL", nil
		}},
	}
}

func kind(f link.Fault) string {
	if f.Cut {
		return "cut"
	}
	return "silent"
}

func store(f link.Fault) func(context.Context, *rig, *rand.Rand) (func(context.Context) error, string, error) {
	return func(_ context.Context, r *rig, _ *rand.Rand) (func(context.Context) error, string, error) {
		r.store.Set(f)
		return func(context.Context) error { r.store.Set(link.Fault{}); return nil }, "between workers and S3", nil
	}
}

func spoil(links []*link.Link, rnd *rand.Rand, note string) (func(context.Context) error, string, error) {
	f := link.Fault{Cut: rnd.IntN(2) == 0}
	f.Silent = !f.Cut
	for _, l := range links {
		l.Set(f)
	}
	return func(context.Context) error {
		for _, l := range links {
			l.Set(link.Fault{})
		}
		return nil
	}, note + " (" + kind(f) + ")", nil
}

func (b *brokers) killAll() (func(context.Context) error, string, error) {
	var err error
	for _, n := range b.nodes {
		err = errors.Join(err, n.kill())
	}
	return func(context.Context) error {
		var err error
		for _, n := range b.nodes {
			err = errors.Join(err, n.begin())
		}
		return err
	}, "all", err
}

// well waits a while for all servers: what may cost a replica its messages is
// done only while the two others have them.
func (b *brokers) well(ctx context.Context) bool {
	return b.await(ctx, 20*time.Second, b.nodes...) == nil
}

// damage spoils a file of one server's store while it is down.
func (r *rig) damage(ctx context.Context, rnd *rand.Rand, how func(*disk, *rand.Rand, string) (string, error)) (func(context.Context) error, string, error) {
	n := r.b.nodes[rnd.IntN(3)]
	if !r.b.well(ctx) {
		return nil, leftOut + "the brokers are not well yet", nil
	}
	if err := n.kill(); err != nil {
		return nil, "", err
	}
	stream := []string{"WALHERD_WAL", "WALHERD_WORK", "WALHERD_EVENT"}[rnd.IntN(3)]
	said, err := how(n.disk, rnd, stream)
	return func(context.Context) error { return n.begin() }, fmt.Sprintf("%s, %s: %s", n.name, stream, said), err
}

// killProducers kills the processes of this run's program that do what.
func (r *rig) killProducers(what string) (n int) {
	for _, pid := range r.producers(what) {
		if syscall.Kill(pid, syscall.SIGKILL) == nil {
			n++
		}
	}
	return n
}

// producers are those processes.
func (r *rig) producers(what string) (pids []int) {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil
	}
	for _, p := range procs {
		data, err := os.ReadFile(p)
		if err != nil || !strings.HasPrefix(string(data), r.bins.walherd+"\x00"+what+"\x00") {
			continue
		}
		// Another run may have the same program.
		env, err := os.ReadFile(filepath.Join(filepath.Dir(p), "environ"))
		if err != nil || !strings.Contains(string(env), "WALHERD_NATS_URL="+urls(r.b.hosts)+"\x00") {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(p, "/proc/%d/", &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// reoffer pushes up to n files again that are archived already, at once and in
// any order. Their content is what it was, so each must be success or "not
// archived", and change nothing.
func (r *rig) reoffer(rnd *rand.Rand, n int) int {
	sums, err := filepath.Glob(filepath.Join(r.truth, "*.sha256"))
	if err != nil {
		return 0
	}
	rnd.Shuffle(len(sums), func(i, j int) { sums[i], sums[j] = sums[j], sums[i] })
	sums = sums[:min(n, len(sums))]
	for _, s := range sums {
		r.reoffers.Go(func() {
			out, err := r.walherd(nil, "wal-push", strings.TrimSuffix(s, ".sha256")).CombinedOutput()
			appendFile(filepath.Join(r.dir, "reoffers.log"), fmt.Sprintf("%s%s: %v\n", out, filepath.Base(s), err))
		})
	}
	return len(sums)
}
