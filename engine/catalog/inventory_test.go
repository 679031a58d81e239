package catalog

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
)

func TestClassify(t *testing.T) {
	t.Parallel()
	const seg = "000000010000000000000003"
	for key, want := range map[string]Kind{
		"basebackups_005/base_" + seg + "_backup_stop_sentinel.json":                      SentinelObject,
		"basebackups_005/base_" + seg + "_D_" + seg + "_backup_stop_sentinel.json":        SentinelObject,
		"catchup_005/base_" + seg + "_backup_stop_sentinel.json":                          SentinelObject,
		"basebackups_005/base_" + seg + "/metadata.json":                                  MetadataObject,
		"basebackups_005/base_" + seg + "_00000028/files_metadata.json":                   FilesObject,
		"basebackups_005/base_" + seg + "/tar_partitions/part_001.tar.lz4":                PartObject,
		"basebackups_005/base_" + seg + "/tar_partitions/copy_0.tar.zst":                  PartObject,
		"basebackups_005/base_" + seg + "/tar_partitions/":                                Foreign,
		"basebackups_005/base_" + seg + "/tar_partitions/a/b":                             Foreign,
		"basebackups_005/base_" + seg + "/notes.txt":                                      Foreign,
		"basebackups_005/stream_20261122T120000Z_backup_stop_sentinel.json":               Foreign,
		"basebackups_005/base_" + seg + "_backup_stop_sentinel.json.tmp.20261122T161847Z": Foreign,
		"elsewhere/base_" + seg + "_backup_stop_sentinel.json":                            Foreign,
		"wal_005/" + seg:                         SegmentObject,
		"wal_005/" + seg + ".":                   SegmentObject,
		"wal_005/" + seg + ".lz4":                SegmentObject,
		"wal_005/" + seg + ".json":               CompanionObject,
		"wal_005/" + seg + ".partial.br":         CompanionObject,
		"wal_005/" + seg + ".partial.json":       CompanionObject,
		"wal_005/" + seg + "_delta.zst":          CompanionObject,
		"wal_005/" + seg + "_changes":            CompanionObject,
		"wal_005/" + seg + "_changes.lz4":        CompanionObject,
		"wal_005/" + seg + "_changes.xz":         Foreign,
		"wal_005/" + seg + ".00000028.backup":    CompanionObject,
		"wal_005/" + seg + ".00000028.backup.br": CompanionObject,
		"wal_005/" + seg + ".0000002g.backup.br": Foreign,
		"wal_005/" + seg + ".txt":                Foreign,
		"wal_005/" + seg + "0.lz4":               Foreign,
		"wal_005/sub/" + seg + ".lz4":            Foreign,
		"wal_005/00000000" + seg[8:] + ".lz4":    Foreign,
		"wal_005/" + seg[:23] + ".json":          BulkObject,
		"wal_005/" + seg[:23] + ".lz4":           Foreign,
		"wal_005/00000002.history":               HistoryObject,
		"wal_005/00000002.history.lz4":           HistoryObject,
		"wal_005/00000002.history.json":          HistoryObject,
		"wal_005/00000000.history.lz4":           Foreign,
		"wal_005/0000000z.history.lz4":           Foreign,
		"wal_005/00000002.historyx":              Foreign,
		"wal-g_storage_check":                    ProbeObject,
		"":                                       Foreign,
		"wal_005/":                               Foreign,
	} {
		if got := Classify(key); got.Kind != want {
			t.Errorf("%s: kind %d, want %d", key, got.Kind, want)
		}
	}
}

// FuzzClassify holds that a name which is known is exactly the name that the
// inventory would make.
func FuzzClassify(f *testing.F) {
	const seg = "000000010000000000000003"
	for _, k := range []string{
		"wal_005/" + seg + ".lz4", "wal_005/" + seg[:23] + ".json", "wal_005/00000002.history.lz4", "basebackups_005/base_" + seg + "/metadata.json",
		"basebackups_005/base_" + seg + SentinelSuffix, "catchup_005/base_" + seg + "/tar_partitions/x", ProbeName, "wal_005/" + seg + ".00000028.backup",
	} {
		f.Add(k)
	}
	f.Fuzz(func(t *testing.T, key string) {
		o := Classify(key)
		var again string
		switch o.Kind {
		case Foreign:
			return
		case ProbeObject:
			again = ProbeName
		case HistoryObject:
			again = HistoryFile{Timeline: o.Timeline, Suffix: o.Suffix}.Key()
		case BulkObject:
			name := o.Segment.String()
			again = string(WALFolder) + name[:23] + o.Suffix
		case SegmentObject, CompanionObject:
			again = string(WALFolder) + o.Segment.String() + o.Suffix
		default:
			again = BackupID{Folder: o.Folder, Name: o.Backup}.Key(o.Kind, o.Part)
		}
		if again != key {
			t.Errorf("%q reads as %q", key, again)
		}
	})
}

func inventory(t testing.TB) *Inventory {
	t.Helper()
	v, err := NewInventory(pg.DefaultSegmentSize)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *Inventory) addSegments(storage string, tl pg.Timeline, first, last uint64) {
	for n := first; n <= last; n++ {
		v.Add(storage, "wal_005/"+pg.SegmentAt(tl, n, v.size).String()+".lz4", noon)
	}
}

func (v *Inventory) addBackupAt(tl pg.Timeline, n uint64, permanent bool) pg.BackupName {
	seg := pg.SegmentAt(tl, n, v.size)
	name := pg.FullBackupName(seg)
	id := BackupID{Folder: BaseBackups, Name: name}
	v.Add("", id.Key(SentinelObject, ""), noon)
	start := seg.Start(v.size)
	v.Describe(id, DetailsOf(nil, &manifest.Metadata{StartLSN: start + 0x28, FinishLSN: start + 0x100, IsPermanent: permanent}))
	return name
}

func TestInventory(t *testing.T) {
	t.Parallel()
	v := inventory(t)
	v.addSegments("b", 1, 0xFE, 0x102) // crosses a log
	v.addSegments("a", 1, 0x104, 0x104)
	v.Add("a", "wal_005/000000010000000100000003.json", noon)
	v.Add("a", "wal_005/00000001000000010000000.json", noon)
	v.Add("a", "wal_005/000000010000000100000100.lz4", noon) // no such segment of 16 MiB
	v.Add("a", "wal_005/00000002.history.lz4", noon)
	v.Add("a", ProbeName, noon)
	if got, want := v.Segments()[1], (Runs{{0xFE, 0x102}, {0x104, 0x104}}); !slices.Equal(got, want) {
		t.Errorf("segments %v, want %v", got, want)
	}
	if got, want := v.Segments("a")[1], (Runs{{0x104, 0x104}}); !slices.Equal(got, want) {
		t.Errorf("segments of a storage %v, want %v", got, want)
	}
	if v.Foreign() != 1 || len(v.Probes()) != 1 || len(v.HistoryFiles()) != 1 || !slices.Equal(v.Timelines(), []pg.Timeline{1, 2}) {
		t.Errorf("foreign %d, probes %v, histories %v, timelines %v", v.Foreign(), v.Probes(), v.HistoryFiles(), v.Timelines())
	}
	var keys []string
	for _, s := range v.WAL() {
		for _, r := range s.Runs {
			for n := r.First; n <= r.Last; n++ {
				keys = append(keys, s.Storage+":"+s.Key(n, v.size))
			}
		}
	}
	if want := []string{
		"a:wal_005/00000001000000010000000.json", "a:wal_005/000000010000000100000003.json", "a:wal_005/000000010000000100000004.lz4",
		"b:wal_005/0000000100000000000000FE.lz4", "b:wal_005/0000000100000000000000FF.lz4", "b:wal_005/000000010000000100000000.lz4",
		"b:wal_005/000000010000000100000001.lz4", "b:wal_005/000000010000000100000002.lz4",
	}; !slices.Equal(slices.Sorted(slices.Values(keys)), want) {
		t.Errorf("keys %q", keys)
	}
	if v.Describe(BackupID{Name: "base_x"}, Details{}) {
		t.Error("described a backup that has no object")
	}
	if _, err := NewInventory(3 << 20); err == nil {
		t.Error("accepted a segment size of 3 MiB")
	}
}

func TestDetailsOf(t *testing.T) {
	t.Parallel()
	s := &manifest.Sentinel{IsPermanent: true, Increment: &manifest.Increment{}}
	if d := DetailsOf(s, nil); !d.Read || !d.Permanent || d.Increment != nil {
		t.Errorf("sentinel of a catch-up alone: %+v", d)
	}
	// backup-mark changes metadata.json only.
	if d := DetailsOf(s, &manifest.Metadata{}); d.Permanent {
		t.Error("the sentinel's flag was believed")
	}
	s.Increment.Parent = "base_000000010000000000000003"
	if d := DetailsOf(s, nil); d.Increment == nil {
		t.Error("increment lost")
	}
}

func TestRunsModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		set := map[uint64]bool{}
		v, _ := NewInventory(pg.DefaultSegmentSize)
		for _, n := range rapid.SliceOf(rapid.Uint64Range(0, 60)).Draw(t, "numbers") {
			set[n] = true
			v.addSegments("", 1, n, n)
		}
		runs := v.Segments()[1]
		var got []uint64
		for _, r := range runs {
			for n := r.First; n <= r.Last; n++ {
				got = append(got, n)
			}
		}
		if want := slices.Sorted(maps.Keys(set)); !slices.Equal(got, want) || runs.Len() != uint64(len(want)) {
			t.Fatalf("%v, want %v", got, want)
		}
		for i := 1; i < len(runs); i++ {
			if runs[i].First <= runs[i-1].Last+1 {
				t.Fatalf("runs %v touch", runs)
			}
		}
		w := Run{First: rapid.Uint64Range(0, 60).Draw(t, "first")}
		w.Last = rapid.Uint64Range(w.First, 61).Draw(t, "last")
		have, all := map[uint64]int{}, true
		for r := range runs.Within(w) {
			for n := r.First; n <= r.Last; n++ {
				have[n]++
			}
		}
		for r := range runs.Gaps(w) {
			for n := r.First; n <= r.Last; n++ {
				have[n] -= 2
			}
		}
		for n := w.First; n <= w.Last; n++ {
			want := -2
			if set[n] {
				want = 1
			}
			all = all && set[n]
			if have[n] != want {
				t.Fatalf("%d in %v of %v: %d", n, w, runs, have[n])
			}
			delete(have, n)
		}
		if len(have) != 0 || runs.Covers(w) != all {
			t.Fatalf("outside of %v: %v; covers %v", w, have, runs.Covers(w))
		}
	})
}

func TestShow(t *testing.T) {
	t.Parallel()
	v := inventory(t)
	v.addSegments("", 1, 1, 4)
	v.addSegments("", 1, 7, 7)
	v.addSegments("", 1, 9, 0x1B)
	v.addSegments("", 2, 0x1C, 0x1D)
	v.Add("", "wal_005/000000010000000000000008.json", noon) // not the segment
	v.Add("", "wal_005/000000010000000000000005.partial.lz4", noon)
	v.addBackupAt(1, 2, false)
	v.addBackupAt(1, 0x1C, false) // outside of what is stored
	v.addBackupAt(2, 0x1C, false)
	v.AddHistory(wal.History{Timeline: 2, Switches: []wal.Switch{{Timeline: 1, LSN: 0x1C000000}}})
	rows := v.Show()
	if len(rows) != 2 {
		t.Fatalf("%d rows", len(rows))
	}
	got := fmt.Sprintf("%d %s %s %s %d %d %s %d", rows[0].Parent, rows[0].SwitchPoint, rows[0].Start, rows[0].End, rows[0].Range, rows[0].Found, rows[0].Status, len(rows[0].Backups))
	if want := "0 0/0 000000010000000000000001 00000001000000000000001B 27 24 LOST_SEGMENTS 1"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	var missing []string
	for n := range rows[0].Missing() {
		missing = append(missing, n.String()[22:])
	}
	if want := []string{"08", "06", "05"}; !slices.Equal(missing, want) {
		t.Errorf("missing %v, want %v", missing, want)
	}
	got = fmt.Sprintf("%d %s %d %d %s %d", rows[1].Parent, rows[1].SwitchPoint, rows[1].Range, rows[1].Found, rows[1].Status, len(rows[1].Backups))
	if want := "1 0/1C000000 2 2 OK 1"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if rows := inventory(t).Show(); len(rows) != 0 {
		t.Errorf("empty: %v", rows)
	}
}

func TestVerifyIntegrity(t *testing.T) {
	t.Parallel()
	at := func(n uint64) pg.LSN { return pg.LSN(n<<24 + 0x100) }
	for _, tc := range []struct {
		name  string
		fill  func(v *Inventory)
		check IntegrityCheck
		want  string // status, then tl:first-last=status
		err   error
	}{
		{"an old gap is lost", func(v *Inventory) {
			v.addSegments("", 1, 5, 0xF)
			v.addSegments("", 1, 0x11, 0x19)
			v.addBackupAt(1, 8, false)
			v.addBackupAt(1, 9, false)
			v.addBackupAt(1, 5, true)
		}, IntegrityCheck{Timeline: 1, LSN: at(0x1A), Uploading: 1}, "FAILURE 1:8-F=FOUND 1:10-10=MISSING_LOST 1:11-19=FOUND", nil},
		{"a permanent backup when it is named", func(v *Inventory) {
			v.addSegments("", 1, 5, 9)
			v.addBackupAt(1, 8, false)
			v.addBackupAt(1, 5, true)
		}, IntegrityCheck{Timeline: 1, LSN: at(0xA), Backup: "base_000000010000000000000005"}, "OK 1:5-9=FOUND", nil},
		{"a fresh gap is uploading", func(v *Inventory) {
			v.addSegments("", 1, 0x54, 0x60)
			v.addBackupAt(1, 0x54, false)
		}, IntegrityCheck{Timeline: 1, LSN: at(0x68), Uploading: 16}, "WARNING 1:54-60=FOUND 1:61-67=MISSING_UPLOADING", nil},
		{"delayed, then uploading, then lost", func(v *Inventory) {
			v.addSegments("", 1, 2, 3)
			v.addBackupAt(1, 2, false)
		}, IntegrityCheck{Timeline: 1, LSN: at(9), MaxDelayed: 2, Uploading: 2}, "FAILURE 1:2-3=FOUND 1:4-4=MISSING_LOST 1:5-6=MISSING_UPLOADING 1:7-8=MISSING_DELAYED", nil},
		{"delayed ends at the first found", func(v *Inventory) {
			v.addSegments("", 1, 2, 3)
			v.addSegments("", 1, 7, 7)
			v.addBackupAt(1, 2, false)
		}, IntegrityCheck{Timeline: 1, LSN: at(9), MaxDelayed: 4, Uploading: 2}, "FAILURE 1:2-3=FOUND 1:4-5=MISSING_LOST 1:6-6=MISSING_UPLOADING 1:7-7=FOUND 1:8-8=MISSING_DELAYED", nil},
		{"timeline switch", func(v *Inventory) {
			v.addSegments("", 1, 2, 0x1C)
			v.addSegments("", 2, 0x1C, 0x1E)
			v.addBackupAt(1, 2, false)
			v.AddHistory(wal.History{Timeline: 2, Switches: []wal.Switch{{Timeline: 1, LSN: at(0x1C)}}})
		}, IntegrityCheck{Timeline: 2, LSN: at(0x1F)}, "OK 1:2-1B=FOUND 2:1C-1E=FOUND", nil},
		{"a backup of another history does not count", func(v *Inventory) {
			v.addSegments("", 2, 8, 9)
			v.addBackupAt(3, 8, false)
		}, IntegrityCheck{Timeline: 2, LSN: at(0xA)}, "WARNING 2:1-7=MISSING_LOST 2:8-9=FOUND", nil},
		{"no backup, a gap later on", func(v *Inventory) { v.addSegments("", 1, 3, 4); v.addSegments("", 1, 6, 6) },
			IntegrityCheck{Timeline: 1, LSN: at(7)}, "FAILURE 1:1-2=MISSING_LOST 1:3-4=FOUND 1:5-5=MISSING_LOST 1:6-6=FOUND", nil},
		{"nothing to scan", func(v *Inventory) {}, IntegrityCheck{Timeline: 1, LSN: at(1)}, "OK", nil},
		{"no such backup", func(v *Inventory) {}, IntegrityCheck{Timeline: 1, LSN: at(5), Backup: "base_000000010000000000000005"}, "", ErrNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			v := inventory(t)
			tc.fill(v)
			rep, err := v.VerifyIntegrity(tc.check)
			if !errors.Is(err, tc.err) || (err != nil) != (tc.err != nil) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			if err != nil {
				return
			}
			got := []string{string(rep.Status)}
			for _, r := range rep.Ranges {
				got = append(got, fmt.Sprintf("%d:%X-%X=%s", r.Timeline, r.First.Number(v.size), r.Last.Number(v.size), r.Status))
				if r.Count != r.Last.Number(v.size)-r.First.Number(v.size)+1 {
					t.Errorf("count of %+v", r)
				}
			}
			if got := strings.Join(got, " "); got != tc.want {
				t.Errorf("%s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestVerifyTimeline(t *testing.T) {
	t.Parallel()
	v := inventory(t)
	if c := v.VerifyTimeline(1); c != (TimelineCheck{StatusWarning, 1, 0}) {
		t.Errorf("empty: %+v", c)
	}
	v.addSegments("", 2, 1, 1)
	v.Add("", "wal_005/00000003.history.lz4", noon)
	if c := v.VerifyTimeline(2); c != (TimelineCheck{StatusOK, 2, 2}) {
		t.Errorf("equal: %+v", c)
	}
	if c := v.VerifyTimeline(1); c != (TimelineCheck{StatusFailure, 1, 2}) {
		t.Errorf("lower: %+v", c)
	}
}

// What keeps a part of the archive out of the check's sight is told, and keeps
// it from being called whole.
func TestVerifyIntegrityDoubts(t *testing.T) {
	t.Parallel()
	at := func(n uint64) pg.LSN { return pg.LSN(n<<24 + 0x100) }
	for _, tc := range []struct {
		name  string
		fill  func(v *Inventory)
		check IntegrityCheck
		doubt string // empty: OK
	}{
		{"a lost history file hides the older backups and their gap", func(v *Inventory) {
			v.addBackupAt(1, 3, false)
			v.addSegments("", 1, 3, 4)
			v.addSegments("", 2, 0x10, 0x13)
			v.addBackupAt(2, 0x12, false)
		}, IntegrityCheck{Timeline: 2, LSN: at(0x14)}, "00000002.history"},
		{"the same with the history file", func(v *Inventory) {
			v.addBackupAt(2, 0x12, false)
			v.addSegments("", 2, 0x10, 0x13)
			v.AddHistory(wal.History{Timeline: 2, Switches: []wal.Switch{{Timeline: 1, LSN: at(0x10)}}})
		}, IntegrityCheck{Timeline: 2, LSN: at(0x14)}, ""},
		{"the only backup begins where the server has not been", func(v *Inventory) {
			v.addSegments("", 1, 5, 9)
			v.addBackupAt(1, 5, false)
		}, IntegrityCheck{Timeline: 1, LSN: at(4)}, "base_000000010000000000000005"},
		{"a backup begins in the server's segment", func(v *Inventory) { v.addBackupAt(1, 5, false) },
			IntegrityCheck{Timeline: 1, LSN: at(5)}, ""},
		{"the archive is of smaller segments", func(v *Inventory) {
			v.size = 64 << 20
			v.addBackupAt(1, 1, false)
			v.addSegments("", 1, 1, 63) // to ...3F, the last in a log of 64 MiB
			v.Add("", "wal_005/0000000100000000000000FE.lz4", noon)
		}, IntegrityCheck{Timeline: 1, LSN: 0xFF000000}, "0000000100000000000000FE"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			v := inventory(t)
			tc.fill(v)
			rep, err := v.VerifyIntegrity(tc.check)
			if err != nil {
				t.Fatal(err)
			}
			want := StatusOK
			if tc.doubt != "" {
				want = StatusWarning
			}
			if got := strings.Join(rep.Doubts, "; "); rep.Status != want || !strings.Contains(got, tc.doubt) || (got == "") != (tc.doubt == "") {
				t.Errorf("%s, doubts %q; want %s and %q", rep.Status, got, want, tc.doubt)
			}
		})
	}
}

// The verdict is OK only if all is there that a recovery from any backup of the
// server's history reads, by PostgreSQL's rule for the timeline of a segment; and
// it is anything else only if something is not, or may not have been seen.
func TestVerifyIntegrityModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		v, err := NewInventory(pg.DefaultSegmentSize)
		if err != nil {
			t.Fatal(err)
		}
		lsn := func(lo pg.LSN, what string) pg.LSN {
			n := rapid.Uint64Range(uint64(lo)/uint64(v.size), uint64(lo)/uint64(v.size)+6).Draw(t, what)
			return max(lo, pg.LSN(n)*pg.LSN(v.size)+rapid.SampledFrom([]pg.LSN{0, 1, 0x100}).Draw(t, "offset"))
		}
		tl := rapid.SampledFrom([]pg.Timeline{1, 2, 3, 5}).Draw(t, "timeline")
		h := wal.History{Timeline: tl}
		at := pg.LSN(1 << 24)
		for parent := pg.Timeline(1); parent < tl; parent += pg.Timeline(rapid.IntRange(1, 2).Draw(t, "step")) {
			at = lsn(at, "switch")
			h.Switches = append(h.Switches, wal.Switch{Timeline: parent, LSN: at})
		}
		if rapid.IntRange(0, 9).Draw(t, "history lost") > 0 {
			v.AddHistory(h)
		}
		check := IntegrityCheck{
			Timeline: tl, LSN: lsn(at, "server"),
			MaxDelayed: uint64(rapid.IntRange(0, 2).Draw(t, "delayed")), Uploading: uint64(rapid.IntRange(0, 3).Draw(t, "uploading")),
		}
		current := uint64(check.LSN) / uint64(v.size)
		needed := map[uint64]bool{}
		ours := false // a backup to recover from
		for _, n := range rapid.SliceOfNDistinct(rapid.Uint64Range(1, current+1), 0, 2, rapid.ID).Draw(t, "backups") {
			start := pg.LSN(n)*pg.LSN(v.size) + 0x28
			// It ends before a switch in its segment, or begins after it.
			if at := h.At(start + 0x100); at != h.At(start) {
				continue
			}
			of := h.At(start)
			stray := rapid.IntRange(0, 4).Draw(t, "stray") == 0
			if stray { // of a server that went on elsewhere
				of = rapid.SampledFrom([]pg.Timeline{9, of%5 + 1}).Draw(t, "elsewhere")
			}
			permanent := rapid.IntRange(0, 4).Draw(t, "permanent") == 0
			v.addBackupAt(of, n, permanent)
			if stray || permanent {
				continue
			}
			ours = true
			for ; n < current; n++ {
				needed[n] = true
			}
		}
		missing := 0
		for n := uint64(1); n <= current; n++ {
			there := rapid.IntRange(0, 15).Draw(t, "there") > 0
			if there {
				v.addSegments("", h.SegmentOf(n, v.size).Timeline, n, n)
			} else if needed[n] {
				missing++
			}
			if rapid.IntRange(0, 9).Draw(t, "another") == 0 { // what others stored does not fill a gap
				v.addSegments("", 9, n, n)
			}
		}
		rep, err := v.VerifyIntegrity(check)
		switch {
		case err != nil:
			t.Fatal(err)
		case rep.Status == StatusOK && missing > 0:
			t.Fatalf("OK, and %d segments are missing: %+v", missing, rep)
		case rep.Status != StatusOK && missing == 0 && ours && len(rep.Doubts) == 0:
			t.Fatalf("%s, and nothing is missing: %+v", rep.Status, rep)
		}
	})
}

// A map of changed blocks covers 16 segments, and belongs to all of them.
func TestMapsOfChangedBlocksSpan(t *testing.T) {
	t.Parallel()
	v, err := NewInventory(pg.DefaultSegmentSize)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]Kind{
		"wal_005/0000000100000000000000F0_delta.lz4":      DeltaObject,
		"wal_005/000000010000000100000000_delta.lz4":      DeltaObject,
		"wal_005/000000010000000100000000_delta_part.lz4": DeltaObject,
		"wal_005/000000010000000100000001_delta.lz4":      CompanionObject, // of no group
	}
	for k := range keys {
		v.Add("a", k, time.Time{})
	}
	if v.Foreign() != 0 {
		t.Errorf("%d objects are foreign", v.Foreign())
	}
	seen := 0
	for _, s := range v.WAL() {
		for _, r := range s.Runs {
			for n := r.First; n <= r.Last; n++ {
				key := s.Key(n, v.SegmentSize())
				if kind, ok := keys[key]; !ok || s.Kind != kind || s.Spans() != (kind == DeltaObject) {
					t.Errorf("%s in a series of kind %d", key, s.Kind)
				}
				seen++
			}
		}
	}
	if seen != len(keys) {
		t.Errorf("%d objects are listed again, want %d", seen, len(keys))
	}
}
