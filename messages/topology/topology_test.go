package topology_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/messages/broker"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/topology"
)

// TestEnsureOnARealBroker creates everything, then finds it as declared.
func TestEnsureOnARealBroker(t *testing.T) {
	t.Parallel()
	for name, inMemory := range map[string]bool{"memory": true, "file": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := bustest.Connect(t, bustest.Broker(t, broker.Options{StoreDir: t.TempDir(), MaxMemory: 2 << 30}))
			cfg := topology.Config{Cluster: "c1", InMemory: inMemory, AckWait: 7 * time.Second, MaxDeliver: 4}
			for range 2 {
				diffs, err := topology.Ensure(t.Context(), b, cfg)
				if err != nil || len(diffs) > 0 {
					t.Fatalf("ensure: %v, differences %v", err, diffs)
				}
			}
			for _, want := range cfg.Streams() {
				if _, ok, err := b.Stream(t.Context(), want.Name); err != nil || !ok {
					t.Fatalf("stream %s: %v %v", want.Name, ok, err)
				}
			}
			diffs, err := topology.Ensure(t.Context(), b, topology.Config{Cluster: "c1", InMemory: inMemory, AckWait: 8 * time.Second, MaxDeliver: 4})
			if err != nil || len(diffs) != len(cfg.Consumers()) || diffs[0].Setting != "ack wait" {
				t.Fatalf("another ack wait: %v, differences %v", err, diffs)
			}
		})
	}
}

// TestUnsafeDriftIsAnError: a stream that would lose acknowledged work, or
// keep it where it does not last, is refused and not altered.
func TestUnsafeDriftIsAnError(t *testing.T) {
	t.Parallel()
	work := workStream()
	for name, alter := range map[string]func(*topology.Stream){
		"discards old":   func(s *topology.Stream) { s.DropOld = true },
		"other subjects": func(s *topology.Stream) { s.Subjects = []string{"walherd.work.archive.>"} },
		"in memory":      func(s *topology.Stream) { s.Storage = topology.Memory; s.MaxBytes = 1 << 20 },
		"limits":         func(s *topology.Stream) { s.Retention = topology.Limits },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := bustest.Connect(t, bustest.Broker(t, broker.Options{StoreDir: t.TempDir(), MaxMemory: 2 << 30}))
			s := work
			alter(&s)
			if err := b.CreateStream(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			_, err := topology.Ensure(t.Context(), b, topology.Config{Cluster: "c1"})
			if !errors.Is(err, topology.ErrDrift) || !strings.Contains(err.Error(), work.Name) {
				t.Fatalf("got %v, want ErrDrift naming %s", err, work.Name)
			}
			got, _, err := b.Stream(t.Context(), work.Name)
			if err != nil {
				t.Fatal(err)
			}
			if got.DropOld != s.DropOld || got.Storage != s.Storage || got.Retention != s.Retention {
				t.Fatalf("the stream was altered: %+v", got)
			}
		})
	}
}

// TestSizingIsTheOperators: a stream that somebody made larger stays so.
func TestSizingIsTheOperators(t *testing.T) {
	t.Parallel()
	b := bustest.Connect(t, bustest.Broker(t, broker.Options{StoreDir: t.TempDir(), MaxMemory: 2 << 30}))
	s := workStream()
	s.MaxBytes *= 2
	if err := b.CreateStream(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	diffs, err := topology.Ensure(context.Background(), b, topology.Config{Cluster: "c1"})
	if err != nil || len(diffs) != 1 || diffs[0].Unsafe {
		t.Fatalf("got %v, %v", diffs, err)
	}
}

// workStream is the declared stream of jobs.
func workStream() topology.Stream {
	all := topology.Config{}.Streams()
	return all[slices.IndexFunc(all, func(s topology.Stream) bool { return s.Name == topology.StreamWork })]
}
