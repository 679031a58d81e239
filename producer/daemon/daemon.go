// Package daemon answers archive_command and restore_command over a unix
// socket, so that a segment costs PostgreSQL one short exchange instead of a
// program's start. The protocol is WAL-G's (package wire): its archive library
// and its client work with this daemon.
//
// What a request may name is narrow: a file of pg_wal that PostgreSQL itself
// would archive, and a destination inside the data directory. Everything else,
// and every broken frame, is answered 'E' and nothing happens. The reason of an
// 'E' is in the log, since the protocol has no words.
//
// The socket is open to the daemon's own user only. A socket that another
// daemon answers on is never taken over, and a file at its path that is no
// socket is never removed.
package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/service"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/producer/daemon/wire"
)

// Options make a Server. Socket, DataDir, Push, Fetch and Logger are required.
type Options struct {
	// Socket is the path to listen at, of at most 107 bytes.
	Socket string
	// DataDir is the cluster's data directory (PGDATA), which exists.
	DataDir string
	// Push archives the file at path, an absolute one. nil is what makes
	// PostgreSQL drop the file: return it only when the file is safe.
	Push func(ctx context.Context, path string) error
	// Fetch puts the archived file name at destination, an absolute path that
	// does not exist. wire.ErrAbsent says that no storage has it.
	Fetch  func(ctx context.Context, name, destination string) error
	Logger *slog.Logger

	// PushTimeout bounds one Push (WALG_DAEMON_WAL_UPLOAD_TIMEOUT). 0 leaves
	// it to Push.
	PushTimeout time.Duration
	// RequestTimeout is how long a client may take to make its request and to
	// take the answer. 0 is 30 s.
	RequestTimeout time.Duration
	// IdleTimeout is how long a client may be silent after a check: WAL-G's
	// archive library checks first and sends its file when there is one. 0 is
	// 10 min.
	IdleTimeout time.Duration
	// MaxConnections is how many clients are served at a time; more wait in
	// the socket's queue. 0 is 64.
	MaxConnections int
}

// Server is the daemon. It is a service.Service: Start returns when the socket
// takes connections or with the reason why it does not (ErrLive, ErrNotSocket);
// a stop removes the socket at once, finishes requests that have been read, and
// drops connections without one.
type Server struct {
	service.Base
	opt   Options
	roots []string // of what DataDir is, as clients may spell it
	sock  *socket
}

var _ service.Service = (*Server)(nil)

// New prepares a server.
func New(opt Options) *Server {
	if opt.RequestTimeout == 0 {
		opt.RequestTimeout = 30 * time.Second
	}
	if opt.IdleTimeout == 0 {
		opt.IdleTimeout = 10 * time.Minute
	}
	if opt.MaxConnections == 0 {
		opt.MaxConnections = 64
	}
	return &Server{opt: opt}
}

// Start implements service.Service.
func (s *Server) Start(ctx context.Context) error { return s.Launch(ctx, s.setup, s.run) }

func (s *Server) setup(ctx context.Context) (err error) {
	if s.roots, err = spellings(s.opt.DataDir); err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	if s.sock, err = listen(ctx, s.opt.Socket); err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	return nil
}

// spellings are the absolute names of a directory: as given, and with links
// resolved, if that differs.
func spellings(dir string) ([]string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w (set PGDATA)", err)
	}
	if info, err := os.Stat(real); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("data directory: %s is not a directory (set PGDATA)", abs)
	}
	if real == abs {
		return []string{abs}, nil
	}
	return []string{abs, real}, nil
}

// acceptPause is waited after a failed accept: the usual cause is the limit of
// open files, which ends when requests do.
const acceptPause = 100 * time.Millisecond

func (s *Server) run(fetch, work context.Context) error {
	// Closing the listener is what ends Accept.
	var closing error
	closed := make(chan struct{})
	context.AfterFunc(fetch, func() {
		defer close(closed)
		closing = s.sock.close()
	})
	err := service.Within(work, 0, func(_ context.Context, pool *service.Scope) error {
		slots := make(chan struct{}, s.opt.MaxConnections)
		for {
			// The slot comes before the connection: who has to wait shall
			// wait in the kernel, not with us.
			select {
			case slots <- struct{}{}:
			case <-fetch.Done():
				return nil
			}
			conn, err := s.sock.listener.AcceptUnix()
			switch {
			case err == nil && fetch.Err() == nil:
				pool.Go(func(ctx context.Context) error {
					defer func() { <-slots }()
					defer conn.Close()
					// One client's trouble, be it a panic, is not the others'.
					if err := service.Catch(func() error { s.serve(fetch, ctx, conn); return nil }); err != nil {
						s.opt.Logger.Error("serve a connection", telemetry.KeyError, err)
					}
					return nil
				})
				continue
			case err == nil:
				conn.Close()
			case fetch.Err() == nil:
				s.opt.Logger.Error("accept connection", telemetry.KeyError, err)
				select {
				case <-fetch.Done():
				case <-time.After(acceptPause):
				}
			}
			<-slots
		}
	})
	<-closed
	if cut := context.Cause(work); cut != nil {
		err = errors.Join(cut, err)
	}
	return errors.Join(err, closing)
}

// serve answers the requests of one connection: any number of checks, then one
// of the others.
func (s *Server) serve(fetch, work context.Context, conn *net.UnixConn) {
	silence := s.opt.RequestTimeout
	for {
		req, err := s.read(fetch, conn, silence)
		switch {
		case errors.Is(err, errSilent):
			return
		case err != nil:
			s.opt.Logger.Warn("a request on the socket is refused", telemetry.KeyReason, err)
			s.answer(conn, wire.Failed)
			return
		case req.Kind != wire.Check:
			s.answer(conn, s.do(work, conn, req))
			return
		}
		s.answer(conn, wire.Done)
		silence = s.opt.IdleTimeout
	}
}

// errSilent is the end of a connection without a request: nothing is answered,
// since a client that asks later would take the answer for that to its request.
var errSilent = errors.New("no request")

// read waits for a request to begin, then for its end.
func (s *Server) read(fetch context.Context, conn net.Conn, silence time.Duration) (wire.Request, error) {
	conn.SetReadDeadline(time.Now().Add(silence))
	// A stop does not wait for clients that have not said what they want.
	defer context.AfterFunc(fetch, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()
	var first [1]byte
	if _, err := io.ReadFull(conn, first[:]); err != nil {
		return wire.Request{}, errSilent
	}
	conn.SetReadDeadline(time.Now().Add(s.opt.RequestTimeout))
	if fetch.Err() != nil { // in the moment before that line
		conn.SetReadDeadline(time.Unix(1, 0))
	}
	return wire.ReadRequest(io.MultiReader(bytes.NewReader(first[:]), conn))
}

// answer sends one byte. That the client has gone is its own affair.
func (s *Server) answer(conn net.Conn, reply wire.Reply) {
	conn.SetWriteDeadline(time.Now().Add(s.opt.RequestTimeout))
	if _, err := conn.Write([]byte{byte(reply)}); err != nil {
		s.opt.Logger.Warn("the client went before its answer", "answer", string(rune(reply)), telemetry.KeyError, err)
	}
}

// do carries out a request and says in the log what the answer cannot.
func (s *Server) do(ctx context.Context, conn *net.UnixConn, req wire.Request) wire.Reply {
	begin := time.Now()
	err := service.Catch(func() error {
		if req.Kind == wire.Push {
			return s.push(ctx, req.Name)
		}
		return s.fetch(ctx, conn, req)
	})
	log := s.opt.Logger.With(telemetry.KeySegment, req.Name, telemetry.KeyDuration, time.Since(begin).Round(time.Microsecond))
	switch {
	case err == nil:
		log.Debug(req.Kind.String() + " is done")
		return wire.Done
	case errors.Is(err, wire.ErrAbsent) && req.Kind == wire.Fetch:
		log.Info("the archive has no such file")
		return wire.Absent
	}
	log.Error(req.Kind.String()+" failed", telemetry.KeyError, err)
	return wire.Failed
}

func (s *Server) push(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if t := s.opt.PushTimeout; t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, t, fmt.Errorf("not archived within %s (WALG_DAEMON_WAL_UPLOAD_TIMEOUT)", t))
		defer cancel()
	}
	// A client that goes does not end the push. It will ask again, and if each
	// time began anew a file that takes longer than the client's patience
	// would never be archived.
	return withCause(ctx, s.opt.Push(ctx, filepath.Join(s.roots[0], "pg_wal", name)))
}

var errClientGone = errors.New("the client has gone")

func (s *Server) fetch(ctx context.Context, conn *net.UnixConn, req wire.Request) error {
	if err := checkName(req.Name); err != nil {
		return err
	}
	destination, err := s.destination(req.Destination)
	if err != nil {
		return err
	}
	// A client that goes ends the fetch: PostgreSQL asks for the next file at
	// the same destination, and must not find a late one there.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer onHangUp(conn, func() { cancel(errClientGone) })()
	return withCause(ctx, s.opt.Fetch(ctx, req.Name, destination))
}

// withCause adds to an error why the context ended, if it does not say so.
func withCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// checkName admits what PostgreSQL archives and asks for. That leaves no room
// for a path, an empty name or a control character.
func checkName(name string) error {
	if kind, _ := pg.ClassifyWALFile(name); kind == pg.OtherFile {
		hint := ""
		if strings.Contains(name, "/") {
			hint = " (archive_command has to give %f, not %p)"
		}
		return fmt.Errorf("%.100q is not the bare name of a WAL file%s", name, hint)
	}
	return nil
}

// destination makes an absolute path of what a client gave, which has to lie
// in the data directory. Links inside are followed: pg_wal is often one, and
// whoever may make links there may write there as well.
func (s *Server) destination(given string) (string, error) {
	if strings.ContainsRune(given, 0) {
		return "", fmt.Errorf("destination %.100q is no path", given)
	}
	path := given
	if !filepath.IsAbs(path) {
		path = filepath.Join(s.roots[0], path)
	}
	path = filepath.Clean(path)
	for _, root := range s.roots {
		if rel, err := filepath.Rel(root, path); err == nil && rel != "." && filepath.IsLocal(rel) {
			return path, nil
		}
	}
	return "", fmt.Errorf("destination %.200q is not inside the data directory %s", given, s.roots[0])
}
