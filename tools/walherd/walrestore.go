package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/walherd/walherd/engine/cluster"
	"github.com/walherd/walherd/engine/durable"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/engine/wal"
)

func (a *app) walRestore() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wal-restore target-pgdata source-pgdata",
		Short: "Bring back the WAL that pg_rewind needs and the servers have removed",
		Long: "Before `pg_rewind --target-pgdata target-pgdata --source-pgdata source-pgdata`: fetches into pg_wal of the target\n" +
			"(the old primary) what it lacks of its own WAL since the last checkpoint that both have in common, which pg_rewind\n" +
			"reads, and into that of the source (the new primary) what a recovery of the rewound target will ask for.\n" +
			"Both are directories of this host. It fails if any of the files cannot be fetched.",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.reading(cmd, func(stores *storages) error {
				return a.restoreWAL(cmd.Context(), stores, args[0], args[1])
			})
		},
	}
	a.targetStorageFlag(cmd)
	return cmd
}

// side is one of the two clusters of a pg_rewind.
type side struct {
	what    string // target or source
	wal     string // its pg_wal
	control cluster.Control
	history wal.History
}

// errSameTimeline refuses two clusters that did not go apart.
var errSameTimeline = errors.New("both are on the same timeline: there is nothing to rewind (was the source promoted, and has it made a checkpoint since?)")

func (a *app) restoreWAL(ctx context.Context, stores *storages, targetDir, sourceDir string) error {
	r := rewind{app: a, stores: stores}
	var err error
	if r.target, err = openSide(ctx, "target", targetDir); err != nil {
		return err
	}
	if r.source, err = openSide(ctx, "source", sourceDir); err != nil {
		return err
	}
	t, s := &r.target.control, &r.source.control
	switch {
	case t.SystemID != s.SystemID:
		return fmt.Errorf("restore WAL: target and source are of different clusters (system identifiers %d and %d)", t.SystemID, s.SystemID)
	case t.Timeline == s.Timeline:
		return fmt.Errorf("restore WAL: %w: timeline %d", errSameTimeline, uint32(t.Timeline))
	case t.SegmentSize != a.segmentSize():
		return fmt.Errorf("restore WAL: the segments of the target have %d MiB, WALG_PG_WAL_SIZE says %d: set it to the cluster's", t.SegmentSize>>20, a.segmentSize()>>20)
	}
	if err := r.run(ctx); err != nil {
		return fmt.Errorf("restore WAL: %w", err)
	}
	if r.fetched == 0 {
		a.log.Info("No WAL files to restore")
	}
	return nil
}

func openSide(ctx context.Context, what, dir string) (side, error) {
	c, _, err := cluster.ReadControl(ctx, dir)
	if err != nil {
		return side{}, fmt.Errorf("restore WAL: %s: %w", what, err)
	}
	return side{what: what, wal: walDir(dir), control: c}, nil
}

// rewind is one run of wal-restore.
type rewind struct {
	app            *app
	stores         *storages
	target, source side
	fetched        int
}

func (r *rewind) run(ctx context.Context) error {
	for _, s := range []*side{&r.target, &r.source} {
		if err := r.readHistory(ctx, s); err != nil {
			return err
		}
	}
	fork, err := wal.Diverge(r.target.history, r.source.history)
	if err != nil {
		return err
	}
	r.app.log.Info(fmt.Sprintf("the clusters went apart at %s of timeline %d", fork.LSN, uint32(fork.Timeline)))
	t := &r.target.control
	end := max(t.Checkpoint, t.MinRecovery)
	if t.State.Stopped() && end < fork.LSN {
		return nil // the target is a part of the source's past
	}
	size := uint64(t.SegmentSize)
	at := min(uint64(fork.LSN), uint64(end)) / size
	// What came after is read by pg_rewind up to the target's end.
	if err := r.fill(ctx, &r.target, at, uint64(end)/size); err != nil {
		return err
	}
	common, err := r.lastCheckpoint(ctx, fork.LSN, at)
	if err != nil {
		return err
	}
	r.app.log.Info(fmt.Sprintf("the last checkpoint that both have is at %s, recovery will begin at %s", common.At, common.Redo))
	if err := r.fill(ctx, &r.target, uint64(common.At)/size, at); err != nil {
		return err
	}
	return r.fill(ctx, &r.source, uint64(common.Redo)/size, uint64(r.source.control.Redo)/size)
}

// readHistory reads a side's history file, which pg_rewind reads too and which
// is fetched like WAL if it is gone.
func (r *rewind) readHistory(ctx context.Context, s *side) error {
	tl := s.control.Timeline
	if s.history.Timeline = tl; tl == 1 {
		return nil
	}
	if err := r.bring(ctx, s, tl.HistoryFile()); err != nil {
		return err
	}
	path := filepath.Join(s.wal, tl.HistoryFile())
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the %s's history: %w", s.what, err)
	}
	if s.history, err = wal.ParseHistory(tl, text); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// lastCheckpoint goes back through the target's WAL, as pg_rewind does, from
// segment number n to one with a checkpoint before the fork. What is missing
// on the way is fetched: nobody knows sooner how far back that is.
func (r *rewind) lastCheckpoint(ctx context.Context, fork pg.LSN, n uint64) (wal.Checkpoint, error) {
	size := r.target.control.SegmentSize
	before := fork
	for {
		if err := r.fill(ctx, &r.target, n, n); err != nil {
			return wal.Checkpoint{}, fmt.Errorf("go back to the last common checkpoint: %w", err)
		}
		c, found, err := r.checkpointIn(n, before)
		if err != nil || found {
			return c, err
		}
		if n <= 1 {
			return wal.Checkpoint{}, fmt.Errorf("the target's WAL has no checkpoint before %s", fork)
		}
		before = pg.LSN(n * uint64(size))
		n--
	}
}

// checkpointIn looks through a segment of the target. A record that begins at
// its end goes on in the next, which is there.
func (r *rewind) checkpointIn(n uint64, before pg.LSN) (wal.Checkpoint, bool, error) {
	var files []io.Reader
	for _, number := range []uint64{n, n + 1} {
		name := r.target.history.SegmentOf(number, r.target.control.SegmentSize).String()
		f, err := os.Open(filepath.Join(r.target.wal, name))
		if errors.Is(err, fs.ErrNotExist) && number > n {
			continue // the target ended in n
		}
		if err != nil {
			return wal.Checkpoint{}, false, fmt.Errorf("read the target's WAL: %w", err)
		}
		defer f.Close()
		files = append(files, f)
	}
	c, found, err := wal.LastCheckpoint(io.MultiReader(files...), before)
	if err != nil {
		err = fmt.Errorf("read the target's WAL: %w", err)
	}
	return c, found, err
}

// fill fetches what a side lacks of the segments first to last.
func (r *rewind) fill(ctx context.Context, s *side, first, last uint64) error {
	var missing []string
	for n := first; n <= last; n++ {
		name := s.history.SegmentOf(n, s.control.SegmentSize).String()
		if _, err := os.Lstat(filepath.Join(s.wal, name)); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, name)
		} else if err != nil {
			return fmt.Errorf("look at the %s's WAL: %w", s.what, err)
		}
	}
	if len(missing) > 0 {
		r.app.log.Info(fmt.Sprintf("the %s lacks %d segments, from %s to %s", s.what, len(missing), missing[0], missing[len(missing)-1]))
	}
	g, fetch := errgroup.WithContext(ctx)
	g.SetLimit(max(r.app.set.General.DownloadConcurrency, 1))
	for _, name := range missing {
		g.Go(func() error { return r.fetch(fetch, s, name) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	r.fetched += len(missing)
	return nil
}

// bring fetches one file unless it is there.
func (r *rewind) bring(ctx context.Context, s *side, name string) error {
	if _, err := os.Lstat(filepath.Join(s.wal, name)); err == nil {
		return nil
	}
	r.fetched++
	return r.fetch(ctx, s, name)
}

// fetch makes a file of pg_wal, whole or not at all, and durable: pg_rewind
// takes for granted that what is there is.
func (r *rewind) fetch(ctx context.Context, s *side, name string) error {
	err := durable.WriteFile(filepath.Join(s.wal, name), 0o600, func(w io.Writer) error {
		if segment, err := pg.ParseSegmentName(name); err == nil {
			w = &checked{w: w, name: segment, want: wal.Expect{SegmentSize: s.control.SegmentSize, SystemID: s.control.SystemID}}
		}
		return r.app.copyWAL(ctx, r.stores, name, w)
	}, durable.Options{NoReplace: true})
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil // the server has made it meanwhile
	case errors.Is(err, errWALAbsent):
		// Not wrapped: what is the end of the archive to a recovery is an
		// ordinary failure here.
		return fmt.Errorf("for the %s: %v", s.what, err)
	case err != nil:
		return fmt.Errorf("for the %s: %w", s.what, err)
	}
	r.app.log.Info("restored "+name, telemetry.KeySegment, name, "to", s.wal)
	return nil
}

// checked refuses a segment that is not of the cluster it is fetched for.
type checked struct {
	w    io.Writer
	name pg.SegmentName
	want wal.Expect
	head []byte
	done bool
}

func (c *checked) Write(p []byte) (int, error) {
	if !c.done {
		c.head = append(c.head, p[:min(len(p), wal.LongHeaderSize-len(c.head))]...)
		if c.done = len(c.head) == wal.LongHeaderSize; c.done {
			if _, err := wal.CheckSegment(c.head, c.name, int64(c.want.SegmentSize), c.want); err != nil {
				return 0, err
			}
		}
	}
	return c.w.Write(p)
}
