package e2e

import (
	"encoding/json"
	"strings"
	"syscall"
	"testing"

	"github.com/walherd/walherd/messages/broker"
	"github.com/walherd/walherd/messages/bustest"
)

// TestAgentDrainsABackup: SIGTERM lets an agent finish the backup that somebody
// asked it for, and whoever asked hears of its end.
func TestAgentDrainsABackup(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	worker, _ := f.worker("a")
	agent, log := f.background("agent", []string{"PGDATA=" + f.c.DataDir(), "WALG_DISK_RATE_LIMIT=15000000"}, "ready", "agent", "--drain", "80s")
	asker, out := f.producer(t.Context(), nil, "request", "push")
	if err := asker.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the part to be under way", func() bool { return holds(worker.Process.Pid, "part_001.tar.lz4.tmp") })
	if err := agent.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := asker.Wait(); err != nil || !strings.Contains(out.String(), "Wrote backup with name base_") {
		t.Fatalf("request push: %v\n%s", err, out.String())
	}
	if err := agent.Wait(); err != nil {
		t.Fatalf("agent: %v\n%s", err, log.String())
	}
	if !strings.Contains(log.String(), "draining") {
		t.Fatalf("the agent ended before it was told to: %s", log.String())
	}
}

// TestBrokerComesBackEmpty: a broker whose store is lost is set up anew by the
// processes that live on, which say so; what PostgreSQL archives then is stored,
// and a backup can be taken. So it is by an agent without a worker.
func TestBrokerComesBackEmpty(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	start := func() *broker.Embedded {
		return bustest.Broker(t, broker.Options{Listen: address, StoreDir: t.TempDir(), MaxMemory: 2 << 30})
	}
	first := start()
	f := &fleet{url: first.URL()}
	f.bench = newBench(t, []string{"WALHERD_NATS_URL=" + f.url, "WALHERD_ACK_WAIT=2s"})
	worker, log := f.worker("a")
	_, said := f.background("agent", []string{"PGDATA=" + f.c.DataDir()}, "ready", "agent")
	f.archived()
	first.Stop()
	second := start()
	await(t, "the worker to tell of the loss", func() bool { return strings.Contains(log.String(), "THE BROKER LOST ITS STORE") })
	f.archived()
	f.mustAsk(nil, "backup-push", f.c.DataDir())
	if strings.Contains(said.String(), "THE BROKER LOST") {
		t.Error("the agent was faster than the worker, which knows the settings")
	}

	if err := worker.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	second.Stop()
	start()
	await(t, "the agent to tell of the loss", func() bool { return strings.Contains(said.String(), "THE BROKER LOST ITS STORE") })
	var state struct {
		Streams []struct{ Name string }
	}
	if err := json.Unmarshal([]byte(f.mustAsk(nil, "status", "--json")), &state); err != nil || len(state.Streams) == 0 {
		t.Fatalf("status: %+v, %v", state, err)
	}
}
