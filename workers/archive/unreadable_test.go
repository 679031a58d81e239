package archive_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/seal"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/storage/storagetest"
	"github.com/walherd/walherd/workers/archive"
)

// sodium is a sealer whose key is made of one byte.
func sodium(t *testing.T, b byte) seal.Sealer {
	t.Helper()
	s, err := seal.Choose(t.Context(), seal.Options{LibsodiumKey: base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)), LibsodiumKeyTransform: "base64"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestUnreadableObjectInTheWay: an archived object that must not be replaced
// and cannot be compared is a final error at the first try, and stays as it is;
// only a file that PostgreSQL was told of is tried on, until somebody has
// cleared the way.
func TestUnreadableObjectInTheWay(t *testing.T) {
	t.Parallel()
	content := strings.Repeat("content of a segment ", 20000)
	for name, tc := range map[string]struct {
		key    byte // of the sealer; 0 is none
		ext    string
		damage func(t *testing.T, h *archive.Handler, object []byte) []byte
		what   string
	}{
		"cut short":     {ext: ".lz4", damage: func(_ *testing.T, _ *archive.Handler, o []byte) []byte { return o[:len(o)/2] }, what: compress.ErrCorrupt.Error()},
		"empty":         {ext: ".lz4", damage: func(*testing.T, *archive.Handler, []byte) []byte { return nil }, what: compress.ErrCorrupt.Error()},
		"garbage":       {ext: ".lz4", damage: func(*testing.T, *archive.Handler, []byte) []byte { return bytes.Repeat([]byte("garbage"), 99) }, what: compress.ErrCorrupt.Error()},
		"altered":       {ext: ".lz4", key: 1, damage: func(_ *testing.T, _ *archive.Handler, o []byte) []byte { o[len(o)/2] ^= 1; return o }, what: seal.ErrCorrupt.Error()},
		"another key":   {ext: ".lz4", key: 1, damage: func(t *testing.T, h *archive.Handler, o []byte) []byte { h.Codec.Sealer = sodium(t, 2); return o }, what: seal.ErrCorrupt.Error()},
		"not known":     {ext: ".lzo", damage: func(_ *testing.T, _ *archive.Handler, o []byte) []byte { return o }, what: `"lzo"`},
		"not encrypted": {ext: ".lz4", damage: func(t *testing.T, h *archive.Handler, o []byte) []byte { h.Codec.Sealer = sodium(t, 1); return o }, what: seal.ErrCorrupt.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newHandlerBench(t)
			store := mem.New()
			r := repo.New(store, "default")
			b.h.Choose = func(context.Context) (*repo.Repo, error) { return r, nil }
			if tc.key != 0 {
				b.h.Codec.Sealer = sodium(t, tc.key)
			}
			if err := b.try(messages.ArchiveJob{Name: segment, Bytes: b.deposit(content)}, 1); err != nil {
				t.Fatal(err)
			}
			object := storagetest.MustGet(t, store, repo.WALKey(segment+".lz4"))
			if err := store.Delete(t.Context(), repo.WALKey(segment+".lz4")); err != nil {
				t.Fatal(err)
			}
			key := repo.WALKey(segment + tc.ext)
			bad := tc.damage(t, b.h, object)
			storagetest.MustPut(t, store, key, bad)

			job := messages.ArchiveJob{Name: segment, Bytes: b.deposit(content), KeepExisting: true}
			err := b.try(job, 1)
			var reject *bus.RejectError
			if !errors.As(err, &reject) || !errors.Is(err, archive.ErrUnreadable) {
				t.Fatalf("got %v, want a final refusal", err)
			}
			for _, want := range []string{segment, key, tc.what, "nothing was overwritten", "st rm " + key} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not tell %q", err, want)
				}
			}
			if got := storagetest.MustGet(t, store, key); !bytes.Equal(got, bad) {
				t.Error("the object was changed")
			}

			// PostgreSQL may have no other copy of this one.
			job.Acknowledged = true
			var retry *bus.RetryError
			for attempt := 1; attempt <= 3; attempt++ {
				if err := b.try(job, attempt); !errors.As(err, &retry) || !errors.Is(err, archive.ErrUnreadable) {
					t.Fatalf("acknowledged, try %d: %v", attempt, err)
				}
			}
			if err := b.try(job, 4); err != nil || len(b.queued()) != 1 {
				t.Fatalf("acknowledged, the last try but one: %v, %d queued", err, len(b.queued()))
			}
			if e := b.lastEvent(); e.What != messages.WALFailed || e.Reason != "" {
				t.Fatalf("the event is %+v", e)
			}
			if err := store.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			if err := b.try(b.queued()[0], 1); err != nil {
				t.Fatalf("with nothing in the way: %v", err)
			}
		})
	}
}

// TestStorageThatFailsWhileComparing says nothing of the object: to a decoder
// it looks like one that is cut short.
func TestStorageThatFailsWhileComparing(t *testing.T) {
	t.Parallel()
	b := newHandlerBench(t)
	b.h.Codec.Sealer = sodium(t, 1)
	store := storagetest.NewFaulty(mem.New())
	r := repo.New(store, "default")
	b.h.Choose = func(context.Context) (*repo.Repo, error) { return r, nil }
	content := strings.Repeat("content of a segment ", 20000)
	if err := b.try(messages.ArchiveJob{Name: segment, Bytes: b.deposit(content)}, 1); err != nil {
		t.Fatal(err)
	}
	job := messages.ArchiveJob{Name: segment, Bytes: b.deposit(content), KeepExisting: true}
	info, err := store.Stat(t.Context(), repo.WALKey(segment+".lz4"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int64{-1, 10, info.Size / 2, info.Size - 1} {
		store.Add(storagetest.Fault{Op: storagetest.Open, Nth: 1, Bytes: n, Err: io.ErrUnexpectedEOF})
		err := b.try(job, 1)
		var reject *bus.RejectError
		if err == nil || errors.As(err, &reject) || errors.Is(err, archive.ErrUnreadable) {
			t.Errorf("cut after %d bytes: %v, want a failure to be tried again", n, err)
		}
	}
	if err := b.try(job, 5); err != nil {
		t.Errorf("once the storage is well: %v", err)
	}
}
