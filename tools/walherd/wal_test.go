package main

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/broker"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/messages/transit"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/failover"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/storage/storagetest"
	"github.com/walherd/walherd/tools/walherd/settings"
)

// justStored is a storage in which a worker puts something right after it was
// listed for the first time.
type justStored struct {
	*mem.Bucket
	listed atomic.Bool
}

func (j *justStored) Stat(ctx context.Context, name string) (storage.Info, error) {
	if !j.listed.Load() {
		return storage.Info{}, storage.ErrNotExist
	}
	return j.Bucket.Stat(ctx, name)
}

func (j *justStored) List(ctx context.Context, prefix string, opt storage.ListOptions) iter.Seq2[storage.Info, error] {
	if !j.listed.Swap(true) {
		return func(func(storage.Info, error) bool) {}
	}
	return j.Bucket.List(ctx, prefix, opt)
}

// TestFetchOfWhatIsBeingStored: a file that goes from the queue to the storage
// while it is fetched is in one of the two. Called absent, it would end a
// recovery before its end.
func TestFetchOfWhatIsBeingStored(t *testing.T) {
	t.Parallel()
	const name, content = "00000002.history", "1\t0/3000000\tno reason\n"
	server := bustest.Broker(t, broker.Options{Listen: "127.0.0.1:0"})
	b := bustest.Connect(t, server)
	if _, err := topology.Ensure(t.Context(), b, topology.Config{InMemory: true, Cluster: bustest.Cluster}); err != nil {
		t.Fatal(err)
	}
	fetch := func(url string) error {
		t.Helper()
		bucket := &justStored{Bucket: mem.New()}
		storagetest.MustPut(t, bucket.Bucket, repo.WALKey(name), []byte(content))
		set, err := failover.Open(failover.Options{Members: []failover.Member{{Name: failover.Primary, Bucket: bucket, ID: "b"}}})
		if err != nil {
			t.Fatal(err)
		}
		defer set.Close()
		a := &app{name: "walherd", stdout: io.Discard, stderr: os.Stderr, screen: io.Discard, set: &settings.Settings{}, log: slog.New(slog.DiscardHandler)}
		a.set.Postgres.WALSize, a.set.General.CompressionMethod = 16, "lz4"
		a.set.Walherd.NATSURL, a.set.Walherd.Cluster = url, string(bustest.Cluster)
		to := filepath.Join(t.TempDir(), "RECOVERYHISTORY")
		err = a.fetchWAL(t.Context(), &storages{set: set}, name, to, nil)
		if got, rerr := os.ReadFile(to); err == nil && (rerr != nil || string(got) != content) {
			t.Errorf("fetched %q, %v", got, rerr)
		}
		return err
	}
	if err := fetch(""); !errors.Is(err, errWALAbsent) {
		t.Errorf("without a broker the storage is asked once: %v", err)
	}
	if err := fetch(server.URL()); err != nil {
		t.Errorf("out of the queue between the two looks: %v", err)
	}

	// In the queue when it is looked for, and its chunks gone when they are read.
	queue := transit.NewQueue(b, transit.QueueOptions{})
	ref, err := queue.Deposit(t.Context(), transit.DepositAddress{Cluster: bustest.Cluster, Timeline: 2}, int64(len(content)),
		func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil })
	if err != nil {
		t.Fatal(err)
	}
	job, err := messages.Encode(messages.KindArchive, bustest.Cluster, time.Now(), messages.ArchiveJob{Name: name, Bytes: ref})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Publish(t.Context(), messages.WorkSubject(messages.KindArchive, bustest.Cluster), nil, job); err != nil {
		t.Fatal(err)
	}
	if err := queue.Discard(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if err := fetch(server.URL()); err != nil {
		t.Errorf("stored while it is read from the queue: %v", err)
	}
}

// TestFetchBesideAQueueThatCannotBeRead: what may be queued is not absent. A
// queue that is not there, or a broker that answers nothing, holds nothing.
func TestFetchBesideAQueueThatCannotBeRead(t *testing.T) {
	t.Parallel()
	server := bustest.Broker(t, broker.Options{Listen: "127.0.0.1:0"})
	set, err := failover.Open(failover.Options{Members: []failover.Member{{Name: failover.Primary, Bucket: mem.New(), ID: "b"}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	absent := func() bool {
		t.Helper()
		a := &app{name: "walherd", stdout: io.Discard, stderr: os.Stderr, screen: io.Discard, set: &settings.Settings{}, log: slog.New(slog.DiscardHandler)}
		a.set.Postgres.WALSize, a.set.General.CompressionMethod = 16, "lz4"
		a.set.Walherd.NATSURL, a.set.Walherd.Cluster = server.URL(), string(bustest.Cluster)
		err := a.fetchWAL(t.Context(), &storages{set: set}, "00000002.history", filepath.Join(t.TempDir(), "RECOVERYHISTORY"), nil)
		if err == nil {
			t.Fatal("fetched what is nowhere")
		}
		return exitCode(err) == exitWALAbsent
	}
	if !absent() {
		t.Error("a broker without a queue has it")
	}
	b := bustest.Connect(t, server)
	if _, err := topology.Ensure(t.Context(), b, topology.Config{InMemory: true, Cluster: bustest.Cluster}); err != nil {
		t.Fatal(err)
	}
	if !absent() {
		t.Error("an empty queue has it")
	}
	if _, err := b.Publish(t.Context(), messages.WorkSubject(messages.KindArchive, bustest.Cluster), nil, []byte(`{"v":99}`)); err != nil {
		t.Fatal(err)
	}
	if absent() {
		t.Error("absent, and it may be what a job that is not understood is about")
	}
}

// TestFetchBehindAFailingStorage: one that fails and is not known to be down
// does not hide what another has, and does not let it be called absent.
func TestFetchBehindAFailingStorage(t *testing.T) {
	t.Parallel()
	const name = "00000002.history"
	second := mem.New()
	set, err := failover.Open(failover.Options{Members: []failover.Member{
		{Name: failover.Primary, Bucket: storagetest.NewFaulty(mem.New(), storagetest.Fault{Op: storagetest.Stat}), ID: "a"},
		{Name: "spare", Bucket: second, ID: "b"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	if _, _, _, err := findWAL(t.Context(), &storages{set: set}, name, "lz4"); !errors.Is(err, storagetest.ErrInjected) || errors.Is(err, errWALAbsent) {
		t.Errorf("in none that answers: %v", err)
	}
	storagetest.MustPut(t, second, repo.WALKey(name), nil)
	if r, key, _, err := findWAL(t.Context(), &storages{set: set}, name, "lz4"); err != nil || r.Name() != "spare" || key != repo.WALKey(name) {
		t.Errorf("in the second: %q, %v", key, err)
	}
}
