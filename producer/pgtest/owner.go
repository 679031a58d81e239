package pgtest

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// owner is the operating system's user the servers run as.
type owner struct {
	uid, gid int
	// drop is set when commands have to change to that user.
	drop bool
}

// findOwner chooses the user: postgres for root, else whoever runs the test.
func findOwner() (owner, error) {
	if os.Geteuid() != 0 {
		return owner{uid: os.Geteuid(), gid: os.Getegid()}, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return owner{}, fmt.Errorf("PostgreSQL refuses to run as root and there is no user postgres to run it as: run `make deps`: %w", err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return owner{}, fmt.Errorf("read uid of user postgres: %w", err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return owner{}, fmt.Errorf("read gid of user postgres: %w", err)
	}
	return owner{uid: uid, gid: gid, drop: true}, nil
}

// become makes cmd run as the owner.
func (o owner) become(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if o.drop {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(o.uid), Gid: uint32(o.gid)}
	}
}

// take gives dir and everything below it to the owner. Links are not
// followed, but given over themselves.
func (o owner) take(dir string) error {
	if !o.drop {
		return nil
	}
	return filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, o.uid, o.gid)
	})
}

// tempDir makes a directory that belongs to the owner.
func (o owner) tempDir(parent, pattern string) (string, error) {
	dir, err := os.MkdirTemp(parent, pattern)
	if err != nil {
		return "", err
	}
	if err := o.take(dir); err != nil {
		return "", err
	}
	return dir, nil
}

// tempRoot is where cluster directories are made. It is not $TMPDIR: under
// go test run by root that may be a directory user postgres cannot enter.
const tempRoot = "/var/tmp"

// TempDir makes a directory that the server's user owns and can reach, and
// removes it at the end of the test. Restore into a directory below it when
// the result is to be started with Open: testing's own TempDir is closed to
// user postgres when root runs the test.
func TempDir(t TB) string {
	t.Helper()
	o, err := findOwner()
	if err != nil {
		t.Fatalf("make directory for PostgreSQL: %v", err)
	}
	dir, err := o.tempDir(tempRoot, "walherd-pg-")
	if err != nil {
		t.Fatalf("make directory for PostgreSQL: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Logf("remove %s: %v", dir, err)
		}
	})
	return dir
}

// reachable reports whether the owner can enter dir, by trying.
func (o owner) reachable(dir string) error {
	if !o.drop {
		return nil
	}
	cmd := exec.Command("test", "-x", dir)
	cmd.Dir = "/"
	o.become(cmd)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("user postgres cannot enter %s: use a directory below pgtest.TempDir", dir)
	}
	return nil
}
