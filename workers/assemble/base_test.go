package assemble_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/workers/assemble"
)

const (
	base      = pg.BackupName("base_000000010000000000000001")
	increment = `{"LSN":50331688,"DeltaLSN":16777256,"DeltaFrom":"base_000000010000000000000001","DeltaFullName":"base_000000010000000000000001","DeltaCount":1}`
)

// closing is a store in which base goes at the moment that the increment's
// sentinel is written.
type closing struct{ storage.Bucket }

func (c closing) Put(ctx context.Context, name string, r io.Reader, opt storage.PutOptions) (storage.Info, error) {
	if name == repo.SentinelKey(backup) {
		if err := c.Delete(ctx, repo.SentinelKey(base)); err != nil {
			return storage.Info{}, err
		}
	}
	return c.Bucket.Put(ctx, name, r, opt)
}

// An increment whose base is deleted while it is taken does not stay listed:
// not when the base goes before the sentinel is written, nor when it goes then.
func TestIncrementWithoutItsBase(t *testing.T) {
	t.Parallel()
	objects := []messages.StoredObject{{Name: "part_001.tar", Size: 4}}
	for name, c := range map[string]struct {
		bucket storage.Bucket
		base   bool
	}{
		"gone before":                        {mem.New(), false},
		"gone while the sentinel is written": {closing{mem.New()}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, c.bucket)
			b.put(repo.PartKey(backup, "part_001.tar"), "part")
			if c.base {
				b.put(repo.SentinelKey(base), `{"LSN":16777256}`)
			}
			if err := b.commit(objects, increment); !errors.Is(err, assemble.ErrBaseGone) || !rejected(err) {
				t.Fatalf("got %v", err)
			}
			if slices.Contains(b.names(), repo.SentinelKey(backup)) {
				t.Error("the increment is listed")
			}
		})
	}
	b := setup(t, mem.New())
	b.put(repo.PartKey(backup, "part_001.tar"), "part")
	b.put(repo.SentinelKey(base), `{"LSN":16777256}`)
	if err := b.commit(objects, increment); err != nil {
		t.Fatalf("with its base: %v", err)
	}
}
