package repo_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/repo"
)

// TestSetPermanent: the flag changes in metadata.json and nowhere else, and
// the sentinel, whose time is the backup's, is never written.
func TestSetPermanent(t *testing.T) {
	t.Parallel()
	const name = pg.BackupName("base_000000010000000000000003")
	lsn := pg.LSN(0x3000028)
	s := &manifest.Sentinel{LSN: &lsn, Hostname: "h", StartTime: time.Unix(1700000000, 0).UTC()}
	sentinel, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	clock := time.Unix(1700000000, 0)
	b := mem.NewAt(func() time.Time { return clock })
	r := repo.New(b, "default")
	if _, err := r.SetPermanent(t.Context(), name, true); !errors.Is(err, storage.ErrNotExist) {
		t.Fatalf("no such backup: %v", err)
	}
	if _, err := r.SetPermanent(t.Context(), "a/b", true); err == nil {
		t.Fatal("a path was taken for a name")
	}
	if _, err := r.PutMetadata(t.Context(), name, []byte(`{"hostname":"h","new_member":[1],"is_permanent":false}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.SetPermanent(t.Context(), name, true); !errors.Is(err, storage.ErrNotExist) {
		t.Fatalf("a backup without a sentinel was marked: %v", err)
	}
	if _, err := r.PutSentinel(t.Context(), name, sentinel); err != nil {
		t.Fatal(err)
	}
	clock = clock.Add(time.Hour)
	expect := func(permanent, changed bool, want string) {
		t.Helper()
		got, err := r.SetPermanent(t.Context(), name, permanent)
		if err != nil || got != changed {
			t.Fatalf("set %t: %t, %v", permanent, got, err)
		}
		if doc, _, err := r.Metadata(t.Context(), name); err != nil || !strings.Contains(string(doc), want) {
			t.Fatalf("set %t: %s, %v", permanent, doc, err)
		}
		doc, info, err := r.Sentinel(t.Context(), name)
		if err != nil || string(doc) != string(sentinel) || info.Modified.Equal(clock) {
			t.Fatalf("the sentinel was written: %s %v %v", doc, info, err)
		}
	}
	expect(true, true, `"new_member":[1],"is_permanent":true`)
	expect(true, false, `"is_permanent":true`)
	expect(false, true, `"new_member":[1],"is_permanent":false`)
	if err := b.Delete(t.Context(), repo.MetadataKey(name)); err != nil {
		t.Fatal(err)
	}
	expect(true, true, `"hostname":"h"`)
	expect(true, false, `"is_permanent":true`)
	if _, err := r.PutMetadata(t.Context(), name, []byte(`{"broken`)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.SetPermanent(t.Context(), name, true); err == nil {
		t.Fatal("an unreadable document was replaced")
	}
}

// deleting is a store whose backup is deleted while it is being marked.
type deleting struct {
	storage.Bucket
	sentinel string
}

func (d *deleting) Put(ctx context.Context, name string, r io.Reader, opt storage.PutOptions) (storage.Info, error) {
	if err := d.Delete(ctx, d.sentinel, name); err != nil {
		return storage.Info{}, err
	}
	return d.Bucket.Put(ctx, name, r, opt)
}

// TestSetPermanentOfDeleted: a backup that is deleted meanwhile is not called
// permanent.
func TestSetPermanentOfDeleted(t *testing.T) {
	t.Parallel()
	const name = pg.BackupName("base_000000010000000000000003")
	b := mem.New()
	if _, err := repo.New(b, "default").PutSentinel(t.Context(), name, []byte(`{"LSN":50331688}`)); err != nil {
		t.Fatal(err)
	}
	r := repo.New(&deleting{b, repo.SentinelKey(name)}, "default")
	if changed, err := r.SetPermanent(t.Context(), name, true); !errors.Is(err, storage.ErrNotExist) || changed {
		t.Errorf("changed %t, %v", changed, err)
	}
}
