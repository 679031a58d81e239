package restore

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/manifest"
)

// recordedPath begins the names of a full backup that the reference took; the end-to-end tests
// replay its WAL too.
const recordedPath = "../../tools/e2e/testdata/walg-full-lz4/basebackups_005/base_000000010000000000000002"

// recordedBackup is a full backup written by WAL-G: two parts, lz4.
func recordedBackup(t testing.TB) (*memory, *manifest.Sentinel) {
	t.Helper()
	src := &memory{objects: map[string][]byte{}}
	names, err := filepath.Glob(recordedPath + "/tar_partitions/*.tar.lz4")
	if err != nil || len(names) != 4 {
		t.Fatal(names, err)
	}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		src.objects[filepath.Base(n)] = b
	}
	document, err := os.ReadFile(recordedPath + "_backup_stop_sentinel.json")
	if err != nil {
		t.Fatal(err)
	}
	s, err := manifest.ParseSentinel(document)
	if err != nil {
		t.Fatal(err)
	}
	return src, s
}

func TestRecordedBackup(t *testing.T) {
	t.Parallel()
	src, sentinel := recordedBackup(t)
	dest := filepath.Join(t.TempDir(), "deep", "data")
	p := plan(t, src, Request{Destination: dest, Sentinel: sentinel})
	got, err := Run(t.Context(), p, src, config())
	if err != nil {
		t.Fatal(err)
	}

	// Read the same tars with nothing but the standard library.
	want := map[string]string{"pg_wal": "0700/"}
	var bytesWanted, filesWanted int64
	for name, stored := range src.objects {
		r, err := decompress(name, bytes.NewReader(stored))
		if err != nil {
			t.Fatal(err)
		}
		tr := tar.NewReader(r)
		for {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			rel, err := filepath.Rel("/", filepath.Join("/", h.Name))
			if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeDir {
				want[rel] = fmt.Sprintf("%04o/", h.FileInfo().Mode().Perm())
				continue
			}
			b, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			want[rel] = fmt.Sprintf("%04o %s", h.FileInfo().Mode().Perm(), b)
			bytesWanted += int64(len(b))
			filesWanted++
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	compareTrees(t, tree(t, dest), want)
	if got.Files != filesWanted || got.Bytes != bytesWanted || len(got.Notes) != 0 {
		t.Errorf("%d files, %d bytes, notes %v; want %d, %d, none", got.Files, got.Bytes, got.Notes, filesWanted, bytesWanted)
	}
	// The sentinel's size is the sum of the entries.
	if got.Bytes != sentinel.UncompressedSize {
		t.Errorf("%d bytes, the sentinel says %d", got.Bytes, sentinel.UncompressedSize)
	}
}

func compareTrees(t testing.TB, got, want map[string]string) {
	t.Helper()
	for name, w := range want {
		if g, ok := got[name]; !ok {
			t.Errorf("%s is missing", name)
		} else if g != w {
			t.Errorf("%s is %.80q, want %.80q", name, g, w)
		}
	}
	for name, g := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s is there: %.80q", name, g)
		}
	}
}

func TestSmallBackup(t *testing.T) {
	t.Parallel()
	src := backup(t,
		entry{name: "/", kind: tar.TypeDir, mode: 0o755},
		entry{name: "/PG_VERSION", body: "15\n"},
		// A stale label in the data directory gives way to the backup's.
		entry{name: "/backup_label", body: "stale"},
		entry{name: "/base/1/112", body: strings.Repeat("x", 3*bufferSize+1), mode: 0o640},
		dir("/base/1"), dir("/base"),
		entry{name: "/pg_replslot", kind: tar.TypeDir, mode: 0o500},
		entry{name: "/empty", mode: 0o400},
		entry{name: "/" + MarkerName, body: "of an earlier restore"},
	)
	dest := t.TempDir()
	if err := os.Chmod(dest, 0o755); err != nil {
		t.Fatal(err)
	}
	var last Progress
	cfg := config()
	var doneObjects []string
	cfg.Progress = func(p Progress) {
		if p.Bytes < last.Bytes || p.StoredBytes < last.StoredBytes {
			t.Errorf("progress went back from %+v to %+v", last, p)
		}
		last = p
		if p.Done {
			doneObjects = append(doneObjects, p.Object)
		}
	}
	p := plan(t, src, Request{Destination: dest})
	got, err := Run(t.Context(), p, src, cfg)
	if err != nil {
		t.Fatal(err)
	}
	compareTrees(t, tree(t, dest), map[string]string{
		".": "0750/", "PG_VERSION": "0600 15\n", "base": "0700/", "base/1": "0700/",
		"base/1/112":   "0640 " + strings.Repeat("x", 3*bufferSize+1),
		"backup_label": "0600 label", "tablespace_map": "0600 ",
		"pg_replslot": "0700/", "empty": "0400 ", "pg_wal": "0700/", "global": "0700/", "global/pg_control": "0600 control",
	})
	if want := "part_001.tar backup_label.tar pg_control.tar"; strings.Join(doneObjects, " ") != want {
		t.Errorf("done: %v, want %s", doneObjects, want)
	}
	if last.StoredBytes != p.StoredBytes() {
		t.Errorf("%d stored bytes read of %d", last.StoredBytes, p.StoredBytes())
	}
	// pg_control is written behind the last report.
	if got.Bytes != last.Bytes+int64(len("control")) {
		t.Errorf("%d bytes, last report %d", got.Bytes, last.Bytes)
	}
}

// remote is a streamed backup with a tablespace.
func remote(t testing.TB) *memory {
	return &memory{objects: map[string][]byte{
		"part_001.tar": tarOf(t, dir("pg_tblspc/16397/"), dir("pg_tblspc/16397/PG_15_202209061/"),
			entry{name: "pg_tblspc/16397/PG_15_202209061/5/16400", body: "tt"}),
		"part_002.tar": tarOf(t, entry{name: "backup_label", body: "label"}, entry{name: "tablespace_map", body: "16397 /srv/pg/ts\n"},
			dir("./"), dir("global/"), entry{name: "global/pg_control", body: "older control"}, dir("pg_wal/"), dir("pg_wal/archive_status/"),
			entry{name: "pg_tblspc/16397", kind: tar.TypeSymlink, link: "/srv/pg/ts"},
			dir("pg_tblspc/16500"), entry{name: "pg_tblspc/16500/in_place", body: "here"}),
		"pg_control.tar": tarOf(t, entry{name: "global/pg_control", body: "control"}),
	}}
}

func TestTablespaces(t *testing.T) {
	t.Parallel()
	common := map[string]string{
		".": "0700/", "backup_label": "0600 label", "global": "0700/", "global/pg_control": "0600 control",
		"pg_wal": "0700/", "pg_wal/archive_status": "0700/", "pg_tblspc": "0700/",
		"pg_tblspc/16500": "0700/", "pg_tblspc/16500/in_place": "0600 here",
	}
	space := map[string]string{".": "0700/", "PG_15_202209061": "0700/", "PG_15_202209061/5": "0700/", "PG_15_202209061/5/16400": "0600 tt"}

	t.Run("elsewhere", func(t *testing.T) {
		t.Parallel()
		src, dest := remote(t), filepath.Join(t.TempDir(), "data")
		p := plan(t, src, Request{Destination: dest, Sentinel: &manifest.Sentinel{Spec: spec("/srv/pg/pg", "16397", "/srv/pg/ts")}})
		got, err := Run(t.Context(), p, src, config())
		if err != nil {
			t.Fatal(err)
		}
		want := maps.Clone(common)
		want["pg_tblspc/16397"] = "-> " + dest + "/tablespaces/16397"
		want["tablespaces"] = "0700/"
		for name, w := range space {
			want[filepath.Join("tablespaces/16397", name)] = w
		}
		compareTrees(t, tree(t, dest), want)
		if len(got.Notes) != 1 || !strings.Contains(got.Notes[0], "--restore-spec") {
			t.Errorf("notes %v", got.Notes)
		}
	})

	for name, keepsMap := range map[string]bool{"to where it was": true, "as a spec says": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src, top := remote(t), t.TempDir()
			dest, ts := filepath.Join(top, "data"), filepath.Join(top, "spaces", "ts")
			r := Request{Destination: dest, Sentinel: &manifest.Sentinel{Spec: spec(dest, "16397", ts)}}
			want := maps.Clone(common)
			want["pg_tblspc/16397"] = "-> " + ts
			if keepsMap {
				want["tablespace_map"] = "0600 16397 /srv/pg/ts\n"
			} else {
				r.Spec, r.Sentinel.Spec = r.Sentinel.Spec, spec("/srv/pg/pg", "16397", "/srv/pg/ts")
			}
			got, err := Run(t.Context(), plan(t, src, r), src, config())
			if err != nil {
				t.Fatal(err)
			}
			compareTrees(t, tree(t, dest), want)
			compareTrees(t, tree(t, ts), space)
			if len(got.Notes) != 0 {
				t.Errorf("notes %v", got.Notes)
			}
		})
	}

	t.Run("original place is taken", func(t *testing.T) {
		t.Parallel()
		src, top := remote(t), t.TempDir()
		dest, ts := filepath.Join(top, "data"), filepath.Join(top, "ts")
		if err := os.MkdirAll(filepath.Join(ts, "PG_15_202209061"), 0o700); err != nil {
			t.Fatal(err)
		}
		p := plan(t, src, Request{Destination: dest, Sentinel: &manifest.Sentinel{Spec: spec(dest, "16397", ts)}})
		_, err := Run(t.Context(), p, src, config())
		if !errors.Is(err, ErrNotEmpty) || !strings.Contains(err.Error(), ts) || !strings.Contains(err.Error(), "--restore-spec") {
			t.Errorf("error %v", err)
		}
		if _, err := os.Lstat(dest); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the destination was made: %v", err)
		}
	})

	t.Run("an entry lies in the tablespace's place", func(t *testing.T) {
		t.Parallel()
		src, dest := remote(t), filepath.Join(t.TempDir(), "data")
		src.objects["part_003.tar"] = tarOf(t, entry{name: "tablespaces/16397/x", body: "x"})
		p := plan(t, src, Request{Destination: dest, Sentinel: &manifest.Sentinel{Spec: spec("/srv/pg/pg", "16397", "/srv/pg/ts")}})
		if _, err := Run(t.Context(), p, src, config()); !errors.Is(err, ErrArchive) {
			t.Errorf("error %v", err)
		}
		expectUnfinished(t, dest, "part_003.tar")
	})
}

func TestDestinationMustBeEmpty(t *testing.T) {
	t.Parallel()
	dest := t.TempDir()
	for i := range 7 {
		if err := os.WriteFile(filepath.Join(dest, fmt.Sprint("file", i)), []byte("kept"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := tree(t, dest)
	src := backup(t)
	_, err := Run(t.Context(), plan(t, src, Request{Destination: dest}), src, config())
	if !errors.Is(err, ErrNotEmpty) || !strings.Contains(err.Error(), dest) || !strings.Contains(err.Error(), "file") || !strings.Contains(err.Error(), "...") {
		t.Errorf("error %v", err)
	}
	compareTrees(t, tree(t, dest), before)
	if len(src.opened) != 0 {
		t.Errorf("opened %v", src.opened)
	}
}

func TestDestinationIsAFile(t *testing.T) {
	t.Parallel()
	dest := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dest, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	src := backup(t)
	if _, err := Run(t.Context(), plan(t, src, Request{Destination: dest}), src, config()); err == nil {
		t.Error("restored")
	}
}

func TestMask(t *testing.T) {
	t.Parallel()
	src := backup(t, dir("/base"), entry{name: "/base/1/PG_VERSION", body: "15"}, entry{name: "/base/1/112", body: strings.Repeat("x", 5000)}, entry{name: "/PG_VERSION", body: "15"})
	keep, err := MaskFilter("base/*/PG_VERSION")
	if err != nil {
		t.Fatal(err)
	}
	dest := t.TempDir()
	got, err := Run(t.Context(), plan(t, src, Request{Destination: dest, Keep: keep}), src, config())
	if err != nil {
		t.Fatal(err)
	}
	compareTrees(t, tree(t, dest), map[string]string{".": "0700/", "base": "0700/", "base/1": "0700/", "base/1/PG_VERSION": "0600 15", "pg_wal": "0700/"})
	if got.Files != 1 || got.Bytes != 2 {
		t.Errorf("%+v", got)
	}
}

func TestHostileArchives(t *testing.T) {
	t.Parallel()
	for name, entries := range map[string][]entry{
		"climbs":                  {{name: "../outside", body: "x"}},
		"climbs behind a slash":   {{name: "/../outside", body: "x"}},
		"climbs in the middle":    {{name: "base/../../outside", body: "x"}},
		"climbs and comes back":   {{name: "base/../base/1", body: "x"}},
		"climbs as a directory":   {dir("../outside/")},
		"climbs out of a space":   {{name: "pg_tblspc/16397/../../outside", body: "x"}},
		"file is the root":        {{name: ".", body: "x"}},
		"file is a space":         {{name: "pg_tblspc/16397", body: "x"}},
		"twice in a tar":          {{name: "a", body: "x"}, {name: "a", body: "y"}},
		"twice, spelled apart":    {{name: "/base/1", body: "x"}, {name: "./base/./1", body: "y"}},
		"file, then below it":     {{name: "a", body: "x"}, {name: "a/b", body: "y"}},
		"directory, then a file":  {dir("a"), {name: "a", body: "y"}},
		"file, then a directory":  {{name: "a", body: "y"}, dir("a")},
		"overwrites the links":    {{name: "pg_tblspc", body: "y"}},
		"control file of a giant": {{name: "global/pg_control", body: strings.Repeat("x", maxControlSize+1)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src, top := backup(t, entries...), t.TempDir()
			dest, ts := filepath.Join(top, "data"), filepath.Join(top, "ts")
			r := Request{Destination: dest, Sentinel: &manifest.Sentinel{Spec: spec(dest, "16397", ts)}}
			_, err := Run(t.Context(), plan(t, src, r), src, config())
			var object *ObjectError
			if !errors.As(err, &object) || object.Object != "part_001.tar" {
				t.Fatalf("error %v does not name the object", err)
			}
			if object.Attempts != 1 {
				t.Errorf("%d attempts", object.Attempts)
			}
			expectUnfinished(t, dest, "part_001.tar")
			if left := tree(t, top); left["outside"] != "" {
				t.Error("a file was written outside")
			}
		})
	}
}

func TestArchiveNamesThatOnlyLookHostile(t *testing.T) {
	t.Parallel()
	src := backup(t, entry{name: "/etc/passwd", body: "x"}, entry{name: "b/./c", body: "y"}, entry{name: "..d/e..", body: "z"})
	dest := t.TempDir()
	if _, err := Run(t.Context(), plan(t, src, Request{Destination: dest}), src, config()); err != nil {
		t.Fatal(err)
	}
	got := tree(t, dest)
	for name, want := range map[string]string{"etc/passwd": "0600 x", "b/c": "0600 y", "..d/e..": "0600 z"} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
}

func TestLinksAreNotMade(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	victim := filepath.Join(top, "victim")
	if err := os.MkdirAll(victim, 0o700); err != nil {
		t.Fatal(err)
	}
	entries := []entry{
		{name: "link", kind: tar.TypeSymlink, link: victim},
		{name: "link/through", body: "x"},
		{name: "hard", kind: tar.TypeLink, link: "/etc/passwd"},
		{name: "up", kind: tar.TypeSymlink, link: ".."},
		{name: "fifo", kind: tar.TypeFifo},
		{name: "device", kind: tar.TypeChar},
	}
	for i := range maxNotes {
		entries = append(entries, entry{name: fmt.Sprint("more", i), kind: tar.TypeSymlink, link: "x"})
	}
	src, dest := backup(t, entries...), filepath.Join(top, "data")
	got, err := Run(t.Context(), plan(t, src, Request{Destination: dest}), src, config())
	if err != nil {
		t.Fatal(err)
	}
	compareTrees(t, tree(t, victim), map[string]string{".": "0700/"})
	compareTrees(t, tree(t, dest), map[string]string{
		".": "0700/", "link": "0700/", "link/through": "0600 x", "backup_label": "0600 label", "tablespace_map": "0600 ",
		"global": "0700/", "global/pg_control": "0600 control", "pg_wal": "0700/",
	})
	notes := strings.Join(got.Notes, "\n")
	if len(got.Notes) != maxNotes+1 || !strings.Contains(notes, "link is a link") || !strings.Contains(notes, "fifo is a special file") || !strings.Contains(notes, "5 more") {
		t.Errorf("notes:\n%s", notes)
	}
}

func TestRawHostileArchives(t *testing.T) {
	t.Parallel()
	huge := func() []byte {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		if err := w.WriteHeader(&tar.Header{Name: "huge", Typeflag: tar.TypeReg, Mode: 0o600, Size: 1 << 60, Format: tar.FormatPAX}); err != nil {
			t.Fatal(err)
		}
		buf.WriteString("a little")
		return buf.Bytes()
	}()
	nul := bytes.ReplaceAll(paxTar(t, "path", "nullXbyte"), []byte("nullXbyte"), []byte("null\x00byte"))
	sparse := paxTar(t, "GNU.sparse.major", "1")
	whole := tarOf(t, entry{name: "a", body: "content"})
	for name, object := range map[string][]byte{
		"huge size":        huge,
		"name with NUL":    nul,
		"sparse":           sparse,
		"empty object":     {},
		"zeros behind end": nil,
		"data behind end":  append(bytes.Clone(whole), 'x'),
		"tar behind end":   append(bytes.Clone(whole), whole...),
		"not a tar":        bytes.Repeat([]byte("not a tar "), 200),
		"checksum":         append([]byte("b"), whole[1:]...),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src, dest := backup(t), t.TempDir()
			src.objects["part_002.tar"] = object
			if object == nil {
				src.objects["part_002.tar"] = append(bytes.Clone(whole), make([]byte, 9<<10)...)
			}
			_, err := Run(t.Context(), plan(t, src, Request{Destination: dest}), src, config())
			if object == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var failed *ObjectError
			if !errors.As(err, &failed) || failed.Object != "part_002.tar" {
				t.Fatalf("error %v does not name the object", err)
			}
			expectUnfinished(t, dest, "part_002.tar")
		})
	}
}

// paxTar is a tar whose one entry has a record; the writer refuses some.
func paxTar(t testing.TB, key, value string) []byte {
	t.Helper()
	record := fmt.Sprintf(" %s=%s\n", key, value)
	n := len(record) + 2
	record = fmt.Sprintf("%d%s", n, record)
	if len(record) != n {
		t.Fatal("record length")
	}
	b := tarOf(t, entry{name: "x", kind: tar.TypeReg, body: record}, entry{name: "plain", body: "y"})
	b[156] = tar.TypeXHeader
	sum := 8 * int(' ')
	for i, c := range b[:512] {
		if i < 148 || i >= 156 {
			sum += int(c)
		}
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func TestTruncatedPartIsNoticed(t *testing.T) {
	t.Parallel()
	whole := tarOf(t, dir("/base"), entry{name: "/base/1", body: strings.Repeat("x", 1000)}, entry{name: "/base/2", body: strings.Repeat("\x00", 2048)})
	keepNone := Filter(func(p string) bool { return p == "backup_label" || p == "global/pg_control" })
	for _, keep := range []Filter{nil, keepNone} {
		rapid.Check(t, func(rt *rapid.T) {
			dest, err := os.MkdirTemp(t.TempDir(), "")
			if err != nil {
				rt.Fatal(err)
			}
			src := backup(t)
			n := rapid.IntRange(0, len(whole)-1).Draw(rt, "length")
			if rapid.Bool().Draw(rt, "at a block") {
				n = n / 512 * 512
			}
			src.objects["part_002.tar"] = whole[:n]
			cfg := config()
			cfg.DisableFsync = true
			cfg.Attempts = 1
			_, err = Run(t.Context(), plan(t, src, Request{Destination: dest, Keep: keep}), src, cfg)
			var failed *ObjectError
			if !errors.As(err, &failed) || failed.Object != "part_002.tar" {
				rt.Fatalf("cut to %d of %d bytes: %v", n, len(whole), err)
			}
		})
	}
}

func TestAlteredPartIsNoticed(t *testing.T) {
	t.Parallel()
	plain := tarOf(t, entry{name: "/base/1", body: strings.Repeat("abc", 5000)}, entry{name: "/base/2", body: "short"})
	for _, m := range []compress.Method{compress.LZ4, compress.Zstd} {
		name := "part_002.tar." + m.Extension()
		stored := compressed(t, m, plain)
		rapid.Check(t, func(rt *rapid.T) {
			dest, err := os.MkdirTemp(t.TempDir(), "")
			if err != nil {
				rt.Fatal(err)
			}
			bad := bytes.Clone(stored)
			if rapid.Bool().Draw(rt, "cut") {
				bad = bad[:rapid.IntRange(0, len(bad)-1).Draw(rt, "length")]
			} else {
				bad[rapid.IntRange(0, len(bad)-1).Draw(rt, "at")] ^= byte(rapid.IntRange(1, 255).Draw(rt, "bits"))
			}
			src := backup(t)
			src.objects[name] = bad
			cfg := config()
			cfg.DisableFsync = true
			cfg.Attempts = 1
			_, err = Run(t.Context(), plan(t, src, Request{Destination: dest}), src, cfg)
			if err == nil {
				// A bit without a meaning, then: the content must be right.
				got := tree(t, dest)
				if got["base/1"] != "0600 "+strings.Repeat("abc", 5000) || got["base/2"] != "0600 short" {
					rt.Fatal("restored something else")
				}
				return
			}
			var failed *ObjectError
			if !errors.As(err, &failed) || failed.Object != name {
				rt.Fatalf("error %v does not name the object", err)
			}
		})
	}
}

func TestBytesBehindTheCompressedData(t *testing.T) {
	t.Parallel()
	src, dest := backup(t), t.TempDir()
	src.objects["part_002.tar"] = tarOf(t, entry{name: "a", body: "x"})
	cfg := config()
	cfg.Decompress = func(name string, stored io.Reader) (io.ReadCloser, error) {
		if name != "part_002.tar" {
			return decompress(name, stored)
		}
		// Ends at its own end mark, one byte early.
		return io.NopCloser(io.LimitReader(stored, int64(len(src.objects[name])-1))), nil
	}
	src.objects["part_002.tar"] = append(src.objects["part_002.tar"], 0)
	_, err := Run(t.Context(), plan(t, src, Request{Destination: dest}), src, cfg)
	if !errors.Is(err, ErrArchive) {
		t.Errorf("error %v", err)
	}
}

func TestDuplicateAcrossParts(t *testing.T) {
	t.Parallel()
	src, dest := backup(t, entry{name: "/base/1", body: "x"}), t.TempDir()
	src.objects["part_002.tar"] = tarOf(t, entry{name: "base/1", body: "x"})
	// Not even another attempt gets the file of another part.
	src.open = func(_ context.Context, _ string, n int, stored []byte) (io.ReadCloser, error) {
		if n == 1 {
			stored = stored[:10]
		}
		return io.NopCloser(bytes.NewReader(stored)), nil
	}
	_, err := Run(t.Context(), plan(t, src, Request{Destination: dest}), src, config())
	if !errors.Is(err, ErrArchive) || !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "base/1") {
		t.Errorf("error %v", err)
	}
	expectUnfinished(t, dest, "twice")
}

func TestIncompleteBackups(t *testing.T) {
	t.Parallel()
	for missing, says := range map[string]string{"backup_label.tar": "backup_label", "pg_control.tar": "global/pg_control"} {
		t.Run(missing, func(t *testing.T) {
			t.Parallel()
			src, dest := backup(t, entry{name: "a", body: "x"}), t.TempDir()
			delete(src.objects, missing)
			_, err := Run(t.Context(), plan(t, src, Request{Destination: dest}), src, config())
			if !errors.Is(err, ErrIncomplete) || !strings.Contains(err.Error(), says) {
				t.Errorf("error %v", err)
			}
			expectUnfinished(t, dest, says)
		})
	}
	t.Run("control file in a part only", func(t *testing.T) {
		t.Parallel()
		src, dest := backup(t, entry{name: "/global/pg_control", body: "in the part"}), t.TempDir()
		delete(src.objects, "pg_control.tar")
		if _, err := Run(t.Context(), plan(t, src, Request{Destination: dest}), src, config()); err != nil {
			t.Fatal(err)
		}
		if got := tree(t, dest)["global/pg_control"]; got != "0600 in the part" {
			t.Errorf("global/pg_control is %q", got)
		}
	})
}

var errNetwork = errors.New("connection reset")

// failingAfter yields some bytes, then an error.
func failingAfter(b []byte, err error) io.ReadCloser {
	return io.NopCloser(io.MultiReader(bytes.NewReader(b), errReader{err}))
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

func TestRetry(t *testing.T) {
	t.Parallel()
	body := strings.Repeat("0123456789", 1000)
	entries := []entry{
		{name: "/a", body: body, mode: 0o400}, {name: "/link", kind: tar.TypeSymlink, link: "x"}, {name: "/b", body: body, mode: 0o444}, {name: "/c", body: "last"},
	}
	whole := tarOf(t, entries...)
	rapid.Check(t, func(rt *rapid.T) {
		dest, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		cuts := rapid.SliceOfN(rapid.IntRange(0, len(whole)), 0, 2).Draw(rt, "cuts")
		src := backup(t, entries...)
		src.open = func(_ context.Context, name string, n int, stored []byte) (io.ReadCloser, error) {
			if name == "part_001.tar" && n <= len(cuts) {
				return failingAfter(stored[:cuts[n-1]], errNetwork), nil
			}
			return io.NopCloser(bytes.NewReader(stored)), nil
		}
		var log bytes.Buffer
		var last Progress
		cfg := config()
		cfg.DisableFsync = true
		cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
		cfg.Progress = func(p Progress) { last = p }
		got, err := Run(t.Context(), plan(t, src, Request{Destination: dest}), src, cfg)
		if err != nil {
			rt.Fatal(err)
		}
		files := tree(t, dest)
		if files["a"] != "0400 "+body || files["b"] != "0444 "+body || files["c"] != "0600 last" {
			rt.Fatal("the content differs")
		}
		if got.Files != 6 || got.Bytes != int64(2*len(body)+len("last")+len("label")+len("control")) || len(got.Notes) != 1 {
			rt.Fatalf("%+v", got)
		}
		if last.Bytes != got.Bytes-int64(len("control")) {
			rt.Fatalf("last report %+v, restored %d", last, got.Bytes)
		}
		if n := strings.Count(log.String(), "connection reset"); n != len(cuts) {
			rt.Fatalf("%d failures logged, want %d", n, len(cuts))
		}
	})
}

func TestRetriesEnd(t *testing.T) {
	t.Parallel()
	setup := func() (*memory, Config) {
		src := backup(t, entry{name: "a", body: "x"})
		src.open = func(_ context.Context, name string, n int, stored []byte) (io.ReadCloser, error) {
			if name == "part_001.tar" {
				return nil, errNetwork
			}
			return io.NopCloser(bytes.NewReader(stored)), nil
		}
		return src, config()
	}
	for name, tt := range map[string]struct {
		change func(*Config)
		want   int
	}{
		"after the last attempt": {func(*Config) {}, 3},
		"at once":                {func(c *Config) { c.Retryable = func(err error) bool { return !errors.Is(err, errNetwork) } }, 1},
		"the decompressor fails": {func(c *Config) {
			c.Decompress = func(string, io.Reader) (io.ReadCloser, error) { return nil, errNetwork }
		}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src, cfg := setup()
			tt.change(&cfg)
			dest := t.TempDir()
			_, err := Run(t.Context(), plan(t, src, Request{Destination: dest}), src, cfg)
			var failed *ObjectError
			if !errors.As(err, &failed) || !errors.Is(err, errNetwork) {
				t.Fatalf("error %v", err)
			}
			if failed.Object != "part_001.tar" || failed.Attempts != tt.want || src.opened["part_001.tar"] != tt.want {
				t.Errorf("%+v, opened %d times; want %d attempts", failed, src.opened["part_001.tar"], tt.want)
			}
			expectUnfinished(t, dest, "connection reset")

			// A second restore goes on with it.
			src.open = nil
			if _, err := Run(t.Context(), plan(t, src, Request{Destination: dest}), src, config()); err != nil {
				t.Errorf("restored again: %v", err)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	errStop := errors.New("operator said stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	src, dest := backup(t), t.TempDir()
	var started sync.WaitGroup
	started.Add(4)
	for i := range 8 {
		src.objects[fmt.Sprintf("part_%03d.tar", 10+i)] = nil
	}
	delete(src.objects, "part_001.tar")
	var once sync.Map
	src.open = func(ctx context.Context, name string, _ int, _ []byte) (io.ReadCloser, error) {
		if _, again := once.LoadOrStore(name, true); !again {
			started.Done()
		}
		return blocking{ctx}, nil
	}
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		_, err = Run(ctx, plan(t, src, Request{Destination: dest, Concurrency: 4}), src, config())
	}()
	started.Wait()
	cancel(errStop)
	within(t, time.Minute, "Run after cancel", done)
	if !errors.Is(err, errStop) {
		t.Errorf("error %v", err)
	}
	if len(src.opened) != 4 {
		t.Errorf("%d objects opened, want 4", len(src.opened))
	}
	expectUnfinished(t, dest, "operator said stop")
}

func TestOneFailureStopsTheOthers(t *testing.T) {
	t.Parallel()
	src, dest := backup(t), t.TempDir()
	src.objects["part_002.tar"] = nil
	waiting := make(chan struct{})
	src.open = func(ctx context.Context, name string, _ int, stored []byte) (io.ReadCloser, error) {
		if name == "part_002.tar" {
			close(waiting)
			return blocking{ctx}, nil
		}
		<-waiting
		return failingAfter(nil, errNetwork), nil
	}
	cfg := config()
	cfg.Attempts = 1
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		_, err = Run(t.Context(), plan(t, src, Request{Destination: dest}), src, cfg)
	}()
	within(t, time.Minute, "Run after a failure", done)
	var failed *ObjectError
	if !errors.As(err, &failed) || failed.Object != "part_001.tar" || !errors.Is(err, errNetwork) {
		t.Errorf("error %v", err)
	}
	expectUnfinished(t, dest, "part_001.tar")
}

func TestNoDecompressor(t *testing.T) {
	t.Parallel()
	src, dest := backup(t), filepath.Join(t.TempDir(), "data")
	if _, err := Run(t.Context(), plan(t, src, Request{Destination: dest}), src, Config{}); err == nil {
		t.Error("ran")
	}
	if _, err := os.Lstat(dest); err == nil {
		t.Error("the destination was made")
	}
}

// Whatever the files, and however they are spread over parts and methods, the
// tree is the same.
func TestAnyTree(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		dest, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		want := map[string]string{
			".": "0700/", "backup_label": "0600 label", "tablespace_map": "0600 ", "pg_wal": "0700/",
			"global": "0700/", "global/pg_control": "0600 control",
		}
		parts := make([][]entry, rapid.IntRange(1, 5).Draw(rt, "parts"))
		put := func(e entry) {
			i := rapid.IntRange(0, len(parts)-1).Draw(rt, "part")
			parts[i] = append(parts[i], e)
		}
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-c]{1,3}/[0-9]{1,4}(_vm)?`), 0, 20, rapid.ID).Draw(rt, "names")
		for _, n := range names {
			size := rapid.OneOf(rapid.IntRange(0, 2000), rapid.SampledFrom([]int{511, 512, 513, bufferSize - 1, bufferSize, bufferSize + 1})).Draw(rt, "size")
			body := strings.Repeat(n+"|", size/(len(n)+1)+1)[:size]
			mode := rapid.SampledFrom([]int64{0o600, 0o640, 0o400}).Draw(rt, "mode")
			put(entry{name: "/" + n, body: body, mode: mode})
			want[n] = fmt.Sprintf("%04o %s", mode, body)
			d := filepath.Dir(n)
			if _, ok := want[d]; !ok {
				put(dir("/" + d))
				want[d] = "0700/"
			}
		}
		src := backup(t)
		delete(src.objects, "part_001.tar")
		for i, entries := range parts {
			m := rapid.SampledFrom([]compress.Method{compress.LZ4, compress.Zstd, compress.None}).Draw(rt, "method")
			name := fmt.Sprintf("part_%03d.tar", i+1)
			if ext := m.Extension(); ext != "" {
				name += "." + ext
			}
			src.objects[name] = compressed(t, m, tarOf(t, entries...))
		}
		cfg := config()
		cfg.DisableFsync = true
		if _, err := Run(t.Context(), plan(t, src, Request{Destination: dest, Concurrency: rapid.IntRange(1, 4).Draw(rt, "concurrency")}), src, cfg); err != nil {
			rt.Fatal(err)
		}
		got := tree(t, dest)
		if !maps.Equal(got, want) {
			compareTrees(t, got, want)
			rt.Fatal("the trees differ")
		}
	})
}

func FuzzArchive(f *testing.F) {
	f.Add(tarOf(f, dir("/"), entry{name: "/base/1", body: "x"}, entry{name: "link", kind: tar.TypeSymlink, link: "/etc"}))
	f.Add(tarOf(f, entry{name: "../x", body: "x"}))
	f.Add(tarOf(f, entry{name: "pg_tblspc/5/../../../x", body: "x"}))
	f.Fuzz(func(t *testing.T, object []byte) {
		top := t.TempDir()
		dest := filepath.Join(top, "in", "data")
		src := backup(t)
		src.objects["part_001.tar"] = object
		cfg := config()
		cfg.Attempts = 1
		cfg.DisableFsync = true
		_, err := Run(t.Context(), plan(t, src, Request{Destination: dest}), src, cfg)
		for _, d := range []string{top, filepath.Join(top, "in")} {
			names, readErr := os.ReadDir(d)
			if readErr != nil || len(names) != 1 {
				t.Fatalf("%s holds %v, %v", d, names, readErr)
			}
		}
		if err != nil {
			expectUnfinished(t, dest, "part_001.tar")
		}
	})
}

func BenchmarkRestore(b *testing.B) {
	for name, shape := range map[string]struct{ files, size int }{"small files": {5000, 8192}, "large files": {8, 4 << 20}} {
		b.Run(name, func(b *testing.B) {
			src := backup(b)
			body := strings.Repeat("0123456789abcde\n", shape.size/16)
			const parts = 4
			for i := range parts {
				var entries []entry
				for j := range shape.files / parts {
					entries = append(entries, entry{name: fmt.Sprintf("/base/%d/%d", i, j), body: body})
				}
				src.objects[fmt.Sprintf("part_%03d.tar", i+1)] = tarOf(b, entries...)
			}
			cfg := config()
			cfg.DisableFsync = true
			b.SetBytes(int64(shape.files * shape.size))
			b.ReportAllocs()
			for b.Loop() {
				// Trees are not removed in between: ext4 takes its time to
				// make files where others were just deleted.
				p := plan(b, src, Request{Destination: b.TempDir()})
				if _, err := Run(b.Context(), p, src, cfg); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
