// Package broker runs NATS servers. Start is one inside this process, without
// a socket, for commands that are given no other: the embedded shape. Its
// streams live in memory and die with the process, which is right there: the
// command that published a job waits for it, and PostgreSQL asks again after a
// failure.
//
// A broker that keeps data runs in a process of its own (Supervise starts it,
// Serve is what runs there): a server whose store file is damaged can take all
// memory at start, and must not take the process that answers archive_command
// with it.
package broker

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// MaxPayload of the embedded broker in bytes.
const MaxPayload = 8 << 20

// Embedded is a running server. It satisfies bus.InProcess.
type Embedded struct {
	s   *server.Server
	dir string
}

// Options of Start.
type Options struct {
	// MaxMemory bounds the streams in bytes. 0 is 256 MiB.
	MaxMemory int64
	// Listen is a loopback address such as 127.0.0.1:0, for tests and for
	// several processes on one host; empty opens no socket.
	Listen string
	// StoreDir keeps file streams there; empty is a temporary directory
	// that Stop removes, for memory streams.
	StoreDir string
	// MaxStore bounds the file streams in bytes. 0 is 64 GiB. It must trip
	// before the disk is full: a full disk freezes the streams.
	MaxStore int64
	// SyncAlways acknowledges a message when it is on disk. Without it a
	// power cut loses two minutes of acknowledged messages, and streams.
	SyncAlways bool
	// Token, if set, is asked of every connection.
	Token string
	// Logger is told what the server has to say; nil is nothing.
	Logger *slog.Logger
}

// Start runs a server and waits until it takes connections.
func Start(opt Options) (*Embedded, error) {
	if opt.MaxMemory == 0 {
		opt.MaxMemory = 256 << 20
	}
	if opt.MaxStore == 0 {
		opt.MaxStore = 64 << 30
	}
	e := &Embedded{}
	if opt.StoreDir == "" {
		dir, err := tempDir()
		if err != nil {
			return nil, fmt.Errorf("make the embedded broker's directory: %w (set TMPDIR to a writable directory)", err)
		}
		opt.StoreDir, e.dir = dir, dir
	}
	so := &server.Options{
		ServerName: "walherd-embedded", DontListen: opt.Listen == "", NoLog: true, NoSigs: true,
		JetStream: true, StoreDir: opt.StoreDir, JetStreamMaxMemory: opt.MaxMemory,
		JetStreamMaxStore: opt.MaxStore, MaxPayload: MaxPayload, DisableJetStreamBanner: true,
		SyncAlways: opt.SyncAlways, Authorization: opt.Token,
	}
	if opt.Listen != "" {
		host, port, err := splitLoopback(opt.Listen)
		if err != nil {
			e.removeDir()
			return nil, err
		}
		so.Host, so.Port = host, port
	}
	s, err := server.NewServer(so)
	if err != nil {
		e.removeDir()
		return nil, fmt.Errorf("start embedded broker: %w", err)
	}
	e.s = s
	if opt.Logger != nil {
		s.SetLoggerV2(serverLog{opt.Logger}, false, false, false)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		e.Stop()
		return nil, errors.New("start embedded broker: not ready after 10s")
	}
	return e, nil
}

// tempDir makes the directory that JetStream wants even if nothing is ever
// stored in it: in memory where the system has such a place.
func tempDir() (string, error) {
	const pattern = "walherd-broker-"
	if dir, err := os.MkdirTemp("/dev/shm", pattern); err == nil {
		return dir, nil
	}
	return os.MkdirTemp("", pattern)
}

func splitLoopback(addr string) (string, int, error) {
	a, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return "", 0, fmt.Errorf("broker address %q: %w", addr, err)
	}
	if !a.IP.IsLoopback() {
		return "", 0, fmt.Errorf("broker address %q: the embedded broker listens on loopback only; run nats-server for others", addr)
	}
	if a.Port == 0 {
		return a.IP.String(), server.RANDOM_PORT, nil
	}
	return a.IP.String(), a.Port, nil
}

// InProcessConn connects to the server through a pipe.
func (e *Embedded) InProcessConn() (net.Conn, error) { return e.s.InProcessConn() }

// URL is the address for other processes; empty without Listen.
func (e *Embedded) URL() string {
	if e.s.Addr() == nil {
		return ""
	}
	return e.s.ClientURL()
}

// Dir is the temporary directory, if there is one.
func (e *Embedded) Dir() string { return e.dir }

// Stop shuts the server down and waits for it.
func (e *Embedded) Stop() {
	e.s.Shutdown()
	e.s.WaitForShutdown()
	e.removeDir()
}

// Abandon is Stop for a process that is about to end: it only removes the
// temporary directory. A server that still knows of a worker's waiting request
// sleeps 50 ms in its shutdown so that the worker hears of it, and
// archive_command would pay that for every segment.
func (e *Embedded) Abandon() { e.removeDir() }

func (e *Embedded) removeDir() {
	if e.dir != "" {
		// Best effort: it is in TMPDIR and holds nothing.
		_ = os.RemoveAll(e.dir)
	}
}

// serverLog passes the server's lines on. Its notices are of no interest to
// whoever runs a backup; its warnings are.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Noticef(format string, v ...any) {
	l.log.Debug("broker: " + fmt.Sprintf(format, v...))
}
func (l serverLog) Warnf(format string, v ...any) {
	l.log.Warn("broker: " + fmt.Sprintf(format, v...))
}
func (l serverLog) Fatalf(format string, v ...any) {
	l.log.Error("broker: " + fmt.Sprintf(format, v...))
}
func (l serverLog) Errorf(format string, v ...any) {
	l.log.Error("broker: " + fmt.Sprintf(format, v...))
}
func (l serverLog) Debugf(string, ...any) {}
func (l serverLog) Tracef(string, ...any) {}
