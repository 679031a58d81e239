//go:build unix

package natstest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"syscall"
	"time"
)

const serverPackage = "github.com/nats-io/nats-server/v2"

var required = regexp.MustCompile(`(?m)^\s*` + regexp.QuoteMeta(serverPackage) + ` (v\S+)`)

// Build gives the path of the server's binary: $WALHERD_NATS_SERVER, else the
// one in the user's cache directory, which it builds when there is none for
// the version in go.mod and this Go. Processes that want it at once share one
// build.
func Build(ctx context.Context) (string, error) {
	if binary := os.Getenv("WALHERD_NATS_SERVER"); binary != "" {
		if _, err := os.Stat(binary); err != nil {
			return "", fmt.Errorf("use the nats-server of WALHERD_NATS_SERVER: %w", err)
		}
		return binary, nil
	}
	root, version, err := pinned()
	if err != nil {
		return "", fmt.Errorf("build nats-server: %w (or set WALHERD_NATS_SERVER to a binary)", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a place for nats-server: %w", err)
	}
	dir := filepath.Join(cache, "walherd-tools")
	path := filepath.Join(dir, "nats-server-"+version+"-"+runtime.Version())
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make a place for nats-server: %w", err)
	}
	unlock, err := lock(ctx, path+".lock")
	if err != nil {
		return "", fmt.Errorf("wait for another build of nats-server: %w", err)
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	// One that is killed leaves nothing that looks finished.
	fresh := fmt.Sprintf("%s.%d.new", path, os.Getpid())
	defer os.Remove(fresh)
	cmd := exec.CommandContext(ctx, "go", "build", "-mod=readonly", "-ldflags=-s -w", "-o", fresh, serverPackage)
	cmd.Dir = root
	// What a test run sets for its own build is not for this one.
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build nats-server %s: %w: %s", version, err, out)
	}
	if err := os.Rename(fresh, path); err != nil {
		return "", fmt.Errorf("keep nats-server: %w", err)
	}
	return path, nil
}

// pinned finds the source tree this package was built from, and the version
// of the server there.
func pinned() (root, version string, err error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) {
		return "", "", errors.New("find go.mod: this program was built with -trimpath")
	}
	root = filepath.Join(filepath.Dir(file), "..", "..", "..")
	data, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return "", "", err
	}
	m := required.FindSubmatch(data)
	if m == nil {
		return "", "", fmt.Errorf("%s names no %s", filepath.Join(root, "go.mod"), serverPackage)
	}
	return root, string(m[1]), nil
}

// lock holds a file's lock, which the system gives up when we die.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}
