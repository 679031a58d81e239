package e2e

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/producer/pgtest"
)

// TestSurface is what stands around the commands: metrics, profiles, metadata
// objects, the texts for people and shells. It needs no more of a server than
// one segment.
func TestSurface(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	seg := segmentFile(t, b)
	name := filepath.Base(seg)

	t.Run("statsd", func(t *testing.T) {
		l, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		config := filepath.Join(pgtest.TempDir(t), "walg.yaml")
		writeFile(t, b, config, []byte("WALG_STATSD_EXTRA_TAGS: {cluster: main}\n"))
		env := []string{"WALG_STATSD_ADDRESS=" + l.LocalAddr().String()}
		// A command that fails tells nothing: the first datagram is the next one's.
		if r := b.run(env, "--config", config, "wal-push", seg+".none"); r.code != 1 {
			t.Fatalf("exit code %d\n%s", r.code, r.stderr)
		}
		if r := b.run(env, "--config", config, "wal-push", seg); r.code != 0 {
			t.Fatalf("exit code %d\n%s", r.code, r.stderr)
		}
		if err := l.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		n, _, err := l.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		got := string(buf[:n])
		for _, want := range []string{
			"walg_uploader_uploaded_files_total,cluster=main:1|c\n", "walg_uploader_uploaded_files_failed_total,cluster=main:0|c\n",
			"walg_s3_bytes_written,cluster=main:", "walg_s3_bytes_read,cluster=main:", "walg_s3_upload_time,cluster=main:",
		} {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in %q", want, got)
			}
		}
	})
	t.Run("statsd is dead", func(t *testing.T) {
		if r := b.run([]string{"WALG_STATSD_ADDRESS=127.0.0.1"}, "backup-list"); r.code != 0 || !strings.Contains(r.stderr, "WALG_STATSD_ADDRESS") {
			t.Errorf("exit code %d\n%s", r.code, r.stderr)
		}
	})
	t.Run("profile", func(t *testing.T) {
		dir := filepath.Join(b.storage, "..", "profiles")
		b.c.Run("/bin/mkdir", dir)
		if r := b.run([]string{"PROFILE_SAMPLING_RATIO=1", "PROFILE_MODE=mem", "PROFILE_PATH=" + dir}, "backup-list"); r.code != 0 {
			t.Fatalf("exit code %d\n%s", r.code, r.stderr)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("profiles: %v, %v", left, err)
		}
	})
	t.Run("debug server's address is held", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		r := b.run([]string{"HTTP_LISTEN=" + l.Addr().String(), "HTTP_EXPOSE_PPROF=true"}, "backup-list")
		if r.code != 0 || !strings.Contains(r.stderr, "HTTP_LISTEN") {
			t.Errorf("exit code %d\n%s", r.code, r.stderr)
		}
	})
	t.Run("WAL metadata", func(t *testing.T) {
		if r := b.run([]string{"WALG_UPLOAD_WAL_METADATA=INDIVIDUAL"}, "wal-push", seg); r.code != 0 {
			t.Fatalf("exit code %d\n%s", r.code, r.stderr)
		}
		data, err := os.ReadFile(filepath.Join(b.storage, "wal_005", name+".json"))
		var got map[string]struct {
			Created time.Time `json:"created_time"`
			DateFmt string    `json:"date_fmt"`
		}
		if err == nil {
			err = json.Unmarshal(data, &got)
		}
		if err != nil {
			t.Fatal(err)
		}
		file, err := os.Stat(seg)
		if err != nil {
			t.Fatal(err)
		}
		if one := got[name]; !one.Created.Equal(file.ModTime()) || one.DateFmt == "" {
			t.Errorf("%s, the file is of %s", data, file.ModTime())
		}
	})
	t.Run("texts", func(t *testing.T) {
		if r := b.run(nil, "flags"); r.code != 0 || r.stdout != "" || !strings.Contains(r.stderr, "--walg-file-prefix") {
			t.Errorf("flags: exit code %d, %d bytes on stdout", r.code, len(r.stdout))
		}
		for _, shell := range []string{"bash", "zsh"} {
			if got := b.must("completion", shell); !strings.Contains(got, "walherd") {
				t.Errorf("completion %s: %d bytes", shell, len(got))
			}
		}
		if r := b.run(nil, "completion", "csh"); r.code != 1 {
			t.Errorf("completion csh: exit code %d", r.code)
		}
		if got := b.must("backup-list", "--json"); strings.TrimSpace(got) != "[]" {
			t.Errorf("backup-list --json of an empty storage: %q", got)
		}
	})
	t.Run("log", func(t *testing.T) {
		if r := b.run([]string{"WALG_LOG_LEVEL=DEVEL"}, "backup-list"); !strings.Contains(r.stderr, "DEBUG: ") {
			t.Errorf("DEVEL: %s", r.stderr)
		}
		if r := b.run([]string{"WALG_LOG_LEVEL=ERROR"}, "backup-list"); r.stderr != "" {
			t.Errorf("ERROR: %s", r.stderr)
		}
		file := filepath.Join(filepath.Dir(b.storage), "log")
		for range 2 {
			if r := b.run([]string{"WALG_LOG_LEVEL=DEVEL", "WALG_LOG_DESTINATION=" + file}, "backup-list"); r.code != 0 || strings.Contains(r.stderr, "DEBUG") {
				t.Errorf("exit code %d\n%s", r.code, r.stderr)
			}
		}
		if data, err := os.ReadFile(file); err != nil || !strings.Contains(string(data), "DEBUG: ") {
			t.Errorf("log file of %d bytes, %v", len(data), err)
		}
	})
}
