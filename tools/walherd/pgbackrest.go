package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/cluster"
	"github.com/walherd/walherd/engine/durable"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/pgbackrest"
	"github.com/walherd/walherd/engine/restore"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/engine/wal"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/failover"
	"github.com/walherd/walherd/tools/walherd/render"
)

// pgBackRest are the commands that read a repository of pgBackRest.
func (a *app) pgBackRest() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pgbackrest",
		Short: "List and restore what pgBackRest has stored",
		Long: "Reads a repository of pgBackRest and changes nothing in it. The storage's prefix is the repository's\n" +
			"root (repo-path), PGBACKREST_STANZA names the stanza, and PGBACKREST_REPO1_CIPHER_PASS opens a\n" +
			"repository that is encrypted.",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.pgBackRestList(), a.pgBackRestFetch(), a.pgBackRestWAL(), a.pgBackRestShow())
	for _, sub := range cmd.Commands() {
		sub.Args = usageArgs(sub.Args)
		a.targetStorageFlag(sub)
	}
	return cmd
}

// onPgBackRest starts a command and opens the repository: in the first storage,
// or the one that was named.
func (a *app) onPgBackRest(cmd *cobra.Command, limited bool, do func(*pgbackrest.Repository) error) error {
	if err := a.start(cmd.Context(), cmd); err != nil {
		return err
	}
	if err := a.pickStorage(cmd); err != nil {
		return err
	}
	buckets, err := a.buckets(cmd.Context(), limited)
	if err != nil {
		return err
	}
	name := failover.Primary
	if t := a.set.General.TargetStorage; t != "" {
		name = t
	}
	b, err := findStorage(buckets, name)
	if err != nil {
		return err
	}
	r, err := pgbackrest.New(pgBackRestStore{b.bucket}, pgbackrest.Options{
		Stanza: a.set.Postgres.PgBackRestStanza, Passphrase: a.set.Postgres.PgBackRestCipherPass, PassphraseFrom: "PGBACKREST_REPO1_CIPHER_PASS",
	})
	if err != nil {
		return fmt.Errorf("PGBACKREST_STANZA: %w", err)
	}
	return do(r)
}

// pgBackRestStore is a bucket as pgbackrest.Store.
type pgBackRestStore struct{ b storage.Bucket }

// Open implements pgbackrest.Store.
func (s pgBackRestStore) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	body, err := s.b.Open(ctx, name, storage.Range{Offset: offset, Length: length})
	if errors.Is(err, storage.ErrNotExist) {
		err = fmt.Errorf("%w: %w", iofs.ErrNotExist, err)
	}
	return body, err
}

// List implements pgbackrest.Store.
func (s pgBackRestStore) List(ctx context.Context, prefix string) iter.Seq2[pgbackrest.Object, error] {
	return func(yield func(pgbackrest.Object, error) bool) {
		for info, err := range s.b.List(ctx, prefix, storage.ListOptions{Shallow: true}) {
			if !yield(pgbackrest.Object{Name: info.Name, Modified: info.Modified}, err) || err != nil {
				return
			}
		}
	}
}

func (a *app) pgBackRestList() *cobra.Command {
	var opt render.Options
	cmd := &cobra.Command{
		Use:   "backup-list",
		Short: "List the backups of a pgBackRest repository",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.onPgBackRest(cmd, false, func(r *pgbackrest.Repository) error {
				opt.Location = time.Local
				return a.listPgBackRest(cmd.Context(), r, opt)
			})
		},
	}
	cmd.Flags().BoolVar(&opt.Pretty, "pretty", false, "print a table, or indented JSON")
	cmd.Flags().BoolVar(&opt.JSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&opt.Detail, "detail", false, "print what each backup's manifest says")
	return cmd
}

func (a *app) listPgBackRest(ctx context.Context, r *pgbackrest.Repository, opt render.Options) error {
	info, err := r.Backups(ctx)
	if errors.Is(err, iofs.ErrNotExist) {
		// As WAL-G: no stanza is no backups, with nothing on stdout.
		a.log.Info(fmt.Sprintf("No backups found: stanza %s (PGBACKREST_STANZA) has no backup.info here", a.set.Postgres.PgBackRestStanza))
		return nil
	}
	if err != nil {
		return err
	}
	if len(info.Backups) == 0 {
		a.log.Info("No backups found")
	}
	if !opt.Detail {
		list := make([]render.Backup, len(info.Backups))
		for i, b := range info.Backups {
			list[i] = render.Backup{Name: string(b.Label), Time: b.Stop, WALFileName: b.ArchiveStart}
		}
		return render.Backups(a.stdout, list, opt)
	}
	a.collect(collectOften) // a manifest names every file of a cluster
	list := make([]render.PgBackRestBackup, len(info.Backups))
	for i, b := range info.Backups {
		m, err := r.Manifest(ctx, info, b.Label)
		if err != nil {
			return fmt.Errorf("list %s in detail (without --detail it is listed): %w", b.Label, err)
		}
		list[i] = render.PgBackRestBackup{
			BackupName: string(b.Label), ModifiedTime: b.Stop, WalFileName: b.ArchiveStart, Type: string(m.Type), StartTime: m.Start, FinishTime: m.Stop,
			PgVersion: m.Version, StartLsn: m.StartLSN.String(), FinishLsn: m.StopLSN.String(), SystemIdentifier: m.SystemID,
			DirectoryPaths: []string{}, DefaultFileMode: m.FileMode, DefaultDirectoryMode: m.DirectoryMode,
		}
		for _, d := range m.Directories {
			list[i].DirectoryPaths = append(list[i].DirectoryPaths, d.Name)
		}
	}
	return render.PgBackRestBackups(a.stdout, list, opt)
}

func (a *app) pgBackRestFetch() *cobra.Command {
	var spec string
	cmd := &cobra.Command{
		Use:   "backup-fetch destination_directory backup_name|LATEST",
		Short: "Restore a backup of a pgBackRest repository into an empty directory",
		Long: "Restores a full, differential or incremental backup; one with blocks of files (repo-block) is refused.\n" +
			"PostgreSQL still has to be given recovery settings: recovery.signal and\n" +
			"restore_command = '" + a.name + ` pgbackrest wal-fetch "%f" "%p"` + onlyAbsentEnds + "'. Without its last part\n" +
			"PostgreSQL takes a failure for the end of the archive, and opens without what comes after.",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onPgBackRest(cmd, true, func(r *pgbackrest.Repository) error {
				return a.fetchPgBackRest(cmd.Context(), r, args[0], args[1], spec)
			})
		},
	}
	cmd.Flags().StringVar(&spec, "restore-spec", "", "file that says where the tablespaces go (JSON)")
	return cmd
}

func (a *app) fetchPgBackRest(ctx context.Context, r *pgbackrest.Repository, destination, name, specFile string) error {
	a.collect(collectOften)
	req := pgbackrest.Request{Stanza: a.set.Postgres.PgBackRestStanza, Concurrency: a.set.General.DownloadConcurrency}
	var err error
	if req.Destination, err = filepath.Abs(destination); err != nil {
		return fmt.Errorf("destination %s: %w", destination, err)
	}
	if specFile != "" {
		text, err := os.ReadFile(specFile)
		if err != nil {
			return fmt.Errorf("read restore spec: %w", err)
		}
		if req.Spec, err = manifest.ParseTablespaceSpec(text); err != nil {
			return fmt.Errorf("restore spec %s: %w", specFile, err)
		}
	}
	info, err := r.Backups(ctx)
	if err != nil {
		return err
	}
	label := pgbackrest.Label("")
	if name == "LATEST" {
		latest, ok := info.Latest()
		if !ok {
			return fmt.Errorf("stanza %s has no backup", a.set.Postgres.PgBackRestStanza)
		}
		label = latest.Label
	} else if label, err = pgbackrest.ParseLabel(name); err != nil {
		return err
	}
	m, err := r.Manifest(ctx, info, label)
	if err != nil {
		return err
	}
	a.log.Info(fmt.Sprintf("Selecting the backup with name %s", label))
	if b, _ := info.Find(label); b.Error {
		a.log.Warn("pgBackRest met pages with wrong checksums when it took this backup", telemetry.KeyBackup, label)
	}
	plan, err := pgbackrest.NewPlan(m, req)
	if err != nil {
		return err
	}
	total := a.progress("pgbackrest backup-fetch", plan.StoredBytes())
	defer total.Finish()
	counted := &fetchProgress{whole: total.Part(fmt.Sprintf("%d files", len(m.Files)), plan.StoredBytes()), size: plan.StoredBytes()}
	res, err := r.Restore(ctx, plan, restore.Config{
		Attempts: min(a.set.General.DownloadFileRetries, 2),
		Retryable: func(err error) bool {
			return !errors.Is(err, storage.ErrNotExist) && !errors.Is(err, storage.ErrPermanent)
		},
		Progress: counted.note, Log: a.log, DisableFsync: a.set.General.TarDisableFsync,
	})
	if err != nil {
		return err
	}
	counted.done()
	for _, note := range res.Notes {
		a.log.Warn(note)
	}
	a.log.Info("Backup extraction complete.", "files", res.Files, telemetry.KeyBytes, res.Bytes)
	return nil
}

func (a *app) pgBackRestWAL() *cobra.Command {
	return &cobra.Command{
		Use:   "wal-fetch wal_name destination_filename",
		Short: "Fetch a WAL file from a pgBackRest repository (restore_command = '" + a.name + " pgbackrest wal-fetch %f %p')",
		Long: "Fetches a WAL file to a destination that must not exist.\n" +
			"Exit code 74 means that the archive has no such file; every other failure is 1. PostgreSQL takes both for the end\n" +
			"of the archive and ends a recovery there. To have it stop at a failure instead, and go on at its next start:\n" +
			"restore_command = '" + a.name + ` pgbackrest wal-fetch "%f" "%p"` + onlyAbsentEnds + "'.",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onPgBackRest(cmd, false, func(r *pgbackrest.Repository) error {
				return a.fetchPgBackRestWAL(cmd.Context(), r, args[0], args[1])
			})
		},
	}
}

// maxWALFile bounds a file of the archive, in bytes: the largest segment.
const maxWALFile = 1 << 30

func (a *app) fetchPgBackRestWAL(ctx context.Context, r *pgbackrest.Repository, name, destination string) error {
	if _, err := os.Lstat(destination); err == nil {
		return fmt.Errorf("fetch WAL %s: %s: %w: it must not exist", name, destination, iofs.ErrExist)
	}
	info, err := r.Archive(ctx)
	if err != nil {
		return fmt.Errorf("fetch WAL %s: %w", name, err)
	}
	o, err := r.FindWAL(ctx, info, clusterOf(ctx, destination), name)
	if errors.Is(err, iofs.ErrNotExist) {
		return fmt.Errorf("WAL file %s is %w: %w: %w", name, errWALAbsent, storage.ErrNotExist, err)
	}
	if err != nil {
		return err
	}
	return durable.WriteFile(destination, 0o600, func(w io.Writer) error {
		content, err := r.OpenWAL(ctx, info, o)
		if err != nil {
			return err
		}
		defer content.Close()
		n, err := io.Copy(w, io.LimitReader(content, maxWALFile+1))
		switch {
		case err != nil:
			return fmt.Errorf("fetch WAL %s: %w", o.Object, err)
		case n > maxWALFile:
			return fmt.Errorf("fetch WAL %s: more than %d bytes are no WAL file", o.Object, maxWALFile)
		}
		return nil
	}, durable.Options{NoReplace: true, NoSync: true})
}

// clusterOf is the system identifier of the cluster that WAL is fetched for,
// whose pg_wal the destination is usually in; 0 if that cannot be told.
func clusterOf(ctx context.Context, destination string) pg.SystemID {
	abs, err := filepath.Abs(destination)
	if err != nil {
		return 0
	}
	c, _, err := cluster.ReadControl(ctx, filepath.Dir(filepath.Dir(abs)))
	if err != nil {
		return 0
	}
	return c.SystemID
}

func (a *app) pgBackRestShow() *cobra.Command {
	var detailed bool
	cmd := &cobra.Command{
		Use:   "wal-show",
		Short: "Show the timelines of a pgBackRest repository and what WAL they lack",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.onPgBackRest(cmd, false, func(r *pgbackrest.Repository) error {
				return a.showPgBackRest(cmd.Context(), r, detailed)
			})
		},
	}
	cmd.Flags().BoolVar(&detailed, "detailed-json", false, "print JSON, with the names of missing segments")
	return cmd
}

// showPgBackRest shows the archive of the stanza's current cluster.
func (a *app) showPgBackRest(ctx context.Context, r *pgbackrest.Repository, detailed bool) error {
	info, err := r.Archive(ctx)
	if err != nil {
		return err
	}
	v, err := catalog.NewInventory(a.segmentSize())
	if err != nil {
		return err
	}
	for o, err := range r.WAL(ctx, info.Databases[0]) {
		if err != nil {
			return err
		}
		kind, _ := pg.ClassifyWALFile(o.Name)
		if kind != pg.TimelineHist {
			v.Add(failover.Primary, string(catalog.WALFolder)+o.Name, o.Modified)
			continue
		}
		if err := a.addHistory(ctx, r, info, o, v); err != nil {
			return err
		}
	}
	if d := v.Misfit(); d != "" {
		a.log.Warn(d)
	}
	var list []render.Timeline
	for _, r := range v.Show() {
		list = append(list, render.Timeline{TimelineReport: r})
	}
	return render.Timelines(a.stdout, list, render.TimelineOptions{JSON: detailed, NoBackups: true})
}

// maxHistory bounds a history file, in bytes; a line is some 50.
const maxHistory = 1 << 20

func (a *app) addHistory(ctx context.Context, r *pgbackrest.Repository, info *pgbackrest.ArchiveInfo, o pgbackrest.WALObject, v *catalog.Inventory) error {
	content, err := r.OpenWAL(ctx, info, o)
	if err != nil {
		return err
	}
	defer content.Close()
	text, err := io.ReadAll(io.LimitReader(content, maxHistory))
	if err != nil {
		return fmt.Errorf("read %s: %w", o.Object, err)
	}
	tl, err := pg.ParseSegmentName(o.Name[:8] + "0000000000000000")
	if err != nil {
		return fmt.Errorf("read %s: %w", o.Object, err)
	}
	h, err := wal.ParseHistory(tl.Timeline, text)
	if err != nil {
		// Its timeline is shown without a parent.
		a.log.Warn("cannot read a history file", telemetry.KeyObject, o.Object, telemetry.KeyError, err)
		return nil
	}
	v.AddHistory(h)
	return nil
}
