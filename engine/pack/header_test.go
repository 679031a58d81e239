package pack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/cluster"
	"pgregory.net/rapid"
)

func gunzip(t testing.TB, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func postgresOwner(uint32, uint32) (string, string) { return "postgres", "postgres" }

// octal reads a header field without the code under test.
func octal(t testing.TB, b []byte) (v int64) {
	t.Helper()
	for _, c := range bytes.TrimRight(b, "\x00 ") {
		if c < '0' || c > '7' {
			t.Fatalf("%q is not octal", b)
		}
		v = v<<3 | int64(c-'0')
	}
	return v
}

// entryOf takes a ustar header apart.
func entryOf(t testing.TB, h []byte) cluster.Entry {
	t.Helper()
	e := cluster.Entry{
		Name: string(bytes.TrimRight(h[:100], "\x00")),
		Mode: fs.FileMode(octal(t, h[100:107])), UID: uint32(octal(t, h[108:115])), GID: uint32(octal(t, h[116:123])),
		Size: octal(t, h[124:135]), MTime: octal(t, h[136:147]) * int64(time.Second),
	}
	if h[156] == '5' {
		e.Mode |= fs.ModeDir
	}
	return e
}

// Every header of a backup that WAL-G wrote comes out byte by byte.
func TestHeadersAreTheReferences(t *testing.T) {
	t.Parallel()
	raw := gunzip(t, "testdata/reference_headers.gz")
	if len(raw) != 1299*blockSize {
		t.Fatalf("%d headers", len(raw)/blockSize)
	}
	h := newHeaders(postgresOwner)
	for want := raw; len(want) > 0; want = want[blockSize:] {
		e := entryOf(t, want[:blockSize])
		got, err := h.entry(&e, e.Size)
		if err != nil || !bytes.Equal(got, want[:blockSize]) {
			t.Fatalf("%s: %v\ngot  %q\nwant %q", e.Name, err, got, want[:blockSize])
		}
	}
}

func TestHeaderForms(t *testing.T) {
	t.Parallel()
	h := newHeaders(nil)
	render := func(e cluster.Entry) ([]byte, *tar.Header) {
		raw, err := h.entry(&e, e.Size)
		if err != nil {
			t.Fatal(err)
		}
		raw = bytes.Clone(raw)
		hdr, err := tar.NewReader(bytes.NewReader(raw)).Next()
		if err != nil {
			t.Fatal(err)
		}
		return raw, hdr
	}

	for ns, want := range map[int64]int64{0: 0, 499_999_999: 0, 500_000_000: 1, 1_940_000_000: 2, 1_700_000_000_123456789: 1_700_000_000} {
		if raw, _ := render(cluster.Entry{Name: "/a", MTime: ns}); octal(t, raw[136:147]) != want {
			t.Errorf("mtime of %d ns is %q", ns, raw[136:148])
		}
	}
	raw, _ := render(cluster.Entry{Name: "/a", Mode: fs.ModeSetuid | fs.ModeSticky | 0o755})
	if string(raw[100:108]) != "0000755\x00" {
		t.Errorf("mode %q", raw[100:108])
	}

	// A name that can be split stays within ustar.
	long := "/" + strings.Repeat("d", 90) + "/" + strings.Repeat("f", 90)
	if raw, hdr := render(cluster.Entry{Name: long}); len(raw) != blockSize || hdr.Name != long || hdr.Format != tar.FormatUSTAR {
		t.Errorf("%d bytes, %v", len(raw), hdr)
	}
	for name, c := range map[string]struct {
		entry cluster.Entry
		keys  []string
	}{
		"long":     {cluster.Entry{Name: "/" + strings.Repeat("n", 292)}, []string{"path"}},
		"Cyrillic": {cluster.Entry{Name: "/данные"}, []string{"path"}},
		"8 GiB":    {cluster.Entry{Name: "/big", Size: 8 << 30}, []string{"size"}},
		"big uid":  {cluster.Entry{Name: "/u", UID: 1 << 31}, []string{"uid"}},
		"old":      {cluster.Entry{Name: "/old", MTime: -int64(time.Hour)}, []string{"mtime"}},
	} {
		raw, hdr := render(c.entry)
		if len(raw) != 3*blockSize || raw[156] != 'x' || hdr.Format != tar.FormatPAX {
			t.Errorf("%s: %d bytes, type %q, %v", name, len(raw), raw[156], hdr.Format)
		}
		if len(hdr.PAXRecords) != len(c.keys) {
			t.Errorf("%s: records %v", name, hdr.PAXRecords)
		}
		for _, k := range c.keys {
			if _, ok := hdr.PAXRecords[k]; !ok {
				t.Errorf("%s: records %v, want %s", name, hdr.PAXRecords, k)
			}
		}
		if hdr.Name != c.entry.Name || hdr.Size != c.entry.Size || hdr.Uid != int(c.entry.UID) {
			t.Errorf("%s: %+v", name, hdr)
		}
	}
}

// Rendering header after header with one Writer is the same as a new Writer
// for each.
func TestHeadersDoNotDependOnOneAnother(t *testing.T) {
	t.Parallel()
	entry := rapid.Custom(func(t *rapid.T) cluster.Entry {
		e := cluster.Entry{
			Name: "/" + rapid.StringMatching(`[a-zж/]{0,300}`).Draw(t, "name"),
			Size: rapid.Int64Range(0, 16<<30).Draw(t, "size"), MTime: rapid.Int64().Draw(t, "mtime"),
			UID: rapid.Uint32().Draw(t, "uid"), GID: rapid.Uint32().Draw(t, "gid"),
			Mode: fs.FileMode(rapid.Uint32Range(0, 0o777).Draw(t, "mode")),
		}
		if rapid.Bool().Draw(t, "dir") {
			e.Mode |= fs.ModeDir
			e.Size = 0
		}
		return e
	})
	rapid.Check(t, func(t *rapid.T) {
		shared := newHeaders(postgresOwner)
		for _, e := range rapid.SliceOfN(entry, 1, 8).Draw(t, "entries") {
			got, err := shared.entry(&e, e.Size)
			want, err2 := newHeaders(postgresOwner).entry(&e, e.Size)
			if (err == nil) != (err2 == nil) || !bytes.Equal(got, want) {
				t.Fatalf("%+v: %v, %v\ngot  %q\nwant %q", e, err, err2, got, want)
			}
			if len(got)%blockSize != 0 {
				t.Fatalf("%+v: %d bytes", e, len(got))
			}
		}
	})
}

func TestSystemOwners(t *testing.T) {
	t.Parallel()
	names := SystemOwners()
	u, g := names(0, 0)
	if u != "root" || g == "" {
		t.Errorf("0 is %q, %q", u, g)
	}
	if u, g := names(4_000_000_001, 4_000_000_001); u != "" || g != "" {
		t.Errorf("an unknown id is %q, %q", u, g)
	}
	if again, _ := names(0, 0); again != u && again != "root" {
		t.Errorf("second look-up gives %q", again)
	}
}

func TestLabelTarIsTheReferences(t *testing.T) {
	t.Parallel()
	want, err := os.ReadFile("testdata/backup_label.tar")
	if err != nil {
		t.Fatal(err)
	}
	label := want[blockSize : blockSize+octal(t, want[124:135])]
	got, err := LabelTar(label, nil)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v: got %q", err, got)
	}
	got, err = LabelTar(label, []byte("16384 /srv/ts\n"))
	if err != nil {
		t.Fatal(err)
	}
	if names, contents := untar(t, got); strings.Join(names, " ") != "backup_label tablespace_map" || contents[1] != "16384 /srv/ts\n" {
		t.Errorf("%q, %q", names, contents)
	}
}

func TestControlTarIsTheReferences(t *testing.T) {
	t.Parallel()
	want := gunzip(t, "testdata/pg_control.tar.gz")
	e := entryOf(t, want[:blockSize])
	got, err := ControlTar(e, want[blockSize:blockSize+e.Size], postgresOwner)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v: got %q", err, got)
	}
	e.Name = "/other"
	if _, err := ControlTar(e, nil, nil); err == nil {
		t.Error("another file was taken for the control file")
	}
}
