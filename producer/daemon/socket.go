package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/walherd/walherd/producer/daemon/client"
)

// What can be in the way of a socket, for errors.Is.
var (
	// ErrLive says that another process listens at the path.
	ErrLive = errors.New("another daemon listens there")
	// ErrNotSocket says that the path is taken by something else.
	ErrNotSocket = errors.New("it is not a socket, and is left alone")
)

// lockLimit is how long another daemon's start is waited for.
const lockLimit = 10 * time.Second

// liveLimit is how long whoever listens at the path is given to answer.
const liveLimit = 2 * time.Second

// socket is a listening socket and the file it is known by.
type socket struct {
	path     string
	listener *net.UnixListener
	file     fs.FileInfo
}

// listen makes the socket file, mode 0600, in place of one that is nobody's
// any more.
func listen(ctx context.Context, path string) (_ *socket, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("listen at %s: %w", path, err)
		}
	}()
	// Two daemons started at once could both find the old file stale, and the
	// second would remove the first one's new file.
	unlock, err := lockDir(ctx, filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		// Linux makes the file with the socket's own mode: with it set here,
		// nobody else can connect in the moment before the Chmod below. Other
		// systems refuse, and have that moment.
		return raw.Control(func(fd uintptr) { _ = unix.Fchmod(int(fd), 0o600) })
	}}
	l, err := config.Listen(ctx, "unix", path)
	if err != nil {
		if errors.Is(err, syscall.EINVAL) {
			err = fmt.Errorf("%w: a socket's path has at most 107 bytes, this has %d", err, len(path))
		}
		return nil, err
	}
	s := &socket{path: path, listener: l.(*net.UnixListener)}
	// close decides whether the file is still ours to remove.
	s.listener.SetUnlinkOnClose(false)
	if err = os.Chmod(path, 0o600); err == nil {
		s.file, err = os.Lstat(path)
	}
	if err != nil {
		return nil, errors.Join(err, s.listener.Close(), os.Remove(path))
	}
	return s, nil
}

// lockDir holds an advisory lock on a directory: one that needs no file which
// would be left behind.
func lockDir(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, lockLimit, fmt.Errorf("somebody has held it for %s", lockLimit))
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { f.Close() }, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// removeStale removes the socket of a daemon that was killed.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return ErrNotSocket
	}
	// One that takes connections is in use whatever it answers; only a socket
	// without a listener refuses.
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	case err != nil:
		return fmt.Errorf("%w, or it cannot be asked: %w", ErrLive, err)
	}
	conn.Close()
	c := client.Client{Socket: path, ConnectTimeout: liveLimit, Timeout: liveLimit}
	if err := c.Check(ctx); err != nil {
		return fmt.Errorf("%w and gives no answer: %w", ErrLive, err)
	}
	return ErrLive
}

// close removes the file before the listener is closed: as long as the file is
// there it is live, so that no other daemon takes the path and has its new
// file removed here.
func (s *socket) close() error {
	var removed error
	if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.file) {
		removed = os.Remove(s.path)
	}
	return errors.Join(removed, s.listener.Close())
}

// onHangUp calls f when the peer closes the connection before the returned
// function is called. Reading from the connection is over after that.
func onHangUp(conn *net.UnixConn, f func()) (stop func()) {
	done := make(chan struct{})
	conn.SetReadDeadline(time.Time{})
	go func() {
		defer close(done)
		var b [64]byte
		for {
			// What a client says after its request is not read by anybody.
			if _, err := conn.Read(b[:]); err != nil {
				if !errors.Is(err, os.ErrDeadlineExceeded) && hungUp(conn) {
					f()
				}
				return
			}
		}
	}()
	return func() {
		conn.SetReadDeadline(time.Unix(1, 0))
		<-done
	}
}

// hungUp tells a peer that has closed its connection from one that has only
// said its last word (shutdown of one direction) and waits for the answer.
func hungUp(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	gone := true
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		if _, err := unix.Poll(p, 0); err == nil {
			gone = p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
		}
	})
	return gone || err != nil
}
