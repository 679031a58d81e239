package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/producer/pgconn"
	"github.com/walherd/walherd/tools/walherd/render"
)

func (a *app) walShow() *cobra.Command {
	var opt render.TimelineOptions
	cmd := &cobra.Command{
		Use:   "wal-show",
		Short: "Show the archived timelines, their gaps and their backups",
		Long: "Shows a row for each timeline that has archived segments: OK, or LOST_SEGMENTS if some are missing between\n" +
			"the first and the last. All storages count together, as they do for wal-fetch, unless one is named.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.reading(cmd, func(stores *storages) error {
				opt.Location = time.Local
				return a.showWAL(cmd.Context(), stores, opt)
			})
		},
	}
	cmd.Flags().BoolVar(&opt.JSON, "detailed-json", false, "print JSON, with the missing segments and the backups by name")
	cmd.Flags().BoolVar(&opt.NoBackups, "without-backups", false, "do not look for backups")
	a.targetStorageFlag(cmd)
	return a.ask(cmd)
}

func (a *app) showWAL(ctx context.Context, stores *storages, opt render.TimelineOptions) error {
	repos, err := stores.readers(ctx)
	if err != nil {
		return err
	}
	a.warnOfDown(ctx, stores)
	inv, err := newInventory(a.segmentSize(), repos)
	if err != nil {
		return err
	}
	if err := inv.addWAL(ctx, a, repos); err != nil {
		return err
	}
	if !opt.NoBackups {
		if err := inv.addBackups(ctx, repos); err != nil {
			return err
		}
		if err := inv.describe(ctx, a, false, inv.listed(func(*catalog.Stored) bool { return true })...); err != nil {
			return err
		}
	}
	if d := inv.Misfit(); d != "" {
		a.log.Warn(d)
	}
	var list []render.Timeline
	for _, r := range inv.Show() {
		t := render.Timeline{TimelineReport: r}
		if opt.JSON {
			for _, b := range r.Backups {
				line := backupLine(b.ID.Name, b.Segment, b.Modified, b.ID.Storage)
				line.Detail = &render.Detail{}
				if m := inv.metadata[b.ID]; m != nil {
					line.Detail = detailOf(m)
				}
				t.Backups = append(t.Backups, line)
			}
		}
		list = append(list, t)
	}
	return render.Timelines(a.stdout, list, opt)
}

// The checks of wal-verify.
const (
	checkIntegrity = "integrity"
	checkTimeline  = "timeline"
)

// errVerifyFailed is the outcome that --exit-code asks for.
var errVerifyFailed = errors.New("a check found a failure")

// verification is a wal-verify's question.
type verification struct {
	checks                []string
	at                    pgconn.Position
	backup                string
	maxDelayed, uploading int
	asJSON, exitCode      bool
}

func (a *app) walVerify() *cobra.Command {
	var v verification
	var timeline uint32
	var lsn string
	cmd := &cobra.Command{
		Use:   "wal-verify integrity|timeline...",
		Short: "Check that the archived WAL is whole and of one history",
		Long: "integrity: every segment from the start of the oldest backup (that is not permanent) up to the one that the\n" +
			"server is in is archived. timeline: no segment is archived of a timeline higher than the server's.\n" +
			"The server is asked for its position unless --timeline and --lsn tell it. The exit code tells whether the checks\n" +
			"could be made; with --exit-code, also whether one of them found a FAILURE.",
		Args:      cobra.MatchAll(cobra.MinimumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{checkIntegrity, checkTimeline},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.reading(cmd, func(stores *storages) (err error) {
				v.checks = args
				v.at.Timeline = pg.Timeline(timeline)
				if v.at.LSN, err = pg.ParseLSN(lsn); err != nil {
					return fmt.Errorf("--lsn: %w", err)
				}
				return a.verifyWAL(cmd.Context(), stores, v)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&v.asJSON, "json", false, "print JSON")
	f.BoolVar(&v.exitCode, "exit-code", false, "exit with 1 if a check finds a FAILURE")
	f.Uint32Var(&timeline, "timeline", 0, "the server's timeline; with --lsn, the server is not asked")
	f.StringVar(&lsn, "lsn", "", "the server's position, as in 0/29000060")
	f.StringVar(&v.backup, "backup-name", "", "scan back to this backup (permanent ones are passed over otherwise)")
	// Of the host, whose server it is; a worker may be set otherwise.
	f.IntVar(&v.maxDelayed, "max-delayed", 0, "WALG_INTEGRITY_MAX_DELAYED_WALS")
	f.IntVar(&v.uploading, "uploading", 0, "WALG_UPLOAD_CONCURRENCY")
	_ = f.MarkHidden("max-delayed")
	_ = f.MarkHidden("uploading")
	a.targetStorageFlag(cmd)
	cmd = a.ask(cmd)
	verify := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f.Changed("timeline") != f.Changed("lsn") || f.Changed("timeline") && timeline == 0 {
			return &usageError{errors.New("--timeline and --lsn tell a position together: give both, or neither to ask the server"), cmd.UsageString()}
		}
		if f.Changed("lsn") {
			if _, err := pg.ParseLSN(lsn); err != nil {
				return &usageError{fmt.Errorf("--lsn: %w", err), cmd.UsageString()}
			}
		}
		if err := a.start(cmd.Context(), cmd); err != nil {
			return err
		}
		at := pgconn.Position{}
		if !f.Changed("lsn") {
			if a.remote {
				return errors.New("wal-verify over the queue: give --timeline and --lsn, a worker has no server to ask")
			}
			var err error
			if at, err = a.position(cmd.Context()); err != nil {
				return err
			}
		}
		for flag, value := range map[string]string{
			"timeline": strconv.FormatUint(uint64(at.Timeline), 10), "lsn": at.LSN.String(),
			"max-delayed": strconv.Itoa(a.set.Postgres.IntegrityMaxDelayedWAL), "uploading": strconv.Itoa(a.set.General.UploadConcurrency),
		} {
			if f.Changed(flag) {
				continue
			}
			if err := f.Set(flag, value); err != nil {
				return err
			}
		}
		return verify(cmd, args)
	}
	return cmd
}

// position asks the server at PGHOST where it is.
func (a *app) position(ctx context.Context) (pgconn.Position, error) {
	conn, err := pgconn.Connect(ctx, pgconn.Options{Logger: a.log})
	if err != nil {
		return pgconn.Position{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	at, err := conn.Position(ctx)
	if err == nil && at.SegmentSize != a.segmentSize() {
		err = fmt.Errorf("the server's WAL segments have %d MiB, WALG_PG_WAL_SIZE says %d: set it to the server's", at.SegmentSize>>20, a.segmentSize()>>20)
	}
	return at, err
}

func (a *app) verifyWAL(ctx context.Context, stores *storages, v verification) error {
	repos, err := stores.readers(ctx)
	if err != nil {
		return err
	}
	a.warnOfDown(ctx, stores)
	inv, err := newInventory(a.segmentSize(), repos)
	if err != nil {
		return err
	}
	if err := inv.addWAL(ctx, a, repos); err != nil {
		return err
	}
	var out render.Verification
	if slices.Contains(v.checks, checkIntegrity) {
		if err := inv.addBackups(ctx, repos); err != nil {
			return err
		}
		wanted := func(b *catalog.Stored) bool { return v.backup == "" || string(b.ID.Name) == v.backup }
		if err := inv.describe(ctx, a, false, inv.listed(wanted)...); err != nil {
			return err
		}
		r, err := inv.VerifyIntegrity(catalog.IntegrityCheck{
			Timeline: v.at.Timeline, LSN: v.at.LSN, Backup: pg.BackupName(v.backup),
			MaxDelayed: uint64(v.maxDelayed), Uploading: uint64(v.uploading),
		})
		if err != nil {
			return err
		}
		if r.Backup == nil {
			a.log.Warn(fmt.Sprintf("no backup of timeline %d's history that is not permanent: scanning from the first segment on", uint32(v.at.Timeline)))
		}
		for _, d := range r.Doubts {
			a.log.Warn(d)
		}
		out.Integrity = &r
	}
	if slices.Contains(v.checks, checkTimeline) {
		r := inv.VerifyTimeline(v.at.Timeline)
		out.Timeline = &r
	}
	if err := out.Write(a.stdout, v.asJSON); err != nil {
		return err
	}
	if v.exitCode && out.Failed() {
		return errVerifyFailed
	}
	return nil
}
