package pack

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

type member struct {
	tar.Header
	content string
}

func regular(name, content string) member {
	return member{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600}, content}
}

func archive(t testing.TB, members ...member) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, m := range members {
		m.Size = int64(len(m.content))
		if err := w.WriteHeader(&m.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// retype changes the type of a tar's first entry.
func retype(b []byte, flag byte) []byte {
	b[156] = flag
	checksum(b[:blockSize])
	return b
}

// checksum makes a header's checksum right.
func checksum(h []byte) {
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

type got struct {
	Header
	content string
}

func readAll(b []byte, opt ReaderOptions) ([]got, error) {
	return readFrom(bytes.NewReader(b), opt)
}

func readFrom(in io.Reader, opt ReaderOptions) ([]got, error) {
	r := NewReader(in, opt)
	var out []got
	for {
		h, err := r.Next()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		c, err := io.ReadAll(r)
		if err != nil {
			return out, err
		}
		out = append(out, got{h, string(c)})
	}
}

func TestReaderNames(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"/": ".", "./": ".", "/base": "base", "base/": "base", "./pg_wal/archive_status/": "pg_wal/archive_status",
		"/pg_tblspc/1/PG_15/2": "pg_tblspc/1/PG_15/2", "a//b": "a/b", "a/./b": "a/b", "/./a": "a", "..a/b..": "..a/b..", "...": "...",
	} {
		m := member{tar.Header{Typeflag: tar.TypeDir, Name: raw, Mode: 0o4750}, ""}
		all, err := readAll(archive(t, m), ReaderOptions{})
		if err != nil || len(all) != 1 || all[0].Name != want || all[0].Raw != raw || !all[0].IsDir() || all[0].Mode.Perm() != 0o750 {
			t.Errorf("%q: %+v, %v, want %q", raw, all, err, want)
		}
	}
	for _, raw := range []string{"..", "../x", "/../x", "a/../b", "a/..", "//etc/passwd", "./../x", strings.Repeat("a/", 2100) + "b"} {
		_, err := readAll(archive(t, regular("ok", "1"), regular(raw, "x")), ReaderOptions{})
		if !errors.Is(err, ErrName) || !strings.Contains(err.Error(), raw[:2]) {
			t.Errorf("%.40q: %v", raw, err)
		}
	}
	for _, raw := range []string{"/", "."} {
		if _, err := cleanName(raw); err != nil {
			t.Errorf("%q: %v", raw, err)
		}
		dir := archive(t, member{tar.Header{Typeflag: tar.TypeDir, Name: raw}, ""})
		if _, err := readAll(retype(dir, tar.TypeReg), ReaderOptions{}); !errors.Is(err, ErrName) {
			t.Errorf("a file named %q: %v", raw, err)
		}
	}
	for _, raw := range []string{"", "a\x00b"} {
		if _, err := cleanName(raw); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", raw, err)
		}
	}
}

func TestReaderTypes(t *testing.T) {
	t.Parallel()
	for flag, want := range map[byte]error{
		tar.TypeSymlink: ErrType, tar.TypeLink: ErrType, tar.TypeCont: ErrType,
		tar.TypeFifo: nil, tar.TypeChar: nil, tar.TypeBlock: nil, 'Z': nil,
	} {
		b := archive(t, regular("a", "1"), member{tar.Header{Typeflag: flag, Name: "odd", Linkname: "/etc/passwd"}, ""}, regular("b", "2"))
		all, err := readAll(b, ReaderOptions{})
		if !errors.Is(err, want) || err != nil && !strings.Contains(err.Error(), "odd") {
			t.Errorf("type %q: %v", flag, err)
		}
		if want == nil && len(all) != 2 {
			t.Errorf("type %q: %+v", flag, all)
		}
	}
	// The caller may decide about links itself.
	b := archive(t, member{tar.Header{Typeflag: tar.TypeSymlink, Name: "/pg_tblspc/1", Linkname: "/srv"}, ""}, regular("b", "2"))
	var asked []Foreign
	all, err := readAll(b, ReaderOptions{Foreign: func(f Foreign) error { asked = append(asked, f); return nil }})
	if err != nil || len(all) != 1 || !slices.Equal(asked, []Foreign{{"pg_tblspc/1", '2', "/srv"}}) {
		t.Errorf("%+v, asked %+v, %v", all, asked, err)
	}
	stop := errors.New("stop")
	if _, err := readAll(b, ReaderOptions{Foreign: func(Foreign) error { return stop }}); !errors.Is(err, stop) {
		t.Errorf("caller's refusal: %v", err)
	}
	// The standard library writes no sparse files: give one a record's name.
	sparse := regular("s", "0\n")
	sparse.PAXRecords = map[string]string{"WALHERD.sparsema": "1"}
	b = bytes.Replace(archive(t, sparse), []byte("WALHERD.sparsema=1"), []byte("GNU.sparse.major=1"), 1)
	if _, err := readAll(b, ReaderOptions{}); !errors.Is(err, ErrType) {
		t.Errorf("a sparse file: %v", err)
	}
}

func TestReaderBounds(t *testing.T) {
	t.Parallel()
	b := archive(t, regular("a", "12345"), regular("b", "12345"))
	for opt, want := range map[[2]int64]error{{5, 10}: nil, {0, 0}: nil, {4, 0}: ErrTooBig, {0, 9}: ErrTooBig, {0, 4}: ErrTooBig} {
		if _, err := readAll(b, ReaderOptions{MaxEntry: opt[0], MaxTotal: opt[1]}); !errors.Is(err, want) {
			t.Errorf("bounds %v: %v", opt, err)
		}
	}
}

// A tar cut anywhere is cut short, also at an entry's border and behind a
// file that ends in zeros.
func TestReaderTruncated(t *testing.T) {
	t.Parallel()
	b := archive(t, regular("/a", "12345"), regular("/"+strings.Repeat("n", 300), "pax"), member{tar.Header{Typeflag: tar.TypeDir, Name: "/d/"}, ""},
		regular("/zeros", strings.Repeat("\x00", 2048)))
	if _, err := readAll(b, ReaderOptions{}); err != nil {
		t.Fatal(err)
	}
	for n := range len(b) {
		if _, err := readAll(b[:n], ReaderOptions{}); !errors.Is(err, ErrTruncated) {
			t.Fatalf("cut at %d of %d: %v", n, len(b), err)
		}
	}
}

// The server's own tars of tablespaces have no end marker; a cut inside an
// entry is found in them too.
func TestReaderStreamedWithoutEnd(t *testing.T) {
	t.Parallel()
	b := archive(t, regular("pg_tblspc/1/a", "12345"), regular("pg_tblspc/1/b", "67890"))
	b = b[:len(b)-trailerSize]
	if all, err := readAll(b, ReaderOptions{}); err != nil || len(all) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	for n := range len(b) {
		if n == len(b)/2 {
			continue // between the entries
		}
		if _, err := readAll(b[:n], ReaderOptions{}); !errors.Is(err, ErrTruncated) {
			t.Fatalf("cut at %d of %d: %v", n, len(b), err)
		}
	}
}

func TestReaderTrailing(t *testing.T) {
	t.Parallel()
	b := archive(t, regular("a", "12345"))
	for _, n := range []int{1, 511, 512, 10240, 100_000} {
		padded := append(bytes.Clone(b), make([]byte, n)...)
		if _, err := readAll(padded, ReaderOptions{}); err != nil {
			t.Errorf("%d zeros: %v", n, err)
		}
		padded[len(padded)-1] = 1
		if _, err := readAll(padded, ReaderOptions{}); !errors.Is(err, ErrTrailing) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if _, err := readAll(append(bytes.Clone(b), b...), ReaderOptions{}); !errors.Is(err, ErrTrailing) {
		t.Errorf("two tars: %v", err)
	}
}

func TestReaderDamage(t *testing.T) {
	t.Parallel()
	b := archive(t, regular("a", "12345"))
	for i := range 500 {
		if i == 155 {
			continue // the blank behind the checksum, which nothing covers
		}
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if all, err := readAll(bad, ReaderOptions{}); err == nil {
			t.Fatalf("byte %d flipped: %+v", i, all)
		}
	}
	if _, err := readAll(bytes.Repeat([]byte("no tar "), 1000), ReaderOptions{}); !errors.Is(err, ErrFormat) {
		t.Errorf("garbage: %v", err)
	}
	broken := errors.New("broken")
	for _, n := range []int64{0, 100, 512, 600, 1024, 1536, int64(len(b))} {
		in := io.MultiReader(io.LimitReader(bytes.NewReader(b), n), iotest.ErrReader(broken))
		if _, err := readFrom(in, ReaderOptions{}); !errors.Is(err, broken) || errors.Is(err, ErrTruncated) {
			t.Errorf("source breaks after %d: %v", n, err)
		}
	}
	r := NewReader(bytes.NewReader(b[:300]), ReaderOptions{})
	_, first := r.Next()
	if _, again := r.Next(); again != first || first == nil {
		t.Errorf("%v, then %v", first, again)
	}
}

func TestReaderReadsTheReferences(t *testing.T) {
	t.Parallel()
	label, err := os.ReadFile("testdata/backup_label.tar")
	if err != nil {
		t.Fatal(err)
	}
	all, err := readAll(label, ReaderOptions{})
	if err != nil || len(all) != 2 || all[0].Name != "backup_label" || all[1].Name != "tablespace_map" {
		t.Errorf("%+v, %v", all, err)
	}
	all, err = readAll(gunzip(t, "testdata/pg_control.tar.gz"), ReaderOptions{})
	if err != nil || len(all) != 1 || all[0].Name != "global/pg_control" || all[0].Raw != "/global/pg_control" || all[0].Size != 8192 {
		t.Errorf("%+v, %v", all, err)
	}
}

// Whatever the bytes: names stay inside, sizes hold, and what is accepted ends
// in an end marker if it is of a local backup.
func FuzzReader(f *testing.F) {
	f.Add(archive(f, regular("/a", "12345"), regular("../x", "y")))
	f.Add(archive(f, regular(strings.Repeat("n", 300), "pax"), member{tar.Header{Typeflag: tar.TypeDir, Name: "./d/"}, ""}))
	f.Add(archive(f, member{tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/etc"}, ""}))
	f.Add(archive(f, member{tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("g", 200), Format: tar.FormatGNU}, "gnu"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		// A hostile tar has right checksums; without this hardly an input
		// would get past the first header.
		b = bytes.Clone(b)
		for at := 0; at+blockSize <= len(b); at += blockSize {
			if h := b[at : at+blockSize]; bytes.HasPrefix(h[257:], []byte("ustar")) {
				checksum(h)
			}
		}
		all, err := readAll(b, ReaderOptions{MaxEntry: 1 << 20, MaxTotal: 1 << 22})
		for _, g := range all {
			if g.Name != path.Clean(g.Name) || path.IsAbs(g.Name) || g.Name == ".." || strings.HasPrefix(g.Name, "../") || strings.ContainsRune(g.Name, 0) {
				t.Fatalf("name %q", g.Name)
			}
			if int64(len(g.content)) != g.Size || g.IsDir() && g.Size != 0 {
				t.Fatalf("%q: %d bytes, header says %d", g.Name, len(g.content), g.Size)
			}
		}
		marked := len(b) >= trailerSize && len(bytes.TrimLeft(b[len(b)-trailerSize:], "\x00")) == 0
		// A tablespace of a BASE_BACKUP has no mark, and no name with a slash
		// in front; see finish.
		local := slices.ContainsFunc(all, func(g got) bool { return strings.HasPrefix(g.Raw, "/") })
		if err == nil && !marked && (local || len(b) == 0 || len(b)%blockSize != 0) {
			t.Fatal("accepted a tar without an end")
		}
	})
}
