//go:build linux

package restore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk mounts a file system of its own that takes a megabyte.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("walherd-restore", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("a small file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill takes all the space there is.
func fill(t *testing.T, disk string) {
	t.Helper()
	f, err := os.Create(filepath.Join(disk, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(block)
	}
	if !diskFull(err) {
		t.Fatal(err)
	}
}

// A disk that is full when the first or the last object is opened fails a
// restore wherever it is, and the next one makes what a restore without a full
// disk makes: the settings that the cluster had in postgresql.auto.conf too, of
// which the last step writes a new version.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	settings := strings.Repeat("work_mem = '4MB'\n", 4096)[:4096-2] + "\n"
	recovery := &Recovery{RestoreCommand: "true", Name: strings.Repeat("n", 60)}
	src := backup(t, entry{name: "PG_VERSION", body: "15\n"}, entry{name: autoConfPath, body: settings}, entry{name: "base/1/1", body: "page"})
	whole := t.TempDir()
	if _, err := Run(t.Context(), plan(t, src, Request{Destination: whole, Recovery: recovery}), src, config()); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"", "part_001.tar", "backup_label.tar", "pg_control.tar"} {
		t.Run("at "+at, func(t *testing.T) {
			t.Parallel()
			disk := smallDisk(t)
			dest := filepath.Join(disk, "data")
			if at == "" {
				fill(t, disk)
			}
			filling := &memory{objects: src.objects, open: func(_ context.Context, name string, _ int, stored []byte) (io.ReadCloser, error) {
				if name == at {
					fill(t, disk)
				}
				return io.NopCloser(bytes.NewReader(stored)), nil
			}}
			p := plan(t, filling, Request{Destination: dest, Recovery: recovery})
			for range 2 {
				_, err := Run(t.Context(), p, filling, config())
				if !diskFull(err) || !strings.Contains(err.Error(), "make space") {
					t.Fatalf("Run: %v", err)
				}
				expectUnfinished(t, dest, "")
			}
			if err := os.Remove(filepath.Join(disk, "ballast")); err != nil {
				t.Fatal(err)
			}
			if at == "pg_control.tar" {
				without := plan(t, src, Request{Destination: dest})
				if _, err := Run(t.Context(), without, src, config()); !errors.Is(err, ErrUnfinished) || !strings.Contains(err.Error(), "ask for recovery") {
					t.Errorf("recovery settings would have stayed that nobody asked for: %v", err)
				}
			}
			if _, err := Run(t.Context(), p, src, config()); err != nil {
				t.Fatal(err)
			}
			if got, want := tree(t, dest), tree(t, whole); !maps.Equal(got, want) {
				t.Errorf("%.3000q\nwant %.3000q", got, want)
			}
		})
	}
}
