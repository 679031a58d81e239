package delta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/cluster"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pack"
	"github.com/walherd/walherd/engine/page"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
)

const (
	size    = 1024 // of a page, to keep drawn files small
	relFile = "/base/5/1259"
)

// heap is a plausible page with the given LSN and content.
func heap(lsn pg.LSN, fill byte) []byte {
	p := bytes.Repeat([]byte{fill}, size)
	le := binary.LittleEndian
	le.PutUint32(p, uint32(lsn>>32))
	le.PutUint32(p[4:], uint32(lsn))
	clear(p[8:24])
	le.PutUint16(p[12:], 24)
	le.PutUint16(p[14:], 100)
	le.PutUint16(p[16:], size)
	le.PutUint16(p[18:], size|4)
	return p
}

func file(pages ...[]byte) []byte { return bytes.Join(pages, nil) }

// memory is a File.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, at int64) (int, error) {
	if at+int64(len(p)) > int64(len(m.b)) {
		return 0, errors.New("written beyond the recorded length")
	}
	return copy(m.b[at:], p), nil
}

func (m *memory) Truncate(n int64) error {
	m.b = append(m.b[:min(int64(len(m.b)), n)], make([]byte, max(0, n-int64(len(m.b))))...)
	return nil
}

// encode is an increment made by hand.
func encode(fileSize uint64, numbers []uint32, pages ...[]byte) []byte {
	b := binary.LittleEndian.AppendUint64([]byte(magic), fileSize)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(numbers)))
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	return append(b, file(pages...)...)
}

func reader(t testing.TB, b []byte) *Reader {
	t.Helper()
	d, err := NewReader(bytes.NewReader(b), int64(len(b)), size)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// write runs a whole increment backup of one file through an Opener.
func write(t testing.TB, disk []byte, walked int64, since pg.LSN, m ChangeMap) (content []byte, incremented bool) {
	t.Helper()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "base/5"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root+relFile, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	return open(t, root, walked, since, m)
}

func open(t testing.TB, root string, walked int64, since pg.LSN, m ChangeMap) ([]byte, bool) {
	t.Helper()
	o, err := NewOpener(Options{Root: root, Actions: []Action{Increment}, Since: since, Changes: m, PageSize: size})
	if err != nil {
		t.Fatal(err)
	}
	body, err := o.Open(0, &cluster.Entry{Name: relFile, Size: walked})
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(iotest.OneByteReader(io.LimitReader(body, 50)))
	if err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, rest...)
	if int64(len(b)) != body.Size() {
		t.Fatalf("%d bytes, promised were %d", len(b), body.Size())
	}
	if err := body.Close(); err != nil {
		t.Fatal(err)
	}
	return b, len(o.Incremented()) == 1
}

func TestFormat(t *testing.T) {
	t.Parallel()
	disk := file(heap(1, 1), heap(20, 2), heap(1, 3), make([]byte, size), heap(10, 4), heap(9, 5))
	got, incremented := write(t, disk, int64(len(disk)), 10, nil)
	want := encode(6*size, []uint32{1, 3, 4}, heap(20, 2), make([]byte, size), heap(10, 4))
	if !incremented || !bytes.Equal(got, want) {
		t.Fatalf("incremented %v, %d bytes, want %d", incremented, len(got), len(want))
	}
	if Size(3, size) != int64(len(want)) {
		t.Fatal("Size is wrong")
	}
	// Nothing changed but the time.
	got, _ = write(t, disk[:size], size, 10, nil)
	if !bytes.Equal(got, encode(size, nil)) {
		t.Fatalf("increment of nothing: % x", got)
	}
}

// What no increment can tell, or tell in less, is stored whole.
func TestStoredWhole(t *testing.T) {
	t.Parallel()
	for name, disk := range map[string][]byte{
		"unlogged":      file(heap(1, 1), heap(0, 2)),
		"not a page":    file(heap(1, 1), bytes.Repeat([]byte{7}, size)),
		"all changed":   file(heap(10, 1), heap(11, 2)),
		"of other size": file(heap(1, 1), func() []byte { p := heap(1, 1); p[19] = 0x20; return p }()),
	} {
		got, incremented := write(t, disk, int64(len(disk)), 10, nil)
		if incremented || !bytes.Equal(got, disk) {
			t.Errorf("%s: incremented %v, %d bytes", name, incremented, len(got))
		}
	}
}

// A file that was cut, or grew, since the walk.
func TestLengthChangesWhileReading(t *testing.T) {
	t.Parallel()
	pages := file(heap(1, 1), heap(10, 2), heap(1, 3), heap(10, 4))
	for _, tt := range []struct {
		disk   int
		walked int64
		want   []byte
	}{
		{4 * size, 3 * size, encode(3*size, []uint32{1}, heap(10, 2))},     // grew
		{3 * size, 4 * size, encode(3*size, []uint32{1}, heap(10, 2))},     // cut
		{3*size + 100, 4 * size, encode(3*size, []uint32{1}, heap(10, 2))}, // in mid-page
		{0, 4 * size, encode(0, nil)},                                      // to nothing
		{2 * size, 2 * size, encode(2*size, []uint32{1}, heap(10, 2))},     // neither
	} {
		got, incremented := write(t, pages[:tt.disk], tt.walked, 10, nil)
		if !incremented || !bytes.Equal(got, tt.want) {
			t.Errorf("%d on disk, %d walked: incremented %v, %d bytes, want %d", tt.disk, tt.walked, incremented, len(got), len(tt.want))
		}
	}
	// Between the choice and the reading.
	b := newIncrement(bytes.NewReader(pages[:size+10]), func() error { return nil }, 4*size, size, fullSet(4))
	got, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	want := append(bytes.Clone(pages[:size+10]), make([]byte, 3*size-10)...)
	if !bytes.Equal(got, encode(4*size, []uint32{0, 1, 2, 3}, want)) {
		t.Errorf("cut before the reading: %d bytes", len(got))
	}
}

// early notes which pages of a file were asked for before they are read.
type early struct {
	t           *rapid.T
	needed      map[int64]bool
	read, ahead int64
}

func (e *early) need(off, n int64) {
	for p := off / page.DefaultSize; p < (off+n)/page.DefaultSize; p++ {
		if e.needed[p] {
			e.t.Fatalf("page %d is asked for twice", p)
		}
		e.needed[p] = true
		e.ahead++
	}
}

func (e *early) ReadAt(p []byte, at int64) (int, error) {
	if n := at / page.DefaultSize; at%page.DefaultSize == 0 && e.needed[n] {
		e.ahead--
	} else if at%page.DefaultSize == 0 && e.read >= aheadPages {
		e.t.Fatalf("page %d was not asked for", n)
	}
	e.read++
	if e.ahead > 3*aheadPages {
		e.t.Fatalf("%d pages are asked for and not read", e.ahead)
	}
	return len(p), nil
}

// TestPagesAreAskedForEarly: all but the first run, each page once, and not all
// of them at once.
func TestPagesAreAskedForEarly(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		chosen, members := newSet(2000), []int64{}
		for at := int64(0); ; {
			at += rapid.Int64Range(0, 20).Draw(t, "gap")
			end := at + rapid.Int64Range(1, 200).Draw(t, "run")
			if end > chosen.limit {
				break
			}
			for ; at < end; at++ {
				chosen.add(at)
				members = append(members, at)
			}
		}
		e := &early{t: t, needed: map[int64]bool{}}
		b := newIncrement(e, nil, 2000*page.DefaultSize, page.DefaultSize, chosen)
		b.need = e.need
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, b, make([]byte, page.DefaultSize)); err != nil {
			t.Fatal(err)
		}
		for p := range e.needed {
			if !chosen.has(p) {
				t.Fatalf("page %d is asked for and not wanted", p)
			}
		}
		if e.read != int64(len(members)) || e.ahead != 0 {
			t.Fatalf("%d of %d pages read, %d asked for and not read", e.read, len(members), e.ahead)
		}
	})
}

// torn gives a page that makes no sense the first times it is read.
type torn struct {
	*bytes.Reader
	bad int
}

func (r *torn) ReadAt(p []byte, at int64) (int, error) {
	n, err := r.Reader.ReadAt(p, at)
	if r.bad > 0 {
		r.bad--
		p[12], p[13] = 0xff, 0xff
	}
	return n, err
}

func TestTornPageIsReadAgain(t *testing.T) {
	t.Parallel()
	for bad, want := range map[int]error{1: nil, rereads: nil, rereads + 1: errWhole} {
		chosen, _, err := scan(&torn{bytes.NewReader(heap(10, 1)), bad}, size, size, 10, nil, make([]byte, bufferSize), nil)
		if !errors.Is(err, want) || err == nil && !chosen.has(0) {
			t.Errorf("%d bad readings: %v", bad, err)
		}
	}
}

// numbers is a ChangeMap of one file.
type numbers struct {
	list  []uint32
	whole bool
	asked *wal.File
}

func (n numbers) Changed(f wal.File, _ uint32) (iter.Seq[uint32], bool) {
	if n.asked != nil {
		*n.asked = f
	}
	return slices.Values(n.list), n.whole
}

// Only the map decides; pages it does not name are not even looked at.
func TestChangeMap(t *testing.T) {
	t.Parallel()
	junk := bytes.Repeat([]byte{7}, size)
	disk := file(junk, heap(10, 2), junk, heap(1, 4))
	var asked wal.File
	got, incremented := write(t, disk, 4*size, 10, numbers{list: []uint32{3, 0, 3, 4, math.MaxUint32}, asked: &asked})
	if !incremented || !bytes.Equal(got, encode(4*size, []uint32{0, 3}, junk, heap(1, 4))) {
		t.Errorf("incremented %v, %d bytes", incremented, len(got))
	}
	if want := (wal.File{RelFile: wal.RelFile{Tablespace: wal.DefaultTablespace, Database: 5, Relation: 1259}}); asked != want {
		t.Errorf("asked for %+v", asked)
	}
	// Nothing changed but perhaps the length, which a skipped file would not tell.
	if got, incremented = write(t, disk, 4*size, 10, numbers{}); !incremented || !bytes.Equal(got, encode(4*size, nil)) {
		t.Errorf("no changes: incremented %v, %d bytes", incremented, len(got))
	}
	if got, incremented = write(t, disk, 4*size, 10, numbers{whole: true}); incremented || !bytes.Equal(got, disk) {
		t.Errorf("whole: incremented %v, %d bytes", incremented, len(got))
	}
}

// TestLook: whoever waits for an increment hears of all that is read for it, and
// can end the reading.
func TestLook(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Dir(root+relFile), 0o700); err != nil {
		t.Fatal(err)
	}
	disk := bytes.Repeat(heap(1, 1), 3*bufferSize/size+1)
	if err := os.WriteFile(root+relFile, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	var looked, most int
	errEnough := errors.New("enough")
	o, err := NewOpener(Options{Root: root, Actions: []Action{Increment}, Since: 10, PageSize: size, Look: func(n int) error {
		if looked += n; most > 0 && looked > most {
			return errEnough
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	e := &cluster.Entry{Name: relFile, Size: int64(len(disk))}
	body, err := o.Open(0, e)
	if err != nil || looked != len(disk) {
		t.Fatalf("looked at %d bytes of %d: %v", looked, len(disk), err)
	}
	if err := body.Close(); err != nil {
		t.Fatal(err)
	}
	looked, most = 0, len(disk)/2
	if _, err := o.Open(0, e); !errors.Is(err, errEnough) {
		t.Fatalf("got %v", err)
	}
}

func TestOpenerRefuses(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if _, err := NewOpener(Options{Root: root, PageSize: 9000}); err == nil {
		t.Error("page size 9000 was accepted")
	}
	o, err := NewOpener(Options{Root: root, Actions: []Action{Skip, Increment, Whole}, PageSize: size})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Open(0, &cluster.Entry{Name: relFile}); !errors.Is(err, pack.ErrSkip) {
		t.Errorf("skip: %v", err)
	}
	for _, i := range []int32{1, 2} {
		if _, err := o.Open(i, &cluster.Entry{Name: relFile, Size: size}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a file that vanished: %v", err)
		}
	}
	// A link in its place is not followed.
	if err := os.MkdirAll(root+"/base/5", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", root+relFile); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Open(1, &cluster.Entry{Name: relFile, Size: size}); err == nil {
		t.Error("a link was followed")
	}
	if len(o.Incremented()) != 0 {
		t.Errorf("incremented %v", o.Incremented())
	}
}

func TestReaderRefuses(t *testing.T) {
	t.Parallel()
	p := heap(1, 1)
	for name, tt := range map[string]struct {
		b    []byte
		size int64
		want error
	}{
		"nothing":             {nil, 0, ErrFormat},
		"a page":              {p, size, ErrFormat},
		"another version":     {append([]byte("wi2U"), encode(size, nil)[4:]...), 16, ErrFormat},
		"cut":                 {encode(size, []uint32{0}, p)[:18], Size(1, size), io.ErrUnexpectedEOF},
		"no head":             {encode(size, nil)[:10], 16, io.ErrUnexpectedEOF},
		"count too high":      {encode(size, []uint32{0}, p), Size(2, size), ErrFormat},
		"entry too long":      {encode(size, []uint32{0}, p), Size(1, size) + 1, ErrFormat},
		"four billion pages":  {append(encode(size, nil)[:12], 0xff, 0xff, 0xff, 0xff), 16, ErrFormat},
		"billion-byte header": {append(encode(size, nil)[:12], 0xff, 0xff, 0xff, 0xff), Size(math.MaxUint32, size), io.ErrUnexpectedEOF},
		"endless file":        {encode(math.MaxUint64, nil), 16, ErrFormat},
		"negative file":       {encode(1<<63, nil), 16, ErrFormat},
		"half a page":         {encode(size+1, nil), 16, ErrFormat},
		"twice":               {encode(4*size, []uint32{1, 1}, p, p), Size(2, size), ErrFormat},
		"descending":          {encode(4*size, []uint32{2, 1}, p, p), Size(2, size), ErrFormat},
		"pages of other size": {encode(16384, []uint32{1}, make([]byte, 8192)), Size(1, 8192), ErrFormat},
	} {
		if _, err := NewReader(bytes.NewReader(tt.b), tt.size, size); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}

func TestApplyEnds(t *testing.T) {
	t.Parallel()
	b := encode(2*size, []uint32{0, 1}, heap(1, 1), heap(1, 2))
	for cut := headerSize + 8; cut < len(b); cut += 500 {
		d, err := NewReader(bytes.NewReader(b[:cut]), int64(len(b)), size)
		if err != nil {
			t.Fatal(err)
		}
		if err := Apply(&memory{}, d, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
	var failed *WriteError
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Apply(f, reader(t, b), nil); !errors.As(err, &failed) {
		t.Errorf("a file that cannot be written: %v", err)
	}
}

// WAL-G lists pages beyond the length of a file that grew under it.
func TestPagesBeyondTheFile(t *testing.T) {
	t.Parallel()
	b := encode(2*size, []uint32{1, 2, 7}, heap(1, 1), heap(1, 2), heap(1, 3))
	want := file(heap(9, 9), heap(1, 1))
	f := &memory{file(heap(9, 9), heap(9, 9), heap(9, 9))}
	r := bytes.NewReader(b)
	d, err := NewReader(r, int64(len(b)), size)
	if err != nil {
		t.Fatal(err)
	}
	if err := Apply(f, d, nil); err != nil || !bytes.Equal(f.b, want) || r.Len() != 0 {
		t.Errorf("%v, %d bytes, %d unread", err, len(f.b), r.Len())
	}
	g := &memory{}
	p, err := Create(g, reader(t, b), nil)
	if err != nil || p.Complete() {
		t.Fatalf("complete, or %v", err)
	}
	if err := p.FillWhole(g, bytes.NewReader(file(heap(9, 9), heap(8, 8))), 2*size, nil); err != nil || !bytes.Equal(g.b, want) || !p.Complete() {
		t.Errorf("%v, %d bytes", err, len(g.b))
	}
}

// Whatever happens to a file between some backups, the chain gives it back in
// both orders, and interrupted attempts in between change nothing.
func TestAnyChain(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.MkdirAll(root+"/base/5", 0o700); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		lsn := pg.LSN(1)
		drawPage := func() []byte {
			if rapid.IntRange(0, 3).Draw(rt, "zero") == 0 {
				return make([]byte, size)
			}
			lsn++
			return heap(lsn, rapid.Byte().Draw(rt, "fill"))
		}
		var now []byte
		for range rapid.IntRange(0, 150).Draw(rt, "pages") {
			now = append(now, drawPage()...)
		}
		base := bytes.Clone(now)
		// The base may have been no whole number of pages when it was read.
		base = base[:len(base)-min(len(base), rapid.SampledFrom([]int{0, 0, 17}).Draw(rt, "ragged"))]
		if len(base) < len(now) {
			lsn++
			copy(now[len(now)-size:], heap(lsn, 1))
		}
		start := pg.LSN(lsn + 1)
		if len(base) < len(now) {
			start = lsn
		}
		var increments [][]byte
		for range rapid.IntRange(1, 4).Draw(rt, "increments") {
			lsn = max(lsn, start)
			for range rapid.IntRange(0, 8).Draw(rt, "changes") {
				switch kind := rapid.IntRange(0, 3).Draw(rt, "kind"); {
				case kind == 0 && len(now) > 0: // truncate
					now = now[:size*rapid.IntRange(0, len(now)/size).Draw(rt, "length")]
				case kind == 1: // extend
					for range rapid.IntRange(1, 70).Draw(rt, "more") {
						now = append(now, drawPage()...)
					}
				case len(now) > 0: // write
					at := rapid.IntRange(0, len(now)/size-1).Draw(rt, "at")
					copy(now[at*size:], drawPage())
				}
			}
			if err := os.WriteFile(root+relFile, now, 0o600); err != nil {
				rt.Fatal(err)
			}
			b, incremented := open(t, root, int64(len(now)), start, nil)
			lsn++
			start = lsn
			if !incremented {
				base, increments = bytes.Clone(now), nil
				if !bytes.Equal(b, now) {
					rt.Fatal("stored whole, and not as it is")
				}
				continue
			}
			increments = append(increments, b)
		}

		f := &memory{bytes.Clone(base)}
		for _, b := range increments {
			cut := bytes.NewReader(b[:rapid.IntRange(0, len(b)).Draw(rt, "interrupted")])
			if d, err := NewReader(cut, int64(len(b)), size); err == nil {
				_ = Apply(f, d, nil) // interrupted, then again
			}
			if err := Apply(f, reader(t, b), nil); err != nil {
				rt.Fatal(err)
			}
		}
		if !bytes.Equal(f.b, now) {
			rt.Fatal("applied in order the file differs")
		}
		if len(increments) == 0 {
			return
		}
		g := &memory{[]byte("left by an earlier attempt")}
		var p *Partial
		for i, b := range slices.Backward(increments) {
			var err error
			if i == len(increments)-1 {
				p, err = Create(g, reader(t, b), nil)
			} else {
				err = p.Fill(g, reader(t, b), nil)
			}
			if err == nil {
				p, err = PartialOf(p.Bytes(), int64(len(g.b)), size)
			}
			if err != nil {
				rt.Fatal(err)
			}
		}
		if err := p.FillWhole(g, bytes.NewReader(base), int64(len(base)), nil); err != nil {
			rt.Fatal(err)
		}
		if !bytes.Equal(g.b, now) || !p.Complete() {
			rt.Fatal("in reverse the file differs")
		}
	})
}

func TestSet(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Int64Range(1, 200).Draw(t, "limit")
		model := make([]bool, limit)
		s := newSet(limit)
		if rapid.Bool().Draw(t, "full") {
			s = fullSet(limit)
			for i := range model {
				model[i] = true
			}
		}
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			n := rapid.Int64Range(0, limit-1).Draw(t, "n")
			switch rapid.IntRange(0, 4).Draw(t, "op") {
			case 0:
				s.remove(n)
				model[n] = false
			case 1:
				s.cut(n)
				clear(model[n:])
			default:
				s.add(n)
				model[n] = true
			}
		}
		got := make([]bool, limit)
		var count int64
		last := int64(-1)
		for first, n := range setOf(limit, s.bytes()).runs() {
			if first <= last || n < 1 {
				t.Fatalf("run %d+%d after %d", first, n, last)
			}
			last = first + n // runs do not touch
			for i := first; i < first+n; i++ {
				got[i] = true
				count++
			}
		}
		if !slices.Equal(got, model) || s.count() != count || s.empty() != (count == 0) || s.has(limit) {
			t.Fatalf("%v, want %v", got, model)
		}
	})
}

func TestPaged(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"/base/5/1259": true, "base/5/1259": true, "/base/5/16384.12": true, "/pg_tblspc/16400/PG_15_202209061/5/2619.1": true,
		"/global/1262": false, "/base/5/1259_vm": false, "/base/5/1259_fsm": false, "/base/5/t3_1259": false, "/base/5/1259.": false,
		"/base/5/.1": false, "/base/5/1.2.3": false, "/base/5/PG_VERSION": false, "/pg_xact/0000": false, "/pg_multixact/offsets/0000": false,
		"/mybase/5/1259": false, "/foo/base/5/1259": false, "/base/5/orioledb_data/1": false, "/base/5/١": false,
	} {
		if Paged(name, 8192, 8192) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
	for n, want := range map[int64]bool{0: false, -8192: false, 8192: true, 8193: false, 100: false, MaxFileSize: true, MaxFileSize + 8192: false} {
		if Paged(relFile, n, 8192) != want {
			t.Errorf("%d bytes: %v", n, !want)
		}
	}
}

func TestPlan(t *testing.T) {
	t.Parallel()
	start := time.Unix(1000, 0)
	old, fresh := start.Add(-time.Hour), start.Add(time.Hour)
	tokyo := time.FixedZone("Tokyo", 9*3600)
	same := manifest.File{MTime: old.In(tokyo)}
	entry := func(name string, size int64, at time.Time) cluster.Entry {
		return cluster.Entry{Name: name, Size: size, MTime: at.UnixNano()}
	}
	entries := []cluster.Entry{
		entry("/base/5/1", size, old),                              // unchanged
		entry("/base/5/2", size, fresh),                            // changed
		entry("/base/5/3", size, old),                              // new, whatever its time
		entry("/global/4", size, fresh),                            // not paged
		entry("/base/5/5", size, old.Add(1)),                       // a nanosecond
		entry("/base/5/6", size, start.Add(-time.Second)),          // written to as the parent began
		entry("/base/5/7", size, old),                              // skipped by the parent too
		entry("/base/5/8\xff", size, old),                          // no name for JSON
		{Name: "/base/5", Mode: os.ModeDir, MTime: old.UnixNano()}, // a directory
		{Name: "/base/5/9", Size: size, MTime: math.MaxInt64},      // no time
		entry("/pg_hba.conf", 10, old),                             // unchanged, not paged
	}
	parent := map[string]manifest.File{
		"/base/5/1": same, "/base/5/2": same, "base/5/3": same, "/global/4": same, "/base/5/5": same,
		"/base/5/6": {MTime: start.Add(-time.Second)}, "/base/5/7": {MTime: old, IsSkipped: true},
		"/base/5/8\uFFFD": same, "/base/5/8\xff": same, "/base/5": same, "/base/5/9": {MTime: time.Unix(0, math.MaxInt64)}, "/gone": same, "/pg_hba.conf": same,
	}
	files := func(visit func(string, manifest.File) error) error {
		for name, f := range parent {
			if err := visit(name, f); err != nil {
				return err
			}
		}
		return nil
	}
	got, err := Plan(entries, Parent{Start: start, Files: files}, size)
	if err != nil {
		t.Fatal(err)
	}
	want := []Action{Skip, Increment, Whole, Whole, Increment, Increment, Skip, Whole, Whole, Increment, Skip}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	// A database whose PG_VERSION is another has files that only look as if
	// an increment could be made of them, in whichever tablespace.
	const far = replayLag + time.Hour
	entries = []cluster.Entry{
		entry("/base/7/PG_VERSION", 3, fresh), entry("/base/7/1", size, fresh), entry("/pg_tblspc/9/PG_15_202209061/7/1", size, fresh),
		entry("/base/7/2", size, old), // what is as the parent has it cannot be another
		entry("/base/8/PG_VERSION", 3, old), entry("/base/8/1", size, fresh),
		entry("/pg_tblspc/9/PG_15_202209061/6/PG_VERSION", 3, fresh), entry("/pg_tblspc/9/PG_15_202209061/6/1", size, fresh), // moved
		entry("/base/10/PG_VERSION", 3, start.Add(-far)), entry("/base/10/1", size, fresh), // of a clone
		entry("/PG_VERSION", 3, fresh), entry("/base/11/1", size, fresh),
	}
	parent = map[string]manifest.File{}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name, "/6/PG_VERSION") {
			parent[e.Name] = same
		}
	}
	want = []Action{Whole, Whole, Whole, Skip, Skip, Increment, Whole, Whole, Whole, Increment, Whole, Increment}
	if got, err = Plan(entries, Parent{Start: start, Files: files}, size); err != nil || !slices.Equal(got, want) {
		t.Errorf("renewed databases: %v\ngot  %v\nwant %v", err, got, want)
	}
	if got, err = Plan(entries, Parent{Files: files}, size); err != nil || slices.Contains(got, Skip) {
		t.Errorf("a parent of unknown age: %v, %v", got, err)
	}
	errBroken := errors.New("broken")
	if _, err := Plan(entries, Parent{Files: func(func(string, manifest.File) error) error { return errBroken }}, size); !errors.Is(err, errBroken) {
		t.Errorf("unreadable list: %v", err)
	}
}

func FuzzReader(f *testing.F) {
	f.Add(encode(4*size, []uint32{0, 2}, heap(1, 1), heap(2, 2)), int64(0))
	f.Add(encode(0, nil), int64(1))
	f.Add(encode(2*size, []uint32{1, 5}, heap(1, 1), heap(2, 2)), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, extra int64) {
		d, err := NewReader(bytes.NewReader(b), int64(len(b))+extra, size)
		if err != nil {
			return
		}
		if d.FileSize() > 1<<24 {
			return // valid, and too much memory for a fuzzer
		}
		m := &memory{}
		if err := Apply(m, d, nil); err != nil {
			return
		}
		if int64(len(m.b)) != d.FileSize() || extra > 0 {
			t.Fatalf("%d bytes for a file of %d, entry of %d%+d", len(m.b), d.FileSize(), len(b), extra)
		}
		b = b[:int64(len(b))+extra] // what is behind the entry is not its own
		// What is within the file, written again, is the same increment.
		again, err := io.ReadAll(newIncrement(bytes.NewReader(m.b), nil, d.FileSize(), size, d.pages))
		if err != nil {
			t.Fatal(err)
		}
		if d.surplus == 0 && !bytes.Equal(again, b) {
			t.Fatal("it is not what was read")
		}
	})
}

func benchFile(b *testing.B, changed int) []byte {
	b.Helper()
	var f []byte
	for i := range 8192 {
		p := make([]byte, page.DefaultSize)
		copy(p, heap(1, byte(i)))
		if i%changed == 0 {
			copy(p, heap(100, byte(i)))
		}
		binary.LittleEndian.PutUint16(p[18:], page.DefaultSize|4)
		f = append(f, p...)
	}
	return f
}

// The scan of a cached file: what an increment costs per byte of the database.
func BenchmarkScan(b *testing.B) {
	name := filepath.Join(b.TempDir(), "f")
	data := benchFile(b, 100)
	if err := os.WriteFile(name, data, 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, bufferSize)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, _, err := scan(f, int64(len(data)), page.DefaultSize, 100, nil, buf, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	data := benchFile(b, 10)
	chosen, _, err := scan(bytes.NewReader(data), int64(len(data)), page.DefaultSize, 100, nil, make([]byte, bufferSize), nil)
	if err != nil {
		b.Fatal(err)
	}
	inc, err := io.ReadAll(newIncrement(bytes.NewReader(data), nil, int64(len(data)), page.DefaultSize, chosen))
	if err != nil {
		b.Fatal(err)
	}
	f, err := os.Create(filepath.Join(b.TempDir(), "f"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.SetBytes(int64(len(inc)))
	for b.Loop() {
		d, err := NewReader(bytes.NewReader(inc), int64(len(inc)), page.DefaultSize)
		if err != nil {
			b.Fatal(err)
		}
		if err := Apply(f, d, nil); err != nil {
			b.Fatal(err)
		}
	}
}
