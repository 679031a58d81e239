package expire_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/retain"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/fs"
	"github.com/walherd/walherd/storage/limit"
	"github.com/walherd/walherd/storage/meter"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/storage/retry"
	"github.com/walherd/walherd/workers/expire"
)

// TestUnfinishedUploads: delete garbage removes what killed uploads have left in
// its folders, and not what is young, another prefix's, or out of its scope.
func TestUnfinishedUploads(t *testing.T) {
	t.Parallel()
	w := typical(t)
	dir := t.TempDir()
	disk, err := fs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	old, young := w.now.Add(-48*time.Hour), w.now.Add(-time.Minute)
	// What the store calls an upload that has begun; one that died looks so.
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := disk.Put(context.Background(), "x", pr, storage.PutOptions{})
		done <- err
	}()
	if _, err := pw.Write([]byte("half of it")); err != nil {
		t.Fatal(err)
	}
	mark := ""
	for u, err := range disk.Leftovers(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		mark = strings.TrimPrefix(u.Name, "x")
	}
	pw.CloseWithError(errors.New("over"))
	<-done
	for _, name := range []string{
		"p/basebackups_005/base_0000000100000000000000AA/tar_partitions/part_001.tar.lz4", "p/wal_005/0000000100000000000000AA.lz4",
		"p/wal_005/0000000100000000000000AB.lz4", "elsewhere/wal_005/0000000100000000000000AA.lz4",
	} {
		path := filepath.Join(dir, name+mark)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("half of it"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	leftovers := func() (names []string) {
		for u, err := range disk.Leftovers(t.Context(), "") {
			if err != nil {
				t.Fatal(err)
			}
			name, _, _ := strings.Cut(u.Name, ".tmp.")
			names = append(names, name)
			at := old
			if strings.Contains(name, "AB.lz4") {
				at = young
			}
			if err := os.Chtimes(filepath.Join(dir, u.Name), at, at); err != nil {
				t.Fatal(err)
			}
		}
		return names
	}
	if got := leftovers(); len(got) != 4 {
		t.Fatalf("unfinished are %q", got)
	}
	below, err := storage.Sub(limit.New(meter.New(retry.New(disk, retry.Options{})), nil, nil), "p")
	if err != nil {
		t.Fatal(err)
	}
	work := func() *expire.Work {
		work := w.work(&life{})
		work.Stores = append(work.Stores, repo.New(below, "disk"))
		return work
	}
	for line, want := range map[string]int{"garbage": 2, "garbage ARCHIVES": 1, "garbage BACKUPS": 1, "retain FULL 1": 0} {
		_, pl, err := work().Plan(t.Context(), command(line))
		if err != nil {
			t.Fatal(err)
		}
		if len(pl.Uploads) != want {
			t.Errorf("%s: %+v, want %d", line, pl.Uploads, want)
		}
	}
	var said uint64
	n, err := work().Do(t.Context(), command("garbage"), func(pl *retain.Plan) error {
		said = expire.Count(pl)
		var log, doc bytes.Buffer
		expire.Tell(slog.New(slog.NewTextHandler(&log, nil)), pl)
		if err := expire.WriteJSON(&doc, command("garbage"), true, pl); err != nil {
			t.Error(err)
		}
		for _, out := range []string{log.String(), doc.String()} {
			if !strings.Contains(out, "wal_005/0000000100000000000000AA.lz4.tmp.") || strings.Contains(out, "AB.lz4") {
				t.Errorf("it said: %s", out)
			}
		}
		return nil
	})
	if err != nil || n != said || n < 2 {
		t.Fatalf("deleted %d of %d: %v", n, said, err)
	}
	if got, want := leftovers(), []string{"elsewhere/wal_005/0000000100000000000000AA.lz4", "p/wal_005/0000000100000000000000AB.lz4"}; !slices.Equal(got, want) {
		t.Errorf("left are %q, want %q", got, want)
	}
}
