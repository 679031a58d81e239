package swift_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	ncw "github.com/ncw/swift/v2"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/storagetest"
	"github.com/walherd/walherd/storage/swift"
)

// streamed hides a reader's length.
func streamed(data []byte) io.Reader { return struct{ io.Reader }{bytes.NewReader(data)} }

func put(t testing.TB, b storage.Bucket, name string, r io.Reader) error {
	t.Helper()
	_, err := b.Put(t.Context(), name, r, storage.PutOptions{})
	return err
}

func wantIs(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("error %v, want %v", err, target)
	}
}

// wantHint checks that an error is permanent and names what to mend.
func wantHint(t testing.TB, err error, hints ...string) {
	t.Helper()
	wantIs(t, err, storage.ErrPermanent)
	for _, hint := range hints {
		if err != nil && !strings.Contains(err.Error(), hint) {
			t.Errorf("error %q does not tell of %q", err, hint)
		}
	}
}

func notPermanent(t testing.TB, err error) {
	t.Helper()
	if err == nil || errors.Is(err, storage.ErrPermanent) {
		t.Errorf("error %v, want one that may pass", err)
	}
}

// TestFaultsAcknowledgedIsWhole spoils every third request.
func TestFaultsAcknowledgedIsWhole(t *testing.T) {
	t.Parallel()
	s := start(t, false)
	opt := s.options(t)
	opt.Retries = 50
	b := open(t, opt)
	var n atomic.Int64
	faults := []fault{fail503, reset, lose, expire}
	s.do(func(r *http.Request) fault {
		i := n.Add(1)
		if r.URL.Path == "/v1.0" || r.Method == http.MethodHead || i%3 != 0 {
			return pass
		}
		return faults[i/3%int64(len(faults))]
	})
	var all sync.WaitGroup
	for i, size := range []int{0, 1, 3000, 100_000, 600_000} {
		all.Go(func() {
			data := storagetest.Content(byte(i), size)
			name := fmt.Sprintf("objects/%d", size)
			info, err := b.Put(t.Context(), name, iotest.HalfReader(bytes.NewReader(data)), storage.PutOptions{IfAbsent: i%2 == 0})
			if err != nil || info.Size != int64(size) {
				t.Errorf("Put of %d bytes: %+v, %v", size, info, err)
				return
			}
		})
	}
	all.Wait()
	s.do(func(*http.Request) fault { return pass })
	for i, size := range []int{0, 1, 3000, 100_000, 600_000} {
		if got := storagetest.MustGet(t, b, fmt.Sprintf("objects/%d", size)); !bytes.Equal(got, storagetest.Content(byte(i), size)) {
			t.Errorf("object of %d bytes holds %d others", size, len(got))
		}
	}
}

// TestFaultsFailedPutLeavesTheOldObject breaks each step for good.
func TestFaultsFailedPutLeavesTheOldObject(t *testing.T) {
	t.Parallel()
	for name, is := range map[string]func(*http.Request) bool{"Put": isPut, "Segment": isSegment, "Manifest": isManifest} {
		for _, f := range []fault{fail503, reset, damage, stall} {
			t.Run(fmt.Sprint(name, f), func(t *testing.T) {
				t.Parallel()
				s := start(t, false)
				opt := s.options(t)
				opt.Retries, opt.BufferSize, opt.SegmentSize, opt.Segments = 2, 1000, 100_000, name != "Put"
				if f == stall {
					opt.StallTimeout = 100 * time.Millisecond
				}
				b := open(t, opt)
				old := storagetest.Content(1, 100)
				storagetest.MustPut(t, b, "x", old)
				s.do(times(1<<40, f, is))
				for _, object := range []string{"x", "y"} {
					notPermanent(t, put(t, b, object, streamed(storagetest.Content(2, 350_000))))
				}
				s.do(func(*http.Request) fault { return pass })
				if name != "Put" || f != damage { // see TestDamagedStream
					if got := storagetest.MustGet(t, b, "x"); !bytes.Equal(got, old) {
						t.Error("the old object is gone")
					}
				}
				_, err := b.Stat(t.Context(), "y")
				wantIs(t, err, storage.ErrNotExist)
				want := 0
				if name == "Manifest" && f != damage {
					want = 8 // of two Puts whose manifests may yet come to light
				}
				if left := s.segments(t, opt); len(left) != want {
					t.Errorf("%d segments are left, want %d: %q", len(left), want, left)
				}
			})
		}
	}
}

// TestDamagedStream: what was damaged under way does not stay, and small
// content is refused by the store before it is seen.
func TestDamagedStream(t *testing.T) {
	t.Parallel()
	s := start(t, false)
	opt := s.options(t)
	opt.BufferSize, opt.Retries = 1000, -1
	b := open(t, opt)
	storagetest.MustPut(t, b, "small", []byte("old"))
	s.do(times(2, damage, isPut))
	notPermanent(t, put(t, b, "large", streamed(storagetest.Content(1, 50_000))))
	_, err := b.Stat(t.Context(), "large")
	wantIs(t, err, storage.ErrNotExist)
	notPermanent(t, put(t, b, "small", strings.NewReader("new")))
	if got := storagetest.MustGet(t, b, "small"); string(got) != "old" {
		t.Errorf("holds %q", got)
	}
}

// TestLostAnswers: the store did it, and its answer was lost.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	for name, is := range map[string]func(*http.Request) bool{"Put": isPut, "Manifest": isManifest} {
		for _, ifAbsent := range []bool{false, true} {
			for _, size := range []int{100, 350_000} {
				t.Run(fmt.Sprint(name, ifAbsent, size), func(t *testing.T) {
					t.Parallel()
					s := start(t, false)
					opt := s.options(t)
					opt.BufferSize, opt.SegmentSize, opt.Segments = 1000, 100_000, name == "Manifest"
					b := open(t, opt)
					s.do(times(1, lose, is))
					data := storagetest.Content(2, size)
					info, err := b.Put(t.Context(), "x", streamed(data), storage.PutOptions{IfAbsent: ifAbsent})
					if err != nil || info.Size != int64(size) {
						t.Errorf("Put: %+v, %v", info, err)
					}
					if got := storagetest.MustGet(t, b, "x"); !bytes.Equal(got, data) {
						t.Errorf("holds %d other bytes", len(got))
					}
				})
			}
		}
	}
}

// TestManifestInDoubt: nobody can tell whether the manifest is there, so its
// segments stay.
func TestManifestInDoubt(t *testing.T) {
	t.Parallel()
	s := start(t, false)
	opt := s.options(t)
	opt.BufferSize, opt.SegmentSize, opt.Segments, opt.Retries = 1000, 100_000, true, -1
	b := open(t, opt)
	var manifest atomic.Bool
	s.do(func(r *http.Request) fault {
		switch {
		case isManifest(r):
			manifest.Store(true)
			return lose
		case manifest.Load() && isHead(r):
			return fail503
		}
		return pass
	})
	data := storagetest.Content(2, 350_000)
	notPermanent(t, put(t, b, "x", streamed(data)))
	s.do(func(*http.Request) fault { return pass })
	if got := storagetest.MustGet(t, b, "x"); !bytes.Equal(got, data) {
		t.Errorf("holds %d other bytes", len(got))
	}
}

func TestLargeObjects(t *testing.T) {
	t.Parallel()
	largeObjects(t, start(t, false))
}

func TestLargeObjectsReal(t *testing.T) {
	t.Parallel()
	largeObjects(t, start(t, true))
}

// largeObjects looks at segments: where they are, and that they go with
// their object.
func largeObjects(t *testing.T, s *server) {
	opt := s.options(t)
	opt.BufferSize, opt.SegmentSize, opt.MaxObject = 1000, 100_000, 200_000
	b := open(t, opt)
	want := func(n int) {
		t.Helper()
		if got := s.segments(t, opt); len(got) != n {
			t.Errorf("%d segments, want %d: %q", len(got), n, got)
		}
	}
	// The length is known, so that no setting is needed.
	data := storagetest.Content(1, 350_000)
	storagetest.MustPut(t, b, "d/x", data)
	want(4)
	if names := storagetest.Names(t, b, "", storage.ListOptions{}); len(names) != 1 || names[0] != "d/x" {
		t.Errorf("listed %q", names)
	}
	for info, err := range b.List(t.Context(), "", storage.ListOptions{}) {
		// swifttest lists the size of the manifest, Swift the object's.
		if err != nil || s.fake == nil && info.Size != int64(len(data)) {
			t.Errorf("listed %+v, %v", info, err)
		}
	}
	for _, rng := range []storage.Range{{}, {Offset: 99_999, Length: 2}, {Offset: 150_000, Length: 150_001}, {Offset: 349_999}, {Offset: 350_000}} {
		r, err := b.Open(t.Context(), "d/x", rng)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		end := int64(len(data))
		if rng.Length > 0 {
			end = rng.Offset + rng.Length
		}
		if err != nil || !bytes.Equal(got, data[rng.Offset:end]) {
			t.Errorf("range %+v: %d bytes, %v", rng, len(got), err)
		}
	}
	// Exactly at the limit and just under it are no large objects.
	storagetest.MustPut(t, b, "plain", storagetest.Content(2, 200_000))
	want(4)
	// An overwrite removes what the old one had, small or large.
	storagetest.MustPut(t, b, "d/x", storagetest.Content(2, 250_000))
	want(3)
	storagetest.MustPut(t, b, "d/x", []byte("small"))
	want(0)
	if got := storagetest.MustGet(t, b, "d/x"); string(got) != "small" {
		t.Errorf("holds %d bytes", len(got))
	}
	storagetest.MustPut(t, b, "d/y", storagetest.Content(2, 250_000))
	if _, err := b.Put(t.Context(), "d/y", bytes.NewReader(data), storage.PutOptions{IfAbsent: true}); !errors.Is(err, storage.ErrExist) {
		t.Errorf("IfAbsent of a large object that exists: %v", err)
	}
	want(3)
	if err := b.Delete(t.Context(), "d/x", "none", "plain", "d/y"); err != nil {
		t.Error(err)
	}
	want(0)
	// Of no known length and too large.
	wantHint(t, put(t, b, "z", streamed(data)), "WALG_TAR_SIZE_THRESHOLD")
	// A reader that fails in the third segment.
	boom := errors.New("boom")
	opt.Segments = true
	b = open(t, opt)
	wantIs(t, put(t, b, "z", io.MultiReader(bytes.NewReader(data[:250_000]), iotest.ErrReader(boom))), boom)
	want(0)
	// A context that ends in the third segment.
	ctx, cancel := context.WithCancel(t.Context())
	_, err := b.Put(ctx, "z", io.MultiReader(bytes.NewReader(data[:250_000]), readerFunc(func([]byte) (int, error) { cancel(); return 0, io.EOF })), storage.PutOptions{})
	wantIs(t, err, context.Canceled)
	want(0)
	if names := storagetest.Names(t, b, "", storage.ListOptions{}); len(names) != 0 {
		t.Errorf("listed %q", names)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestNoLargeObjects(t *testing.T) {
	t.Parallel()
	s := start(t, false)
	s.fake.noSLO = true
	opt := s.options(t)
	opt.BufferSize, opt.Segments = 1000, true
	wantHint(t, put(t, open(t, opt), "x", streamed(make([]byte, 5000))), "WALG_TAR_SIZE_THRESHOLD")
}

// TestDynamicLargeObject reads what another client wrote.
func TestDynamicLargeObject(t *testing.T) {
	t.Parallel()
	dynamicLargeObject(t, start(t, false))
}

func TestDynamicLargeObjectReal(t *testing.T) {
	t.Parallel()
	dynamicLargeObject(t, start(t, true))
}

func dynamicLargeObject(t *testing.T, s *server) {
	opt := s.options(t)
	c, ctx, data := s.connection(t), t.Context(), storagetest.Content(3, 30_000)
	segments := opt.Container + "_segments"
	if err := c.ContainerCreate(ctx, segments, nil); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := c.ObjectPutBytes(ctx, segments, fmt.Sprintf("dlo/%d", i), data[i*10_000:(i+1)*10_000], ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.ObjectPut(ctx, opt.Container, "some/path/x", strings.NewReader(""), false, "", "",
		ncw.Headers{"X-Object-Manifest": segments + "/dlo/"}); err != nil {
		t.Fatal(err)
	}
	b := open(t, opt)
	if got := storagetest.MustGet(t, b, "x"); !bytes.Equal(got, data) {
		t.Errorf("read %d bytes", len(got))
	}
	for info, err := range b.List(ctx, "", storage.ListOptions{}) {
		if err != nil || info.Size != int64(len(data)) {
			t.Errorf("listed %+v, %v", info, err)
		}
	}
}

// TestBrokenBodies continues what broke, and never ends early in silence.
func TestBrokenBodies(t *testing.T) {
	t.Parallel()
	data := storagetest.Content(1, 300_000)
	for _, f := range []fault{cut, freeze} {
		for _, n := range []int64{1, 1 << 40} {
			t.Run(fmt.Sprint(f, n), func(t *testing.T) {
				t.Parallel()
				s := start(t, false)
				opt := s.options(t)
				opt.StallTimeout, opt.Retries = 300*time.Millisecond, 3
				b := open(t, opt)
				storagetest.MustPut(t, b, "x", data)
				s.do(times(n, f, isGet))
				r, err := b.Open(t.Context(), "x", storage.Range{})
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				got, err := io.ReadAll(r)
				if !bytes.HasPrefix(data, got) {
					t.Error("other bytes")
				}
				if n == 1 && (err != nil || len(got) != len(data)) {
					t.Errorf("read %d bytes, %v", len(got), err)
				}
				if n > 1 {
					wantIs(t, err, io.ErrUnexpectedEOF)
					notPermanent(t, err)
				}
			})
		}
	}
}

// TestShortened: a proxy tells half of the length. The sum shows it.
func TestShortened(t *testing.T) {
	t.Parallel()
	s := start(t, false)
	b := open(t, s.options(t))
	storagetest.MustPut(t, b, "x", storagetest.Content(1, 10_000))
	s.do(times(1, shorten, isGet))
	r, err := b.Open(t.Context(), "x", storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, err = io.ReadAll(r)
	wantHint(t, err, "MD5")
}

// TestReplacedWhileRead: a body that broke does not go on in another version.
func TestReplacedWhileRead(t *testing.T) {
	t.Parallel()
	s := start(t, false)
	b := open(t, s.options(t))
	storagetest.MustPut(t, b, "x", storagetest.Content(1, 300_000))
	s.do(times(1, cut, isGet))
	r, err := b.Open(t.Context(), "x", storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	storagetest.MustPut(t, b, "x", storagetest.Content(2, 300_000))
	_, err = io.ReadAll(r)
	wantHint(t, err, "replaced")
}

// TestToken: one that ended is renewed, also for a streamed Put.
func TestToken(t *testing.T) {
	t.Parallel()
	token(t, start(t, false))
}

func TestTokenReal(t *testing.T) {
	t.Parallel()
	token(t, start(t, true))
}

func token(t *testing.T, s *server) {
	opt := s.options(t)
	opt.BufferSize = 1000
	b := open(t, opt)
	storagetest.MustPut(t, b, "x", nil)
	before := s.auths.Load()
	steps := []func() error{
		func() error { return put(t, b, "x", strings.NewReader("small")) },
		func() error { return put(t, b, "y", streamed(storagetest.Content(1, 50_000))) },
		func() error { _, err := b.Stat(t.Context(), "x"); return err },
		func() error { r, err := b.Open(t.Context(), "x", storage.Range{}); r.Close(); return err },
		func() error {
			for _, err := range b.List(t.Context(), "", storage.ListOptions{}) {
				if err != nil {
					return err
				}
			}
			return nil
		},
		func() error { return b.Delete(t.Context(), "x", "y", "z") },
	}
	for i, step := range steps {
		s.do(times(1, expire, func(r *http.Request) bool { return r.URL.Path != "/v1.0" && r.URL.Path != "/info" }))
		if err := step(); err != nil {
			t.Errorf("step %d: %v", i, err)
		}
	}
	if got := s.auths.Load() - before; got != int64(len(steps)) {
		t.Errorf("%d logins, want %d", got, len(steps))
	}
	// In the second, bulk, request of a Delete.
	if s.fake != nil {
		s.do(times(1, expire, func(r *http.Request) bool { return r.URL.Query().Has("bulk-delete") }))
		if err := b.Delete(t.Context(), "a", "b", "c"); err != nil {
			t.Error(err)
		}
	}
	// One that never works is a person's matter.
	s.do(times(1<<40, expire, func(r *http.Request) bool { return r.URL.Path != "/v1.0" }))
	_, err := b.Stat(t.Context(), "x")
	wantHint(t, err, "OS_PASSWORD")
}

func TestPermanent(t *testing.T) {
	t.Parallel()
	permanent(t, start(t, false))
}

func TestPermanentReal(t *testing.T) {
	t.Parallel()
	permanent(t, start(t, true))
}

// permanent runs what a person must mend through each call.
func permanent(t *testing.T, s *server) {
	calls := func(b *swift.Bucket) map[string]error {
		errs := map[string]error{}
		errs["put"] = put(t, b, "x", strings.NewReader("x"))
		_, errs["stat"] = b.Stat(t.Context(), "x")
		_, errs["open"] = b.Open(t.Context(), "x", storage.Range{})
		errs["delete"] = b.Delete(t.Context(), "x")
		errs["list"] = nil
		for _, err := range b.List(t.Context(), "", storage.ListOptions{}) {
			errs["list"] = err
		}
		return errs
	}
	check := func(name string, opt swift.Options, hint string) {
		for call, err := range calls(open(t, opt)) {
			if !errors.Is(err, storage.ErrPermanent) || !strings.Contains(err.Error(), hint) {
				t.Errorf("%s, %s: error %v, want a permanent one that tells of %s", name, call, err, hint)
			}
		}
	}
	opt := s.options(t)
	opt.Container = "never-made"
	check("missing container", opt, "WALG_SWIFT_PREFIX")

	opt = s.options(t)
	opt.Settings["OS_PASSWORD"] = "wrong"
	check("wrong password", opt, "OS_PASSWORD")

	opt = s.options(t)
	s.do(times(1<<40, forbid, func(r *http.Request) bool { return strings.Contains(r.URL.Path, opt.Container) }))
	check("forbidden", opt, "OS_PROJECT_NAME")

	s.do(times(1, full, isPut))
	wantHint(t, put(t, open(t, s.options(t)), "x", strings.NewReader("x")), "quota")
}

// TestPassing: a busy or unreachable store is not a person's matter.
func TestPassing(t *testing.T) {
	t.Parallel()
	s := start(t, false)
	opt := s.options(t)
	opt.Retries = 1
	b := open(t, opt)
	storagetest.MustPut(t, b, "x", []byte("x"))
	s.do(times(1<<40, fail503, func(*http.Request) bool { return true }))
	notPermanent(t, put(t, b, "x", strings.NewReader("x")))
	_, err := b.Stat(t.Context(), "x")
	notPermanent(t, err)
	notPermanent(t, b.Delete(t.Context(), "x"))
	for _, err := range b.List(t.Context(), "", storage.ListOptions{}) {
		notPermanent(t, err)
	}
	s.CloseClientConnections()
	s.Listener.Close()
	_, err = b.Stat(t.Context(), "x")
	notPermanent(t, err)
}

// TestIfAbsentSeesLateComers: another Put that ended while this one was
// streaming wins.
func TestIfAbsentSeesLateComers(t *testing.T) {
	t.Parallel()
	lateComers(t, start(t, false))
}

func TestIfAbsentSeesLateComersReal(t *testing.T) {
	t.Parallel()
	lateComers(t, start(t, true))
}

func lateComers(t *testing.T, s *server) {
	opt := s.options(t)
	opt.BufferSize = 1000
	b, other := open(t, opt), open(t, opt)
	r := io.MultiReader(bytes.NewReader(storagetest.Content(1, 50_000)), readerFunc(func([]byte) (int, error) {
		storagetest.MustPut(t, other, "x", []byte("other"))
		return 0, io.EOF
	}))
	_, err := b.Put(t.Context(), "x", r, storage.PutOptions{IfAbsent: true})
	wantIs(t, err, storage.ErrExist)
	if got := storagetest.MustGet(t, b, "x"); string(got) != "other" {
		t.Errorf("holds %d bytes", len(got))
	}
}

// TestBulkDelete deletes more than one request takes.
func TestBulkDelete(t *testing.T) {
	t.Parallel()
	bulkDelete(t, start(t, false))
}

func TestBulkDeleteReal(t *testing.T) {
	t.Parallel()
	bulkDelete(t, start(t, true))
}

func bulkDelete(t *testing.T, s *server) {
	opt := s.options(t)
	opt.DeleteBatch = 5
	b := open(t, opt)
	names := []string{"sentinel", "with space", "ünï/cödé", "plus+percent%41&=?#"}
	for i := range 13 {
		names = append(names, fmt.Sprintf("d/%02d", i))
	}
	for _, name := range names[:len(names)-2] { // two are missing
		storagetest.MustPut(t, b, name, nil)
	}
	storagetest.MustPut(t, b, "stays", nil)
	var seen []string
	var mu sync.Mutex
	s.do(func(r *http.Request) fault {
		if isDelete(r) {
			mu.Lock()
			seen = append(seen, r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]+"?"+r.URL.RawQuery)
			mu.Unlock()
		}
		return pass
	})
	for range 2 {
		if err := b.Delete(t.Context(), names...); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != 2*5 || seen[0] != "sentinel?" || !strings.Contains(seen[1], "bulk-delete") {
		t.Errorf("requests %q", seen)
	}
	if got := storagetest.Names(t, b, "", storage.ListOptions{}); len(got) != 1 {
		t.Errorf("left %q", got)
	}
}
