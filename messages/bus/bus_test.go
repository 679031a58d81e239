package bus_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/walherd/walherd/messages/broker"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/topology"
)

func TestPublishWithoutAStreamIsAnError(t *testing.T) {
	t.Parallel()
	b := bustest.Connect(t, bustest.Broker(t, broker.Options{}))
	_, err := b.Publish(t.Context(), "walherd.work.archive.x", nil, []byte("x"))
	if !errors.Is(err, bus.ErrUnavailable) {
		t.Fatalf("got %v, want ErrUnavailable", err)
	}
}

// TestAFullStreamRefuses: what does not fit is an error, and what was
// acknowledged stays.
func TestAFullStreamRefuses(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{MaxWALBytes: 1 << 20})
	var stored []uint64
	var err error
	for range 20 {
		var seq uint64
		if seq, err = b.Publish(t.Context(), "walherd.wal.test.00000001", nil, make([]byte, 100<<10)); err != nil {
			break
		}
		stored = append(stored, seq)
	}
	if err == nil {
		t.Fatal("2 MB went into a stream of 1 MiB")
	}
	if len(stored) < 5 {
		t.Fatalf("only %d messages fit", len(stored))
	}
	for _, seq := range stored {
		if _, err := b.Get(t.Context(), topology.StreamWAL, seq); err != nil {
			t.Fatalf("acknowledged message %d: %v", seq, err)
		}
	}
}

func TestRequestToNobody(t *testing.T) {
	t.Parallel()
	b := bustest.Connect(t, bustest.Broker(t, broker.Options{}))
	if _, err := b.Request(t.Context(), "walherd.run.test.x", nil); !errors.Is(err, bus.ErrNobody) {
		t.Fatalf("got %v, want ErrNobody", err)
	}
}

func TestListenAnswers(t *testing.T) {
	t.Parallel()
	b := bustest.Connect(t, bustest.Broker(t, broker.Options{}))
	stop, err := b.Listen(t.Context(), "walherd.run.test.y", func(m bus.Incoming) {
		if err := m.Respond(append([]byte("re: "), m.Data...)); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.Request(t.Context(), "walherd.run.test.y", []byte("hello"))
	if err != nil || string(got) != "re: hello" {
		t.Fatalf("got %q, %v", got, err)
	}
	stop()
	if _, err := b.Request(t.Context(), "walherd.run.test.y", nil); !errors.Is(err, bus.ErrNobody) {
		t.Fatalf("after stop: %v, want ErrNobody", err)
	}
}

func TestNextEndsWithItsContext(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error, 1)
	go func() {
		_, err := b.Next(ctx, topology.StreamWork, "part-test")
		got <- err
	}()
	cancel()
	select {
	case err := <-got:
		if err == nil {
			t.Fatal("a job out of nowhere")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Next outlives its context")
	}
}

// TestNextOfAConsumerMadeAnew: one that is gone is told of at once, and one that
// was made in its place is read from.
func TestNextOfAConsumerMadeAnew(t *testing.T) {
	t.Parallel()
	server := bustest.Broker(t, broker.Options{Listen: "127.0.0.1:0", MaxMemory: 2 << 30})
	b := bustest.Connect(t, server)
	cfg := topology.Config{Cluster: "test"}
	next := func() (*bus.Delivery, error) { return b.Next(t.Context(), topology.StreamWork, "part-test") }
	take := func() {
		t.Helper()
		if _, err := topology.Ensure(t.Context(), b, cfg); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Publish(t.Context(), "walherd.work.part.test", nil, []byte("job")); err != nil {
			t.Fatal(err)
		}
		d, err := next()
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Settle(t.Context(), 5, nil); err != nil {
			t.Fatal(err)
		}
	}
	take()
	nc, err := nats.Connect(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Request("$JS.API.CONSUMER.DELETE."+topology.StreamWork+".part-test", nil, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	for range 2 { // with its handle, and without one
		if d, err := next(); err == nil {
			t.Fatalf("%q came from a consumer that is gone", d.Data())
		}
	}
	take()
}

func TestConnectToNobody(t *testing.T) {
	t.Parallel()
	_, err := bus.Connect(t.Context(), bus.Options{URL: "nats://127.0.0.1:1", ConnectTimeout: time.Second})
	if !errors.Is(err, bus.ErrUnavailable) {
		t.Fatalf("got %v, want ErrUnavailable", err)
	}
}

// TestABrokerThatComesBack: with a file store, what was published before a
// restart is handed out after it, to a bus that was connected all along.
func TestABrokerThatComesBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, err := broker.Start(broker.Options{Listen: "127.0.0.1:0", StoreDir: dir, MaxMemory: 2 << 30})
	if err != nil {
		t.Fatal(err)
	}
	b, err := bus.Connect(t.Context(), bus.Options{URL: first.URL()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := topology.Ensure(t.Context(), b, topology.Config{Cluster: "test"}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Publish(t.Context(), "walherd.work.part.test", nil, []byte("job")); err != nil {
		t.Fatal(err)
	}
	addr := first.URL()[len("nats://"):]
	first.Stop()
	if _, err := b.Publish(shortly(t), "walherd.work.part.test", nil, nil); err == nil {
		t.Fatal("published to a broker that is gone")
	}
	second, err := broker.Start(broker.Options{Listen: addr, StoreDir: dir, MaxMemory: 2 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Stop()
	for {
		d, err := b.Next(t.Context(), topology.StreamWork, "part-test")
		if err != nil {
			continue // still reconnecting
		}
		if string(d.Data()) != "job" {
			t.Fatalf("got %q", d.Data())
		}
		if err := d.Settle(t.Context(), 5, nil); err != nil {
			t.Fatal(err)
		}
		return
	}
}

func shortly(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	t.Cleanup(cancel)
	return ctx
}
