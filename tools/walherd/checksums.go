package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/walherd/walherd/engine/cluster"
	"github.com/walherd/walherd/engine/pack"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
)

// noteChecksums adds to a base whether its cluster had data checksums, which its
// sentinel does not tell. Where that cannot be read, as with a key that only
// encrypts, it stays unknown.
func (a *app) noteChecksums(ctx context.Context, r *repo.Repo, base *deltaBase) {
	if base.Full != "" {
		return
	}
	had, err := a.checksumsOf(ctx, r, base.Name)
	if err != nil {
		a.log.Debug("whether the base has data checksums is not known", telemetry.KeyBackup, base.Name, telemetry.KeyError, err)
		return
	}
	base.Checksums = &had
}

// checksumsOf looks into a backup's control file.
func (a *app) checksumsOf(ctx context.Context, r *repo.Repo, name pg.BackupName) (bool, error) {
	codec, err := a.codec(ctx)
	if err != nil {
		return false, err
	}
	key := repo.PartKey(name, pack.ControlTarName)
	for info, err := range r.Bucket().List(ctx, key, storage.ListOptions{}) {
		if err != nil {
			return false, err
		}
		stored, err := r.OpenObject(ctx, info.Name, storage.Range{})
		if err != nil {
			return false, err
		}
		defer stored.Close()
		plain, err := codec.Open(ctx, stored, strings.TrimPrefix(strings.TrimPrefix(info.Name, key), "."))
		if err != nil {
			return false, fmt.Errorf("read %s: %w", info.Name, err)
		}
		defer plain.Close()
		control, err := controlIn(plain)
		if err != nil {
			return false, fmt.Errorf("read %s: %w", info.Name, err)
		}
		return control.DataChecksums, nil
	}
	return false, fmt.Errorf("read %s: %w", key, storage.ErrNotExist)
}

// controlIn reads the control file in its tar.
func controlIn(r io.Reader) (control cluster.Control, err error) {
	const most = 16 * cluster.ControlSize
	t := pack.NewReader(r, pack.ReaderOptions{MaxTotal: most})
	if _, err := t.Next(); err != nil {
		return control, err
	}
	raw, err := io.ReadAll(t)
	if err != nil {
		return control, err
	}
	if control, err = cluster.ParseControl(raw); err != nil {
		return control, err
	}
	// Only at its end is it proven.
	if _, err := t.Next(); !errors.Is(err, io.EOF) {
		return control, fmt.Errorf("after the control file: %w", err)
	}
	return control, nil
}
