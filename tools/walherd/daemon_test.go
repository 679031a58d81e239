package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/walherd/walherd/producer/daemon/client"
	"github.com/walherd/walherd/producer/daemon/wire"
)

// TestReopenLog rotates a log as logrotate does: rename, then the signal.
func TestReopenLog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	log := &reopenable{path: path, file: f}
	t.Cleanup(func() { log.file.Close() })
	write := func(line string) {
		t.Helper()
		if _, err := log.Write([]byte(line)); err != nil {
			t.Error(err)
		}
	}
	write("old")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write("er")
	if err := log.reopen(); err != nil {
		t.Fatal(err)
	}
	write("new")
	// A directory that has gone leaves the log as it was.
	log.path = filepath.Join(path, "no", "log")
	if err := log.reopen(); err == nil {
		t.Error("opened a log that cannot be")
	}
	write("er")
	for name, want := range map[string]string{path + ".1": "older", path: "newer"} {
		if got, err := os.ReadFile(name); string(got) != want || err != nil {
			t.Errorf("%s holds %q, %v, want %q", name, got, err, want)
		}
	}
}

func TestDaemonClientExitCodes(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		err  error
		want int
	}{
		{absentThere{fmt.Errorf("wal-fetch: %w", wire.ErrAbsent)}, exitWALAbsent},
		{fmt.Errorf("wal-push: %w", client.ErrFailed), exitError},
		{errors.New("no daemon"), exitError},
	} {
		if got := exitCode(tc.err); got != tc.want {
			t.Errorf("%v: exit code %d, want %d", tc.err, got, tc.want)
		}
	}
}
