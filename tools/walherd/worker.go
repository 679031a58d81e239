package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	notify "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/walherd/walherd/engine/service"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/deadletter"
	"github.com/walherd/walherd/messages/transit"
)

func (a *app) worker() *cobra.Command {
	var drain time.Duration
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Store what producers publish: take jobs from the queue until told to stop",
		Long: "Takes archive, part, commit and expire jobs of the cluster WALHERD_CLUSTER from the broker at WALHERD_NATS_URL and\n" +
			"works them off, and answers read-only commands of hosts that have no storage. One storage location belongs to one\n" +
			"cluster, so one worker serves one cluster.\n" +
			"SIGTERM drains: no more jobs are taken, running ones are finished within --drain, then handed back.\n" +
			"A second signal aborts at once.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.start(cmd.Context(), cmd); err != nil {
				return err
			}
			if a.set.Walherd.NATSURL == "" {
				return fmt.Errorf("worker needs a broker: set WALHERD_NATS_URL (without one, every command works its own jobs)")
			}
			w, err := a.openWorker(cmd.Context())
			if err != nil {
				return err
			}
			defer w.close()
			return a.live(cmd.Context(), drain, w.fleet, w.wal, w.services()...)
		},
	}
	cmd.Flags().DurationVar(&drain, "drain", 30*time.Second, "how long running jobs may take to finish after SIGTERM")
	return cmd
}

// workerSet is what a process that works off the queue consists of.
type workerSet struct {
	app          *app
	fleet        *fleet
	backups, wal *storages
	retention    service.Service // nil without a schedule
}

// openWorker connects storages and broker and makes the pools. The caller
// closes it.
func (a *app) openWorker(ctx context.Context) (w *workerSet, err error) {
	a.collect(collectOften)
	a.holdMemory(a.set.Walherd.WorkerSlots + a.set.Walherd.WALSlots)
	w = &workerSet{app: a}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.backups, err = a.openStorages(ctx, true, true); err != nil {
		return w, err
	}
	// WAL comes first: no rate limit holds it up.
	if w.wal, err = a.openStorages(ctx, true, false); err != nil {
		return w, err
	}
	if w.fleet, err = a.connect(ctx, roleWorker); err != nil {
		return w, err
	}
	if w.retention, err = a.retention(w.fleet); err != nil {
		return w, err
	}
	w.fleet.gate = a.gate(w.fleet, w.wal)
	return w, a.startWorkers(ctx, w.fleet, w.backups, w.wal, messages.Kinds())
}

// services are what runs beside the pools.
func (w *workerSet) services() []service.Service {
	a := w.app
	all := []service.Service{
		a.offer(w.fleet, serviceWorker, "stores WAL and backups", a.answering(w.fleet.cluster), a.marking(w.fleet.cluster)),
		newTask("sweep", a, func(ctx context.Context) error { return a.sweep(ctx, w.fleet) }),
		a.refurnish(w.fleet, 0),
		a.fitness(w.fleet),
	}
	if w.retention != nil {
		all = append(all, w.retention)
	}
	return all
}

func (w *workerSet) close() {
	if w.fleet != nil {
		w.fleet.close(context.Background(), w.app.log)
	}
	for _, s := range []*storages{w.wal, w.backups} {
		if s != nil {
			s.close()
		}
	}
}

// sweepEvery is how often workers look for chunks that no job refers to, at the
// least: where pushes are given little time, they look more often.
const sweepEvery = 5 * time.Minute

// sweep removes, again and again, WAL chunks whose producer died before it
// published their job, and jobs that no worker gets any more. One worker of a
// cluster does it at a time.
func (a *app) sweep(ctx context.Context, f *fleet) error {
	queue, ok := f.carrier.(*transit.Queue)
	if !ok {
		return nil
	}
	// Further back than any producer takes.
	age := 3*a.set.Walherd.WALPushTimeout + time.Minute
	every := min(sweepEvery, age/2)
	for {
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return nil
		}
		lease, err := f.bus.Acquire(ctx, string(f.cluster)+".sweep", a.processName(), 0)
		if errors.Is(err, bus.ErrHeld) {
			continue
		}
		if err == nil {
			err = lease.Hold(ctx, func(ctx context.Context) error {
				letters, err := deadletter.List(ctx, f.bus, f.cluster)
				if err != nil {
					return err
				}
				for _, l := range letters {
					a.relieve(ctx, f, l)
				}
				swept, err := queue.Sweep(ctx, f.cluster, age, func(ctx context.Context) (held []string, err error) {
					letters, err := deadletter.List(ctx, f.bus, f.cluster)
					for _, l := range letters {
						held = append(held, l.Transfer())
					}
					return held, err
				})
				if swept.Transfers > 0 {
					a.log.Warn("removed WAL chunks that no job refers to", "transfers", swept.Transfers, "chunks", swept.Chunks)
				}
				if err != nil {
					return err
				}
				swept, err = queue.SweepStreams(ctx, f.cluster, a.set.Walherd.PartTimeout)
				if swept.Transfers > 0 {
					a.log.Warn("removed chunks of backups that died", "transfers", swept.Transfers, "chunks", swept.Chunks)
				}
				return err
			})
		}
		if err != nil && ctx.Err() == nil {
			a.log.Warn("sweep the queue", telemetry.KeyError, err)
		}
	}
}

// relieve moves a job that the broker no longer hands out from the work queue
// to the dead letters, or, of a file that PostgreSQL was told is archived, to
// its end.
func (a *app) relieve(ctx context.Context, f *fleet, l deadletter.Letter) {
	if !l.Stuck {
		return
	}
	keep := l.Acknowledged()
	if err := deadletter.Relieve(ctx, f.bus, l, a.processName(), keep); err != nil {
		// A broker with roles lets operators do it only.
		a.log.Error(fmt.Sprintf("a job is stuck in the queue, out of deliveries: run `%s deadletter retry %d`", a.name, l.ID),
			telemetry.KeyKind, l.Kind, "object", l.Object, telemetry.KeyError, err)
		return
	}
	a.log.Warn("a job was stuck in the queue, out of deliveries", telemetry.KeyKind, l.Kind, "object", l.Object, "queued_again", keep)
}

// processName tells this process from others.
func (a *app) processName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s-%d", host, os.Getpid())
}

// task is a function as a service.
type task struct {
	service.Base
	do func(fetch, work context.Context) error
}

// newTask makes a service that ends when the drain begins.
func newTask(name string, a *app, do func(ctx context.Context) error) *task {
	return newWork(name, a, func(fetch, _ context.Context) error { return do(fetch) })
}

// newWork makes a service that takes no more work when fetch ends, and gives up
// what it does when work ends.
func newWork(name string, a *app, do func(fetch, work context.Context) error) *task {
	return &task{do: func(fetch, work context.Context) error {
		err := service.Catch(func() error { return do(fetch, work) })
		if err != nil && fetch.Err() == nil {
			a.log.Error(name+" has ended", telemetry.KeyError, err)
			return fmt.Errorf("%s: %w", name, err)
		}
		if work.Err() != nil {
			return err
		}
		return nil
	}}
}

// Start implements service.Service.
func (t *task) Start(ctx context.Context) error { return t.Launch(ctx, nil, t.do) }

// offer answers requests as a NATS service while the process lives. The drain
// finishes those that run: a backup that somebody asked for takes its time.
func (a *app) offer(f *fleet, name, what string, endpoints ...bus.Endpoint) service.Service {
	return newWork(name, a, func(fetch, work context.Context) error {
		stop, err := f.bus.Serve(work, bus.ServiceInfo{
			Name: name, Version: semver(version), Description: what,
			Metadata: map[string]string{
				"cluster": string(f.cluster), "name": a.processName(), "version": version,
				"slots": fmt.Sprint(a.set.Walherd.WorkerSlots), "wal_slots": fmt.Sprint(a.set.Walherd.WALSlots), "storage": f.backups,
			},
		}, a.log, endpoints...)
		if err != nil {
			return err
		}
		<-fetch.Done()
		stop(work)
		if work.Err() != nil {
			return service.ErrAborted
		}
		return nil
	})
}

// semver is this build's version in the only form that services know.
func semver(v string) string {
	var major, minor, patch int
	if n, _ := fmt.Sscanf(v, "v%d.%d.%d", &major, &minor, &patch); n == 3 {
		return fmt.Sprintf("%d.%d.%d", major, minor, patch)
	}
	return "0.0.0"
}

// live runs services until the first signal, or until one of them ends by
// itself, then drains: services in reverse order, this process's workers last.
// stores, unless nil, must take writes for the process to be ready.
func (a *app) live(ctx context.Context, limit time.Duration, f *fleet, stores *storages, services ...service.Service) error {
	if addr := a.set.Walherd.HealthListen; addr != "" {
		services = append(services, &health{addr: addr, app: a, cluster: f.cluster, bus: f.bus, storages: stores, gate: f.gate})
	}
	// The services outlive the signal: it begins their drain.
	living := context.WithoutCancel(ctx)
	if err := service.StartAll(living, services...); err != nil {
		return err
	}
	a.tellSystemd(notify.SdNotifyReady)
	a.log.Info("ready", telemetry.KeyCluster, f.cluster, "part_slots", a.set.Walherd.WorkerSlots, "wal_slots", a.set.Walherd.WALSlots)
	if f.workers != nil {
		a.log.Info("worker is taking jobs", telemetry.KeyCluster, f.cluster)
	}
	stopWatchdog := a.pulse()
	ended := firstDone(ctx, services)
	stopWatchdog()
	a.tellSystemd(notify.SdNotifyStopping)
	drain, cancel := context.WithTimeout(living, limit)
	defer cancel()
	drain, stop := signal.NotifyContext(drain, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// Said only now: who reads it may send the second signal at once.
	a.log.Info("draining: finishing running jobs", "limit", limit)
	err := service.StopAll(drain, services...)
	if f.workers != nil {
		err = errors.Join(err, f.workers.Stop(drain))
	}
	return cmp.Or(ended, err)
}

// firstDone waits for ctx, or for a service that ends before it; that is its
// error.
func firstDone(ctx context.Context, services []service.Service) error {
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, len(services))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, s := range services {
		wg.Go(func() {
			select {
			case <-s.Done():
				if err := s.Err(); err != nil {
					done <- err
				}
			case <-watch.Done():
			}
		})
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return nil
	}
}

// pulse tells systemd's watchdog, if it has set one, that this process runs.
func (a *app) pulse() (stop func()) {
	interval, err := notify.SdWatchdogEnabled(false)
	if err != nil || interval <= 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(interval / 2)
		defer t.Stop()
		for {
			a.tellSystemd(notify.SdNotifyWatchdog)
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}
