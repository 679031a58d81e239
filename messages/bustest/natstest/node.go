//go:build unix

package natstest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Node is one nats-server. Its methods may be called at any time, from several
// goroutines.
type Node struct {
	// Name is the server's name, as streams tell their leader.
	Name string
	// Addr is where it listens for clients.
	Addr string
	// StoreDir is its store, LogFile what it says. Both outlive the process.
	StoreDir, LogFile string

	monitor   string
	size      int // of the cluster
	binary    string
	args, env []string
	mu        sync.Mutex
	cmd       *exec.Cmd
	done      chan struct{} // closed when it has ended
	logFrom   int64         // where this process's log begins
}

// URL of the node.
func (n *Node) URL() string { return "tls://" + n.Addr }

// launch starts the process.
func (n *Node) launch() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running() {
		return fmt.Errorf("start %s: it runs already", n.Name)
	}
	log, err := os.OpenFile(n.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	defer log.Close()
	if info, err := log.Stat(); err == nil {
		n.logFrom = info.Size()
	}
	cmd := exec.Command(n.binary, n.args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = n.env, log, log
	n.cmd, n.done = cmd, make(chan struct{})
	if err := start(cmd, n.done); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	return nil
}

// running needs mu.
func (n *Node) running() bool {
	if n.done == nil {
		return false
	}
	select {
	case <-n.done:
		return false
	default:
		return true
	}
}

// Restart starts a node that has ended, on the same store and ports, and waits
// until it is ready.
func (n *Node) Restart(ctx context.Context) error {
	if err := n.launch(); err != nil {
		return err
	}
	return n.Ready(ctx)
}

// Kill ends the node as a crash does. One that has ended is left alone.
func (n *Node) Kill() { _ = n.end(syscall.SIGKILL) }

// Stop ends the node in an orderly way.
func (n *Node) Stop() error { return n.end(syscall.SIGTERM) }

func (n *Node) end(sig syscall.Signal) error {
	err := n.signal(sig)
	n.mu.Lock()
	done := n.done
	n.mu.Unlock()
	if done != nil && err == nil {
		<-done
	}
	return err
}

// Pause freezes the node where it is: its connections stay, and nothing is
// answered until Resume.
func (n *Node) Pause() error { return n.signal(syscall.SIGSTOP) }

// Resume lets a paused node go on.
func (n *Node) Resume() error { return n.signal(syscall.SIGCONT) }

func (n *Node) signal(sig syscall.Signal) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.running() {
		return nil
	}
	if err := n.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v to %s: %w", sig, n.Name, err)
	}
	return nil
}

// PID is the number of the process, 0 when it has ended.
func (n *Node) PID() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.running() {
		return 0
	}
	return n.cmd.Process.Pid
}

// readyLimit is generous: machines that run tests are busy.
const readyLimit = 90 * time.Second

// Ready waits until the node takes part in the cluster, knows its leader and
// serves JetStream.
func (n *Node) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	n.mu.Lock()
	done := n.done
	n.mu.Unlock()
	for !n.ready(ctx, client) {
		select {
		case <-tick.C:
		case <-done:
			return fmt.Errorf("%s has ended: %s", n.Name, n.tail(2<<10))
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w: %s", n.Name, context.Cause(ctx), n.tail(2<<10))
		}
	}
	return nil
}

// ready asks the monitoring port. A node is healthy before all the others
// have joined; and it logs every time that it is not, so that comes last.
func (n *Node) ready(ctx context.Context, client *http.Client) bool {
	if n.size > 1 {
		var state struct {
			Meta struct {
				Leader string `json:"leader"`
				Size   int    `json:"cluster_size"`
			} `json:"meta_cluster"`
		}
		err := ask(ctx, client, "http://"+n.monitor+"/jsz", &state)
		if err != nil || state.Meta.Leader == "" || state.Meta.Size != n.size {
			return false
		}
	}
	return ask(ctx, client, "http://"+n.monitor+"/healthz", nil) == nil
}

func ask(ctx context.Context, client *http.Client, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(res.Body).Decode(into)
}

// tail is the end of what this process said.
func (n *Node) tail(most int) string {
	n.mu.Lock()
	from := n.logFrom
	n.mu.Unlock()
	data, err := os.ReadFile(n.LogFile)
	if err != nil {
		return err.Error()
	}
	data = data[min(from, int64(len(data))):]
	return strings.TrimSpace(string(data[max(0, len(data)-most):]))
}
