package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/tools/walherd/settings"
	"github.com/walherd/walherd/tools/walherd/transfer"
)

// storagePair are the storages of two config files.
type storagePair struct {
	fromSet, toSet *settings.Settings
	from, to       storage.Bucket
}

func (a *app) copyCommand() *cobra.Command {
	var backup, from, to string
	var with, without bool
	cmd := &cobra.Command{
		Use:   "copy --from config --to config",
		Short: "Copy backups and their WAL from one storage to another",
		Long: "Copies backups byte for byte between the storages of two config files, with all they build on. WAL comes\n" +
			"along from the first segment to the last that each backup needs to become consistent, and every timeline's\n" +
			"history file; --with-history goes on to the newest segment and takes a gap for an error; --without-history\n" +
			"(-w) leaves WAL out. WAL-G releases since 2024 read -w as --with-history: write the long form in scripts.\n" +
			"Nothing is written if the target could not be restored from. What the target has is skipped if its size is\n" +
			"the same, and is an error if not; run the command again to go on with one that was interrupted.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if with && without {
				return &usageError{errors.New("--with-history and --without-history (-w) exclude each other"), cmd.UsageString()}
			}
			pair, err := a.startPair(cmd, from, to)
			if err != nil {
				return err
			}
			req := transfer.Request{Backup: backup, SegmentSize: pg.SegmentSize(pair.fromSet.Postgres.WALSize) << 20}
			switch {
			case with:
				req.History = transfer.WholeHistory
			case without:
				req.History = transfer.NoHistory
			}
			return a.copyBackups(cmd.Context(), pair, req)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&backup, "backup-name", "b", "", "copy this backup (or LATEST) and what it builds on; without it, all")
	f.StringVarP(&from, "from", "f", "", "config file of the source (required)")
	f.StringVarP(&to, "to", "t", "", "config file of the target (required)")
	f.BoolVarP(&without, "without-history", "w", false, "copy no WAL")
	f.BoolVar(&with, "with-history", false, "copy WAL up to the newest segment")
	return cmd
}

func (a *app) copyBackups(ctx context.Context, pair *storagePair, req transfer.Request) error {
	a.collect(collectOften)
	plan, err := transfer.PlanCopy(ctx, pair.from, pair.to, req)
	if err != nil {
		return err
	}
	for _, b := range plan.Backups {
		a.log.Info(fmt.Sprintf("Copying backup %s", b))
	}
	c := &transfer.Copier{From: pair.from, To: pair.to, Log: a.log, FailFast: true}
	res := c.Carry(ctx, plan)
	if err := res.Err(); err != nil {
		return err
	}
	a.log.Info("Success copy.", "backups", len(plan.Backups), "copied", res.Copied, "bytes", res.Bytes, "skipped", res.Skipped)
	return nil
}

// startPair starts a command between the storages of two config files.
func (a *app) startPair(cmd *cobra.Command, from, to string) (*storagePair, error) {
	if from == "" || to == "" {
		return nil, &usageError{errors.New("name both config files (--from and --to)"), cmd.UsageString()}
	}
	// start puts this process's own config file into the environment.
	env := os.Environ()
	ctx := cmd.Context()
	if err := a.start(ctx, cmd); err != nil {
		return nil, err
	}
	var pair storagePair
	var err error
	if pair.fromSet, pair.from, err = a.storageOf(ctx, from, env); err != nil {
		return nil, fmt.Errorf("source %s: %w", from, err)
	}
	if pair.toSet, pair.to, err = a.storageOf(ctx, to, env); err != nil {
		return nil, fmt.Errorf("target %s: %w", to, err)
	}
	return &pair, samePlace(pair.fromSet, pair.toSet)
}

func (a *app) storageOf(ctx context.Context, config string, env []string) (*settings.Settings, storage.Bucket, error) {
	set, err := a.loadOther(config, env)
	if err != nil {
		return nil, nil, err
	}
	b, err := a.bucketOf(ctx, set, false)
	return set, b, err
}

// loadOther reads a config file that stands for a storage of its own. What it
// says goes before the environment, which would else make the source and the
// target one; and where a storage lies, the environment does not say at all.
func (a *app) loadOther(config string, env []string) (*settings.Settings, error) {
	flags := map[string]string{settings.ConfigFlag: config}
	alone, _, err := settings.Load(flags, nil, "", os.ReadFile)
	if alone == nil {
		return nil, err
	}
	hidden := map[string]bool{"WALG_CONFIG_PATH": true}
	for _, f := range settings.Fields() {
		if alone.Origin(f.Setting).Kind == settings.FromFile || strings.HasSuffix(f.Setting, "_PREFIX") {
			hidden[f.Setting] = true
			for _, alias := range f.Aliases {
				hidden[alias] = true
			}
		}
	}
	rest := slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return hidden[name]
	})
	set, warnings, err := settings.Load(flags, rest, "", os.ReadFile)
	for _, w := range warnings {
		a.log.Warn(w.String())
	}
	return set, err
}

// samePlace refuses a copy of a storage onto itself, as far as the
// configurations tell.
func samePlace(from, to *settings.Settings) error {
	a, err := from.Storage()
	if err != nil {
		return err
	}
	b, err := to.Storage()
	if err != nil {
		return err
	}
	if a == b && from.S3.Endpoint == to.S3.Endpoint {
		return fmt.Errorf("source and target are the same storage: %s", a.Location)
	}
	return nil
}

// with is the program under another configuration, for what depends on it.
func (a *app) with(set *settings.Settings) *app {
	other := *a
	other.set = set
	return &other
}
