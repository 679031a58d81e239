// Package azuretest runs a real Azure Blob server for tests, demonstrations
// and benchmarks: Azurite, Microsoft's emulator, in a process of its own. Its
// packages are pinned by tools/azurite/package-lock.json and installed once
// into the user's cache directory with npm, which takes half a minute the
// first time; WALHERD_AZURITE names an installed main.js of azurite-blob to
// use instead.
//
// It fails with an error that says what is missing (node, npm, the source
// tree), never by skipping.
package azuretest

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"github.com/walherd/walherd/storage/storagetest/pinned"
)

// Server is a running server. It keeps everything in memory.
type Server struct {
	// Endpoint is the URL of its only account, http on the loopback address.
	Endpoint string
	// Account and AccessKey of it, the key in base64.
	Account   string
	AccessKey string

	proc *pinned.Process
}

// listening is how Azurite tells that it is ready, and where.
var listening = regexp.MustCompile(`listen\w* (?:at|on) (http://127\.0\.0\.1:\d+)`)

// Run starts a server, installing it first if need be. ctx covers the start
// only; Stop ends it.
func Run(ctx context.Context) (*Server, error) {
	script, err := Install(ctx)
	if err != nil {
		return nil, err
	}
	key := make([]byte, 64)
	rand.Read(key)
	s := &Server{Account: "walherd" + strings.ToLower(rand.Text()[:8]), AccessKey: base64.StdEncoding.EncodeToString(key)}
	// Port 0 is a free one. The SDK speaks newer versions of the protocol
	// than the emulator has seen.
	cmd := exec.Command("node", script, "--blobPort", "0", "--inMemoryPersistence", "--skipApiVersionCheck",
		"--silent", "--disableTelemetry", "--blobKeepAliveTimeout", "120")
	cmd.Dir = filepath.Dir(script)
	cmd.Env = append(os.Environ(), "AZURITE_ACCOUNTS="+s.Account+":"+s.AccessKey)
	var said []string
	if s.proc, said, err = pinned.StartSaying(ctx, "Azure server", cmd, listening); err != nil {
		return nil, err
	}
	s.Endpoint = said[1] + "/" + s.Account
	return s, nil
}

// Stop ends the server and forgets its data.
func (s *Server) Stop() { s.proc.Kill() }

// NewContainer makes a container with a name of its own.
func (s *Server) NewContainer(t testing.TB) string {
	t.Helper()
	name := "c-" + strings.ToLower(rand.Text()[:16])
	if err := s.MakeContainer(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	return name
}

// MakeContainer makes a container.
func (s *Server) MakeContainer(ctx context.Context, name string) error {
	c, err := s.Client(name)
	if err != nil {
		return err
	}
	if _, err := c.Create(ctx, nil); err != nil {
		return fmt.Errorf("make container %s: %w", name, err)
	}
	return nil
}

// Client is the SDK's own for a container, with the account's key.
func (s *Server) Client(name string) (*container.Client, error) {
	key, err := container.NewSharedKeyCredential(s.Account, s.AccessKey)
	if err != nil {
		return nil, err
	}
	return container.NewClientWithSharedKeyCredential(s.Endpoint+"/"+name, key, nil)
}

// Install gives the path of azurite-blob's main.js: $WALHERD_AZURITE, else the
// one in the user's cache directory, which it installs when there is none of
// the pinned versions.
func Install(ctx context.Context) (string, error) {
	if script := os.Getenv("WALHERD_AZURITE"); script != "" {
		if _, err := os.Stat(script); err != nil {
			return "", fmt.Errorf("use the Azure server of WALHERD_AZURITE: %w", err)
		}
		return script, nil
	}
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			return "", fmt.Errorf("find %s, which Azurite needs (apt-get install nodejs npm): %w", program, err)
		}
	}
	pins, err := pinned.Source("azurite")
	if err != nil {
		return "", fmt.Errorf("install the Azure server: %w (or set WALHERD_AZURITE to azurite's dist/src/blob/main.js)", err)
	}
	files := []string{filepath.Join(pins, "package.json"), filepath.Join(pins, "package-lock.json")}
	version, err := pinned.Version("npm ci", files...)
	if err != nil {
		return "", err
	}
	dir, err := pinned.Cached(ctx, "azurite", version, func(ctx context.Context, dir string) error {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make a place for Azurite: %w", err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), data, 0o644); err != nil {
				return fmt.Errorf("make a place for Azurite: %w", err)
			}
		}
		// No scripts: none of the packages needs its own to run.
		cmd := exec.CommandContext(ctx, "npm", "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("install Azurite of %s: %w: %s", pins, err, out)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "node_modules", "azurite", "dist", "src", "blob", "main.js"), nil
}
