package s3test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// tool is the package that the module tools/s3server pins.
const tool = "github.com/versity/versitygw/cmd/versitygw"

// Build gives the path of the server's binary: $WALHERD_S3_SERVER, else the
// one in the user's cache directory, which it builds when there is none for
// the pinned version and this Go. Processes that want it at once share one
// build.
func Build(ctx context.Context) (string, error) {
	if binary := os.Getenv("WALHERD_S3_SERVER"); binary != "" {
		if _, err := os.Stat(binary); err != nil {
			return "", fmt.Errorf("use the S3 server of WALHERD_S3_SERVER: %w", err)
		}
		return binary, nil
	}
	module, err := moduleDir()
	if err != nil {
		return "", err
	}
	version, err := pinned(module)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a place for the S3 server: %w", err)
	}
	dir := filepath.Join(cache, "walherd-tools")
	binary := filepath.Join(dir, "s3server-"+version)
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make a place for the S3 server: %w", err)
	}
	unlock, err := lock(ctx, binary+".lock")
	if err != nil {
		return "", fmt.Errorf("wait for another build of the S3 server: %w", err)
	}
	defer unlock()
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	// Built beside its place and renamed: a killed build leaves nothing that
	// looks finished.
	fresh := fmt.Sprintf("%s.%d.new", binary, os.Getpid())
	defer os.Remove(fresh)
	cmd := exec.CommandContext(ctx, "go", "build", "-mod=readonly", "-ldflags=-s -w", "-o", fresh, tool)
	cmd.Dir = module
	// What a test run sets for its own build is not for this one.
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the S3 server in %s: %w: %s", module, err, out)
	}
	if err := os.Rename(fresh, binary); err != nil {
		return "", fmt.Errorf("keep the S3 server: %w", err)
	}
	return binary, nil
}

// moduleDir is tools/s3server in the source tree this package was built from.
func moduleDir() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) {
		return "", errors.New("find tools/s3server: this program was built with -trimpath: set WALHERD_S3_SERVER to a versitygw binary")
	}
	dir := filepath.Join(filepath.Dir(file), "..", "..", "..", "tools", "s3server")
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		return "", fmt.Errorf("find the module of the S3 server (or set WALHERD_S3_SERVER to a versitygw binary): %w", err)
	}
	return dir, nil
}

// pinned names what a build depends on.
func pinned(module string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return "", fmt.Errorf("read the pinned version of the S3 server: %w", err)
		}
		h.Write(data)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}
