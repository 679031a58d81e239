package retain

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
)

func id(name pg.BackupName) catalog.BackupID {
	return catalog.BackupID{Folder: catalog.BaseBackups, Name: name}
}

func TestMark(t *testing.T) {
	t.Parallel()
	s := newStore()
	f := s.backup("", 1, 2, "", false, 1)
	d1 := s.backup("", 1, 4, f, false, 2)
	d2 := s.backup("", 1, 6, d1, false, 3)
	short := func(ids []catalog.BackupID) (out string) {
		for _, i := range ids {
			seg, _ := i.Name.Segment()
			out += seg.String()[23:]
		}
		return out
	}
	if ids, err := PlanMark(s.inventory(t), id(d2), true); err != nil || short(ids) != "246" {
		t.Errorf("permanent: %v, %v", ids, err)
	}
	for _, name := range []pg.BackupName{f, d1, d2} {
		d := s.details[id(name)]
		d.Permanent = name != d1 // a hole that an older tool left
		s.details[id(name)] = d
	}
	if ids, err := PlanMark(s.inventory(t), id(d2), true); err != nil || short(ids) != "4" {
		t.Errorf("hole: %v, %v", ids, err)
	}
	if _, err := PlanMark(s.inventory(t), id(f), false); !errors.Is(err, ErrDependants) {
		t.Errorf("grandchild: %v", err)
	}
	if ids, err := PlanMark(s.inventory(t), id(d2), false); err != nil || short(ids) != "6" {
		t.Errorf("impermanent: %v, %v", ids, err)
	}
	if _, err := PlanMark(s.inventory(t), id("LATEST"), true); !errors.Is(err, ErrLatest) {
		t.Errorf("LATEST: %v", err)
	}
	if _, err := PlanMark(s.inventory(t), id("base_000000010000000000000099"), true); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
}

// To keep what cannot be restored would look like keeping a backup.
func TestMarkBroken(t *testing.T) {
	t.Parallel()
	s := newStore()
	f := s.backup("", 1, 2, "", false, 1)
	d1 := s.backup("", 1, 4, "base_000000010000000000000003", false, 2) // whose base is not there
	d2 := s.backup("", 1, 6, d1, true, 3)
	for _, name := range []pg.BackupName{d1, d2} {
		if ids, err := PlanMark(s.inventory(t), id(name), true); !errors.Is(err, ErrBroken) {
			t.Errorf("%s: %v, %v", name, ids, err)
		}
	}
	if ids, err := PlanMark(s.inventory(t), id(d2), false); err != nil || len(ids) != 1 {
		t.Errorf("impermanent: %v, %v", ids, err)
	}
	if _, err := PlanMark(s.inventory(t), id(f), true); err != nil {
		t.Errorf("another backup: %v", err)
	}
}

func TestUnreadableIsKept(t *testing.T) {
	t.Parallel()
	s := newStore()
	f := s.backup("", 1, 2, "", false, 1)
	s.backup("", 1, 4, "", false, 2)
	s.details[id(f)] = catalog.Details{Unreadable: true}
	pl := s.plan(t, Retain{Count: 1}, Options{}, at(9))
	if gone(pl) != "" || len(pl.Warnings) != 1 {
		t.Errorf("%q %q", gone(pl), pl.Warnings)
	}
}

// TestUnreadIncrement has no sentinel read: the name tells the parent.
func TestUnreadIncrement(t *testing.T) {
	t.Parallel()
	s := newStore()
	f := s.backup("", 1, 2, "", false, 1)
	s.backup("", 1, 4, "", false, 2)
	d := s.backup("", 1, 6, f, false, 3)
	s.details = map[catalog.BackupID]catalog.Details{}
	if got := gone(s.plan(t, Retain{Count: 1, Mode: Full}, Options{}, at(9))); got != "" {
		t.Errorf("the parent of %s goes: %q", d, got)
	}
}

// TestReplacedParent has a parent that is not the backup the increment was
// made of, since both started in one segment.
func TestReplacedParent(t *testing.T) {
	t.Parallel()
	s := newStore()
	f := s.backup("", 1, 2, "", false, 1)
	d := s.backup("", 1, 4, f, false, 2)
	s.details[id(d)].Increment.ParentLSN = lsn(2, 0x60)
	pl := s.plan(t, Retain{Count: 2}, Options{}, at(9))
	if gone(pl) != "" || len(pl.Warnings) != 1 || !strings.Contains(pl.Note, "1 that count") {
		t.Errorf("%q %q %q", gone(pl), pl.Warnings, pl.Note)
	}
}

func TestCatchupsAndProbes(t *testing.T) {
	t.Parallel()
	s := newStore()
	for _, n := range []int{2, 8} {
		c := catalog.BackupID{Folder: catalog.Catchups, Name: pg.FullBackupName(segment(1, n))}
		s.put("", c.Key(catalog.SentinelObject, ""), 1)
		s.put("", c.Key(catalog.PartObject, "part_001.tar.lz4"), 1)
	}
	s.backup("", 1, 4, "", false, 2)
	s.backup("", 1, 6, "", false, 3)
	s.put("", catalog.ProbeName, 1)
	if got := gone(s.plan(t, Retain{Count: 1}, Options{}, at(9))); got != "F4 F2" {
		t.Errorf("retain: %q", got)
	}
	pl := s.plan(t, Garbage{}, Options{}, at(100))
	if got := gone(pl); got != "F2" || pl.Objects()[Rest] != 1 {
		t.Errorf("garbage: %q, %v", got, pl.Objects())
	}
	if pl := s.plan(t, Garbage{Scope: Backups}, Options{}, at(100)); gone(pl) != "" || pl.Objects()[Rest] != 0 {
		t.Errorf("garbage BACKUPS: %q, %v", gone(pl), pl.Objects())
	}
}

func TestLeases(t *testing.T) {
	t.Parallel()
	s := referenceChain()
	lease := Options{Leases: []Lease{{ID: catalog.BackupID{Name: pg.IncrementName(segment(1, 0x58), "base_000000010000000000000056")}, Holder: "a restore on host b"}}}
	// A restore of D58 holds its chain and the WAL behind it.
	if got, want := gone(s.plan(t, Retain{Count: 1, Mode: Full}, lease, at(7))), "wal1:53-53 wal1:55-55 wal1:57-57"; got != want {
		t.Errorf("retain: %q, want %q", got, want)
	}
	for _, p := range []Policy{Everything{}, Target{Name: "base_000000010000000000000054", Dependants: true}} {
		if _, err := NewPlan(s.inventory(t), p, lease, at(7)); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "host b") {
			t.Errorf("%T: %v", p, err)
		}
	}
}

// TestGarbageWithinWindow has a window that begins with a permanent backup:
// garbage that knows of the window leaves it its WAL.
func TestGarbageWithinWindow(t *testing.T) {
	t.Parallel()
	s := newStore()
	s.backup("", 1, 2, "", true, 1)
	s.backup("", 1, 8, "", false, 100)
	s.wal("", 1, 1, 9, 100)
	if got, want := gone(s.plan(t, Garbage{}, Options{}, at(110))), "wal1:1-1 wal1:3-7"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := gone(s.plan(t, Garbage{Window: 50 * time.Hour}, Options{}, at(110))), "wal1:1-1"; got != want {
		t.Errorf("with a window: %q, want %q", got, want)
	}
}

// TestHistoryWithoutWAL has a kept backup whose WAL is lost: the files above it
// stay in a row all the same.
func TestHistoryWithoutWAL(t *testing.T) {
	t.Parallel()
	s := branches()
	for n := 0x20; n <= 0x40; n++ {
		delete(s.objects[""], string(catalog.WALFolder)+segment(2, n).String()+".lz4")
	}
	s.backup("", 3, 0x12, "", false, 3)
	s.backup("", 2, 0x28, "", true, 2)
	if got, want := gone(s.plan(t, Garbage{}, Options{}, at(24*30))), "wal1:1-11 wal1:12-30 wal3:10-11"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestUserData(t *testing.T) {
	t.Parallel()
	s := referenceChain()
	data, err := manifest.ParseUserData(`"weekly"`)
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range s.details {
		if strings.HasPrefix(string(i.Name), "base_00000001000000000000005E") {
			d.UserData = data
			s.details[i] = d
		}
	}
	if got := gone(s.plan(t, Target{UserData: data}, Options{}, at(7))); got != "D5E" {
		t.Errorf("%q", got)
	}
	for i, d := range s.details {
		d.UserData = data
		s.details[i] = d
	}
	if _, err := NewPlan(s.inventory(t), Target{UserData: data}, Options{}, at(7)); !errors.Is(err, catalog.ErrAmbiguous) {
		t.Errorf("%v", err)
	}
}

// A backup of a standby ends without a switch of the segment. When the standby
// is promoted in that segment, all that is ever archived of it whole is the
// new timeline's copy: the old one's stays a partial, which no recovery reads.
func TestPermanentEndsWhereTheTimelineDoes(t *testing.T) {
	t.Parallel()
	build := func(branch pg.LSN) *store {
		s := newStore()
		s.backup("", 1, 0x10, "", true, 1) // ends at 10/100 of its segment
		s.wal("", 1, 1, 0xF, 1)
		s.put("", string(catalog.WALFolder)+segment(1, 0x10).String()+".partial.lz4", 2)
		s.history("", wal.History{Timeline: 2, Switches: []wal.Switch{{Timeline: 1, LSN: branch}}}, 2)
		s.wal("", 2, 0x10, 0x30, 2)
		// A second failover in the same segment leaves it to timeline 3.
		s.history("", wal.History{Timeline: 3, Switches: []wal.Switch{{Timeline: 1, LSN: branch}, {Timeline: 2, LSN: lsn(0x30, 5)}}}, 3)
		s.wal("", 3, 0x30, 0x50, 3)
		s.backup("", 3, 0x48, "", false, 4)
		return s
	}
	const later = 24 * 30
	if got, want := gone(build(lsn(0x10, 0x200)).plan(t, Garbage{}, Options{}, at(later))), "wal1:1-F wal2:11-30 wal3:30-47"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	// A timeline that left before the backup was consistent is of no use to it.
	if got, want := gone(build(lsn(0x10, 0x80)).plan(t, Garbage{}, Options{}, at(later))), "wal1:1-F wal2:10-30 wal3:30-47"; got != want {
		t.Errorf("branched off before: %q, want %q", got, want)
	}
	// Nobody knows where a timeline without a history left.
	s := build(0)
	s.histories = nil
	if got, want := gone(s.plan(t, Garbage{}, Options{}, at(later))), "wal1:1-F wal2:11-30 wal3:30-47"; got != want {
		t.Errorf("without histories: %q, want %q", got, want)
	}
}
