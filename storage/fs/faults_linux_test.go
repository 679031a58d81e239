package fs_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/storagetest"
)

// inNamespace is the root of the test in a process that may mount.
const inNamespace = "WALHERD_TEST_FS_NAMESPACE"

// TestFullAndReadOnly runs itself in a mount namespace of its own, where it
// needs no privileges and leaves no mount behind, and fills a file system.
func TestFullAndReadOnly(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv(inNamespace); dir != "" {
		fullAndReadOnly(t, dir)
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestFullAndReadOnly$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Skipf("this system gives no user namespace: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, &out)
	} else if strings.Contains(out.String(), "--- SKIP") {
		t.Skip(out.String())
	}
}

func fullAndReadOnly(t *testing.T, dir string) {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("this system lets nobody mount: %v", err)
	}
	b := open(t, dir)
	old := storagetest.Content(1, 100_000)
	storagetest.MustPut(t, b, "wal_005/x", old)

	for _, name := range []string{"wal_005/x", "new/y"} {
		_, err := b.Put(t.Context(), name, bytes.NewReader(storagetest.Content(2, 4<<20)), storage.PutOptions{})
		if !errors.Is(err, unix.ENOSPC) || !errors.Is(err, storage.ErrPermanent) {
			t.Errorf("Put on a full disk: %v, want ENOSPC and ErrPermanent", err)
		} else if !strings.Contains(err.Error(), filepath.Join(dir, name)) || !strings.Contains(err.Error(), "free space") {
			t.Errorf("%q does not tell what to do where", err)
		}
	}
	wantFiles(t, dir, "wal_005/", "wal_005/x")
	if got := storagetest.MustGet(t, b, "wal_005/x"); !bytes.Equal(got, old) {
		t.Error("the old object was damaged")
	}

	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "size=1m"); err != nil {
		t.Fatal(err)
	}
	_, put := b.Put(t.Context(), "wal_005/y", strings.NewReader("x"), storage.PutOptions{})
	_, mkdir := b.Put(t.Context(), "new/y", strings.NewReader("x"), storage.PutOptions{})
	for op, err := range map[string]error{"Put": put, "Put in a new folder": mkdir, "Delete": b.Delete(t.Context(), "wal_005/x")} {
		if !errors.Is(err, unix.EROFS) || !errors.Is(err, storage.ErrPermanent) {
			t.Errorf("%s on a read-only disk: %v, want EROFS and ErrPermanent", op, err)
		}
	}
	if got := storagetest.MustGet(t, b, "wal_005/x"); !bytes.Equal(got, old) {
		t.Error("reading fails on a read-only disk")
	}
}

func TestAccessDenied(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, dir)
	storagetest.MustPut(t, b, "d/x", []byte("x"))
	for name, mode := range map[string]os.FileMode{"d/x": 0, "d": 0o555, ".": 0o555} {
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(dir, "d"), 0o755); os.Chmod(dir, 0o755) })
	// The test's own directory is closed to others.
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	errs := make(map[string]error)
	asNobody(t, func() {
		_, errs["Put"] = b.Put(t.Context(), "d/y", strings.NewReader("y"), storage.PutOptions{})
		_, errs["Put in a new folder"] = b.Put(t.Context(), "e/y", strings.NewReader("y"), storage.PutOptions{})
		_, errs["Open"] = b.Open(t.Context(), "d/x", storage.Range{})
		errs["Delete"] = b.Delete(t.Context(), "d/x")
	})
	for op, err := range errs {
		if !errors.Is(err, unix.EACCES) || !errors.Is(err, storage.ErrPermanent) || errors.Is(err, storage.ErrNotExist) {
			t.Errorf("%s: %v, want EACCES and ErrPermanent", op, err)
		}
	}
}

// asNobody runs f without root's power over permissions. The kernel keeps the
// file system's user per thread; the thread is thrown away after it.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f()
		return
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		_, err := unix.SetfsuidRetUid(65534)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Skipf("cannot give up root's file access: %v", err)
	}
}
