package restore

import (
	"errors"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
)

func TestParseTargetTime(t *testing.T) {
	t.Parallel()
	want := time.Date(2026, 1, 31, 2, 55, 0, 0, time.UTC)
	for _, text := range []string{
		"2026-01-31 02:55:00+00", "2026-01-31T02:55:00Z", "2026-01-31 02:55 UTC", " 2026-01-31 08:25:00+05:30", "2026-01-31 08:25:00 +0530", "2026-01-30 21:55:00.000-05",
	} {
		if got, err := ParseTargetTime(text); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "2026-01-31 02:55:00", "2026-01-31T02:55:00.5", "yesterday", "2026-02-30 00:00:00Z", "2026-01-31 02:55:00 CET"} {
		if got, err := ParseTargetTime(text); err == nil {
			t.Errorf("%q was taken for %v", text, got)
		}
	}
}

func TestRecoveryEdit(t *testing.T) {
	t.Parallel()
	r := &Recovery{RestoreCommand: `'/it''s\a' "%f"`, Name: `it's`, Action: "promote"}
	old := "# kept\nwork_mem = '1MB'\nrecovery_target_time = 'old'\nRestore_Command 'old'\nlast = 'x'"
	want := `# kept
work_mem = '1MB'
last = 'x'
restore_command = '''/it''''s\\a'' "%f"'
recovery_target = ''
recovery_target_time = ''
recovery_target_lsn = ''
recovery_target_xid = ''
recovery_target_name = 'it''s'
recovery_target_inclusive = 'on'
recovery_target_timeline = 'latest'
recovery_target_action = 'promote'
`
	got := string(r.Edit([]byte(old)))
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if again := string(r.Edit([]byte(got))); again != want {
		t.Errorf("edited again:\n%s", again)
	}
}

func TestRecoveryCheck(t *testing.T) {
	t.Parallel()
	end, lsn := time.Date(2026, 1, 31, 3, 0, 0, 0, time.UTC), pg.LSN(500)
	s := &manifest.Sentinel{FinishTime: end, FinishLSN: &lsn}
	const later = "base_000000020000000000000002"
	for name, tt := range map[string]struct {
		r       Recovery
		ok, far bool
	}{
		"none":            {Recovery{}, true, false},
		"at the end":      {Recovery{Time: end}, true, false},
		"before the end":  {Recovery{Time: end.Add(-1)}, false, true},
		"LSN at the end":  {Recovery{LSN: 500, Exclusive: true}, true, false},
		"LSN before":      {Recovery{LSN: 499}, false, true},
		"old timeline":    {Recovery{Timeline: "1"}, false, true},
		"its timeline":    {Recovery{Timeline: "2"}, true, false},
		"no timeline":     {Recovery{Timeline: "0x2"}, false, false},
		"two":             {Recovery{Name: "x", Immediate: true}, false, false},
		"exclusive":       {Recovery{Exclusive: true}, false, false},
		"exclusive name":  {Recovery{Name: "x", Exclusive: true}, false, false},
		"action":          {Recovery{XID: "7", Action: "halt"}, false, false},
		"aimless action":  {Recovery{Action: "promote"}, false, false},
		"XID":             {Recovery{XID: "-7"}, false, false},
		"a line too many": {Recovery{Name: "x\nfsync = off"}, false, false},
	} {
		if err := tt.r.Check(later, s); (err == nil) != tt.ok || errors.Is(err, ErrTarget) != tt.far {
			t.Errorf("%s: %v", name, err)
		}
	}
}
