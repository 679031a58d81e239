package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/producer/pgtest"
)

// onlyIn are the objects of all that are not in left.
func onlyIn(all, left []string) (gone []string) {
	for _, o := range all {
		if !slices.Contains(left, o) {
			gone = append(gone, o)
		}
	}
	return gone
}

// housekeeping makes a history worth tidying: a permanent full backup, a chain
// of a full one and two increments, a full one; and remembers what each held.
func housekeeping(t *testing.T, b *bench, push func(args ...string)) (names []string, sums map[string]string) {
	t.Helper()
	sums = map[string]string{}
	b.c.Run("pgbench", "-i", "-q", "-s", "1", "postgres")
	for _, args := range [][]string{{"--permanent"}, {"--full"}, nil, nil, {"--full"}} {
		b.c.Run("pgbench", "-n", "-t", "50", "postgres")
		b.c.SQL("CHECKPOINT")
		push(args...)
		names = b.backups()
		sums[names[len(names)-1]] = b.c.SQL(bankSums)
	}
	b.archived()
	if len(names) != 5 || !strings.Contains(names[2], "_D_") || !strings.Contains(names[3], "_D_") || strings.Contains(names[4], "_D_") {
		t.Fatalf("backups %v", names)
	}
	return names, sums
}

// restored holds a backup against what it held when it was taken.
func restored(t *testing.T, b *bench, name, want string) {
	t.Helper()
	dir := filepath.Join(pgtest.TempDir(t), "restored")
	b.must("backup-fetch", dir, name)
	r := b.recover(dir, "recovery_target = 'immediate'", "recovery_target_action = 'promote'")
	if got := r.SQL(bankSums); got != want {
		t.Errorf("%s restored to %s, was %s", name, got, want)
	}
	amcheck(t, r)
}

// TestDelete tidies a storage by command, sees that what is left restores, that
// nothing goes without --confirm, and that what is wrong deletes nothing.
func TestDelete(t *testing.T) {
	t.Parallel()
	b := newBench(t, []string{"WALG_DELTA_MAX_STEPS=2", "WALHERD_DELETE_SAFETY_AGE=0s"})
	names, sums := housekeeping(t, b, func(args ...string) {
		b.must(append([]string{"backup-push", b.c.DataDir()}, args...)...)
	})
	// What a failed backup left, and what is nobody's to touch.
	b.store("basebackups_005/base_000000010000000000000001/tar_partitions/part_001.tar.lz4", "x")
	b.store("basebackups_005/notes.txt", "x")
	all := b.objects()

	for _, args := range [][]string{
		{"retain", "0"}, {"retain", "-1"}, {"retain"}, {"retain", "two"}, {"retain", "FULL", "FIND_FULL", "1"}, {"retain", "1", "--window", "1d"}, {"retain", "--window", "0d"},
		{"retain", "1", "--after", "2026-01-01T00:00:00"}, {"before", "LATEST"}, {"before", "2036-01-01T00:00:00Z"}, {"before", "2026-01-01 00:00:00"}, {"before", "FULL", names[4]},
		{"before", names[3]}, {"before", "base_9"}, {"target", "base_9"}, {"target"}, {"target", names[0]}, {"target", names[1], "--target-user-data", "{}"}, {"everything"},
		{"everything", "NOW"}, {"garbage", "WAL"}, {"nothing"},
	} {
		r := b.run(nil, append([]string{"delete", "--confirm"}, args...)...)
		if r.code != 1 || r.stderr == "" {
			t.Errorf("delete %q: %+v", args, r)
		}
	}
	if r := b.run(nil, "delete"); r.code != 0 || !strings.Contains(r.stdout, "garbage") {
		t.Errorf("delete alone: %+v", r)
	}
	if r := b.run(nil, "delete", "retain", "10", "--confirm"); r.code != 0 || !strings.Contains(r.stderr, "No objects matched the deletion criteria.") {
		t.Errorf("more than there are: %+v", r)
	}
	r := b.run(nil, "delete", "retain", "1")
	if r.code != 0 || !strings.Contains(r.stderr, "Dry run: objects would be deleted count=") || !strings.Contains(r.stderr, names[2]+"_backup_stop_sentinel.json storage=default reason=") {
		t.Errorf("dry run: %+v", r)
	}
	var plan struct {
		Count   int
		Objects []struct{ Object string }
	}
	if err := json.Unmarshal([]byte(b.must("delete", "retain", "1", "--json")), &plan); err != nil || plan.Count == 0 || plan.Count != len(plan.Objects) {
		t.Errorf("the plan as JSON: %+v, %v", plan, err)
	}
	if got := b.objects(); !slices.Equal(got, all) {
		t.Fatalf("what is refused or dry deleted %q", onlyIn(all, got))
	}

	if r = b.run(nil, "delete", "retain", "1", "--confirm"); r.code != 0 {
		t.Fatalf("delete retain 1: %+v", r)
	}
	gone := onlyIn(all, b.objects())
	var planned []string
	for _, o := range plan.Objects {
		planned = append(planned, o.Object)
	}
	slices.Sort(planned)
	if !slices.Equal(gone, planned) {
		t.Errorf("deleted %q, planned %q", gone, planned)
	}
	if got := b.backups(); !slices.Equal(got, []string{names[0], names[4]}) {
		t.Fatalf("left are %v of %v", got, names)
	}
	if r = b.run(nil, "delete", "retain", "1", "--confirm"); r.code != 0 || !strings.Contains(r.stderr, "No objects matched") {
		t.Errorf("the second time: %+v", r)
	}
	restored(t, b, names[0], sums[names[0]])
	restored(t, b, names[4], sums[names[4]])
	if r := b.restore("LATEST"); r.SQL(bankSums) == "" {
		t.Error("recovery to the end of the archive")
	}

	// A target leaves its WAL to garbage.
	b.must("backup-push", b.c.DataDir(), "--full")
	b.must("delete", "target", names[4], "--confirm")
	before := b.objects()
	b.must("delete", "garbage", "ARCHIVES", "--confirm")
	if gone := onlyIn(before, b.objects()); len(gone) == 0 || slices.ContainsFunc(gone, func(o string) bool { return !strings.HasPrefix(o, "wal_005/") }) {
		t.Errorf("garbage ARCHIVES deleted %q", gone)
	}
	restored(t, b, names[0], sums[names[0]])
	b.must("delete", "everything", "FORCE", "--confirm")
	if got := b.objects(); !slices.Equal(got, []string{"basebackups_005/notes.txt"}) {
		t.Errorf("after everything FORCE: %q", got)
	}
}

// TestDeleteOverTheQueue: a host without a storage sees the plan and has a
// worker carry it out; another delete meanwhile is refused.
func TestDeleteOverTheQueue(t *testing.T) {
	t.Parallel()
	slow(t)
	f := newFleet(t)
	f.env = append(f.env, "WALHERD_DELETE_SAFETY_AGE=0s")
	f.worker("a")
	names, sums := housekeeping(t, f.bench, func(args ...string) {
		f.mustAsk([]string{"WALG_DELTA_MAX_STEPS=2"}, append([]string{"backup-push", f.c.DataDir()}, args...)...)
	})
	all := f.objects()
	_, stderr, code := f.ask(nil, "delete", "retain", "FULL", "1")
	if code != 0 || !strings.Contains(stderr, "Dry run: objects would be deleted count=") || len(f.objects()) != len(all) {
		t.Fatalf("dry run: exit code %d\n%s", code, stderr)
	}
	if stdout := f.mustAsk(nil, "delete", "retain", "FULL", "1", "--json"); !json.Valid([]byte(stdout)) {
		t.Errorf("the plan as JSON: %s", stdout)
	}
	for _, args := range [][]string{{"retain", "0"}, {"everything"}, {"target", names[0]}} {
		if _, stderr, code := f.ask(nil, append([]string{"delete", "--confirm"}, args...)...); code != 1 || stderr == "" {
			t.Errorf("delete %q: exit code %d, %s", args, code, stderr)
		}
	}
	conn, err := bus.Connect(t.Context(), bus.Options{URL: f.url, Name: "another"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	lease, err := conn.Acquire(t.Context(), "default.expire", "worker-of-the-test", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := f.ask(nil, "delete", "retain", "FULL", "1", "--confirm"); code != 1 || !strings.Contains(stderr, "worker-of-the-test") {
		t.Errorf("while another deletes: exit code %d, %s", code, stderr)
	}
	if len(f.objects()) != len(all) {
		t.Fatalf("deleted without right: %q", onlyIn(all, f.objects()))
	}
	if err := lease.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, stderr, code = f.ask(nil, "delete", "retain", "FULL", "1", "--confirm")
	if code != 0 || !strings.Contains(stderr, "Objects deleted successfully: count=") {
		t.Fatalf("delete retain FULL 1: exit code %d\n%s", code, stderr)
	}
	if got := f.backups(); !slices.Equal(got, []string{names[0], names[4]}) {
		t.Fatalf("left are %v of %v", got, names)
	}
	restored(t, f.bench, names[4], sums[names[4]])
	m, err := conn.Last(t.Context(), "WALHERD_EVENT", messages.EventSubject("default", messages.ExpireDone))
	if err != nil || !strings.Contains(string(m.Data), "retain FULL 1") {
		t.Errorf("event: %s, %v", m.Data, err)
	}
}

// slow runs what takes long, and what packages' own tests hold too, only when
// asked.
func slow(t *testing.T) {
	t.Helper()
	if os.Getenv("SLOW_TESTS") == "" {
		t.Skip("takes long: make slow runs it")
	}
}

// TestWorkerKilledInADelete: the worker is killed when the sentinels are gone;
// another finishes.
func TestWorkerKilledInADelete(t *testing.T) {
	t.Parallel()
	slow(t)
	f := newFleet(t)
	f.env = append(f.env, "WALHERD_DELETE_SAFETY_AGE=0s", "WALHERD_DELETE_RATE=4")
	a, _ := f.worker("a")
	names, sums := housekeeping(t, f.bench, func(args ...string) {
		f.mustAsk([]string{"WALG_DELTA_MAX_STEPS=2"}, append([]string{"backup-push", f.c.DataDir()}, args...)...)
	})
	cmd, out := f.producer(t.Context(), nil, "delete", "retain", "FULL", "1", "--confirm")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the first sentinels to go", func() bool { return len(f.backups()) == 2 })
	if err := a.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if len(onlyIn(f.objects(), nil)) == 0 || !slices.ContainsFunc(f.objects(), func(o string) bool { return strings.Contains(o, names[1]+"/") }) {
		t.Fatal("all was deleted before the worker could be killed")
	}
	f.worker("b")
	if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "Objects deleted successfully") {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, o := range f.objects() {
		for _, name := range names[1:4] {
			if strings.Contains(o, name+"/") {
				t.Errorf("%s is left", o)
			}
		}
	}
	restored(t, f.bench, names[0], sums[names[0]])
	restored(t, f.bench, names[4], sums[names[4]])
}

// TestScheduledRetention: of two workers with the same schedule one asks for
// it, once a time.
func TestScheduledRetention(t *testing.T) {
	t.Parallel()
	slow(t)
	f := newFleet(t)
	f.env = append(f.env, "WALHERD_RETENTION=retain FULL 1; garbage", "WALHERD_RETENTION_SCHEDULE=* * * * *", "WALHERD_DELETE_SAFETY_AGE=0s")
	conn, err := bus.Connect(t.Context(), bus.Options{URL: f.url, Name: "listener"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	events := make(chan messages.Event, 10)
	_, first := f.worker("a")
	_, second := f.worker("b")
	stop, err := conn.Listen(t.Context(), messages.EventSubject("default", "expire.*"), func(m bus.Incoming) {
		var e messages.Event
		if err := json.Unmarshal(m.Data, &e); err != nil {
			t.Error(err)
		}
		events <- e
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	f.mustAsk(nil, "backup-push", f.c.DataDir())
	f.mustAsk(nil, "backup-push", f.c.DataDir())
	for {
		e := <-events
		if e.What != messages.ExpireDone || e.Object != "retain FULL 1; garbage" {
			t.Fatalf("event %+v", e)
		}
		if e.Objects > 0 || len(f.backups()) == 1 {
			break
		}
	}
	if names := f.backups(); len(names) != 1 {
		t.Errorf("left are %v", names)
	}
	began := strings.Count(first.String(), "scheduled work begins") + strings.Count(second.String(), "scheduled work begins")
	if began < 1 || began > 2 { // a minute may have passed before
		t.Errorf("began %d times\n%s\n%s", began, first, second)
	}
}
