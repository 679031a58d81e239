package assemble_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/messages/transit"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/storage/storagetest"
	"github.com/walherd/walherd/workers/assemble"
	"github.com/walherd/walherd/workers/intake"
	"github.com/walherd/walherd/workers/runner"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	backup pg.BackupName = "base_000000010000000000000002"
	run                  = "walherd.run.test.r1"
)

// testBundle is a worker's handlers, and a producer that answers as told.
type testBundle struct {
	t      *testing.T
	bucket storage.Bucket
	deps   assemble.Deps

	mu   sync.Mutex
	said []messages.Say
	// answer to a claim; nil is no producer.
	claim func() messages.Answer
}

func setup(t *testing.T, bucket storage.Bucket) *testBundle {
	t.Helper()
	conn := bustest.New(t, topology.Config{})
	b := &testBundle{t: t, bucket: bucket}
	b.deps = assemble.Deps{
		Repo: repo.New(bucket, "default"), Carrier: transit.NewLocal(1 << 20), Bus: conn, Logger: slog.New(slog.DiscardHandler),
		Codec: intake.Codec{Compress: compress.Options{Method: compress.None}},
	}
	return b
}

// producer listens as the producer of the backup does.
func (b *testBundle) producer(content []byte) {
	b.t.Helper()
	b.claim = func() messages.Answer {
		s, err := b.deps.Carrier.Stream(context.Background(), transit.StreamAddress{Cluster: "test", Run: "r1", Part: "p", Attempt: 1})
		if err != nil {
			b.t.Error(err)
			return messages.Answer{Verdict: messages.VerdictGone}
		}
		go func() {
			for left := content; len(left) > 0; {
				buf := s.Buffer()
				n := copy(buf, left)
				left = left[n:]
				if err := s.Send(context.Background(), buf[:n]); err != nil {
					s.Abort() // the worker gave up
					return
				}
			}
			_ = s.Close(context.Background())
		}()
		return messages.Answer{Verdict: messages.VerdictGo, Attempt: 1, Bytes: s.Ref()}
	}
	b.listen()
}

func (b *testBundle) listen() {
	b.t.Helper()
	stop, err := b.deps.Bus.Listen(b.t.Context(), run, func(m bus.Incoming) {
		var s messages.Say
		if err := json.Unmarshal(m.Data, &s); err != nil {
			b.t.Error(err)
		}
		b.mu.Lock()
		b.said = append(b.said, s)
		b.mu.Unlock()
		a := messages.Answer{Verdict: messages.VerdictGo}
		if s.What == messages.WhatClaim {
			a = b.claim()
		}
		data, _ := json.Marshal(a)
		_ = m.Respond(data)
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(stop)
}

func (b *testBundle) heard() (what []messages.What) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.said {
		what = append(what, s.What)
	}
	return what
}

func (b *testBundle) job(kind messages.Kind, body any) runner.Job {
	b.t.Helper()
	data, err := messages.Encode(kind, "test", time.Now(), body)
	if err != nil {
		b.t.Fatal(err)
	}
	env, err := messages.Decode(data)
	if err != nil {
		b.t.Fatal(err)
	}
	return runner.Job{Envelope: env, Attempt: 1, Worker: "w"}
}

func (b *testBundle) part(name string) error {
	h := &assemble.PartHandler{Deps: b.deps}
	return h.Handle(context.Background(), b.job(messages.KindPart, messages.PartJob{Backup: backup, Part: name, Run: run}))
}

func (b *testBundle) commit(objects []messages.StoredObject, sentinel string) error {
	h := &assemble.CommitHandler{Deps: b.deps}
	return h.Handle(context.Background(), b.job(messages.KindCommit, messages.CommitJob{
		Backup: backup, Objects: objects, Metadata: []byte(`{"m":1}`), Sentinel: []byte(sentinel), Run: run,
	}))
}

func (b *testBundle) put(name, content string) {
	b.t.Helper()
	if _, err := b.bucket.Put(context.Background(), name, strings.NewReader(content), storage.PutOptions{}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *testBundle) names() (names []string) {
	b.t.Helper()
	for info, err := range b.bucket.List(context.Background(), "", storage.ListOptions{}) {
		if err != nil {
			b.t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	return names
}

func rejected(err error) bool {
	var r *bus.RejectError
	return errors.As(err, &r)
}

func TestPartIsStoredAndReported(t *testing.T) {
	t.Parallel()
	b := setup(t, mem.New())
	want := bytes.Repeat([]byte("0123456789"), 200_000)
	b.producer(want)
	if err := b.part("part_001.tar"); err != nil {
		t.Fatal(err)
	}
	r, err := b.bucket.Open(t.Context(), repo.PartKey(backup, "part_001.tar"), storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("stored %d of %d bytes, %v", len(got), len(want), err)
	}
	if got := b.heard(); !slices.Equal(got, []messages.What{messages.WhatClaim, messages.WhatStored}) {
		t.Fatalf("the producer heard %v", got)
	}
	if s := b.said[1]; s.StoredBytes != int64(len(want)) || s.RawBytes != int64(len(want)) || s.Object != "part_001.tar" || s.Attempt != 1 {
		t.Fatalf("report %+v", s)
	}
}

// TestPartNobodyWants is dropped without a byte stored.
func TestPartNobodyWants(t *testing.T) {
	t.Parallel()
	for _, v := range []messages.Verdict{messages.VerdictDone, messages.VerdictGone} {
		b := setup(t, mem.New())
		b.claim = func() messages.Answer { return messages.Answer{Verdict: v} }
		b.listen()
		if err := b.part("part_001.tar"); err != nil {
			t.Errorf("%s: %v", v, err)
		}
		if n := b.names(); len(n) > 0 {
			t.Errorf("%s: stored %v", v, n)
		}
	}
}

func TestNoProducerIsTriedAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, mem.New())
	err := b.part("part_001.tar")
	var again *bus.RetryError
	if !errors.As(err, &again) || !errors.Is(err, assemble.ErrProducerGone) {
		t.Fatalf("got %v, want a retry for ErrProducerGone", err)
	}
}

// TestPartsOfABackupThatExistsAreKept: the name is taken, nothing is touched.
func TestPartsOfABackupThatExistsAreKept(t *testing.T) {
	t.Parallel()
	b := setup(t, mem.New())
	b.put(repo.SentinelKey(backup), "{}")
	b.put(repo.PartKey(backup, "part_001.tar"), "old")
	b.producer([]byte("new"))
	err := b.part("part_001.tar")
	if !errors.Is(err, assemble.ErrBackupExists) || !rejected(err) {
		t.Fatalf("got %v", err)
	}
	info, err := b.bucket.Stat(t.Context(), repo.PartKey(backup, "part_001.tar"))
	if err != nil || info.Size != 3 {
		t.Fatalf("the old part: %+v, %v", info, err)
	}
}

// TestStorageFaultInAPart is retried, unless no retry can help, and leaves
// nothing.
func TestStorageFaultInAPart(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault  error
		reject bool
	}{
		"trouble":   {errors.New("503"), false},
		"read-only": {storage.ErrPermanent, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inner := mem.New()
			b := setup(t, storagetest.NewFaulty(inner, storagetest.Fault{Op: storagetest.Put, Bytes: 1000, Err: tc.fault}))
			b.producer(make([]byte, 5<<20))
			err := b.part("part_001.tar")
			if !errors.Is(err, tc.fault) || rejected(err) != tc.reject {
				t.Fatalf("got %v, rejected %v", err, rejected(err))
			}
			if n := b.names(); len(n) > 0 {
				t.Fatalf("stored %v", n)
			}
		})
	}
}

func TestCommitOrderAndChecks(t *testing.T) {
	t.Parallel()
	objects := []messages.StoredObject{{Name: "part_001.tar", Size: 4}, {Name: messages.FilesMetadata, Size: 2}}
	for name, tc := range map[string]struct {
		before func(b *testBundle)
		want   error
	}{
		"whole":        {func(*testBundle) {}, nil},
		"part missing": {func(b *testBundle) { _ = b.bucket.Delete(context.Background(), repo.PartKey(backup, "part_001.tar")) }, assemble.ErrIncomplete},
		"other size":   {func(b *testBundle) { b.put(repo.PartKey(backup, "part_001.tar"), "longer") }, assemble.ErrIncomplete},
		"no file list": {func(b *testBundle) { _ = b.bucket.Delete(context.Background(), repo.FilesMetadataKey(backup)) }, storage.ErrNotExist},
		"leftovers":    {func(b *testBundle) { b.put(repo.PartKey(backup, "part_009.tar.lz4"), "of an earlier try") }, nil},
		"name taken":   {func(b *testBundle) { b.put(repo.SentinelKey(backup), `{"other":1}`) }, assemble.ErrBackupExists},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, mem.New())
			b.listen()
			b.put(repo.PartKey(backup, "part_001.tar"), "part")
			b.put(repo.FilesMetadataKey(backup), "{}")
			tc.before(b)
			err := b.commit(objects, `{"s":1}`)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			_, serr := b.bucket.Stat(t.Context(), repo.SentinelKey(backup))
			if visible := serr == nil; visible != (tc.want == nil || name == "name taken") {
				t.Fatalf("visible: %v", visible)
			}
			if tc.want != nil {
				return
			}
			want := []string{repo.FilesMetadataKey(backup), repo.MetadataKey(backup), repo.PartKey(backup, "part_001.tar"), repo.SentinelKey(backup)}
			slices.Sort(want)
			if got := b.names(); !slices.Equal(got, want) {
				t.Fatalf("objects %v, want %v", got, want)
			}
			// Handed out twice.
			if err := b.commit(objects, `{"s":1}`); err != nil {
				t.Fatalf("second time: %v", err)
			}
			// By now the producer has heard of it twice, and another backup of
			// this name is refused.
			if got := b.heard(); !slices.Equal(got, []messages.What{messages.WhatCommitted, messages.WhatCommitted}) {
				t.Fatalf("the producer heard %v", got)
			}
			if err := b.commit(objects, `{"s":2}`); !errors.Is(err, assemble.ErrBackupExists) {
				t.Fatalf("another backup of the name: %v", err)
			}
		})
	}
}

// TestCommitCutShortShowsNothing: whichever write fails, there is no sentinel.
func TestCommitCutShortShowsNothing(t *testing.T) {
	t.Parallel()
	for nth := 1; nth <= 2; nth++ {
		inner := mem.New()
		fault := errors.New("power cut")
		b := setup(t, inner)
		b.put(repo.PartKey(backup, "part_001.tar"), "part")
		b.deps.Repo = repo.New(storagetest.NewFaulty(inner, storagetest.Fault{Op: storagetest.Put, Nth: nth, Err: fault}), "default")
		if err := b.commit([]messages.StoredObject{{Name: "part_001.tar", Size: 4}}, `{"s":1}`); !errors.Is(err, fault) {
			t.Fatalf("put %d: %v", nth, err)
		}
		if _, err := inner.Stat(t.Context(), repo.SentinelKey(backup)); !errors.Is(err, storage.ErrNotExist) {
			t.Fatalf("put %d: the sentinel: %v", nth, err)
		}
	}
}
