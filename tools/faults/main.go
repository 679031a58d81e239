// Command faults runs walherd as a fleet (a PostgreSQL server under load, a
// JetStream cluster of three processes, two workers, an S3 server), spoils it
// for a while in every way that it is meant to survive, lets it settle, and has
// an oracle judge what is left. It exits with 1 when a promise was broken.
//
//	go run ./tools/faults --seed 7 --duration 10m
//
// The sequence of faults depends on the seed alone, which is printed. What
// the processes make of it depends on the machine: the same seed may find
// something at one time and nothing at another.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/walherd/walherd/producer/pgtest"
)

// options of a run.
type options struct {
	seed      uint64
	duration  time.Duration
	only      string
	list      bool
	ack       string
	compress  string
	env       list
	workers   int
	slots     int
	segmentMB int
	hold      time.Duration
	queue     int64
	disk      int64
	pace      time.Duration
	between   time.Duration
	settle    time.Duration
	restores  int
	keep      string
	bins      string
	figures   bool
	plant     bool

	// plainDisks keeps the brokers' stores in ordinary directories.
	plainDisks bool
	// byHand leaves archiving to the caller.
	byHand bool
	// drain is how long a worker that was told to end may finish its jobs.
	drain time.Duration
	// segmentGiven: segmentMB is not the default.
	segmentGiven bool
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func parse(args []string) (o options, err error) {
	o.drain = 10 * time.Second
	f := flag.NewFlagSet("faults", flag.ContinueOnError)
	f.Uint64Var(&o.seed, "seed", 0, "of the faults; 0 chooses one")
	f.DurationVar(&o.duration, "duration", 10*time.Minute, "how long faults are made")
	f.DurationVar(&o.hold, "hold", 10*time.Second, "how long a fault holds at most")
	f.StringVar(&o.only, "only", "", "faults to choose from, separated by commas; empty is all. With --figures: archiver, scaling, cpu")
	f.BoolVar(&o.list, "list", false, "print the faults of the seed and end")
	f.StringVar(&o.ack, "ack", "stored", "WALHERD_WAL_ACK: stored or queued")
	f.StringVar(&o.compress, "compress", "lz4", "WALG_COMPRESSION_METHOD")
	f.Var(&o.env, "env", "a further setting for all processes, NAME=VALUE; may be repeated")
	f.IntVar(&o.workers, "workers", 2, "worker processes")
	f.IntVar(&o.slots, "slots", 2, "WALHERD_WAL_SLOTS of each")
	f.IntVar(&o.segmentMB, "segment", 4, "size of a WAL segment in MiB; --figures takes 16 unless this is given")
	f.Int64Var(&o.queue, "queue", 32<<20, "WALHERD_QUEUE_WAL_BYTES: small, so that it gets full")
	f.Int64Var(&o.disk, "disk", 768<<20, "size of each broker's disk in bytes")
	f.DurationVar(&o.pace, "pace", 700*time.Millisecond, "how often a WAL segment is filled")
	f.DurationVar(&o.between, "between", 15*time.Second, "from one backup to the next")
	f.DurationVar(&o.settle, "settle", 3*time.Minute, "how long the queues may take to empty after the faults")
	f.IntVar(&o.restores, "restores", 4, "backups to restore at most")
	f.StringVar(&o.keep, "keep", "", "directory that gets the logs of the run")
	f.StringVar(&o.bins, "bins", "", "directory for the programs that are built; empty is one of the run's own")
	f.BoolVar(&o.plainDisks, "plain-disks", false, "mount nothing, and so have no power loss and no full disk")
	f.BoolVar(&o.figures, "figures", false, "measure instead, each of four modes of archiving for --duration: latency, WAL per second; scaling with workers; CPU time of the database host")
	f.BoolVar(&o.plant, "plant", false, "spoil two archived segments before the oracle looks, to see that it sees")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	f.Visit(func(f *flag.Flag) { o.segmentGiven = o.segmentGiven || f.Name == "segment" })
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.seed == 0 {
		o.seed = rand.Uint64N(1 << 32)
	}
	return o, nil
}

func main() {
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		err = run(ctx, o)
		stop()
	}
	var child *exec.ExitError
	if errors.As(err, &child) {
		os.Exit(child.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1)
	}
}

// inside tells a run that it has mounts of its own.
const inside = "FAULTS_INSIDE"

func run(ctx context.Context, o options) error {
	start := time.Now()
	say := func(format string, args ...any) {
		fmt.Printf("%7.1fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
	if o.figures {
		return figures(ctx, o, say)
	}
	disks := mountable() && !o.plainDisks
	chosen, err := choice(o.only, disks)
	if err != nil {
		return err
	}
	if o.list {
		for _, rd := range plan(o.seed, o.duration, o.hold, chosen) {
			for _, s := range rd.steps {
				fmt.Printf("after %s, for %s: %s\n", rd.pause, rd.hold, s.name)
			}
		}
		return nil
	}
	if disks && os.Getenv(inside) == "" {
		// In a mount namespace of its own, nothing stays mounted however the
		// run ends.
		self, err := os.Executable()
		if err != nil {
			return err
		}
		cmd := exec.Command(self, append(os.Args[1:], fmt.Sprint("--seed=", o.seed))...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.Env = append(os.Environ(), inside+"=yes")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
		if err := cmd.Start(); err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
		defer stop()
		return cmd.Wait()
	}
	return pgtest.Do("faults", say, func(t pgtest.TB) error { return spoilAndJudge(ctx, t, o, chosen, say) })
}

// choice is the steps that a run takes from.
func choice(only string, disks bool) ([]step, error) {
	all := steps()
	var out []step
	var names []string
	want := strings.FieldsFunc(only, func(c rune) bool { return c == ',' || c == ' ' })
	for _, s := range all {
		names = append(names, s.name)
		if (len(want) == 0 || slices.Contains(want, s.name)) && (disks || !s.disk) {
			out = append(out, s)
		}
	}
	for _, w := range want {
		if !slices.Contains(names, w) {
			return nil, fmt.Errorf("there is no fault %q; there are %s", w, strings.Join(names, " "))
		}
	}
	if len(out) == 0 {
		return nil, errors.New("none of these faults can be made here: they need root and /dev/fuse, and no --plain-disks")
	}
	return out, nil
}

func spoilAndJudge(ctx context.Context, t pgtest.TB, o options, chosen []step, say func(string, ...any)) (err error) {
	say("seed %d, faults for %s, ack %s, segments of %d MiB, %d workers", o.seed, o.duration, o.ack, o.segmentMB, o.workers)
	r, err := newRig(ctx, t, o, say)
	defer func() {
		if o.keep != "" {
			say("logs are kept in %s", o.keep)
			err = errors.Join(err, r.keepLogs(o.keep))
		}
	}()
	if err != nil {
		return err
	}
	r.c.Run("pgbench", "-i", "-q", "-s", "1", "postgres")
	r.c.SQL("CREATE TABLE marker (id serial, at timestamptz DEFAULT now())")
	say("everything runs; the first backup")
	if err := r.takeBackup(ctx, 2*time.Minute); err != nil {
		return fmt.Errorf("the backup before any fault: %w", err)
	}
	work, stopWork := context.WithCancel(ctx)
	defer stopWork()
	wait := r.workload(work)
	begun := time.Now()
	took, err := r.nemesis(ctx, plan(o.seed, o.duration, o.hold, chosen), begun.Add(o.duration))
	spent := time.Since(begun)
	stopWork()
	if err := errors.Join(err, r.mend(ctx)); err != nil {
		return err
	}
	say("the faults are over; settling")
	wait()
	v, err := r.judge(ctx)
	if err != nil {
		return err
	}
	return r.report(v, took, spent)
}

// keepLogs copies what tells how a run went.
func (r *rig) keepLogs(to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	var errs []error
	patterns := []string{filepath.Join(r.dir, "*.log"), filepath.Join(r.dir, "brokers", "*.*"), filepath.Join(r.truth, "push*")}
	if r.c != nil {
		patterns = append(patterns, filepath.Join(r.c.Dir(), "*.log"))
	}
	for _, pattern := range patterns {
		files, err := filepath.Glob(pattern)
		errs = append(errs, err)
		for _, f := range files {
			data, err := os.ReadFile(f)
			errs = append(errs, err, os.WriteFile(filepath.Join(to, filepath.Base(f)), data, 0o644))
		}
	}
	return errors.Join(errs...)
}
