// Package s3test runs a real S3 server for tests, demonstrations and
// benchmarks: versitygw on a directory, in a process of its own. Its source is
// pinned by the module tools/s3server and built once into the user's cache
// directory, which takes minutes the first time; WALHERD_S3_SERVER names a
// binary to use instead.
//
// It fails with an error that says what is missing (a Go toolchain, the
// source tree, modules that were not downloaded), never by skipping.
package s3test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Server is a running server. It is stopped with Stop and may be started
// again on the same address and directory.
type Server struct {
	// Endpoint is its URL, http on the loopback address.
	Endpoint string
	// AccessKeyID and SecretAccessKey of its only user.
	AccessKeyID     string
	SecretAccessKey string
	// Region it signs for.
	Region string

	binary string
	dir    string
	opt    Options

	mu   sync.Mutex
	proc *process
}

// Options tune a server. The zero value is ready for use.
type Options struct {
	// Versioning allows buckets to keep versions.
	Versioning bool
}

// process is the server's process; its end is told once by closing done.
type process struct {
	cmd  *exec.Cmd
	log  *tail
	done chan struct{}
}

const (
	// readyLimit is generous: machines that run tests are busy.
	readyLimit = time.Minute
	healthPath = "/walherd-health"
)

// Start runs a server for a test, which ends with the test.
func Start(t testing.TB, opt Options) *Server {
	t.Helper()
	s, err := Run(t.Context(), t.TempDir(), opt)
	if err != nil {
		t.Fatalf("start an S3 server: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Errorf("stop the S3 server: %v", err)
		}
	})
	return s
}

// Run starts a server that keeps its data in dir, building it first if need
// be. ctx covers the start only.
func Run(ctx context.Context, dir string, opt Options) (*Server, error) {
	binary, err := Build(ctx)
	if err != nil {
		return nil, err
	}
	s := &Server{
		AccessKeyID: "walherd-" + strings.ToLower(rand.Text()[:8]), SecretAccessKey: rand.Text(), Region: "us-east-1",
		binary: binary, dir: dir, opt: opt,
	}
	for _, sub := range []string{"data", "meta", "versions"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("make the server's directory: %w", err)
		}
	}
	// The port is free when it is chosen, and may be taken when the server
	// comes to it.
	for range 5 {
		var addr string
		if addr, err = freeAddr(ctx); err != nil {
			return nil, err
		}
		s.Endpoint = "http://" + addr
		if err = s.Restart(ctx); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "address already in use") {
			break
		}
	}
	return s, err
}

func freeAddr(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// Restart starts a stopped server again, and returns when it answers.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil {
		return errors.New("the S3 server runs already")
	}
	args := []string{"--port", strings.TrimPrefix(s.Endpoint, "http://"), "--region", s.Region, "--keep-alive", "--quiet", "--health", healthPath, "posix"}
	// Extended attributes are not everywhere (tmpfs of older kernels).
	// Without them what is no content goes into files of its own, which are
	// not replaced in the same moment: then readers beside writers see
	// checksums of another version.
	if !keepsAttributes(s.dir) {
		args = append(args, "--sidecar", filepath.Join(s.dir, "meta"))
	}
	if s.opt.Versioning {
		args = append(args, "--versioning-dir", filepath.Join(s.dir, "versions"))
	}
	args = append(args, filepath.Join(s.dir, "data"))
	p := &process{log: new(tail), done: make(chan struct{})}
	p.cmd = exec.Command(s.binary, args...)
	p.cmd.Dir = s.dir
	p.cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.AccessKeyID, "ROOT_SECRET_KEY="+s.SecretAccessKey)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := launch(p); err != nil {
		return fmt.Errorf("start %s: %w", s.binary, err)
	}
	if err := s.ready(ctx, p); err != nil {
		p.kill()
		return err
	}
	s.proc = p
	return nil
}

// ready asks until the server answers or ends.
func (s *Server) ready(ctx context.Context, p *process) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint+healthPath, nil)
		if err != nil {
			return err
		}
		if res, err := client.Do(req); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-p.done:
			return fmt.Errorf("the S3 server ended at once: %s", p.log)
		case <-ctx.Done():
			return fmt.Errorf("the S3 server does not answer: %w: %s", ctx.Err(), p.log)
		case <-tick.C:
		}
	}
}

// Stop ends the server, as a crash would; its data stays. Stopping a stopped
// server is no error.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return nil
	}
	s.proc.kill()
	s.proc = nil
	return nil
}

func (p *process) kill() {
	p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// MakeBucket makes a bucket: for this server, a directory.
func (s *Server) MakeBucket(name string) error {
	if err := os.Mkdir(filepath.Join(s.dir, "data", name), 0o755); err != nil {
		return fmt.Errorf("make bucket %s: %w", name, err)
	}
	return nil
}

// NewBucket makes a bucket with a name of its own.
func (s *Server) NewBucket(t testing.TB) string {
	t.Helper()
	name := "b-" + strings.ToLower(rand.Text()[:16])
	if err := s.MakeBucket(name); err != nil {
		t.Fatal(err)
	}
	return name
}

// tail keeps the last output of the server, for errors.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const tailSize = 4 << 10

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
