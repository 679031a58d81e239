package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace/noop"

	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/broker"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/messages/transit"
	producer "github.com/walherd/walherd/producer/archive"
	"github.com/walherd/walherd/producer/pgtest"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/workers/archive"
	"github.com/walherd/walherd/workers/intake"
	"github.com/walherd/walherd/workers/runner"
)

// queuedTries is how often the workers of these tests try a job.
const queuedTries = 2

// queuedFleet is a host that acknowledges what the queue holds, a broker that
// keeps it in files, and, once started, a worker.
type queuedFleet struct {
	t     *testing.T
	b     *bus.Bus
	queue *transit.Queue
	spool *producer.Spool
	p     *producer.Pusher
	repo  *repo.Repo
	codec intake.Codec
	log   *slog.Logger
}

func newQueuedFleet(t *testing.T) *queuedFleet {
	t.Helper()
	f := &queuedFleet{
		t: t, log: slog.New(slog.DiscardHandler), repo: repo.New(mem.New(), "default"),
		codec: intake.Codec{Compress: compress.Options{Method: compress.LZ4}},
	}
	f.b = bustest.Connect(t, bustest.Broker(t, broker.Options{StoreDir: t.TempDir(), MaxMemory: 2 << 30}))
	if _, err := topology.Ensure(t.Context(), f.b, topology.Config{Cluster: bustest.Cluster, MaxDeliver: queuedTries}); err != nil {
		t.Fatal(err)
	}
	f.queue = transit.NewQueue(f.b, transit.QueueOptions{})
	var err error
	f.spool, err = producer.OpenSpool(producer.SpoolOptions{Dir: t.TempDir(), MaxBytes: 64 << 20, Cluster: bustest.Cluster, Logger: f.log})
	if err != nil {
		t.Fatal(err)
	}
	// One server without sync_always: refused, unless both are accepted.
	if _, err := producer.ProveQueued(t.Context(), f.b, f.spool, []producer.Risk{producer.RiskReplicas}); !errors.Is(err, producer.ErrDurability) {
		t.Fatalf("an unproven broker: %v", err)
	}
	ack, err := producer.ProveQueued(t.Context(), f.b, f.spool, []producer.Risk{producer.RiskReplicas, producer.RiskSync})
	if err != nil {
		t.Fatal(err)
	}
	f.p = &producer.Pusher{
		Bus: f.b, Carrier: f.queue, Cluster: bustest.Cluster, Logger: f.log, Tracer: noop.NewTracerProvider().Tracer(""),
		SegmentSize: 1 << 20, Ack: ack,
	}
	return f
}

// segment is one of a real server's.
func (f *queuedFleet) segment() string {
	f.t.Helper()
	c := pgtest.New(f.t, pgtest.WithSegmentSize(1))
	name := c.SQL("SELECT pg_walfile_name(pg_switch_wal())")
	c.Stop(pgtest.Fast)
	return filepath.Join(c.WALDir(), name)
}

// work starts a worker and the host's spool keeper.
func (f *queuedFleet) work() {
	f.t.Helper()
	h := &archive.Handler{
		Choose:  func(context.Context) (*repo.Repo, error) { return f.repo, nil },
		Carrier: f.queue, Codec: f.codec, Bus: f.b, Logger: f.log, Tries: queuedTries,
	}
	r := runner.New(runner.Options{
		Bus: f.b, Worker: "w", Logger: f.log, Tracer: noop.NewTracerProvider().Tracer(""), Cluster: bustest.Cluster, Tries: queuedTries,
	}, runner.Pool{Kind: messages.KindArchive, Slots: 2, Handler: h})
	if err := r.Start(context.Background()); err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	kept := make(chan error, 1)
	go func() { kept <- f.spool.Run(ctx, f.p) }()
	f.t.Cleanup(func() {
		cancel()
		if err := <-kept; err != nil {
			f.t.Error(err)
		}
		stop, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := r.Stop(stop); err != nil {
			f.t.Error(err)
		}
	})
}

// stored reads a WAL file back from the storage.
func (f *queuedFleet) stored(name string) []byte {
	f.t.Helper()
	key, ext, err := f.repo.FindWAL(f.t.Context(), name, "lz4", compress.Extensions())
	if err != nil {
		f.t.Fatal(err)
	}
	object, err := f.repo.OpenObject(f.t.Context(), key, storage.Range{})
	if err != nil {
		f.t.Fatal(err)
	}
	defer object.Close()
	plain, err := f.codec.Open(f.t.Context(), object, ext)
	if err != nil {
		f.t.Fatal(err)
	}
	defer plain.Close()
	data, err := io.ReadAll(plain)
	if err != nil {
		f.t.Fatal(err)
	}
	return data
}

func (f *queuedFleet) files() int {
	f.t.Helper()
	s, err := f.spool.State()
	if err != nil {
		f.t.Fatal(err)
	}
	return s.Files
}

// TestQueuedWALSurvivesALostChunk: PostgreSQL was told that the segment is
// archived and has overwritten it, the broker has lost a chunk of it. The
// worker says so, the host sends its copy again, and the object ends up with
// the segment's content.
func TestQueuedWALSurvivesALostChunk(t *testing.T) {
	t.Parallel()
	f := newQueuedFleet(t)
	path := f.segment()
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := f.p.Push(t.Context(), path)
	if err != nil || !reply.Queued {
		t.Fatalf("push: %+v, %v", reply, err)
	}
	if err := os.WriteFile(path, make([]byte, len(want)), 0o600); err != nil { // recycled in place
		t.Fatal(err)
	}
	var job messages.ArchiveJob
	if err := transit.PendingArchives(t.Context(), f.b, bustest.Cluster, func(j transit.Queued) { job = j.ArchiveJob }); err != nil {
		t.Fatal(err)
	}
	if err := f.b.Remove(t.Context(), topology.StreamWAL, job.Bytes.Seqs[0].First+1); err != nil {
		t.Fatal(err)
	}
	f.work()
	await(t, "the spool to be empty", func() bool { return f.files() == 0 })
	if got := f.stored(filepath.Base(path)); !bytes.Equal(got, want) {
		t.Fatalf("the stored segment has %d bytes and other content", len(got))
	}
	// What is left of the first transfer is found and removed, and nothing else.
	swept, err := f.queue.Sweep(t.Context(), bustest.Cluster, -time.Hour, nil)
	if err != nil || swept.Transfers != 1 {
		t.Fatalf("swept %+v, %v", swept, err)
	}
	if n, err := f.b.Depth(t.Context(), topology.StreamWAL); n != 0 || err != nil {
		t.Fatalf("%d chunks are left, %v", n, err)
	}
}

// TestQueuedWALIsStoredWhenTheWorkerComes: no worker runs when PostgreSQL is
// told.
func TestQueuedWALIsStoredWhenTheWorkerComes(t *testing.T) {
	t.Parallel()
	f := newQueuedFleet(t)
	path := filepath.Join(t.TempDir(), "00000002.history")
	if err := os.WriteFile(path, []byte("1\t0/3000000\tno reason\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.p.Push(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if f.files() != 1 {
		t.Fatal("nothing is kept of what is not stored")
	}
	f.work()
	await(t, "the spool to be empty", func() bool { return f.files() == 0 })
	if got := f.stored("00000002.history"); string(got) != "1\t0/3000000\tno reason\n" {
		t.Fatalf("stored %q", got)
	}
}
