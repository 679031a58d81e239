package fs_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/fs"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/storagetest"
)

func TestBucket(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(t *testing.T) storage.Bucket { return open(t, t.TempDir()) })
}

// leftover is what WAL-G leaves in a storage after a crash.
const leftover = "000000010000000000000001.lz4.tmp.20261122T161847Z-e1871ab0d324b6a6"

func open(t testing.TB, dir string) *fs.Bucket {
	t.Helper()
	b, err := fs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// files is everything below dir, directories with a slash.
func files(t testing.TB, dir string) []string {
	t.Helper()
	list := []string{}
	err := filepath.WalkDir(dir, func(p string, d iofs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if d.IsDir() {
			rel += "/"
		}
		list = append(list, filepath.ToSlash(rel))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func wantFiles(t testing.TB, dir string, want ...string) {
	t.Helper()
	if got := files(t, dir); !slices.Equal(got, want) {
		t.Errorf("files are %q, want %q", got, want)
	}
}

func write(t testing.TB, elements ...string) {
	t.Helper()
	name := filepath.Join(elements...)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefusesWhatIsNoDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "file")
	for _, name := range []string{"missing", "file", "file/below"} {
		root := filepath.Join(dir, name)
		_, err := fs.Open(root)
		if !errors.Is(err, storage.ErrPermanent) || errors.Is(err, storage.ErrNotExist) {
			t.Errorf("Open(%s): %v, want a permanent error that is not a missing object", name, err)
			continue
		}
		for _, part := range []string{root, "WALG_FILE_PREFIX"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("Open(%s): %q does not name %s", name, err, part)
			}
		}
	}
}

func TestLostRootIsPermanentForEveryCall(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	b := open(t, root)
	if err := os.Remove(root); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	_, put := b.Put(ctx, "x", strings.NewReader("x"), storage.PutOptions{})
	_, get := b.Open(ctx, "x", storage.Range{})
	_, stat := b.Stat(ctx, "x")
	var list error
	for _, err := range b.List(ctx, "a/", storage.ListOptions{}) {
		list = err
	}
	for op, err := range map[string]error{"Put": put, "Open": get, "Stat": stat, "List": list, "Delete": b.Delete(ctx, "x")} {
		if !errors.Is(err, storage.ErrPermanent) || errors.Is(err, storage.ErrNotExist) {
			t.Errorf("%s: %v, want a permanent error that is not a missing object", op, err)
		}
	}
	// It is back: so is the storage.
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	storagetest.MustPut(t, b, "x", []byte("x"))
}

func TestPutLeavesOneFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, dir)
	storagetest.MustPut(t, b, "wal_005/x", []byte("1"))
	if _, err := b.Put(t.Context(), "wal_005/y", strings.NewReader("2"), storage.PutOptions{IfAbsent: true}); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, dir, "wal_005/", "wal_005/x", "wal_005/y")
}

func TestFailedPutLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, dir)
	storagetest.MustPut(t, b, "wal_005/x", []byte("1"))
	boom := errors.New("boom")
	failing := func() io.Reader { return io.MultiReader(strings.NewReader("new"), iotest.ErrReader(boom)) }
	for _, name := range []string{"wal_005/x", "wal_005/y", "new/dir/z"} {
		if _, err := b.Put(t.Context(), name, failing(), storage.PutOptions{}); !errors.Is(err, boom) {
			t.Errorf("Put(%s): %v, want boom", name, err)
		}
	}
	if _, err := b.Put(t.Context(), "wal_005/x", strings.NewReader("2"), storage.PutOptions{IfAbsent: true}); !errors.Is(err, storage.ErrExist) {
		t.Errorf("Put IfAbsent: %v, want ErrExist", err)
	}
	wantFiles(t, dir, "wal_005/", "wal_005/x")
}

func TestUnfinishedUploadHasWALGsName(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, dir)
	pr, pw := io.Pipe()
	done := make(chan error)
	go func() {
		_, err := b.Put(t.Context(), "wal_005/x.lz4", pr, storage.PutOptions{})
		done <- err
	}()
	if _, err := pw.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	got := files(t, dir)
	if len(got) != 2 || len(got[1]) != len("wal_005/x.lz4.tmp.20261122T161847Z-e1871ab0d324b6a6") || !strings.HasPrefix(got[1], "wal_005/x.lz4.tmp.20") {
		t.Errorf("files are %q", got)
	}
	var unfinished []string
	for u, err := range b.Unfinished(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		unfinished = append(unfinished, u.Name)
	}
	if !slices.Equal(unfinished, got[1:]) {
		t.Errorf("Unfinished yields %q, files are %q", unfinished, got)
	}
	pw.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantFiles(t, dir, "wal_005/", "wal_005/x.lz4")
}

func TestLeftoverIsNoObject(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, dir)
	name := "wal_005/" + leftover
	write(t, dir, name)
	if got := storagetest.Names(t, b, "", storage.ListOptions{}); len(got) != 0 {
		t.Errorf("List shows %q", got)
	}
	if got := storagetest.Names(t, b, "", storage.ListOptions{Shallow: true}); len(got) != 0 {
		t.Errorf("a shallow List shows %q", got)
	}
	if _, err := b.Stat(t.Context(), name); !errors.Is(err, storage.ErrNotExist) {
		t.Errorf("Stat: %v, want ErrNotExist", err)
	}
	if _, err := b.Open(t.Context(), name, storage.Range{}); !errors.Is(err, storage.ErrNotExist) {
		t.Errorf("Open: %v, want ErrNotExist", err)
	}
	if _, err := b.Put(t.Context(), name, strings.NewReader(""), storage.PutOptions{}); !errors.Is(err, storage.ErrName) {
		t.Errorf("Put: %v, want ErrName", err)
	}
	for u, err := range b.Unfinished(t.Context(), "wal_") {
		if err != nil || u.Name != name || u.Size != 1 || u.Modified.IsZero() {
			t.Errorf("Unfinished yields %+v, %v", u, err)
		}
		if err := b.Delete(t.Context(), u.Name); err != nil {
			t.Error(err)
		}
	}
	wantFiles(t, dir)
}

func TestNearlyALeftoverIsAnObject(t *testing.T) {
	t.Parallel()
	b := open(t, t.TempDir())
	want := []string{
		"x.tmp.20261122T161847Z-e1871ab0d324b6a",    // 15 digits
		"x.tmp.20261122T161847Z-e1871ab0d324b6A6",   // upper case
		"x.tmp.2026112xT161847Z-e1871ab0d324b6a6",   // not a date
		"x.tmp.20261122T161847Z-e1871ab0d324b6a6.z", // goes on
		"x.tmp.20261122-161847Z-e1871ab0d324b6a6",
	}
	for _, name := range want {
		storagetest.MustPut(t, b, name, nil)
	}
	slices.Sort(want)
	if got := storagetest.Names(t, b, "", storage.ListOptions{}); !slices.Equal(got, want) {
		t.Errorf("List shows %q, want %q", got, want)
	}
}

func TestReadingMakesNoDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, dir)
	for _, prefix := range []string{"", "wal_005/", "basebackups_005/x/", "a"} {
		for _, shallow := range []bool{false, true} {
			storagetest.Names(t, b, prefix, storage.ListOptions{Shallow: shallow})
		}
	}
	b.Stat(t.Context(), "a/b/c")
	b.Open(t.Context(), "a/b/c", storage.Range{})
	b.Delete(t.Context(), "a/b/c")
	wantFiles(t, dir)
}

func TestEmptyDirectoriesAreNotListed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, d := range []string{"wal_005", "basebackups_005/base_x/tar_partitions", "full/empty"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, dir, "full/deep/x")
	b := open(t, dir)
	if got := storagetest.Names(t, b, "", storage.ListOptions{Shallow: true}); !slices.Equal(got, []string{"full/"}) {
		t.Errorf("shallow List shows %q", got)
	}
	if got := storagetest.Names(t, b, "", storage.ListOptions{}); !slices.Equal(got, []string{"full/deep/x"}) {
		t.Errorf("List shows %q", got)
	}
}

func TestDeleteRemovesEmptiedDirectories(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, dir)
	for _, name := range []string{"a/b/c/x", "a/b/y", "z"} {
		storagetest.MustPut(t, b, name, nil)
	}
	for _, step := range []struct {
		name string
		want []string
	}{
		{"a/b/c/x", []string{"a/", "a/b/", "a/b/y", "z"}},
		{"a/b/y", []string{"z"}},
		{"z", nil},
	} {
		if err := b.Delete(t.Context(), step.name); err != nil {
			t.Fatal(err)
		}
		wantFiles(t, dir, step.want...)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("the root is gone: %v", err)
	}
}

func TestPutsWhoseDirectoryIsRemovedAllTheTime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, dir)
	stop := make(chan struct{})
	var removers, putters sync.WaitGroup
	for range 2 {
		removers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := b.Delete(t.Context(), "a/b/c/missing"); err != nil {
					t.Errorf("Delete: %v", err)
					return
				}
			}
		})
	}
	for g := range 4 {
		putters.Go(func() {
			name := "a/b/c/" + string(rune('0'+g))
			for range 100 {
				if _, err := b.Put(t.Context(), name, strings.NewReader("x"), storage.PutOptions{}); err != nil {
					t.Errorf("Put: %v", err)
					return
				}
				if err := b.Delete(t.Context(), name); err != nil {
					t.Errorf("Delete: %v", err)
					return
				}
			}
		})
	}
	putters.Wait()
	close(stop)
	removers.Wait()
	wantFiles(t, dir)
}

func TestObjectAndDirectoryOfOneName(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, dir)
	storagetest.MustPut(t, b, "a", []byte("a"))
	storagetest.MustPut(t, b, "d/x", []byte("x"))
	for _, name := range []string{"a/b", "a/b/c", "d"} {
		_, err := b.Put(t.Context(), name, strings.NewReader(""), storage.PutOptions{})
		if !errors.Is(err, storage.ErrPermanent) || !strings.Contains(err.Error(), "same name") {
			t.Errorf("Put(%s): %v, want a permanent error that tells why", name, err)
		}
	}
	wantFiles(t, dir, "a", "d/", "d/x")
}

func TestLongNames(t *testing.T) {
	t.Parallel()
	b := open(t, t.TempDir())
	for n, ok := range map[int]bool{217: true, 218: false, 300: false} {
		_, err := b.Put(t.Context(), "d/"+strings.Repeat("x", n), strings.NewReader("x"), storage.PutOptions{})
		if ok && err != nil || !ok && !errors.Is(err, storage.ErrName) {
			t.Errorf("Put of a name of %d bytes: %v", n, err)
		}
	}
	for n, ok := range map[int]bool{255: true, 256: false} {
		_, err := b.Put(t.Context(), strings.Repeat("d", n)+"/x", strings.NewReader("x"), storage.PutOptions{})
		if ok && err != nil || !ok && !errors.Is(err, storage.ErrName) {
			t.Errorf("Put below a directory name of %d bytes: %v", n, err)
		}
	}
}

func TestLinksInside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, dir)
	storagetest.MustPut(t, b, "disk2/wal/x", []byte("x"))
	for at, to := range map[string]string{"wal_005": "disk2/wal", "disk2/y": "wal/x", "dangling": "nowhere"} {
		if err := os.Symlink(to, filepath.Join(dir, at)); err != nil {
			t.Fatal(err)
		}
	}
	storagetest.MustPut(t, b, "wal_005/z", []byte("z"))
	want := []string{"disk2/wal/x", "disk2/wal/z", "disk2/y", "wal_005/x", "wal_005/z"}
	if got := storagetest.Names(t, b, "", storage.ListOptions{}); !slices.Equal(got, want) {
		t.Errorf("List shows %q, want %q", got, want)
	}
	for _, name := range want {
		storagetest.MustGet(t, b, name)
	}
	// The link itself survives the deletion of all that is behind it.
	if err := b.Delete(t.Context(), "wal_005/x", "wal_005/z"); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, dir, "dangling", "disk2/", "disk2/wal/", "disk2/y", "wal_005")
}

func TestLinksOutAreNotFollowed(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	write(t, outside, "secret")
	for _, target := range []string{outside, "../" + filepath.Base(outside)} {
		dir := filepath.Join(filepath.Dir(outside), filepath.Base(t.TempDir())+"-"+filepath.Base(target))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		b := open(t, dir)
		if err := os.Symlink(target, filepath.Join(dir, "out")); err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		_, put := b.Put(ctx, "out/new", strings.NewReader(""), storage.PutOptions{})
		_, get := b.Open(ctx, "out/secret", storage.Range{})
		_, stat := b.Stat(ctx, "out/secret")
		errs := map[string]error{"Put": put, "Open": get, "Stat": stat, "Delete": b.Delete(ctx, "out/secret")}
		for _, prefix := range []string{"", "out/"} {
			for _, shallow := range []bool{false, true} {
				for info, err := range b.List(ctx, prefix, storage.ListOptions{Shallow: shallow}) {
					if err == nil {
						t.Errorf("List(%q) shows %s", prefix, info.Name)
					}
					errs["List "+prefix] = err
				}
			}
		}
		for op, err := range errs {
			if !errors.Is(err, storage.ErrPermanent) || !strings.Contains(err.Error(), "symbolic link") {
				t.Errorf("%s: %v, want a permanent error that tells of the link", op, err)
			}
		}
		wantFiles(t, outside, "secret")
	}
}

func TestListingALinkInACircleEnds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, dir)
	storagetest.MustPut(t, b, "a/x", nil)
	if err := os.Symlink("../a", filepath.Join(dir, "a", "a")); err != nil {
		t.Fatal(err)
	}
	var last error
	for _, err := range b.List(t.Context(), "", storage.ListOptions{}) {
		last = err
	}
	if last == nil {
		t.Error("the listing went round and told nothing")
	}
}

func TestLostAndFoundIsNotListed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "lost+found", "#123")
	write(t, dir, "wal_005", "lost+found", "x")
	b := open(t, dir)
	if got, want := storagetest.Names(t, b, "", storage.ListOptions{}), []string{"wal_005/lost+found/x"}; !slices.Equal(got, want) {
		t.Errorf("List shows %q, want %q", got, want)
	}
}

func TestTruncatedFileIsNoSilentEnd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, dir)
	storagetest.MustPut(t, b, "x", storagetest.Content(1, 100_000))
	r, err := b.Open(t.Context(), "x", storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.Truncate(filepath.Join(dir, "x"), 50_000); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, r); n != 50_000 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read %d bytes, %v; want 50000 and ErrUnexpectedEOF", n, err)
	}
}

func TestFileThatGrewUnderPutIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, dir)
	r := io.MultiReader(strings.NewReader("mine"), readerFunc(func([]byte) (int, error) {
		f, err := os.OpenFile(filepath.Join(dir, files(t, dir)[0]), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return 0, err
		}
		_, err = f.WriteString("foreign")
		return 0, errors.Join(err, f.Close(), io.EOF)
	}))
	if _, err := b.Put(t.Context(), "x", struct{ io.Reader }{eofReader{r}}, storage.PutOptions{}); err == nil {
		t.Error("Put stored a file another process wrote to")
	}
	wantFiles(t, dir)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// eofReader turns an error that holds io.EOF into io.EOF.
type eofReader struct{ r io.Reader }

func (e eofReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if errors.Is(err, io.EOF) {
		err = io.EOF
	}
	return n, err
}

func TestLargePutCrossesWritebacks(t *testing.T) {
	t.Parallel()
	b := open(t, t.TempDir())
	for _, n := range []int{8<<20 - 1, 8 << 20, 8<<20 + 1, 17 << 20} {
		data := storagetest.Content(byte(n), n)
		for manner, r := range map[string]io.Reader{
			"one write":   bytes.NewReader(data),
			"many writes": struct{ io.Reader }{bytes.NewReader(data)},
		} {
			if _, err := b.Put(t.Context(), "x", r, storage.PutOptions{}); err != nil {
				t.Fatal(err)
			}
			if got := storagetest.MustGet(t, b, "x"); !bytes.Equal(got, data) {
				t.Errorf("%d bytes in %s came back as %d others", n, manner, len(got))
			}
		}
	}
}

// Whatever is in it, a directory lists like an object store without
// directories.
func TestListIsThatOfMem(t *testing.T) {
	t.Parallel()
	element := rapid.StringMatching(`[a-b.\-0_]{1,3}`).Filter(func(s string) bool { return s != "." && s != ".." })
	nameOf := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(element, 1, 4).Draw(t, "elements"), "/")
	})
	parent := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(parent, "")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		disk, err := fs.Open(dir)
		if err != nil {
			rt.Fatal(err)
		}
		memory := mem.New()
		for _, name := range rapid.SliceOfN(nameOf, 0, 12).Draw(rt, "names") {
			_, err := disk.Put(t.Context(), name, strings.NewReader(name), storage.PutOptions{})
			if errors.Is(err, storage.ErrPermanent) {
				continue // an object and a directory of one name
			}
			if err != nil {
				rt.Fatal(err)
			}
			if _, err := memory.Put(t.Context(), name, strings.NewReader(name), storage.PutOptions{}); err != nil {
				rt.Fatal(err)
			}
		}
		prefix := rapid.OneOf(rapid.Just(""), rapid.StringMatching(`[a-b.\-0_/]{0,4}`)).Draw(rt, "prefix")
		opt := storage.ListOptions{
			Shallow: rapid.Bool().Draw(rt, "shallow"),
			After:   rapid.OneOf(rapid.Just(""), rapid.StringMatching(`[a-b.\-0_/]{0,5}`)).Draw(rt, "after"),
		}
		got, want := list(rt, t.Context(), disk, prefix, opt), list(rt, t.Context(), memory, prefix, opt)
		if !slices.Equal(got, want) {
			rt.Fatalf("List(%q, %+v)\n got %q\nwant %q", prefix, opt, got, want)
		}
	})
}

func list(t *rapid.T, ctx context.Context, b storage.Bucket, prefix string, opt storage.ListOptions) []string {
	var names []string
	for info, err := range b.List(ctx, prefix, opt) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	return names
}

func TestModifiedIsTheFilesTime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, dir)
	storagetest.MustPut(t, b, "x", nil)
	at := time.Date(2026, 11, 22, 16, 18, 47, 123456789, time.UTC)
	if err := os.Chtimes(filepath.Join(dir, "x"), at, at); err != nil {
		t.Fatal(err)
	}
	if info, err := b.Stat(t.Context(), "x"); err != nil || !info.Modified.Equal(at) {
		t.Errorf("Stat tells %v, %v; want %v", info.Modified, err, at)
	}
}
