package assemble_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/storage/storagetest"
	"github.com/walherd/walherd/workers/assemble"
)

// family is a full backup and increments of it, each of the one before.
var family = []pg.BackupName{
	"base_000000010000000000000011",
	"base_000000010000000000000012_D_000000010000000000000011",
	"base_000000010000000000000013_D_000000010000000000000012",
}

// link is the sentinel of family[i], or of an increment of the last.
func link(t *testing.T, i int, permanent bool) string {
	t.Helper()
	lsn := pg.LSN(0x100 * (i + 1))
	s := manifest.Sentinel{LSN: &lsn, IsPermanent: permanent}
	if i > 0 {
		s.Increment = &manifest.Increment{ParentLSN: lsn - 0x100, Parent: family[i-1], Root: family[0], Count: i}
	}
	doc, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

func permanents(t *testing.T, b storage.Bucket) (names []pg.BackupName) {
	t.Helper()
	r := repo.New(b, "default")
	for _, name := range family {
		doc, _, err := r.Metadata(t.Context(), name)
		if errors.Is(err, storage.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if m, err := manifest.ParseMetadata(doc); err != nil {
			t.Fatal(err)
		} else if m.IsPermanent {
			names = append(names, name)
		}
	}
	return names
}

// TestCommitSecuresTheChain: a permanent increment makes all that it is built
// on permanent before it is to be seen, base first, wherever it is cut; an
// increment without its base is refused.
func TestCommitSecuresTheChain(t *testing.T) {
	t.Parallel()
	objects := []messages.StoredObject{{Name: "part_001.tar", Size: 4}}
	fill := func(t *testing.T, bucket storage.Bucket) {
		r := repo.New(bucket, "default")
		for i, name := range family {
			if _, err := r.PutSentinel(t.Context(), name, []byte(link(t, i, false))); err != nil {
				t.Fatal(err)
			}
			if i == 1 {
				continue // WAL-E's backups have no metadata
			}
			if _, err := r.PutMetadata(t.Context(), name, []byte(`{"is_permanent":false}`)); err != nil {
				t.Fatal(err)
			}
		}
	}
	visible := func(t *testing.T, b storage.Bucket) bool {
		_, err := b.Stat(t.Context(), repo.SentinelKey(backup))
		return err == nil
	}
	for _, permanent := range []bool{false, true} {
		t.Run(fmt.Sprint("permanent=", permanent), func(t *testing.T) {
			t.Parallel()
			b := setup(t, mem.New())
			b.listen()
			b.put(repo.PartKey(backup, "part_001.tar"), "part")
			fill(t, b.bucket)
			if err := b.commit(objects, link(t, 3, permanent)); err != nil {
				t.Fatal(err)
			}
			got := permanents(t, b.bucket)
			if !visible(t, b.bucket) || permanent && !slices.Equal(got, family) || !permanent && len(got) > 0 {
				t.Fatalf("permanent are %v", got)
			}
		})
	}
	// Three marks, then metadata and sentinel.
	for nth := 1; nth <= 5; nth++ {
		t.Run(fmt.Sprint("cut at write ", nth), func(t *testing.T) {
			t.Parallel()
			inner, fault := mem.New(), errors.New("power cut")
			b := setup(t, inner)
			b.listen()
			b.put(repo.PartKey(backup, "part_001.tar"), "part")
			fill(t, inner)
			b.deps.Repo = repo.New(storagetest.NewFaulty(inner, storagetest.Fault{Op: storagetest.Put, Nth: nth, Err: fault}), "default")
			if err := b.commit(objects, link(t, 3, true)); !errors.Is(err, fault) {
				t.Fatalf("got %v", err)
			}
			if got := permanents(t, inner); visible(t, inner) || !slices.Equal(got, family[:min(nth-1, 3)]) {
				t.Fatalf("visible: %t, permanent: %v", visible(t, inner), got)
			}
			b.deps.Repo = repo.New(inner, "default")
			if err := b.commit(objects, link(t, 3, true)); err != nil || !visible(t, inner) || len(permanents(t, inner)) != 3 {
				t.Fatalf("the next try: %v", err)
			}
		})
	}
	for name, breakIt := range map[string]func(b *testBundle){
		"base deleted": func(b *testBundle) { _ = b.bucket.Delete(context.Background(), repo.SentinelKey(family[0])) },
		"base replaced": func(b *testBundle) {
			b.put(repo.SentinelKey(family[2]), link(b.t, 0, false))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, mem.New())
			b.listen()
			b.put(repo.PartKey(backup, "part_001.tar"), "part")
			fill(t, b.bucket)
			breakIt(b)
			err := b.commit(objects, link(t, 3, true))
			if !errors.Is(err, assemble.ErrBaseGone) || !rejected(err) || visible(t, b.bucket) || len(permanents(t, b.bucket)) > 0 {
				t.Fatalf("visible: %t: %v", visible(t, b.bucket), err)
			}
		})
	}
	t.Run("circle", func(t *testing.T) {
		t.Parallel()
		b := setup(t, mem.New())
		b.listen()
		b.put(repo.PartKey(backup, "part_001.tar"), "part")
		lsn := pg.LSN(0x100)
		s := manifest.Sentinel{LSN: &lsn, Increment: &manifest.Increment{ParentLSN: lsn, Parent: family[1], Root: family[0], Count: 1}}
		doc, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		b.put(repo.SentinelKey(family[1]), string(doc))
		if err := b.commit(objects, string(doc)); !errors.Is(err, messages.ErrMalformed) || visible(t, b.bucket) {
			t.Fatalf("got %v", err)
		}
	})
}
