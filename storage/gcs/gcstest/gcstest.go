// Package gcstest runs a server that speaks Google Cloud Storage's API for
// tests and benchmarks: fake-gcs-server, in memory, in a process of its own.
// Its source is pinned by the module tools/gcsserver; see package pinned for how
// it is built. WALHERD_GCS_SERVER names a binary to use instead.
//
// It differs from the real store: an upload session knows neither questions
// ("Content-Range: bytes */*" ends it) nor overlaps nor cancelling, and checks
// no X-Goog-Hash; encryption keys and X-Goog-Metageneration are unknown to it;
// a page with a delimiter holds all common prefixes. Tests of these put a server
// of their own in front.
package gcstest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"github.com/walherd/walherd/storage/storagetest/pinned"
)

// tool is the server's program.
var tool = pinned.Tool{
	Name: "GCS server", Module: "gcsserver", Env: "WALHERD_GCS_SERVER",
	Package: "github.com/fsouza/fake-gcs-server",
}

// Build gives the path of the server's binary, as pinned.Tool.Build does.
func Build(ctx context.Context) (string, error) { return tool.Build(ctx) }

// Server is a running server.
type Server struct {
	// Host is its address, as STORAGE_EMULATOR_HOST wants it.
	Host string

	process *pinned.Process
}

// Start runs a server for a test, which ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	s, err := Run(t.Context())
	if err != nil {
		t.Fatalf("start a GCS server: %v", err)
	}
	t.Cleanup(s.Stop)
	return s
}

// Run starts a server, building it first if need be. ctx covers the start only.
func Run(ctx context.Context) (*Server, error) {
	binary, err := tool.Build(ctx)
	if err != nil {
		return nil, err
	}
	// The port is free when it is chosen, and may be taken when the server
	// comes to it.
	for range 5 {
		s := new(Server)
		if s.Host, err = pinned.FreeAddr(ctx); err != nil {
			return nil, err
		}
		host, port, splitErr := net.SplitHostPort(s.Host)
		if splitErr != nil {
			return nil, splitErr
		}
		cmd := exec.Command(binary, "-backend=memory", "-scheme=http", "-host="+host, "-port="+port, "-log-level=error")
		if s.process, err = pinned.Start(ctx, tool.Name, cmd, "http://"+s.Host+"/_internal/healthcheck"); err == nil {
			return s, nil
		}
		if ctx.Err() != nil || !strings.Contains(err.Error(), "address already in use") {
			break
		}
	}
	return nil, err
}

// Stop ends the server; what it holds goes with it.
func (s *Server) Stop() { s.process.Kill() }

// MakeBucket makes a bucket.
func (s *Server) MakeBucket(ctx context.Context, name string) error {
	data, err := json.Marshal(map[string]string{"name": name})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.Host+"/storage/v1/b?project=test", bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("make bucket %s: %w", name, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10)) // what there is of a reason
		return fmt.Errorf("make bucket %s: %s: %s", name, res.Status, text)
	}
	return nil
}

// NewBucket makes a bucket with a name of its own.
func (s *Server) NewBucket(t testing.TB) string {
	t.Helper()
	name := "b-" + strings.ToLower(rand.Text()[:16])
	if err := s.MakeBucket(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	return name
}
