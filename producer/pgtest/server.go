package pgtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// StopMode is a way to shut a server down.
type StopMode int

// Fast rolls transactions back and writes a checkpoint; Immediate aborts, so
// that the next start replays WAL.
const (
	Fast StopMode = iota
	Immediate
)

func (m StopMode) signal() syscall.Signal {
	if m == Immediate {
		return syscall.SIGQUIT
	}
	return syscall.SIGINT
}

// startLimit and stopLimit bound what a loaded machine may take.
const (
	startLimit = 90 * time.Second
	stopLimit  = 60 * time.Second
	pollEvery  = 5 * time.Millisecond
)

// port is the same for all clusters: each has a socket directory of its own.
const port = 5432

// server is one data directory and, while it runs, its postmaster.
type server struct {
	in      install
	own     owner
	data    string
	sock    string
	listen  string // listen_addresses
	logPath string

	mu   sync.Mutex
	cmd  *exec.Cmd
	gone chan struct{} // closed when the postmaster has ended
}

// start runs the postmaster as a child of this process and waits until it
// says in postmaster.pid that it takes connections.
func (s *server) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		return errors.New("start PostgreSQL: already running")
	}
	log, err := os.OpenFile(s.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open server log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(s.in.bin, "postgres"), "-D", s.data,
		"-c", "listen_addresses="+s.listen,
		"-c", "port="+strconv.Itoa(port),
		"-c", "unix_socket_directories="+s.sock,
		"-c", "logging_collector=off")
	cmd.Dir = s.data
	cmd.Env = append(cleanEnv(), "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = log, log
	s.own.become(cmd)
	dieWithParent(cmd)
	started := make(chan error, 1)
	gone := make(chan struct{})
	go func() {
		// The kernel's death signal follows the thread that forked, not
		// the process: keep that thread for as long as the server runs.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(gone)
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	s.cmd, s.gone = cmd, gone
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	limit := time.NewTimer(startLimit)
	defer limit.Stop()
	for {
		select {
		case <-gone:
			s.cmd = nil
			return fmt.Errorf("start PostgreSQL: it ended (%s)\n%s", cmd.ProcessState, s.logTail())
		case <-limit.C:
			cmd.Process.Signal(syscall.SIGQUIT)
			<-gone
			s.cmd = nil
			return fmt.Errorf("start PostgreSQL: not ready after %s\n%s", startLimit, s.logTail())
		case <-tick.C:
			if s.ready(cmd.Process.Pid) {
				return nil
			}
		}
	}
}

// ready reads the status line of postmaster.pid, as pg_ctl does. The first
// line must be our process: a file left by a crash may say "ready" too.
func (s *server) ready(pid int) bool {
	b, err := os.ReadFile(filepath.Join(s.data, "postmaster.pid"))
	if err != nil {
		return false
	}
	lines := strings.Split(string(b), "\n")
	if len(lines) < 8 || strings.TrimSpace(lines[0]) != strconv.Itoa(pid) {
		return false
	}
	status := strings.TrimSpace(lines[7])
	// "standby" is a standby with hot_standby off: as ready as it gets.
	return status == "ready" || status == "standby"
}

// stop shuts the server down and waits for it. Stopping a stopped server is
// no error.
func (s *server) stop(mode StopMode) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return nil
	}
	if err := s.cmd.Process.Signal(mode.signal()); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	select {
	case <-s.gone:
		s.cmd = nil
		return nil
	case <-limit.C:
		return fmt.Errorf("stop PostgreSQL: still running after %s\n%s", stopLimit, s.logTail())
	}
}

// kill ends the postmaster and its children with SIGKILL, as the kernel's
// out-of-memory killer or a power cut would. The postmaster is halted first,
// so that it starts no child while they are counted.
func (s *server) kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return nil
	}
	p := s.cmd.Process
	if err := p.Signal(syscall.SIGSTOP); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("halt PostgreSQL: %w", err)
	}
	kids := children(p.Pid)
	if err := p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill PostgreSQL: %w", err)
	}
	for _, k := range kids {
		// ESRCH only says that it is gone already.
		if err := syscall.Kill(k, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill PostgreSQL's process %d: %w", k, err)
		}
	}
	<-s.gone
	s.cmd = nil
	// While one of them is attached to the shared memory the next start
	// refuses ("pre-existing shared memory block is still in use").
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	deadline := time.Now().Add(stopLimit)
	for _, k := range kids {
		for syscall.Kill(k, 0) == nil && !zombie(k) {
			if time.Now().After(deadline) {
				return fmt.Errorf("kill PostgreSQL: process %d does not end", k)
			}
			<-tick.C
		}
	}
	return nil
}

// zombie reports whether pid has ended and only waits to be reaped by init:
// in a container without an init that reaps, it would stay so for ever.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	i := bytes.LastIndexByte(b, ')')
	return i >= 0 && i+2 < len(b) && b[i+2] == 'Z'
}

func (s *server) pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// logTail is the end of the server's log.
func (s *server) logTail() string {
	b, err := os.ReadFile(s.logPath)
	if err != nil {
		return "(no server log: " + err.Error() + ")"
	}
	const keep = 8 << 10
	if len(b) > keep {
		b = b[len(b)-keep:]
	}
	return string(b)
}

// cleanEnv is the environment without PostgreSQL's variables: a developer's
// PGHOST must never lead a test to a real server.
func cleanEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PG") {
			env = append(env, kv)
		}
	}
	return env
}
