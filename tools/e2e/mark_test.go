package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
)

// permanents tells of each backup listed whether it is permanent.
func permanents(t *testing.T, out string) map[string]bool {
	t.Helper()
	var list []struct {
		Name      string `json:"backup_name"`
		Storage   string `json:"storage_name"`
		Permanent bool   `json:"is_permanent"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m := map[string]bool{}
	for _, b := range list {
		if b.Storage != "default" {
			b.Name = b.Storage + ":" + b.Name
		}
		m[b.Name] = b.Permanent
	}
	return m
}

// storeChain puts documents of a full backup and its increments into a
// storage.
func storeChain(t *testing.T, b *bench, storage string, members ...string) (names []string) {
	t.Helper()
	for i, more := range members {
		name := fmt.Sprintf("base_%08X%016X", 1, i+1)
		sentinel := fmt.Sprintf(`{"LSN":%d,"FinishLSN":%d,"PgVersion":150018`, (i+1)<<24, (i+1)<<24+256)
		if i > 0 {
			parent := names[i-1]
			name += "_D_" + parent[5:29]
			sentinel += fmt.Sprintf(`,"DeltaLSN":%d,"DeltaFrom":%q,"DeltaFullName":%q,"DeltaCount":%d`, i<<24, parent, names[0], i)
		}
		names = append(names, name)
		dir := filepath.Join(storage, "basebackups_005")
		b.c.Run("/bin/mkdir", "-p", filepath.Join(dir, name))
		for path, text := range map[string]string{
			name + "_backup_stop_sentinel.json": sentinel + "}",
			name + "/metadata.json":             fmt.Sprintf(`{"start_time":"2026-11-22T16:27:5%dZ","hostname":"vm","start_lsn":%d,"unknown":[1]%s}`, i, (i+1)<<24, more),
		} {
			path = filepath.Join(dir, path)
			if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
				t.Fatal(err)
			}
			old := time.Now().Add(time.Duration(i-100) * time.Hour)
			if err := os.Chtimes(path, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	return names
}

// TestBackupMark: rows 175 to 178 of the reference's list, and what it leaves
// out: grandchildren, other storages, the time of the backup.
func TestBackupMark(t *testing.T) {
	t.Parallel()
	b := toolBench(t)
	names := storeChain(t, b, b.storage, "", "", "", "")
	list := func(args ...string) map[string]bool {
		t.Helper()
		return permanents(t, b.must(append(args, "backup-list", "--detail", "--json")...))
	}
	expect := func(what string, want ...bool) {
		t.Helper()
		got := list()
		for i, name := range names {
			if got[name] != want[i] {
				t.Errorf("%s: backup %d: %v", what, i, got)
			}
		}
	}
	before := b.must("backup-list")
	b.must("backup-mark", names[2])
	expect("with all that it is built on", true, true, true, false)
	if after := b.must("backup-list"); after != before {
		t.Errorf("the mark moved backups:\n%s\n%s", before, after)
	}
	if doc := b.stored("basebackups_005/" + names[0] + "/metadata.json"); !strings.Contains(doc, `"unknown":[1]`) {
		t.Errorf("members were lost: %s", doc)
	}
	if r := b.run(nil, "backup-mark", names[1]); r.code != 0 || !strings.Contains(r.stderr, "WARNING") || !strings.Contains(r.stderr, "already") {
		t.Errorf("marked already: %+v", r)
	}
	b.fails(names[2], "backup-mark", "-i", names[1])
	b.fails(names[2], "backup-mark", "--impermanent", names[0]) // a grandchild
	expect("refused", true, true, true, false)
	b.must("backup-mark", "-i", names[2])
	expect("only the named one", true, true, false, false)
	b.must("backup-mark", "-i", names[1])
	b.must("backup-mark", "-i", names[0])
	expect("all", false, false, false, false)
	b.fails("no such backup", "backup-mark", "base_0000000100000000000000FF")
	b.fails("LATEST", "backup-mark", "LATEST")
	if r := b.run(nil, "backup-mark"); r.code != 1 || !strings.Contains(r.stderr, "Usage:") {
		t.Errorf("no name: %+v", r)
	}

	spare := folder(t, b.c, "spare")
	storeChain(t, b, spare, "", "", `,"is_permanent":true`)
	both := config(t, map[string]any{"WALG_FILE_PREFIX": b.storage, "WALG_FAILOVER_STORAGES": map[string]any{"spare": map[string]string{"WALG_FILE_PREFIX": spare}}})
	b.env = []string{"HOME=" + folder(t, b.c, "home")}
	// In one of two storages something permanent is built on it: neither is
	// touched.
	b.must("--config", both, "backup-mark", names[0], "--target-storage", "default")
	b.fails(names[2], "--config", both, "backup-mark", "-i", names[0])
	expect("refused by the other storage", true, false, false, false)
	b.must("--config", both, "backup-mark", names[1])
	got := list("--config", both)
	if !got[names[1]] || !got["spare:"+names[0]] || !got["spare:"+names[1]] || got[names[2]] {
		t.Errorf("in both storages: %v", got)
	}
	b.must("--config", both, "backup-mark", names[3]) // in one only
}

// TestHousekeepingOverTheQueue: a host without a storage takes a permanent
// increment, and has workers show, verify and mark.
func TestHousekeepingOverTheQueue(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.worker("a")
	f.mustAsk(nil, "backup-push", f.c.DataDir())
	f.c.SQL("CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g")
	steps := []string{"WALG_DELTA_MAX_STEPS=5"}
	f.mustAsk(steps, "backup-push", f.c.DataDir())
	names := f.backups()
	if got := permanents(t, f.mustAsk(nil, "backup-list", "--detail", "--json")); len(got) != 2 || got[names[0]] || got[names[1]] {
		t.Fatalf("before: %v", got)
	}
	f.c.SQL("INSERT INTO t SELECT g FROM generate_series(1, 1000) g")
	f.mustAsk(steps, "backup-push", f.c.DataDir(), "--permanent")
	names = f.backups()
	got := permanents(t, f.mustAsk(nil, "backup-list", "--detail", "--json"))
	if len(names) != 3 || !strings.Contains(names[2], "_D_") || !got[names[0]] || !got[names[1]] || !got[names[2]] {
		t.Fatalf("a permanent increment: %v %v", names, got)
	}
	f.archived()

	if out := f.mustAsk(nil, "wal-show"); !strings.Contains(out, "| OK     |             3 |") {
		t.Errorf("wal-show: %s", out)
	}
	// The agent's verification, by request as by schedule, is told of.
	f.background("agent", []string{"PGDATA=" + f.c.DataDir()}, "ready", "agent")
	if out := f.mustAsk(nil, "request", "verify"); !strings.Contains(out, `"integrity":{"status":"OK"`) || !strings.Contains(out, `"timeline":{"status":"OK"`) {
		t.Errorf("request verify: %s", out)
	}
	segment := filepath.Join(f.storage, "wal_005", "000000020000000000000001")
	f.c.Run("/usr/bin/touch", segment)
	if out, stderr, code := f.ask(nil, "request", "verify"); code != 1 || !strings.Contains(out, `"timeline":{"status":"FAILURE"`) {
		t.Errorf("request verify beside a foreign timeline: %d %s %s", code, out, stderr)
	}
	if err := os.Remove(segment); err != nil {
		t.Fatal(err)
	}
	if out := f.mustAsk(nil, "status"); !strings.Contains(out, "last passed verification  WAL of ") || !strings.Contains(out, "timeline FAILURE") {
		t.Errorf("status: %s", out)
	}
	// The position is this host's, which the worker could not ask.
	out := f.mustAsk([]string{"WALG_UPLOAD_CONCURRENCY=1"}, "wal-verify", "integrity", "timeline", "--exit-code", "--backup-name", names[0])
	if !strings.Contains(out, "integrity check status: OK") || !strings.Contains(out, "timeline check status: OK") || !strings.Contains(out, "Current cluster timeline: 1\n") {
		t.Errorf("wal-verify: %s", out)
	}
	if _, stderr, code := f.ask(nil, "wal-verify", "timeline", "--exit-code", "--timeline", "9", "--lsn", "0/1"); code != 1 || !strings.Contains(stderr, "failure") {
		t.Errorf("wal-verify --exit-code: %d %s", code, stderr)
	}
	if _, stderr, code := f.ask(nil, "backup-mark", "-i", names[0]); code != 1 || !strings.Contains(stderr, names[1]) && !strings.Contains(stderr, names[2]) {
		t.Errorf("backup-mark of a base: %d %s", code, stderr)
	}
	f.mustAsk(nil, "backup-mark", "-i", names[2])
	if got := permanents(t, f.must("backup-list", "--detail", "--json")); got[names[2]] || !got[names[1]] {
		t.Errorf("after backup-mark: %v", got)
	}
	// It is not answered under the verb of commands that only read.
	conn, err := bus.Connect(t.Context(), bus.Options{URL: f.url})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = conn.Ask(t.Context(), messages.APISubject("default", "run"), []byte(`{"v":1,"args":["backup-mark","-i","`+names[1]+`"]}`), time.Minute,
		func(string, []byte) error { return nil })
	var answer *bus.AnswerError
	if !errors.As(err, &answer) || !strings.Contains(answer.Text, "not answered over the queue") {
		t.Errorf("a mark as if it only read: %v", err)
	}
	// Not while something is being deleted, by whoever holds that lease.
	lease, err := conn.Acquire(t.Context(), "default.expire", "somebody", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	cmd, said := f.producer(t.Context(), nil, "backup-mark", "-i", names[1])
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the mark to wait", func() bool { return strings.Contains(said.String(), "waiting") })
	if err := lease.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("backup-mark after the deletion: %v\n%s", err, said)
	}
}
