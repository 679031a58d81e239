package observe_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/walherd/walherd/tools/walherd/observe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMetricsReachAListener(t *testing.T) {
	t.Parallel()
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m := observe.Metrics{BytesRead: 1, BytesWritten: 2, Uploads: 3, FailedUploads: 4, WALPush: 25 * time.Millisecond}
	if err := m.Send(t.Context(), l.LocalAddr().String(), map[string]string{"z": "1", "host": "a b,c"}); err != nil {
		t.Fatal(err)
	}
	if err := l.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2000)
	n, _, err := l.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"walg_s3_bytes_read,host=a b_c,z=1:1|g", "walg_s3_bytes_written,host=a b_c,z=1:2|g",
		"walg_uploader_uploaded_files_total,host=a b_c,z=1:3|c", "walg_uploader_uploaded_files_failed_total,host=a b_c,z=1:4|c",
		"walg_s3_upload_time,host=a b_c,z=1:25|ms",
	}
	if got := strings.Split(strings.TrimSpace(string(buf[:n])), "\n"); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if lines := (observe.Metrics{}).Lines(nil); len(lines) != 4 || lines[0] != "walg_s3_bytes_read:0|g" {
		t.Errorf("of another command: %q", lines)
	}
}

func TestDeadStatsdIsAnErrorAtOnce(t *testing.T) {
	t.Parallel()
	if err := (observe.Metrics{}).Send(t.Context(), "127.0.0.1", nil); err == nil || !strings.Contains(err.Error(), "WALG_STATSD_ADDRESS") {
		t.Errorf("an address without a port: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (observe.Metrics{}).Send(ctx, "localhost:1", nil); err == nil {
		t.Error("an ended context is no error")
	}
}

// Not parallel: profiles are of the whole process.
func TestProfilesOfEachMode(t *testing.T) {
	for _, mode := range []string{"cpu", "mem", "mutex", "block", "threadcreation", "trace", "goroutine"} {
		dir := filepath.Join(t.TempDir(), "new", "dir")
		p, err := observe.StartProfile(mode, dir)
		if err != nil {
			t.Fatalf("%s: %v", mode, err)
		}
		if err := p.Stop(); err != nil {
			t.Errorf("%s: %v", mode, err)
		}
		if data, err := os.ReadFile(p.Path); err != nil || len(data) == 0 || filepath.Dir(p.Path) != dir {
			t.Errorf("%s: %d bytes in %s, %v", mode, len(data), p.Path, err)
		}
	}
	dir := t.TempDir()
	if _, err := observe.StartProfile("none", dir); err == nil {
		t.Error("an unknown mode is taken")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestDebugServerShowsWhatIsAsked(t *testing.T) {
	t.Parallel()
	for _, o := range []observe.DebugOptions{{}, {Pprof: true}, {Expvar: true}, {Pprof: true, Expvar: true}} {
		o.Address = "127.0.0.1:0"
		d, err := observe.StartDebug(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := observe.StartDebug(observe.DebugOptions{Address: d.Addr().String()}); err == nil || !strings.Contains(err.Error(), "HTTP_LISTEN") {
			t.Errorf("a held address: %v", err)
		}
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		for path, want := range map[string]bool{"/debug/pprof/goroutine?debug=1": o.Pprof, "/debug/vars": o.Expvar, "/": false} {
			res, err := client.Get("http://" + d.Addr().String() + path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if err != nil || (res.StatusCode == http.StatusOK) != want {
				t.Errorf("%+v: %s answers %s, %v", o, path, res.Status, err)
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}
