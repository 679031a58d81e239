package expire_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/retain"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/workers/expire"
)

// typical is a world with something of everything.
func typical(t testing.TB) *world {
	w := newWorld(t)
	w.archive("default", 2)
	f1 := w.backup("default", nil, true)
	d1 := w.backup("default", f1, true)
	w.backup("default", d1, true)
	w.backup("default", nil, false) // failed
	p := w.backup("spare", nil, true)
	w.mark(p)
	w.copy(p, "default")
	w.archive("default", 2)
	w.promote("default")
	f2 := w.backup("default", nil, true)
	w.backup("default", f2, true)
	w.backup("spare", nil, true)
	w.now = w.now.Add(30 * time.Hour)
	f3 := w.backup("default", nil, true)
	w.backup("default", f3, true)
	w.put("default", catalog.ProbeName, "")
	w.put("default", "wal_005/000000010000000000000000_delta.lz4", "")
	w.put("default", "wal_005/00000001000000000000000.json", "")
	w.backup("spare", nil, false) // may be in the making
	return w
}

var commands = []string{
	"retain 2", "retain FULL 1", "retain FIND_FULL 3", "retain FULL 2 --use-sentinel-time", "retain --window=20h", "garbage", "garbage ARCHIVES", "garbage BACKUPS",
	"target FIND_FULL LATEST", "everything FORCE",
}

// A process that dies at any call to a storage leaves what is listed whole,
// and the next one ends where one that lived would have.
func TestKilledAtEveryCall(t *testing.T) {
	t.Parallel()
	start := typical(t)
	for _, line := range commands {
		t.Run(strings.ReplaceAll(line, " ", "_"), func(t *testing.T) {
			t.Parallel()
			c := command(line)
			whole := start.clone()
			l := &life{}
			n, err := whole.delete(l, c)
			if err != nil {
				t.Fatal(err)
			}
			want := whole.names()
			if int(n) != len(start.names())-len(want) {
				t.Fatalf("%d objects were deleted, of %d are left %d", n, len(start.names()), len(want))
			}
			for at := 1; at <= l.calls; at++ {
				for _, how := range []death{before, half, after} {
					w := start.clone()
					p := w.promises()
					if line == "everything FORCE" {
						for _, b := range w.backups { // nothing is promised to stay
							b := *b
							b.permanent = false
							w.backups[b.id] = &b
						}
						p.young = nil
					}
					if _, err := w.delete(&life{at: at, how: how}, c); err == nil {
						t.Fatalf("killed at call %d: no error", at)
					}
					if err := w.check(p); err != nil {
						t.Fatalf("killed at call %d (%d): %v", at, how, err)
					}
					// A target that is gone is not found.
					var refused *expire.Refusal
					if _, err := w.delete(&life{}, c); err != nil && !(c.Verb == "target" && errors.As(err, &refused)) {
						t.Fatalf("the run after the kill at call %d: %v", at, err)
					}
					if c.Verb == "target" {
						continue // LATEST is another one now, and parts are garbage's
					}
					if got := w.names(); !slices.Equal(got, want) && !leftovers(got, want) {
						t.Fatalf("killed at call %d (%d), then run again: left\n%q\nwant\n%q", at, how, got, want)
					}
				}
			}
		})
	}
}

// leftovers tells that got has nothing that want has not but parts and
// documents of backups whose sentinel is gone: retain leaves those to garbage
// when they are newer than what it ends at.
func leftovers(got, want []string) bool {
	for _, n := range want {
		if !slices.Contains(got, n) {
			return false
		}
	}
	for _, n := range got {
		_, key, _ := strings.Cut(n, ":")
		o := catalog.Classify(key)
		if !slices.Contains(want, n) && (o.Backup == "" || o.Kind == catalog.SentinelObject) {
			return false
		}
	}
	return true
}

// A storage that turns read-only in the middle is an error that tells so, and
// nothing listed is broken.
func TestStorageTurnsReadOnly(t *testing.T) {
	t.Parallel()
	start := typical(t)
	for at := 1; ; at++ {
		w := start.clone()
		p := w.promises()
		l := &life{at: at, err: fmt.Errorf("%w: read-only", storage.ErrPermanent)}
		_, err := w.delete(l, command("retain 2"))
		if l.calls < at {
			return // all calls were had
		}
		if !errors.Is(err, storage.ErrPermanent) {
			t.Fatalf("call %d: %v", at, err)
		}
		if err := w.check(p); err != nil {
			t.Fatalf("call %d: %v", at, err)
		}
	}
}

// Random histories, and random deletions in them, whole or killed somewhere.
func TestModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		w.archive("default", 1)
		chance := func(percent int, what string) bool { return rapid.IntRange(0, 99).Draw(rt, what) < percent }
		var backups []*made
		alive := func() (out []*made) {
			for _, b := range backups {
				if w.listed(b) && w.whole(b) == nil {
					out = append(out, b)
				}
			}
			return out
		}
		for range rapid.IntRange(3, 20).Draw(rt, "actions") {
			store := rapid.SampledFrom([]string{"default", "default", "spare"}).Draw(rt, "store")
			switch rapid.IntRange(0, 9).Draw(rt, "action") {
			case 0, 1, 2:
				backups = append(backups, w.backup(store, nil, true))
			case 3, 4:
				if a := alive(); len(a) > 0 {
					parent := rapid.SampledFrom(a).Draw(rt, "parent")
					backups = append(backups, w.backup(parent.id.Storage, parent, true))
				}
			case 5:
				backups = append(backups, w.backup(store, nil, false))
			case 6:
				w.archive(store, rapid.IntRange(1, 20).Draw(rt, "segments"))
			case 7:
				w.promote(store)
			case 8:
				if a := alive(); len(a) > 0 {
					w.mark(rapid.SampledFrom(a).Draw(rt, "permanent"))
				}
			case 9:
				w.now = w.now.Add(time.Duration(rapid.IntRange(1, 60).Draw(rt, "idle")) * time.Hour)
			}
			if !chance(40, "delete") {
				continue
			}
			line := rapid.SampledFrom([]string{
				"retain 1", "retain 2", "retain FULL 1", "retain FULL 2", "retain FIND_FULL 1", "retain FIND_FULL 3", "retain --window=20h", "retain --window=60h",
				"retain --window=2d", "garbage", "garbage ARCHIVES", "garbage BACKUPS", "garbage --without-backup-check", "garbage --window=2d", "target LATEST",
				"target FIND_FULL LATEST", "everything", "before " + w.now.Add(-30*time.Hour).Format(time.RFC3339),
			}).Draw(rt, "command")
			c := command(line)
			p, reachable := w.promises(), w.reachable()
			l := &life{}
			if chance(50, "killed") {
				l.at, l.how = rapid.IntRange(1, 80).Draw(rt, "at"), rapid.SampledFrom([]death{before, half, after}).Draw(rt, "how")
				l.once = chance(30, "once")
			}
			_, err := w.delete(l, c)
			var refused *expire.Refusal
			if err != nil && !errors.Is(err, errKilled) && !errors.As(err, &refused) {
				rt.Fatalf("%s: %v", line, err)
			}
			if cerr := w.check(p); cerr != nil {
				rt.Fatalf("%s (%v): %v", line, err, cerr)
			}
			// Not garbage --window: it deletes no backup and keeps the WAL that
			// the window needs, and says so in its tests.
			if c.Verb == "retain" && c.Flags.Window != "" {
				length, perr := retain.ParseWindow(c.Flags.Window)
				if perr != nil {
					rt.Fatal(perr)
				}
				now := w.reachable()
				for i, place := range w.path {
					if place.at.After(w.now.Add(-length)) && reachable[i] && !now[i] {
						rt.Fatalf("%s (%v): segment %d of timeline %d, archived at %s, is not reachable any more", line, err, place.n, place.tl, place.at)
					}
				}
			}
			if err != nil || c.Verb == "target" {
				continue
			}
			if n, err := w.delete(&life{}, c); n > 0 || err != nil && !errors.As(err, &refused) {
				rt.Fatalf("%s: the second run deletes %d, %v", line, n, err)
			}
		}
	})
}

// intruder is a store to which something happens right before a deletion of
// key or a listing of prefix.
type intruder struct {
	storage.Bucket
	key, prefix string
	then        func()
}

func (i *intruder) List(ctx context.Context, prefix string, opt storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		if i.then != nil && i.prefix == prefix {
			i.then()
			i.then = nil
		}
		i.Bucket.List(ctx, prefix, opt)(yield)
	}
}

func (i *intruder) Delete(ctx context.Context, names ...string) error {
	if i.then != nil && slices.Contains(names, i.key) {
		i.then()
		i.then = nil
	}
	return i.Bucket.Delete(ctx, names...)
}

// What appears between the plan and its end is seen before anything it needs
// goes, and the command is planned anew.
func TestBackupsThatAppearMeanwhile(t *testing.T) {
	t.Parallel()
	t.Run("marked permanent", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		old := w.backup("default", nil, true)
		w.backup("default", nil, true)
		plans := 0
		_, err := w.work(&life{}).Do(t.Context(), command("retain 1"), func(*retain.Plan) error {
			if plans++; plans == 1 {
				w.mark(old)
			}
			return nil
		})
		if err != nil || plans != 2 || !w.listed(old) || w.whole(old) != nil {
			t.Errorf("after %d plans: %v, %v", plans, err, w.whole(old))
		}
	})
	t.Run("an increment on what is to go", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		old := w.backup("default", nil, true)
		w.backup("default", nil, true)
		var inc *made
		plans := 0
		_, err := w.work(&life{}).Do(t.Context(), command("before FIND_FULL base_000000010000000000000003"), func(*retain.Plan) error {
			if plans++; plans == 1 {
				inc = w.backup("default", old, true)
			}
			return nil
		})
		if err != nil || plans != 2 || w.whole(inc) != nil || !w.listed(old) {
			t.Errorf("after %d plans: %v, %v", plans, err, w.whole(inc))
		}
	})
	t.Run("marked permanent between two stages of sentinels", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		old := w.backup("default", nil, true)
		inc := w.backup("default", old, true)
		w.backup("default", nil, true)
		work := w.work(&life{})
		work.Stores[0] = repo.New(&intruder{Bucket: w.stores["default"], key: inc.id.Key(catalog.SentinelObject, ""), then: func() { w.mark(old) }}, "default")
		_, err := work.Do(t.Context(), command("retain 1"), func(*retain.Plan) error { return nil })
		if err != nil || w.listed(inc) || !w.listed(old) || w.whole(old) != nil {
			t.Errorf("increment listed: %v, base listed: %v, %v, %v", w.listed(inc), w.listed(old), w.whole(old), err)
		}
	})
	t.Run("moved to a storage that was listed already", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.archive("default", 2)
		old := w.backup("spare", nil, true)
		w.archive("default", 2)
		w.backup("default", nil, true)
		var moved *made
		work := w.work(&life{})
		work.Stores[1] = repo.New(&intruder{Bucket: w.stores["spare"], prefix: string(catalog.BaseBackups), then: func() {
			moved = w.copy(old, "default")
			if err := w.stores["spare"].Delete(t.Context(), old.objects...); err != nil {
				t.Error(err)
			}
		}}, "spare")
		_, err := work.Do(t.Context(), command("garbage"), func(*retain.Plan) error { return nil })
		if err != nil || !w.listed(moved) || w.whole(moved) != nil {
			t.Errorf("%v, %v", w.whole(moved), err)
		}
	})
	t.Run("the storage never rests", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.backup("default", nil, true)
		w.backup("default", nil, true)
		_, err := w.work(&life{}).Do(t.Context(), command("retain 1"), func(*retain.Plan) error {
			w.backup("default", nil, true)
			return nil
		})
		if !errors.Is(err, expire.ErrChanged) {
			t.Error(err)
		}
	})
}

// Two deletions at once, without a lease: each stage of the one meets any
// stage of the other.
func TestTwoAtOnce(t *testing.T) {
	t.Parallel()
	start := typical(t)
	for _, lines := range [][2]string{{"retain FULL 1", "garbage"}, {"retain FULL 1", "retain 2"}, {"retain --window=20h", "target FIND_FULL LATEST"}} {
		for _, key := range start.names() {
			w := start.clone()
			p := w.promises()
			store, key, _ := strings.Cut(key, ":")
			work := w.work(&life{})
			for i, r := range work.Stores {
				if r.Name() == store {
					b := &intruder{Bucket: r.Bucket(), key: key, then: func() {
						if _, err := w.delete(&life{}, command(lines[1])); err != nil {
							t.Errorf("%q at %s: %v", lines[1], key, err)
						}
					}}
					work.Stores[i] = repo.New(b, store)
				}
			}
			if _, err := work.Do(t.Context(), command(lines[0]), func(*retain.Plan) error { return nil }); err != nil {
				t.Fatalf("%q with %q at %s: %v", lines[0], lines[1], key, err)
			}
			if err := w.check(p); err != nil {
				t.Fatalf("%q with %q at %s: %v", lines[0], lines[1], key, err)
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	w := typical(t)
	for line, want := range map[string]error{
		"retain 0":                    retain.ErrCount,
		"retain -1":                   retain.ErrCount,
		"retain x":                    retain.ErrUsage,
		"retain":                      retain.ErrUsage,
		"retain FULL":                 retain.ErrUsage,
		"retain FULL FIND_FULL 1":     retain.ErrUsage,
		"retain 1 2":                  retain.ErrUsage,
		"retain 1 --window=1d":        retain.ErrModifiers,
		"retain --window=0d":          retain.ErrUsage,
		"retain 1":                    retain.ErrIncrement,
		"retain 1 --after=LATEST":     retain.ErrLatest,
		"before LATEST":               retain.ErrLatest,
		"before FULL base_0":          retain.ErrUsage,
		"before 2026-01-01T00:00:00":  retain.ErrTime,
		"before 2036-01-01T00:00:00Z": retain.ErrFuture,
		"before base_0":               catalog.ErrAmbiguous,
		"before base_9":               catalog.ErrNotFound,
		"target base_0":               catalog.ErrNotFound,
		"target":                      retain.ErrUsage,
		"everything":                  retain.ErrPermanent,
		"everything NOW":              retain.ErrUsage,
		"garbage WAL":                 retain.ErrModifiers,
		"nothing":                     retain.ErrUsage,
	} {
		n := len(w.names())
		deleted, err := w.delete(&life{}, command(line))
		var refused *expire.Refusal
		if !errors.Is(err, want) || !errors.As(err, &refused) || deleted != 0 || len(w.names()) != n {
			t.Errorf("%s: deleted %d, %v; want %v", line, deleted, err, want)
		}
	}
}

// What may be needed by what cannot be seen is not deleted.
func TestUnreachableAndBackingUp(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		line        string
		unreachable bool
		backing     bool
	}{
		{"retain FULL 1", true, false},
		{"garbage", true, false},
		{"everything", true, true},
		{"everything FORCE", false, false},
		{"target FIND_FULL LATEST", false, true},
		{"garbage --without-backup-check", true, true},
		{"retain --window=1d", true, false},
	} {
		w := typical(t)
		work := w.work(&life{})
		work.Unreachable = []string{"third"}
		if _, _, err := work.Plan(t.Context(), command(tc.line)); errors.Is(err, expire.ErrUnreachable) != tc.unreachable {
			t.Errorf("%s with a dead storage: %v", tc.line, err)
		}
		work.Unreachable = nil
		work.Backing = func(context.Context) (string, error) { return "host-1", nil }
		if _, _, err := work.Plan(t.Context(), command(tc.line)); errors.Is(err, expire.ErrBackup) != tc.backing {
			t.Errorf("%s during a backup: %v", tc.line, err)
		}
	}
}

// A document that cannot be read makes its backup stay; one that the storage
// does not give is no ground to plan on.
func TestUnreadableDocuments(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	bad := w.backup("default", nil, true)
	w.backup("default", nil, true)
	w.backup("default", nil, true)
	w.put("default", bad.id.Key(catalog.MetadataObject, ""), `{"is_permanent": tr`)
	if _, err := w.delete(&life{}, command("retain 1")); err != nil || !w.listed(bad) {
		t.Errorf("a backup with broken metadata: %v, listed %v", err, w.listed(bad))
	}
	n := len(w.names())
	for at := 1; at <= 9; at++ {
		if _, err := w.delete(&life{at: at, once: true}, command("retain 2")); err == nil || len(w.names()) != n {
			t.Errorf("a scan whose call %d fails: %v", at, err)
		}
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	w := typical(t)
	c := command("retain FULL 1")
	_, pl, err := w.work(&life{}).Plan(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := expire.WriteJSON(&out, c, false, pl); err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Command string
		Count   uint64
		Backups []struct {
			Name   string `json:"backup_name"`
			Delete bool
			Reason string
		}
		Objects []struct {
			Object string
			Code   string
		}
	}
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatalf("%v in %s", err, out.String())
	}
	if doc.Command != "retain FULL 1" || doc.Count != uint64(len(doc.Objects)) || doc.Count != expire.Count(pl) || doc.Count == 0 || len(doc.Backups) != len(w.backups) {
		t.Errorf("%s", out.String())
	}
	for _, b := range doc.Backups {
		if b.Reason == "" {
			t.Errorf("%s has no reason", b.Name)
		}
	}
	if _, err := pg.ParseBackupName(doc.Backups[0].Name); err != nil {
		t.Error(err)
	}
}
