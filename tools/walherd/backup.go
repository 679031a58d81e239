package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/producer/basebackup"
	"github.com/walherd/walherd/producer/pgconn"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/tools/walherd/progress"
	"github.com/walherd/walherd/tools/walherd/render"
)

func (a *app) backupPush() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup-push db_directory",
		Short: "Take a base backup of a data directory",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.start(cmd.Context(), cmd); err != nil {
				return err
			}
			if err := a.pickStorage(cmd); err != nil {
				return err
			}
			boolOver(cmd, "verify", &a.set.Postgres.VerifyPageChecksums)
			boolOver(cmd, "store-all-corrupt", &a.set.Postgres.StoreAllCorruptBlocks)
			boolOver(cmd, "rating-composer", &a.set.Postgres.UseRatingComposer)
			boolOver(cmd, "copy-composer", &a.set.Postgres.UseCopyComposer)
			boolOver(cmd, "database-composer", &a.set.Postgres.UseDatabaseComposer)
			stringOver(cmd, "add-user-data", &a.set.Postgres.SentinelUserData)
			stringOver(cmd, "delta-from-name", &a.set.Postgres.DeltaFromName)
			stringOver(cmd, "delta-from-user-data", &a.set.Postgres.DeltaFromUserData)
			boolOver(cmd, "without-files-metadata", &a.set.Postgres.WithoutFilesMetadata)
			if len(args) == 0 {
				return fmt.Errorf("backup over the replication protocol (no db_directory): %w: name the data directory", errNotYet)
			}
			permanent, err := cmd.Flags().GetBool("permanent")
			if err != nil {
				return err
			}
			forced, err := cmd.Flags().GetBool("full")
			if err != nil {
				return err
			}
			return a.pushBackup(cmd.Context(), args[0], pushOptions{permanent: permanent, full: forced})
		},
	}
	f := cmd.Flags()
	f.BoolP("permanent", "p", false, "keep the backup from being deleted")
	f.BoolP("full", "f", false, "take a full backup, whatever WALG_DELTA_MAX_STEPS says")
	f.BoolP("verify", "v", false, "check the checksums of the pages that are read")
	f.BoolP("store-all-corrupt", "s", false, "record every corrupt block, not the first ten of a file")
	f.BoolP("rating-composer", "r", false, "pack files by how often they change")
	f.BoolP("copy-composer", "c", false, "take a full backup that copies the unchanged parts of the last")
	f.BoolP("database-composer", "b", false, "pack databases apart")
	f.String("delta-from-name", "", "base of the increment, by name")
	f.String("delta-from-user-data", "", "base of the increment, by user data (JSON)")
	f.String("add-user-data", "", "JSON to keep with the backup")
	f.Bool("without-files-metadata", false, "do not store the list of files")
	a.targetStorageFlag(cmd)
	cmd.Annotations = map[string]string{agentable: "yes"}
	return cmd
}

// pushOptions are what only a command line can say of a backup.
type pushOptions struct {
	permanent, full bool
	data            manifest.UserData
}

func (a *app) pushBackup(ctx context.Context, dir string, opt pushOptions) error {
	if err := a.set.ValidateBackup(); err != nil {
		return err
	}
	if text := a.set.Postgres.SentinelUserData; text != "" {
		var err error
		if opt.data, err = manifest.ParseUserData(text); err != nil {
			return fmt.Errorf("user data: %w", err)
		}
	}
	a.collect(collectOften)
	a.holdMemory(a.readers())
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("find the host's name: %w", err)
	}
	f, err := a.connect(ctx, roleProducer, messages.KindPart, messages.KindCommit)
	if err != nil {
		return err
	}
	defer f.close(ctx, a.log)
	defer a.missWorkers(ctx, f, a.set.Walherd.PartTimeout)()
	return a.alone(ctx, f, func(ctx context.Context) error { return a.pushThrough(ctx, f, dir, host, opt) })
}

// alone does work while no other host of the cluster takes a backup. A command
// with its own broker knows of no other host.
func (a *app) alone(ctx context.Context, f *fleet, work func(ctx context.Context) error) error {
	if f.embedded != nil {
		return work(ctx)
	}
	lease, err := a.backupLease(ctx, f)
	switch {
	case errors.Is(err, bus.ErrDenied):
		a.log.Warn("the broker does not let this host take the lease of backups; another may run at the same time", telemetry.KeyError, err)
		return work(ctx)
	case err != nil:
		return err
	}
	// A broker that is away for longer than the lease lasts is no reason to
	// give a backup up.
	return lease.Keep(ctx, work)
}

// backupLeaseTTL is how long the lease of a host that died stands in the way.
const backupLeaseTTL = 30 * time.Second

// backupLease takes the right to back the cluster up. It waits as long as the
// lease of a dead host can last: one that is held longer is held by a living.
func (a *app) backupLease(ctx context.Context, f *fleet) (*bus.Lease, error) {
	key := string(f.cluster) + ".backup"
	deadline := time.Now().Add(backupLeaseTTL + 5*time.Second)
	for told := false; ; {
		lease, err := f.bus.Acquire(ctx, key, a.processName(), backupLeaseTTL)
		if !errors.Is(err, bus.ErrHeld) {
			return lease, err
		}
		who, herr := f.bus.Holder(ctx, key)
		if herr != nil || who == "" {
			who = "another host"
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("cluster %s is being backed up by %s: %w", f.cluster, who, err)
		}
		if !told {
			a.log.Info(fmt.Sprintf("the lease of backups is held by %s; waiting up to %s to see whether it lives", who, backupLeaseTTL))
			told = true
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// pushThrough takes a backup over a connected fleet.
func (a *app) pushThrough(ctx context.Context, f *fleet, dir, host string, opt pushOptions) error {
	composer := a.composer()
	parent, err := a.deltaParent(ctx, f, opt.permanent, opt.full || composer == basebackup.Copy)
	if err != nil {
		return err
	}
	var copyOf *basebackup.Parent
	if composer == basebackup.Copy {
		if copyOf, err = a.copyParent(ctx, f); err != nil {
			return err
		}
	}
	conn, err := pgconn.Connect(ctx, pgconn.Options{Logger: a.log})
	if err != nil {
		return err
	}
	// Closing the session is what takes the server out of backup mode when
	// the backup fails; it must happen on an interrupt too.
	defer func() {
		if err := conn.Close(context.WithoutCancel(ctx)); err != nil {
			a.log.Debug("close the session", telemetry.KeyError, err)
		}
	}()
	track := &pushProgress{a: a}
	defer track.finish()
	limit := int64(a.set.General.DiskRateLimit)
	if a.turbo {
		limit = 0
	}
	p := basebackup.Pusher{
		Bus: f.bus, Carrier: f.carrier, Conn: conn, Logger: a.log, Tracer: a.tracer, Track: track, Scanned: track.begin,
		Cluster: f.cluster, DataDir: dir, PGData: a.set.Postgres.Data, Hostname: host, SegmentSize: a.segmentSize(),
		Threshold: int64(a.set.General.TarSizeThreshold), Readers: a.readers(), ReadLimit: limit,
		AliveInterval: a.set.Postgres.AliveCheckInterval, StopTimeout: a.set.Postgres.StopBackupTimeout,
		IdleTimeout: a.set.Walherd.PartTimeout, Permanent: opt.permanent, UserData: opt.data, Parent: parent,
		NoFilesMetadata: a.set.Postgres.WithoutFilesMetadata, NoRelations: a.set.Postgres.DisablePartialRestore,
		Archived: a.archivedChanges(f), ForceMap: a.set.Postgres.ForceWALDelta,
		Composer: composer, CopyOf: copyOf, Verify: a.set.Postgres.VerifyPageChecksums, AllCorrupt: a.set.Postgres.StoreAllCorruptBlocks,
	}
	res, err := p.Push(ctx)
	if err != nil {
		return err
	}
	where := ""
	if f.storages != nil {
		where = " to storage " + f.backups
	}
	a.log.Info(fmt.Sprintf("Wrote backup with name %s%s", res.Name, where))
	return nil
}

// composer is the one that is wanted. Of several the strongest wins, as in
// WAL-G: copy before database before rating.
func (a *app) composer() basebackup.Composer {
	switch p := &a.set.Postgres; {
	case p.UseCopyComposer:
		return basebackup.Copy
	case p.UseDatabaseComposer:
		return basebackup.Database
	case p.UseRatingComposer:
		return basebackup.Rating
	}
	return basebackup.Regular
}

// pushProgress shows a backup's progress. The total is known once the data
// directory is scanned.
type pushProgress struct {
	a     *app
	mu    sync.Mutex
	total *progress.Tracker
	parts map[string]*progress.Part
}

func (p *pushProgress) begin(total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total = p.a.progress("backup-push", total)
	p.parts = map[string]*progress.Part{}
}

func (p *pushProgress) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total.Finish()
}

// Begin implements basebackup.Tracker. What has no size (the documents of the
// backup, not the data) is in no total: for many small files it is as large.
func (p *pushProgress) Begin(object string, size int64) {
	if size == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.parts[object] = p.total.Part(object, size)
}

// Add implements basebackup.Tracker.
func (p *pushProgress) Add(object string, n int64) {
	p.mu.Lock()
	part := p.parts[object]
	p.mu.Unlock()
	part.Add(n)
}

// End implements basebackup.Tracker.
func (p *pushProgress) End(object string, stored int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// What was given up stays under way, or the last line would say that a
	// backup that failed is finished.
	if stored > 0 {
		p.parts[object].Done(stored)
	}
	delete(p.parts, object)
}

func (a *app) backupList() *cobra.Command {
	var opt render.Options
	cmd := &cobra.Command{
		Use:   "backup-list",
		Short: "List the backups",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.reading(cmd, func(stores *storages) error {
				opt.Location = time.Local
				return a.listBackups(cmd.Context(), stores, opt)
			})
		},
	}
	cmd.Flags().BoolVar(&opt.Pretty, "pretty", false, "print a table, or indented JSON")
	cmd.Flags().BoolVar(&opt.JSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&opt.Detail, "detail", false, "print what each backup's metadata says")
	a.targetStorageFlag(cmd)
	return a.ask(cmd)
}

func (a *app) listBackups(ctx context.Context, stores *storages, opt render.Options) error {
	repos, err := stores.readers(ctx)
	if err != nil {
		return err
	}
	c, err := readCatalog(ctx, repos, opt.Detail)
	if err != nil {
		return err
	}
	backups := c.ByModified()
	if opt.Detail {
		backups = c.ByStart()
	}
	if len(backups) == 0 && !opt.JSON {
		a.log.Info("No backups found")
	}
	list := make([]render.Backup, len(backups))
	for i, b := range backups {
		list[i] = backupLine(b.Name, b.Segment, b.Modified, b.Storage)
		if !opt.Detail {
			continue
		}
		m := b.Metadata
		if m == nil {
			return fmt.Errorf("list %s in detail: its metadata.json is missing or unreadable (without --detail it is listed)", b.Name)
		}
		list[i].Detail = detailOf(m)
	}
	return render.Backups(a.stdout, list, opt)
}

// backupLine is a backup's line in a list.
func backupLine(name pg.BackupName, segment pg.SegmentName, modified time.Time, storage string) render.Backup {
	return render.Backup{Name: string(name), Time: modified, WALFileName: segment.String(), StorageName: storage}
}

// detailOf is what metadata adds to the line.
func detailOf(m *manifest.Metadata) *render.Detail {
	d := &render.Detail{
		StartTime: m.StartTime, FinishTime: m.FinishTime, Hostname: m.Hostname, DataDir: m.DataDir, PgVersion: m.PgVersion,
		StartLSN: m.StartLSN, FinishLSN: m.FinishLSN, IsPermanent: m.IsPermanent,
		UncompressedSize: m.UncompressedSize, CompressedSize: m.CompressedSize, UserData: []byte(m.UserData),
	}
	if m.SystemIdentifier != nil {
		d.SystemIdentifier = *m.SystemIdentifier
	}
	return d
}

// readCatalog lists the backups, with the metadata of each if wanted. Metadata
// that is absent is left nil; any other failure to read it is an error.
func readCatalog(ctx context.Context, repos []*repo.Repo, metadata bool) (*catalog.Catalog, error) {
	var entries []catalog.Entry
	from := map[string]*repo.Repo{}
	for _, r := range repos {
		from[r.Name()] = r
		for s, err := range r.Sentinels(ctx) {
			if err != nil {
				return nil, err
			}
			entries = append(entries, catalog.Entry{Object: string(s.Name) + catalog.SentinelSuffix, Modified: s.Modified, Storage: r.Name()})
		}
	}
	if !metadata {
		return catalog.Build(entries), nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(documentsAtOnce)
	for i := range entries {
		g.Go(func() error {
			e := &entries[i]
			name := pg.BackupName(strings.TrimSuffix(e.Object, catalog.SentinelSuffix))
			doc, _, err := from[e.Storage].Metadata(ctx, name)
			if err == nil {
				e.Metadata, err = manifest.ParseMetadata(doc)
			}
			if err != nil && !errors.Is(err, storage.ErrNotExist) {
				return fmt.Errorf("read metadata of %s: %w", name, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return catalog.Build(entries), nil
}
