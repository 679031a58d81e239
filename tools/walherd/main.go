// Command walherd keeps PostgreSQL clusters recoverable: it archives WAL, takes
// base backups, lists and restores them, and works jobs off the queue. Called
// as wal-g it is a drop-in for WAL-G.
//
// This package is wiring: it reads the settings, connects producers, broker,
// workers and storage, and turns errors into exit codes. Nothing below it
// exits, and nothing below it reads the environment.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/walherd/walherd/storage"
)

// Set by the build (make build).
var (
	version  = "devel"
	revision = "devel"
	built    = "devel"
)

// Exit codes, WAL-G's. PostgreSQL takes codes above 125 of a command it runs
// for a reason to give up, so none is.
const (
	exitOK        = 0
	exitError     = 1
	exitWALAbsent = 74 // EX_IOERR: wal-fetch found no such file
)

// errWALAbsent is wal-fetch's answer for a file that is not archived: the end
// of recovery, not a failure.
var errWALAbsent = errors.New("not in the archive")

func exitCode(err error) int {
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errWALAbsent) && errors.Is(err, storage.ErrNotExist):
		return exitWALAbsent
	}
	return exitError
}

func main() {
	// The first signal cancels what runs, so that it ends in order; the second
	// kills, because the handler is gone by then.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	context.AfterFunc(ctx, stop)
	if os.Getenv("GOGC") == "" {
		// Settings and libraries make more garbage at start than a short
		// command does in all; those that run long set their own (collect).
		debug.SetGCPercent(collectRarely)
	}
	a := &app{
		name:   filepath.Base(os.Args[0]),
		stdout: os.Stdout,
		stderr: os.Stderr,
	}
	err := a.run(ctx, os.Args[1:])
	stop()
	os.Exit(exitCode(err))
}

// versionText is the shape of WAL-G's --version: name, revision, date and
// database separated by tabs.
func versionText() string {
	return fmt.Sprintf("%s\t%s\t%s\tPostgreSQL", version, revision, built)
}
