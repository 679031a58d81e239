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
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/walherd/walherd/storage/storagetest/pinned"
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
	proc *pinned.Process
}

// Options tune a server. The zero value is ready for use.
type Options struct {
	// Versioning allows buckets to keep versions.
	Versioning bool
}

const healthPath = "/walherd-health"

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
		if addr, err = pinned.FreeAddr(ctx); err != nil {
			return nil, err
		}
		s.Endpoint = "http://" + addr
		if err = s.Restart(ctx); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "address already in use") {
			break
		}
	}
	return s, err
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
	cmd := exec.Command(s.binary, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.AccessKeyID, "ROOT_SECRET_KEY="+s.SecretAccessKey)
	p, err := pinned.Start(ctx, tool.Name, cmd, s.Endpoint+healthPath)
	if err != nil {
		return err
	}
	s.proc = p
	return nil
}

// Stop ends the server, as a crash would; its data stays. Stopping a stopped
// server is no error.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return nil
	}
	s.proc.Kill()
	s.proc = nil
	return nil
}

// MakeBucket makes a bucket: for this server, a directory.
func (s *Server) MakeBucket(name string) error {
	if err := os.Mkdir(filepath.Join(s.dir, "data", name), 0o755); err != nil {
		return fmt.Errorf("make bucket %s: %w", name, err)
	}
	return nil
}

// PID is the process id of the running server, 0 when it is stopped: its
// processor time and memory are part of what a benchmark tells.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return 0
	}
	return s.proc.PID()
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
