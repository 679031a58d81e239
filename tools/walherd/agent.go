package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/walherd/walherd/engine/service"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/producer/daemon"
	"github.com/walherd/walherd/producer/daemon/wire"
	"github.com/walherd/walherd/producer/schedule"
	"github.com/walherd/walherd/tools/walherd/prefetch"
	"github.com/walherd/walherd/tools/walherd/settings"
)

// The verbs that an agent answers, the last tokens of their subjects.
const (
	verbPush  = "push"
	verbAgent = "agent"
	verbAhead = "prefetch"
)

// agentable marks the command that agents run for others.
const agentable = "walherd.agentable"

func (a *app) agent() *cobra.Command {
	var drain time.Duration
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run on a database host: archive WAL ahead, back up on request and on schedule",
		Long: "Serves the PostgreSQL cluster at PGDATA. It answers requests over the broker at WALHERD_NATS_URL (walherd request\n" +
			"push|agent|prefetch|verify), takes backups by WALHERD_BACKUP_SCHEDULE, verifies the archive by\n" +
			"WALHERD_VERIFY_SCHEDULE, deletes by WALHERD_RETENTION_SCHEDULE (which is better left to the workers), and archives\n" +
			"and fetches WAL on request at the socket WALHERD_SOCKET, reading ahead. SIGTERM drains, a second signal aborts.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if err := a.start(ctx, cmd); err != nil {
				return err
			}
			if a.set.Walherd.NATSURL == "" {
				return fmt.Errorf("agent needs a broker: set WALHERD_NATS_URL (or run %s serve, which brings one)", a.name)
			}
			a.collect(collectOften)
			f, err := a.connect(ctx, roleProducer, messages.Kinds()...)
			if err != nil {
				return err
			}
			defer f.close(context.WithoutCancel(ctx), a.log)
			g, err := a.openAgent(ctx, f)
			if err != nil {
				return err
			}
			defer g.close()
			return a.live(ctx, drain, f, nil, append(g.services, a.refurnish(f, agentPatience))...)
		},
	}
	cmd.Flags().DurationVar(&drain, "drain", 30*time.Second, "how long running requests may take to finish after SIGTERM")
	return cmd
}

// agentPatience is how long an agent leaves it to the workers to set a broker up
// anew that lost its store.
const agentPatience = 10 * time.Second

// agentSet is what a process on a database host consists of.
type agentSet struct {
	services []service.Service
	archiver *archiver
	stores   *storages // nil on a host without a storage
}

// openAgent makes the agent's parts. The caller closes it.
func (a *app) openAgent(ctx context.Context, f *fleet) (g *agentSet, err error) {
	if a.set.Postgres.Data == "" {
		return nil, errors.New("agent: PGDATA is not set: it names the data directory of the cluster to serve")
	}
	if err := a.checkDataDir(); err != nil {
		return nil, err
	}
	g = &agentSet{}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	if g.archiver, err = a.archiver(ctx, f, walDir(a.set.Postgres.Data), true); err != nil {
		return g, err
	}
	g.stores, err = a.openStorages(ctx, false, false)
	if errors.Is(err, settings.ErrNoStorage) {
		err = nil // it asks workers, and cannot restore
	}
	if err != nil {
		return g, err
	}
	if g.archiver.spool != nil {
		g.services = append(g.services, newTask("spool", a, func(ctx context.Context) error { return g.archiver.spool.Run(ctx, g.archiver.pusher) }))
	}
	if a.set.Walherd.Socket != "" {
		g.services = append(g.services, a.socket(ctx, a.set.Walherd.Socket, g.archiver, g.stores))
	}
	if text := a.set.Walherd.BackupSchedule; text != "" {
		times, err := schedule.Parse(text)
		if err != nil {
			return g, fmt.Errorf("setting WALHERD_BACKUP_SCHEDULE: %w", err)
		}
		g.services = append(g.services, schedule.New(a.claim(f, "-"), a.log, schedule.Work{
			Name: "backup", Times: times,
			Do: func(ctx context.Context) error {
				return a.runFor(ctx, agentable, []string{"backup-push", a.set.Postgres.Data}, a.screen, a.screen)
			},
		}))
	}
	if work, ok, err := a.verifyBySchedule(f); err != nil {
		return g, err
	} else if ok {
		g.services = append(g.services, schedule.New(a.claim(f, "-"), a.log, work))
	}
	if retention, err := a.retention(f); err != nil {
		return g, err
	} else if retention != nil {
		g.services = append(g.services, retention)
	}
	g.services = append(g.services, a.offer(f, serviceAgent, "serves a PostgreSQL data directory",
		bus.Endpoint{Name: verbPush, Subject: messages.APISubject(f.cluster, verbPush), Handle: a.pushRequest},
		bus.Endpoint{Name: verbAgent, Subject: messages.APISubject(f.cluster, verbAgent), Handle: g.tell(a, f)},
		bus.Endpoint{Name: verbAhead, Subject: messages.APISubject(f.cluster, verbAhead), Handle: g.prefetch(a)},
		a.verifyRequest(f),
	))
	return g, nil
}

// checkDataDir looks at what PGDATA names. An empty directory may become a
// data directory later: a restore, or a server that is being made.
func (a *app) checkDataDir() error {
	dir := a.set.Postgres.Data
	if _, err := os.ReadDir(dir); err != nil {
		return fmt.Errorf("setting PGDATA: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "PG_VERSION")); err != nil {
		a.log.Warn("PGDATA is no data directory, or not yet", telemetry.KeyPath, dir, telemetry.KeyError, err)
	}
	return nil
}

func (g *agentSet) close() {
	if g.archiver != nil {
		g.archiver.close()
	}
	if g.stores != nil {
		g.stores.close()
	}
}

// claimed is how long it is remembered that a time was taken: longer than
// clocks differ and than one is begun late.
const claimed = time.Hour

// claim takes scheduled times among the processes of a cluster.
func (a *app) claim(f *fleet, sep string) schedule.Claim {
	// A claim without an answer may have been taken: then it is this process that
	// holds it at the next try, and no other will do the work.
	var mu sync.Mutex
	unsure := map[string]bool{}
	return func(ctx context.Context, name string, at time.Time) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		mu.Lock()
		defer mu.Unlock()
		key := claimKey(f.cluster, name, sep, at)
		_, err := f.bus.Acquire(ctx, key, a.processName(), claimed)
		if errors.Is(err, bus.ErrHeld) {
			err = schedule.ErrTaken
			if unsure[key] {
				var who string
				if who, err = f.bus.Holder(ctx, key); err == nil && who != a.processName() {
					err = schedule.ErrTaken
				}
			}
		}
		if err == nil || errors.Is(err, schedule.ErrTaken) {
			delete(unsure, key)
		} else {
			unsure[key] = true
		}
		return err
	}
}

// pushRequest takes a backup for whoever asks; what it logs is the answer.
func (a *app) pushRequest(ctx context.Context, data []byte, reply *bus.Reply) error {
	req := apiRequest{Version: messages.Version}
	if len(data) > 0 { // `nats req walherd.api.main.push ""` will do
		var err error
		if req, err = readRequest(data); err != nil {
			return err
		}
	}
	out := replyWriter{reply, "stderr"}
	return a.runFor(ctx, agentable, append([]string{"backup-push", a.set.Postgres.Data}, req.Args...), replyWriter{reply, "stdout"}, out)
}

// agentState is the answer to "how are you".
type agentState struct {
	Cluster string `json:"cluster"`
	Name    string `json:"name"`
	Version string `json:"version"`
	DataDir string `json:"data_dir"`
	// Ready is how many WAL files wait to be archived, up to a thousand.
	Ready int `json:"ready"`
	// Spooled are acknowledged and not stored.
	SpooledFiles int    `json:"spooled_files"`
	SpooledBytes int64  `json:"spooled_bytes"`
	Ack          string `json:"wal_ack"`
	Schedule     string `json:"backup_schedule,omitempty"`
	Socket       string `json:"socket,omitempty"`
	Storage      bool   `json:"has_storage"`
}

// tell answers what this host's state is.
func (g *agentSet) tell(a *app, f *fleet) func(context.Context, []byte, *bus.Reply) error {
	return func(_ context.Context, _ []byte, reply *bus.Reply) error {
		s := agentState{
			Cluster: string(f.cluster), Name: a.processName(), Version: version, DataDir: a.set.Postgres.Data,
			Ready: readyCount(walDir(a.set.Postgres.Data), 1000), Ack: g.archiver.pusher.Ack.String(),
			Schedule: a.set.Walherd.BackupSchedule, Socket: a.set.Walherd.Socket, Storage: g.stores != nil,
		}
		if g.archiver.spool != nil {
			state, err := g.archiver.spool.State()
			if err != nil {
				return err
			}
			s.SpooledFiles, s.SpooledBytes = state.Files, state.Bytes
		}
		data, err := json.Marshal(s)
		if err != nil {
			return fmt.Errorf("encode the agent's state: %w", err)
		}
		return reply.Write("stdout", append(data, '\n'))
	}
}

// prefetch fetches the segments that follow the one asked for into this
// host's pg_wal, for a recovery that is about to need them.
func (g *agentSet) prefetch(a *app) func(context.Context, []byte, *bus.Reply) error {
	return func(ctx context.Context, data []byte, _ *bus.Reply) error {
		req, err := readRequest(data)
		if err != nil {
			return err
		}
		if len(req.Args) != 1 {
			return errors.New("prefetch: want the name of one segment")
		}
		if g.stores == nil {
			return errors.New("prefetch: this host has no storage: set WALG_FILE_PREFIX or another")
		}
		store := a.prefetchStore(ctx, g.stores, filepath.Join(walDir(a.set.Postgres.Data), "RECOVERYXLOG"))
		err = store.Ahead(ctx, req.Args[0], max(a.set.General.DownloadConcurrency, 1))
		if errors.Is(err, errWALAbsent) {
			return nil
		}
		return err
	}
}

// walDir is a data directory's place of WAL.
func walDir(dataDir string) string {
	dir := filepath.Join(dataDir, "pg_wal")
	if abs, err := filepath.Abs(dir); err == nil {
		return abs
	}
	return dir
}

// socket makes the service that archive libraries and daemon clients speak to.
func (a *app) socket(ctx context.Context, path string, p *archiver, stores *storages) *daemon.Server {
	// One prefetch at a time: it is for the segment asked for last.
	running := make(chan struct{}, 1)
	return daemon.New(daemon.Options{
		Socket: path, DataDir: a.set.Postgres.Data, Logger: a.log, PushTimeout: a.set.Postgres.DaemonWALUploadTimeout,
		Push: p.push,
		Fetch: func(fetch context.Context, name, destination string) error {
			if stores == nil {
				return errors.New("this host has no storage to fetch from: set WALG_FILE_PREFIX or another")
			}
			err := a.fetchWAL(fetch, stores, name, destination, func(s prefetch.Store) {
				select {
				case running <- struct{}{}:
				default:
					return
				}
				go func() {
					defer func() { <-running }()
					if err := s.Ahead(ctx, name, a.set.General.DownloadConcurrency); err != nil && !errors.Is(err, errWALAbsent) {
						a.log.Warn("prefetch", telemetry.KeySegment, name, telemetry.KeyError, err)
					}
				}()
			})
			if exitCode(err) == exitWALAbsent {
				return fmt.Errorf("%w: %w", wire.ErrAbsent, err)
			}
			return err
		},
	})
}

// request asks an agent or a worker by its verb, with what any NATS client
// could send.
func (a *app) request() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "request push|agent|prefetch|verify [-- argument...]",
		Short: "Ask an agent: for a backup, for its state, to prefetch WAL, to verify the archive",
		Long: "Sends a request to walherd.api.CLUSTER.VERB, as the ordinary `nats request` does, and prints the answer.\n" +
			"  push      take a base backup; backup-push's own flags come behind --\n" +
			"  agent     print the agent's state as JSON\n" +
			"  verify    check the archive against the server, as wal-verify integrity timeline --exit-code\n" +
			"  prefetch  fetch the segments that follow the one that is named",
		Args:      usageArgs(cobra.MinimumNArgs(1)),
		ValidArgs: []string{verbPush, verbAgent, verbAhead, verbVerify},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.operating(cmd, func(ctx context.Context, b *bus.Bus, cluster messages.Cluster) error {
				if !strings.Contains(" "+strings.Join(cmd.ValidArgs, " ")+" ", " "+args[0]+" ") {
					return fmt.Errorf("request %q: want one of %s", args[0], strings.Join(cmd.ValidArgs, ", "))
				}
				err := a.askFor(ctx, b, cluster, args[0], args[1:])
				if errors.Is(err, bus.ErrNobody) {
					return fmt.Errorf("no agent of cluster %s answers: start `%s agent` on a database host: %w", cluster, a.name, err)
				}
				return err
			})
		},
	}
	return cmd
}

// serve runs everything on one box.
func (a *app) serve() *cobra.Command {
	var drain time.Duration
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run everything for one server: a broker that keeps its data, workers, an agent",
		Long: "Runs a broker in a process of its own below WALHERD_SERVE_DIR, which syncs every write, and in this process\n" +
			"workers and, if PGDATA is set, the agent. Short commands on this host use them with\n" +
			"WALHERD_NATS_URL=nats://WALHERD_SERVE_LISTEN and the token in WALHERD_SERVE_DIR/token.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.start(cmd.Context(), cmd); err != nil {
				return err
			}
			return a.runServe(cmd.Context(), drain)
		},
	}
	cmd.Flags().DurationVar(&drain, "drain", 30*time.Second, "how long running jobs may take to finish after SIGTERM")
	return cmd
}

// brokerProcess is what serve starts.
func (a *app) brokerProcess() *cobra.Command {
	return &cobra.Command{
		Use: "broker-process", Short: "The broker that serve runs", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.start(cmd.Context(), cmd); err != nil {
				return err
			}
			// A signal to the whole group is the parent's to act on: it needs the
			// broker to drain, and closes the pipe when it is done.
			return a.runBroker(context.WithoutCancel(cmd.Context()), os.Stdin, a.stdout)
		},
	}
}
