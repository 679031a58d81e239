//go:build unix

package natstest_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest/natstest"
)

const plain = `
server_name: $NODE_NAME
listen: $NODE_LISTEN
http: $NODE_MONITOR
tls { cert_file: $NODE_CERT, key_file: $NODE_CERT_KEY }
jetstream { store_dir: $NODE_STORE_DIR, max_file_store: 100MB, max_memory_store: 10MB }
`

func config(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func connect(t *testing.T, c *natstest.Cluster) *bus.Bus {
	t.Helper()
	b, err := bus.Connect(t.Context(), bus.Options{URL: c.URL(), TLS: bus.TLSFiles{CA: c.CA}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// TestANodeThatComesBack: its store outlives it, and so does its address.
func TestANodeThatComesBack(t *testing.T) {
	t.Parallel()
	c := natstest.Start(t, natstest.Options{Config: config(t, plain)})
	b := connect(t, c)
	if err := b.CreateLeases(t.Context(), 1, false); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Acquire(t.Context(), "a.b", "somebody", time.Hour); err != nil {
		t.Fatal(err)
	}
	n := c.Nodes[0]
	n.Kill()
	n.Kill() // twice is no error
	if n.PID() != 0 {
		t.Error("a killed node has a process")
	}
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.Restart(t.Context()); err == nil {
		t.Error("started twice")
	}
	if who, err := connect(t, c).Holder(t.Context(), "a.b"); err != nil || who != "somebody" {
		t.Errorf("after the restart: %q, %v", who, err)
	}
	if err := n.Stop(); err != nil {
		t.Error(err)
	}
}

// TestAPausedNodeSaysNothing until it is resumed.
func TestAPausedNodeSaysNothing(t *testing.T) {
	t.Parallel()
	c := natstest.Start(t, natstest.Options{Config: config(t, plain)})
	b := connect(t, c)
	if err := b.CreateLeases(t.Context(), 1, false); err != nil {
		t.Fatal(err)
	}
	if err := c.Nodes[0].Pause(); err != nil {
		t.Fatal(err)
	}
	// The signal is on its way when it is sent: another processor may let the
	// node answer once more.
	silent := func() bool {
		short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := b.Holder(short, "a.b")
		return err != nil
	}
	for asks := 1; !silent(); asks++ {
		if asks == 1000 {
			t.Fatal("a paused node answers")
		}
	}
	if err := c.Nodes[0].Resume(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Holder(t.Context(), "a.b"); err != nil {
		t.Errorf("a resumed node: %v", err)
	}
}

// TestABadConfigurationIsTold with the server's own words.
func TestABadConfigurationIsTold(t *testing.T) {
	t.Parallel()
	_, err := natstest.Run(t.Context(), t.TempDir(), natstest.Options{Config: config(t, "listen: $NOBODY_SET_THIS")})
	if err == nil || !strings.Contains(err.Error(), "NOBODY_SET_THIS") {
		t.Errorf("got %v", err)
	}
}
