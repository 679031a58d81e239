// Package storagetest is the promise of storage.Bucket as a test suite, which
// every store and every decorator runs, and Faulty, a Bucket that fails as a
// test tells it to.
package storagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/walherd/walherd/storage"
)

// Run checks that the Buckets that open makes keep the promise of
// storage.Bucket. open is called once for each subtest and gives an empty
// Bucket that no other subtest sees; it may use t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) storage.Bucket) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(*testing.T, storage.Bucket)
	}{
		{"Put/Sizes", putSizes},
		{"Put/ReadersOfAllManners", putReaders},
		{"Put/Overwrites", putOverwrites},
		{"Put/IfAbsent", putIfAbsent},
		{"Put/IfAbsentRace", putIfAbsentRace},
		{"Put/UnfinishedIsInvisible", putUnfinished},
		{"Put/FailingReaderLeavesTheOldObject", putFailingReader},
		{"Put/CancelLeavesTheOldObject", putCancel},
		{"Put/DoesNotCloseTheReader", putDoesNotClose},
		{"Put/TellsTheInfoThatStatTells", putInfo},
		{"Put/ConcurrentOverwriteShowsWholeVersions", putConcurrent},
		{"Open/Ranges", openRanges},
		{"Open/BehindTheEnd", openBehindEnd},
		{"Open/NegativeRange", openNegative},
		{"Open/CloseEarly", openCloseEarly},
		{"Open/CancelEndsTheBody", openCancel},
		{"Open/KeepsTheVersionItBegan", openKeepsVersion},
		{"Open/InfoIsThatOfStat", openInfo},
		{"Missing", missing},
		{"ParentIsNoObject", parentIsNoObject},
		{"BadNames", badNames},
		{"OddNames", oddNames},
		{"EndedContext", endedContext},
		{"List/OrderIsThatOfFullNames", listOrder},
		{"List/Prefix", listPrefix},
		{"List/Shallow", listShallow},
		{"List/After", listAfter},
		{"List/MakesNothing", listMakesNothing},
		{"List/Describes", listDescribes},
		{"List/StopsWhenAsked", listStops},
		{"List/CancelEndsIt", listCancel},
		{"List/DeleteWhileListing", listDelete},
		{"Delete/IsIdempotent", deleteIdempotent},
		{"Delete/LeavesNeighbours", deleteNeighbours},
		{"Delete/BadNameRemovesNothing", deleteBadName},
		{"Delete/EverythingThenPut", deleteThenPut},
		{"ManyAtOnce", manyAtOnce},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, open(t))
		})
	}
}

// Content is n bytes that differ from seed to seed and at each position.
func Content(seed byte, n int) []byte {
	data := make([]byte, n)
	x := uint32(seed)*2654435761 + 1
	for i := range data {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		data[i] = byte(x)
	}
	return data
}

// MustPut stores data or fails the test.
func MustPut(t testing.TB, b storage.Bucket, name string, data []byte) storage.Info {
	t.Helper()
	info, err := b.Put(t.Context(), name, bytes.NewReader(data), storage.PutOptions{})
	if err != nil {
		t.Fatalf("Put(%q): %v", name, err)
	}
	return info
}

// MustGet reads an object whole or fails the test.
func MustGet(t testing.TB, b storage.Bucket, name string) []byte {
	t.Helper()
	data, err := get(t.Context(), b, name, storage.Range{})
	if err != nil {
		t.Fatalf("read %q: %v", name, err)
	}
	return data
}

// Names lists the names below prefix, or fails the test.
func Names(t testing.TB, b storage.Bucket, prefix string, opt storage.ListOptions) []string {
	t.Helper()
	names := []string{}
	for info, err := range b.List(t.Context(), prefix, opt) {
		if err != nil {
			t.Fatalf("List(%q, %+v): %v", prefix, opt, err)
		}
		if info.Dir != strings.HasSuffix(info.Name, "/") {
			t.Errorf("List(%q): %q has Dir %v", prefix, info.Name, info.Dir)
		}
		names = append(names, info.Name)
	}
	return names
}

func get(ctx context.Context, b storage.Bucket, name string, rng storage.Range) ([]byte, error) {
	r, err := b.Open(ctx, name, rng)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

func wantNames(t *testing.T, b storage.Bucket, prefix string, opt storage.ListOptions, want ...string) {
	t.Helper()
	if got := Names(t, b, prefix, opt); !slices.Equal(got, want) {
		t.Errorf("List(%q, %+v)\n got %q\nwant %q", prefix, opt, got, want)
	}
}

func wantContent(t *testing.T, b storage.Bucket, name string, want []byte) {
	t.Helper()
	if got := MustGet(t, b, name); !bytes.Equal(got, want) {
		t.Errorf("%q holds %d bytes, want %d; equal start of %d", name, len(got), len(want), common(got, want))
	}
}

func common(a, b []byte) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

func wantError(t *testing.T, what string, err error, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("%s: error %v, want %v", what, err, target)
	}
}

// edges are the sizes around the buffers in use (4 KiB blocks, io.Copy's 32
// KiB, our copies' 512 KiB, 1 MiB) and one that is a multiple of none.
func edges() []int {
	sizes := []int{0, 1, 2, 5<<20 + 3}
	for _, n := range []int{4 << 10, 32 << 10, 512 << 10, 1 << 20} {
		sizes = append(sizes, n-1, n, n+1)
	}
	return sizes
}

func putSizes(t *testing.T, b storage.Bucket) {
	for _, n := range edges() {
		name := fmt.Sprintf("sizes/%d", n)
		data := Content(1, n)
		info := MustPut(t, b, name, data)
		if info.Name != name || info.Size != int64(n) || info.Dir {
			t.Errorf("Put of %d bytes tells %+v", n, info)
		}
		wantContent(t, b, name, data)
	}
}

func putReaders(t *testing.T, b storage.Bucket) {
	data := Content(2, 70_001)
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"plain":    func(r io.Reader) io.Reader { return struct{ io.Reader }{r} },
		"half":     iotest.HalfReader,
		"one byte": iotest.OneByteReader,
		"data+eof": iotest.DataErrReader,
		"writerto": func(r io.Reader) io.Reader { return bytes.NewBuffer(data) },
	} {
		info, err := b.Put(t.Context(), name, wrap(bytes.NewReader(data)), storage.PutOptions{})
		if err != nil || info.Size != int64(len(data)) {
			t.Errorf("Put from a reader of manner %q: %+v, %v", name, info, err)
			continue
		}
		wantContent(t, b, name, data)
	}
	// A reader that was read from already is stored from where it is.
	r := bytes.NewReader(data)
	if _, err := r.Seek(5, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Put(t.Context(), "rest", r, storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	wantContent(t, b, "rest", data[5:])
}

func putOverwrites(t *testing.T, b storage.Bucket) {
	for _, n := range []int{100, 70_000, 0, 3} {
		data := Content(byte(n), n)
		MustPut(t, b, "d/x", data)
		wantContent(t, b, "d/x", data)
	}
	wantNames(t, b, "", storage.ListOptions{}, "d/x")
}

func putIfAbsent(t *testing.T, b storage.Bucket) {
	old := Content(1, 10)
	if _, err := b.Put(t.Context(), "d/x", bytes.NewReader(old), storage.PutOptions{IfAbsent: true}); err != nil {
		t.Fatalf("Put IfAbsent of a new object: %v", err)
	}
	_, err := b.Put(t.Context(), "d/x", bytes.NewReader(Content(2, 20)), storage.PutOptions{IfAbsent: true})
	wantError(t, "Put IfAbsent of an object that exists", err, storage.ErrExist)
	wantContent(t, b, "d/x", old)
	if err := b.Delete(t.Context(), "d/x"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Put(t.Context(), "d/x", bytes.NewReader(old), storage.PutOptions{IfAbsent: true}); err != nil {
		t.Errorf("Put IfAbsent of a deleted object: %v", err)
	}
}

func putIfAbsentRace(t *testing.T, b storage.Bucket) {
	const racers = 16
	contents := make([][]byte, racers)
	errs := make([]error, racers)
	// All readers wait for one another at their end, so that every Put is
	// under way before the first one decides.
	var atEnd sync.WaitGroup
	atEnd.Add(racers)
	var all sync.WaitGroup
	for i := range racers {
		contents[i] = Content(byte(i), 1000+i)
		all.Go(func() {
			r := &meeting{r: bytes.NewReader(contents[i]), meet: &atEnd}
			_, errs[i] = b.Put(t.Context(), "d/race", r, storage.PutOptions{IfAbsent: true})
		})
	}
	all.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner < 0:
			winner = i
		case err == nil:
			t.Errorf("both %d and %d won", winner, i)
		default:
			wantError(t, fmt.Sprintf("racer %d", i), err, storage.ErrExist)
		}
	}
	if winner < 0 {
		t.Fatal("nobody won")
	}
	wantContent(t, b, "d/race", contents[winner])
	wantNames(t, b, "", storage.ListOptions{}, "d/race")
}

// meeting is a reader that ends when all its kind have come to their end.
type meeting struct {
	r    io.Reader
	meet *sync.WaitGroup
	met  bool
}

func (m *meeting) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if err == io.EOF && !m.met {
		m.met = true
		m.meet.Done()
		m.meet.Wait()
	}
	return n, err
}

func putUnfinished(t *testing.T, b storage.Bucket) {
	old, next := Content(1, 5000), Content(2, 300_000)
	MustPut(t, b, "d/old", old)
	for _, name := range []string{"d/old", "d/new", "e/f/g"} {
		pr, pw := io.Pipe()
		done := make(chan error, 1)
		go func() {
			_, err := b.Put(t.Context(), name, pr, storage.PutOptions{})
			pr.CloseWithError(errors.Join(err, io.ErrClosedPipe))
			done <- err
		}()
		if _, err := pw.Write(next[:200_000]); err != nil {
			t.Fatalf("Put(%q) stopped reading: %v", name, err)
		}
		wantNames(t, b, "", storage.ListOptions{}, "d/old")
		wantNames(t, b, "", storage.ListOptions{Shallow: true}, "d/")
		wantContent(t, b, "d/old", old)
		if name != "d/old" {
			_, err := b.Stat(t.Context(), name)
			wantError(t, "Stat of an unfinished object", err, storage.ErrNotExist)
		}
		if _, err := pw.Write(next[200_000:]); err != nil {
			t.Fatalf("Put(%q) stopped reading: %v", name, err)
		}
		pw.Close()
		if err := <-done; err != nil {
			t.Fatalf("Put(%q): %v", name, err)
		}
		wantContent(t, b, name, next)
		if err := b.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		MustPut(t, b, "d/old", old)
	}
}

func putFailingReader(t *testing.T, b storage.Bucket) {
	boom := errors.New("boom")
	old := Content(1, 500)
	MustPut(t, b, "d/old", old)
	for _, n := range []int{0, 1, 40_000, 600_000} {
		for _, name := range []string{"d/old", "new/x"} {
			r := io.MultiReader(bytes.NewReader(Content(2, n)), iotest.ErrReader(boom))
			_, err := b.Put(t.Context(), name, r, storage.PutOptions{})
			wantError(t, fmt.Sprintf("Put of a reader that fails after %d bytes", n), err, boom)
			if errors.Is(err, storage.ErrPermanent) {
				t.Errorf("the reader's error became a permanent error of the store: %v", err)
			}
		}
	}
	wantContent(t, b, "d/old", old)
	wantNames(t, b, "", storage.ListOptions{}, "d/old")
}

func putCancel(t *testing.T, b storage.Bucket) {
	old := Content(1, 500)
	MustPut(t, b, "d/old", old)
	for _, name := range []string{"d/old", "new/x"} {
		for _, n := range []int{0, 1000, 600_000} {
			ctx, cancel := context.WithCancel(t.Context())
			// The context ends when the content is read, before the store
			// can have finished.
			r := io.MultiReader(bytes.NewReader(Content(2, n)), readerFunc(func([]byte) (int, error) {
				cancel()
				return 0, io.EOF
			}))
			_, err := b.Put(ctx, name, r, storage.PutOptions{})
			wantError(t, "Put with a context that ends", err, context.Canceled)
		}
	}
	wantContent(t, b, "d/old", old)
	wantNames(t, b, "", storage.ListOptions{}, "d/old")
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

type closeSpy struct {
	io.Reader
	closed bool
}

func (c *closeSpy) Close() error { c.closed = true; return nil }

func putDoesNotClose(t *testing.T, b storage.Bucket) {
	for _, err := range []error{io.EOF, errors.New("boom")} {
		spy := &closeSpy{Reader: io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(err))}
		b.Put(t.Context(), "x", spy, storage.PutOptions{})
		if spy.closed {
			t.Errorf("Put closed a reader that ends with %v", err)
		}
	}
}

func putInfo(t *testing.T, b storage.Bucket) {
	first := MustPut(t, b, "d/x", Content(1, 1234))
	st, err := b.Stat(t.Context(), "d/x")
	if err != nil {
		t.Fatal(err)
	}
	if st.Name != first.Name || st.Size != first.Size || !st.Modified.Equal(first.Modified) || st.Dir {
		t.Errorf("Put told %+v, Stat %+v", first, st)
	}
	if st.Modified.IsZero() {
		t.Error("Modified is zero")
	}
	if second := MustPut(t, b, "d/x", Content(1, 1234)); second.Modified.Before(first.Modified) {
		t.Errorf("Modified went from %v back to %v", first.Modified, second.Modified)
	}
}

func putConcurrent(t *testing.T, b storage.Bucket) {
	// Version v is v times the byte v in a row of a size of its own.
	version := func(v byte) []byte { return bytes.Repeat([]byte{v}, 40_000+1000*int(v)) }
	MustPut(t, b, "d/x", version(1))
	var writers, readers sync.WaitGroup
	stop := make(chan struct{})
	for w := range 3 {
		writers.Go(func() {
			for i := range 10 {
				v := byte(1 + w*10 + i)
				if _, err := b.Put(t.Context(), "d/x", bytes.NewReader(version(v)), storage.PutOptions{}); err != nil {
					t.Errorf("Put: %v", err)
				}
			}
		})
	}
	for range 2 {
		readers.Go(func() {
			for {
				data, err := get(t.Context(), b, "d/x", storage.Range{})
				if err != nil {
					t.Errorf("read while it is overwritten: %v", err)
					return
				}
				if len(data) == 0 || !bytes.Equal(data, version(data[0])) {
					t.Errorf("read %d bytes that are no version", len(data))
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	wantNames(t, b, "", storage.ListOptions{}, "d/x")
}

func openRanges(t *testing.T, b storage.Bucket) {
	const size = 70_000
	data := Content(3, size)
	MustPut(t, b, "d/x", data)
	for _, rng := range []storage.Range{
		{}, {Length: 1}, {Length: size - 1}, {Length: size}, {Length: size + 1}, {Length: 10 * size},
		{Offset: 1}, {Offset: 1, Length: 1}, {Offset: 32768, Length: 32768},
		{Offset: size - 1}, {Offset: size - 1, Length: 1}, {Offset: size - 1, Length: 100},
		{Offset: size}, {Offset: size, Length: 1},
	} {
		end := int64(size)
		if rng.Length > 0 {
			end = min(end, rng.Offset+rng.Length)
		}
		got, err := get(t.Context(), b, "d/x", rng)
		if err != nil || !bytes.Equal(got, data[rng.Offset:end]) {
			t.Errorf("range %+v of %d bytes: got %d bytes, %v; want %d", rng, size, len(got), err, end-rng.Offset)
		}
	}
	MustPut(t, b, "empty", nil)
	for _, rng := range []storage.Range{{}, {Length: 5}} {
		if got, err := get(t.Context(), b, "empty", rng); err != nil || len(got) != 0 {
			t.Errorf("range %+v of an empty object: %d bytes, %v", rng, len(got), err)
		}
	}
}

func openBehindEnd(t *testing.T, b storage.Bucket) {
	MustPut(t, b, "x", Content(1, 10))
	for _, rng := range []storage.Range{{Offset: 11}, {Offset: 11, Length: 1}, {Offset: 1 << 40}} {
		got, err := get(t.Context(), b, "x", rng)
		wantError(t, fmt.Sprintf("range %+v of 10 bytes", rng), err, storage.ErrRange)
		if len(got) != 0 {
			t.Errorf("range %+v of 10 bytes yields %d", rng, len(got))
		}
	}
}

func openNegative(t *testing.T, b storage.Bucket) {
	MustPut(t, b, "x", Content(1, 10))
	for _, rng := range []storage.Range{{Offset: -1}, {Length: -1}} {
		_, err := get(t.Context(), b, "x", rng)
		wantError(t, fmt.Sprintf("range %+v", rng), err, storage.ErrRange)
	}
}

func openCloseEarly(t *testing.T, b storage.Bucket) {
	data := Content(1, 3<<20)
	MustPut(t, b, "d/x", data)
	for _, n := range []int{0, 1, 1 << 20} {
		r, err := b.Open(t.Context(), "d/x", storage.Range{})
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, n)
		if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, data[:n]) {
			t.Errorf("read %d bytes: %v", n, err)
		}
		if err := r.Close(); err != nil {
			t.Errorf("Close after %d bytes: %v", n, err)
		}
		if n, err := r.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("Read after Close: %d, %v; want an error", n, err)
		}
	}
}

func openCancel(t *testing.T, b storage.Bucket) {
	MustPut(t, b, "x", Content(1, 5<<20))
	ctx, cancel := context.WithCancel(t.Context())
	r, err := b.Open(ctx, "x", storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	cancel()
	_, err = io.Copy(io.Discard, r)
	wantError(t, "read after the context ended", err, context.Canceled)
}

func openKeepsVersion(t *testing.T, b storage.Bucket) {
	old := Content(1, 200_000)
	MustPut(t, b, "x", old)
	r, err := b.Open(t.Context(), "x", storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	head := make([]byte, 100)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	MustPut(t, b, "x", Content(2, 300_000))
	rest, err := io.ReadAll(r)
	if got := append(head, rest...); err != nil || !bytes.Equal(got, old) {
		t.Errorf("got %d bytes of which %d are the old object's, %v", len(got), common(got, old), err)
	}
}

func openInfo(t *testing.T, b storage.Bucket) {
	want := MustPut(t, b, "d/x", Content(1, 100))
	r, err := b.Open(t.Context(), "d/x", storage.Range{Offset: 50, Length: 10})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, ok := storage.InfoOf(r); ok && (got.Name != want.Name || got.Size != want.Size || !got.Modified.Equal(want.Modified)) {
		t.Errorf("the body tells %+v, Put told %+v", got, want)
	}
}

func missing(t *testing.T, b storage.Bucket) {
	MustPut(t, b, "d/x", nil)
	for _, name := range []string{"y", "d/y", "d/x2", "d/", "no/such/dir", "d/x/y"} {
		name = strings.TrimSuffix(name, "/")
		_, err := b.Stat(t.Context(), name)
		wantError(t, "Stat "+name, err, storage.ErrNotExist)
		_, err = b.Open(t.Context(), name, storage.Range{})
		wantError(t, "Open "+name, err, storage.ErrNotExist)
		if errors.Is(err, storage.ErrPermanent) {
			t.Errorf("a missing object is a permanent error: %v", err)
		}
	}
}

func parentIsNoObject(t *testing.T, b storage.Bucket) {
	MustPut(t, b, "d/e/x", []byte("x"))
	for _, name := range []string{"d", "d/e"} {
		_, err := b.Stat(t.Context(), name)
		wantError(t, "Stat "+name, err, storage.ErrNotExist)
		if err := b.Delete(t.Context(), name); err != nil {
			t.Errorf("Delete(%q): %v", name, err)
		}
	}
	wantNames(t, b, "", storage.ListOptions{}, "d/e/x")
}

// BadNames are names that CheckName refuses.
func BadNames() []string {
	return []string{"", "/", "/a", "a/", "a//b", ".", "..", "./a", "../a", "a/.", "a/..", "a/./b", "a/../b", "a/../../b", "a\x00b"}
}

func badNames(t *testing.T, b storage.Bucket) {
	for _, name := range BadNames() {
		touched := false
		_, err := b.Put(t.Context(), name, readerFunc(func([]byte) (int, error) { touched = true; return 0, io.EOF }), storage.PutOptions{})
		wantError(t, fmt.Sprintf("Put(%q)", name), err, storage.ErrName)
		if touched {
			t.Errorf("Put(%q) read from its reader", name)
		}
		_, err = b.Open(t.Context(), name, storage.Range{})
		wantError(t, fmt.Sprintf("Open(%q)", name), err, storage.ErrName)
		_, err = b.Stat(t.Context(), name)
		wantError(t, fmt.Sprintf("Stat(%q)", name), err, storage.ErrName)
		wantError(t, fmt.Sprintf("Delete(%q)", name), b.Delete(t.Context(), name), storage.ErrName)
	}
	wantNames(t, b, "", storage.ListOptions{})
}

func oddNames(t *testing.T, b storage.Bucket) {
	names := []string{
		"...", "..a", "a..", ".hidden", "d/..x/y", "with space", "d/plus+percent%41&=?#", "ünï/cödé",
		"000000010000000000000003.", "a.tmp", "a.tmp.b", "-dash", "*", "q'\"uote", `back\slash`,
		"basebackups_005/base_000000010000000000000003/tar_partitions/part_001.tar.lz4",
	}
	// A store may hold no backslash, which some take for a slash.
	if _, err := b.Stat(t.Context(), `back\slash`); errors.Is(err, storage.ErrName) {
		names = slices.DeleteFunc(names, func(n string) bool { return n == `back\slash` })
	}
	for i, name := range names {
		MustPut(t, b, name, Content(byte(i), i))
	}
	for i, name := range names {
		wantContent(t, b, name, Content(byte(i), i))
	}
	slices.Sort(names)
	wantNames(t, b, "", storage.ListOptions{}, names...)
	if err := b.Delete(t.Context(), names...); err != nil {
		t.Error(err)
	}
	wantNames(t, b, "", storage.ListOptions{})
}

func endedContext(t *testing.T, b storage.Bucket) {
	MustPut(t, b, "x", []byte("x"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := b.Put(ctx, "y", strings.NewReader("y"), storage.PutOptions{})
	wantError(t, "Put", err, context.Canceled)
	_, err = get(ctx, b, "x", storage.Range{})
	wantError(t, "Open", err, context.Canceled)
	_, err = b.Stat(ctx, "x")
	wantError(t, "Stat", err, context.Canceled)
	wantError(t, "Delete", b.Delete(ctx, "x"), context.Canceled)
	err = nil
	for _, e := range b.List(ctx, "", storage.ListOptions{}) {
		err = e
	}
	wantError(t, "List", err, context.Canceled)
	wantNames(t, b, "", storage.ListOptions{}, "x")
}

// tree is made to catch a listing that sorts by path element: '.' and '-'
// sort before '/', '0' and '_' after.
func tree() []string {
	names := []string{
		"a.b", "a-b", "a/x", "a/y/z", "a/y.z", "a/y0", "a0", "a_", "ab", "b/1", "b/10", "b/2", "b.lz4",
		"wal_005/000000010000000000000001.lz4", "wal_005/000000010000000000000002.lz4",
		"wal_005/000000010000000000000002.00000028.backup.lz4", "wal_005/00000002.history.lz4",
	}
	slices.Sort(names)
	return names
}

func plant(t *testing.T, b storage.Bucket) []string {
	t.Helper()
	names := tree()
	for i, name := range slices.Backward(names) {
		MustPut(t, b, name, Content(byte(i), i))
	}
	return names
}

func listOrder(t *testing.T, b storage.Bucket) {
	wantNames(t, b, "", storage.ListOptions{})
	names := plant(t, b)
	wantNames(t, b, "", storage.ListOptions{}, names...)
}

// prefixes are all prefixes of the tree's names and some that match nothing.
func prefixes() []string {
	set := map[string]bool{"c": true, "a/y/zz": true, "b//": true, "/": true, "../": true, "./": true, "a/../": true, "a.b/": true, "a/x/y": true, "wal_005/2": true}
	for _, name := range tree() {
		for i := range len(name) + 1 {
			set[name[:i]] = true
		}
	}
	list := make([]string, 0, len(set))
	for p := range set {
		list = append(list, p)
	}
	slices.Sort(list)
	return list
}

func listPrefix(t *testing.T, b storage.Bucket) {
	names := plant(t, b)
	for _, prefix := range prefixes() {
		wantNames(t, b, prefix, storage.ListOptions{}, model(names, prefix, storage.ListOptions{})...)
	}
}

func listShallow(t *testing.T, b storage.Bucket) {
	names := plant(t, b)
	for _, prefix := range prefixes() {
		opt := storage.ListOptions{Shallow: true}
		wantNames(t, b, prefix, opt, model(names, prefix, opt)...)
	}
}

func listAfter(t *testing.T, b storage.Bucket) {
	names := plant(t, b)
	afters := append(prefixes(), "~", "a/y/", "a/", "wal_005/")
	for _, prefix := range []string{"", "a", "a/", "b", "wal_005/", "wal_005/000000010"} {
		for _, after := range afters {
			for _, shallow := range []bool{false, true} {
				opt := storage.ListOptions{After: after, Shallow: shallow}
				wantNames(t, b, prefix, opt, model(names, prefix, opt)...)
			}
		}
	}
}

// model is what List promises, computed from sorted names.
func model(names []string, prefix string, opt storage.ListOptions) []string {
	list := []string{}
	for _, name := range names {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		if i := strings.IndexByte(rest, '/'); opt.Shallow && i >= 0 {
			name = prefix + rest[:i+1]
		}
		if name > opt.After && (len(list) == 0 || list[len(list)-1] != name) {
			list = append(list, name)
		}
	}
	return list
}

func listMakesNothing(t *testing.T, b storage.Bucket) {
	wantNames(t, b, "no/such/", storage.ListOptions{})
	wantNames(t, b, "no/such/", storage.ListOptions{Shallow: true})
	b.Stat(t.Context(), "no/such/x")
	wantNames(t, b, "", storage.ListOptions{})
	wantNames(t, b, "", storage.ListOptions{Shallow: true})
}

func listDescribes(t *testing.T, b storage.Bucket) {
	names := plant(t, b)
	i := 0
	for info, err := range b.List(t.Context(), "", storage.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		st, err := b.Stat(t.Context(), names[i])
		if err != nil {
			t.Fatal(err)
		}
		if info.Name != st.Name || info.Size != st.Size || !info.Modified.Equal(st.Modified) {
			t.Errorf("List tells %+v, Stat %+v", info, st)
		}
		i++
	}
}

func listStops(t *testing.T, b storage.Bucket) {
	plant(t, b)
	seen := 0
	for _, err := range b.List(t.Context(), "", storage.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		if seen++; seen == 3 {
			break
		}
	}
	// The iterator can be used again, from the start.
	seq := b.List(t.Context(), "a", storage.ListOptions{})
	for range 2 {
		n := 0
		for _, err := range seq {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if want := len(model(tree(), "a", storage.ListOptions{})); n != want {
			t.Errorf("yielded %d objects, want %d", n, want)
		}
	}
}

func listCancel(t *testing.T, b storage.Bucket) {
	plant(t, b)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	afterError := 0
	for _, err := range b.List(ctx, "", storage.ListOptions{}) {
		if last != nil {
			afterError++
		}
		last = err
		cancel()
	}
	wantError(t, "List whose context ends", last, context.Canceled)
	if afterError > 0 {
		t.Errorf("List yielded %d more after its error", afterError)
	}
}

func listDelete(t *testing.T, b storage.Bucket) {
	names := plant(t, b)
	var seen []string
	for info, err := range b.List(t.Context(), "", storage.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, info.Name)
		if err := b.Delete(t.Context(), info.Name); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(seen, names) {
		t.Errorf("listed %q, want %q", seen, names)
	}
	wantNames(t, b, "", storage.ListOptions{})
}

func deleteIdempotent(t *testing.T, b storage.Bucket) {
	MustPut(t, b, "d/e/x", []byte("x"))
	for range 2 {
		if err := b.Delete(t.Context(), "d/e/x/below", "d/e/x", "never/was", "d/e/y"); err != nil {
			t.Errorf("Delete: %v", err)
		}
		_, err := b.Stat(t.Context(), "d/e/x")
		wantError(t, "Stat of a deleted object", err, storage.ErrNotExist)
	}
	if err := b.Delete(t.Context()); err != nil {
		t.Errorf("Delete of nothing: %v", err)
	}
}

func deleteNeighbours(t *testing.T, b storage.Bucket) {
	names := plant(t, b)
	gone := []string{"a/x", "wal_005/00000002.history.lz4", "b/2", "a/y/z"}
	if err := b.Delete(t.Context(), gone...); err != nil {
		t.Fatal(err)
	}
	names = slices.DeleteFunc(names, func(n string) bool { return slices.Contains(gone, n) })
	wantNames(t, b, "", storage.ListOptions{}, names...)
}

func deleteBadName(t *testing.T, b storage.Bucket) {
	names := plant(t, b)
	err := b.Delete(t.Context(), names[0], "../x", names[1])
	wantError(t, "Delete", err, storage.ErrName)
	wantNames(t, b, "", storage.ListOptions{}, names...)
}

func deleteThenPut(t *testing.T, b storage.Bucket) {
	for i := range 3 {
		data := Content(byte(i), 100)
		MustPut(t, b, "d/e/f/x", data)
		wantContent(t, b, "d/e/f/x", data)
		if err := b.Delete(t.Context(), "d/e/f/x"); err != nil {
			t.Fatal(err)
		}
		wantNames(t, b, "", storage.ListOptions{Shallow: true})
	}
}

// manyAtOnce puts, reads and deletes in the same directories from many
// goroutines, each its own objects, so that a directory is made and removed
// under one another's feet.
func manyAtOnce(t *testing.T, b storage.Bucket) {
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			name := fmt.Sprintf("d/e/%d", g)
			for i := range 25 {
				data := Content(byte(g*25+i), 100+i)
				if _, err := b.Put(t.Context(), name, bytes.NewReader(data), storage.PutOptions{IfAbsent: i%2 == 0}); err != nil {
					t.Errorf("Put: %v", err)
					return
				}
				if got, err := get(t.Context(), b, name, storage.Range{}); err != nil || !bytes.Equal(got, data) {
					t.Errorf("read back: %d bytes, %v", len(got), err)
				}
				for _, err := range b.List(t.Context(), "d/", storage.ListOptions{}) {
					if err != nil {
						t.Errorf("List: %v", err)
					}
				}
				if err := b.Delete(t.Context(), name); err != nil {
					t.Errorf("Delete: %v", err)
				}
			}
		})
	}
	all.Wait()
	wantNames(t, b, "", storage.ListOptions{})
}
