// Package matrix finds and installs PostgreSQL servers of every supported
// version, for tests that must hold on each: those that tools/pgmatrix pins,
// initdb and postgres with the extensions PostgreSQL comes with, and nothing
// else (no psql, no pg_waldump).
//
// The pins are npm packages for Linux on x64. They are installed by command
// only (`go run ./tools/pgmatrix`), since it takes a network: a test asks
// Installed, and runs on the versions there are.
package matrix

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/storage/storagetest/pinned"
)

// root is where the servers lie. It is not the user's cache directory: when
// root runs a test, the servers run as user postgres, who cannot enter that.
const root = "/var/tmp"

// errMissing tells Installed from Install.
var errMissing = errors.New("not installed (go run ./tools/pgmatrix)")

// Installed gives the directories of initdb and postgres by major version, of
// the pinned servers that are installed: all of them, or none.
func Installed(ctx context.Context) (map[int]string, error) {
	bins, err := find(ctx, root, func(context.Context, string) error { return errMissing })
	if errors.Is(err, errMissing) {
		return nil, nil
	}
	return bins, err
}

// Install is Installed, but installs them first if need be.
func Install(ctx context.Context) (map[int]string, error) {
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("find %s, which installs PostgreSQL (apt-get install nodejs npm): %w", program, err)
		}
	}
	return find(ctx, root, install)
}

// find gives what build has made below root, or makes.
func find(ctx context.Context, root string, build func(ctx context.Context, dir string) error) (map[int]string, error) {
	pins, err := pinned.Source("pgmatrix")
	if err != nil {
		return nil, fmt.Errorf("look for PostgreSQL servers: %w", err)
	}
	version, err := pinned.Version("npm ci", filepath.Join(pins, "package.json"), filepath.Join(pins, "package-lock.json"))
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(root, fmt.Sprintf("walherd-pgmatrix-%d-%s", os.Geteuid(), version))
	fi, err := os.Lstat(dir)
	switch {
	case err == nil:
		// The name can be guessed, and what lies there is run.
		if st, ok := fi.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() || !fi.IsDir() || fi.Mode().Perm()&0o022 != 0 {
			return nil, fmt.Errorf("use PostgreSQL servers of %s: it belongs to another user or others may write to it: remove it", dir)
		}
	case errors.Is(err, os.ErrNotExist):
		fresh := fmt.Sprintf("%s.%d.new", dir, os.Getpid())
		defer os.RemoveAll(fresh)
		if err := build(ctx, fresh); err != nil {
			return nil, err
		}
		if err := os.Rename(fresh, dir); err != nil {
			return nil, fmt.Errorf("keep PostgreSQL servers: %w", err)
		}
	default:
		return nil, fmt.Errorf("look for PostgreSQL servers: %w", err)
	}
	bins := make(map[int]string)
	for major := pg.MinMajor; major <= pg.MaxMajor; major++ {
		bin := filepath.Join(dir, "node_modules", "pg"+strconv.Itoa(major), "native", "bin")
		if _, err := os.Stat(filepath.Join(bin, "postgres")); err != nil {
			return nil, fmt.Errorf("find PostgreSQL %d: %w (remove %s and install anew)", major, err, dir)
		}
		bins[major] = bin
	}
	return bins, nil
}

// install puts the pinned packages into dir.
func install(ctx context.Context, dir string) error {
	pins, err := pinned.Source("pgmatrix")
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("make a place for PostgreSQL servers: %w", err)
	}
	for _, file := range []string{"package.json", "package-lock.json"} {
		data, err := os.ReadFile(filepath.Join(pins, file))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, file), data, 0o644)
		}
		if err != nil {
			return fmt.Errorf("make a place for PostgreSQL servers: %w", err)
		}
	}
	if err := run(ctx, dir, "npm", "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"); err != nil {
		return fmt.Errorf("install PostgreSQL servers of %s: %w", pins, err)
	}
	for major := pg.MinMajor; major <= pg.MaxMajor; major++ {
		// A package cannot hold symbolic links; this one's script makes those
		// its libraries are found by. It is the only one that is run.
		pkg := filepath.Join(dir, "node_modules", "pg"+strconv.Itoa(major))
		if err := run(ctx, pkg, "node", filepath.Join("scripts", "hydrate-symlinks.js")); err != nil {
			return fmt.Errorf("link libraries of PostgreSQL %d: %w", major, err)
		}
	}
	return nil
}

func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w: %s", name, err, out)
	}
	return nil
}
