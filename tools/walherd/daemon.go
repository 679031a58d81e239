package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
	"github.com/walherd/walherd/producer/daemon/client"
	"github.com/walherd/walherd/producer/daemon/wire"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/tools/walherd/settings"
)

func (a *app) daemon() *cobra.Command {
	return &cobra.Command{
		Use:   "daemon socket_path",
		Short: "Archive and fetch WAL on request over a unix socket",
		Long: "Listens at socket_path for an archive library (archive_library = 'walherd_archive', or WAL-G's) or the\n" +
			"client (" + a.name + " daemon-client, walg-daemon-client), and archives and fetches WAL files of the cluster at\n" +
			"PGDATA. Settings are read once, at the start. SIGUSR1 opens the log file anew; SIGINT and SIGTERM remove the\n" +
			"socket, finish running requests and end with exit code 0.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.start(cmd.Context(), cmd); err != nil {
				return err
			}
			if err := a.set.Validate(); err != nil {
				return err
			}
			return a.runDaemon(cmd.Context(), args[0])
		},
	}
}

// daemonDrain bounds how long running requests may take after a signal: below
// the 10 s that a container has by default.
const daemonDrain = 8 * time.Second

func (a *app) runDaemon(ctx context.Context, socket string) (err error) {
	if a.set.Postgres.Data == "" {
		return errors.New("daemon: PGDATA is not set: requests name files relative to it")
	}
	if err := a.checkDataDir(); err != nil {
		return err
	}
	a.collect(collectOften)
	a.holdMemory(a.set.Walherd.WALSlots)
	defer a.reopenLogOnSignal()()
	// What is connected here lives as long as the daemon, and longer than a
	// signal: the requests at work need it to end well.
	living := context.WithoutCancel(ctx)
	f, err := a.connect(ctx, roleProducer, messages.KindArchive)
	if err != nil {
		return err
	}
	defer f.close(living, a.log)
	stores, err := a.openStorages(ctx, false, false)
	switch {
	case errors.Is(err, settings.ErrNoStorage) && a.set.Walherd.NATSURL != "":
		stores = nil // it archives through the queue, and cannot fetch
	case err != nil:
		return err
	default:
		defer stores.close()
	}
	archiver, err := a.archiver(ctx, f, walDir(a.set.Postgres.Data), true)
	if err != nil {
		return err
	}
	defer archiver.close()
	defer archiver.run(living)()
	s := a.socket(living, socket, archiver, stores)
	if err := s.Start(living); err != nil {
		return err
	}
	a.log.Info("daemon takes requests", telemetry.KeyPath, socket, telemetry.KeyCluster, f.cluster)
	a.tellSystemd(notify.SdNotifyReady)
	stopWatchdog := a.watchdog(socket)
	select {
	case <-ctx.Done():
	case <-s.Done(): // it failed; Stop says why
	}
	stopWatchdog()
	a.tellSystemd(notify.SdNotifyStopping)
	a.log.Info("draining: finishing running requests", "limit", daemonDrain)
	drain, cancel := context.WithTimeout(living, daemonDrain)
	defer cancel()
	drain, stop := signal.NotifyContext(drain, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err = s.Stop(drain)
	if errors.Is(err, service.ErrAborted) {
		// PostgreSQL has been told "failed" and asks again: an orderly end.
		a.log.Warn("requests were cut off", telemetry.KeyError, err)
		return nil
	}
	return err
}

func (a *app) tellSystemd(state string) {
	if _, err := notify.SdNotify(false, state); err != nil {
		a.log.Warn("tell systemd "+state, telemetry.KeyError, err)
	}
}

// watchdog tells systemd twice in its interval, if it has set one, that the
// daemon is alive: not that this process is, but that a check is answered.
func (a *app) watchdog(socket string) (stop func()) {
	interval, err := notify.SdWatchdogEnabled(false)
	if err != nil {
		a.log.Warn("read systemd's watchdog interval", telemetry.KeyError, err)
	}
	if interval <= 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		c := client.Client{Socket: socket, Timeout: interval / 2, ConnectTimeout: interval / 4}
		tick := time.NewTicker(interval / 2)
		defer tick.Stop()
		for {
			if err := c.Check(ctx); err == nil {
				a.tellSystemd(notify.SdNotifyWatchdog)
			} else if ctx.Err() == nil {
				a.log.Error("the daemon does not answer its own check", telemetry.KeyError, err)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// reopenLogOnSignal opens the log file anew at each SIGUSR1, so that it can be
// rotated by renaming it. Without a log file the signal is ignored.
func (a *app) reopenLogOnSignal() (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	done := make(chan struct{})
	var wg sync.WaitGroup
	if a.logFile != nil {
		file := &reopenable{path: a.set.General.LogDestination, file: a.logFile}
		a.screen = file
		a.log = slog.New(telemetry.NewHandler(file, a.level))
		wg.Go(func() {
			for {
				select {
				case <-done:
					a.logFile = file.file
					return
				case <-signals:
					if err := file.reopen(); err != nil {
						a.log.Error("open the log file anew; the old one is written to", telemetry.KeyError, err)
					}
				}
			}
		})
	}
	return func() { signal.Stop(signals); close(done); wg.Wait() }
}

// reopenable is a log file that can be replaced while it is written to.
type reopenable struct {
	path string

	mu   sync.Mutex
	file *os.File
}

var _ io.Writer = (*reopenable)(nil)

func (r *reopenable) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.file.Write(p)
}

// reopen keeps the old file when the new one cannot be had.
func (r *reopenable) reopen() error {
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.file
	r.file = f
	return old.Close()
}

func (a *app) daemonClient() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "daemon-client socket_path wal-push wal_name | wal-fetch wal_name destination_filename",
		Short: "Ask a running daemon to archive or fetch a WAL file",
		Long: "Does what the walg-daemon-client program does, which starts faster. Flags come last: -timeout 60s,\n" +
			"-connection-timeout 5s. Exit code 74 means that the archive has no such file; every other failure is 1.",
		DisableFlagParsing: true,
		Args:               cobra.ArbitraryArgs,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 && (args[0] == "-h" || args[0] == "--help") {
			return cmd.Help()
		}
		err := client.Run(cmd.Context(), args, a.stderr)
		switch {
		case errors.Is(err, client.ErrUsage):
			return &usageError{err, cmd.UsageString()}
		case errors.Is(err, wire.ErrAbsent):
			fmt.Fprintln(a.stdout, err)
			return absentThere{err}
		}
		return err
	}
	return cmd
}

// absentThere is a daemon's word that no storage has a file: the same to
// exitCode as wal-fetch's own finding.
type absentThere struct{ error }

func (e absentThere) Unwrap() error { return e.error }

// Is makes it the two errors that wal-fetch says this with.
func (absentThere) Is(target error) bool {
	return target == errWALAbsent || target == storage.ErrNotExist
}
