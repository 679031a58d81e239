package e2e

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/walherd/walherd/producer/pgtest"
)

// TestCycle is what walherd is for, once per compression: a server under load
// is backed up with nothing configured but a storage, lost, restored and
// recovered to its last archived commit.
func TestCycle(t *testing.T) {
	t.Parallel()
	for name, env := range map[string][]string{
		"lz4":            {"WALG_COMPRESSION_METHOD=lz4"},
		"zstd-libsodium": {"WALG_COMPRESSION_METHOD=zstd", "WALG_LIBSODIUM_KEY=0123456789abcdef0123456789abcdef"},
		"none":           {"WALG_COMPRESSION_METHOD=none"},
		"brotli":         {"WALG_COMPRESSION_METHOD=brotli"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, append(env, "WALG_TAR_SIZE_THRESHOLD=10000000", "WALG_UPLOAD_DISK_CONCURRENCY=2"))
			b.c.Run("pgbench", "-i", "-q", "-s", "2", "postgres")
			space := filepath.Join(pgtest.TempDir(t), "space ü")
			b.c.Run("/bin/mkdir", space)
			b.c.SQL(`CREATE TABLESPACE "odd space" LOCATION '` + space + `'`)
			b.c.SQL(`CREATE DATABASE "odd ""name"" é"`)
			b.c.SQL(`CREATE TABLE "tä ble" (x) TABLESPACE "odd space" AS SELECT generate_series(1, 10000)`)

			load, stop := context.WithCancel(t.Context())
			defer stop()
			pgbench := b.c.Command(load, "pgbench", "-n", "-c", "2", "-T", "600", "postgres")
			if err := pgbench.Start(); err != nil {
				t.Fatal(err)
			}
			b.must("backup-push", b.c.DataDir(), "--add-user-data", `{"who":"cycle"}`)
			b.c.SQL("CREATE TABLE after_backup AS SELECT 42 AS x")
			stop()
			_ = pgbench.Wait() // killed
			b.c.Await("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'", "0")
			want := b.c.SQL(bankSums)
			b.archived()
			b.c.Kill()
			if err := os.RemoveAll(b.c.DataDir()); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(space); err != nil {
				t.Fatal(err)
			}

			r := b.restore("LATEST")
			if got := r.SQL(bankSums); got != want {
				t.Errorf("restored sums %s, want %s", got, want)
			}
			if got := r.SQL(`SELECT x FROM after_backup`); got != "42" {
				t.Errorf("what came after the backup: %q", got)
			}
			if got := r.SQL(`SELECT sum(x) FROM "tä ble"`); got != "50005000" {
				t.Errorf("table in the tablespace: %q", got)
			}
			amcheck(t, r)
			checksums(t, r)
		})
	}
}

// TestListShapes reads the JSON that scripts read.
func TestListShapes(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	if out := b.must("backup-list", "--json"); strings.TrimSpace(out) != "[]" {
		t.Fatalf("empty list: %q", out)
	}
	if out := b.must("backup-list"); out != "" {
		t.Fatalf("empty list: %q", out)
	}
	b.must("backup-push", b.c.DataDir(), "--permanent", "--add-user-data", `{"x":[3],"y":"a<b"}`)
	b.must("backup-push", b.c.DataDir())
	var list []struct {
		Name      string          `json:"backup_name"`
		Storage   string          `json:"storage_name"`
		Permanent bool            `json:"is_permanent"`
		SystemID  uint64          `json:"system_identifier"`
		Size      int64           `json:"uncompressed_size"`
		UserData  json.RawMessage `json:"user_data"`
	}
	if err := json.Unmarshal([]byte(b.must("backup-list", "--detail", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || !list[0].Permanent || list[1].Permanent || list[0].Storage != "default" {
		t.Fatalf("list: %+v", list)
	}
	if strings.Contains(list[1].Name, "_D_") {
		t.Fatalf("an increment nobody asked for: %s", list[1].Name)
	}
	for zone, want := range map[string]string{"America/Bogota": "-05:00", "Asia/Kolkata": "+05:30"} {
		if r := b.run([]string{"TZ=" + zone}, "backup-list"); r.code != 0 || !strings.Contains(r.stdout, want) {
			t.Errorf("TZ=%s: %+v", zone, r)
		}
	}
	if got := b.c.SQL("SELECT system_identifier FROM pg_control_system()"); got != jsonNumber(list[0].SystemID) {
		t.Fatalf("system identifier %d, the server says %s", list[0].SystemID, got)
	}
	if list[0].Size < 10<<20 {
		t.Fatalf("uncompressed size %d", list[0].Size)
	}
	plain := strings.Fields(b.must("backup-list"))
	if !slices.Equal(plain[:4], []string{"backup_name", "modified", "wal_file_name", "storage_name"}) || len(plain) != 12 {
		t.Fatalf("plain list: %q", plain)
	}
	// By user data, whatever the order of its members.
	dir := filepath.Join(pgtest.TempDir(t), "by-user-data")
	r := b.run(nil, "backup-fetch", dir, "--target-user-data", `{"y":"a<b","x":[3]}`)
	if r.code != 0 || !strings.Contains(r.stderr, list[0].Name) {
		t.Fatalf("fetch by user data: %+v", r)
	}
}

func jsonNumber(n uint64) string {
	b, err := json.Marshal(n)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// TestLayout holds what is stored against the format's promises, with tools
// that are not ours.
func TestLayout(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.must("backup-push", b.c.DataDir())
	b.archived()
	objects := b.objects()
	name := ""
	for _, o := range objects {
		if s, ok := strings.CutSuffix(o, "_backup_stop_sentinel.json"); ok {
			name = filepath.Base(s)
		}
	}
	for _, want := range []string{"metadata.json", "files_metadata.json", "tar_partitions/part_001.tar.lz4", "tar_partitions/pg_control.tar.lz4", "tar_partitions/backup_label.tar.lz4"} {
		if !slices.Contains(objects, "basebackups_005/"+name+"/"+want) {
			t.Errorf("no %s in %v", want, objects)
		}
	}
	segment := strings.TrimPrefix(name, "base_")
	for _, want := range []string{segment + ".lz4", segment + ".00000028.backup.lz4"} {
		if !slices.Contains(objects, "wal_005/"+want) {
			t.Errorf("no WAL object %s in %v", want, objects)
		}
	}
	tarList := func(object string) string {
		out, err := exec.Command("sh", "-c", "lz4 -dc \"$1\" | tar -tvf -", "sh",
			filepath.Join(b.storage, "basebackups_005", name, "tar_partitions", object)).CombinedOutput()
		if err != nil {
			t.Fatalf("tar -t %s: %v\n%s", object, err, out)
		}
		return string(out)
	}
	part := tarList("part_001.tar.lz4")
	for _, want := range []string{" /base/1/PG_VERSION\n", " /pg_wal\n", " /postgresql.conf\n"} {
		if !strings.Contains(part, want) {
			t.Errorf("part_001 lacks %q", want)
		}
	}
	for _, not := range []string{"postmaster.pid", "/pg_wal/0", "global/pg_control\n"} {
		if strings.Contains(part, not) {
			t.Errorf("part_001 has %q", not)
		}
	}
	if got := tarList("backup_label.tar.lz4"); !strings.Contains(got, " backup_label\n") || !strings.Contains(got, " tablespace_map\n") {
		t.Errorf("backup_label.tar: %s", got)
	}
	if got := tarList("pg_control.tar.lz4"); !strings.HasSuffix(strings.TrimSpace(got), "/global/pg_control") {
		t.Errorf("pg_control.tar: %s", got)
	}
}

// TestReadsWhatWALGWrote restores backups that the reference took and replays
// the WAL that it archived, in each of its compressions and encryptions.
func TestReadsWhatWALGWrote(t *testing.T) {
	t.Parallel()
	want, err := os.ReadFile("testdata/expected.txt")
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(pgtest.TempDir(t), "key.asc")
	if out, err := exec.Command("install", "-m", "644", "testdata/pgp-private.asc", key).CombinedOutput(); err != nil {
		t.Fatalf("install the key: %v\n%s", err, out)
	}
	// What follows makes a tablespace in a directory that only the host of the
	// fixtures has.
	before := []string{"recovery_target_lsn = '0/A0002F8'", "recovery_target_inclusive = off", "recovery_target_action = promote"}
	for _, tc := range []struct {
		storage, backup string
		env, target     []string
	}{
		{"walg-full-lz4", "base_000000010000000000000002", nil, before},
		{"walg-zstd-pgp", "LATEST", []string{"WALG_PGP_KEY_PATH=" + key}, before},
		{"walg-lzma-libsodium", "LATEST", []string{
			"WALG_LIBSODIUM_KEY=Zml4dHVyZS1rZXktZml4dHVyZS1rZXktZml4dHVyZSE=", "WALG_LIBSODIUM_KEY_TRANSFORM=base64"}, before},
		// Streamed, with a tablespace, and no restore spec.
		{"walg-brotli-remote", "LATEST", nil, nil},
	} {
		t.Run(tc.storage, func(t *testing.T) {
			t.Parallel()
			b := &bench{t: t, program: program(t), storage: filepath.Join(pgtest.TempDir(t), "storage"), env: tc.env}
			for _, cmd := range [][]string{{"cp", "-r", "testdata/" + tc.storage, b.storage}, {"chmod", "-R", "a+rwX", b.storage}} {
				if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
					t.Fatalf("copy the fixture: %v\n%s", err, out)
				}
			}
			b.c = pgtest.New(t, pgtest.Stopped()) // for its user and environment only
			dir := filepath.Join(pgtest.TempDir(t), "restored")
			b.must("backup-fetch", dir, tc.backup)
			r := b.recover(dir, tc.target...)
			got := r.SQLIn("app", `select 't', count(*), md5(string_agg(id||note, ',' order by id)) from t
 union all select 'big', count(*), md5(string_agg(id||pad, ',' order by id)) from big`)
			if got != strings.TrimSpace(string(want)) {
				t.Fatalf("restored:\n%s\nwant:\n%s", got, want)
			}
			if tc.storage == "walg-brotli-remote" {
				if got := r.SQLIn("app", "SELECT count(*) FROM tt"); got != "100" {
					t.Fatalf("table in the tablespace: %s rows", got)
				}
			}
		})
	}
}
