package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/seal"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/broker"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/messages/transit"
	"github.com/walherd/walherd/workers/archive"
	"github.com/walherd/walherd/workers/assemble"
	"github.com/walherd/walherd/workers/changemap"
	"github.com/walherd/walherd/workers/intake"
	"github.com/walherd/walherd/workers/kms"
	"github.com/walherd/walherd/workers/runner"
)

// fleet is what a command that publishes work is connected to: a broker
// elsewhere, or one inside this process with workers of its own. Everything
// above it is the same code in both shapes.
type fleet struct {
	cluster messages.Cluster
	bus     *bus.Bus
	carrier transit.Carrier

	embedded *broker.Embedded  // nil with a broker elsewhere
	storages *storages         // nil where other processes work
	workers  *runner.Runner    // nil where other processes work
	maps     *changemap.Keeper // nil without WALG_USE_WAL_DELTA
	gate     *runner.Gate      // nil in a command
	backups  string            // the storage this process stores backups in
}

// localWindow is how many bytes may be between producer and worker of one
// process. They share the memory, so it need not cover any latency.
const localWindow = 8 << 20

// connect joins the configured broker, or starts the embedded one with workers
// for the given kinds of job. The caller closes the fleet.
func (a *app) connect(ctx context.Context, r role, kinds ...messages.Kind) (f *fleet, err error) {
	cluster, err := messages.ParseCluster(a.set.Walherd.Cluster)
	if err != nil {
		return nil, err
	}
	f = &fleet{cluster: cluster}
	defer func() {
		if err != nil {
			f.close(ctx, a.log)
		}
	}()
	if a.set.Walherd.NATSURL != "" {
		return f, a.connectRemote(ctx, f, r)
	}
	// The broker starts while the storages are opened: archive_command pays
	// for both every time.
	started := make(chan error, 1)
	go func() (err error) {
		defer func() { started <- err }()
		f.embedded, err = broker.Start(broker.Options{})
		return err
	}()
	// The rate limit is for backups; WAL comes first.
	f.storages, err = a.openStorages(ctx, true, !slices.Contains(kinds, messages.KindArchive))
	if berr := <-started; err == nil {
		err = berr
	}
	if err != nil {
		return f, err
	}
	f.bus, err = bus.Connect(ctx, bus.Options{InProcess: f.embedded, Name: a.name, Logger: a.log})
	if err != nil {
		return f, err
	}
	if _, err = topology.Ensure(ctx, f.bus, topology.Config{Cluster: f.cluster, Embedded: true, Kinds: kinds, AckWait: a.set.Walherd.AckWait}); err != nil {
		return f, err
	}
	f.carrier = transit.NewLocal(localWindow)
	return f, a.startWorkers(ctx, f, f.storages, f.storages, kinds)
}

// role is what a process is to the broker: it decides where its answers go
// and who sets the broker up, so that the broker can hold each to its own.
type role string

const (
	// roleProducer publishes WAL and parts; it may neither create nor delete.
	roleProducer role = "producer"
	roleWorker   role = "worker"
	// roleOperator asks, and looks after the queue.
	roleOperator role = "operator"
)

// join connects to the configured broker, within the context's deadline.
func (a *app) join(ctx context.Context, r role, cluster messages.Cluster) (*bus.Bus, error) {
	w := &a.set.Walherd
	timeout := time.Duration(0)
	if at, ok := ctx.Deadline(); ok {
		timeout = time.Until(at)
	}
	return bus.Connect(ctx, bus.Options{
		ConnectTimeout: timeout,
		URL:            w.NATSURL, Name: fmt.Sprintf("%s %s %s", a.name, r, cluster), Logger: a.log,
		Inbox: fmt.Sprintf("_INBOX.%s.%s", r, cluster),
		Login: bus.Login{CredsFile: w.NATSCreds, NKeyFile: w.NATSNKey, Token: w.NATSToken, User: w.NATSUser, Password: w.NATSPassword},
		TLS:   bus.TLSFiles{CA: w.NATSCA, Cert: w.NATSCert, Key: w.NATSKey},
	})
}

func (a *app) connectRemote(ctx context.Context, f *fleet, r role) (err error) {
	if f.bus, err = a.join(ctx, r, f.cluster); err != nil {
		return err
	}
	if err := a.ensure(ctx, f.bus, f.cluster, r); err != nil {
		return err
	}
	f.carrier = transit.NewQueue(f.bus, transit.QueueOptions{Window: int(a.set.Walherd.Window)})
	return nil
}

// ensure creates what is missing at the broker and warns of what differs.
// Where this process may not create, somebody who may has done it before. A
// producer only looks for the last stream made: archive_command pays for
// every question.
func (a *app) ensure(ctx context.Context, b *bus.Bus, cluster messages.Cluster, r role) error {
	if r == roleProducer {
		_, found, err := b.Stream(ctx, topology.StreamWork)
		if found || errors.Is(err, bus.ErrDenied) {
			return nil
		}
	}
	diffs, err := topology.Ensure(ctx, b, a.topology(cluster))
	for _, d := range diffs {
		a.log.Warn("broker set-up differs", "difference", d)
	}
	if errors.Is(err, bus.ErrDenied) {
		return fmt.Errorf("%w; run `%s queue setup` as a user who may create streams", err, a.name)
	}
	return err
}

// topology is what the settings want of a broker elsewhere.
func (a *app) topology(cluster messages.Cluster) topology.Config {
	w := &a.set.Walherd
	return topology.Config{
		Cluster: cluster, Replicas: w.Replicas, AckWait: w.AckWait,
		MaxWALBytes: int64(w.MaxWALBytes), MaxChunkBytes: int64(w.MaxChunkBytes),
	}
}

// startWorkers runs the pools for the given kinds in this process. A WAL file
// goes to whichever storage takes writes at that moment. All objects of a
// backup must be in one storage, so that is chosen once.
func (a *app) startWorkers(ctx context.Context, f *fleet, backups, wal *storages, kinds []messages.Kind) error {
	codec, err := a.codec(ctx)
	if err != nil {
		return err
	}
	if codec.Sealer != nil {
		if err := codec.Sealer.CanSeal(); err != nil {
			return err
		}
		a.log.Info("objects are encrypted", "with", codec.Sealer.Describe())
	}
	deps := assemble.Deps{Carrier: f.carrier, Codec: codec, Bus: f.bus, Logger: a.log}
	if slices.Contains(kinds, messages.KindPart) {
		if deps.Repo, err = backups.writer(ctx); err != nil {
			return err
		}
		f.backups = deps.Repo.Name()
		a.log.Info("Backup will be pushed to storage: " + f.backups)
	}
	var pools []runner.Pool
	for _, k := range kinds {
		switch k {
		case messages.KindArchive:
			if a.set.Postgres.UseWALDelta {
				f.maps = changemap.NewKeeper(codec, a.changesLayout(), a.log)
			}
			pools = append(pools, runner.Pool{Kind: k, Slots: a.set.Walherd.WALSlots, Handler: &archive.Handler{
				Choose: wal.writer, Carrier: f.carrier, Codec: codec, Bus: f.bus, Logger: a.log, Tries: a.set.Walherd.JobTries, Maps: f.maps,
			}})
		case messages.KindPart:
			slots := max(a.set.Walherd.WorkerSlots, a.readers()+1)
			pools = append(pools, runner.Pool{Kind: k, Slots: slots, Handler: &assemble.PartHandler{Deps: deps}})
		case messages.KindExpire:
			pools = append(pools, runner.Pool{Kind: k, Slots: 1, Handler: a.expireHandler(f, backups)})
		case messages.KindCommit:
			pools = append(pools, runner.Pool{Kind: k, Slots: 1, Handler: &assemble.CommitHandler{Deps: deps}})
		}
	}
	f.workers = runner.New(runner.Options{
		Bus: f.bus, Worker: a.processName(), Logger: a.log, Tracer: a.tracer, Cluster: f.cluster,
		Heartbeat: a.set.Walherd.AckWait / 3, Tries: a.set.Walherd.JobTries,
		DeadLetters: f.embedded == nil, Gate: f.gate,
	}, pools...)
	// Workers outlive an interrupt of the command, so that it can wait for
	// what it published to be given up in order.
	return f.workers.Start(context.WithoutCancel(ctx))
}

// codec is how objects are stored: compression and, with a key, encryption. A
// key that cannot be used is an error before anything is written.
func (a *app) codec(ctx context.Context) (intake.Codec, error) {
	method, err := compress.ParseMethod(a.set.General.CompressionMethod)
	if err != nil {
		return intake.Codec{}, fmt.Errorf("setting WALG_COMPRESSION_METHOD: %w", err)
	}
	opt := compress.Options{Method: method, Workers: min(runtime.GOMAXPROCS(0), 8)}
	if l := a.set.General.ZstdLevel; l != "" {
		if opt.Level, err = compress.ParseLevel(l); err != nil {
			return intake.Codec{}, fmt.Errorf("setting WALG_ZSTD_LEVEL: %w", err)
		}
	}
	if err := opt.Validate(); err != nil {
		return intake.Codec{}, err
	}
	sealer, err := a.sealer(ctx)
	return intake.Codec{Compress: opt, Sealer: sealer}, err
}

// sealer is the configured encryption; nil is none.
func (a *app) sealer(ctx context.Context) (seal.Sealer, error) {
	e := &a.set.Encryption
	return seal.Choose(ctx, seal.Options{
		PGPKey: e.PGPKey, PGPKeyPath: e.PGPKeyPath, PGPKeyPassphrase: e.PGPKeyPassphrase, GPGKeyID: e.GPGKeyID,
		EnvelopePGPKey: e.EnvelopePGPKey, EnvelopePGPKeyPath: e.EnvelopePGPKeyPath,
		EnvelopeCacheExpiration: e.EnvelopeCacheExpiration, EnvelopeYCKMSKeyID: e.EnvelopeYCKMSKeyID,
		EnvelopeYCServiceAccount: e.EnvelopeYCServiceAccount, EnvelopeYCEndpoint: e.EnvelopeYCEndpoint,
		CSEKMSID: e.CSEKMSID, CSEKMSRegion: e.CSEKMSRegion,
		YCCSEKMSKeyID: e.YCCSEKMSKeyID, YCServiceAccountKeyFile: e.YCServiceAccountKeyFile,
		LibsodiumKey: e.LibsodiumKey, LibsodiumKeyPath: e.LibsodiumKeyPath, LibsodiumKeyTransform: e.LibsodiumKeyTransform,
		Yandex: func(_ context.Context, o seal.YandexKeyOptions) (seal.KeyService, error) {
			return kms.NewYandex(o, kms.YandexOptions{})
		},
		AWS: func(ctx context.Context, o seal.AWSKeyOptions) (seal.KeyService, error) { return kms.NewAWS(ctx, o) },
	})
}

// readers is how many parts are read from disk side by side.
func (a *app) readers() int {
	if a.turbo {
		return max(a.set.General.UploadDiskConcurrency, 4)
	}
	return a.set.General.UploadDiskConcurrency
}

// drainLimit bounds how long the workers of a finished or interrupted command
// may take to end.
const drainLimit = 10 * time.Second

// workersMissed is how long a command waits before it looks whether anybody
// works: most are done by then.
const workersMissed = 3 * time.Second

// missWorkers says in the log of a command that publishes work if no worker is
// there to take it: what waits for one gives up after limit, and says nothing
// before. The caller calls stop.
func (a *app) missWorkers(ctx context.Context, f *fleet, limit time.Duration) (stop func()) {
	if f.embedded != nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-time.After(workersMissed):
		case <-ctx.Done():
			return
		}
		// A worker refuses to run nothing; what counts is that it answers.
		if _, err := f.bus.Request(ctx, messages.APISubject(f.cluster, verbRun), nil); errors.Is(err, bus.ErrNobody) {
			a.log.Warn(fmt.Sprintf("no worker of cluster %s answers: waiting up to %s for one (%s worker, with WALHERD_CLUSTER=%s)", f.cluster, limit, a.name, f.cluster))
		}
	})
	return func() { cancel(); wg.Wait() }
}

// close drains this process's workers and disconnects.
func (f *fleet) close(ctx context.Context, log *slog.Logger) {
	if f.workers != nil {
		limit := drainLimit
		if ctx.Err() != nil {
			limit = 0 // interrupted: nobody waits for the jobs any more
		}
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		if err := f.workers.Stop(drain); err != nil && ctx.Err() == nil {
			log.Warn("stop workers", telemetry.KeyError, err)
		}
		if err := f.maps.Close(drain); err != nil && ctx.Err() == nil {
			log.Warn("stop workers", telemetry.KeyError, err)
		}
		cancel()
	}
	if f.bus != nil {
		f.bus.Close()
	}
	if f.embedded != nil {
		f.embedded.Abandon()
	}
	if f.storages != nil {
		f.storages.close()
	}
}
