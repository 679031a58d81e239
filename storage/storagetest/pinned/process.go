package pinned

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"time"
)

const (
	// readyLimit is generous: machines that run tests are busy.
	readyLimit = time.Minute
	tailSize   = 4 << 10
)

// Process is a running server; where the system can, it dies with this process.
type Process struct {
	cmd  *exec.Cmd
	log  *tail
	done chan struct{} // closed when it has ended
}

// Start runs cmd, whose output it takes, and returns when a GET of health is
// answered with 200. name is for errors. ctx covers the start only.
func Start(ctx context.Context, name string, cmd *exec.Cmd, health string) (*Process, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return start(ctx, name, cmd, func(ctx context.Context, _ *Process) (bool, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, health, nil)
		if err != nil {
			return false, err
		}
		res, err := client.Do(req)
		if err != nil {
			return false, nil
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK, nil
	})
}

// StartSaying is Start for a server that tells in its output that it is ready:
// said is what of it matched, with its groups.
func StartSaying(ctx context.Context, name string, cmd *exec.Cmd, ready *regexp.Regexp) (p *Process, said []string, err error) {
	p, err = start(ctx, name, cmd, func(_ context.Context, p *Process) (bool, error) {
		said = ready.FindStringSubmatch(p.log.String())
		return said != nil, nil
	})
	return p, said, err
}

func start(ctx context.Context, name string, cmd *exec.Cmd, ready func(context.Context, *Process) (bool, error)) (*Process, error) {
	p := &Process{cmd: cmd, log: new(tail), done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	if err := launch(p); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	if err := p.await(ctx, name, ready); err != nil {
		p.Kill()
		return nil, err
	}
	return p, nil
}

// await asks until the server is ready or ends.
func (p *Process) await(ctx context.Context, name string, ready func(context.Context, *Process) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := ready(ctx, p); ok || err != nil {
			return err
		}
		select {
		case <-p.done:
			return fmt.Errorf("the %s ended at once: %s", name, p.log)
		case <-ctx.Done():
			return fmt.Errorf("the %s does not answer: %w: %s", name, ctx.Err(), p.log)
		case <-tick.C:
		}
	}
}

// PID is the number of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal, such as the one that stops a process where it is.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Kill ends the server, as a crash would. It may have ended before.
func (p *Process) Kill() {
	p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// FreeAddr is a loopback address nobody listens on. It may be taken when its
// user comes to it.
func FreeAddr(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// tail keeps the last output of a server, for errors.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *tail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Write(p)
	if over := l.buf.Len() - tailSize; over > 0 {
		l.buf.Next(over)
	}
	return len(p), nil
}

func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.TrimSpace(l.buf.String())
}
