package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/walherd/walherd/producer/pgtest"
)

// TestWALFiles archives every kind of file that PostgreSQL archives and fetches
// it back.
func TestWALFiles(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	seg := segmentFile(t, b)
	dir := filepath.Dir(seg)
	base := filepath.Base(seg)
	content, err := os.ReadFile(seg)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{
		base:                      content,
		base + ".partial":         content,
		base + ".00000028.backup": []byte("START WAL LOCATION: 0/2000028 (file " + base + ")\n"),
		"00000002.history":        []byte("1\t0/3000000\tno recovery target specified\n"),
	}
	for name, data := range files {
		path := filepath.Join(dir, name)
		writeFile(t, b, path, data)
		b.must("wal-push", path)
		got := filepath.Join(dir, "fetched-"+name)
		b.must("wal-fetch", name, got)
		back, err := os.ReadFile(got)
		if err != nil || !bytes.Equal(back, data) {
			t.Errorf("%s: fetched %d bytes, %v; pushed %d", name, len(back), err, len(data))
		}
	}
	// A relative path, as archive_command's %p is.
	cmd := b.command(t.Context(), nil, "wal-push", base)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("relative path: %v\n%s", err, out)
	}
}

// writeFile writes as the server's user, who must be able to read it.
func writeFile(t testing.TB, b *bench, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestOverwrite: what is archived under a name is replaced by other content
// only where that was not ruled out, and never for a history file.
func TestOverwrite(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	seg := segmentFile(t, b)
	other, err := os.ReadFile(seg)
	if err != nil {
		t.Fatal(err)
	}
	other[len(other)-1] ^= 1
	prevent := []string{"WALG_PREVENT_WAL_OVERWRITE=true"}
	b.must("wal-push", seg)
	if r := b.run(prevent, "wal-push", seg); r.code != 0 || !strings.Contains(r.stderr, "equal content") {
		t.Errorf("same content again: %+v", r)
	}
	if r := b.run(append(prevent, "WALG_COMPRESSION_METHOD=zstd"), "wal-push", seg); r.code != 0 || !strings.Contains(r.stderr, "equal content") {
		t.Errorf("same content, other compression: %+v", r)
	}
	object := filepath.Join(b.storage, "wal_005", filepath.Base(seg)+".lz4")
	before, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(seg, seg+".kept"); err != nil {
		t.Fatal(err)
	}
	writeFile(t, b, seg, other)
	r := b.run(prevent, "wal-push", seg)
	if r.code != 1 || !strings.Contains(lastLine(r.stderr), "already archived with other content") {
		t.Errorf("other content: %+v", r)
	}
	if after, err := os.ReadFile(object); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the archived segment was touched: %v", err)
	}
	b.must("wal-push", seg)
	if after, err := os.ReadFile(object); err != nil || bytes.Equal(before, after) {
		t.Errorf("without prevention the segment was not replaced: %v", err)
	}

	history := filepath.Join(filepath.Dir(seg), "00000002.history")
	writeFile(t, b, history, []byte("1\t0/3000000\tfirst\n"))
	b.must("wal-push", history)
	b.must("wal-push", history)
	if err := os.Remove(history); err != nil {
		t.Fatal(err)
	}
	writeFile(t, b, history, []byte("1\t0/4000000\tsecond\n"))
	if r := b.run(nil, "wal-push", history); r.code != 1 {
		t.Errorf("another history file: %+v", r)
	}
}

// TestBadInput: every mistake is one line that names the thing and the way
// out, with the documented exit code, and leaves nothing half-written.
func TestBadInput(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.must("backup-push", b.c.DataDir())
	seg := segmentFile(t, b)
	b.must("wal-push", seg)
	name := filepath.Base(seg)
	scratch := pgtest.TempDir(t)
	path := func(elem ...string) string { return filepath.Join(append([]string{scratch}, elem...)...) }
	b.c.Run("/bin/mkdir", path("readonly"), path("full"), path("cut"))
	writeFile(t, b, path("full", "file"), []byte("x"))
	b.c.Run("/bin/chmod", "555", path("readonly"))
	// A segment of half the size, and one of another name.
	content, err := os.ReadFile(seg)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, b, path("cut", name), content[:8<<20])
	wrong := name[:23] + "F"
	writeFile(t, b, path(wrong), content)
	writeFile(t, b, path("broken.yaml"), []byte("WALG_FILE_PREFIX: [\n"))
	writeFile(t, b, path("typo.yaml"), []byte("WALG_FILE_PREFIX: "+b.storage+"\nWALG_FILE_PREFIXX: /elsewhere\n"))
	latest := strings.Fields(b.must("backup-list"))[4]
	// A storage whose part is cut short, and one whose part lacks a byte in
	// the middle.
	b.c.Run("/bin/cp", "-r", b.storage, path("truncated"))
	part := path("truncated", "basebackups_005", latest, "tar_partitions", "part_001.tar.lz4")
	b.c.Run("/usr/bin/truncate", "-s", "-5000", part)

	for _, tc := range []struct {
		name string
		env  []string
		args []string
		code int
		want []string
		// fresh must not exist afterwards.
		fresh string
	}{
		{name: "no storage", env: []string{"WALG_FILE_PREFIX="}, args: []string{"backup-list"}, code: 1, want: []string{"WALG_FILE_PREFIX"}},
		{name: "storage root missing", env: []string{"WALG_FILE_PREFIX=" + path("nowhere")}, args: []string{"backup-list"}, code: 1, want: []string{path("nowhere"), "WALG_FILE_PREFIX"}, fresh: path("nowhere")},
		{name: "storage unwritable, WAL", env: []string{"WALG_FILE_PREFIX=" + path("readonly")}, args: []string{"wal-push", seg}, code: 1, want: []string{path("readonly"), "permission denied"}},
		{name: "storage unwritable, backup", env: []string{"WALG_FILE_PREFIX=" + path("readonly")}, args: []string{"backup-push", b.c.DataDir()}, code: 1, want: []string{path("readonly"), "permission denied"}},
		{name: "not the server's directory", args: []string{"backup-push", path("full")}, code: 1, want: []string{path("full"), "PG_VERSION"}},
		{name: "PGDATA disagrees", env: []string{"PGDATA=" + path("full")}, args: []string{"backup-push", b.c.DataDir()}, code: 1, want: []string{"PGDATA"}},
		{name: "no data directory", args: []string{"backup-push", path("nowhere")}, code: 1, want: []string{path("nowhere")}},
		{name: "server unreachable", env: []string{"PGPORT=1"}, args: []string{"backup-push", b.c.DataDir()}, code: 1, want: []string{"PGPORT"}},
		{name: "user data not JSON", args: []string{"backup-push", b.c.DataDir(), "--add-user-data", "nightly"}, code: 1, want: []string{"JSON"}},
		{name: "segment size", env: []string{"WALG_PG_WAL_SIZE=64"}, args: []string{"backup-push", b.c.DataDir()}, code: 1, want: []string{"WALG_PG_WAL_SIZE", "16"}},
		{name: "key too short", env: []string{"WALG_LIBSODIUM_KEY=short"}, args: []string{"wal-push", seg}, code: 1, want: []string{"WALG_LIBSODIUM_KEY"}},
		{name: "key that is not there", env: []string{"WALG_PGP_KEY_PATH=" + path("none.asc")}, args: []string{"wal-push", seg}, code: 1, want: []string{"WALG_PGP_KEY_PATH"}},
		{name: "external gpg is not ignored", env: []string{"WALG_GPG_KEY_ID=ABCD"}, args: []string{"wal-push", seg}, code: 1, want: []string{"WALG_GPG_KEY_ID", "WALG_PGP_KEY_PATH"}},
		{name: "sealed with nothing, read with a key", env: []string{"WALG_LIBSODIUM_KEY=0123456789abcdef0123456789abcdef"}, args: []string{"wal-fetch", name, path("w9")}, code: 1, want: []string{name}, fresh: path("w9")},
		{name: "compression unknown", env: []string{"WALG_COMPRESSION_METHOD=rar"}, args: []string{"wal-push", seg}, code: 1, want: []string{"WALG_COMPRESSION_METHOD"}},

		{name: "target not empty", args: []string{"backup-fetch", path("full"), "LATEST"}, code: 1, want: []string{path("full"), "not empty"}},
		{name: "unknown backup", args: []string{"backup-fetch", path("new1"), "base_000000010000000000000099"}, code: 1, want: []string{"base_000000010000000000000099", "backup-list"}, fresh: path("new1")},
		{name: "neither name nor user data", args: []string{"backup-fetch", path("new2")}, code: 1, want: []string{}, fresh: path("new2")},
		{name: "name and user data", args: []string{"backup-fetch", path("new3"), "LATEST", "--target-user-data", "1"}, code: 1, want: []string{}, fresh: path("new3")},
		{name: "user data of nobody", args: []string{"backup-fetch", path("new4"), "--target-user-data", "1"}, code: 1, want: []string{"backup-list"}, fresh: path("new4")},
		{name: "truncated part", env: []string{"WALG_FILE_PREFIX=" + path("truncated")}, args: []string{"backup-fetch", path("half"), "LATEST"}, code: 1, want: []string{"part_001.tar.lz4"}, fresh: path("half", "global", "pg_control")},
		{name: "unknown storage name", args: []string{"backup-list", "--target-storage", "nope"}, code: 1, want: []string{"nope", "configured are default"}},

		{name: "segment of another size", args: []string{"wal-push", path("cut", name)}, code: 1, want: []string{name, "8388608", "WALG_PG_WAL_SIZE"}},
		{name: "segment of another name", args: []string{"wal-push", path(wrong)}, code: 1, want: []string{wrong}},
		{name: "no such segment file", args: []string{"wal-push", path("000000010000000000000099")}, code: 1, want: []string{"no such file"}},
		{name: "absent WAL", args: []string{"wal-fetch", "0000000100000000000000EE", path("w1")}, code: 74, want: []string{"0000000100000000000000EE"}, fresh: path("w1")},
		{name: "absent history", args: []string{"wal-fetch", "00000009.history", path("w2")}, code: 74, want: []string{"00000009.history"}, fresh: path("w2")},
		{name: "destination exists", args: []string{"wal-fetch", name, path("full", "file")}, code: 1, want: []string{path("full", "file")}},
		{name: "destination without a directory", args: []string{"wal-fetch", name, path("nowhere", "w")}, code: 1, want: []string{path("nowhere", "w")}},

		{name: "config file missing", args: []string{"--config", path("none.yaml"), "backup-list"}, code: 1, want: []string{path("none.yaml")}},
		{name: "config file broken", args: []string{"--config", path("broken.yaml"), "backup-list"}, code: 1, want: []string{path("broken.yaml")}},
		{name: "config key unknown", env: []string{"WALG_FILE_PREFIX="}, args: []string{"--config", path("typo.yaml"), "backup-list"}, code: 0, want: []string{"WALG_FILE_PREFIXX", "WALG_FILE_PREFIX"}},
		{name: "unknown command", args: []string{"backup-psuh"}, code: 1, want: []string{"backup-psuh"}},
		{name: "unknown flag", args: []string{"backup-list", "--jsno"}, code: 1, want: []string{"--jsno"}},
		{name: "unknown command of the queue", args: []string{"queue", "stup"}, code: 1, want: []string{"stup", "setup"}},
		{name: "unknown command of dead letters", args: []string{"deadletter", "lst"}, code: 1, want: []string{"lst", "ls "}},
		{name: "health of what", args: []string{"health"}, code: 1, want: []string{"WALHERD_HEALTH_LISTEN", ":8321"}},
		{name: "daemon's directory", env: []string{"PGDATA=" + path("nowhere")}, args: []string{"daemon", path("sock")}, code: 1, want: []string{"PGDATA", path("nowhere")}, fresh: path("sock")},
		{name: "two storages", env: []string{"WALG_SSH_PREFIX=ssh://nobody/x"}, args: []string{"backup-list"}, code: 0, want: []string{"WALG_SSH_PREFIX: is not used", "WALG_FILE_PREFIX"}},
		{name: "worker without a broker", args: []string{"worker"}, code: 1, want: []string{"WALHERD_NATS_URL"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			before := fmt.Sprint(sentinels(b.objects()))
			r := b.run(tc.env, tc.args...)
			if r.code != tc.code {
				t.Errorf("exit code %d, want %d\n%s", r.code, tc.code, r.stderr)
			}
			for _, want := range tc.want {
				if !strings.Contains(r.stderr, want) {
					t.Errorf("%q is not in:\n%s", want, r.stderr)
				}
			}
			if tc.code != 0 && r.stdout != "" {
				t.Errorf("stdout of a failure: %q", r.stdout)
			}
			if strings.Contains(r.stderr, "panic") || strings.Contains(r.stderr, "goroutine ") {
				t.Errorf("panicked:\n%s", r.stderr)
			}
			if tc.fresh != "" {
				if _, err := os.Lstat(tc.fresh); err == nil {
					t.Errorf("%s was left behind", tc.fresh)
				}
			}
			if after := fmt.Sprint(sentinels(b.objects())); after != before {
				t.Errorf("backups before %s, after %s", before, after)
			}
		})
	}
	if got, err := os.ReadFile(path("full", "file")); err != nil || string(got) != "x" {
		t.Errorf("an existing file was touched: %q, %v", got, err)
	}
}

func sentinels(objects []string) (names []string) {
	for _, o := range objects {
		if strings.HasSuffix(o, "_sentinel.json") {
			names = append(names, o)
		}
	}
	return names
}

// TestPrecedence: flag over environment over file over default.
func TestPrecedence(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	seg := segmentFile(t, b)
	config := filepath.Join(pgtest.TempDir(t), "config.json")
	writeFile(t, b, config, []byte(`{"walg_compression_method": "none"}`))
	object := func(ext string) string { return filepath.Join(b.storage, "wal_005", filepath.Base(seg)+ext) }
	for _, tc := range []struct {
		ext  string
		env  []string
		args []string
	}{
		{".lz4", nil, []string{"wal-push", seg}},
		{"", nil, []string{"--config", config, "wal-push", seg}},
		{".zst", []string{"WALG_COMPRESSION_METHOD=zstd"}, []string{"--config", config, "wal-push", seg}},
		{".lz4", []string{"WALG_COMPRESSION_METHOD=zstd"}, []string{"--config", config, "--walg-compression-method", "lz4", "wal-push", seg}},
	} {
		if r := b.run(tc.env, tc.args...); r.code != 0 {
			t.Fatalf("%v: %+v", tc.args, r)
		}
		if _, err := os.Stat(object(tc.ext)); err != nil {
			t.Errorf("%v %v: %v", tc.env, tc.args, err)
		}
		if err := os.RemoveAll(filepath.Join(b.storage, "wal_005")); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStandbyBackup takes a backup from a standby and restores it.
func TestStandbyBackup(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.c.Run("pgbench", "-i", "-q", "-s", "1", "postgres")
	standby := b.c.NewStandby()
	b.c.CatchUp(standby)
	want := b.c.SQL(bankSums)
	cmd := standby.Command(t.Context(), b.program, "backup-push", standby.DataDir())
	cmd.Env = append(cmd.Env, b.environ()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("backup-push on the standby: %v\n%s", err, out)
	}
	b.archived()
	r := b.restore("LATEST")
	if got := r.SQL(bankSums); got != want {
		t.Fatalf("restored sums %s, want %s", got, want)
	}
	// The same restart point gives the same name: the first backup stays.
	cmd = standby.Command(t.Context(), b.program, "backup-push", standby.DataDir())
	cmd.Env = append(cmd.Env, b.environ()...)
	if out, err := cmd.CombinedOutput(); err == nil {
		if n := len(sentinels(b.objects())); n != 2 {
			t.Fatalf("a second backup replaced the first:\n%s", out)
		}
	} else if !strings.Contains(string(out), "exists already") {
		t.Fatalf("second backup-push: %v\n%s", err, out)
	}
}

// TestInterruptedBackup: a signal ends the backup in order.
func TestInterruptedBackup(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.c.Run("pgbench", "-i", "-q", "-s", "2", "postgres")
	cmd := b.command(t.Context(), []string{"WALG_DISK_RATE_LIMIT=5000000"}, "backup-push", b.c.DataDir())
	var out syncBuffer
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the backup to be under way", func() bool { return strings.Contains(out.String(), "Starting part 1") })
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 1 {
		t.Fatalf("exit code %d\n%s", code, out.String())
	}
	if s := sentinels(b.objects()); len(s) != 0 {
		t.Fatalf("visible: %v", s)
	}
	b.c.Await("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'wal-g'", "0")
	b.must("backup-push", b.c.DataDir())
}
