package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// tree makes files and, for names with a slash at the end, directories below
// a new data directory; a file's content is its name.
func tree(t testing.TB, names ...string) string {
	t.Helper()
	root := filepath.Join(mustTempDir(t), "data")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	grow(t, root, names...)
	return root
}

// mustTempDir is t.TempDir with symbolic links resolved, as Walk resolves its root.
func mustTempDir(t testing.TB) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func grow(t testing.TB, root string, names ...string) {
	t.Helper()
	for _, name := range names {
		path := filepath.Join(root, name)
		dir := path
		if !strings.HasSuffix(name, "/") {
			dir = filepath.Dir(path)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if dir != path {
			if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func link(t testing.TB, target, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

type scanned struct {
	*Listing
	warnings []Warning
}

func scan(t testing.TB, root string, opt Options) scanned {
	t.Helper()
	var s scanned
	opt.Warn = func(w Warning) { s.warnings = append(s.warnings, w) }
	var err error
	if s.Listing, err = Scan(t.Context(), root, opt); err != nil {
		t.Fatal(err)
	}
	return s
}

// names lists the entries, directories with a slash at the end.
func (s scanned) names() []string {
	var out []string
	for _, e := range s.Entries {
		if e.IsDir() && e.Name != "/" {
			e.Name += "/"
		}
		out = append(out, e.Name)
	}
	return out
}

func (s scanned) kinds() []WarningKind {
	var out []WarningKind
	for _, w := range s.warnings {
		out = append(out, w.Kind)
	}
	return out
}

func wantNames(t testing.TB, s scanned, want ...string) {
	t.Helper()
	if got := s.names(); !slices.Equal(got, want) {
		t.Errorf("entries\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func wantKinds(t testing.TB, s scanned, want ...WarningKind) {
	t.Helper()
	if got := s.kinds(); !slices.Equal(got, want) {
		t.Errorf("warnings %v, want kinds %v", s.warnings, want)
	}
}

// The order of a real backup of an initialized cluster, taken from the file
// list that WAL-G wrote.
func TestWalkKeepsReferenceOrder(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/reference_order.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(string(text))
	root := tree(t, want[1:]...)
	grow(t, root, "global/pg_control", "postmaster.pid", "pg_wal/000000010000000000000001", "pg_stat_tmp/x", "log/y")
	s := scan(t, root, Options{})
	wantKinds(t, s)
	got := s.names()
	got = slices.DeleteFunc(got, func(n string) bool { return n == "/log/" && !slices.Contains(want, n) })
	if !slices.Equal(got, want) {
		t.Fatalf("%d entries, want %d; first difference at %d", len(got), len(want), diffAt(got, want))
	}
	if s.Control == nil || s.Control.Name != ControlName || s.Control.Size != int64(len("global/pg_control")) {
		t.Errorf("control %+v", s.Control)
	}
}

func diffAt(a, b []string) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func TestWalkExclusions(t *testing.T) {
	t.Parallel()
	root := tree(t,
		"PG_VERSION", "base/1/1259", "base/pgsql_tmp/pgsql_tmp1.0", "base/1/pgsql_tmp123.4", "custom/log/a", "custom/postmaster.pid",
		"pg_wal/000000010000000000000001", "postmaster.opts", "recovery.signal", "standby.signal", "standby.signal.old",
		"postgresql.auto.conf", "pg_hba.conf", "global/pg_internal.init", "backup_label.old", "pg_replslot/s/state")
	wantNames(t, scan(t, root, Options{}),
		"/", "/PG_VERSION", "/backup_label.old", "/base/", "/base/1/", "/base/1/1259", "/base/1/pgsql_tmp123.4", "/base/pgsql_tmp/",
		"/custom/", "/custom/log/", "/global/", "/global/pg_internal.init", "/pg_hba.conf", "/pg_replslot/", "/pg_wal/",
		"/postgresql.auto.conf", "/recovery.signal", "/standby.signal.old")

	s := scan(t, root, Options{Exclude: CatchupExclusions()})
	for _, name := range s.names() {
		if name == "/pg_hba.conf" || name == "/postgresql.auto.conf" {
			t.Errorf("catch-up backup holds %s", name)
		}
	}
}

// A data directory whose own name is on the list is still walked.
func TestWalkRootNamedLikeAnExclusion(t *testing.T) {
	t.Parallel()
	root := filepath.Join(mustTempDir(t), "log")
	grow(t, root, "PG_VERSION")
	wantNames(t, scan(t, root, Options{}), "/", "/PG_VERSION")
}

func TestWalkControlFileByItsWholeName(t *testing.T) {
	t.Parallel()
	root := tree(t, "global/pg_control", "other/pg_control", "pg_control")
	s := scan(t, root, Options{})
	wantNames(t, s, "/", "/global/", "/other/", "/other/pg_control", "/pg_control")
	if s.Control == nil || s.Control.Path(s.Root) != filepath.Join(root, "global/pg_control") {
		t.Errorf("control %+v", s.Control)
	}
}

func TestWalkTablespaces(t *testing.T) {
	t.Parallel()
	root := tree(t, "PG_VERSION", "pg_tblspc/16390/PG_15_202209061/1", "zz")
	home := mustTempDir(t)
	grow(t, home, "PG_15_202209061/16386/1259", "PG_15_202209061/pgsql_tmp/x")
	link(t, home, filepath.Join(root, "pg_tblspc/16384"))
	link(t, filepath.Join(home, "gone"), filepath.Join(root, "pg_tblspc/16385"))
	s := scan(t, root, Options{})
	wantNames(t, s, "/", "/PG_VERSION",
		"/pg_tblspc/16384/PG_15_202209061/", "/pg_tblspc/16384/PG_15_202209061/16386/",
		"/pg_tblspc/16384/PG_15_202209061/16386/1259", "/pg_tblspc/16384/PG_15_202209061/pgsql_tmp/",
		"/pg_tblspc/", "/pg_tblspc/16390/", "/pg_tblspc/16390/PG_15_202209061/", "/pg_tblspc/16390/PG_15_202209061/1",
		"/zz")
	want := []Tablespace{{"16384", home}, {"16385", filepath.Join(home, "gone")}}
	if !slices.Equal(s.Tablespaces, want) {
		t.Errorf("tablespaces %v, want %v", s.Tablespaces, want)
	}
	wantKinds(t, s, TablespaceMissing)
	if !s.warnings[0].LosesData() {
		t.Error("a missing tablespace loses data")
	}
	for i, e := range s.Entries {
		if _, err := os.Stat(s.Path(i)); err != nil {
			t.Errorf("%s: %v", e.Name, err)
		}
	}
}

func TestWalkTablespaceInsideDataDirectoryOnce(t *testing.T) {
	t.Parallel()
	root := tree(t, "PG_VERSION", "inside/ts/PG_15/1/2", "inside/plain", "pg_tblspc/")
	link(t, filepath.Join(root, "inside/ts"), filepath.Join(root, "pg_tblspc/16384"))
	s := scan(t, root, Options{})
	wantNames(t, s, "/", "/PG_VERSION", "/inside/", "/inside/plain",
		"/pg_tblspc/16384/PG_15/", "/pg_tblspc/16384/PG_15/1/", "/pg_tblspc/16384/PG_15/1/2", "/pg_tblspc/")
	wantKinds(t, s, NestedTablespace)
}

func TestWalkTablespaceAroundDataDirectory(t *testing.T) {
	t.Parallel()
	root := tree(t, "PG_VERSION", "pg_tblspc/")
	link(t, filepath.Dir(root), filepath.Join(root, "pg_tblspc/16384"))
	link(t, root, filepath.Join(root, "pg_tblspc/16385"))
	grow(t, filepath.Dir(root), "PG_15/1")
	s := scan(t, root, Options{})
	wantNames(t, s, "/", "/PG_VERSION", "/pg_tblspc/16384/PG_15/", "/pg_tblspc/16384/PG_15/1", "/pg_tblspc/")
	wantKinds(t, s, NestedTablespace, NestedTablespace)
}

func TestWalkSpecialFiles(t *testing.T) {
	t.Parallel()
	root := tree(t, "PG_VERSION", "base/", "backup_label", "tablespace_map", "sub/backup_label")
	if err := syscall.Mkfifo(filepath.Join(root, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The path of a Unix socket has to be short.
	short, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(short) })
	l, err := net.Listen("unix", filepath.Join(short, "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if err := os.Rename(filepath.Join(short, "s"), filepath.Join(root, "socket")); err != nil {
		t.Fatal(err)
	}
	link(t, "/etc/postgresql.conf", filepath.Join(root, "postgresql.conf"))
	link(t, "/elsewhere/5", filepath.Join(root, "base/5"))
	s := scan(t, root, Options{})
	wantNames(t, s, "/", "/PG_VERSION", "/base/", "/sub/", "/sub/backup_label")
	wantKinds(t, s, StaleLabel, CoreSymlink, Special, Symlink, Special, StaleLabel)
	for _, w := range s.warnings {
		if !strings.HasPrefix(w.Path, root) || !strings.Contains(w.String(), w.Path) {
			t.Errorf("%q does not name its path", w)
		}
		if w.LosesData() != (w.Kind == CoreSymlink) {
			t.Errorf("%s: loses data %t", w, w.LosesData())
		}
	}
}

func TestWalkLinkedServerDirectories(t *testing.T) {
	t.Parallel()
	root := tree(t, "PG_VERSION", "sub/")
	wal := mustTempDir(t)
	grow(t, wal, "000000010000000000000001")
	if err := os.Chmod(wal, 0o750); err != nil {
		t.Fatal(err)
	}
	link(t, wal, filepath.Join(root, "pg_wal"))
	link(t, wal, filepath.Join(root, "log"))
	link(t, filepath.Join(wal, "gone"), filepath.Join(root, "pg_stat_tmp"))
	link(t, wal, filepath.Join(root, "sub/pg_wal"))
	s := scan(t, root, Options{})
	wantNames(t, s, "/", "/PG_VERSION", "/pg_stat_tmp/", "/pg_wal/", "/sub/")
	wantKinds(t, s)
	if e := s.Entries[3]; e.Mode != fs.ModeDir|0o750 || e.Size != 0 {
		t.Errorf("pg_wal %+v", e)
	}
	if e := s.Entries[2]; e.Mode != fs.ModeDir|0o700 || e.Size != 0 {
		t.Errorf("pg_stat_tmp %+v", e)
	}
}

func TestWalkThroughLinkedRoot(t *testing.T) {
	t.Parallel()
	root := tree(t, "PG_VERSION")
	path := filepath.Join(mustTempDir(t), "current")
	link(t, root, path)
	s := scan(t, path, Options{})
	wantNames(t, s, "/", "/PG_VERSION")
	if s.Root != root {
		t.Errorf("root %s, want %s", s.Root, root)
	}
}

func TestWalkMetadata(t *testing.T) {
	t.Parallel()
	root := tree(t, "PG_VERSION", "base/1/1259", "postmaster.pid")
	path := filepath.Join(root, "base/1/1259")
	at := time.Unix(1700000000, 123456789)
	if err := errors.Join(os.Chtimes(path, at, at), os.Chmod(path, 0o640|fs.ModeSetuid)); err != nil {
		t.Fatal(err)
	}
	s := scan(t, root, Options{})
	e := s.Entries[4]
	if e.Name != "/base/1/1259" || e.Mode != 0o640 || !e.ModTime().Equal(at) || e.MTime != at.UnixNano() {
		t.Errorf("%+v", e)
	}
	if int(e.UID) != os.Getuid() {
		t.Errorf("uid %d", e.UID)
	}
	var size int64
	err := filepath.Walk(root, func(_ string, info fs.FileInfo, err error) error {
		size += info.Size()
		return err
	})
	if err != nil || s.CatalogSize != size {
		t.Errorf("catalog size %d, want %d, %v", s.CatalogSize, size, err)
	}
	if s.Files != 2 || s.Dirs != 3 || s.DataSize != int64(len("PG_VERSION"+"base/1/1259")) {
		t.Errorf("%+v", s.Summary)
	}
}

// Files and whole directories that go away after their directory was listed.
func TestWalkVanished(t *testing.T) {
	t.Parallel()
	root := tree(t, "PG_VERSION", "base/1/1", "base/1/2", "base/5/1", "zz")
	var warned []string
	var names []string
	_, err := Walk(t.Context(), root, Options{Warn: func(w Warning) {
		if w.Kind == Vanished {
			warned = append(warned, strings.TrimPrefix(w.Path, root))
		}
	}}, func(e Entry) error {
		names = append(names, e.Name)
		switch e.Name {
		case "/base/1/1":
			return os.Remove(filepath.Join(root, "base/1/2"))
		case "/base/5":
			return os.RemoveAll(filepath.Join(root, "base/5"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/base/1/2", "/base/5"}; !slices.Equal(warned, want) {
		t.Errorf("warned of %v, want %v", warned, want)
	}
	if want := []string{"/", "/PG_VERSION", "/base", "/base/1", "/base/1/1", "/base/5", "/zz"}; !slices.Equal(names, want) {
		t.Errorf("entries %v, want %v", names, want)
	}
}

func TestWalkErrors(t *testing.T) {
	t.Parallel()
	root := tree(t, "PG_VERSION", "base/1/1")
	if _, err := Scan(t.Context(), filepath.Join(root, "gone"), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing root: %v", err)
	}
	if _, err := Scan(t.Context(), filepath.Join(root, "PG_VERSION"), Options{}); err == nil {
		t.Error("a file is no data directory")
	}
	stop := errors.New("stop")
	if _, err := Walk(t.Context(), root, Options{}, func(Entry) error { return stop }); err != stop {
		t.Errorf("error of the function: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	if _, err := Scan(ctx, root, Options{}); !errors.Is(err, stop) {
		t.Errorf("canceled: %v", err)
	}
}

func TestWalkUnreadable(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 {
		t.Skip("root may read everything")
	}
	root := tree(t, "PG_VERSION", "lost+found/", "base/1/")
	shut := func(dir string) {
		path := filepath.Join(root, dir)
		if err := os.Chmod(path, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Chmod(path, 0o700) })
	}
	shut("lost+found")
	s := scan(t, root, Options{})
	wantNames(t, s, "/", "/PG_VERSION", "/base/", "/base/1/", "/lost+found/")
	wantKinds(t, s, Unreadable)
	shut("base/1")
	if _, err := Scan(t.Context(), root, Options{}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("unreadable directory: %v", err)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	good := tree(t, "global/pg_control")
	version := filepath.Join(good, "PG_VERSION")
	for text, ok := range map[string]bool{"15\n": true, "18": true, "": false, "9.6": false, "-1": false} {
		if err := os.WriteFile(version, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Check(good); ok != (err == nil) || !ok && !errors.Is(err, ErrNotCluster) {
			t.Errorf("PG_VERSION %q: %v", text, err)
		}
	}
	for _, c := range []struct{ root, missing string }{
		{tree(t, "global/pg_control"), "PG_VERSION"},
		{filepath.Join(good, "nowhere"), "PG_VERSION"},
	} {
		if err := Check(c.root); !errors.Is(err, ErrNotCluster) || !strings.Contains(err.Error(), c.missing) {
			t.Errorf("without %s: %v", c.missing, err)
		}
	}
	bare := tree(t)
	if err := os.WriteFile(filepath.Join(bare, "PG_VERSION"), []byte("15\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Check(bare); !errors.Is(err, ErrNotCluster) || !strings.Contains(err.Error(), "global/pg_control") {
		t.Errorf("without the control file: %v", err)
	}
}

// Whatever the tree: every regular file and directory is an entry exactly
// once unless a rule names it, parents come first, siblings in byte order.
func TestWalkProperty(t *testing.T) {
	t.Parallel()
	element := rapid.SampledFrom([]string{"base", "1", "16384", "a b", "log", "pg_wal", "Ы", "pgsql_tmp", "pg_control", "global", "z", "pg_tblspc"})
	rapid.Check(t, func(rt *rapid.T) {
		root, err := os.MkdirTemp(t.TempDir(), "data")
		if err != nil {
			rt.Fatal(err)
		}
		for range rapid.IntRange(0, 25).Draw(rt, "files") {
			path := filepath.Join(append([]string{root}, rapid.SliceOfN(element, 1, 4).Draw(rt, "path")...)...)
			// A name may be taken as the other kind already: then it is skipped.
			if os.MkdirAll(filepath.Dir(path), 0o700) == nil {
				_ = os.WriteFile(path, []byte(path), 0o600)
			}
		}
		var want []string
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			name := "/" + strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
			out, _ := excluded(d.Name())
			out = out && name != "/"
			switch {
			case d.IsDir():
				want = append(want, name)
				if out {
					return fs.SkipDir
				}
			case !out && name != ControlName:
				want = append(want, name)
			}
			return err
		})
		l, err := Scan(context.Background(), root, Options{})
		if err != nil {
			rt.Fatal(err)
		}
		var got []string
		for _, e := range l.Entries {
			got = append(got, e.Name)
		}
		if !slices.Equal(got, want) {
			rt.Fatalf("got %q, want %q", got, want)
		}
	})
}

// BenchmarkScan200k reports the time and the live bytes per entry of a
// listing of 200,000 files.
func BenchmarkScan200k(b *testing.B) {
	root := b.TempDir()
	for d := range 200 {
		dir := filepath.Join(root, "base", fmt.Sprint(16384+d))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			b.Fatal(err)
		}
		for f := range 1000 {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(16384+f)), nil, 0o600); err != nil {
				b.Fatal(err)
			}
		}
	}
	var l *Listing
	for b.Loop() {
		var before, after runtime.MemStats
		l = nil
		runtime.GC()
		runtime.ReadMemStats(&before)
		var err error
		if l, err = Scan(b.Context(), root, Options{}); err != nil {
			b.Fatal(err)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(len(l.Entries)), "B/entry")
	}
	runtime.KeepAlive(l)
}
