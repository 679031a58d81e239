package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/durable"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/messages"
	producer "github.com/walherd/walherd/producer/archive"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
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

func (a *app) pushWAL(ctx context.Context, path string) error {
	// The one thing a typing mistake breaks; no broker is needed to see it.
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("archive %s: %w", filepath.Base(path), err)
	}
	f, err := a.connect(ctx, messages.KindArchive)
	if err != nil {
		return err
	}
	defer f.close(ctx, a.log)
	p := producer.Pusher{
		Bus: f.bus, Carrier: f.carrier, Cluster: f.cluster, Logger: a.log, Tracer: a.tracer,
		SegmentSize: a.segmentSize(), KeepExisting: a.set.Postgres.PreventWALOverwrite, Timeout: a.set.Walherd.WALPushTimeout,
	}
	got, err := p.Push(ctx, path)
	if err != nil {
		return err
	}
	if got.Equal {
		a.log.Info(fmt.Sprintf("%s is already archived with equal content, skipping", got.Name))
		return nil
	}
	a.log.Info("FILE PATH: " + got.Object)
	return nil
}

func (a *app) segmentSize() pg.SegmentSize {
	return pg.SegmentSize(a.set.Postgres.WALSize) << 20
}

func (a *app) walFetch() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wal-fetch wal_name destination_filename",
		Short: "Fetch a WAL file from the archive (restore_command = '" + a.name + " wal-fetch %f %p')",
		Long: "Fetches a WAL file to a destination that must not exist.\n" +
			"Exit code 74 means that the archive has no such file; every other failure is 1.",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.reading(cmd, func(stores *storages) error {
				return a.fetchWAL(cmd.Context(), stores, args[0], args[1])
			})
		},
	}
	a.targetStorageFlag(cmd)
	return cmd
}

// fetchWAL needs the storage and nothing else: no broker, no worker.
func (a *app) fetchWAL(ctx context.Context, stores *storages, name, destination string) error {
	if _, err := os.Lstat(destination); err == nil {
		return fmt.Errorf("fetch WAL %s: %s: %w: it must not exist", name, destination, fs.ErrExist)
	}
	codec, err := a.codec(ctx)
	if err != nil {
		return err
	}
	r, key, ext, err := findWAL(ctx, stores, name, codec.Compress.Method.Extension())
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
	// PostgreSQL makes a restored file durable itself before it relies on it.
	err = durable.WriteFile(destination, 0o600, func(w io.Writer) error {
		n, err := io.Copy(w, plain)
		if err != nil {
			return err
		}
		if kind, _ := pg.ClassifyWALFile(name); kind == pg.SegmentFile && n != int64(a.segmentSize()) {
			return fmt.Errorf("%d bytes, a segment has %d (WALG_PG_WAL_SIZE): the object is damaged or of another cluster", n, a.segmentSize())
		}
		return nil
	}, durable.Options{NoReplace: true, NoSync: true})
	if err != nil {
		return fmt.Errorf("fetch WAL %s: %w", key, err)
	}
	return nil
}

// findWAL looks for a file in every storage that can be read; the first that
// has it wins. errWALAbsent only if each of them answered that it has not: to
// PostgreSQL that is the end of the archive, and recovery ends there.
func findWAL(ctx context.Context, stores *storages, name, preferred string) (r *repo.Repo, key, ext string, err error) {
	repos, err := stores.readers(ctx)
	if err != nil {
		return nil, "", "", fmt.Errorf("fetch WAL %s: %w", name, err)
	}
	var absent error
	for _, r := range repos {
		key, ext, err := r.FindWAL(ctx, name, preferred, compress.Extensions())
		switch {
		case err == nil:
			return r, key, ext, nil
		case !errors.Is(err, storage.ErrNotExist):
			return nil, "", "", fmt.Errorf("fetch WAL %s: %w", name, err)
		}
		absent = err
	}
	if down := stores.down(ctx); len(down) > 0 {
		return nil, "", "", fmt.Errorf("fetch WAL %s: it is in no storage that can be read, and storage %s cannot be read now", name, strings.Join(down, ", "))
	}
	return nil, "", "", fmt.Errorf("WAL file %s is %w: %w", name, errWALAbsent, absent)
}
