// Package pinned builds and runs the servers of other projects that tests,
// demonstrations and benchmarks need. Each is pinned below tools, by a Go module
// or a lock file of its own, so that its dependencies do not become walherd's,
// and is made once in the user's cache directory, which takes minutes the first
// time.
//
// It fails with an error that says what is missing (a Go toolchain, the source
// tree, modules that were not downloaded), never by skipping.
package pinned

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// Tool is a program that a module below tools pins.
type Tool struct {
	// Name is what people call it, for errors ("S3 server").
	Name string
	// Module is the folder below tools ("s3server").
	Module string
	// Package is the program's import path.
	Package string
	// Env is the environment variable that names a binary to use instead.
	Env string
}

// Build gives the path of the tool's binary: the one that Tool.Env names, else
// the one in the user's cache directory, which it builds when there is none for
// the pinned version and this Go. Processes that want it at once share one
// build.
func (t Tool) Build(ctx context.Context) (string, error) {
	if binary := os.Getenv(t.Env); binary != "" {
		if _, err := os.Stat(binary); err != nil {
			return "", fmt.Errorf("use the %s of %s: %w", t.Name, t.Env, err)
		}
		return binary, nil
	}
	module, err := Source(t.Module)
	if err != nil {
		return "", fmt.Errorf("build the %s: %w (or set %s to a binary of %s)", t.Name, err, t.Env, t.Package)
	}
	version, err := Version(runtime.Version()+" "+runtime.GOOS+" "+runtime.GOARCH, filepath.Join(module, "go.mod"), filepath.Join(module, "go.sum"))
	if err != nil {
		return "", err
	}
	return Cached(ctx, t.Module, version, func(ctx context.Context, path string) error {
		cmd := exec.CommandContext(ctx, "go", "build", "-mod=readonly", "-ldflags=-s -w", "-o", path, t.Package)
		cmd.Dir = module
		// What a test run sets for its own build is not for this one.
		cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build the %s in %s: %w: %s", t.Name, module, err, out)
		}
		return nil
	})
}

// Source is a folder below tools in the source tree this package was built
// from.
func Source(folder string) (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) {
		return "", fmt.Errorf("find tools/%s: this program was built with -trimpath", folder)
	}
	dir := filepath.Join(filepath.Dir(file), "..", "..", "..", "tools", folder)
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("find tools/%s: %w", folder, err)
	}
	return dir, nil
}

// Version names what a build depends on: the files, and anything else that is
// told in words.
func Version(words string, files ...string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, words)
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return "", fmt.Errorf("read a pinned version: %w", err)
		}
		h.Write(data)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}

// Cached gives the path of name-VERSION in the user's cache directory, below
// walherd-tools. When there is none, build makes it, at the path it is given,
// a file or a directory; processes that want it at once share one build. A
// build that fails or is killed leaves nothing that looks finished.
func Cached(ctx context.Context, name, version string, build func(ctx context.Context, path string) error) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a place for %s: %w", name, err)
	}
	dir := filepath.Join(cache, "walherd-tools")
	path := filepath.Join(dir, name+"-"+version)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make a place for %s: %w", name, err)
	}
	unlock, err := lock(ctx, path+".lock")
	if err != nil {
		return "", fmt.Errorf("wait for another build of %s: %w", name, err)
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	fresh := fmt.Sprintf("%s.%d.new", path, os.Getpid())
	defer os.RemoveAll(fresh)
	if err := build(ctx, fresh); err != nil {
		return "", err
	}
	if err := os.Rename(fresh, path); err != nil {
		return "", fmt.Errorf("keep %s: %w", name, err)
	}
	return path, nil
}
