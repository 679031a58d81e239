package wal

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/walherd/walherd/engine/pg"
	"pgregory.net/rapid"
)

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseRealHistory(t *testing.T) {
	t.Parallel()
	text := read(t, "testdata/00000003.history")
	h, err := ParseHistory(3, text)
	if err != nil {
		t.Fatal(err)
	}
	want := []Switch{
		{1, 0x3010A78, "no recovery target specified"},
		{2, 0x60000A0, "no recovery target specified"},
	}
	if !reflect.DeepEqual(h.Switches, want) {
		t.Errorf("got %+v", h.Switches)
	}
	if h.String() != string(text) {
		t.Errorf("printed %q, read %q", h.String(), text)
	}
	for l, tl := range map[pg.LSN]pg.Timeline{0: 1, 0x3010A77: 1, 0x3010A78: 2, 0x600009F: 2, 0x60000A0: 3, 1 << 60: 3} {
		if got := h.At(l); got != tl {
			t.Errorf("%s is on timeline %d, want %d", l, got, tl)
		}
	}
	if p, ok := h.Parent(); !ok || p != want[1] {
		t.Errorf("parent %+v", p)
	}
}

func TestParseHistoryForms(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]Switch{
		"":                                 nil,
		"\n# by hand\n\n":                  nil,
		"1\t0/10\tx":                       {{1, 0x10, "x"}},
		" 1 0/10 before 2000-01-01\r\n":    {{1, 0x10, "before 2000-01-01"}},
		"1\t0/10\n2\t0/10\ta\tb\n":         {{1, 0x10, ""}, {2, 0x10, "a\tb"}},
		"#1\t0/1\tx\n\n4\t1/0\t after\n":   {{4, 1 << 32, " after"}},
		"1\t16/B374D848\tat LSN \"0/1\"\n": {{1, 0x16B374D848, `at LSN "0/1"`}},
	} {
		h, err := ParseHistory(5, []byte(text))
		if err != nil || !reflect.DeepEqual(h.Switches, want) {
			t.Errorf("%q: %+v, %v", text, h.Switches, err)
		}
	}
	if _, ok := (History{Timeline: 1}).Parent(); ok {
		t.Error("timeline 1 has a parent")
	}
	for _, text := range []string{
		"1", "1\t", "x\t0/1\ty", "1\t0-1\ty", "1\t0/1G\ty", "-1\t0/1\ty", "0\t0/1\ty", "5\t0/1\ty", "6\t0/1\ty", "4294967297\t0/1\ty",
		"2\t0/1\ty\n1\t0/2\ty", "1\t0/1\ty\n1\t0/2\ty", "1\t0/2\ty\n2\t0/1\ty", "\x00\x00", strings.Repeat("#", maxHistory+1),
	} {
		if _, err := ParseHistory(5, []byte(text)); !errors.Is(err, ErrHistory) || !strings.Contains(err.Error(), "00000005.history") {
			t.Errorf("%.40q: %v", text, err)
		}
	}
	if _, err := ParseHistory(0, nil); !errors.Is(err, ErrHistory) {
		t.Errorf("timeline 0: %v", err)
	}
}

func TestHistoryRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var h History
		var lsn pg.LSN
		tl := pg.Timeline(1)
		for range rapid.IntRange(0, 6).Draw(t, "switches") {
			lsn += pg.LSN(rapid.Uint64Range(0, 1<<50).Draw(t, "distance"))
			h.Switches = append(h.Switches, Switch{tl, lsn, rapid.StringMatching(`[ -~\t]{0,20}`).Draw(t, "reason")})
			tl += pg.Timeline(rapid.Uint32Range(1, 5).Draw(t, "step"))
		}
		h.Timeline = tl
		got, err := ParseHistory(tl, []byte(h.String()))
		if err != nil || !reflect.DeepEqual(got, h) {
			t.Fatalf("got %+v, %v, want %+v", got, err, h)
		}
	})
}

func TestParseRealBackupHistory(t *testing.T) {
	t.Parallel()
	seg, err := pg.ParseSegmentName("000000010000000000000002")
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseBackupHistory(read(t, "testdata/000000010000000000000002.00000028.backup"))
	want := Label{
		Start: 0x2000028, StartSegment: seg, Checkpoint: 0x2000060, Stop: 0x2000100, StopSegment: seg,
		Method: "streamed", From: "primary", Name: "pg_basebackup base backup",
		StartTime: "2026-11-22 19:04:45 UTC", StopTime: "2026-11-22 19:04:46 UTC", StartTimeline: 1, StopTimeline: 1,
	}
	if err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
}

const label = `START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
CHECKPOINT LOCATION: 0/2000060
BACKUP METHOD: streamed
BACKUP FROM: standby
START TIME: 2026-11-22 17:24:57 UTC
LABEL: a: b
START TIMELINE: 3
INCREMENTAL FROM LSN: 0/1000028
INCREMENTAL FROM TLI: 1
`

func TestParseLabel(t *testing.T) {
	t.Parallel()
	l, err := ParseLabel([]byte(label))
	if err != nil || l.Name != "a: b" || l.From != "standby" || l.StartTimeline != 3 || l.IncrementalFrom != 0x1000028 || l.Stop != 0 {
		t.Errorf("%+v, %v", l, err)
	}
	if _, err := ParseBackupHistory([]byte(label)); !errors.Is(err, ErrLabel) {
		t.Errorf("a label without an end is no backup history: %v", err)
	}
	// A label text with a line break must not move the start.
	l, err = ParseLabel([]byte(strings.Replace(label, "a: b", "x\nSTART WAL LOCATION: 9/0 (file 000000010000000900000000)", 1)))
	if err != nil || l.Start != 0x2000028 {
		t.Errorf("%+v, %v", l, err)
	}
	for _, edit := range [][2]string{
		{"START WAL", "SMART WAL"}, {"CHECKPOINT", "x"}, {"0/2000028 (file", "0/2000028 ("}, {"0002)", "0002"},
		{"0/2000060", "0"}, {"0/1000028", "y"}, {"TIMELINE: 3", "TIMELINE: 0"}, {"(file 0", "(file g"},
	} {
		if _, err := ParseLabel([]byte(strings.Replace(label, edit[0], edit[1], 1))); !errors.Is(err, ErrLabel) {
			t.Errorf("%v: %v", edit, err)
		}
	}
	if _, err := ParseLabel([]byte(label + strings.Repeat("x\n", maxLabel))); !errors.Is(err, ErrLabel) {
		t.Errorf("huge label: %v", err)
	}
	back := strings.Replace(label, "CHECKPOINT", "STOP WAL LOCATION: 0/1 (file 000000010000000000000000)\nCHECKPOINT", 1)
	if _, err := ParseBackupHistory([]byte(back)); !errors.Is(err, ErrLabel) {
		t.Errorf("end before start: %v", err)
	}
}

func FuzzParseHistory(f *testing.F) {
	f.Add(uint32(3), read(f, "testdata/00000003.history"))
	f.Add(uint32(2), read(f, "testdata/00000002.history"))
	f.Fuzz(func(t *testing.T, tl uint32, text []byte) {
		h, err := ParseHistory(pg.Timeline(tl), text)
		if err != nil {
			return
		}
		again, err := ParseHistory(h.Timeline, []byte(h.String()))
		if err != nil || !reflect.DeepEqual(again, h) {
			t.Fatalf("%q: %+v printed and read again: %+v, %v", text, h, again, err)
		}
	})
}

func FuzzParseLabel(f *testing.F) {
	f.Add([]byte(label))
	f.Add(read(f, "testdata/000000010000000000000002.00000028.backup"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if l, err := ParseLabel(text); err == nil && (l.Start == 0 || l.Checkpoint == 0) {
			t.Fatalf("accepted %+v", l)
		}
		if l, err := ParseBackupHistory(text); err == nil && l.Stop < l.Start {
			t.Fatalf("accepted %+v", l)
		}
	})
}
