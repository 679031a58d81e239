package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/walherd/walherd/engine/retain"
	"github.com/walherd/walherd/engine/service"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/producer/schedule"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/workers/expire"
)

// deleteOptions are the flags of the delete commands; each has those that mean
// something to it.
type deleteOptions struct {
	command       expire.Command
	confirm, json bool
}

func (a *app) deleteCommand() *cobra.Command {
	var opt deleteOptions
	cmd := &cobra.Command{
		Use:   "delete",
		Short: "Delete backups and WAL that are not needed any more",
		Long: "Without --confirm it only says what would be deleted, and why. Permanent backups, what they need, and what may be\n" +
			"in the making stay; so do objects that are no part of backups or WAL. All configured storages are looked at.\n" +
			"With a broker (WALHERD_NATS_URL) a worker deletes; one of a cluster at a time.",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f := cmd.PersistentFlags()
	f.BoolVar(&opt.confirm, "confirm", false, "delete; without it nothing is changed")
	f.BoolVar(&opt.command.UseStartTime, "use-sentinel-time", false, "order backups by the start time in their metadata, not by name")
	f.BoolVar(&opt.json, "json", false, "print the plan as JSON")
	sub := func(use, short string) *cobra.Command {
		c := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs}
		a.deleting(c, &opt)
		cmd.AddCommand(c)
		return c
	}
	flags := &opt.command.Flags
	keep := sub("retain [FULL|FIND_FULL] count | --window duration", "Keep the newest backups, or what recovery to any moment of a window needs")
	keep.Flags().StringVarP(&flags.After, "after", "a", "", "keep all made after this time (RFC 3339 with a zone) or backup as well")
	keep.Flags().StringVar(&flags.Window, "window", "", "keep all that is needed to recover to any moment of the last 14d, 2w, 36h ...")
	sub("before [FIND_FULL] backup_name|time", "Delete all that is older than a backup or a time (RFC 3339 with a zone)")
	sub("target [FIND_FULL] backup_name|LATEST | --target-user-data data", "Delete one backup and what is built on it; FIND_FULL: its whole family").
		Flags().StringVar(&flags.UserData, "target-user-data", "", "the backup with this user data (JSON)")
	sub("everything [FORCE]", "Delete all backups and WAL; FORCE: permanent ones too")
	garbage := sub("garbage [ARCHIVES|BACKUPS]", "Delete WAL that no backup leads to, and leftovers of backups")
	garbage.Flags().BoolVar(&flags.WithoutBackupCheck, "without-backup-check", false, "go on when there is no backup that is not permanent")
	garbage.Flags().StringVar(&flags.Window, "window", "", "keep what a retention window of this length needs, too")
	return cmd
}

// deleting makes c run the delete command of its name. The dry run is a
// read-only command, and workers answer it; a deletion is a job.
func (a *app) deleting(c *cobra.Command, opt *deleteOptions) {
	c.RunE = func(cmd *cobra.Command, _ []string) error { return a.dryDelete(cmd.Context(), opt) }
	dry := a.ask(c).RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		opt.command.Verb, opt.command.Words = cmd.Name(), args
		if _, err := opt.command.Policy(); err != nil {
			return &usageError{err, cmd.UsageString()}
		}
		if !opt.confirm {
			return dry(cmd, args)
		}
		if a.remote {
			return errors.New("delete --confirm is not answered over the queue: it is a job")
		}
		if err := a.start(cmd.Context(), cmd); err != nil {
			return err
		}
		f, err := a.connect(cmd.Context(), roleOperator, messages.KindExpire)
		if errors.Is(err, bus.ErrDenied) {
			return fmt.Errorf("%w; deleting takes the rights of the role operator at the broker", err)
		}
		if err != nil {
			return err
		}
		defer f.close(cmd.Context(), a.log)
		return a.confirmDelete(cmd.Context(), f, opt)
	}
}

// dryDelete says what a command would delete.
func (a *app) dryDelete(ctx context.Context, opt *deleteOptions) error {
	stores, err := a.openStorages(ctx, false, false)
	if err != nil {
		return err
	}
	defer stores.close()
	w, err := a.deleteWork(ctx, stores, a.log)
	if err != nil {
		return err
	}
	_, pl, err := w.Plan(ctx, opt.command)
	if err != nil {
		return err
	}
	if opt.json {
		return expire.WriteJSON(a.stdout, opt.command, false, pl)
	}
	expire.Tell(a.log, pl)
	expire.TellEnd(a.log, true, expire.Count(pl))
	return nil
}

// deleteWork is what deletes from the storages. WALG_TARGET_STORAGE does not
// count, as in WAL-G: WAL in one storage serves the backups of all.
func (a *app) deleteWork(ctx context.Context, stores *storages, log *slog.Logger) (*expire.Work, error) {
	codec, err := a.codec(ctx)
	if err != nil {
		return nil, err
	}
	members, err := stores.set.Readers(ctx, "")
	if err != nil {
		return nil, err
	}
	w := &expire.Work{
		Scanner:   expire.Scanner{Size: a.segmentSize(), Open: codec.Open, Readers: max(a.set.General.DownloadConcurrency, 16), Logger: log},
		SafetyAge: a.set.Walherd.DeleteAge, Rate: float64(a.set.Walherd.DeleteRate),
	}
	if w.SafetyAge == 0 {
		w.SafetyAge = -1 // to the planner, 0 is its own default
	}
	alive := map[string]bool{}
	for _, m := range members {
		w.Stores, alive[m.Name] = append(w.Stores, repo.New(m.Bucket, m.Name)), true
	}
	for _, s := range stores.set.Statuses(ctx) {
		if !alive[s.Name] {
			w.Unreachable = append(w.Unreachable, s.Name)
		}
	}
	return w, nil
}

const (
	// beginLimit is how long a delete that was asked for waits for a worker.
	beginLimit = 2 * time.Minute
	// tooLate is when a worker does not begin it any more. Clocks differ.
	tooLate = 5 * time.Minute
)

// confirmDelete has a worker delete and prints what it says.
func (a *app) confirmDelete(ctx context.Context, f *fleet, opt *deleteOptions) error {
	job := expire.JobOf(opt.command)
	job.JSON, job.LogLevel = opt.json, a.set.General.LogLevel
	job.Reply = messages.ReplySubject(f.cluster, rand.Text())
	said := make(chan messages.ExpireReply)
	over, cancel := context.WithCancel(ctx)
	defer cancel()
	stop, err := f.bus.Listen(ctx, job.Reply, func(m bus.Incoming) {
		var r messages.ExpireReply
		if err := json.Unmarshal(m.Data, &r); err != nil {
			a.log.Warn("unreadable answer of a worker", telemetry.KeyError, err)
			return
		}
		select {
		case said <- r:
		case <-over.Done():
		}
	})
	if err != nil {
		return err
	}
	defer stop()
	seq, err := a.queueDelete(ctx, f, job, tooLate)
	if err != nil {
		return err
	}
	quiet := time.NewTimer(beginLimit)
	defer quiet.Stop()
	begun, want := false, 0
	for {
		select {
		case r := <-said:
			quiet.Reset(answerSilence)
			begun = true
			if r.Part > want {
				a.log.Warn("a part of what the worker said was lost; the deletion goes on")
			}
			want = r.Part + 1
			w := a.screen
			if r.Out == "stdout" {
				w = a.stdout
			}
			if _, err := w.Write(r.Data); err != nil {
				return err
			}
			switch {
			case r.Final && r.Error != "":
				return errors.New(r.Error)
			case r.Final:
				return nil
			}
		case <-quiet.C:
			if begun {
				return fmt.Errorf("nothing was heard of the delete for %s: %w; it goes on when a worker can, and running the command again does what is left", answerSilence, bus.ErrUnavailable)
			}
			if err := f.bus.Remove(ctx, topology.StreamWork, seq); err != nil {
				a.log.Warn("cannot take the job back; it is not begun any more after a few minutes", telemetry.KeyError, err)
			}
			return fmt.Errorf("no worker of cluster %s has begun the delete in %s: start one of this version (%s worker): %w", f.cluster, beginLimit, a.name, bus.ErrNobody)
		case <-ctx.Done():
			if f.embedded == nil && begun {
				a.log.Warn("the worker goes on with the delete")
			}
			return context.Cause(ctx)
		}
	}
}

// queueDelete publishes a delete job.
func (a *app) queueDelete(ctx context.Context, f *fleet, job messages.ExpireJob, beginWithin time.Duration) (uint64, error) {
	job.BeginBy = time.Now().Add(beginWithin).UTC()
	data, err := messages.Encode(messages.KindExpire, f.cluster, time.Now(), job)
	if err != nil {
		return 0, err
	}
	seq, err := f.bus.Publish(ctx, messages.WorkSubject(messages.KindExpire, f.cluster), nil, data)
	if errors.Is(err, bus.ErrDenied) {
		return 0, fmt.Errorf("queue the delete: %w; it takes the rights of the role operator at the broker", err)
	}
	if err != nil {
		return 0, fmt.Errorf("queue the delete: %w", err)
	}
	return seq, nil
}

// expireHandler does delete jobs in this process.
func (a *app) expireHandler(f *fleet, stores *storages) *expire.Handler {
	return &expire.Handler{
		Bus: f.bus, Logger: a.log, Alone: f.embedded != nil,
		Open: func(ctx context.Context, log *slog.Logger) (*expire.Work, error) {
			return a.deleteWork(ctx, stores, log)
		},
	}
}

// parseRetention reads WALHERD_RETENTION: delete commands separated by
// semicolons, without "delete" and --confirm. Only those that keep something.
func parseRetention(text string) ([]expire.Command, error) {
	var commands []expire.Command
	for line := range strings.SplitSeq(text, ";") {
		var c expire.Command
		f := pflag.NewFlagSet("retention", pflag.ContinueOnError)
		f.Usage = func() {}
		f.StringVarP(&c.Flags.After, "after", "a", "", "")
		f.StringVar(&c.Flags.Window, "window", "", "")
		f.BoolVar(&c.UseStartTime, "use-sentinel-time", false, "")
		err := f.Parse(strings.Fields(line))
		if words := f.Args(); err == nil && len(words) > 0 {
			c.Verb, c.Words = words[0], words[1:]
		}
		var p retain.Policy
		if err == nil {
			p, err = c.Policy()
		}
		if err == nil {
			switch p.(type) {
			case retain.Retain, retain.Window, retain.Garbage, retain.Before:
			default:
				err = fmt.Errorf("%w: a schedule only knows retain, before and garbage", retain.ErrUsage)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("setting WALHERD_RETENTION: %q: %w", strings.TrimSpace(line), err)
		}
		commands = append(commands, c)
	}
	return commands, nil
}

// scheduledBegin is how long a scheduled deletion waits for a worker: less
// than the time between two.
const scheduledBegin = time.Hour

// retention is the service that deletes by WALHERD_RETENTION_SCHEDULE; nil
// without that setting. Any number of workers and agents may have it.
func (a *app) retention(f *fleet) (service.Service, error) {
	w := &a.set.Walherd
	if w.RetentionCron == "" {
		return nil, nil
	}
	times, err := schedule.Parse(w.RetentionCron)
	if err != nil {
		return nil, fmt.Errorf("setting WALHERD_RETENTION_SCHEDULE: %w", err)
	}
	if w.Retention == "" {
		return nil, errors.New("setting WALHERD_RETENTION_SCHEDULE: set WALHERD_RETENTION too, to what shall be deleted then (\"retain --window 14d; garbage\")")
	}
	commands, err := parseRetention(w.Retention)
	if err != nil {
		return nil, err
	}
	return schedule.New(a.claim(f, "."), a.log, schedule.Work{
		Name: "retention", Times: times,
		Do: func(ctx context.Context) error {
			_, err := a.queueDelete(ctx, f, expire.JobOf(commands...), scheduledBegin)
			return err
		},
	}), nil
}

// claimKey is what a time is taken under. The broker's rights are by whole
// tokens: what is named apart from the other leases has a token of its own.
func claimKey(cluster messages.Cluster, name, sep string, at time.Time) string {
	return fmt.Sprintf("%s.%s%s%d", cluster, name, sep, at.Unix())
}
