package retain

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
)

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

func at(hours int) time.Time { return epoch.Add(time.Duration(hours) * time.Hour) }

const size = pg.DefaultSegmentSize

func segment(tl pg.Timeline, n int) pg.SegmentName { return pg.SegmentAt(tl, uint64(n), size) }

func lsn(n, offset int) pg.LSN { return pg.LSN(n)*pg.LSN(size) + pg.LSN(offset) }

// store is what a test puts into storages.
type store struct {
	objects   map[string]map[string]time.Time // storage, key
	details   map[catalog.BackupID]catalog.Details
	histories []wal.History
}

func newStore() *store {
	return &store{objects: map[string]map[string]time.Time{}, details: map[catalog.BackupID]catalog.Details{}}
}

func (s *store) put(storage, key string, hours int) {
	if s.objects[storage] == nil {
		s.objects[storage] = map[string]time.Time{}
	}
	s.objects[storage][key] = at(hours)
}

// backup adds a backup of tl that starts in segment n and ends in the same; it
// is finished that hour.
func (s *store) backup(storage string, tl pg.Timeline, n int, parent pg.BackupName, permanent bool, hours int) pg.BackupName {
	seg := segment(tl, n)
	name := pg.FullBackupName(seg)
	d := catalog.Details{
		Read: true, Permanent: permanent, StartLSN: lsn(n, 0x28), FinishLSN: lsn(n, 0x100),
		StartTime: at(hours).Add(-time.Minute), FinishTime: at(hours),
	}
	if parent != "" {
		name = pg.IncrementName(seg, parent)
		d.Increment = &manifest.Increment{Parent: parent}
	}
	id := catalog.BackupID{Storage: storage, Folder: catalog.BaseBackups, Name: name}
	s.details[id] = d
	for _, o := range []string{id.Key(catalog.SentinelObject, ""), id.Key(catalog.MetadataObject, ""), id.Key(catalog.FilesObject, ""), id.Key(catalog.PartObject, "part_001.tar.lz4")} {
		s.put(storage, o, hours)
	}
	return name
}

func (s *store) leftover(storage string, name pg.BackupName, hours int) {
	id := catalog.BackupID{Storage: storage, Folder: catalog.BaseBackups, Name: name}
	s.put(storage, id.Key(catalog.PartObject, "part_001.tar.lz4"), hours)
}

func (s *store) wal(storage string, tl pg.Timeline, first, last, hours int) {
	for n := first; n <= last; n++ {
		s.put(storage, string(catalog.WALFolder)+segment(tl, n).String()+".lz4", hours)
	}
}

func (s *store) history(storage string, h wal.History, hours int) {
	s.histories = append(s.histories, h)
	s.put(storage, string(catalog.WALFolder)+h.Timeline.HistoryFile()+".lz4", hours)
}

func (s *store) inventory(t interface{ Fatal(...any) }) *catalog.Inventory {
	inv, err := catalog.NewInventory(size)
	if err != nil {
		t.Fatal(err)
	}
	for storage, objects := range s.objects {
		for key, modified := range objects {
			inv.Add(storage, key, modified)
		}
	}
	for id, d := range s.details {
		inv.Describe(id, d)
	}
	for _, h := range s.histories {
		inv.AddHistory(h)
	}
	return inv
}

func (s *store) plan(t *testing.T, p Policy, o Options, now time.Time) *Plan {
	t.Helper()
	pl, err := NewPlan(s.inventory(t), p, o, now)
	if err != nil {
		t.Fatalf("%+v: %v", p, err)
	}
	return pl
}

// gone tells in short what a plan deletes: backups by segment, WAL by range.
func gone(pl *Plan) string {
	var out []string
	for _, b := range pl.Backups {
		if b.Delete {
			out = append(out, short(b))
		}
	}
	for _, w := range pl.WAL {
		if w.Delete {
			out = append(out, fmt.Sprintf("wal%d:%X-%X", w.First.Timeline, w.First.Number(size), w.Last.Number(size)))
		}
	}
	for _, h := range pl.Histories {
		if h.Delete {
			out = append(out, fmt.Sprintf("history%d", h.File.Timeline))
		}
	}
	return strings.Join(out, " ")
}

func short(b BackupDecision) string {
	s := "F"
	if b.Backup.ID.Name.IsIncrement() {
		s = "D"
	}
	if !b.Backup.Listed {
		s = "L"
	}
	s += fmt.Sprintf("%X", b.Backup.Segment.Number(size))
	if b.Backup.ID.Storage != "" {
		s += "@" + b.Backup.ID.Storage
	}
	return s
}

// referenceChain is F54 <- D56 <- D58, F5A <- D5C <- D5E with WAL 53 to 60.
func referenceChain() *store {
	s := newStore()
	f := s.backup("", 1, 0x54, "", false, 1)
	d := s.backup("", 1, 0x56, f, false, 2)
	s.backup("", 1, 0x58, d, false, 3)
	f = s.backup("", 1, 0x5A, "", false, 4)
	d = s.backup("", 1, 0x5C, f, false, 5)
	s.backup("", 1, 0x5E, d, false, 6)
	s.wal("", 1, 0x53, 0x60, 6)
	return s
}

func TestReferenceChain(t *testing.T) {
	t.Parallel()
	const secondFamily = "F54 D56 D58 wal1:53-59"
	name := func(prefix string) string {
		for id := range referenceChain().details {
			if strings.HasPrefix(string(id.Name), "base_0000000100000000000000"+prefix) {
				return string(id.Name)
			}
		}
		t.Fatal(prefix)
		return ""
	}
	for _, tc := range []struct {
		command string
		want    string
		err     error
	}{
		{"retain 1", "", ErrIncrement},
		{"retain 2", "", ErrIncrement},
		{"retain 4", "", ErrIncrement},
		{"retain 3", secondFamily, nil},
		{"retain FULL 1", secondFamily, nil},
		{"retain FIND_FULL 1", secondFamily, nil},
		{"retain FIND_FULL 2", secondFamily, nil},
		{"before FIND_FULL " + name("5C"), secondFamily, nil},
		{"before " + name("5A"), secondFamily, nil},
		{"before base_00000001000000000000005A", secondFamily, nil},
		{"retain FULL 2", "wal1:53-53", nil},
		{"retain FIND_FULL 4", "wal1:53-53", nil},
		{"retain 7", "", nil},
		{"before " + name("5C"), "", ErrIncrement},
		{"before 2026-11-01T03:30:00Z", secondFamily, nil},
		{"before 2026-11-01T04:30:00+00:00", "", ErrIncrement},
		{"before FIND_FULL 2026-11-01T04:30:00Z", secondFamily, nil},
		{"before 2026-11-01T08:00:00+01:00", "", nil},
		{"before 2027-11-01T08:00:00Z", "", ErrFuture},
		{"before base_0000000100000000000000FF", "", catalog.ErrNotFound},
		{"before base_000000010000000", "", catalog.ErrAmbiguous},
		{"target " + name("56"), "D56 D58", nil},
		{"target FIND_FULL " + name("58"), "F54 D56 D58", nil},
		{"target " + name("5A"), "F5A D5C D5E", nil},
		{"target LATEST", "D5E", nil},
		{"target base_0000000100000000000000FF", "", catalog.ErrNotFound},
		{"garbage", "wal1:53-53", nil},
		{"garbage ARCHIVES", "wal1:53-53", nil},
		{"garbage BACKUPS", "", nil},
		{"everything", "F54 D56 D58 F5A D5C D5E wal1:53-60", nil},
	} {
		t.Run(tc.command, func(t *testing.T) {
			t.Parallel()
			words := strings.Fields(tc.command)
			p, err := Parse(words[0], words[1:], Flags{})
			if err != nil {
				t.Fatal(err)
			}
			pl, err := NewPlan(referenceChain().inventory(t), p, Options{}, at(7))
			if !errors.Is(err, tc.err) || (err == nil) != (tc.err == nil) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			if err != nil {
				return
			}
			if got := gone(pl); got != tc.want {
				t.Errorf("deletes %q, want %q", got, tc.want)
			}
			if (pl.Note == "") != (tc.want != "") {
				t.Errorf("note %q", pl.Note)
			}
			for _, b := range pl.Backups {
				if b.Reason.Code == "" || b.Reason.Text == "" {
					t.Errorf("%s without a reason", b.Backup.ID)
				}
			}
		})
	}
}

// TestGarbageScopes: WAL is garbage below all that is kept; what a backup that
// failed has left, once nobody can be making it.
func TestGarbageScopes(t *testing.T) {
	t.Parallel()
	const now, later = 9, 9 + 7*24
	for _, tc := range []struct {
		command string
		hour    int
		want    string
	}{
		{"garbage", now, "L52 wal1:53-53"}, {"garbage ARCHIVES", now, "wal1:53-53"}, {"garbage BACKUPS", now, "L52"},
		{"garbage", later, "L52 L57 wal1:53-53"}, {"garbage BACKUPS", later, "L52 L57"},
	} {
		s := referenceChain()
		s.leftover("", "base_000000010000000000000052", -7*24)
		s.leftover("", "base_000000010000000000000057", 2)
		s.leftover("", "base_000000010000000000000061", 8) // newer than every backup
		words := strings.Fields(tc.command)
		p, err := Parse(words[0], words[1:], Flags{})
		if err != nil {
			t.Fatal(err)
		}
		if got := gone(s.plan(t, p, Options{}, at(tc.hour))); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.command, got, tc.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		command string
		flags   Flags
		want    error
	}{
		{"retain", Flags{}, ErrUsage},
		{"retain 0", Flags{}, ErrCount},
		{"retain FULL -1", Flags{}, ErrCount},
		{"retain many", Flags{}, ErrUsage},
		{"retain SOME 3", Flags{}, ErrUsage},
		{"retain FULL 3 4", Flags{}, ErrUsage},
		{"retain 3", Flags{After: "2026-11-01T00:00:00"}, ErrTime},
		{"retain 3", Flags{After: "2026-11-01"}, ErrTime},
		{"retain 3", Flags{After: "LATEST"}, ErrLatest},
		{"retain 3", Flags{Window: "14d"}, ErrModifiers},
		{"retain", Flags{Window: "0d"}, ErrUsage},
		{"retain", Flags{Window: "-3h"}, ErrUsage},
		{"retain", Flags{Window: "65535w"}, ErrUsage},
		{"before", Flags{}, ErrUsage},
		{"before FULL", Flags{}, ErrModifiers},
		{"before LATEST", Flags{}, ErrLatest},
		{"before 2026-11-01T00:00:00", Flags{}, ErrTime},
		{"before base_1", Flags{After: "base_2"}, ErrModifiers},
		{"target", Flags{}, ErrUsage},
		{"target base_1", Flags{UserData: `"x"`}, ErrModifiers},
		{"target", Flags{UserData: `{`}, ErrUsage},
		{"garbage SOME", Flags{}, ErrModifiers},
		{"everything now", Flags{}, ErrUsage},
		{"all", Flags{}, ErrUsage},
	} {
		words := strings.Fields(tc.command)
		if _, err := Parse(words[0], words[1:], tc.flags); !errors.Is(err, tc.want) {
			t.Errorf("%s %+v: %v, want %v", tc.command, tc.flags, err, tc.want)
		}
	}
	for s, want := range map[string]time.Duration{"14d": 14 * 24 * time.Hour, "2w": 14 * 24 * time.Hour, "36h": 36 * time.Hour} {
		if got, err := ParseWindow(s); err != nil || got != want {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
}

func TestAfterKeepsAllMadeAfter(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		p    Retain
		want string
	}{
		// The limit falls between D56 and D58: D58 stays, and so its chain.
		{Retain{Count: 1, Mode: Full, After: Limit{Time: at(2).Add(time.Minute)}}, "wal1:53-53"},
		{Retain{Count: 1, Mode: FindFull, After: Limit{Name: "base_000000010000000000000058"}}, "wal1:53-53"},
		{Retain{Count: 1, Mode: Full, After: Limit{Time: at(4)}}, "F54 D56 D58 wal1:53-59"},
		// Fewer backups than asked for: the limit alone deletes none.
		{Retain{Count: 3, Mode: Full, After: Limit{Time: at(4)}}, ""},
		{Retain{Count: 1, Mode: Full, After: Limit{Time: at(6).Add(time.Minute)}}, "F54 D56 D58 wal1:53-59"},
	} {
		if got := gone(referenceChain().plan(t, tc.p, Options{}, at(7))); got != tc.want {
			t.Errorf("%+v: deletes %q, want %q", tc.p, got, tc.want)
		}
	}
}

func TestPermanent(t *testing.T) {
	t.Parallel()
	s := newStore()
	f1 := s.backup("a", 1, 2, "", true, 1)
	d1 := s.backup("a", 1, 4, f1, true, 2)
	s.backup("a", 1, 6, d1, false, 3)
	s.backup("a", 1, 8, "", false, 4)
	s.backup("b", 1, 2, "", false, 1) // the same name, not permanent
	s.backup("a", 1, 0xA, "", false, 5)
	s.wal("a", 1, 1, 0xC, 5)
	s.put("a", string(catalog.WALFolder)+segment(1, 2).String()+".00000028.backup.lz4", 1)
	s.put("a", "wal_005/00000001000000000000000.json", 5)

	if got, want := gone(s.plan(t, Retain{Count: 1}, Options{}, at(6))), "D6@a F8@a F2@b wal1:1-1 wal1:3-3 wal1:5-9"; got != want {
		t.Errorf("retain: %q, want %q", got, want)
	}
	_, err := NewPlan(s.inventory(t), Target{Name: string(d1), Dependants: true}, Options{}, at(6))
	if !errors.Is(err, ErrPermanent) {
		t.Errorf("target: %v", err)
	}
	_, err = NewPlan(s.inventory(t), Everything{}, Options{}, at(6))
	if !errors.Is(err, ErrPermanent) {
		t.Errorf("everything: %v", err)
	}
	pl := s.plan(t, Target{Name: string(f1), Dependants: true}, Options{}, at(6))
	if got := gone(pl); got != "F2@b" || len(pl.Warnings) != 1 {
		t.Errorf("target with a permanent copy: %q, warnings %q", got, pl.Warnings)
	}
	pl = s.plan(t, Everything{Force: true}, Options{}, at(6))
	var n uint64
	for range pl.Steps() {
		n++
	}
	var sum uint64
	for _, c := range pl.Objects() {
		sum += c
	}
	if want := uint64(len(s.objects["a"]) + len(s.objects["b"])); n != want || sum != want {
		t.Errorf("everything FORCE: %d steps, %d counted, %d objects", n, sum, want)
	}
}

func TestTargetDependants(t *testing.T) {
	t.Parallel()
	s := referenceChain()
	_, err := NewPlan(s.inventory(t), Target{Name: "base_00000001000000000000005A"}, Options{}, at(7))
	if !errors.Is(err, ErrDependants) {
		t.Errorf("%v", err)
	}
	// An increment on top of it is being made.
	s.leftover("", pg.IncrementName(segment(1, 0x60), "base_00000001000000000000005A"), 7)
	_, err = NewPlan(s.inventory(t), Target{Name: "base_00000001000000000000005A", Dependants: true}, Options{}, at(7))
	if !errors.Is(err, ErrInUse) {
		t.Errorf("%v", err)
	}
}

func TestInProgressAndForeign(t *testing.T) {
	t.Parallel()
	s := referenceChain()
	s.leftover("", "base_000000010000000000000052", 6)                             // young, though older than all by name
	s.leftover("", pg.IncrementName(segment(1, 0x61), pg.BackupName("base_x")), 8) // newest
	s.wal("", 1, 0x50, 0x52, 0)
	for _, k := range []string{
		"notes/base_000000010000000000000001.txt", "basebackups_005/base_000000010000000000000001/README", "wal_005/000000010000000000000001.txt",
		"wal_005/archive_status", "basebackups_005/stream_1_backup_stop_sentinel.json", "segments_005/000000010000000000000001.lz4",
	} {
		s.put("", k, -100)
	}
	p := Retain{Count: 1, Mode: Full}
	pl := s.plan(t, p, Options{}, at(9))
	if got, want := gone(pl), "F54 D56 D58 wal1:50-51"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if pl.Foreign != 6 {
		t.Errorf("%d foreign objects", pl.Foreign)
	}
	// A week later nobody makes the first; the last is still the newest.
	if got, want := gone(s.plan(t, p, Options{}, at(9+7*24))), "L52 F54 D56 D58 wal1:50-59"; got != want {
		t.Errorf("aged: %q, want %q", got, want)
	}
	lease := Options{Leases: []Lease{{ID: catalog.BackupID{Name: "base_000000010000000000000052"}, Holder: "host a"}, {ID: catalog.BackupID{Name: "base_000000010000000000000051"}, Holder: "b"}}}
	if got, want := gone(s.plan(t, p, lease, at(9+7*24))), "F54 D56 D58 wal1:50-50"; got != want {
		t.Errorf("leased: %q, want %q", got, want)
	}
	for _, k := range steps(s.plan(t, Everything{Force: true}, Options{}, at(9))) {
		if strings.Contains(k, "notes/") || strings.HasSuffix(k, "README") || strings.HasSuffix(k, ".txt") {
			t.Errorf("everything deletes %s", k)
		}
	}
}

func steps(pl *Plan) (keys []string) {
	for s := range pl.Steps() {
		keys = append(keys, s.Storage+"|"+s.Key)
	}
	return keys
}

// branches is timeline 1 with WAL 1 to 0x30, timeline 2 from 0x20 on, and
// timeline 3, branched off timeline 1 at 0x10 by a recovery.
func branches() *store {
	s := newStore()
	s.wal("", 1, 1, 0x30, 1)
	s.wal("", 2, 0x20, 0x40, 2)
	s.wal("", 3, 0x10, 0x18, 3)
	s.history("", wal.History{Timeline: 2, Switches: []wal.Switch{{Timeline: 1, LSN: lsn(0x20, 0x100)}}}, 1)
	s.history("", wal.History{Timeline: 3, Switches: []wal.Switch{{Timeline: 1, LSN: lsn(0x10, 0x100)}}}, 1)
	return s
}

func TestTimelines(t *testing.T) {
	t.Parallel()
	const later = 24 * 30
	t.Run("a kept backup holds each timeline it leads to", func(t *testing.T) {
		t.Parallel()
		s := branches()
		s.backup("", 1, 8, "", false, 1)
		s.backup("", 2, 0x28, "", false, 2)
		if got, want := gone(s.plan(t, Retain{Count: 2}, Options{}, at(later))), "wal1:1-7"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
	t.Run("the segment of the switch stays on the ancestor", func(t *testing.T) {
		t.Parallel()
		s := branches()
		s.backup("", 1, 8, "", false, 1)
		s.backup("", 2, 0x20, "", false, 2)
		// Timeline 3 is the cluster's and has no backup yet.
		pl := s.plan(t, Retain{Count: 1}, Options{}, at(later))
		if got, want := gone(pl), "F8 wal1:1-1F wal1:21-30"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		// The tail of timeline 1 is archived still.
		if got, want := gone(s.plan(t, Retain{Count: 1}, Options{}, at(4))), "F8 wal1:1-1F"; got != want {
			t.Errorf("not quiet: %q, want %q", got, want)
		}
	})
	t.Run("a branch that was given up goes, the current one stays", func(t *testing.T) {
		t.Parallel()
		s := branches()
		s.backup("", 2, 0x28, "", false, 2)
		if got, want := gone(s.plan(t, Garbage{}, Options{Current: 2}, at(later))), "wal1:1-27 wal1:28-30 wal2:20-27 wal3:10-18"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
	t.Run("without histories every higher timeline may be reached", func(t *testing.T) {
		t.Parallel()
		s := branches()
		s.histories = nil
		s.backup("", 1, 0x28, "", false, 1)
		if got, want := gone(s.plan(t, Garbage{}, Options{}, at(later))), "wal1:1-27 wal2:20-27"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
	t.Run("history files go below all that is kept", func(t *testing.T) {
		t.Parallel()
		s := branches()
		s.history("", wal.History{Timeline: 4, Switches: []wal.Switch{{Timeline: 1, LSN: lsn(0x20, 0x100)}, {Timeline: 2, LSN: lsn(0x40, 5)}}}, 1)
		s.wal("", 4, 0x40, 0x50, 2)
		s.backup("", 4, 0x48, "", false, 2)
		if got, want := gone(s.plan(t, Garbage{}, Options{}, at(later))), "wal1:1-30 wal2:20-40 wal3:10-18 wal4:40-47 history2 history3"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		// A kept backup of timeline 2 makes recovery probe 3, then 4.
		s.backup("", 2, 0x28, "", true, 2)
		if got, want := gone(s.plan(t, Garbage{}, Options{}, at(later))), "wal1:1-30 wal2:20-27 wal2:29-40 wal3:10-18 wal4:40-47"; got != want {
			t.Errorf("permanent: %q, want %q", got, want)
		}
	})
}

func TestWindow(t *testing.T) {
	t.Parallel()
	const day = 24
	s := newStore()
	for d := 1; d <= 10; d++ {
		s.backup("", 1, d*0x10, "", false, d*day)
	}
	s.wal("", 1, 1, 0xB0, 10*day)
	now := at(11 * day)
	week := Window{Length: 7 * day * time.Hour}
	if got, want := gone(s.plan(t, week, Options{}, now)), "F10 F20 F30 wal1:1-3F"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	// The base has lost WAL that makes it consistent: the one before serves.
	delete(s.objects[""], "wal_005/"+segment(1, 0x40).String()+".lz4")
	if got, want := gone(s.plan(t, week, Options{}, now)), "F10 F20 F40 wal1:1-2F"; got != want {
		t.Errorf("gap: %q, want %q", got, want)
	}
	if pl := s.plan(t, Window{Length: 60 * day * time.Hour}, Options{}, now); gone(pl) != "" || pl.Note == "" {
		t.Errorf("longer than the history: %q %q", gone(pl), pl.Note)
	}
	// A host with a clock that is wrong by a year makes nothing old.
	for id, d := range s.details {
		d.FinishTime = d.FinishTime.AddDate(1, 0, 0)
		s.details[id] = d
	}
	if got := gone(s.plan(t, week, Options{}, now)); got != "" {
		t.Errorf("clock ahead: %q", got)
	}
}

// TestWindowBranch recovers to the past within the window: the way to the new
// timeline begins before the newest old backup.
func TestWindowBranch(t *testing.T) {
	t.Parallel()
	const day = 24
	s := newStore()
	s.backup("", 1, 0x10, "", false, 1*day)
	s.backup("", 1, 0x20, "", false, 2*day)
	s.backup("", 1, 0x30, "", false, 3*day)
	s.wal("", 1, 1, 0x40, 8*day)
	s.history("", wal.History{Timeline: 2, Switches: []wal.Switch{{Timeline: 1, LSN: lsn(0x28, 5)}}}, 9*day)
	s.wal("", 2, 0x28, 0x38, 10*day)
	p := Window{Length: 5 * day * time.Hour}
	if got, want := gone(s.plan(t, p, Options{}, at(10*day))), "F10 wal1:1-1F"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	// Once timeline 1 was left for longer than the window only the way to
	// timeline 2 counts.
	if got, want := gone(s.plan(t, p, Options{}, at(20*day))), "F10 F30 wal1:1-1F"; got != want {
		t.Errorf("later: %q, want %q", got, want)
	}
}

func TestOrderAndSegmentSize(t *testing.T) {
	t.Parallel()
	s := newStore()
	s.backup("", 3, 0x10, "", false, 1)
	s.backup("", 1, 0x20, "", false, 5) // after an upgrade
	if _, err := NewPlan(s.inventory(t), Retain{Count: 1}, Options{}, at(9)); !errors.Is(err, ErrOrder) {
		t.Errorf("%v", err)
	}
	if got, want := gone(s.plan(t, Retain{Count: 1}, Options{UseStartTime: true}, at(9))), "F10"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for id, d := range s.details {
		d.StartLSN *= 4
		s.details[id] = d
	}
	if _, err := NewPlan(s.inventory(t), Garbage{}, Options{}, at(9)); !errors.Is(err, ErrSegmentSize) {
		t.Errorf("%v", err)
	}
}

// A cluster that was made anew over the storage of its predecessor begins at
// the first segments again: by name its backups are older than all there are.
func TestNewClusterOverOldStorage(t *testing.T) {
	t.Parallel()
	s := newStore()
	system := map[pg.BackupName]pg.SystemID{
		s.backup("", 1, 0x500, "", false, 1): 1,
		s.backup("", 1, 0x510, "", false, 2): 1,
		s.backup("", 1, 3, "", false, 3):     2,
	}
	describe := func(known bool) {
		for id, d := range s.details {
			if d.System = system[id.Name]; !known && d.System == 1 {
				d.System = 0
			}
			s.details[id] = d
		}
	}
	describe(true)
	for _, p := range []Policy{Retain{Count: 1}, Retain{Count: 2}, Before{Limit: Limit{Name: "base_000000010000000500000010"}}} {
		if _, err := NewPlan(s.inventory(t), p, Options{}, at(9)); !errors.Is(err, ErrOrder) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if got, want := gone(s.plan(t, Retain{Count: 1}, Options{UseStartTime: true}, at(9))), "F500 F510"; got != want {
		t.Errorf("by time: %q, want %q", got, want)
	}
	// Of one cluster as far as is known, it is a standby's that lags.
	describe(false)
	if got, want := gone(s.plan(t, Retain{Count: 2}, Options{}, at(9))), "F3"; got != want {
		t.Errorf("systems not known: %q, want %q", got, want)
	}
}

func TestBrokenChainDoesNotCount(t *testing.T) {
	t.Parallel()
	s := newStore()
	s.backup("", 1, 2, "", false, 1)
	s.backup("", 1, 4, "base_000000010000000000000003", false, 2)
	pl := s.plan(t, Retain{Count: 1}, Options{}, at(9))
	if gone(pl) != "" || len(pl.Warnings) != 1 {
		t.Errorf("%q %q", gone(pl), pl.Warnings)
	}
}

func TestBulkMetadata(t *testing.T) {
	t.Parallel()
	s := newStore()
	s.backup("", 1, 0x18, "", false, 1)
	s.wal("", 1, 1, 0x20, 1)
	s.put("", "wal_005/00000001000000000000000.json", 1)
	s.put("", "wal_005/00000001000000000000001.json", 1)
	keys := steps(s.plan(t, Garbage{}, Options{}, at(2)))
	if !slices.Contains(keys, "|wal_005/00000001000000000000000.json") || slices.Contains(keys, "|wal_005/00000001000000000000001.json") || len(keys) != 0x18 {
		t.Errorf("%q", keys)
	}
}

func TestStepsOrder(t *testing.T) {
	t.Parallel()
	pl := referenceChain().plan(t, Retain{Count: 3}, Options{}, at(7))
	var got []string
	last := -1
	for s := range pl.Steps() {
		if s.Stage < last {
			t.Errorf("stage %d after %d", s.Stage, last)
		}
		last = s.Stage
		if s.Phase == Sentinels {
			got = append(got, s.Key[len("basebackups_005/base_"):][22:24])
		}
	}
	if want := []string{"58", "56", "54"}; !slices.Equal(got, want) {
		t.Errorf("sentinels %q, want %q", got, want)
	}
}

func TestNoBackups(t *testing.T) {
	t.Parallel()
	s := newStore()
	s.wal("", 1, 1, 4, 1)
	s.leftover("", "base_000000010000000000000002", 1)
	for _, p := range []Policy{Retain{Count: 1}, Garbage{}, Window{Length: time.Hour}} {
		if pl := s.plan(t, p, Options{}, at(1000)); gone(pl) != "" || pl.Note == "" {
			t.Errorf("%+v: %q %q", p, gone(pl), pl.Note)
		}
	}
	if got, want := gone(s.plan(t, Garbage{WithoutBackupCheck: true}, Options{}, at(1000))), "L2 wal1:1-4"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := gone(s.plan(t, Garbage{WithoutBackupCheck: true}, Options{}, at(2))); got != "wal1:1-1" {
		t.Errorf("in the making: %q", got)
	}
}
