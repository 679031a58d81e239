package assemble_test

import (
	"context"
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

const earlier pg.BackupName = "base_000000010000000000000001"

func (b *testBundle) copyOf(object string) error {
	h := &assemble.PartHandler{Deps: b.deps}
	return h.Handle(context.Background(), b.job(messages.KindPart, messages.PartJob{
		Backup: backup, Part: "copy_0.tar", Run: run, Copy: &messages.PartSource{Backup: earlier, Object: object},
	}))
}

func (b *testBundle) content(name string) string {
	b.t.Helper()
	r, err := b.bucket.Open(b.t.Context(), name, storage.Range{})
	if err != nil {
		b.t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(data)
}

// TestPartIsCopied: stored bytes as they are, with the extension they have.
func TestPartIsCopied(t *testing.T) {
	t.Parallel()
	b := setup(t, mem.New())
	b.put(repo.PartKey(earlier, "part_007.tar.lz4"), "sealed bytes")
	b.listen()
	if err := b.copyOf("part_007.tar.lz4"); err != nil {
		t.Fatal(err)
	}
	if got := b.content(repo.PartKey(backup, "copy_0.tar.lz4")); got != "sealed bytes" {
		t.Errorf("the copy holds %q", got)
	}
	if got := b.heard(); !slices.Equal(got, []messages.What{messages.WhatCopying, messages.WhatStored}) {
		t.Fatalf("the producer heard %v", got)
	}
	if s := b.said[1]; s.Object != "copy_0.tar.lz4" || s.StoredBytes != int64(len("sealed bytes")) {
		t.Errorf("report %+v", s)
	}
}

// TestPartToCopyIsGone: then the producer sends the part.
func TestPartToCopyIsGone(t *testing.T) {
	t.Parallel()
	b := setup(t, mem.New())
	b.producer([]byte("packed anew"))
	if err := b.copyOf("part_007.tar.lz4"); err != nil {
		t.Fatal(err)
	}
	if got := b.content(repo.PartKey(backup, "copy_0.tar")); got != "packed anew" {
		t.Errorf("stored %q", got)
	}
	if got := b.heard(); !slices.Equal(got, []messages.What{messages.WhatClaim, messages.WhatStored}) {
		t.Errorf("the producer heard %v", got)
	}
}

// TestCopyOverABackup: a name that is taken is not copied over.
func TestCopyOverABackup(t *testing.T) {
	t.Parallel()
	b := setup(t, mem.New())
	b.put(repo.PartKey(earlier, "part_007.tar.lz4"), "bytes")
	b.put(repo.SentinelKey(backup), "{}")
	b.listen()
	if err := b.copyOf("part_007.tar.lz4"); !rejected(err) {
		t.Errorf("got %v", err)
	}
	if slices.Contains(b.names(), repo.PartKey(backup, "copy_0.tar.lz4")) {
		t.Error("it was copied")
	}
}
