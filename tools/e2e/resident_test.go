package e2e

import (
	"strings"
	"syscall"
	"testing"
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
