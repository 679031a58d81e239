package render_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
	"github.com/walherd/walherd/tools/walherd/render"
)

const walSize = pg.SegmentSize(16 << 20)

func inventory(t *testing.T, tl pg.Timeline, numbers ...uint64) *catalog.Inventory {
	t.Helper()
	v, err := catalog.NewInventory(walSize)
	if err != nil {
		t.Fatal(err)
	}
	add(v, tl, numbers...)
	return v
}

func add(v *catalog.Inventory, tl pg.Timeline, numbers ...uint64) {
	for _, n := range numbers {
		v.Add("default", "wal_005/"+pg.SegmentAt(tl, n, walSize).String()+".lz4", time.Unix(0, 0))
	}
}

func span(first, last uint64) (numbers []uint64) {
	for n := first; n <= last; n++ {
		numbers = append(numbers, n)
	}
	return numbers
}

func timelines(t *testing.T, v *catalog.Inventory, opt render.TimelineOptions, backups ...render.Backup) string {
	t.Helper()
	var list []render.Timeline
	for _, r := range v.Show() {
		list = append(list, render.Timeline{TimelineReport: r, Backups: backups})
	}
	var out bytes.Buffer
	if err := render.Timelines(&out, list, opt); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestTimelines holds wal-show against what WAL-G prints.
func TestTimelines(t *testing.T) {
	t.Parallel()
	v := inventory(t, 1, span(1, 27)...)
	add(v, 2, 28, 29)
	v.AddHistory(wal.History{Timeline: 2, Switches: []wal.Switch{{Timeline: 1, LSN: 0x1C000000}}})
	for n := range uint64(15) {
		start := pg.SegmentAt(1, 3+n, walSize)
		v.Add("default", fmt.Sprintf("basebackups_005/base_%s_backup_stop_sentinel.json", start), time.Unix(0, 0))
	}
	const table = `+-----+------------+-----------------+--------------------------+--------------------------+---------------+----------------+---------------+---------------+
| TLI | PARENT TLI | SWITCHPOINT LSN | START SEGMENT            | END SEGMENT              | SEGMENT RANGE | SEGMENTS COUNT | STATUS        | BACKUPS COUNT |
+-----+------------+-----------------+--------------------------+--------------------------+---------------+----------------+---------------+---------------+
|   1 |          0 |             0/0 | 000000010000000000000001 | 00000001000000000000001B |            27 |             26 | LOST_SEGMENTS |            15 |
|   2 |          1 |      0/1C000000 | 00000002000000000000001C | 00000002000000000000001D |             2 |              2 | OK            |             0 |
+-----+------------+-----------------+--------------------------+--------------------------+---------------+----------------+---------------+---------------+
`
	gap := inventory(t, 1, append(span(1, 8), span(10, 27)...)...)
	add(gap, 2, 28, 29)
	gap.AddHistory(wal.History{Timeline: 2, Switches: []wal.Switch{{Timeline: 1, LSN: 0x1C000000}}})
	for n := range uint64(15) {
		gap.Add("default", fmt.Sprintf("basebackups_005/base_%s_backup_stop_sentinel.json", pg.SegmentAt(1, 3+n, walSize)), time.Unix(0, 0))
	}
	if got := timelines(t, gap, render.TimelineOptions{}); got != table {
		t.Errorf("got\n%s\nwant\n%s", got, table)
	}
	if got := timelines(t, v, render.TimelineOptions{NoBackups: true}); strings.Contains(got, "BACKUPS") || !strings.Contains(got, "| OK     |\n") {
		t.Errorf("without backups:\n%s", got)
	}
	if got := timelines(t, inventory(t, 1), render.TimelineOptions{}); strings.Count(got, "\n") != 4 || !strings.Contains(got, "| TLI |") {
		t.Errorf("empty:\n%s", got)
	}
}

func TestTimelinesJSON(t *testing.T) {
	t.Parallel()
	if got := timelines(t, inventory(t, 1), render.TimelineOptions{JSON: true}); got != "[]" {
		t.Errorf("empty: %q", got)
	}
	const one = `[{"id":1,"parent_id":0,"switch_point_lsn":0,"start_segment":"000000010000000000000002","end_segment":"000000010000000000000004","segments_count":2,"missing_segments":["000000010000000000000003"],"segment_range_size":3,"status":"LOST_SEGMENTS"}]`
	if got := timelines(t, inventory(t, 1, 2, 4), render.TimelineOptions{JSON: true}); got != one {
		t.Errorf("got  %s\nwant %s", got, one)
	}
	got := timelines(t, inventory(t, 1, 2, 3, 6), render.TimelineOptions{JSON: true}, sample()...)
	var list []struct {
		Missing []string         `json:"missing_segments"`
		Backups []map[string]any `json:"backups"`
	}
	if err := json.Unmarshal([]byte(got), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || strings.Join(list[0].Missing, " ") != "000000010000000000000005 000000010000000000000004" {
		t.Errorf("missing, newest first: %s", got)
	}
	var want bytes.Buffer
	if err := render.Backups(&want, sample(), render.Options{JSON: true, Detail: true}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(got, `,"backups":`+strings.TrimSuffix(want.String(), "\n")+`,"segment_range_size"`) {
		t.Errorf("backups are not as in backup-list:\n%s", got)
	}
	var list2 []render.Timeline
	for _, r := range inventory(t, 1, 1, 1<<39).Show() {
		list2 = append(list2, render.Timeline{TimelineReport: r})
	}
	if err := render.Timelines(&want, list2, render.TimelineOptions{JSON: true}); err == nil {
		t.Error("half a million million names were to be written")
	}
}

// TestVerification holds wal-verify against what WAL-G prints.
func TestVerification(t *testing.T) {
	t.Parallel()
	v := inventory(t, 1, append(span(8, 15), span(17, 25)...)...)
	v.Add("default", "basebackups_005/base_000000010000000000000008_backup_stop_sentinel.json", time.Unix(0, 0))
	check := func(v *catalog.Inventory, current uint64, integrity, timeline bool) (r render.Verification) {
		t.Helper()
		if integrity {
			rep, err := v.VerifyIntegrity(catalog.IntegrityCheck{Timeline: 1, LSN: pg.LSN(current * uint64(walSize))})
			if err != nil {
				t.Fatal(err)
			}
			r.Integrity = &rep
		}
		if timeline {
			c := v.VerifyTimeline(1)
			r.Timeline = &c
		}
		return r
	}
	for name, c := range map[string]struct {
		v      render.Verification
		json   bool
		failed bool
		want   string
	}{
		"both": {check(v, 26, true, true), false, true, `[wal-verify] integrity check status: FAILURE
[wal-verify] integrity check details:
+-----+--------------------------+--------------------------+----------------+--------------+
| TLI | START                    | END                      | SEGMENTS COUNT |       STATUS |
+-----+--------------------------+--------------------------+----------------+--------------+
|   1 | 000000010000000000000008 | 00000001000000000000000F |              8 |        FOUND |
|   1 | 000000010000000000000010 | 000000010000000000000010 |              1 | MISSING_LOST |
|   1 | 000000010000000000000011 | 000000010000000000000019 |              9 |        FOUND |
+-----+--------------------------+--------------------------+----------------+--------------+
[wal-verify] timeline check status: OK
[wal-verify] timeline check details:
Highest timeline found in storage: 1
Current cluster timeline: 1
`},
		"JSON": {check(inventory(t, 1, span(8, 27)...), 28, true, false), true, false,
			`{"integrity":{"status":"WARNING","details":[{"timeline_id":1,"start_segment":"000000010000000000000001","end_segment":"000000010000000000000007","segments_count":7,"status":"MISSING_LOST"},{"timeline_id":1,"start_segment":"000000010000000000000008","end_segment":"00000001000000000000001B","segments_count":20,"status":"FOUND"}]}}`},
		"nothing scanned": {check(inventory(t, 1), 1, true, true), true, false,
			`{"integrity":{"status":"OK","details":null},"timeline":{"status":"WARNING","details":{"current_timeline_id":1,"highest_storage_timeline_id":0}}}`},
		"timeline": {check(inventory(t, 2, 1), 1, false, true), false, true,
			"[wal-verify] timeline check status: FAILURE\n[wal-verify] timeline check details:\nHighest timeline found in storage: 2\nCurrent cluster timeline: 1\n"},
	} {
		var out bytes.Buffer
		if err := c.v.Write(&out, c.json); err != nil {
			t.Fatal(err)
		}
		if out.String() != c.want || c.v.Failed() != c.failed {
			t.Errorf("%s: failed %t, got\n%s\nwant\n%s", name, c.v.Failed(), out.String(), c.want)
		}
	}
}

// Two segments of two clusters may lie further apart than any memory has room for
// the names between them.
func TestTimelinesJSONIsBounded(t *testing.T) {
	t.Parallel()
	var list []render.Timeline
	for _, r := range inventory(t, 1, 1, 1<<30).Show() {
		list = append(list, render.Timeline{TimelineReport: r})
	}
	var out bytes.Buffer
	err := render.Timelines(&out, list, render.TimelineOptions{JSON: true, NoBackups: true})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprint(render.MaxMissing)) || out.Len() > 1000 {
		t.Errorf("error %v after %d bytes", err, out.Len())
	}
	if err := render.Timelines(&out, list, render.TimelineOptions{NoBackups: true}); err != nil || !strings.Contains(out.String(), catalog.TimelineLost) {
		t.Errorf("the table: %v\n%s", err, out.String())
	}
}
