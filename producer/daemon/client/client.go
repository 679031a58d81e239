// Package client asks a daemon, ours or WAL-G's, to archive or to fetch one
// WAL file: what archive_command and restore_command run in place of a program
// that first has to read settings and open storages.
//
// It holds the walg-daemon-client program too (Main), so that the program of
// its own and walherd's subcommand are one. The package imports nothing but
// the protocol and the standard library: the program starts once a segment.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/walherd/walherd/producer/daemon/wire"
)

// Defaults of a Client's limits, the reference's.
const (
	DefaultTimeout        = 60 * time.Second
	DefaultConnectTimeout = 5 * time.Second
)

// ErrFailed says that the daemon could not do it: the answer 'E'. Why is in
// the daemon's log.
var ErrFailed = errors.New("the daemon could not; its log says why")

// Client asks the daemon at a socket. Each request has a connection of its
// own, and a Client may be used by several goroutines.
type Client struct {
	// Socket is the path of the daemon's socket.
	Socket string
	// ConnectTimeout bounds how long a daemon is waited for that is not
	// there: it may be restarting, and to PostgreSQL a failed restore_command
	// is the end of the archive. 0 is DefaultConnectTimeout.
	ConnectTimeout time.Duration
	// Timeout bounds a request with all its parts. 0 is DefaultTimeout.
	Timeout time.Duration
}

// Check reports whether a daemon answers at the socket.
func (c *Client) Check(ctx context.Context) error {
	return c.ask(ctx, wire.Request{Kind: wire.Check})
}

// Push has the daemon archive a file of its pg_wal: name is the bare name,
// what %f stands for in archive_command. It returns nil when the daemon said
// that the file is archived, and only then; ErrFailed when it said no.
func (c *Client) Push(ctx context.Context, name string) error {
	if strings.Contains(name, "/") {
		// The daemon would look for it as pg_wal/pg_wal/NAME.
		return fmt.Errorf("archive %s: the daemon wants the file's bare name: give %%f, not %%p", name)
	}
	return c.ask(ctx, wire.Request{Kind: wire.Push, Name: name})
}

// Fetch has the daemon fetch a WAL file to a destination that does not exist,
// relative to its data directory. The error is wire.ErrAbsent when no storage
// has the file, and ErrFailed when the daemon said that it could not.
func (c *Client) Fetch(ctx context.Context, name, destination string) error {
	return c.ask(ctx, wire.Request{Kind: wire.Fetch, Name: name, Destination: destination})
}

func (c *Client) ask(ctx context.Context, req wire.Request) error {
	if err := c.exchange(ctx, req); err != nil {
		return fmt.Errorf("%s through %s: %w", strings.TrimSpace(req.Kind.String()+" "+req.Name), c.Socket, err)
	}
	return nil
}

func (c *Client) exchange(ctx context.Context, req wire.Request) error {
	timeout := orDefault(c.Timeout, DefaultTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %s", timeout))
	defer cancel()
	frame, err := req.AppendTo(nil)
	if err != nil {
		return err
	}
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	// A connection knows no context; the end of one breaks off the other.
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	// A daemon may refuse a request before it has read all of it: what counts
	// is whether there is an answer.
	_, werr := conn.Write(frame)
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case werr != nil:
			return werr
		case err == io.EOF:
			return errors.New("the daemon closed the connection without an answer")
		}
		return err
	}
	switch wire.Reply(answer[0]) {
	case wire.Done:
		return nil
	case wire.Absent:
		return wire.ErrAbsent
	case wire.Failed:
		return ErrFailed
	}
	return fmt.Errorf("the answer %q is none of a daemon's", answer[0])
}

// retryPause is the time between two tries to connect.
const retryPause = 50 * time.Millisecond

// connect waits for a daemon that is not there, up to ConnectTimeout.
func (c *Client) connect(ctx context.Context) (net.Conn, error) {
	timeout := orDefault(c.ConnectTimeout, DefaultConnectTimeout)
	limit, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(limit, "unix", c.Socket)
		if err == nil {
			return conn, nil
		}
		// EAGAIN is a daemon whose queue of connections is full.
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EAGAIN) {
			return nil, reason(err)
		}
		select {
		case <-limit.Done():
			return nil, fmt.Errorf("no daemon answered within %s: %w", timeout, reason(err))
		case <-time.After(retryPause):
		}
	}
}

// reason drops what net puts in front of a cause: the path is named already.
func reason(err error) error {
	var call *os.SyscallError
	if errors.As(err, &call) {
		return call
	}
	return err
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}
