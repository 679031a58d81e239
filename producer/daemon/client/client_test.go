package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/walherd/walherd/producer/daemon/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const segment = "000000010000000000000003"

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "walherd-c-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// serve answers each connection's request with what reply says; an empty
// answer closes the connection, "-" keeps it open in silence.
func serve(t *testing.T, path string, reply func(wire.Request) string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			req, err := wire.ReadRequest(conn)
			if err != nil {
				t.Errorf("read request: %v", err)
			}
			if answer := reply(req); answer == "-" {
				io.Copy(io.Discard, conn) // until the client has had enough
			} else {
				io.WriteString(conn, answer)
			}
			conn.Close()
		}
	}()
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	serve(t, path, func(r wire.Request) string {
		switch r {
		case wire.Request{Kind: wire.Push, Name: segment}, wire.Request{Kind: wire.Fetch, Name: segment, Destination: "pg_wal/x"}:
			return "O"
		case wire.Request{Kind: wire.Fetch, Name: "absent", Destination: "x"}, wire.Request{Kind: wire.Push, Name: "absent"}:
			return "N"
		case wire.Request{Kind: wire.Push, Name: "closed"}:
			return ""
		case wire.Request{Kind: wire.Push, Name: "strange"}:
			return "?"
		case wire.Request{Kind: wire.Push, Name: "silent"}:
			return "-"
		}
		return "E"
	})
	nobody := socketPath(t)
	for _, tc := range []struct {
		args           string
		code           int
		stdout, stderr string
	}{
		{"SOCKET wal-push " + segment, 0, "", ""},
		{"SOCKET WAL-Push " + segment + " -timeout 30s", 0, "", ""},
		{"SOCKET wal-push " + segment + " --timeout=30s --connection-timeout 1s", 0, "", ""},
		{"SOCKET wal-fetch " + segment + " pg_wal/x", 0, "", ""},
		{"SOCKET WAL-FETCH " + segment + " pg_wal/x -connection-timeout 1s", 0, "", ""},
		{"SOCKET wal-fetch absent x", 74, "not in the archive", ""},
		{"SOCKET wal-fetch broken x", 1, "", "its log says why"},
		{"SOCKET wal-push broken", 1, "", "its log says why"},
		{"SOCKET wal-push closed", 1, "", "without an answer"},
		{"SOCKET wal-push strange", 1, "", "none of a daemon's"},
		{"SOCKET wal-push silent -timeout 1ms", 1, "", "within 1ms"},
		{"SOCKET wal-push pg_wal/" + segment, 1, "", "give %f"},
		{"NOBODY wal-push " + segment + " -connection-timeout 1ms", 1, "", "no daemon answered within 1ms"},
		{"--version", 0, "client 1.2.3", ""},
		{"-help", 0, "", "usage:"},
		{"", 1, "", "usage:"},
		{"SOCKET", 1, "", "usage:"},
		{"SOCKET wal-push", 1, "", "usage:"},
		{"SOCKET wal-push a b", 1, "", "usage:"},
		{"SOCKET wal-fetch a", 1, "", "usage:"},
		{"SOCKET wal-drop a", 1, "", "wal-drop"},
		{"SOCKET wal-push a -timeout", 1, "", "usage:"},
		{"SOCKET wal-push a -timeout soon", 1, "", "soon"},
		{"SOCKET wal-push a -timeout 0s", 1, "", "usage:"},
		{"SOCKET wal-push a -timeout 1s b", 1, "", `"b" after the flags`},
		{"SOCKET wal-push a -what", 1, "", "what"},
	} {
		args := strings.Fields(strings.NewReplacer("SOCKET", path, "NOBODY", nobody).Replace(tc.args))
		var stdout, stderr bytes.Buffer
		code := Main(t.Context(), args, "client 1.2.3", &stdout, &stderr)
		if code != tc.code {
			t.Errorf("%s: exit code %d, want %d", tc.args, code, tc.code)
		}
		for name, s := range map[string]struct{ got, want string }{"stdout": {stdout.String(), tc.stdout}, "stderr": {stderr.String(), tc.stderr}} {
			if !strings.Contains(s.got, s.want) || s.want == "" && s.got != "" {
				t.Errorf("%s: %s is %q, want %q", tc.args, name, s.got, s.want)
			}
		}
	}
}

// TestAbsentPush: 'N' to a push is no success and no end of an archive.
func TestAbsentPush(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	serve(t, path, func(wire.Request) string { return "N" })
	c := Client{Socket: path}
	if err := c.Push(t.Context(), segment); err == nil {
		t.Error("a push answered with N is archived")
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	serve(t, path, func(r wire.Request) string {
		if r == (wire.Request{Kind: wire.Check}) {
			return "O"
		}
		return "E"
	})
	c := Client{Socket: path}
	if err := c.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestDaemonComesLater: a daemon that is being restarted is waited for.
func TestDaemonComesLater(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	c := Client{Socket: path, ConnectTimeout: time.Minute}
	result := make(chan error)
	go func() { result <- c.Push(context.Background(), segment) }()
	select {
	case err := <-result:
		t.Fatalf("without a daemon: %v", err)
	default:
	}
	serve(t, path, func(wire.Request) string { return "O" })
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestCanceled(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("SIGINT")
	serve(t, path, func(wire.Request) string { cancel(why); return "-" })
	c := Client{Socket: path}
	if err := c.Push(ctx, segment); !errors.Is(err, why) {
		t.Error(err)
	}
	c = Client{Socket: filepath.Join(t.TempDir(), "no"), ConnectTimeout: time.Millisecond}
	if err := c.Push(t.Context(), segment); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(fmt.Sprint(err), c.Socket) {
		t.Errorf("no daemon: %v", err)
	}
}
