package broker_test

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/broker"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
)

// TestDirectoryIsRemoved: a command leaves nothing behind, however it ends.
func TestDirectoryIsRemoved(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*broker.Embedded){"Stop": (*broker.Embedded).Stop, "Abandon": (*broker.Embedded).Abandon} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, err := broker.Start(broker.Options{})
			if err != nil {
				t.Fatal(err)
			}
			dir := e.Dir()
			if _, err := os.Stat(dir); err != nil {
				t.Fatal(err)
			}
			end(e)
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("%s is still there: %v", dir, err)
			}
			e.Stop()
		})
	}
}

func TestOnlyLoopback(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"0.0.0.0:0", "192.0.2.1:4222", "nonsense"} {
		if e, err := broker.Start(broker.Options{Listen: addr}); err == nil {
			e.Stop()
			t.Errorf("listens on %s", addr)
		}
	}
}

// BenchmarkEmbedded is what every short command pays: a broker, a connection,
// the topology, and the end of it.
func BenchmarkEmbedded(b *testing.B) {
	for b.Loop() {
		e, err := broker.Start(broker.Options{})
		if err != nil {
			b.Fatal(err)
		}
		conn, err := bus.Connect(b.Context(), bus.Options{InProcess: e})
		if err != nil {
			b.Fatal(err)
		}
		cfg := topology.Config{Cluster: "c", Embedded: true, Kinds: []messages.Kind{messages.KindArchive}}
		if _, err := topology.Ensure(b.Context(), conn, cfg); err != nil {
			b.Fatal(err)
		}
		conn.Close()
		e.Stop()
	}
}
