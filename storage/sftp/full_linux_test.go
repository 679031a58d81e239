package sftp_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/sftp/sftptest"
	"github.com/walherd/walherd/storage/storagetest"
)

// inNamespace is the root of the test in a process that may mount.
const inNamespace = "WALHERD_TEST_SFTP_NAMESPACE"

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
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("this system lets nobody mount: %v", err)
	}
	opt := sftptest.Options{Program: sftptest.Program()}
	b := open(t, options(sftptest.Start(t, opt), dir))
	old := storagetest.Content(1, 100_000)
	storagetest.MustPut(t, b, "wal_005/x", old)
	for _, name := range []string{"wal_005/x", "new/y"} {
		_, err := b.Put(t.Context(), name, bytes.NewReader(storagetest.Content(2, 8<<20)), storage.PutOptions{})
		wantPermanent(t, err, filepath.Join(dir, name), "free space")
	}
	if got := storagetest.Names(t, b, "", storage.ListOptions{}); len(got) != 1 || unfinished(t, b) != nil {
		t.Errorf("objects are %q, unfinished %q", got, unfinished(t, b))
	}
	if got := storagetest.MustGet(t, b, "wal_005/x"); !bytes.Equal(got, old) {
		t.Error("the old object was damaged")
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "size=4m"); err != nil {
		t.Fatal(err)
	}
	_, put := b.Put(t.Context(), "wal_005/y", strings.NewReader("x"), storage.PutOptions{})
	_, mkdir := b.Put(t.Context(), "new/y", strings.NewReader("x"), storage.PutOptions{})
	for op, err := range map[string]error{"Put": put, "Put in a new folder": mkdir, "Delete": b.Delete(t.Context(), "wal_005/x")} {
		t.Log(op)
		wantPermanent(t, err, "read-only")
	}
}
