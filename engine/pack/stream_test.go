package pack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/walherd/walherd/engine/cluster"
	"golang.org/x/time/rate"
	"pgregory.net/rapid"
)

// untar reads a tar with the standard library alone.
func untar(t testing.TB, b []byte) (names, contents []string) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return names, contents
		}
		if err != nil {
			t.Fatal(err)
		}
		c, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		names, contents = append(names, h.Name), append(contents, string(c))
	}
}

// makeTree writes files (name to content) and lists the directory.
func makeTree(t testing.TB, files map[string]string) *cluster.Listing {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := cluster.Scan(t.Context(), root, cluster.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func wholePart(t testing.TB, l *cluster.Listing) Part {
	t.Helper()
	parts := Regular(RegularOptions{Threshold: 1 << 60})(Items(l.Entries))
	if len(parts) != 1 {
		t.Fatalf("%d parts", len(parts))
	}
	return parts[0]
}

func emit(t testing.TB, l *cluster.Listing, opt StreamOptions) ([]byte, Report) {
	t.Helper()
	s := NewStream(l.Entries, wholePart(t, l), NewFiles(l.Root), opt)
	b, err := io.ReadAll(s.Reader(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r := s.Report()
	if r.TarBytes != int64(len(b)) {
		t.Errorf("reports %d bytes of %d", r.TarBytes, len(b))
	}
	return b, r
}

// Edges of a block and of a chunk.
var edges = []int{0, 1, 511, 512, 513, 1023, 1024, 8192, 65535, 65536, 65537, 512<<10 - 512, 512 << 10, 512<<10 + 1, 2 << 20}

func edgeTree(t testing.TB) (*cluster.Listing, map[string]string) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	files := map[string]string{}
	for _, n := range edges {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		files[fmt.Sprintf("/base/5/%07d", n)] = string(b)
	}
	return makeTree(t, files), files
}

func TestStreamContents(t *testing.T) {
	t.Parallel()
	l, files := edgeTree(t)
	b, report := emit(t, l, StreamOptions{})
	names, contents := untar(t, b)
	if len(names) != len(l.Entries) || report.Entries != len(names) {
		t.Fatalf("%d entries of %d, %d reported", len(names), len(l.Entries), report.Entries)
	}
	var sum int64
	for i, name := range names {
		if name != l.Entries[i].Name || contents[i] != files[name] {
			t.Errorf("entry %d is %s with %d bytes, want %s with %d", i, name, len(contents[i]), l.Entries[i].Name, len(files[name]))
		}
		sum += int64(len(contents[i]))
	}
	if report.EntryBytes != sum || len(report.Missing)+len(report.Skipped) > 0 {
		t.Errorf("report %+v, want %d entry bytes", report, sum)
	}
	// Exactly two zero blocks at the end, no record padding.
	var want int64 = trailerSize
	for i := range l.Entries {
		want += blockSize + padded(l.Entries[i].Size)
	}
	if int64(len(b)) != want || !bytes.Equal(b[len(b)-trailerSize:], make([]byte, trailerSize)) {
		t.Errorf("%d bytes, want %d", len(b), want)
	}
}

// Fill returns full buffers until the end, and the size of the buffers does
// not show in the tar; nor does it show that it is another attempt.
func TestStreamFillsBuffers(t *testing.T) {
	t.Parallel()
	l, _ := edgeTree(t)
	want, _ := emit(t, l, StreamOptions{})
	for _, size := range []int{1 << 9, 1000, 4096, 512 << 10, 512<<10 + 1, len(want), len(want) + 1} {
		s := NewStream(l.Entries, wholePart(t, l), NewFiles(l.Root), StreamOptions{})
		var got []byte
		for {
			buf := bytes.Repeat([]byte{0xAA}, size)
			n, err := s.Fill(t.Context(), buf)
			got = append(got, buf[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil || n != size {
				t.Fatalf("buffer of %d: %d bytes, %v", size, n, err)
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("buffers of %d give another tar", size)
		}
		if n, err := s.Fill(t.Context(), make([]byte, 10)); n != 0 || err != io.EOF {
			t.Errorf("behind the end: %d, %v", n, err)
		}
	}
	s := NewStream(l.Entries, wholePart(t, l), NewFiles(l.Root), StreamOptions{})
	if err := iotest.TestReader(s.Reader(t.Context()), want); err != nil {
		t.Error(err)
	}
}

func TestStreamOfChangedFiles(t *testing.T) {
	t.Parallel()
	l := makeTree(t, map[string]string{"/a": "aaaa", "/grown": "abc", "/shrunk": strings.Repeat("x", 3000), "/emptied": "yyy", "/gone": "z", "/dir/gone": "z", "/zz": "end"})
	for name, content := range map[string]string{"grown": "abcdef", "shrunk": "xx", "emptied": ""} {
		if err := os.WriteFile(filepath.Join(l.Root, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Remove(filepath.Join(l.Root, "gone")), os.RemoveAll(filepath.Join(l.Root, "dir"))); err != nil {
		t.Fatal(err)
	}
	// The parent of /dir/gone is a file by now.
	if err := os.WriteFile(filepath.Join(l.Root, "dir"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b, report := emit(t, l, StreamOptions{})
	names, contents := untar(t, b)
	if want := []string{"/", "/a", "/dir", "/emptied", "/grown", "/shrunk", "/zz"}; !slices.Equal(names, want) {
		t.Errorf("names %q, want %q", names, want)
	}
	if want := []string{"", "aaaa", "", "\x00\x00\x00", "abc", "xx" + strings.Repeat("\x00", 2998), "end"}; !slices.Equal(contents, want) {
		t.Errorf("contents %q", contents)
	}
	var missing []string
	for _, i := range report.Missing {
		missing = append(missing, l.Entries[i].Name)
	}
	if !slices.Equal(missing, []string{"/dir/gone", "/gone"}) {
		t.Errorf("missing %q", missing)
	}
}

// What was a file must not be followed elsewhere, nor block for ever.
func TestStreamOfReplacedFiles(t *testing.T) {
	t.Parallel()
	for name, replace := range map[string]func(path string) error{
		"link":      func(p string) error { return os.Symlink("/etc/hostname", p) },
		"directory": func(p string) error { return os.Mkdir(p, 0o700) },
	} {
		l := makeTree(t, map[string]string{"/file": "content"})
		path := filepath.Join(l.Root, "file")
		if err := errors.Join(os.Remove(path), replace(path)); err != nil {
			t.Fatal(err)
		}
		s := NewStream(l.Entries, wholePart(t, l), NewFiles(l.Root), StreamOptions{})
		_, err := io.ReadAll(s.Reader(t.Context()))
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		if _, again := s.Fill(t.Context(), make([]byte, 1)); !errors.Is(again, err) {
			t.Errorf("%s: after %v comes %v", name, err, again)
		}
	}
	l := makeTree(t, map[string]string{"/file": "content"})
	path := filepath.Join(l.Root, "file")
	if err := errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	if b, _ := emit(t, l, StreamOptions{}); len(b) == 0 {
		t.Error("nothing")
	}
}

// openerFunc adapts a function; closed counts the bodies that were closed.
type openerFunc struct {
	open           func(i int32, e *cluster.Entry) (Body, error)
	opened, closed int
}

func (o *openerFunc) Open(i int32, e *cluster.Entry) (Body, error) {
	b, err := o.open(i, e)
	if err == nil {
		o.opened++
		b = &countedBody{Body: b, o: o}
	}
	return b, err
}

type countedBody struct {
	Body
	o *openerFunc
}

func (c *countedBody) Close() error { c.o.closed++; return c.Body.Close() }

type memory struct {
	io.Reader
	size int64
	err  error
}

func (m memory) Size() int64  { return m.size }
func (m memory) Close() error { return m.err }

func TestStreamOfAnotherOpener(t *testing.T) {
	t.Parallel()
	entries := []cluster.Entry{{Name: "/inc", Size: 100000, Mode: 0o600}, {Name: "/same", Size: 5}, {Name: "/gone", Size: 5}, {Name: "/slow", Size: 9}}
	part := Part{Number: 1, Entries: []int32{0, 1, 2, 3}}
	o := &openerFunc{open: func(i int32, e *cluster.Entry) (Body, error) {
		switch e.Name {
		case "/inc":
			return memory{strings.NewReader("increment"), 9, nil}, nil
		case "/same":
			return nil, fmt.Errorf("compare: %w", ErrSkip)
		case "/gone":
			return nil, fs.ErrNotExist
		}
		return memory{iotest.DataErrReader(iotest.OneByteReader(strings.NewReader("one by one"))), 10, nil}, nil
	}}
	s := NewStream(entries, part, o, StreamOptions{Owners: postgresOwner})
	b, err := io.ReadAll(s.Reader(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	names, contents := untar(t, b)
	if !slices.Equal(names, []string{"/inc", "/slow"}) || !slices.Equal(contents, []string{"increment", "one by one"}) {
		t.Errorf("%q, %q", names, contents)
	}
	r := s.Report()
	if !slices.Equal(r.Skipped, []int32{1}) || !slices.Equal(r.Missing, []int32{2}) || r.EntryBytes != 19 || r.Entries != 2 {
		t.Errorf("%+v", r)
	}
	if o.opened != 2 || o.closed != 2 {
		t.Errorf("%d bodies opened, %d closed", o.opened, o.closed)
	}
}

func TestStreamErrors(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		body Body
		open error
		want error
	}{
		"open":  {nil, broken, broken},
		"read":  {memory{iotest.ErrReader(broken), 5, nil}, nil, broken},
		"short": {memory{strings.NewReader("ab"), 5, nil}, nil, io.ErrUnexpectedEOF},
		"close": {memory{strings.NewReader("abcde"), 5, broken}, nil, broken},
	} {
		o := &openerFunc{open: func(int32, *cluster.Entry) (Body, error) { return c.body, c.open }}
		s := NewStream([]cluster.Entry{{Name: "/f", Size: 5}}, Part{Entries: []int32{0}}, o, StreamOptions{})
		_, err := io.ReadAll(s.Reader(t.Context()))
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), "/f") {
			t.Errorf("%s: %v", name, err)
		}
		if o.opened != o.closed {
			t.Errorf("%s: %d bodies opened, %d closed", name, o.opened, o.closed)
		}
	}
}

func TestStreamCancelAndClose(t *testing.T) {
	t.Parallel()
	l := makeTree(t, map[string]string{"/f": strings.Repeat("x", 5000)})
	o := &openerFunc{open: NewFiles(l.Root).Open}
	s := NewStream(l.Entries, wholePart(t, l), o, StreamOptions{})
	if _, err := s.Fill(t.Context(), make([]byte, 2000)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil || o.opened != 1 || o.closed != 1 {
		t.Errorf("%d opened, %d closed, %v", o.opened, o.closed, err)
	}
	if _, err := s.Fill(t.Context(), make([]byte, 10)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	s = NewStream(l.Entries, wholePart(t, l), NewFiles(l.Root), StreamOptions{})
	if _, err := s.Fill(ctx, make([]byte, 10)); !errors.Is(err, stop) {
		t.Errorf("canceled: %v", err)
	}
}

type countingLimiter struct {
	total, most int
	err         error
}

func (c *countingLimiter) WaitN(_ context.Context, n int) error {
	c.total += n
	c.most = max(c.most, n)
	return c.err
}

func TestStreamLimiter(t *testing.T) {
	t.Parallel()
	l, _ := edgeTree(t)
	want, report := emit(t, l, StreamOptions{})
	c := &countingLimiter{}
	got, _ := emit(t, l, StreamOptions{Limiter: c})
	if !bytes.Equal(got, want) || int64(c.total) != report.EntryBytes || c.most > LimiterBurst {
		t.Errorf("waited for %d of %d bytes, %d at once", c.total, report.EntryBytes, c.most)
	}
	if got, _ := emit(t, l, StreamOptions{Limiter: rate.NewLimiter(rate.Inf, LimiterBurst)}); !bytes.Equal(got, want) {
		t.Error("a rate.Limiter changes the tar")
	}
	stop := errors.New("stop")
	s := NewStream(l.Entries, wholePart(t, l), NewFiles(l.Root), StreamOptions{Limiter: &countingLimiter{err: stop}})
	if _, err := io.ReadAll(s.Reader(t.Context())); !errors.Is(err, stop) {
		t.Errorf("limiter's error: %v", err)
	}
}

// Whatever the sizes, then and now: the tar reads back whole, every body has
// the walk's length and begins with what the file has now.
func TestStreamProperty(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		var entries []cluster.Entry
		now := map[string]int{}
		size := rapid.OneOf(rapid.SampledFrom(edges[:8]), rapid.IntRange(0, 5000))
		n := rapid.IntRange(0, 6).Draw(rt, "files")
		for i := range n {
			e := cluster.Entry{Name: fmt.Sprintf("/%d", i), Size: int64(size.Draw(rt, "then")), Mode: 0o600, MTime: time.Now().UnixNano()}
			entries = append(entries, e)
			now[e.Name] = size.Draw(rt, "now")
			if err := os.WriteFile(root+e.Name, bytes.Repeat([]byte{byte('a' + i)}, now[e.Name]), 0o600); err != nil {
				rt.Fatal(err)
			}
		}
		part := Part{Number: 1}
		for i := range entries {
			part.Entries = append(part.Entries, int32(i))
		}
		s := NewStream(entries, part, NewFiles(root), StreamOptions{})
		buf := make([]byte, rapid.IntRange(1, 4000).Draw(rt, "buffer"))
		var out []byte
		for {
			n, err := s.Fill(context.Background(), buf)
			out = append(out, buf[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				rt.Fatal(err)
			}
		}
		r := NewReader(bytes.NewReader(out), ReaderOptions{})
		for i := range entries {
			h, err := r.Next()
			if err != nil || h.Raw != entries[i].Name || h.Size != entries[i].Size {
				rt.Fatalf("entry %d: %+v, %v", i, h, err)
			}
			got, err := io.ReadAll(r)
			if err != nil {
				rt.Fatal(err)
			}
			want := bytes.Repeat([]byte{byte('a' + i)}, min(now[h.Raw], int(h.Size)))
			want = append(want, make([]byte, int(h.Size)-len(want))...)
			if !bytes.Equal(got, want) {
				rt.Fatalf("entry %d: %q, want %q", i, got, want)
			}
		}
		if _, err := r.Next(); err != io.EOF {
			rt.Fatal(err)
		}
	})
}
