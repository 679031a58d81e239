package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/tools/walherd/transfer"
)

func (a *app) stCopy(st *stOptions) *cobra.Command {
	var from, to, prefix string
	var open, seal bool
	cmd := &cobra.Command{
		Use:   "copy --from config --to config",
		Short: "Copy objects between the storages of two configurations",
		Long: "Copies every object whose name starts with the prefix, and replaces what the target has; sentinels go\n" +
			"last. --decrypt-source and --encrypt-source change the bytes on their way, but for the JSON documents of\n" +
			"backups and WAL, which are stored in plain. To copy backups with what belongs to them there is copy.",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			pair, err := a.startPair(cmd, from, to)
			if err != nil {
				return err
			}
			if err := st.refuseGlob("copy"); err != nil {
				return err
			}
			if cmd.Flags().Changed("target") {
				return errors.New("st copy: --target has no meaning here: --from and --to name the storages")
			}
			c := &transfer.Copier{From: pair.from, To: pair.to, Log: a.log, Overwrite: true}
			if open || seal {
				if c.Recode, err = a.recoder(cmd.Context(), pair, open, seal); err != nil {
					return err
				}
			}
			res, err := c.CopyPrefix(cmd.Context(), strings.TrimPrefix(prefix, "/"))
			if err != nil {
				return err
			}
			return a.reportTransfer(res)
		},
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "config file of the source")
	f.StringVar(&to, "to", "", "config file of the target")
	f.StringVarP(&prefix, "prefix", "p", "", "copy objects whose names start so")
	f.BoolVarP(&open, "decrypt-source", "d", false, "decrypt with the source's key")
	f.BoolVarP(&seal, "encrypt-source", "e", false, "encrypt with the target's key")
	return cmd
}

// recoder takes the source's encryption off and puts the target's on.
func (a *app) recoder(ctx context.Context, pair *storagePair, open, sealed bool) (func(context.Context, string, io.Reader) (io.ReadCloser, error), error) {
	source, err := a.with(pair.fromSet).sealer(ctx)
	if err != nil {
		return nil, fmt.Errorf("key of the source: %w", err)
	}
	target, err := a.with(pair.toSet).sealer(ctx)
	if err != nil {
		return nil, fmt.Errorf("key of the target: %w", err)
	}
	switch {
	case open && source == nil:
		return nil, errors.New("--decrypt-source: the source's config file names no key")
	case sealed && target == nil:
		return nil, errors.New("--encrypt-source: the target's config file names no key")
	}
	if open {
		if err := source.CanOpen(); err != nil {
			return nil, fmt.Errorf("key of the source: %w", err)
		}
	}
	if sealed {
		if err := target.CanSeal(); err != nil {
			return nil, fmt.Errorf("key of the target: %w", err)
		}
	}
	return func(ctx context.Context, name string, body io.Reader) (io.ReadCloser, error) {
		if transfer.IsDocument(name) {
			return io.NopCloser(body), nil
		}
		plain := io.NopCloser(body)
		if open {
			var err error
			if plain, err = source.Open(ctx, body); err != nil || !sealed {
				return plain, err
			}
		}
		return &resealed{
			ReadCloser: transfer.Through(plain, func(w io.Writer) (transfer.Stage, error) { return target.Seal(ctx, w) }),
			plain:      plain,
		}, nil
	}, nil
}

// resealed closes both of its stages.
type resealed struct {
	io.ReadCloser
	plain io.Closer
}

func (r *resealed) Close() error { return errors.Join(r.ReadCloser.Close(), r.plain.Close()) }

func (a *app) stTransfer(st *stOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "transfer",
		Short: "Move objects between the storages of one configuration",
		Long: "Moves objects from one configured storage (--source) to another (--target). What the target has is\n" +
			"skipped, and stays in the source, unless --overwrite.",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		a.stTransferFiles(st, "files prefix", "Move the files whose names start with a prefix", cobra.ExactArgs(1)),
		a.stTransferFiles(st, "pg-wals", "Move all archived WAL", cobra.NoArgs),
		a.stTransferBackups(st),
	)
	return cmd
}

// transferFlags are common to all moves.
type transferFlags struct {
	source              string
	overwrite, preserve bool
	failFast            bool
	concurrency         int
	maxFiles            int
	checks              int
	interval            time.Duration
}

func (t *transferFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&t.source, "source", "s", "", "storage to move from, by name (required)")
	f.BoolVarP(&t.overwrite, "overwrite", "o", false, "replace what the target has")
	f.BoolVarP(&t.preserve, "preserve", "p", false, "leave the files in the source")
	f.BoolVar(&t.failFast, "fail-fast", false, "stop at the first failure")
	f.IntVarP(&t.concurrency, "concurrency", "c", 10, "files at a time")
	f.IntVarP(&t.maxFiles, "max-files", "m", 0, "most files to move (0: all)")
	f.IntVar(&t.checks, "appearance-checks", 3, "how often to look for a new file in the target before it counts as lost (0: never)")
	f.DurationVar(&t.interval, "appearance-checks-interval", time.Second, "pause between these looks")
}

// copier opens the storages of a move.
func (a *app) copier(ctx context.Context, cmd *cobra.Command, st *stOptions, t *transferFlags) (*transfer.Copier, error) {
	if t.source == "" {
		return nil, &usageError{errors.New("name the storage to move from (--source)"), cmd.UsageString()}
	}
	if t.concurrency < 1 || t.maxFiles < 0 || t.checks < 0 || t.interval < 0 {
		return nil, &usageError{errors.New("--concurrency has to be 1 or more, and no number negative"), cmd.UsageString()}
	}
	if err := a.start(ctx, cmd); err != nil {
		return nil, err
	}
	if err := st.refuseGlob("transfer"); err != nil {
		return nil, err
	}
	if t.source == everyStorage || st.target == everyStorage {
		return nil, errors.New("st transfer: all names no storage: --source and --target each name one")
	}
	buckets, err := a.buckets(ctx, false)
	if err != nil {
		return nil, err
	}
	from, err := findStorage(buckets, t.source)
	if err != nil {
		return nil, err
	}
	to, err := findStorage(buckets, st.target)
	if err != nil {
		return nil, err
	}
	if from.name == to.name {
		return nil, fmt.Errorf("st transfer: source and target are both %s", from.name)
	}
	return &transfer.Copier{
		From: from.bucket, To: to.bucket, Log: a.log, Concurrency: t.concurrency, Overwrite: t.overwrite, FailFast: t.failFast,
		AppearChecks: t.checks, AppearInterval: t.interval,
	}, nil
}

func (a *app) stTransferFiles(st *stOptions, use, short string, args cobra.PositionalArgs) *cobra.Command {
	var t transferFlags
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Long:  short + ". Each is copied, looked for in the target, and only then removed from the source.",
		Args:  usageArgs(args),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.copier(cmd.Context(), cmd, st, &t)
			if err != nil {
				return err
			}
			prefix := repo.WALFolder
			if len(args) == 1 {
				prefix = strings.TrimPrefix(args[0], "/")
			}
			res, err := c.MoveFiles(cmd.Context(), transfer.FilesOptions{Prefix: prefix, Preserve: t.preserve, MaxFiles: t.maxFiles})
			if err != nil {
				return err
			}
			return a.reportTransfer(res)
		},
	}
	t.register(cmd)
	return cmd
}

func (a *app) stTransferBackups(st *stOptions) *cobra.Command {
	var t transferFlags
	var maxBackups int
	cmd := &cobra.Command{
		Use:   "backups [backup_name | LATEST]",
		Short: "Move backups, without their WAL",
		Long: "Moves complete backups: to the target with the sentinel last, out of the source with the sentinel first.\n" +
			"Backups that build on each other move as one, and one that does not fit --max-files or --max-backups\n" +
			"with its increments is not begun. A single backup is not taken out of its chain.",
		Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if maxBackups < 0 {
				return &usageError{errors.New("--max-backups has to be 0 or more"), cmd.UsageString()}
			}
			c, err := a.copier(cmd.Context(), cmd, st, &t)
			if err != nil {
				return err
			}
			opt := transfer.MoveOptions{Preserve: t.preserve, MaxFiles: t.maxFiles, MaxBackups: maxBackups}
			if len(args) == 1 {
				opt.Backup = args[0]
			}
			res, err := c.MoveBackups(cmd.Context(), opt)
			if err != nil {
				return err
			}
			return a.reportTransfer(res)
		},
	}
	t.register(cmd)
	cmd.Flags().IntVar(&maxBackups, "max-backups", 0, "most backups to move (0: all)")
	return cmd
}

func (a *app) reportTransfer(res transfer.Result) error {
	if err := res.Err(); err != nil {
		return err
	}
	a.log.Info("Finished without errors", "copied", res.Copied, "bytes", res.Bytes, "skipped", res.Skipped)
	return nil
}
