package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Serve is a broker process: it runs a server until ctx ends or parent reaches
// its end, which is when the process that started this one has died. It writes
// one line to ready, the server's URL, once it takes connections.
func Serve(ctx context.Context, opt Options, parent io.Reader, ready io.Writer) error {
	if err := limitMemory(opt.MaxMemory); err != nil {
		return err
	}
	e, err := Start(opt)
	if err != nil {
		return err
	}
	defer e.Stop()
	if _, err := fmt.Fprintln(ready, e.URL()); err != nil {
		return fmt.Errorf("say that the broker is ready: %w", err)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, parent)
	}()
	select {
	case <-ctx.Done():
	case <-gone:
	}
	return nil
}

// overhead is what the server needs beside its memory streams: code, buffers
// of connections, indexes, and garbage not collected yet.
const overhead = 1 << 30

// SuperviseOptions of Supervise. Command is required.
type SuperviseOptions struct {
	// Command is a program and its arguments that end up in Serve, with the
	// same address every time.
	Command []string
	// Ready is called with the URL whenever a broker has come up.
	Ready  func(url string)
	Logger *slog.Logger
	// StartLimit is how long a broker may take to come up: it reads its
	// store first. 0 is 2 min.
	StartLimit time.Duration
	// Restart, when it yields, has the running broker replaced: it lives but
	// does not do its work.
	Restart <-chan struct{}
}

// pauses between a broker's end and the next start.
const (
	firstPause = 200 * time.Millisecond
	lastPause  = 30 * time.Second
)

// ErrNotStarted means that the very first broker did not come up.
var ErrNotStarted = errors.New("broker did not start")

// Supervise keeps a broker process running until ctx ends: one that dies is
// started again. It fails only if the first does not come up at all, since a
// wrong address or directory is for a person to mend.
func Supervise(ctx context.Context, opt SuperviseOptions) error {
	if opt.StartLimit == 0 {
		opt.StartLimit = 2 * time.Minute
	}
	pause := firstPause
	for first := true; ; first = false {
		started := time.Now()
		up, err := opt.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if first && !up {
			return fmt.Errorf("%w: %w", ErrNotStarted, err)
		}
		if time.Since(started) > time.Minute {
			pause = firstPause
		}
		opt.Logger.Error("the broker ended, starting it again", "error", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, lastPause)
	}
}

// once runs one broker to its end; up tells whether it ever took connections.
func (opt SuperviseOptions) once(ctx context.Context) (up bool, err error) {
	cmd := exec.Command(opt.Command[0], opt.Command[1:]...)
	// The end of this pipe tells the broker that we are gone, also when we
	// are killed.
	hold, err := cmd.StdinPipe()
	if err != nil {
		return false, err
	}
	defer hold.Close()
	said, err := cmd.StdoutPipe()
	if err != nil {
		return false, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return false, fmt.Errorf("start broker: %w", err)
	}
	url := make(chan string, 1)
	ended := make(chan error, 1)
	go func() {
		line := make([]byte, 0, 128)
		for buf := make([]byte, 64); ; {
			n, err := said.Read(buf)
			if line = append(line, buf[:n]...); strings.HasSuffix(string(line), "\n") {
				url <- strings.TrimSpace(string(line))
				line = line[:0]
			}
			if err != nil {
				break
			}
		}
		ended <- cmd.Wait()
	}()
	limit := time.NewTimer(opt.StartLimit)
	defer limit.Stop()
	for {
		select {
		case where := <-url:
			up = true
			limit.Stop()
			opt.Ready(where)
			continue
		case err := <-ended:
			return up, fmt.Errorf("broker process: %w", errOr(err, "it exited"))
		case <-limit.C:
			opt.end(cmd, hold, ended)
			return up, fmt.Errorf("not ready after %s", opt.StartLimit)
		case <-opt.Restart:
			opt.end(cmd, hold, ended)
			return up, errors.New("it did not do its work any more")
		case <-ctx.Done():
			opt.end(cmd, hold, ended)
			return up, ctx.Err()
		}
	}
}

func errOr(err error, text string) error {
	if err == nil {
		return errors.New(text)
	}
	return err
}

// end asks the broker to stop by closing its pipe, and kills it if it does not.
func (opt SuperviseOptions) end(cmd *exec.Cmd, hold io.Closer, ended <-chan error) {
	_ = hold.Close()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		opt.Logger.Warn("the broker does not stop, killing it")
		_ = cmd.Process.Kill()
		<-ended
	}
}
