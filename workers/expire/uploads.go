package expire

import (
	"context"
	"fmt"
	"time"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/retain"
	"github.com/walherd/walherd/storage"
)

// uploadAge is how old an unfinished upload is at least before it goes, however
// short the safety age: one under way looks the same, and some stores tell only
// when it began.
const uploadAge = time.Hour

// addUploads puts what killed uploads have left into the plan of delete garbage.
// A store that does not tell them, for want of a right perhaps, is warned of:
// nothing that a reader sees depends on them.
func (w *Work) addUploads(ctx context.Context, g retain.Garbage, pl *retain.Plan) error {
	age := w.SafetyAge
	if age == 0 {
		age = retain.DefaultSafetyAge
	}
	before := w.now().Add(-max(age, uploadAge))
	var folders []catalog.Folder
	if g.Scope != retain.Archives {
		folders = append(folders, catalog.BaseBackups)
	}
	if g.Scope != retain.Backups {
		folders = append(folders, catalog.WALFolder)
	}
	if g.Scope == retain.AllGarbage {
		folders = append(folders, catalog.Catchups)
	}
	for _, r := range w.Stores {
		sweeper, ok := storage.SweeperOf(r.Bucket())
		for _, folder := range folders {
			if !ok {
				break
			}
			for u, err := range sweeper.Leftovers(ctx, string(folder)) {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err != nil {
					pl.Warnings = append(pl.Warnings, fmt.Sprintf("what killed uploads have left in storage %s cannot be listed and stays: %v", r.Name(), err))
					ok = false
					break
				}
				if u.Moved.Before(before) {
					pl.Uploads = append(pl.Uploads, retain.Upload{Storage: r.Name(), Name: u.Name, ID: u.ID, Moved: u.Moved})
				}
			}
		}
	}
	return nil
}

// dropUploads removes the plan's unfinished uploads.
func (x *execution) dropUploads(ctx context.Context, pl *retain.Plan) error {
	for i, u := range pl.Uploads {
		if x.limiter != nil {
			if err := x.limiter.Wait(ctx); err != nil {
				return fmt.Errorf("wait to delete: %w", err)
			}
		}
		if x.Fence != nil && i%defaultBatch == 0 {
			if err := x.Fence(ctx); err != nil {
				return err
			}
		}
		sweeper, ok := storage.SweeperOf(x.buckets[u.Storage])
		if !ok {
			return fmt.Errorf("storage %s: its unfinished uploads can no longer be found", u.Storage)
		}
		if err := sweeper.DropLeftovers(ctx, storage.Leftover{Name: u.Name, ID: u.ID, Moved: u.Moved}); err != nil {
			return fmt.Errorf("delete the unfinished upload of %s in storage %s: %w", u.Name, u.Storage, err)
		}
		x.deleted++
	}
	return nil
}
