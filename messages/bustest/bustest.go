// Package bustest gives tests a real broker: a JetStream server inside the
// test's process with the declared topology. Only tests import it.
package bustest

import (
	"context"
	"testing"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/broker"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
)

// Broker starts a broker that stops with the test.
func Broker(t testing.TB, opt broker.Options) *broker.Embedded {
	t.Helper()
	b, err := broker.Start(opt)
	if err != nil {
		t.Fatalf("start broker: %v", err)
	}
	t.Cleanup(b.Stop)
	return b
}

// Connect opens a bus to b that closes with the test.
func Connect(t testing.TB, b bus.InProcess) *bus.Bus {
	t.Helper()
	conn, err := bus.Connect(t.Context(), bus.Options{InProcess: b, Name: t.Name()})
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// Cluster is the cluster of the brokers that New starts.
const Cluster messages.Cluster = "test"

// New starts a broker with the topology of cfg in memory and connects to it.
func New(t testing.TB, cfg topology.Config) *bus.Bus {
	t.Helper()
	b := Connect(t, Broker(t, broker.Options{}))
	cfg.InMemory, cfg.Cluster = true, Cluster
	if _, err := topology.Ensure(context.Background(), b, cfg); err != nil {
		t.Fatalf("ensure topology: %v", err)
	}
	return b
}
