package bus_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/walherd/walherd/messages/broker"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/topology"
)

func publish(t *testing.T, b *bus.Bus, subject, data string) uint64 {
	t.Helper()
	seq, err := b.Publish(t.Context(), subject, bus.Header{"K": {data}}, []byte(data))
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

// readOn reads a log to its present end.
func readOn(t *testing.T, b *bus.Bus, subject string, opt bus.LogOptions) (out []string) {
	t.Helper()
	l, err := b.OpenLog(t.Context(), topology.StreamEvent, subject, opt)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for {
		m, ok, err := l.ReadOn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return out
		}
		if m.Header["K"][0] != string(m.Data) {
			t.Errorf("header %v of %q", m.Header, m.Data)
		}
		out = append(out, fmt.Sprintf("%d %s", m.Seq, m.Header["K"][0]))
	}
}

func TestLogReadsWhatIsStored(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{})
	const subject, others = "walherd.event.test.wal.stored", "walherd.event.other.wal.stored"
	if got := readOn(t, b, subject, bus.LogOptions{}); got != nil {
		t.Fatalf("an empty stream holds %v", got)
	}
	var seqs []uint64
	for i := range 4 {
		publish(t, b, others, "no")
		seqs = append(seqs, publish(t, b, subject, fmt.Sprint(i)))
	}
	for _, tc := range []struct {
		name string
		opt  bus.LogOptions
		want []string
	}{
		{"all", bus.LogOptions{}, []string{"2 0", "4 1", "6 2", "8 3"}},
		{"from", bus.LogOptions{From: seqs[1] + 1}, []string{"6 2", "8 3"}},
		{"from the end", bus.LogOptions{From: seqs[3] + 1}, nil},
		{"from a number of a stream before this one", bus.LogOptions{From: 1000}, []string{"2 0", "4 1", "6 2", "8 3"}},
	} {
		if got := readOn(t, b, "walherd.event.test.wal.*", tc.opt); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

// TestLogEndsWhenWhatWasPendingIsRemoved: a reading must not wait for messages
// that somebody removes in front of it.
func TestLogEndsWhenWhatWasPendingIsRemoved(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{})
	const subject = "walherd.event.test.wal.stored"
	for range 3 {
		publish(t, b, subject, "x")
	}
	l, err := b.OpenLog(t.Context(), topology.StreamEvent, subject, bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := b.Purge(t.Context(), topology.StreamEvent, subject); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ { // what was sent before the purge may still come
		_, ok, err := l.ReadOn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return
		}
		if n > 3 {
			t.Fatal("more came than was there")
		}
	}
}

func TestLogGoesOnAsMessagesCome(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{})
	const subject = "walherd.event.test.wal.stored"
	l, err := b.OpenLog(t.Context(), topology.StreamEvent, subject, bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for i := range 3 {
			_, _ = b.Publish(t.Context(), subject, nil, []byte(fmt.Sprint(i)))
		}
	}()
	for i := range 3 {
		m, err := l.Next(t.Context())
		if err != nil || string(m.Data) != fmt.Sprint(i) {
			t.Fatalf("got %q, %v", m.Data, err)
		}
	}
}

// TestGetNextLeavesAWorkQueueAsItIs: reading a job takes it from nobody.
func TestGetNextLeavesAWorkQueueAsItIs(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{})
	first := publish(t, b, "walherd.work.archive.test", "a")
	publish(t, b, "walherd.work.part.test", "other")
	second := publish(t, b, "walherd.work.archive.test", "b")
	for _, tc := range []struct{ from, want uint64 }{{0, first}, {first, first}, {first + 1, second}} {
		m, err := b.GetNext(t.Context(), topology.StreamWork, "walherd.work.archive.test", tc.from)
		if err != nil || m.Seq != tc.want || m.Time.IsZero() {
			t.Errorf("from %d: got %d at %s, %v; want %d", tc.from, m.Seq, m.Time, err, tc.want)
		}
	}
	if _, err := b.GetNext(t.Context(), topology.StreamWork, "walherd.work.archive.test", second+1); !errors.Is(err, bus.ErrNoMessage) {
		t.Errorf("after the last: %v, want ErrNoMessage", err)
	}
	d, err := b.Next(t.Context(), topology.StreamWork, "archive-test")
	if err != nil || string(d.Data()) != "a" || d.Attempt != 1 {
		t.Fatalf("the consumer got %v, %v", d, err)
	}
}

func TestDurabilityTellsWhatAStreamIs(t *testing.T) {
	t.Parallel()
	e := bustest.Broker(t, broker.Options{StoreDir: t.TempDir()})
	b := bustest.Connect(t, e)
	nc, err := nats.Connect("", nats.InProcessServer(e))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		cfg  jetstream.StreamConfig
		want bus.Durability
	}{
		{jetstream.StreamConfig{Name: "GOOD", Discard: jetstream.DiscardNew},
			bus.Durability{Storage: topology.File, Replicas: 1}},
		{jetstream.StreamConfig{Name: "MEMORY", Storage: jetstream.MemoryStorage, Discard: jetstream.DiscardNew},
			bus.Durability{Storage: topology.Memory, Replicas: 1}},
		{jetstream.StreamConfig{Name: "OLD", MaxAge: time.Hour},
			bus.Durability{Storage: topology.File, Replicas: 1, DropOld: true, MaxAge: time.Hour}},
		{jetstream.StreamConfig{Name: "ASYNC", Discard: jetstream.DiscardNew, PersistMode: jetstream.AsyncPersistMode},
			bus.Durability{Storage: topology.File, Replicas: 1, AsyncPersist: true}},
	} {
		tc.cfg.Subjects = []string{tc.cfg.Name}
		if _, err := js.CreateStream(t.Context(), tc.cfg); err != nil {
			t.Fatal(err)
		}
		got, ok, err := b.Durability(t.Context(), tc.cfg.Name)
		tc.want.Servers = []string{nc.ConnectedServerName()}
		if err != nil || !ok || fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("%s: got %+v %v %v, want %+v", tc.cfg.Name, got, ok, err, tc.want)
		}
	}
	if _, ok, err := b.Durability(t.Context(), "NONE"); ok || err != nil {
		t.Errorf("a stream that is not there: %v, %v", ok, err)
	}
}

func TestSyncModes(t *testing.T) {
	t.Parallel()
	b := bustest.Connect(t, bustest.Broker(t, broker.Options{}))
	// An ordinary account may not ask.
	if _, err := b.SyncModes(t.Context(), []string{"a"}, time.Minute); !errors.Is(err, bus.ErrNobody) {
		t.Fatalf("got %v, want ErrNobody", err)
	}
	// As the servers answer where it may.
	for _, answer := range []string{
		`{"server":{"name":"c","ver":"2.15.2"},"data":{"disabled":true,"config":{}}}`,
		`{"server":{"name":"a","ver":"2.15.2"},"data":{"config":{"sync_always":true}}}`,
	} {
		stop, err := b.Listen(t.Context(), bus.SyncSubject, func(m bus.Incoming) { _ = m.Respond([]byte(answer)) })
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
	}
	got, err := b.SyncModes(t.Context(), []string{"a", "c"}, time.Minute)
	slices.SortFunc(got, func(x, y bus.ServerSync) int { return int(x.Name[0]) - int(y.Name[0]) })
	if want := []bus.ServerSync{{Name: "a", Version: "2.15.2", SyncAlways: true}, {Name: "c", Version: "2.15.2", Off: true}}; err != nil || !slices.Equal(got, want) {
		t.Fatalf("got %+v, %v", got, err)
	}
	// One that does not answer ends with the limit.
	if got, err := b.SyncModes(t.Context(), []string{"a", "b"}, 100*time.Millisecond); err != nil || len(got) != 2 {
		t.Fatalf("got %+v, %v", got, err)
	}
}
