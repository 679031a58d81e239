package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/producer/pgtest"
)

// operates: the rights of each role suffice for the commands that are its own,
// on hosts that have no storage but the worker's. What a role may not do is
// the other tests' matter.
func (f *natsFleet) operates(t *testing.T, b *bench) {
	host := &fleet{bench: b}
	_, agentLog := host.background("agent", append(f.as("main", "agent"),
		"PGDATA="+b.c.DataDir(), "WALHERD_SOCKET="+filepath.Join(pgtest.TempDir(t), "sock"),
		"WALHERD_HEALTH_LISTEN="+freeAddress(t), "WALHERD_BACKUP_SCHEDULE=0 0 29 2 *", "WALHERD_VERIFY_SCHEDULE=0 0 29 2 *"),
		"INFO: ", "agent")
	await(t, "the agent to be ready", func() bool { return strings.Contains(agentLog.String(), " ready ") })

	as := func(role string) func(args ...string) result {
		return func(args ...string) result {
			t.Helper()
			r := f.run(t, f.as("main", role), args...)
			if r.code != 0 || strings.Contains(r.stderr, bus.ErrDenied.Error()) {
				t.Errorf("%s: walherd %v: %+v", role, args, r)
			}
			return r
		}
	}
	operator, producer := as("operator"), as("producer")

	operator("request", "push", "--", "--add-user-data", `"operates"`)
	var agent struct {
		Dir string `json:"data_dir"`
	}
	if r := operator("request", "agent"); json.Unmarshal([]byte(r.stdout), &agent) != nil || agent.Dir != b.c.DataDir() {
		t.Errorf("request agent: %+v", r)
	}
	if r := operator("request", "verify"); !strings.Contains(r.stdout, `"integrity"`) {
		t.Errorf("request verify: %+v", r)
	}

	// What there is, for who decides what goes and for a database host.
	var name string
	for role, ask := range map[string]func(...string) result{"operator": operator, "producer": producer, "agent": as("agent")} {
		var list []struct {
			Name string `json:"backup_name"`
			Data string `json:"user_data"`
		}
		r := ask("backup-list", "--json", "--detail")
		if err := json.Unmarshal([]byte(r.stdout), &list); err != nil || len(list) == 0 {
			t.Fatalf("%s: backup-list: %+v, %v", role, r, err)
		}
		for _, l := range list {
			if l.Data == "operates" {
				name = l.Name
			}
		}
		ask("wal-show")
		ask("st", "ls", "wal_005")
		ask("delete", "retain", "1")
	}

	operator("backup-mark", name)
	permanent := func() bool {
		return strings.Contains(operator("st", "ls", "basebackups_005/"+name).stdout, "metadata.json") &&
			strings.Contains(b.must("st", "cat", "basebackups_005/"+name+"/metadata.json"), `"is_permanent":true`)
	}
	if !permanent() {
		t.Errorf("backup %s was marked and is not permanent", name)
	}
	if r := f.run(t, f.as("main", "operator"), "delete", "target", name, "--confirm"); r.code != 1 || !strings.Contains(r.stderr, "permanent") {
		t.Errorf("delete of a permanent backup: %+v", r)
	}
	operator("backup-mark", "-i", name)
	if permanent() {
		t.Errorf("backup %s was marked as impermanent and is permanent", name)
	}
	operator("delete", "target", name, "--confirm")
	if list := b.must("backup-list"); strings.Contains(list, name) {
		t.Errorf("%s was deleted and is listed: %s", name, list)
	}

	f.letters(t, operator)
	var s struct {
		Agents      []any `json:"agents"`
		DeadLetters int   `json:"dead_letters"`
		Verified    any   `json:"last_passed_verification"`
		Found       any   `json:"last_failed_verification"`
	}
	if r := operator("status", "--json"); json.Unmarshal([]byte(r.stdout), &s) != nil || len(s.Agents) != 1 || s.DeadLetters != 0 || s.Verified == nil && s.Found == nil {
		t.Errorf("status: %+v", r)
	}

	// Nonsense that a host is let to publish does not blind the operator.
	if _, err := f.connect(t, "main", "producer").Publish(t.Context(), messages.EventSubject("main", messages.BackupFinished), nil, []byte("\x1b[2J")); err != nil {
		t.Fatal(err)
	}
	if r := operator("status"); !strings.Contains(r.stdout, "unreadable event") || strings.Contains(r.stdout, "\x1b") {
		t.Errorf("status after a broken event: %q", r.stdout)
	}

	// Who has the storage is a worker to the broker.
	worker := func(args ...string) {
		t.Helper()
		r := b.run(f.as("main", "worker"), args...)
		if r.code != 0 || strings.Contains(r.stderr, bus.ErrDenied.Error()) {
			t.Errorf("worker: walherd %v: %+v", args, r)
		}
	}
	worker("backup-list")
	worker("wal-fetch", b.c.SQL("SELECT last_archived_wal FROM pg_stat_archiver"), filepath.Join(pgtest.TempDir(t), "fetched"))
	if strings.Contains(agentLog.String(), bus.ErrDenied.Error()) {
		t.Errorf("the agent was refused something:\n%s", agentLog)
	}
}

// letters: jobs that were given up are listed, shown, tried again and dropped
// by the operator.
func (f *natsFleet) letters(t *testing.T, operator func(args ...string) result) {
	t.Helper()
	bad := f.connect(t, "main", "operator")
	// The object's name would clear the operator's screen.
	job := `{"v":1,"kind":"archive","cluster":"main","body":{"name":"\u001b[2Jno job"}}`
	if _, err := bad.Publish(t.Context(), messages.WorkSubject(messages.KindArchive, "main"), nil, []byte(job)); err != nil {
		t.Fatal(err)
	}
	var last uint64
	next := func() string {
		t.Helper()
		var found uint64
		await(t, "a dead letter", func() bool {
			var list []struct{ ID uint64 }
			r := operator("deadletter", "ls", "--json")
			if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
				t.Fatalf("deadletter ls: %+v, %v", r, err)
			}
			if len(list) == 1 && list[0].ID > last {
				found = list[0].ID
			}
			return found > 0
		})
		last = found
		return strconv.FormatUint(found, 10)
	}
	id := next()
	if r := operator("deadletter", "ls"); !strings.Contains(r.stdout, "no job") || strings.Contains(r.stdout, "\x1b") {
		t.Errorf("deadletter ls: %q", r.stdout)
	}
	if r := operator("deadletter", "show", id); !strings.Contains(r.stdout, "no job") || !strings.Contains(r.stdout, `"reason"`) {
		t.Errorf("deadletter show: %+v", r)
	}
	operator("deadletter", "retry", id)
	operator("deadletter", "drop", next())
	if r := operator("deadletter", "ls", "--json"); strings.TrimSpace(r.stdout) != "[]" {
		t.Errorf("after drop: %s", fmt.Sprint(r))
	}
}
