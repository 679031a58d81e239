package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/restore"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/tools/walherd/progress"
	"github.com/walherd/walherd/workers/intake"
)

func (a *app) backupFetch() *cobra.Command {
	var opt fetchOptions
	cmd := &cobra.Command{
		Use:   "backup-fetch destination_directory [backup_name | LATEST]",
		Short: "Restore a base backup into an empty directory",
		Long: "Restores a base backup into a directory that is empty or absent; given again, it goes on with a restore\n" +
			"that was interrupted. --recover, --timeline or a --recovery-target also write the recovery settings, so that\n" +
			"PostgreSQL can be started at once; else it has to be given recovery.signal and\n" +
			"restore_command = '" + a.name + ` wal-fetch "%f" "%p"` + onlyAbsentEnds + "'. Without its last part\n" +
			"PostgreSQL takes a storage that cannot be read for the end of the archive, and ends recovery there; a standby,\n" +
			"which asks again, does without.",
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.start(cmd.Context(), cmd); err != nil {
				return err
			}
			if err := a.pickStorage(cmd); err != nil {
				return err
			}
			boolOver(cmd, "reverse-unpack", &a.set.Postgres.UseReverseUnpack)
			boolOver(cmd, "skip-redundant-tars", &a.set.Postgres.SkipRedundantTars)
			stringOver(cmd, "target-user-data", &a.set.Postgres.FetchTargetUserData)
			name := ""
			if len(args) == 2 {
				name = args[1]
			}
			switch data := a.set.Postgres.FetchTargetUserData; {
			case name == "" && data == "":
				return &usageError{errors.New("name a backup (or LATEST), or give --target-user-data"), cmd.UsageString()}
			case name != "" && data != "":
				return &usageError{errors.New("a backup name and user data (--target-user-data, WALG_FETCH_TARGET_USER_DATA) exclude each other"), cmd.UsageString()}
			}
			stores, err := a.openStorages(cmd.Context(), false, true)
			if err != nil {
				return err
			}
			defer stores.close()
			opt.recovery.changed = cmd.Flags().Changed
			return a.fetchBackup(cmd.Context(), stores, args[0], name, opt)
		},
	}
	f := cmd.Flags()
	f.String("target-user-data", "", "restore the one backup with this user data (JSON)")
	f.Bool("reverse-unpack", false, "restore an increment before its bases, so that each page is written once")
	f.Bool("skip-redundant-tars", false, "leave out tars of the bases in which nothing is still needed")
	f.StringArrayVar(&opt.only, "restore-only", nil, "restore these databases and tables only: db, db/table, db/schema.table, with * for any characters, separated by commas")
	f.BoolVar(&opt.allowMissing, "allow-missing", false, "with --restore-only, go on when a name is not in the backup")
	f.StringVar(&opt.mask, "mask", "", "restore only files whose path below the data directory matches, as in base/*/PG_VERSION")
	f.StringVar(&opt.spec, "restore-spec", "", "file that says where the tablespaces go (JSON)")
	opt.recovery.register(f)
	a.targetStorageFlag(cmd)
	return cmd
}

// fetchOptions are what only a command line can say of a restore.
type fetchOptions struct {
	only         []string
	allowMissing bool
	mask, spec   string
	recovery     recoveryFlags
}

// fetchBackup needs the storage and nothing else: no broker, no worker, no
// database.
func (a *app) fetchBackup(ctx context.Context, stores *storages, destination, name string, opt fetchOptions) error {
	a.collect(collectOften)
	codec, err := a.codec(ctx)
	if err != nil {
		return err
	}
	if codec.Sealer != nil {
		if err := codec.Sealer.CanOpen(); err != nil {
			return err
		}
	}
	r, backup, err := a.chooseBackup(ctx, stores, name)
	if err != nil {
		return err
	}
	a.log.Info(fmt.Sprintf("Selecting the backup with name %s", backup))
	req := restore.Request{
		Concurrency: a.set.General.DownloadConcurrency, PageSize: a.set.Postgres.BlockSize,
		Reverse: a.set.Postgres.UseReverseUnpack, SkipRedundant: a.set.Postgres.SkipRedundantTars,
	}
	if req.Destination, err = filepath.Abs(destination); err != nil {
		return fmt.Errorf("destination %s: %w", destination, err)
	}
	if opt.spec != "" {
		text, err := os.ReadFile(opt.spec)
		if err != nil {
			return fmt.Errorf("read restore spec: %w", err)
		}
		if req.Spec, err = manifest.ParseTablespaceSpec(text); err != nil {
			return fmt.Errorf("restore spec %s: %w", opt.spec, err)
		}
	}
	if req.Recovery, err = a.recovery(opt.recovery); err != nil {
		return err
	}
	links, sources, err := chainOf(ctx, r, backup)
	if err != nil {
		return err
	}
	if err := a.limitRestore(&req, links[len(links)-1], opt); err != nil {
		return err
	}
	plan, err := restore.NewChainPlan(links, req)
	if errors.Is(err, restore.ErrTarget) {
		return a.elsewhere(ctx, r, req.Recovery, err)
	}
	if err != nil {
		return err
	}
	total := a.progress("backup-fetch", plan.StoredBytes())
	defer total.Finish()
	counted := newFetchProgress(total, plan)
	res, err := restore.RunChain(ctx, plan, sources, restore.Config{
		Decompress: decoder(ctx, codec),
		Attempts:   min(a.set.General.DownloadFileRetries, 2),
		Retryable: func(err error) bool {
			// The storage layer has tried again where that could help, and
			// damage stays damage: one more reading tells bytes altered on
			// the way from bytes altered in store.
			return !errors.Is(err, storage.ErrNotExist) && !errors.Is(err, storage.ErrPermanent)
		},
		Progress:     counted.note,
		Log:          a.log,
		DisableFsync: a.set.General.TarDisableFsync,
	})
	if err != nil {
		return err
	}
	counted.done()
	if res.Resumed > 0 {
		a.log.Info(fmt.Sprintf("%d parts were there from an interrupted restore", res.Resumed))
	}
	for _, note := range res.Notes {
		a.log.Warn(note)
	}
	a.log.Info("Backup extraction complete.", "files", res.Files, telemetry.KeyBytes, res.Bytes)
	return nil
}

// chooseBackup finds the backup that is meant, and the storage that has it.
func (a *app) chooseBackup(ctx context.Context, stores *storages, name string) (*repo.Repo, pg.BackupName, error) {
	repos, err := stores.readers(ctx)
	if err != nil {
		return nil, "", err
	}
	data := a.set.Postgres.FetchTargetUserData
	c, err := readCatalog(ctx, repos, data != "")
	if err != nil {
		return nil, "", err
	}
	var b catalog.Backup
	if data != "" {
		var want manifest.UserData
		if want, err = manifest.ParseUserData(data); err != nil {
			return nil, "", fmt.Errorf("user data: %w", err)
		}
		b, err = c.FindByUserData(want)
	} else {
		b, err = c.Find(name)
	}
	if err != nil {
		if down := stores.down(ctx); len(down) > 0 {
			err = fmt.Errorf("%w (storage %s cannot be read now)", err, strings.Join(down, ", "))
		}
		return nil, "", err
	}
	at := slices.IndexFunc(repos, func(r *repo.Repo) bool { return r.Name() == b.Storage })
	return repos[at], b.Name, nil
}

// source gives restore the parts of one backup.
type source struct {
	r      *repo.Repo
	backup pg.BackupName
}

// Parts implements restore.Source.
func (s source) Parts(ctx context.Context) ([]restore.Object, error) {
	var out []restore.Object
	for p, err := range s.r.Parts(ctx, s.backup) {
		if err != nil {
			return nil, err
		}
		out = append(out, restore.Object{Name: p.Name, Size: p.Size})
	}
	return out, nil
}

// Open implements restore.Source.
func (s source) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	return s.r.OpenObject(ctx, s.r.Folder().PartKey(s.backup, name), storage.Range{})
}

// decoder undoes the stages of an object, chosen by its extension;
// "part_001.tar" has none.
func decoder(ctx context.Context, c intake.Codec) func(string, io.Reader) (io.ReadCloser, error) {
	// Parts are restored side by side: one of them needs no more than one core.
	c.Compress.Workers = 1
	return func(object string, stored io.Reader) (io.ReadCloser, error) {
		ext := strings.TrimPrefix(path.Ext(object), ".")
		if ext == "tar" {
			ext = ""
		}
		return c.Open(ctx, stored, ext)
	}
}

// fetchProgress counts stored bytes, whose total is known, for the bar.
type fetchProgress struct {
	whole *progress.Part
	size  int64
	seen  int64
}

func newFetchProgress(total *progress.Tracker, plan *restore.Plan) *fetchProgress {
	size := plan.StoredBytes()
	name := fmt.Sprintf("%d parts", len(plan.Data)+len(plan.Label)+len(plan.Control))
	return &fetchProgress{whole: total.Part(name, size), size: size}
}

func (f *fetchProgress) note(p restore.Progress) {
	f.whole.Add(p.StoredBytes - f.seen)
	f.seen = p.StoredBytes
}

func (f *fetchProgress) done() { f.whole.Done(f.size) }
