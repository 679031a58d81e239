package pgconn

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/producer/pgtest"
)

func TestStartSegment(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		lsn        string
		inRecovery bool
		want       string
	}{
		{"0/3000028", false, "000000010000000000000003"},
		// pg_walfile_name up to version 16 says ...02 here.
		{"0/3000000", false, "000000010000000000000003"},
		{"0/3000000", true, "000000010000000000000002"},
		{"0/68006298", true, "000000010000000000000068"},
		{"1/0", true, "0000000100000000000000FF"},
		{"0/0", true, "000000010000000000000000"},
	} {
		lsn, err := pg.ParseLSN(tc.lsn)
		if err != nil {
			t.Fatal(err)
		}
		if got := startSegment(lsn, 1, pg.DefaultSegmentSize, tc.inRecovery).String(); got != tc.want {
			t.Errorf("%s, in recovery %t: got %s, want %s", tc.lsn, tc.inRecovery, got, tc.want)
		}
	}
}

func TestStopNames(t *testing.T) {
	t.Parallel()
	start := Start{LSN: 0x3000028, segmentSize: pg.DefaultSegmentSize}
	s := Stop{LSN: 0x5000000, Timeline: 2}
	s.name(start)
	if got := s.Segment.String(); got != "000000020000000000000004" {
		t.Errorf("a stop on a boundary needs %s, want the segment before it", got)
	}
	if s.HistoryFile != "000000020000000000000003.00000028.backup" {
		t.Errorf("history file %s", s.HistoryFile)
	}
}

func TestCheckLabel(t *testing.T) {
	t.Parallel()
	const label = "START WAL LOCATION: 0/3000028 (file 000000010000000000000003)\nCHECKPOINT LOCATION: 0/3000060\nSTART TIMELINE: 1\n"
	good := Start{LSN: 0x3000028, Timeline: 1}
	if err := checkLabel(label, good); err != nil {
		t.Error(err)
	}
	for what, bad := range map[string]struct {
		label string
		start Start
	}{
		"timeline":    {label, Start{LSN: good.LSN, Timeline: 2}},
		"position":    {label, Start{LSN: good.LSN + 1, Timeline: 1}},
		"empty label": {"", good},
		"no position": {"START TIMELINE: 1\n", good},
		"bad LSN":     {strings.Replace(label, "0/3000028", "x", 1), good},
	} {
		if err := checkLabel(bad.label, bad.start); err == nil {
			t.Errorf("another %s is accepted", what)
		}
	}
}

// An idle backup session must outlive the limits of ordinary clients.
func TestSessionIsFreeOfTimeouts(t *testing.T) {
	t.Parallel()
	pgt := pgtest.New(t)
	limits := []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"}
	if pgt.Major() >= 14 {
		limits = append(limits, "idle_session_timeout")
	}
	if pgt.Major() >= 17 {
		limits = append(limits, "transaction_timeout")
	}
	for _, l := range limits {
		pgt.SQL("ALTER ROLE postgres SET " + l + " = '10min'")
	}
	c, err := Connect(t.Context(), Options{ConnString: pgt.ConnString()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	check := func() {
		t.Helper()
		for _, l := range limits {
			var role, session string
			err := c.conn.QueryRow(t.Context(), "SELECT reset_val, setting FROM pg_settings WHERE name = $1", l).Scan(&role, &session)
			if err != nil || role != "600000" || session != "0" {
				t.Errorf("%s: the role's %s, the session's %s, %v", l, role, session, err)
			}
		}
	}
	check()
	if _, err := c.StartBackup(t.Context(), "l", true); err != nil {
		t.Fatal(err)
	}
	if _, err := c.StopBackup(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	check()
}

// The table of the server's XLogArchiveIsBusy.
func TestArchiveBusy(t *testing.T) {
	t.Parallel()
	const seg = "000000010000000000000003"
	for _, tc := range []struct {
		name  string
		files []string
		want  bool
	}{
		{"done", []string{seg, "archive_status/" + seg + ".done"}, false},
		{"ready", []string{seg, "archive_status/" + seg + ".ready"}, true},
		{"ready, file gone", []string{"archive_status/" + seg + ".ready"}, true},
		{"not offered yet", []string{seg}, true},
		{"archived and recycled", nil, false},
		{"both", []string{seg, "archive_status/" + seg + ".done", "archive_status/" + seg + ".ready"}, false},
	} {
		wal := t.TempDir()
		if err := os.Mkdir(filepath.Join(wal, "archive_status"), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, f := range tc.files {
			if err := os.WriteFile(filepath.Join(wal, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := archiveBusy(wal, seg); err != nil || got != tc.want {
			t.Errorf("%s: got %t, %v, want %t", tc.name, got, err, tc.want)
		}
	}
	// A file in place of the directory is an error, not "gone".
	wal := t.TempDir()
	if err := os.WriteFile(filepath.Join(wal, "archive_status"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := archiveBusy(wal, seg); err == nil {
		t.Error("an unreadable archive_status is taken for an archived segment")
	}
}

// Whatever the inheritance, every relation is listed, and a child only below
// relations that have no parent.
func TestTopLevelLosesNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 30).Draw(t, "n")
		rels := make(map[uint32]relation)
		for i := range n {
			r := relation{oid: uint32(i + 1), fileNode: uint32(100 + i), name: "s." + string(rune('A'+i))}
			// A parent is older, so has a smaller oid; 999 is one that the
			// list does not hold.
			if i > 0 {
				r.parents = rapid.SliceOfN(rapid.Uint32Range(1, uint32(i)), 0, 3).Draw(t, "parents")
			}
			if rapid.Bool().Draw(t, "foreign parent") {
				r.parents = append(r.parents, 999)
			}
			rels[r.oid] = r
		}
		listed := make(map[uint32]bool)
		for name, top := range topLevel(rels) {
			if r := rels[top.OID]; r.name != name || len(r.known(rels)) > 0 {
				t.Fatalf("%s is top-level: %+v", name, r)
			}
			listed[top.OID] = true
			for name, sub := range top.Subtables {
				if r := rels[sub.OID]; r.name != name || len(r.known(rels)) == 0 || sub.Subtables != nil {
					t.Fatalf("%s is a subtable: %+v, %+v", name, r, sub)
				}
				listed[sub.OID] = true
			}
		}
		if len(listed) != n {
			t.Fatalf("%d of %d relations listed", len(listed), n)
		}
	})
}

// A damaged catalog must not hang the backup.
func TestTopLevelSurvivesACircle(t *testing.T) {
	t.Parallel()
	topLevel(map[uint32]relation{
		1: {oid: 1, name: "s.a", parents: []uint32{2}},
		2: {oid: 2, name: "s.b", parents: []uint32{1}},
	})
}

// TestLongWaitIsTold: someone who waits for a broken archive is told so, ever
// less often.
func TestLongWaitIsTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		wal := t.TempDir()
		if err := os.MkdirAll(filepath.Join(wal, "archive_status"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(wal, "archive_status", "000000010000000000000002.ready"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		var told []time.Duration
		err := awaitArchived(ctx, wal, "000000010000000000000002", func(so time.Duration) { told = append(told, so) })
		if want := []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute}; !errors.Is(err, context.DeadlineExceeded) || !slices.Equal(told, want) {
			t.Fatalf("told after %v, want %v; %v", told, want, err)
		}
	})
}
