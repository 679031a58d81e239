package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/storage/retry"
	"github.com/walherd/walherd/storage/storagetest"
	"github.com/walherd/walherd/tools/walherd/transfer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	full   = "base_000000010000000000000003"
	child  = "base_000000010000000000000005_D_000000010000000000000003"
	grand  = "base_000000010000000000000007_D_000000010000000000000005"
	second = "base_000000010000000000000009"
)

// unit is a source and a target, each with faults and a record of calls.
type unit struct {
	from, to         *storagetest.Faulty
	plainFrom, plain *mem.Bucket
	c                *transfer.Copier
}

func setup(t testing.TB) *unit {
	t.Helper()
	var clock atomic.Int64
	now := func() time.Time { return time.Unix(clock.Add(1), 0) }
	u := &unit{plainFrom: mem.NewAt(now), plain: mem.NewAt(now)}
	u.from, u.to = storagetest.NewFaulty(u.plainFrom), storagetest.NewFaulty(u.plain)
	u.c = &transfer.Copier{From: u.from, To: u.to, Log: slog.New(slog.DiscardHandler), Concurrency: 3, FailFast: true}
	return u
}

// backup puts a backup of three segments' worth of WAL into the source.
func (u *unit) backup(t testing.TB, name, parent string) {
	t.Helper()
	segment, _ := pg.BackupName(name).Segment()
	start := pg.LSN(segment.Number(pg.DefaultSegmentSize)<<24 + 0x28)
	finish := start + 0x100
	s := &manifest.Sentinel{LSN: &start, FinishLSN: &finish, PgVersion: 150018}
	if parent != "" {
		s.Increment = &manifest.Increment{Parent: pg.BackupName(parent), Root: full, Count: 1}
	}
	doc, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	b := pg.BackupName(name)
	for _, part := range []string{"part_001.tar.lz4", "part_002.tar.lz4", "pg_control.tar.lz4"} {
		storagetest.MustPut(t, u.plainFrom, repo.PartKey(b, part), []byte(name+part))
	}
	storagetest.MustPut(t, u.plainFrom, repo.FilesMetadataKey(b), []byte("{}"))
	storagetest.MustPut(t, u.plainFrom, repo.MetadataKey(b), []byte(`{"start_lsn":1}`))
	storagetest.MustPut(t, u.plainFrom, repo.SentinelKey(b), doc)
}

// archive puts the segments from 3 to 0xC and what lies beside them.
func (u *unit) archive(t testing.TB) {
	t.Helper()
	for i := 3; i <= 12; i++ {
		storagetest.MustPut(t, u.plainFrom, repo.WALKey(fmt.Sprintf("0000000100000000%08X.lz4", i)), []byte{byte(i)})
	}
	for _, name := range []string{
		"00000002.history.lz4", "000000010000000000000003.00000028.backup.lz4", "000000010000000000000009_delta.zst",
		"00000001000000000000000.json", "00000001000000000000000D.partial.lz4",
	} {
		storagetest.MustPut(t, u.plainFrom, repo.WALKey(name), []byte(name))
	}
}

func all(t testing.TB, b storage.Bucket) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, name := range storagetest.Names(t, b, "", storage.ListOptions{}) {
		out[name] = string(storagetest.MustGet(t, b, name))
	}
	return out
}

// complete tells the backups whose sentinel is there, and fails if one of them
// lacks anything of want or its parent.
func complete(t testing.TB, b storage.Bucket, want map[string]string) []string {
	t.Helper()
	have := all(t, b)
	parents := map[string]string{child: full, grand: child}
	var names []string
	for name := range have {
		rest, ok := strings.CutSuffix(name, repo.SentinelSuffix)
		if !ok {
			continue
		}
		backup := strings.TrimPrefix(rest, string(repo.BaseBackups))
		for object, content := range want {
			if strings.HasPrefix(object, rest+"/") && have[object] != content {
				t.Errorf("there is a sentinel of %s, and %s is %q", backup, object, have[object])
			}
		}
		if p := parents[backup]; p != "" && have[repo.SentinelKey(pg.BackupName(p))] == "" {
			t.Errorf("there is a sentinel of %s, and none of its parent", backup)
		}
		names = append(names, backup)
	}
	slices.Sort(names)
	return names
}

func (u *unit) copy(ctx context.Context, req transfer.Request) (transfer.Result, error) {
	req.SegmentSize = pg.DefaultSegmentSize
	plan, err := transfer.PlanCopy(ctx, u.from, u.to, req)
	if err != nil {
		return transfer.Result{}, err
	}
	res := u.c.Carry(ctx, plan)
	return res, res.Err()
}

func puts(u *unit) []string {
	var names []string
	for _, c := range u.to.Calls() {
		if c.Op == storagetest.Put {
			names = append(names, c.Name)
		}
	}
	return names
}

func TestCopyChooses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		about   string
		req     transfer.Request
		backups []string
		wal     []string
	}{
		{"one", transfer.Request{Backup: full}, []string{full},
			[]string{"00000001000000000000000.json", "000000010000000000000003.00000028.backup.lz4", "000000010000000000000003.lz4", "00000002.history.lz4"}},
		{"an increment brings its chain", transfer.Request{Backup: grand, History: transfer.NoHistory}, []string{full, child, grand}, nil},
		{"its WAL too", transfer.Request{Backup: child}, []string{full, child},
			[]string{"00000001000000000000000.json", "000000010000000000000003.00000028.backup.lz4", "000000010000000000000003.lz4", "000000010000000000000005.lz4", "00000002.history.lz4"}},
		{"latest", transfer.Request{Backup: "LATEST"}, []string{second},
			[]string{"00000001000000000000000.json", "000000010000000000000009.lz4", "000000010000000000000009_delta.zst", "00000002.history.lz4"}},
		{"latest with what follows", transfer.Request{Backup: "LATEST", History: transfer.WholeHistory}, []string{second},
			[]string{"00000001000000000000000.json", "000000010000000000000009.lz4", "000000010000000000000009_delta.zst", "00000001000000000000000A.lz4",
				"00000001000000000000000B.lz4", "00000001000000000000000C.lz4", "00000001000000000000000D.partial.lz4", "00000002.history.lz4"}},
		{"all", transfer.Request{History: transfer.NoHistory}, []string{full, child, grand, second}, nil},
	} {
		t.Run(c.about, func(t *testing.T) {
			t.Parallel()
			u := setup(t)
			u.backup(t, full, "")
			u.backup(t, child, full)
			u.backup(t, grand, child)
			u.backup(t, second, "")
			u.archive(t)
			storagetest.MustPut(t, u.plainFrom, "basebackups_005/base_00000001000000000000000B/tar_partitions/part_001.tar.lz4", []byte("unfinished"))
			if _, err := u.copy(t.Context(), c.req); err != nil {
				t.Fatal(err)
			}
			source := all(t, u.plainFrom)
			if got := complete(t, u.plain, source); !slices.Equal(got, c.backups) {
				t.Errorf("backups %q, want %q", got, c.backups)
			}
			var wal []string
			for name, content := range all(t, u.plain) {
				if source[name] != content {
					t.Errorf("%s is %q, want %q", name, content, source[name])
				}
				if rest, ok := strings.CutPrefix(name, repo.WALFolder); ok {
					wal = append(wal, rest)
				} else if !slices.ContainsFunc(c.backups, func(b string) bool { return strings.Contains(name, b) }) {
					t.Errorf("%s was copied", name)
				}
			}
			slices.Sort(wal)
			if !slices.Equal(wal, c.wal) {
				t.Errorf("WAL\n%q, want\n%q", wal, c.wal)
			}
			again, err := u.copy(t.Context(), c.req)
			if err != nil || again.Copied != 0 || again.Skipped == 0 {
				t.Errorf("the second time: %+v, %v", again, err)
			}
		})
	}
}

// The target's LATEST is the source's, also when a parent was rewritten after
// its child.
func TestCopyOrder(t *testing.T) {
	t.Parallel()
	u := setup(t)
	u.backup(t, second, "")
	u.backup(t, child, full)
	u.backup(t, full, "")
	u.archive(t)
	if _, err := u.copy(t.Context(), transfer.Request{}); err != nil {
		t.Fatal(err)
	}
	order := puts(u)
	want := []string{repo.SentinelKey(second), repo.SentinelKey(full), repo.SentinelKey(child)}
	if got := order[len(order)-3:]; !slices.Equal(got, want) {
		t.Errorf("last puts %q, want %q", got, want)
	}
	for i, name := range order[:len(order)-3] {
		if strings.HasSuffix(name, "/metadata.json") != (i >= len(order)-6) {
			t.Errorf("put %d of %d is %s", i, len(order), name)
		}
	}
}

// Whatever fails, no backup appears that is not whole, and the next run makes
// it so.
func TestCopySurvivesAnyFault(t *testing.T) {
	t.Parallel()
	for _, op := range []storagetest.Op{storagetest.Put, storagetest.Open, storagetest.List, storagetest.Stat} {
		for _, kind := range []string{"fails", "answer lost", "breaks", "ends early"} {
			t.Run(string(op)+" "+kind, func(t *testing.T) {
				t.Parallel()
				for nth := 1; ; nth++ {
					u := setup(t)
					u.backup(t, full, "")
					u.backup(t, child, full)
					u.archive(t)
					f := storagetest.Fault{Op: op, Nth: nth}
					switch kind {
					case "answer lost":
						f.Late = true
					case "breaks":
						f.Bytes = 1
					case "ends early":
						f.Bytes, f.Silent = 1, true
					}
					u.to.Add(f)
					if op == storagetest.Open || op == storagetest.List {
						u.from.Add(f)
					}
					_, err := u.copy(t.Context(), transfer.Request{})
					source := all(t, u.plainFrom)
					complete(t, u.plain, source)
					u.to.Clear()
					u.from.Clear()
					if _, err := u.copy(t.Context(), transfer.Request{}); err != nil {
						t.Fatalf("fault %d, then again: %v", nth, err)
					}
					if got := complete(t, u.plain, source); len(got) != 2 {
						t.Fatalf("fault %d, then again: %q", nth, got)
					}
					if err == nil && nth > 40 {
						return
					}
				}
			})
		}
	}
}

func TestCopyRefusesBeforeItWrites(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		about   string
		prepare func(t *testing.T, u *unit)
		req     transfer.Request
		want    error
	}{
		{"first segment missing", func(t *testing.T, u *unit) { remove(t, u, repo.WALKey("000000010000000000000003.lz4")) }, transfer.Request{}, transfer.ErrWALMissing},
		{"last segment missing", func(t *testing.T, u *unit) { remove(t, u, repo.WALKey("000000010000000000000005.lz4")) }, transfer.Request{}, transfer.ErrWALMissing},
		{"only its metadata is there", func(t *testing.T, u *unit) {
			remove(t, u, repo.WALKey("000000010000000000000005.lz4"))
			storagetest.MustPut(t, u.plainFrom, repo.WALKey("000000010000000000000005.json"), []byte("{}"))
		}, transfer.Request{}, transfer.ErrWALMissing},
		{"gap", func(t *testing.T, u *unit) { remove(t, u, repo.WALKey("00000001000000000000000B.lz4")) }, transfer.Request{History: transfer.WholeHistory}, transfer.ErrWALMissing},
		{"parent missing", func(t *testing.T, u *unit) { remove(t, u, repo.SentinelKey(full)) }, transfer.Request{}, transfer.ErrChain},
		{"builds on itself", func(t *testing.T, u *unit) { u.backup(t, full, child) }, transfer.Request{}, transfer.ErrChain},
		{"no such backup", nil, transfer.Request{Backup: second}, catalog.ErrNotFound},
		{"no backup at all", func(t *testing.T, u *unit) { remove(t, u, repo.SentinelKey(full), repo.SentinelKey(child)) }, transfer.Request{}, catalog.ErrNotFound},
		{"another size", func(t *testing.T, u *unit) {
			storagetest.MustPut(t, u.plain, repo.PartKey(full, "part_001.tar.lz4"), []byte("x"))
		}, transfer.Request{}, transfer.ErrConflict},
		{"another sentinel", func(t *testing.T, u *unit) { storagetest.MustPut(t, u.plain, repo.SentinelKey(child), []byte("x")) }, transfer.Request{}, transfer.ErrConflict},
		{"a foreign part", func(t *testing.T, u *unit) {
			storagetest.MustPut(t, u.plain, repo.PartKey(full, "part_009.tar.lz4"), []byte("x"))
		}, transfer.Request{}, transfer.ErrConflict},
		{"another segment", func(t *testing.T, u *unit) {
			storagetest.MustPut(t, u.plain, repo.WALKey("000000010000000000000003.lz4"), []byte("long"))
		}, transfer.Request{}, transfer.ErrConflict},
	} {
		t.Run(c.about, func(t *testing.T) {
			t.Parallel()
			u := setup(t)
			u.backup(t, full, "")
			u.backup(t, child, full)
			u.archive(t)
			if c.prepare != nil {
				c.prepare(t, u)
			}
			if _, err := u.copy(t.Context(), c.req); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if got := puts(u); len(got) != 0 {
				t.Errorf("written: %q", got)
			}
		})
	}
}

// A sentinel that makes no sense is in the way of its own backup alone.
func TestDamagedSentinel(t *testing.T) {
	t.Parallel()
	u := setup(t)
	u.backup(t, full, "")
	u.backup(t, second, "")
	u.archive(t)
	storagetest.MustPut(t, u.plainFrom, repo.SentinelKey(full), []byte("{"))
	for _, name := range []string{"", full} {
		if _, err := u.copy(t.Context(), transfer.Request{Backup: name}); err == nil || !strings.Contains(err.Error(), full) {
			t.Errorf("copy %q: %v", name, err)
		}
		if _, err := u.c.MoveBackups(t.Context(), transfer.MoveOptions{Backup: name}); err == nil || !strings.Contains(err.Error(), full) {
			t.Errorf("move %q: %v", name, err)
		}
	}
	if _, err := u.c.MoveBackups(t.Context(), transfer.MoveOptions{Backup: second}); err == nil || !strings.Contains(err.Error(), full) {
		t.Errorf("what may be a parent was moved: %v", err)
	}
	if got := puts(u); len(got) != 0 {
		t.Errorf("written: %q", got)
	}
	if _, err := u.copy(t.Context(), transfer.Request{Backup: second}); err != nil {
		t.Error(err)
	}
	if got := storagetest.Names(t, u.plain, repo.SentinelKey(second), storage.ListOptions{}); len(got) != 1 {
		t.Errorf("copied: %q", got)
	}
}

func remove(t testing.TB, u *unit, names ...string) {
	t.Helper()
	if err := u.plainFrom.Delete(t.Context(), names...); err != nil {
		t.Fatal(err)
	}
}

// A position at a segment's border belongs to the segment it ends.
func TestSelectWALAtBorders(t *testing.T) {
	t.Parallel()
	lsn := func(v pg.LSN) *pg.LSN { return &v }
	files := []transfer.Object{{Name: "wal_005/000000010000000000000003"}, {Name: "wal_005/000000010000000000000004.lzo"}, {Name: "wal_005/000000010000000000000005."}}
	for _, c := range []struct {
		start, finish pg.LSN
		want          int
	}{
		{0x3000028, 0x3000100, 1}, {0x3000028, 0x4000000, 1}, {0x3000028, 0x4000001, 2}, {0x4000000, 0x4000001, 2}, {0x4000001, 0x5000001, 2}, {0x3000028, 0x5000028, 3},
	} {
		got, err := transfer.SelectWAL(files, []transfer.Range{{Backup: full, Start: lsn(c.start), Finish: lsn(c.finish)}}, transfer.Request{SegmentSize: pg.DefaultSegmentSize})
		if err != nil || len(got) != c.want {
			t.Errorf("%s to %s: %v, %v; want %d", c.start, c.finish, got, err, c.want)
		}
	}
	for _, r := range []transfer.Range{{Backup: full}, {Backup: full, Start: lsn(5)}, {Backup: full, Start: lsn(0), Finish: lsn(5)}, {Backup: full, Start: lsn(9), Finish: lsn(5)}} {
		if _, err := transfer.SelectWAL(files, []transfer.Range{r}, transfer.Request{SegmentSize: pg.DefaultSegmentSize}); err == nil || !strings.Contains(err.Error(), "--without-history") {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// What a failed primary did not archive any more is a gap between two timelines,
// and WAL behind it is of no use to the backups before it.
func TestSelectWALGapAtPromotion(t *testing.T) {
	t.Parallel()
	lsn := func(v pg.LSN) *pg.LSN { return &v }
	for _, c := range []struct {
		name  string
		files string
		whole bool
	}{
		{"promoted within the next segment", "1:3 1:4 2:5 2:6", true},
		{"promoted within the last segment", "1:3 1:4 2:4 2:5", true},
		{"promoted twice within a segment", "1:3 1:4 3:5", true},
		{"branched off long before", "1:3 1:4 1:5 2:2 2:3", true},
		{"branched off what goes before the backup", "2:3 1:1 1:7 3:8", true},
		{"the last segments are missing", "1:3 1:4 2:6 2:7", false},
		{"missing before the third", "1:3 1:4 2:4 2:5 3:7", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var files []transfer.Object
			var backup pg.BackupName
			for _, f := range strings.Fields(c.files) {
				var tl pg.Timeline
				var n uint64
				if _, err := fmt.Sscanf(f, "%d:%d", &tl, &n); err != nil {
					t.Fatal(err)
				}
				seg := pg.SegmentAt(tl, n, pg.DefaultSegmentSize)
				if backup == "" {
					backup = pg.FullBackupName(seg)
				}
				files = append(files, transfer.Object{Name: "wal_005/" + seg.String() + ".lz4"})
			}
			_, err := transfer.SelectWAL(files, []transfer.Range{{Backup: backup, Start: lsn(0x3000028), Finish: lsn(0x3000100)}},
				transfer.Request{SegmentSize: pg.DefaultSegmentSize, History: transfer.WholeHistory})
			if (err == nil) != c.whole || err != nil && !errors.Is(err, transfer.ErrWALMissing) {
				t.Errorf("error %v, want one: %t", err, !c.whole)
			}
		})
	}
}

// Whatever fails while backups are moved, one of the storages has each of them
// whole, no storage has half a one, and the next run finishes.
func TestMoveBackupsSurvivesAnyFault(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"source", "target"} {
		for _, op := range []storagetest.Op{storagetest.Put, storagetest.Open, storagetest.List, storagetest.Stat, storagetest.Delete} {
			for _, late := range []bool{false, true} {
				t.Run(fmt.Sprint(side, " ", op, " late ", late), func(t *testing.T) {
					t.Parallel()
					for nth := 1; nth < 25; nth++ {
						u := setup(t)
						u.c.AppearChecks = 1
						u.backup(t, full, "")
						u.backup(t, child, full)
						u.backup(t, second, "")
						source := all(t, u.plainFrom)
						faulty := u.from
						if side == "target" {
							faulty = u.to
						}
						faulty.Add(storagetest.Fault{Op: op, Nth: nth, Late: late})
						_, _ = u.c.MoveBackups(t.Context(), transfer.MoveOptions{}) // its end does not matter here
						here, there := complete(t, u.plainFrom, source), complete(t, u.plain, source)
						for _, b := range []string{full, child, second} {
							if !slices.Contains(here, b) && !slices.Contains(there, b) {
								t.Fatalf("fault %d: %s is in neither storage", nth, b)
							}
						}
						faulty.Clear()
						res, err := u.c.MoveBackups(t.Context(), transfer.MoveOptions{})
						if err = errors.Join(err, res.Err()); err != nil {
							t.Fatalf("fault %d, then again: %v", nth, err)
						}
						if got := complete(t, u.plain, source); len(got) != 3 {
							t.Fatalf("fault %d, then again: %q", nth, got)
						}
					}
				})
			}
		}
	}
}

func TestMoveBackupsOrder(t *testing.T) {
	t.Parallel()
	u := setup(t)
	u.backup(t, full, "")
	u.backup(t, child, full)
	unfinished := "basebackups_005/base_00000001000000000000000B/tar_partitions/part_001.tar.lz4"
	storagetest.MustPut(t, u.plainFrom, unfinished, nil)
	source := all(t, u.plainFrom)
	res, err := u.c.MoveBackups(t.Context(), transfer.MoveOptions{})
	if err != nil || res.Err() != nil || res.Copied != 12 {
		t.Fatalf("%+v, %v", res, err)
	}
	order := puts(u)
	if got := order[10:]; !slices.Equal(got, []string{repo.SentinelKey(full), repo.SentinelKey(child)}) {
		t.Errorf("last puts %q", got)
	}
	var removed []string
	for _, c := range u.from.Calls() {
		if c.Op == storagetest.Delete {
			removed = append(removed, c.Names...)
		}
	}
	if len(removed) != 12 || removed[0] != repo.SentinelKey(child) || removed[1] != repo.SentinelKey(full) {
		t.Errorf("removed %q", removed)
	}
	delete(source, unfinished)
	if got := all(t, u.plain); !maps.Equal(got, source) {
		t.Errorf("target %v", got)
	}
	if got := storagetest.Names(t, u.plainFrom, "", storage.ListOptions{}); !slices.Equal(got, []string{unfinished}) {
		t.Errorf("source %q", got)
	}
}

func TestMoveBackupsLimits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		about   string
		opt     transfer.MoveOptions
		moved   []string
		wantErr error
	}{
		{"all", transfer.MoveOptions{}, []string{full, child, second}, nil},
		{"one backup, and a chain does not fit", transfer.MoveOptions{MaxBackups: 1}, []string{second}, nil},
		{"the chain", transfer.MoveOptions{MaxBackups: 2}, []string{full, child}, nil},
		{"files", transfer.MoveOptions{MaxFiles: 11}, []string{second}, nil},
		{"too few files", transfer.MoveOptions{MaxFiles: 5}, nil, nil},
		{"one by name", transfer.MoveOptions{Backup: second}, []string{second}, nil},
		{"the latest", transfer.MoveOptions{Backup: "LATEST"}, []string{second}, nil},
		{"a parent", transfer.MoveOptions{Backup: full}, nil, transfer.ErrChain},
		{"a copy of a parent", transfer.MoveOptions{Backup: full, Preserve: true}, []string{full}, nil},
		{"an increment", transfer.MoveOptions{Backup: child}, nil, transfer.ErrChain},
		{"unknown", transfer.MoveOptions{Backup: grand}, nil, catalog.ErrNotFound},
	} {
		t.Run(c.about, func(t *testing.T) {
			t.Parallel()
			u := setup(t)
			u.backup(t, full, "")
			u.backup(t, child, full)
			u.backup(t, second, "")
			source := all(t, u.plainFrom)
			res, err := u.c.MoveBackups(t.Context(), c.opt)
			if !errors.Is(err, c.wantErr) || res.Err() != nil {
				t.Fatalf("%+v, %v", res, err)
			}
			if got := complete(t, u.plain, source); !slices.Equal(got, c.moved) {
				t.Errorf("moved %q, want %q", got, c.moved)
			}
			left := complete(t, u.plainFrom, source)
			if want := 3 - len(c.moved); !c.opt.Preserve && len(left) != want || c.opt.Preserve && len(left) != 3 {
				t.Errorf("left %q", left)
			}
		})
	}
}

// With Overwrite, a move onto itself would lose everything.
func TestMoveOntoItself(t *testing.T) {
	t.Parallel()
	for _, overwrite := range []bool{false, true} {
		u := setup(t)
		u.backup(t, full, "")
		u.archive(t)
		want := all(t, u.plainFrom)
		u.c.To, u.c.Overwrite = u.from, overwrite
		_, files := u.c.MoveFiles(t.Context(), transfer.FilesOptions{})
		_, backups := u.c.MoveBackups(t.Context(), transfer.MoveOptions{})
		if errors.Is(files, transfer.ErrSameStorage) != overwrite || errors.Is(backups, transfer.ErrSameStorage) != overwrite {
			t.Errorf("overwrite %v: %v, %v", overwrite, files, backups)
		}
		if got := all(t, u.plainFrom); !maps.Equal(got, want) {
			t.Errorf("overwrite %v: left %v", overwrite, slices.Sorted(maps.Keys(got)))
		}
	}
}

// What an interrupted run or another backup of that name left is not mixed in.
func TestMoveBackupsClearsItsPlace(t *testing.T) {
	t.Parallel()
	u := setup(t)
	u.backup(t, full, "")
	source := all(t, u.plainFrom)
	part := repo.PartKey(full, "part_001.tar.lz4")
	same := repo.PartKey(full, "part_002.tar.lz4")
	storagetest.MustPut(t, u.plain, part, bytes.Repeat([]byte("x"), len(source[part])))
	storagetest.MustPut(t, u.plain, same, []byte(source[same]))
	storagetest.MustPut(t, u.plain, repo.PartKey(full, "part_007.tar.lz4"), []byte("stale"))
	if res, err := u.c.MoveBackups(t.Context(), transfer.MoveOptions{}); err != nil || res.Err() != nil {
		t.Fatal(err, res.Err())
	}
	if got := all(t, u.plain); !maps.Equal(got, source) {
		t.Errorf("target %v", got)
	}
	if slices.Contains(puts(u), same) {
		t.Error("equal bytes were sent again")
	}

	// A whole backup stays, unless it is to be replaced.
	u.backup(t, full, "")
	storagetest.MustPut(t, u.plain, part, []byte("other"))
	if res, err := u.c.MoveBackups(t.Context(), transfer.MoveOptions{}); err != nil || res.Skipped != 1 || res.Copied != 0 {
		t.Errorf("%+v, %v", res, err)
	}
	u.c.Overwrite = true
	if res, err := u.c.MoveBackups(t.Context(), transfer.MoveOptions{}); err != nil || res.Err() != nil {
		t.Fatal(err, res.Err())
	}
	if got := all(t, u.plain); !maps.Equal(got, source) {
		t.Errorf("replaced: %v", got)
	}
}

func TestMoveFiles(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		about     string
		overwrite bool
		opt       transfer.FilesOptions
		faults    []storagetest.Fault
		copied    int
		skipped   int
		failed    int
		left      []string
	}{
		{about: "all", opt: transfer.FilesOptions{Prefix: "a/"}, copied: 2, skipped: 1, left: []string{"a/2", "b"}},
		{about: "prefix", opt: transfer.FilesOptions{Prefix: "a/3"}, copied: 1, left: []string{"a/1", "a/2", "b"}},
		{about: "overwrite", overwrite: true, copied: 4},
		{about: "preserve", opt: transfer.FilesOptions{Preserve: true}, copied: 3, skipped: 1, left: []string{"a/1", "a/2", "a/3", "b"}},
		{about: "at most two", opt: transfer.FilesOptions{MaxFiles: 2}, copied: 2, skipped: 1, left: []string{"a/2", "b"}},
		{about: "one fails", faults: []storagetest.Fault{{Op: storagetest.Put, Name: "a/1"}}, copied: 2, skipped: 1, failed: 1, left: []string{"a/1", "a/2"}},
		{about: "answer lost", faults: []storagetest.Fault{{Op: storagetest.Put, Name: "a/1", Late: true}}, copied: 2, skipped: 1, failed: 1, left: []string{"a/1", "a/2"}},
		{about: "never seen", faults: []storagetest.Fault{{Op: storagetest.Stat, Name: "a/1", Err: storage.ErrNotExist}}, copied: 2, skipped: 1, failed: 1, left: []string{"a/1", "a/2"}},
		{about: "seen late", faults: []storagetest.Fault{{Op: storagetest.Stat, Name: "a/1", Nth: 1, Err: storage.ErrNotExist}}, copied: 3, skipped: 1, left: []string{"a/2"}},
	} {
		t.Run(c.about, func(t *testing.T) {
			t.Parallel()
			u := setup(t)
			u.c.FailFast, u.c.Overwrite, u.c.AppearChecks, u.c.AppearInterval = false, c.overwrite, 2, 1
			for _, name := range []string{"a/1", "a/2", "a/3", "b"} {
				storagetest.MustPut(t, u.plainFrom, name, []byte(name))
			}
			storagetest.MustPut(t, u.plain, "a/2", []byte("other"))
			u.to.Add(c.faults...)
			res, err := u.c.MoveFiles(t.Context(), c.opt)
			if err != nil || res.Copied != c.copied || res.Skipped != c.skipped || res.Failed != c.failed || (res.Err() != nil) != (c.failed > 0) {
				t.Errorf("%+v, %v", res, err)
			}
			if got := storagetest.Names(t, u.plainFrom, "", storage.ListOptions{}); !slices.Equal(got, c.left) {
				t.Errorf("left %q, want %q", got, c.left)
			}
		})
	}
}

// A storage that tries again does so with a body from its start.
func TestCopyWithRetries(t *testing.T) {
	t.Parallel()
	u := setup(t)
	u.backup(t, full, "")
	u.archive(t)
	noWait := retry.Options{Wait: func(context.Context, time.Duration) error { return nil }}
	u.to.Add(
		storagetest.Fault{Op: storagetest.Put, Name: repo.PartKey(full, "part_001.tar.lz4"), Nth: 1, Bytes: 5},
		storagetest.Fault{Op: storagetest.Put, Name: repo.PartKey(full, "part_002.tar.lz4"), Nth: 1, Late: true},
	)
	u.c.To = retry.New(u.to, noWait)
	if _, err := u.copy(t.Context(), transfer.Request{}); err != nil {
		t.Fatal(err)
	}
	source := all(t, u.plainFrom)
	for name, content := range all(t, u.plain) {
		if source[name] != content {
			t.Errorf("%s is %q", name, content)
		}
	}
}

// A source that changes its length meanwhile is not stored.
func TestWrongLengthIsNotStored(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{3, 5} {
		for _, recode := range []bool{false, true} {
			u := setup(t)
			storagetest.MustPut(t, u.plainFrom, "x", []byte("1234"))
			if recode {
				u.c.Recode = func(_ context.Context, _ string, r io.Reader) (io.ReadCloser, error) {
					return transfer.Through(r, func(w io.Writer) (transfer.Stage, error) { return &upper{w: w}, nil }), nil
				}
			}
			if res := u.c.Copy(t.Context(), []transfer.Object{{Name: "x", Size: size}}, nil); res.Err() == nil {
				t.Errorf("listed with %d bytes: no error", size)
			}
			if got := all(t, u.plain); len(got) != 0 {
				t.Errorf("stored %v", got)
			}
		}
	}
}

func TestCopyPrefixRecodes(t *testing.T) {
	t.Parallel()
	u := setup(t)
	for _, name := range []string{"a/x", "a/y", "b"} {
		storagetest.MustPut(t, u.plainFrom, name, []byte(name))
	}
	storagetest.MustPut(t, u.plain, "a/x", []byte("old"))
	u.c.Overwrite = true
	u.c.Recode = func(_ context.Context, _ string, r io.Reader) (io.ReadCloser, error) {
		return transfer.Through(r, func(w io.Writer) (transfer.Stage, error) { return &upper{w: w}, nil }), nil
	}
	if res, err := u.c.CopyPrefix(t.Context(), "a"); err != nil || res.Err() != nil || res.Copied != 2 {
		t.Fatalf("%+v, %v", res, err)
	}
	if got, want := all(t, u.plain), map[string]string{"a/x": "A/X.", "a/y": "A/Y."}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if res, err := u.c.CopyPrefix(t.Context(), "nothing"); err != nil || res.Err() != nil || res.Copied != 0 {
		t.Errorf("no match: %+v, %v", res, err)
	}
}

// upper is a stage whose stream ends in a dot.
type upper struct {
	w       io.Writer
	aborted bool
}

func (u *upper) Write(p []byte) (int, error) {
	if _, err := u.w.Write(bytes.ToUpper(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}
func (u *upper) Close() error { _, err := u.w.Write([]byte(".")); return err }
func (u *upper) Abort()       { u.aborted = true }

func TestThrough(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		text := rapid.SliceOfN(rapid.ByteRange(0, 127), 0, 100_000).Draw(rt, "text")
		broken := rapid.Bool().Draw(rt, "broken")
		var src io.Reader = bytes.NewReader(text)
		if broken {
			src = io.MultiReader(src, failing{})
		}
		stage := &upper{}
		r := transfer.Through(src, func(w io.Writer) (transfer.Stage, error) { stage.w = w; return stage, nil })
		if rapid.Bool().Draw(rt, "close early") {
			_, _ = io.CopyN(io.Discard, r, int64(rapid.IntRange(0, 50).Draw(rt, "read")))
			if err := r.Close(); err != nil {
				rt.Fatal(err)
			}
			return
		}
		got, err := io.ReadAll(r)
		if broken != errors.Is(err, errBroken) || broken != stage.aborted {
			rt.Fatalf("%v, aborted %v", err, stage.aborted)
		}
		if want := append(bytes.ToUpper(text), '.'); !broken && !bytes.Equal(got, want) {
			rt.Fatalf("%d bytes, want %d", len(got), len(want))
		}
		if err := r.Close(); err != nil {
			rt.Fatal(err)
		}
	})
	r := transfer.Through(strings.NewReader("x"), func(io.Writer) (transfer.Stage, error) { return nil, errBroken })
	if _, err := io.ReadAll(r); !errors.Is(err, errBroken) {
		t.Error(err)
	}
	r.Close()
}

var errBroken = errors.New("broken")

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errBroken }

func TestCancel(t *testing.T) {
	t.Parallel()
	u := setup(t)
	u.backup(t, full, "")
	u.archive(t)
	ctx, cancel := context.WithCancel(t.Context())
	plan, err := transfer.PlanCopy(ctx, u.from, u.to, transfer.Request{SegmentSize: pg.DefaultSegmentSize})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if res := u.c.Carry(ctx, plan); !errors.Is(res.Err(), context.Canceled) {
		t.Errorf("%+v", res)
	}
	if got := complete(t, u.plain, all(t, u.plainFrom)); len(got) != 0 {
		t.Errorf("appeared: %q", got)
	}
}

// shuffled is a store that carries out one deletion as S3 may when the answer
// is lost: some of the names, and not the first.
type shuffled struct {
	storage.Bucket
	left int
}

var errShuffled = errors.New("the connection broke")

func (s *shuffled) Delete(ctx context.Context, names ...string) error {
	if s.left--; s.left != 0 || len(names) == 1 {
		return s.Bucket.Delete(ctx, names...)
	}
	return errors.Join(s.Bucket.Delete(ctx, names[1:]...), errShuffled)
}

// A deletion has no order within one call: a sentinel must not share one with
// what it speaks for, nor with that of a backup which is built on its own.
func TestRemoveHasNoOrderWithinACall(t *testing.T) {
	t.Parallel()
	for nth := 1; nth < 6; nth++ {
		u := setup(t)
		u.backup(t, full, "")
		u.backup(t, child, full)
		source := all(t, u.plainFrom)
		u.c.From = &shuffled{u.plainFrom, nth}
		if res, err := u.c.MoveBackups(t.Context(), transfer.MoveOptions{}); err != nil {
			t.Fatal(res, err)
		}
		complete(t, u.plainFrom, source)
	}
}

func TestRemoveTakesSentinelsFirst(t *testing.T) {
	t.Parallel()
	u := setup(t)
	u.backup(t, full, "")
	names := storagetest.Names(t, u.plainFrom, "", storage.ListOptions{})
	if err := transfer.Remove(t.Context(), u.from, names); err != nil {
		t.Fatal(err)
	}
	var calls [][]string
	for _, c := range u.from.Calls() {
		if c.Op == storagetest.Delete {
			calls = append(calls, c.Names)
		}
	}
	if len(calls) != 2 || !slices.Equal(calls[0], []string{repo.SentinelKey(full)}) || len(calls[1]) != len(names)-1 {
		t.Errorf("removed %q", calls)
	}
}
