package durable

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func content(s string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, s)
		return err
	}
}

// names lists a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestWriteFile(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{{}, {NoSync: true}, {NoReplace: true}, {NoReplace: true, NoSync: true}} {
		dir := t.TempDir()
		path := filepath.Join(dir, "target")
		if err := WriteFile(path, 0o640, content("one"), o); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm()&0o640 != info.Mode().Perm() || info.Mode().Perm()&0o600 != 0o600 {
			t.Errorf("%+v: mode %v, error %v", o, info.Mode(), err)
		}
		err = WriteFile(path, 0o600, content("two"), o)
		want := "two"
		if o.NoReplace {
			want = "one"
			if !errors.Is(err, fs.ErrExist) {
				t.Errorf("%+v: a second write says %v", o, err)
			}
		} else if err != nil {
			t.Errorf("%+v: %v", o, err)
		}
		if got := read(t, path); got != want {
			t.Errorf("%+v: the file holds %q, want %q", o, got, want)
		}
		if got := names(t, dir); !slices.Equal(got, []string{"target"}) {
			t.Errorf("%+v: the directory holds %q", o, got)
		}
	}
}

func TestReadFrom(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	big := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	from := filepath.Join(dir, "from")
	if err := WriteFile(from, 0o600, func(w io.Writer) error {
		_, err := w.Write(big)
		return err
	}, Options{}); err != nil {
		t.Fatal(err)
	}
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	to := filepath.Join(dir, "to")
	if err := WriteFile(to, 0o600, func(w io.Writer) error {
		if _, err := io.WriteString(w, "head"); err != nil {
			return err
		}
		_, err := io.Copy(w, src)
		return err
	}, Options{}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, to); got != "head"+string(big) {
		t.Errorf("copied %d bytes of %d", len(got), len(big)+4)
	}
}

func TestWriteFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	cases := map[string]func(io.Writer) error{
		"at once": func(io.Writer) error { return broken },
		"after some": func(w io.Writer) error {
			if err := content("new")(w); err != nil {
				return err
			}
			return broken
		},
		"by panic": func(io.Writer) error { panic(broken) },
	}
	for name, write := range cases {
		dir := t.TempDir()
		path := filepath.Join(dir, "target")
		if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := func() (err error) {
			defer func() {
				if r := recover(); r != nil {
					err = r.(error)
				}
			}()
			return WriteFile(path, 0o600, write, Options{})
		}()
		if !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
		if got := read(t, path); got != "old" {
			t.Errorf("%s: the file holds %q", name, got)
		}
		if got := names(t, dir); len(got) != 1 {
			t.Errorf("%s: left behind %q", name, got)
		}
	}
}

// TestOrder is the crash promise: the content is synced before the name
// appears, and the directory after it.
func TestOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "target")
	var steps []string
	s := system{
		syncFile: func(f *os.File) error {
			if !IsTemp(f.Name()) || filepath.Dir(f.Name()) != dir {
				t.Errorf("synced %s", f.Name())
			}
			steps = append(steps, "file "+read(t, f.Name())+strings.Join(visible(t, dir), ","))
			return nil
		},
		syncDir: func(d string) error {
			steps = append(steps, "dir "+filepath.Base(d)+" "+strings.Join(visible(t, dir), ","))
			return nil
		},
	}
	if err := s.writeFile(path, 0o600, content("x"), Options{}); err != nil {
		t.Fatal(err)
	}
	want := []string{"file x", "dir " + filepath.Base(dir) + " target"}
	if !slices.Equal(steps, want) {
		t.Errorf("steps %q, want %q", steps, want)
	}
	steps = nil
	if err := s.writeFile(path, 0o600, content("y"), Options{NoSync: true}); err != nil || steps != nil {
		t.Errorf("NoSync: error %v, steps %q", err, steps)
	}
}

// visible lists what is not temporary.
func visible(t *testing.T, dir string) []string {
	t.Helper()
	return slices.DeleteFunc(names(t, dir), IsTemp)
}

func TestSyncFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("input/output error")
	fine := func(string) error { return nil }
	dir := t.TempDir()
	path := filepath.Join(dir, "target")

	s := system{syncFile: func(*os.File) error { return broken }, syncDir: fine}
	if err := s.writeFile(path, 0o600, content("x"), Options{}); !errors.Is(err, broken) {
		t.Errorf("fsync of the file: %v", err)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("left behind %q", got)
	}

	s = system{syncFile: (*os.File).Sync, syncDir: func(string) error { return broken }}
	if err := s.writeFile(path, 0o600, content("x"), Options{}); !errors.Is(err, broken) {
		t.Errorf("fsync of the directory: %v", err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"target"}) {
		t.Errorf("after a failed fsync of the directory it holds %q", got)
	}
}

func TestDroppedError(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	err := WriteFile(filepath.Join(dir, "target"), 0o600, func(w io.Writer) error {
		w.(*counter).f.Close() // the disk goes away
		_, _ = io.WriteString(w, "lost")
		return nil
	}, Options{})
	if !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a write whose error the callback dropped: %v", err)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("left behind %q", got)
	}
}

func TestLengthIsChecked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	err := WriteFile(filepath.Join(dir, "target"), 0o600, func(w io.Writer) error {
		if err := content("0123456789")(w); err != nil {
			return err
		}
		return w.(*counter).f.Truncate(4)
	}, Options{})
	if err == nil || !strings.Contains(err.Error(), "4 bytes after writing 10") {
		t.Errorf("a file that lost its end: %v", err)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("left behind %q", got)
	}
}

func TestBadPaths(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "sub", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		filepath.Join(dir, "missing", "file"): fs.ErrNotExist,
		dir + "/":                             fs.ErrInvalid,
		"":                                    fs.ErrInvalid,
		dir + "/..":                           fs.ErrInvalid,
		filepath.Join(dir, "sub"):             nil, // a directory, not empty
	} {
		err := WriteFile(path, 0o600, content("x"), Options{})
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", path, err, want)
		}
	}
	if got := names(t, dir); !slices.Equal(got, []string{"sub"}) {
		t.Errorf("left behind %q", got)
	}
}

func TestLongName(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), strings.Repeat("n", maxName))
	if err := WriteFile(path, 0o600, content("x"), Options{}); err != nil {
		t.Error(err)
	}
}

// TestRace lets many writers meet at one name.
func TestRace(t *testing.T) {
	t.Parallel()
	for name, place := range map[string]func(from, to string) error{
		"rename": renameNoReplace, "link": linkNoReplace,
	} {
		dir := t.TempDir()
		to := filepath.Join(dir, "target")
		var won atomic.Int64
		var wg sync.WaitGroup
		for i := range 16 {
			from := filepath.Join(dir, fmt.Sprint(i))
			if err := os.WriteFile(from, fmt.Append(nil, i), 0o600); err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				err := place(from, to)
				if err == nil {
					won.Add(1)
				} else if !errors.Is(err, fs.ErrExist) {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%s: %d writers won", name, won.Load())
		}
		if got := len(names(t, dir)); got != 16 { // the target and 15 losers
			t.Errorf("%s: %d names, want 16", name, got)
		}
	}

	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			if err := WriteFile(filepath.Join(dir, "target"), 0o600, content(fmt.Sprintf("%032d", i)), Options{NoSync: true}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := read(t, filepath.Join(dir, "target")); len(got) != 32 {
		t.Errorf("the file holds %q", got)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left behind %q", got)
	}
}

func TestIsTemp(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		// One of WAL-G's own.
		"000000010000000000000001.lz4.tmp.20261122T161847Z-e1871ab0d324b6a6": true,
		"/a/b.tmp.20261122T161847Z-e1871ab0d324b6a6":                         true,
		"a.tmp":                                  false,
		"a.tmp.20261122T161847Z-e1871ab0d324b6a": false,
		"a.tmp.20261122T161847Z-e1871ab0d324b6a6.x": false,
		"": false,
	} {
		if got := IsTemp(name); got != want {
			t.Errorf("IsTemp(%q) = %v", name, got)
		}
	}
}

func TestSync(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, sync := range map[string]func(string) error{"SyncDir": SyncDir, "SyncTree": SyncTree} {
		if err := sync(dir); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := sync(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of a missing directory: %v", name, err)
		}
	}
}
