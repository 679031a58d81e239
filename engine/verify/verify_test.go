package verify

import (
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"testing/iotest"

	"github.com/walherd/walherd/engine/cluster"
	"github.com/walherd/walherd/engine/delta"
	"github.com/walherd/walherd/engine/pack"
	"github.com/walherd/walherd/engine/page"
	"github.com/walherd/walherd/engine/pg"
	"pgregory.net/rapid"
)

const (
	size  = page.DefaultSize
	start = pg.LSN(0x5000000)
)

// newPage makes a page of a relation with a right checksum.
func newPage(lsn pg.LSN, block uint32) []byte {
	p := make([]byte, size)
	le := binary.LittleEndian
	le.PutUint32(p, uint32(lsn>>32))
	le.PutUint32(p[4:], uint32(lsn))
	le.PutUint16(p[12:], 100)
	le.PutUint16(p[14:], 8000)
	le.PutUint16(p[16:], size)
	le.PutUint16(p[18:], size|4)
	for i := 8000; i < size; i++ {
		p[i] = byte(block) ^ byte(i)
	}
	le.PutUint16(p[8:], page.Checksum(p, block))
	return p
}

// kinds of pages, and what is to be found.
var kinds = []struct {
	name                 string
	make                 func(block uint32) []byte
	corrupt, implausible bool
}{
	{"good", func(b uint32) []byte { return newPage(start-100, b) }, false, false},
	{"new", func(uint32) []byte { return make([]byte, size) }, false, false},
	{"unlogged", func(b uint32) []byte { return newPage(0, b) }, false, false},
	{"newer than the start", func(b uint32) []byte { return alter(newPage(start+1, b), 8100) }, false, false},
	{"at the start", func(b uint32) []byte { return alter(newPage(start, b), 8100) }, false, false},
	{"without checksum", func(b uint32) []byte { p := newPage(start-100, b); p[8], p[9] = 0, 0; return p }, false, false},
	{"altered", func(b uint32) []byte { return alter(newPage(start-100, b), 8100) }, true, false},
	{"of another block", func(b uint32) []byte { return newPage(start-100, b+1) }, true, false},
	{"from far in the future", func(b uint32) []byte { return alter(newPage(start-100, b), 1) }, true, false},
	{"implausible", func(b uint32) []byte { p := newPage(start-100, b); p[13] = 0xff; return p }, false, true},
	{"emptied header", func(b uint32) []byte { p := newPage(start-100, b); clear(p[:24]); return p }, false, true},
}

type fataler interface {
	Helper()
	Fatal(args ...any)
}

func alter(p []byte, at int) []byte { p[at] ^= 0x40; return p }

// oneFile gives one body, and the file is found below root.
type oneFile struct {
	r    io.Reader
	size int64
	inc  []int32
}

func (o *oneFile) Open(i int32, _ *cluster.Entry) (pack.Body, error) {
	if o.inc != nil {
		o.inc = append(o.inc, i)
	}
	return o, nil
}
func (o *oneFile) Read(p []byte) (int, error) { return o.r.Read(p) }
func (o *oneFile) Size() int64                { return o.size }
func (o *oneFile) Close() error               { return nil }
func (o *oneFile) Incremented() []int32       { return o.inc }

func check(t fataler, root string, e cluster.Entry, inner pack.Opener, all bool) []pack.Damage {
	t.Helper()
	o, err := New(inner, Options{Root: root, Start: start, PageSize: size, All: all})
	if err != nil {
		t.Fatal(err)
	}
	b, err := o.Open(3, &e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, struct{ io.Reader }{b}); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return o.Damage()
}

func writeFile(t testing.TB, root, name string, content []byte) cluster.Entry {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(root+name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root+name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return cluster.Entry{Name: name, Size: int64(len(content))}
}

func TestEachKindOfPage(t *testing.T) {
	t.Parallel()
	for _, k := range kinds {
		for _, name := range []string{"/base/5/16384", "/base/5/16384.2", "/pg_tblspc/9/PG_15_202209061/5/77"} {
			root := t.TempDir()
			first := uint32(0)
			if filepath.Ext(name) == ".2" {
				first = 2 * page.PagesPerFile(size)
			}
			e := writeFile(t, root, name, k.make(first))
			var want []pack.Damage
			if k.corrupt {
				want = []pack.Damage{{Index: 3, Corrupt: 1, Blocks: []uint32{0}}}
			}
			if k.implausible {
				want = []pack.Damage{{Index: 3, Implausible: 1}}
			}
			if got := check(t, root, e, pack.NewFiles(root), false); !reflect.DeepEqual(got, want) {
				t.Errorf("%s in %s: found %+v", k.name, name, got)
			}
		}
	}
}

func TestWhatIsNotChecked(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	bad := alter(newPage(start-100, 0), 8100)
	for _, name := range []string{"/base/5/16384_fsm", "/base/5/t3_16384", "/base/5/pg_filenode.map", "/pg_xact/0000", "/PG_VERSION"} {
		if got := check(t, root, writeFile(t, root, name, bad), pack.NewFiles(root), false); got != nil {
			t.Errorf("%s: found %+v", name, got)
		}
	}
	e := writeFile(t, root, "/base/5/1", append(bad, 1))
	if got := check(t, root, e, pack.NewFiles(root), false); !reflect.DeepEqual(got, []pack.Damage{{Index: 3, Ragged: true}}) {
		t.Errorf("a ragged file: found %+v", got)
	}
}

// TestTornPage: what the file holds when it is read again counts.
func TestTornPage(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	e := writeFile(t, root, "/base/5/1", newPage(start-100, 0))
	torn := alter(newPage(start-100, 0), 8100)
	if got := check(t, root, e, &oneFile{r: bytesReader(torn), size: size}, false); got != nil {
		t.Errorf("found %+v", got)
	}
	for _, change := range []func() error{
		func() error { return os.Truncate(root+e.Name, 0) },
		func() error { return os.Remove(root + e.Name) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if got := check(t, root, e, &oneFile{r: bytesReader(torn), size: size}, false); got != nil {
			t.Errorf("found %+v", got)
		}
	}
}

func bytesReader(b []byte) io.Reader { return &sliceReader{b} }

type sliceReader struct{ b []byte }

func (r *sliceReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}

func TestPageSizeIsChecked(t *testing.T) {
	t.Parallel()
	if _, err := New(nil, Options{PageSize: 1000}); err == nil {
		t.Error("a page size of 1000 is taken")
	}
}

// TestAnyFile: files and increments of any pages, read in any pieces.
func TestAnyFile(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		var content []byte
		var corrupt []uint32
		implausible := 0
		bits := rapid.SliceOfN(rapid.Bool(), 40, 40).Draw(rt, "chosen")
		increment := rapid.Bool().Draw(rt, "increment")
		var numbers, pages []byte
		n := rapid.IntRange(1, 40).Draw(rt, "pages")
		count := 0
		for i := range n {
			k := kinds[rapid.IntRange(0, len(kinds)-1).Draw(rt, "kind")]
			p := k.make(uint32(i))
			content = append(content, p...)
			if increment && !bits[i] {
				continue
			}
			count++
			numbers = binary.LittleEndian.AppendUint32(numbers, uint32(i))
			pages = append(pages, p...)
			if k.corrupt {
				corrupt = append(corrupt, uint32(i))
			}
			if k.implausible {
				implausible++
			}
		}
		e := writeFile(t, root, "/base/5/1", content)
		inner := &oneFile{r: bytesReader(content), size: e.Size}
		if increment {
			head := append([]byte("wi1U"), make([]byte, 12)...)
			binary.LittleEndian.PutUint64(head[4:], uint64(e.Size))
			binary.LittleEndian.PutUint32(head[12:], uint32(count))
			all := append(append(head, numbers...), pages...)
			if int64(len(all)) != delta.Size(int64(count), size) {
				rt.Fatalf("%d bytes of an increment", len(all))
			}
			inner = &oneFile{r: bytesReader(all), size: int64(len(all)), inc: []int32{}}
		}
		switch rapid.IntRange(0, 2).Draw(rt, "pieces") {
		case 1:
			inner.r = iotest.HalfReader(inner.r)
		case 2:
			inner.r = &pieces{r: inner.r, n: rapid.IntRange(1, 20000).Draw(rt, "piece")}
		}
		all := rapid.Bool().Draw(rt, "all")
		var want []pack.Damage
		if len(corrupt) > 0 || implausible > 0 {
			d := pack.Damage{Index: 3, Corrupt: len(corrupt), Blocks: corrupt, Implausible: implausible}
			if !all && len(corrupt) > SomeBlocks {
				d.Blocks = corrupt[:SomeBlocks]
			}
			want = []pack.Damage{d}
		}
		if got := check(rt, root, e, inner, all); !reflect.DeepEqual(got, want) {
			rt.Fatalf("found %+v, want %+v", got, want)
		}
	})
}

type pieces struct {
	r io.Reader
	n int
}

func (p *pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), p.n)]) }
