package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/walherd/walherd/producer/pgtest"
)

// storeWAL puts empty segments first to last of a timeline into the storage:
// what is there is told by names.
func (b *bench) storeWAL(timeline, first, last int) {
	b.t.Helper()
	b.c.Run("/bin/mkdir", "-p", filepath.Join(b.storage, "wal_005"))
	for n := first; n <= last; n++ {
		if err := os.WriteFile(filepath.Join(b.storage, "wal_005", fmt.Sprintf("%08X%08X%08X.lz4", timeline, 0, n)), nil, 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bench) removeWAL(timeline, n int) {
	b.t.Helper()
	if err := os.Remove(filepath.Join(b.storage, "wal_005", fmt.Sprintf("%08X%08X%08X.lz4", timeline, 0, n))); err != nil {
		b.t.Fatal(err)
	}
}

// storeBackup puts the documents of a backup from segment first to last into
// the storage; members are added to its metadata.
func (b *bench) storeBackup(timeline, first, last int, members string) (name string) {
	b.t.Helper()
	name = fmt.Sprintf("base_%08X%08X%08X", timeline, 0, first)
	start, finish := first<<24+0x28, last<<24+0x100
	b.store("basebackups_005/"+name+"/metadata.json", fmt.Sprintf(
		`{"start_time":"2026-11-22T16:27:52.701819Z","finish_time":"2026-11-22T16:27:54Z","date_fmt":"%%Y-%%m-%%dT%%H:%%M:%%S.%%fZ","hostname":"vm","data_dir":"/data","pg_version":150018,"start_lsn":%d,"finish_lsn":%d,"system_identifier":7,"uncompressed_size":2,"compressed_size":1%s}`,
		start, finish, members))
	b.store("basebackups_005/"+name+"_backup_stop_sentinel.json", fmt.Sprintf(`{"LSN":%d,"FinishLSN":%d,"PgVersion":150018}`, start, finish))
	return name
}

// statusOf is what wal-verify --json says of integrity: the verdict, and the
// ranges in short.
func statusOf(t *testing.T, out string) (verdict string, ranges []string) {
	t.Helper()
	var checks struct {
		Integrity struct {
			Status  string
			Details []struct {
				Timeline int    `json:"timeline_id"`
				Start    string `json:"start_segment"`
				End      string `json:"end_segment"`
				Status   string
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &checks); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, d := range checks.Integrity.Details {
		ranges = append(ranges, fmt.Sprintf("%d:%s-%s %s", d.Timeline, strings.TrimLeft(d.Start[8:], "0"), strings.TrimLeft(d.End[8:], "0"), d.Status))
	}
	return checks.Integrity.Status, ranges
}

// TestWALShow: rows 146 to 151 of the reference's list.
func TestWALShow(t *testing.T) {
	t.Parallel()
	b := toolBench(t)
	if out := b.must("wal-show"); strings.Count(out, "\n") != 4 || !strings.HasPrefix(out, "+-----+") {
		t.Errorf("empty: %s", out)
	}
	if out := b.must("wal-show", "--detailed-json"); out != "[]" {
		t.Errorf("empty: %q", out)
	}
	b.storeWAL(1, 1, 0x1B)
	b.storeWAL(2, 0x1C, 0x1D)
	b.store("wal_005/00000002.history", "1\t0/1C000000\tno recovery target specified\n")
	b.store("wal_005/000000010000000000000003.00000028.backup.lz4", "")
	first := b.storeBackup(1, 3, 3, `,"is_permanent":true,"user_data":{"x":1}`)
	b.storeBackup(1, 8, 9, "")
	b.storeBackup(2, 0x1D, 0x1E, "") // needs a segment that is not stored
	const table = `+-----+------------+-----------------+--------------------------+--------------------------+---------------+----------------+--------+---------------+
| TLI | PARENT TLI | SWITCHPOINT LSN | START SEGMENT            | END SEGMENT              | SEGMENT RANGE | SEGMENTS COUNT | STATUS | BACKUPS COUNT |
+-----+------------+-----------------+--------------------------+--------------------------+---------------+----------------+--------+---------------+
|   1 |          0 |             0/0 | 000000010000000000000001 | 00000001000000000000001B |            27 |             27 | OK     |             2 |
|   2 |          1 |      0/1C000000 | 00000002000000000000001C | 00000002000000000000001D |             2 |              2 | OK     |             0 |
+-----+------------+-----------------+--------------------------+--------------------------+---------------+----------------+--------+---------------+
`
	if out := b.must("wal-show"); out != table {
		t.Errorf("got\n%swant\n%s", out, table)
	}
	if out := b.must("wal-show", "--without-backups"); strings.Contains(out, "BACKUPS") {
		t.Errorf("without backups:\n%s", out)
	}
	b.removeWAL(1, 5)
	b.removeWAL(1, 6)
	if out := b.must("wal-show"); !strings.Contains(out, "|            27 |             25 | LOST_SEGMENTS |") {
		t.Errorf("with a gap:\n%s", out)
	}
	out := b.must("wal-show", "--detailed-json")
	var list []struct {
		ID      int      `json:"id"`
		Missing []string `json:"missing_segments"`
		Status  string   `json:"status"`
		Backups []struct {
			Name      string          `json:"backup_name"`
			Permanent bool            `json:"is_permanent"`
			UserData  json.RawMessage `json:"user_data"`
		} `json:"backups"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil || strings.HasSuffix(out, "\n") {
		t.Fatalf("%v: %q", err, out)
	}
	if len(list) != 2 || list[0].Status != "LOST_SEGMENTS" || list[1].Status != "OK" ||
		!slices.Equal(list[0].Missing, []string{"000000010000000000000006", "000000010000000000000005"}) ||
		len(list[0].Backups) != 2 || list[0].Backups[0].Name != first || !list[0].Backups[0].Permanent || string(list[0].Backups[0].UserData) != `{"x":1}` {
		t.Errorf("in detail: %s", out)
	}
	if out := b.must("wal-show", "--detailed-json", "--without-backups"); strings.Contains(out, "backups") {
		t.Errorf("in detail, without backups: %s", out)
	}
	// A storage that has what the other lacks closes the gap, as it does for
	// wal-fetch.
	spare := folder(t, b.c, "spare")
	both := config(t, map[string]any{"WALG_FILE_PREFIX": b.storage, "WALG_FAILOVER_STORAGES": map[string]any{"spare": map[string]string{"WALG_FILE_PREFIX": spare}}})
	for _, n := range []string{"000000010000000000000005.lz4", "000000010000000000000006.zst"} {
		b.c.Run("/bin/mkdir", "-p", filepath.Join(spare, "wal_005"))
		if err := os.WriteFile(filepath.Join(spare, "wal_005", n), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b.env = []string{"HOME=" + folder(t, b.c, "home")}
	if out := b.must("--config", both, "wal-show"); out != table {
		t.Errorf("of both storages:\n%s", out)
	}
	if out := b.must("--config", both, "wal-show", "--target-storage", "default"); !strings.Contains(out, "LOST_SEGMENTS") {
		t.Errorf("of one storage:\n%s", out)
	}
}

// TestWALVerify: rows 152 to 167 and 239, on archives as they may be.
func TestWALVerify(t *testing.T) {
	t.Parallel()
	b := toolBench(t)
	at := func(lsn string, more ...string) []string {
		return append([]string{"wal-verify", "integrity", "--json", "--timeline", "1", "--lsn", lsn}, more...)
	}
	expect := func(what, verdict string, ranges []string, out string) {
		t.Helper()
		if v, r := statusOf(t, out); v != verdict || !slices.Equal(r, ranges) {
			t.Errorf("%s: %s %v, want %s %v", what, v, r, verdict, ranges)
		}
	}
	if out := b.must("wal-verify", "timeline", "--timeline", "1", "--lsn", "0/1000000"); out !=
		"[wal-verify] timeline check status: WARNING\n[wal-verify] timeline check details:\nHighest timeline found in storage: 0\nCurrent cluster timeline: 1\n" {
		t.Errorf("empty: %s", out)
	}
	b.storeWAL(1, 3, 0x1B)
	b.env = []string{"WALG_UPLOAD_CONCURRENCY=1"}
	expect("without a backup, from segment 1 on", "WARNING", []string{"1:1-2 MISSING_LOST", "1:3-1B FOUND"}, b.must(at("0/1C000100")...))
	b.storeBackup(1, 5, 5, `,"is_permanent":true`)
	b.storeBackup(1, 8, 8, "")
	late := b.storeBackup(1, 0x12, 0x12, "")
	whole := []string{"1:8-1B FOUND"}
	expect("from the oldest backup that is not permanent", "OK", whole, b.must(at("0/1C000100")...))
	expect("the segment that the server is in does not count", "OK", whole, b.must(at("0/1CFFFFF0")...))
	expect("back to a named backup", "OK", []string{"1:5-1B FOUND"}, b.must(at("0/1C000100", "--backup-name", "base_000000010000000000000005")...))
	expect("back to another", "OK", []string{"1:12-1B FOUND"}, b.must(at("0/1C000100", "--backup-name", late)...))
	b.fails("no such backup", at("0/1C000100", "--backup-name", "LATEST")...)

	gap := []string{"1:8-F FOUND", "1:10-10 MISSING_LOST", "1:11-1B FOUND"}
	b.removeWAL(1, 0x10)
	expect("an old gap", "FAILURE", gap, b.must(at("0/1C000100")...)) // and the exit code is 0
	if r := b.run(nil, at("0/1C000100", "--exit-code")...); r.code != 1 {
		t.Errorf("--exit-code: %+v", r)
	} else {
		expect("--exit-code", "FAILURE", gap, r.stdout)
	}
	b.must(at("0/10000100", "--exit-code")...)
	r := b.run([]string{"WALG_UPLOAD_CONCURRENCY=16"}, at("0/1C000100")...)
	expect("a gap that may be on its way", "WARNING", []string{"1:8-F FOUND", "1:10-10 MISSING_UPLOADING", "1:11-1B FOUND"}, r.stdout)
	r = b.run([]string{"WALG_INTEGRITY_MAX_DELAYED_WALS=2"}, at("0/1E000000")...)
	expect("the newest two are not there yet", "FAILURE", []string{"1:8-F FOUND", "1:10-10 MISSING_LOST", "1:11-1B FOUND", "1:1C-1D MISSING_DELAYED"}, r.stdout)
	b.storeWAL(1, 0x10, 0x10)
	r = b.run([]string{"WALG_INTEGRITY_MAX_DELAYED_WALS=2"}, at("0/1E000000")...)
	expect("the newest two are not there yet", "WARNING", []string{"1:8-1B FOUND", "1:1C-1D MISSING_DELAYED"}, r.stdout)

	// A second timeline, with and without its history.
	b.storeWAL(2, 0x1C, 0x1D)
	b.store("wal_005/00000002.history", "1\t0/1C000080\tno recovery target specified\n")
	out := b.must("wal-verify", "timeline", "integrity", "integrity", "--timeline", "2", "--lsn", "0/1E000000")
	if want := `[wal-verify] integrity check status: OK
[wal-verify] integrity check details:
+-----+--------------------------+--------------------------+----------------+--------+
| TLI | START                    | END                      | SEGMENTS COUNT | STATUS |
+-----+--------------------------+--------------------------+----------------+--------+
|   1 | 000000010000000000000008 | 00000001000000000000001B |             20 |  FOUND |
|   2 | 00000002000000000000001C | 00000002000000000000001D |              2 |  FOUND |
+-----+--------------------------+--------------------------+----------------+--------+
[wal-verify] timeline check status: OK
[wal-verify] timeline check details:
Highest timeline found in storage: 2
Current cluster timeline: 2
`; out != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
	if out := b.must("wal-verify", "timeline", "--json", "--timeline", "1", "--lsn", "0/1E000000"); out !=
		`{"timeline":{"status":"FAILURE","details":{"current_timeline_id":1,"highest_storage_timeline_id":2}}}` {
		t.Errorf("an old primary: %s", out)
	}

	for _, args := range [][]string{
		{}, {"checksums"}, {"integrity", "checksums"}, {"integrity", "--timeline", "1"}, {"integrity", "--lsn", "0/1"},
		{"integrity", "--timeline", "0", "--lsn", "0/1"}, {"integrity", "--timeline", "1", "--lsn", "16777216"},
	} {
		if r := b.run(nil, append([]string{"wal-verify"}, args...)...); r.code != 1 || !strings.Contains(r.stderr, "Usage:") {
			t.Errorf("wal-verify %v: %+v", args, r)
		}
	}
	b.fails("", "wal-verify", "integrity") // there is no server
}

// segments are those in a directory of WAL.
func segments(t *testing.T, dir string) (names []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if len(e.Name()) == 24 {
			names = append(names, e.Name())
		}
	}
	return names
}

// controlData is a line of pg_controldata.
func controlData(t *testing.T, c *pgtest.Cluster, label string) string {
	t.Helper()
	for line := range strings.Lines(c.Run("pg_controldata", "-D", c.DataDir())) {
		if value, ok := strings.CutPrefix(line, label+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("pg_controldata has no %q", label)
	return ""
}

// TestWALRestore: a primary and its promoted standby went apart and both have
// removed WAL since. wal-restore brings back what pg_rewind needs, which
// without it fails, and the rewound server follows the new timeline. On the
// way, rows 160 to 163 and 202 to 204.
func TestWALRestore(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil, pgtest.WithConf("wal_recycle = off"))
	old := b.c
	old.SQL("CREATE TABLE t AS SELECT 'common' AS what")
	b.must("backup-push", old.DataDir())
	standby := old.NewStandby()
	onNew := *b
	onNew.c = standby
	write := func(c *pgtest.Cluster, what string, n int) {
		for range n {
			c.SQL(fmt.Sprintf("INSERT INTO t VALUES ('%s')", what))
			c.SQL("SELECT pg_switch_wal()")
		}
	}
	old.SQL("CHECKPOINT") // the last that both have
	write(old, "common", 2)
	old.CatchUp(standby)
	standby.Promote()
	write(old, "lost", 2)
	b.archived()
	old.SQL("CHECKPOINT")
	write(standby, "new", 1)
	onNew.archived()
	standby.SQL("CHECKPOINT")

	onNew.env = append(onNew.env, "WALG_UPLOAD_CONCURRENCY=1")
	out := onNew.must("wal-verify", "integrity", "timeline", "--json", "--exit-code")
	if v, r := statusOf(t, out); v != "OK" || len(r) != 2 || !strings.HasPrefix(r[0], "1:") || !strings.HasPrefix(r[1], "2:") {
		t.Errorf("the new primary's WAL: %s", out)
	}
	if r := b.run(nil, "wal-verify", "timeline", "--exit-code"); r.code != 1 || !strings.Contains(r.stdout, "check status: FAILURE") {
		t.Errorf("the old primary beside the new one's WAL: %+v", r)
	}
	old.Stop(pgtest.Fast)
	standby.Stop(pgtest.Fast)

	// Of the old primary's WAL only the last is left, and of the new one's.
	kept := map[string]string{}
	for _, c := range []*pgtest.Cluster{old, standby} {
		last := controlData(t, c, "Latest checkpoint's REDO WAL file")
		for _, name := range segments(t, c.WALDir()) {
			if name < last {
				path := filepath.Join(c.WALDir(), name)
				kept[path] = read(t, path)
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if len(kept) == 0 {
		t.Fatal("there was nothing to remove")
	}
	rewind := []string{"--target-pgdata=" + old.DataDir(), "--source-pgdata=" + standby.DataDir()}
	if out, err := old.RunErr("pg_rewind", rewind...); err == nil {
		t.Fatalf("pg_rewind needs no WAL: %s", out)
	}
	// A file that cannot be fetched is a failure.
	archive := filepath.Join(b.storage, "wal_005")
	b.c.Run("/bin/mv", archive, archive+".away")
	b.fails("not in the archive", "wal-restore", old.DataDir(), standby.DataDir())
	b.c.Run("/bin/mv", archive+".away", archive)

	r := b.run(nil, "wal-restore", old.DataDir(), standby.DataDir())
	if r.code != 0 || !strings.Contains(r.stderr, "restored ") {
		t.Fatalf("wal-restore: %+v", r)
	}
	restored := map[string]bool{}
	for path, content := range kept {
		if _, err := os.Stat(path); err != nil {
			continue
		}
		restored[filepath.Dir(path)] = true
		if read(t, path) != content {
			t.Errorf("%s is not what it was", path)
		}
	}
	if !restored[old.WALDir()] || !restored[standby.WALDir()] {
		t.Errorf("restored for %v of both", restored)
	}
	if r := b.run(nil, "wal-restore", old.DataDir(), standby.DataDir()); r.code != 0 || !strings.Contains(r.stderr, "No WAL files to restore") {
		t.Errorf("the second time: %+v", r)
	}
	b.fails("same timeline", "wal-restore", old.DataDir(), old.DataDir())
	b.fails("pg_control", "wal-restore", old.DataDir(), t.TempDir())
	if out, err := old.RunErr("pg_rewind", rewind...); err != nil {
		t.Fatalf("pg_rewind: %v\n%s", err, out)
	}
	old.Recover(fmt.Sprintf(`env %s %s wal-fetch %%f "%%p"`, shellWords(b.environ()), b.program))
	old.Start()
	old.Await("SELECT pg_is_in_recovery()", "f")
	if got := old.SQL("SELECT what, count(*) FROM t GROUP BY 1 ORDER BY 1"); got != "common|3\nnew|1" {
		t.Errorf("after the rewind: %s", got)
	}
}

// TestWALRestoreOfOthers: clusters that have nothing to do with each other.
func TestWALRestoreOfOthers(t *testing.T) {
	t.Parallel()
	b := toolBench(t)
	other := pgtest.New(t, pgtest.Stopped(), pgtest.WithOwnSystemID())
	b.fails("different clusters", "wal-restore", b.c.DataDir(), other.DataDir())
	b.fails("accepts 2 arg", "wal-restore", b.c.DataDir())
}
