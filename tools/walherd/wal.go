package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/walherd/walherd/engine/cluster"
	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/durable"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/engine/wal"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/deadletter"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/messages/transit"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/tools/walherd/prefetch"
)

func (a *app) walPush() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wal-push wal_filepath",
		Short: "Archive a WAL file (archive_command = '" + a.name + " wal-push %p')",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.start(cmd.Context(), cmd); err != nil {
				return err
			}
			if err := a.pickStorage(cmd); err != nil {
				return err
			}
			return a.pushWAL(cmd.Context(), args[0])
		},
	}
	a.targetStorageFlag(cmd)
	return cmd
}

func (a *app) segmentSize() pg.SegmentSize {
	return pg.SegmentSize(a.set.Postgres.WALSize) << 20
}

func (a *app) walFetch() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wal-fetch wal_name destination_filename",
		Short: "Fetch a WAL file from the archive (restore_command = '" + a.name + " wal-fetch %f %p')",
		Long: "Fetches a WAL file to a destination that must not exist.\n" +
			"Exit code 74 means that the archive has no such file; every other failure is 1. PostgreSQL takes both for the end\n" +
			"of the archive and ends a recovery there. To have it stop at a failure instead, and go on at its next start:\n" +
			"restore_command = '" + a.name + ` wal-fetch "%f" "%p"` + onlyAbsentEnds + "'. A standby asks again, and does without.",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.reading(cmd, func(stores *storages) error {
				return a.fetchWAL(cmd.Context(), stores, args[0], args[1], func(prefetch.Store) { a.prefetchApart(args[0], args[1]) })
			})
		},
	}
	a.targetStorageFlag(cmd)
	return cmd
}

// fetchWAL brings one file to destination: what was prefetched, else from the
// storage, which is all it needs; a broker, if there is one, is asked for what
// is in no storage yet. ahead starts the prefetch of what follows.
func (a *app) fetchWAL(ctx context.Context, stores *storages, name, destination string, ahead func(prefetch.Store)) error {
	if _, err := os.Lstat(destination); err == nil {
		return fmt.Errorf("fetch WAL %s: %s: %w: it must not exist", name, destination, fs.ErrExist)
	}
	if a.set.General.DownloadConcurrency <= 1 || !isSegment(name) {
		return a.bringWAL(ctx, stores, name, destination)
	}
	store := a.prefetchStore(ctx, stores, destination)
	// Also after a failure: the next ask may come after it has passed.
	defer ahead(store)
	if ok, err := store.Take(ctx, name, destination); ok || errors.Is(err, fs.ErrExist) {
		return err
	} else if err != nil {
		a.log.Warn("cannot use prefetched WAL", telemetry.KeySegment, name, telemetry.KeyError, err)
	}
	return a.bringWAL(ctx, stores, name, destination)
}

func isSegment(name string) bool {
	kind, _ := pg.ClassifyWALFile(name)
	return kind == pg.SegmentFile
}

// bringWAL makes the destination, whole or not at all.
func (a *app) bringWAL(ctx context.Context, stores *storages, name, destination string) error {
	for try := 1; ; try++ {
		// PostgreSQL makes a restored file durable itself before it relies on it.
		err := durable.WriteFile(destination, 0o600, func(w io.Writer) error {
			return a.copyWAL(ctx, stores, name, w)
		}, durable.Options{NoReplace: true, NoSync: true})
		// What cannot be read from the queue any more may have been stored
		// while it was read.
		if try > 1 || !errors.Is(err, transit.ErrDamaged) && !errors.Is(err, transit.ErrUnknownRef) {
			return err
		}
	}
}

// copyWAL writes one archived file.
func (a *app) copyWAL(ctx context.Context, stores *storages, name string, w io.Writer) error {
	codec, err := a.codec(ctx)
	if err != nil {
		return err
	}
	r, key, ext, err := findWAL(ctx, stores, name, codec.Compress.Method.Extension())
	if errors.Is(err, errWALAbsent) && a.set.Walherd.NATSURL != "" {
		found, qerr := a.copyQueued(ctx, name, w)
		if found {
			return qerr
		}
		// A worker may have stored it after the storage was asked, and have
		// ended its job before the queue was: said to be absent, it would end
		// the recovery.
		r, key, ext, err = findWAL(ctx, stores, name, codec.Compress.Method.Extension())
		if qerr != nil && errors.Is(err, errWALAbsent) {
			return qerr
		}
	}
	if err != nil {
		return err
	}
	stored, err := r.OpenObject(ctx, key, storage.Range{})
	if err != nil {
		return fmt.Errorf("fetch WAL %s: %w", key, err)
	}
	defer stored.Close()
	plain, err := codec.Open(ctx, stored, ext)
	if err != nil {
		return fmt.Errorf("fetch WAL %s: %w", key, err)
	}
	defer plain.Close()
	n, err := io.Copy(w, plain)
	if err != nil {
		return fmt.Errorf("fetch WAL %s: %w", key, err)
	}
	if isSegment(name) && n != int64(a.segmentSize()) {
		return fmt.Errorf("fetch WAL %s: %d bytes, a segment has %d (WALG_PG_WAL_SIZE): the object is damaged or of another cluster", key, n, a.segmentSize())
	}
	return nil
}

// What is in no storage may be in the queue, and the queue may be dead: then the
// storage alone must do, or nothing could be restored on the worst day. One
// that can be reached and has answered is alive, and must be read to its end
// before a file is called absent: to PostgreSQL that is the end of recovery.
const (
	// queueReach is how long the broker may take to let this process in: a dead
	// one must not hold up a recovery.
	queueReach = 3 * time.Second
	// queueAnswer is how long it may take to answer then; nodes that elect a
	// leader take up to 9 s.
	queueAnswer = 15 * time.Second
	// queueRead is how long reading the whole queue may take.
	queueRead = time.Minute
)

// copyQueued writes a file that PostgreSQL was told is archived and that no
// worker has stored yet. found is whether the queue has it. Without found, an
// error is that it may have it; a broker that cannot be asked has not, and is
// warned of.
func (a *app) copyQueued(ctx context.Context, name string, w io.Writer) (found bool, err error) {
	cluster, err := messages.ParseCluster(a.set.Walherd.Cluster)
	if err != nil {
		return false, err
	}
	b, err := a.reachQueue(ctx, cluster)
	if err != nil {
		a.log.Warn("cannot look for WAL in the queue", telemetry.KeySegment, name, telemetry.KeyError, err)
		return false, nil
	}
	if b == nil {
		return false, nil
	}
	defer b.Close()
	job, found, err := queuedJob(ctx, b, cluster, name)
	if err == nil && !found {
		job, found, err = a.givenUp(ctx, b, cluster, name)
	}
	if err != nil {
		return false, fmt.Errorf("fetch WAL %s: it is in no storage, and whether it is queued cannot be told: %w (unset WALHERD_NATS_URL to go by the storage alone)", name, err)
	}
	if !found {
		return false, nil
	}
	r, err := transit.NewQueue(b, transit.QueueOptions{}).Open(ctx, job.Bytes)
	if err != nil {
		return true, fmt.Errorf("fetch WAL %s from the queue: %w", name, err)
	}
	defer r.Close()
	if _, err := transit.Copy(ctx, w, r); err != nil {
		return true, fmt.Errorf("fetch WAL %s from the queue: %w", name, err)
	}
	a.log.Info(name + " was in the queue and not in the storage yet")
	return true, nil
}

// reachQueue connects to a broker whose queue answers; the caller closes the
// bus. It is nil where there is no queue.
func (a *app) reachQueue(ctx context.Context, cluster messages.Cluster) (*bus.Bus, error) {
	reach, cancel := context.WithTimeout(ctx, queueReach)
	defer cancel()
	b, err := a.join(reach, roleWorker, cluster)
	if err != nil {
		return nil, err
	}
	answer, cancel := context.WithTimeout(ctx, queueAnswer)
	defer cancel()
	for {
		// An answer can be lost with the leader that had it.
		once, cancel := context.WithTimeout(answer, queueAnswer/3)
		_, there, err := b.Stream(once, topology.StreamWork)
		cancel()
		switch {
		case err == nil && there:
			return b, nil
		case err == nil, errors.Is(err, bus.ErrDenied):
			b.Close()
			return nil, err
		}
		select {
		case <-time.After(queueReach / 10):
		case <-answer.Done():
			b.Close()
			return nil, err
		}
	}
}

// queuedJob finds the newest job of a file.
func queuedJob(ctx context.Context, b *bus.Bus, cluster messages.Cluster, name string) (job messages.ArchiveJob, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, queueRead)
	defer cancel()
	for {
		var newest uint64
		err := transit.PendingArchives(ctx, b, cluster, func(q transit.Queued) {
			if q.Name == name && q.Seq > newest {
				job, newest = q.ArchiveJob, q.Seq
			}
		})
		switch {
		case newest > 0:
			return job, true, nil // whatever else is queued
		case err == nil || !errors.Is(err, bus.ErrUnavailable):
			return job, false, err
		}
		select { // the queue's leader changes
		case <-time.After(queueReach / 10):
		case <-ctx.Done():
			return job, false, err
		}
	}
}

// givenUp finds a file's newest job among the dead letters whose bytes are kept:
// PostgreSQL has no other copy.
func (a *app) givenUp(ctx context.Context, b *bus.Bus, cluster messages.Cluster, name string) (job messages.ArchiveJob, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, queueRead)
	defer cancel()
	letters, err := deadletter.List(ctx, b, cluster)
	if errors.Is(err, bus.ErrDenied) {
		a.log.Warn("cannot look for WAL among the dead letters", telemetry.KeySegment, name, telemetry.KeyError, err)
		return job, false, nil
	}
	for _, l := range letters {
		if j, ok := l.Archive(); ok && j.Name == name {
			job, found = j, true
		}
	}
	return job, found, err
}

// prefetchStore is where WAL for a destination is prefetched to.
func (a *app) prefetchStore(ctx context.Context, stores *storages, destination string) prefetch.Store {
	base := filepath.Dir(destination)
	expect := wal.Expect{SegmentSize: a.segmentSize()}
	// The destination is usually pg_wal/RECOVERYXLOG of the cluster that
	// recovers.
	if abs, err := filepath.Abs(base); err == nil {
		if c, _, err := cluster.ReadControl(ctx, filepath.Dir(abs)); err == nil {
			expect.SystemID = c.SystemID
		}
	}
	return prefetch.Store{
		Base: cmp.Or(a.set.Postgres.PrefetchDir, base), Expect: expect, Logger: a.log,
		Fetch: func(ctx context.Context, name string, w io.Writer) error { return a.copyWAL(ctx, stores, name, w) },
	}
}

// prefetchApart starts the prefetch in a process of its own, which outlives
// this one.
func (a *app) prefetchApart(name, destination string) {
	self, err := os.Executable()
	if err != nil {
		a.log.Warn("cannot prefetch", telemetry.KeyError, err)
		return
	}
	args := append([]string{"wal-prefetch"}, a.settingFlags...)
	if t := a.set.General.TargetStorage; t != "" {
		args = append(args, "--target-storage="+t)
	}
	p := exec.Command(self, append(args, name, destination)...)
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.Start(); err != nil {
		a.log.Warn("cannot prefetch", telemetry.KeyError, err)
		return
	}
	_ = p.Process.Release()
}

func (a *app) walPrefetch() *cobra.Command {
	cmd := &cobra.Command{
		Use:    "wal-prefetch wal_name destination_filename",
		Short:  "Fetch the segments that follow one (wal-fetch starts this)",
		Hidden: true,
		Args:   cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.reading(cmd, func(stores *storages) error {
				err := a.prefetchStore(cmd.Context(), stores, args[1]).Ahead(cmd.Context(), args[0], a.set.General.DownloadConcurrency)
				if errors.Is(err, errWALAbsent) {
					return nil // the end of the archive is where a recovery ends
				}
				return err
			})
		},
	}
	a.targetStorageFlag(cmd)
	return cmd
}

// findWAL looks for a file in every storage that can be read; the first that
// has it wins, also behind one that fails without being known to be down.
// errWALAbsent only if each of them answered that it has not: to PostgreSQL
// that is the end of the archive, and recovery ends there.
func findWAL(ctx context.Context, stores *storages, name, preferred string) (r *repo.Repo, key, ext string, err error) {
	repos, err := stores.readers(ctx)
	if err != nil {
		return nil, "", "", fmt.Errorf("fetch WAL %s: %w", name, err)
	}
	var absent, failed error
	for _, r := range repos {
		key, ext, err := r.FindWAL(ctx, name, preferred, compress.Extensions())
		switch {
		case err == nil:
			return r, key, ext, nil
		case errors.Is(err, storage.ErrNotExist):
			absent = err
		default:
			failed = errors.Join(failed, err)
		}
	}
	if failed != nil {
		return nil, "", "", fmt.Errorf("fetch WAL %s: %w", name, failed)
	}
	if down := stores.down(ctx); len(down) > 0 {
		return nil, "", "", fmt.Errorf("fetch WAL %s: it is in no storage that can be read, and storage %s cannot be read now", name, strings.Join(down, ", "))
	}
	return nil, "", "", fmt.Errorf("WAL file %s is %w: %w", name, errWALAbsent, absent)
}
