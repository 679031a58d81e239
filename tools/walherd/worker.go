package main

import (
	"context"
	"fmt"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
)

func (a *app) worker() *cobra.Command {
	var drain time.Duration
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Store what producers publish: take jobs from the queue until told to stop",
		Long: "Takes archive, part and commit jobs of the cluster WALHERD_CLUSTER from the broker at WALHERD_NATS_URL and\n" +
			"stores them. One storage location belongs to one cluster, so one worker serves one cluster.\n" +
			"SIGTERM drains: no more jobs are taken, running ones are finished within --drain, then handed back.\n" +
			"A second signal aborts at once.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.start(cmd.Context(), cmd); err != nil {
				return err
			}
			return a.work(cmd.Context(), drain)
		},
	}
	cmd.Flags().DurationVar(&drain, "drain", 30*time.Second, "how long running jobs may take to finish after SIGTERM")
	return cmd
}

func (a *app) work(ctx context.Context, limit time.Duration) error {
	if a.set.Walherd.NATSURL == "" {
		return fmt.Errorf("worker needs a broker: set WALHERD_NATS_URL (without one, every command works its own jobs)")
	}
	a.collect(collectOften)
	a.holdMemory(a.set.Walherd.WorkerSlots + a.set.Walherd.WALSlots)
	backups, err := a.openStorages(ctx, true, true)
	if err != nil {
		return err
	}
	defer backups.close()
	wal, err := a.openStorages(ctx, true, false)
	if err != nil {
		return err
	}
	defer wal.close()
	f, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer f.close(context.WithoutCancel(ctx), a.log)
	if err := a.startWorkers(ctx, f, backups, wal, messages.Kinds()); err != nil {
		return err
	}
	a.log.Info("worker is taking jobs", telemetry.KeyCluster, f.cluster, "part_slots", a.set.Walherd.WorkerSlots, "wal_slots", a.set.Walherd.WALSlots)
	<-ctx.Done()
	a.log.Info("draining: finishing running jobs", "limit", limit)
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	drain, stop := signal.NotifyContext(drain, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return f.workers.Stop(drain)
}
