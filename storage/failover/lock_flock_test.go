//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package failover_test

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHeldFile: a process that was stopped with the lock in its hands costs a
// while, not the backup.
func TestHeldFile(t *testing.T) {
	t.Parallel()
	b := setup(t, "default")
	f, err := os.Create(b.opt.CachePath)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	set := b.open(t)
	if m, err := set.Writer(t.Context(), ""); err != nil || m.Name != "default" {
		t.Errorf("writer %q, %v", m.Name, err)
	}
	if !strings.Contains(b.log.String(), "another process has held it") {
		t.Errorf("log: %s", b.log)
	}
	f.Close()
	wantWriter(t, b, "default")
	wantWriter(t, b, "default")
	if n := b.checks(0); n != 2 {
		t.Errorf("%d checks, want one without and one with the file", n)
	}
}
