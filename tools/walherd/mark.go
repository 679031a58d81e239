package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/retain"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/tools/walherd/settings"
)

// verbMark is the subject's last token of requests to mark a backup: not that
// of commands that only read, so that the broker can hold the two apart. A
// database host has no business with what may be deleted.
const verbMark = "mark"

// markable marks the command that workers run for such a request.
const markable = "walherd.markable"

// expireLease is the name of the lease under which what may be deleted is
// decided on and deleted: a backup must not be marked while a deletion that
// was planned before is going on.
const expireLease = "expire"

func (a *app) backupMark() *cobra.Command {
	var impermanent bool
	cmd := &cobra.Command{
		Use:   "backup-mark backup_name",
		Short: "Keep a backup from being deleted, or no more",
		Long: "Marks a backup as permanent, and all that it is built on; with -i the named one as not permanent, unless a\n" +
			"permanent backup is built on it. In every storage that has a backup of the name.",
		Args:        cobra.ExactArgs(1),
		Annotations: map[string]string{markable: "yes"},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if err := a.start(ctx, cmd); err != nil {
				return err
			}
			if _, err := a.set.Storage(); errors.Is(err, settings.ErrNoStorage) && a.set.Walherd.NATSURL != "" {
				return a.operating(cmd, func(ctx context.Context, b *bus.Bus, cluster messages.Cluster) error {
					return a.askToMark(ctx, b, cluster, commandLine(cmd, args))
				})
			}
			if err := a.pickStorage(cmd); err != nil {
				return err
			}
			stores, err := a.openStorages(ctx, true, false)
			if err != nil {
				return err
			}
			defer stores.close()
			return a.leased(ctx, expireLease, func(ctx context.Context) error {
				return a.mark(ctx, stores, args[0], !impermanent)
			})
		},
	}
	cmd.Flags().BoolVarP(&impermanent, "impermanent", "i", false, "mark it as not permanent")
	a.targetStorageFlag(cmd)
	return cmd
}

// askToMark has a worker mark a backup.
func (a *app) askToMark(ctx context.Context, b *bus.Bus, cluster messages.Cluster, args []string) error {
	err := a.askFor(ctx, b, cluster, verbMark, args)
	switch {
	case errors.Is(err, bus.ErrNobody):
		return fmt.Errorf("no storage is configured here, and no worker of cluster %s answers: start one, or set WALG_FILE_PREFIX or another storage: %w", cluster, err)
	case errors.Is(err, bus.ErrDenied):
		return fmt.Errorf("%w; to mark backups is for an operator of the queue: set WALHERD_NATS_USER, or another login, to one", err)
	}
	return err
}

// marking is the endpoint that marks backups for others.
func (a *app) marking(cluster messages.Cluster) bus.Endpoint {
	return bus.Endpoint{Name: verbMark, Subject: messages.APISubject(cluster, verbMark), Handle: func(ctx context.Context, data []byte, reply *bus.Reply) error {
		req, err := readRequest(data)
		if err != nil {
			return err
		}
		return a.runFor(ctx, markable, req.Args, replyWriter{reply, "stdout"}, replyWriter{reply, "stderr"})
	}}
}

// leasePatience is how long a short command waits for a lease that is held.
const leasePatience = 30 * time.Second

// leased does work under a lease of the cluster. A command that knows of no
// broker knows of no other host either.
func (a *app) leased(ctx context.Context, name string, work func(ctx context.Context) error) error {
	if a.set.Walherd.NATSURL == "" {
		return work(ctx)
	}
	cluster, err := messages.ParseCluster(a.set.Walherd.Cluster)
	if err != nil {
		return err
	}
	// Who has the storage is a worker to the broker.
	b, err := a.join(ctx, roleWorker, cluster)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := a.ensure(ctx, b, cluster, roleWorker); err != nil {
		return err
	}
	key := string(cluster) + "." + name
	deadline := time.Now().Add(leasePatience)
	for told := false; ; {
		lease, err := b.Acquire(ctx, key, a.processName(), 0)
		if err == nil {
			return lease.Hold(ctx, work)
		}
		if !errors.Is(err, bus.ErrHeld) || time.Now().After(deadline) {
			if who, herr := b.Holder(ctx, key); herr == nil && who != "" {
				return fmt.Errorf("the lease %s is held by %s; try again when it is done: %w", key, who, err)
			}
			return fmt.Errorf("take the lease %s: %w", key, err)
		}
		if !told {
			a.log.Info(fmt.Sprintf("the lease %s is held; waiting up to %s for it", key, leasePatience))
			told = true
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// mark plans for every storage that has the backup before it writes to any.
// The order of the writes is the plan's: cut anywhere, no permanent backup
// stands on one that is not, and the next try writes what is missing.
func (a *app) mark(ctx context.Context, stores *storages, name string, permanent bool) error {
	repos, err := stores.readers(ctx)
	if err != nil {
		return err
	}
	inv, err := newInventory(a.segmentSize(), repos)
	if err != nil {
		return err
	}
	if err := inv.addBackups(ctx, repos); err != nil {
		return err
	}
	if err := a.describeFamily(ctx, inv, pg.BackupName(name), permanent); err != nil {
		return err
	}
	var steps []catalog.BackupID
	var missing, broken error
	found := 0
	for _, r := range repos {
		ids, err := retain.PlanMark(inv.Inventory, catalog.BackupID{Storage: r.Name(), Folder: catalog.BaseBackups, Name: pg.BackupName(name)}, permanent)
		if errors.Is(err, catalog.ErrNotFound) {
			missing = err
			continue
		}
		if errors.Is(err, retain.ErrBroken) {
			broken = err
			continue
		}
		if err != nil {
			return err
		}
		found++
		steps = append(steps, ids...)
	}
	down := stores.down(ctx)
	switch {
	case found == 0 && broken != nil:
		return broken
	case found == 0 && len(down) > 0:
		return fmt.Errorf("%w; storage %v cannot be used now", missing, down)
	case found == 0:
		return missing
	case len(down) > 0:
		a.log.Warn(fmt.Sprintf("storage %v cannot be used now: a copy of the backup there stays as it is", down))
	}
	if broken != nil {
		a.log.Warn(broken.Error())
	}
	word := map[bool]string{true: "permanent", false: "impermanent"}[permanent]
	if len(steps) == 0 {
		a.log.Warn(fmt.Sprintf("backup %s is %s already", name, word))
		return nil
	}
	for _, id := range steps {
		if _, err := inv.repos[id.Storage].SetPermanent(ctx, id.Name, permanent); err != nil {
			return err
		}
		a.log.Info(fmt.Sprintf("marked backup %s in storage %s as %s", id.Name, id.Storage, word), telemetry.KeyBackup, id.Name)
	}
	return nil
}

// describeFamily reads the documents that a plan to mark needs and no others:
// what the backup is built on, or all that may be built on it.
func (a *app) describeFamily(ctx context.Context, inv *inventory, name pg.BackupName, permanent bool) error {
	if !permanent {
		return inv.describe(ctx, a, true, inv.listed(func(b *catalog.Stored) bool { return b.ID.Name == name || b.ID.Name.IsIncrement() })...)
	}
	there := map[catalog.BackupID]*catalog.Stored{}
	for _, b := range inv.Backups() {
		there[b.ID] = b
	}
	for storage := range inv.repos {
		b := there[catalog.BackupID{Storage: storage, Folder: catalog.BaseBackups, Name: name}]
		// A circle would lead back to what was described.
		for b != nil && !b.Details.Read {
			if err := inv.describe(ctx, a, true, b); err != nil {
				return err
			}
			inc := b.Details.Increment
			if inc == nil {
				break
			}
			b = there[catalog.BackupID{Storage: storage, Folder: catalog.BaseBackups, Name: inc.Parent}]
		}
	}
	return nil
}
