package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/walherd/walherd/engine/service"
	"github.com/walherd/walherd/producer/daemon/client"
	"github.com/walherd/walherd/producer/daemon/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const segment = "000000010000000000000003"

// bundle is a running server, and what its functions were called with.
type bundle struct {
	t      *testing.T
	server *Server
	socket string
	data   string
	client client.Client

	mu    sync.Mutex
	calls []string
	log   strings.Builder
}

func (b *bundle) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.log.Write(p)
}

func (b *bundle) called(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, fmt.Sprintf(format, args...))
}

// take returns the calls since the last take.
func (b *bundle) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	calls := strings.Join(b.calls, "\n")
	b.calls = nil
	return calls
}

func (b *bundle) logged() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.log.String()
}

// shortDir is a directory whose sockets' paths are short enough.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "walherd-d-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// setup starts a server whose functions succeed and note their calls, unless
// change says otherwise.
func setup(t *testing.T, change func(*Options)) *bundle {
	t.Helper()
	b := &bundle{t: t, socket: filepath.Join(shortDir(t), "s"), data: t.TempDir()}
	opt := Options{
		Socket: b.socket, DataDir: b.data, Logger: slog.New(slog.NewTextHandler(b, nil)),
		Push: func(_ context.Context, path string) error { b.called("push %s", path); return nil },
		Fetch: func(_ context.Context, name, destination string) error {
			b.called("fetch %s %s", name, destination)
			return nil
		},
	}
	if change != nil {
		change(&opt)
	}
	b.client = client.Client{Socket: b.socket, Timeout: time.Minute, ConnectTimeout: 10 * time.Second}
	b.server = New(opt)
	if err := b.server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.server.Stop(context.Background()); err != nil && !errors.Is(err, service.ErrAborted) {
			t.Errorf("stop: %v", err)
		}
	})
	return b
}

// say sends bytes and returns all that is answered until the server closes.
func (b *bundle) say(frame string) string {
	b.t.Helper()
	conn := b.dial()
	defer conn.Close()
	if _, err := io.WriteString(conn, frame); err != nil {
		b.t.Fatal(err)
	}
	conn.CloseWrite()
	// Closing with unread bytes is a reset, after the answer.
	answer, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		b.t.Fatal(err)
	}
	return string(answer)
}

func (b *bundle) dial() *net.UnixConn {
	b.t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: b.socket, Net: "unix"})
	if err != nil {
		b.t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(time.Minute))
	return conn
}

func fetchFrame(args ...string) string {
	body := string(rune(len(args)))
	for _, a := range args {
		body += string([]byte{byte(len(a) >> 8), byte(len(a))}) + a
	}
	return frame('f', body)
}

func frame(kind byte, body string) string {
	n := len(body) + 3
	return string([]byte{kind, byte(n >> 8), byte(n)}) + body
}

func TestRequests(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	pushed := "push " + filepath.Join(b.data, "pg_wal", segment)
	for name, tc := range map[string]struct{ say, answer, calls string }{
		"check":                {frame('C', ""), "O", ""},
		"check with a body":    {frame('C', "body"), "O", ""},
		"push":                 {frame('F', segment), "O", pushed},
		"check, check, push":   {frame('C', "") + frame('C', "x") + frame('F', segment), "OOO", pushed},
		"nothing after a push": {frame('F', segment) + frame('F', segment), "O", pushed},
		"history":              {frame('F', "00000002.history"), "O", "push " + filepath.Join(b.data, "pg_wal/00000002.history")},
		"partial":              {frame('F', segment+".partial"), "O", pushed + ".partial"},
		"backup label":         {frame('F', segment+".00000028.backup"), "O", pushed + ".00000028.backup"},
		"fetch":                {fetchFrame(segment, "pg_wal/RECOVERYXLOG"), "O", "fetch " + segment + " " + filepath.Join(b.data, "pg_wal/RECOVERYXLOG")},
		"fetch, absolute":      {fetchFrame(segment, b.data+"/x"), "O", "fetch " + segment + " " + b.data + "/x"},
		"fetch, roundabout":    {fetchFrame(segment, "a/../b/./c"), "O", "fetch " + segment + " " + b.data + "/b/c"},
		"no request":           {"", "", ""},
	} {
		if answer := b.say(tc.say); answer != tc.answer {
			t.Errorf("%s: answer %q, want %q", name, answer, tc.answer)
		}
		if calls := b.take(); calls != tc.calls {
			t.Errorf("%s: calls %q, want %q", name, calls, tc.calls)
		}
	}
}

// TestHostile: 'E' is answered and nothing is called.
func TestHostile(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	frames := map[string]string{
		"unknown kind": frame('X', segment), "kind zero": "\x00\x00\x03", "http": "GET / HTTP/1.1\r\n\r\n",
		"length 0": "F\x00\x00", "length 2": "C\x00\x02", "half a header": "F\x00", "short body": "F\x00\x30" + segment,
		"too long": "F\xff\xff" + strings.Repeat("0", 60000),
		"no name":  frame('F', ""), "no arguments": frame('f', ""), "one argument": fetchFrame(segment),
		"three arguments": fetchFrame(segment, "a", "b"), "no destination": fetchFrame(segment, ""),
		"argument past the end": "f\x00\x08\x02\x00\x09ab",
		"check, then nonsense":  frame('X', ""),
	}
	for _, name := range []string{
		"pg_wal/" + segment, "../pg_wal/" + segment, "/etc/passwd", "..", ".", segment + "/", "./" + segment,
		"archive_status/" + segment + ".ready", segment + "\x00", "\x00" + segment, segment + "\n", " " + segment,
		strings.ToLower("00000001000000000000000A"), "00000001.history/../x", segment + ".backup", "PG_VERSION", "postgresql.conf",
		"0000000200000003.history",
	} {
		frames["push "+name] = frame('F', name)
		frames["fetch "+name] = fetchFrame(name, "pg_wal/x")
	}
	for _, destination := range []string{
		"..", "../x", "pg_wal/../../x", "/etc/cron.d/x", b.data, b.data + "/", b.data + "/..", b.data + "/../x", b.data + "x/y", ".", "./", "a/..",
		"x\x00y", "/x" + b.data, "\x00",
	} {
		frames["to "+destination] = fetchFrame(segment, destination)
	}
	for name, frame := range frames {
		if answer := b.say(frame); answer != "E" {
			t.Errorf("%q: answer %q, want E", name, answer)
		}
		if calls := b.take(); calls != "" {
			t.Errorf("%q: called %q", name, calls)
		}
	}
	if err := b.client.Check(t.Context()); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

func TestDestinationThroughLink(t *testing.T) {
	t.Parallel()
	real := t.TempDir()
	link := filepath.Join(t.TempDir(), "data")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	b := setup(t, func(o *Options) { o.DataDir = link })
	for _, dir := range []string{link, real} {
		if answer := b.say(fetchFrame(segment, dir+"/x")); answer != "O" || b.take() != "fetch "+segment+" "+dir+"/x" {
			t.Errorf("a destination spelled %s/x: %q", dir, answer)
		}
	}
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var result func() error
	b := setup(t, func(o *Options) {
		do := func() error { mu.Lock(); defer mu.Unlock(); return result() }
		o.Push = func(context.Context, string) error { return do() }
		o.Fetch = func(context.Context, string, string) error { return do() }
	})
	absent := fmt.Errorf("look: %w", wire.ErrAbsent)
	for name, tc := range map[string]struct {
		result      func() error
		push, fetch error
		log         string
	}{
		"success": {func() error { return nil }, nil, nil, ""},
		"failure": {func() error { return errors.New("bucket on fire") }, client.ErrFailed, client.ErrFailed, "bucket on fire"},
		"absent":  {func() error { return absent }, client.ErrFailed, wire.ErrAbsent, "not in the archive"},
		"panic":   {func() error { panic("a bug") }, client.ErrFailed, client.ErrFailed, "a bug"},
	} {
		mu.Lock()
		result = tc.result
		mu.Unlock()
		if err := b.client.Push(t.Context(), segment); !errors.Is(err, tc.push) {
			t.Errorf("%s: push says %v, want %v", name, err, tc.push)
		}
		if err := b.client.Fetch(t.Context(), segment, "x"); !errors.Is(err, tc.fetch) {
			t.Errorf("%s: fetch says %v, want %v", name, err, tc.fetch)
		}
		if !strings.Contains(b.logged(), tc.log) {
			t.Errorf("%s: the log does not say %q:\n%s", name, tc.log, b.logged())
		}
	}
}

func TestPushTimeout(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *Options) {
		o.PushTimeout = time.Millisecond
		o.Push = func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
	})
	if err := b.client.Push(t.Context(), segment); !errors.Is(err, client.ErrFailed) {
		t.Errorf("a push that hangs: %v", err)
	}
	if !strings.Contains(b.logged(), "WALG_DAEMON_WAL_UPLOAD_TIMEOUT") {
		t.Errorf("the log does not name the limit:\n%s", b.logged())
	}
}

// TestSlowClient: a request that comes too slowly is refused; silence ends
// without an answer, which a later request would take for its own.
func TestSlowClient(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *Options) { o.RequestTimeout, o.IdleTimeout = 20*time.Millisecond, 20*time.Millisecond })
	for name, tc := range map[string]struct{ say, answer string }{
		"silent":               {"", ""},
		"half a header":        {"F\x00", "E"},
		"half a name":          {"F\x00\x1b0000", "E"},
		"silent after a check": {frame('C', ""), "O"},
	} {
		conn := b.dial()
		io.WriteString(conn, tc.say)
		if got, err := io.ReadAll(conn); string(got) != tc.answer || err != nil {
			t.Errorf("%s: answer %q, %v, want %q", name, got, err, tc.answer)
		}
		conn.Close()
	}
	if calls := b.take(); calls != "" {
		t.Errorf("called %q", calls)
	}
}

// TestConcurrent: many clients at a time, each with its own answer, and no
// more at work than MaxConnections.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	const limit, clients = 4, 40
	var mu sync.Mutex
	var now, most int
	full := make(chan struct{})
	b := setup(t, func(o *Options) {
		o.MaxConnections = limit
		o.Push = func(_ context.Context, path string) error {
			mu.Lock()
			now++
			most = max(most, now)
			if now == limit && most == limit {
				select {
				case <-full:
				default:
					close(full)
				}
			}
			mu.Unlock()
			<-full // the first ones wait for each other: they are at work at once
			mu.Lock()
			now--
			mu.Unlock()
			if strings.HasSuffix(path, "1") {
				return errors.New("odd")
			}
			return nil
		}
	})
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			c := b.client
			c.ConnectTimeout = time.Minute // a full queue of connections is waited for
			err := c.Push(context.Background(), fmt.Sprintf("%024X", i%2))
			if odd := i%2 == 1; odd != errors.Is(err, client.ErrFailed) || !odd && err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if most != limit {
		t.Errorf("%d were at work at once, want %d", most, limit)
	}
}

// TestClientGoes: a fetch ends with its client, a push does not.
func TestClientGoes(t *testing.T) {
	t.Parallel()
	begun, pushing, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	goOn := make(chan struct{})
	b := setup(t, func(o *Options) {
		o.Fetch = func(ctx context.Context, _, _ string) error {
			close(begun)
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return ctx.Err()
		}
		o.Push = func(ctx context.Context, _ string) error {
			close(pushing)
			<-goOn
			ended <- ctx.Err()
			return nil
		}
	})
	conn := b.dial()
	io.WriteString(conn, fetchFrame(segment, "x"))
	<-begun
	conn.Close()
	if err := <-ended; err != errClientGone {
		t.Errorf("the fetch ended with %v", err)
	}
	conn = b.dial()
	io.WriteString(conn, frame('F', segment))
	<-pushing
	conn.Close()
	close(goOn)
	if err := <-ended; err != nil {
		t.Errorf("the push was broken off: %v", err)
	}
}

// TestHalfClosed: a client may say that it has said all, and wait.
func TestHalfClosed(t *testing.T) {
	t.Parallel()
	begun, goOn := make(chan struct{}), make(chan struct{})
	b := setup(t, func(o *Options) {
		o.Fetch = func(ctx context.Context, _, _ string) error {
			close(begun)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-goOn:
				return nil
			}
		}
	})
	conn := b.dial()
	defer conn.Close()
	io.WriteString(conn, fetchFrame(segment, "x"))
	conn.CloseWrite()
	<-begun
	close(goOn)
	if got, err := io.ReadAll(conn); string(got) != "O" || err != nil {
		t.Errorf("answer %q, %v", got, err)
	}
}

func TestHangUp(t *testing.T) {
	t.Parallel()
	pair := func() (*net.UnixConn, *net.UnixConn) {
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		var c [2]*net.UnixConn
		for i, fd := range fds {
			f := os.NewFile(uintptr(fd), "pair")
			fc, err := net.FileConn(f)
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
			c[i] = fc.(*net.UnixConn)
		}
		return c[0], c[1]
	}
	a, z := pair()
	defer a.Close()
	defer z.Close()
	if hungUp(a) {
		t.Error("a peer that is there has hung up")
	}
	z.CloseWrite()
	if hungUp(a) {
		t.Error("a peer that still listens has hung up")
	}
	z.Close()
	if !hungUp(a) {
		t.Error("a peer that has closed is taken for one that is there")
	}
}

func TestSocketFile(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	info, err := os.Lstat(b.socket)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := b.server.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(filepath.Dir(b.socket))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// second starts another server at the socket of b.
func (b *bundle) second() error {
	opt := b.server.opt
	s := New(opt)
	err := s.Start(b.t.Context())
	b.t.Cleanup(func() { s.Stop(context.Background()) })
	return err
}

func TestLiveSocket(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	if err := b.second(); !errors.Is(err, ErrLive) || !strings.Contains(err.Error(), b.socket) {
		t.Errorf("a second daemon: %v", err)
	}
	if err := b.client.Check(t.Context()); err != nil {
		t.Errorf("the first one after that: %v", err)
	}
	// After its end there is room.
	if err := b.server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.second(); err != nil {
		t.Errorf("after the first one's end: %v", err)
	}
}

// TestForeignSocket: somebody who does not speak the protocol keeps the socket.
func TestForeignSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "?")
			c.Close()
		}
	}()
	if _, err := listen(t.Context(), path); !errors.Is(err, ErrLive) {
		t.Errorf("listen: %v", err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}

func TestStaleSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false) // as a kill leaves it
	dead.Close()
	s, err := listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
}

// TestReplacedSocket: at its end a daemon removes its own file only.
func TestReplacedSocket(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	if err := os.Remove(b.socket); err != nil {
		t.Fatal(err)
	}
	if err := b.second(); err != nil {
		t.Fatal(err)
	}
	if err := b.server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.client.Check(t.Context()); err != nil {
		t.Errorf("the new daemon lost its socket: %v", err)
	}
}

func TestSocketPath(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		path string
		want error
		says string
	}{
		"file":         {file, ErrNotSocket, file},
		"link":         {link, ErrNotSocket, link},
		"directory":    {dir, ErrNotSocket, dir},
		"no directory": {filepath.Join(dir, "no", "s"), fs.ErrNotExist, "no/s"},
		"too long":     {filepath.Join(dir, strings.Repeat("s", 120)), syscall.EINVAL, "107 bytes"},
	} {
		s, err := listen(t.Context(), tc.path)
		if !errors.Is(err, tc.want) || !strings.Contains(fmt.Sprint(err), tc.says) {
			t.Errorf("%s: %v, want %v and %q", name, err, tc.want, tc.says)
		}
		if err == nil {
			s.close()
		}
	}
	if b, err := os.ReadFile(file); string(b) != "precious" || err != nil {
		t.Errorf("the file is %q, %v", b, err)
	}
}

// TestRace: of many daemons started at once on a stale socket one wins, and
// the others leave it alone.
func TestRace(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	data := t.TempDir()
	var wg sync.WaitGroup
	won := make(chan *Server, 8)
	for range cap(won) {
		wg.Go(func() {
			s := New(Options{Socket: path, DataDir: data, Logger: slog.New(slog.DiscardHandler)})
			switch err := s.Start(context.Background()); {
			case err == nil:
				won <- s
			case !errors.Is(err, ErrLive):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("%d daemons won", len(won))
	}
	c := client.Client{Socket: path}
	if err := c.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if err := (<-won).Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestDrain: a stop refuses new clients and drops silent ones at once, and
// waits for the request that is at work.
func TestDrain(t *testing.T) {
	t.Parallel()
	begun, goOn := make(chan struct{}), make(chan struct{})
	b := setup(t, func(o *Options) {
		o.Push = func(ctx context.Context, _ string) error { close(begun); <-goOn; return ctx.Err() }
	})
	silent, half := b.dial(), b.dial()
	defer silent.Close()
	defer half.Close()
	io.WriteString(half, frame('C', ""))
	if _, err := io.ReadFull(half, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	io.WriteString(half, "F\x00")
	busy := b.dial()
	defer busy.Close()
	io.WriteString(busy, frame('F', segment))
	<-begun
	stopped := make(chan error)
	go func() { stopped <- b.server.Stop(context.Background()) }()
	if got, err := io.ReadAll(silent); len(got) > 0 || err != nil {
		t.Errorf("the silent client is answered %q, %v", got, err)
	}
	// What it has said and nobody read makes the close a reset.
	if got, err := io.ReadAll(half); string(got) != "E" && len(got) > 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the one with half a request is answered %q, %v", got, err)
	}
	if c, err := net.Dial("unix", b.socket); err == nil {
		c.Close()
		t.Error("a new client is let in")
	}
	select {
	case err := <-stopped:
		t.Errorf("stopped (%v) before the request at work was done", err)
	default:
	}
	close(goOn)
	if got, err := io.ReadAll(busy); string(got) != "O" || err != nil {
		t.Errorf("the client at work is answered %q, %v", got, err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestDrainLimit(t *testing.T) {
	t.Parallel()
	begun := make(chan struct{})
	b := setup(t, func(o *Options) {
		o.Push = func(ctx context.Context, _ string) error { close(begun); <-ctx.Done(); return ctx.Err() }
	})
	busy := b.dial()
	defer busy.Close()
	io.WriteString(busy, frame('F', segment))
	<-begun
	now, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.server.Stop(now); !errors.Is(err, service.ErrAborted) {
		t.Errorf("stop at the limit: %v", err)
	}
	if got, err := io.ReadAll(busy); string(got) != "E" || err != nil {
		t.Errorf("the client at work is answered %q, %v", got, err)
	}
}

func TestContextEnds(t *testing.T) {
	t.Parallel()
	data, path := t.TempDir(), filepath.Join(shortDir(t), "s")
	ctx, cancel := context.WithCancel(t.Context())
	s := New(Options{Socket: path, DataDir: data, Logger: slog.New(slog.DiscardHandler)})
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-s.Done()
	if s.Err() != nil {
		t.Error(s.Err())
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket after the end: %v", err)
	}
}

func TestDataDir(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, file + "-not"} {
		s := New(Options{Socket: filepath.Join(shortDir(t), "s"), DataDir: dir, Logger: slog.New(slog.DiscardHandler)})
		if err := s.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "PGDATA") {
			t.Errorf("data directory %s: %v", dir, err)
		}
	}
}

// FuzzServe: whatever comes, a request that would leave pg_wal or the data
// directory does not arrive.
func FuzzServe(f *testing.F) {
	for _, s := range []string{frame('F', segment), frame('C', "") + frame('F', segment), fetchFrame(segment, "../x"), fetchFrame("../"+segment, "x"), "F\xff\xff"} {
		f.Add([]byte(s))
	}
	data := f.TempDir()
	var escaped atomic.Value // a panic would only be one more 'E'
	s := New(Options{DataDir: data, Logger: slog.New(slog.DiscardHandler),
		Push: func(_ context.Context, path string) error {
			if dir, name := filepath.Split(path); dir != data+"/pg_wal/" || checkName(name) != nil {
				escaped.Store("pushes " + path)
			}
			return nil
		},
		Fetch: func(_ context.Context, name, destination string) error {
			if !strings.HasPrefix(destination, data+"/") || filepath.Clean(destination) != destination || checkName(name) != nil {
				escaped.Store("fetches " + name + " to " + destination)
			}
			return nil
		}})
	s.roots = []string{data}
	f.Fuzz(func(t *testing.T, b []byte) {
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		var conns [2]*net.UnixConn
		for i, fd := range fds {
			file := os.NewFile(uintptr(fd), "pair")
			c, err := net.FileConn(file)
			if err != nil {
				t.Fatal(err)
			}
			file.Close()
			conns[i] = c.(*net.UnixConn)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			defer conns[0].Close()
			s.serve(t.Context(), t.Context(), conns[0])
		})
		conns[1].Write(b) // broken off when the server has had enough
		conns[1].CloseWrite()
		answer, _ := io.ReadAll(conns[1])
		conns[1].Close()
		wg.Wait()
		if e := escaped.Load(); e != nil {
			t.Error(e)
		}
		if strings.Trim(string(answer), "OE") != "" {
			t.Errorf("answer %q", answer)
		}
	})
}
