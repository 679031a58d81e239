package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/retry"
	"github.com/walherd/walherd/storage/s3"
	"github.com/walherd/walherd/storage/s3/s3test"
	"github.com/walherd/walherd/storage/storagetest"
)

// pair is a Bucket behind a proxy and the same one without.
func pair(t testing.TB, s *s3test.Server, script func(*http.Request) fault, tune func(*s3.Options)) (spoiled, direct *s3.Bucket, p *proxy) {
	t.Helper()
	p = newProxy(t, s.Endpoint, script)
	opt := options(t, s)
	opt.PartSize, opt.UploadConcurrency = 5<<20, 2
	opt.StallTimeout = stallFor(pass)
	direct = open(t, opt)
	opt.Endpoint = p.URL
	if tune != nil {
		tune(&opt)
	}
	return open(t, opt), direct, p
}

func unfinished(t testing.TB, b *s3.Bucket) []s3.Upload {
	t.Helper()
	var list []s3.Upload
	for u, err := range b.Unfinished(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, u)
	}
	return list
}

// wantClean checks that nothing is left of uploads, in memory or in the
// bucket.
func wantClean(t testing.TB, b, direct *s3.Bucket) {
	t.Helper()
	if now, _ := b.Memory(); now != 0 {
		t.Errorf("%d bytes are still held", now)
	}
	if !b.BudgetFree() {
		t.Error("some of the upload budget was not given back")
	}
	if left := unfinished(t, direct); len(left) != 0 {
		t.Errorf("unfinished uploads: %+v", left)
	}
}

// TestFaultsAcknowledgedIsWhole puts objects through a link on which a third
// of the requests go wrong.
func TestFaultsAcknowledgedIsWhole(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{})
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(1, 2))
	faults := []fault{fail500, slowDown, reset, lose, stall, fail500, slowDown}
	script := func(r *http.Request) fault {
		mu.Lock()
		defer mu.Unlock()
		if random.IntN(3) > 0 {
			return pass
		}
		f := faults[random.IntN(len(faults))]
		if f == lose && isCreate(r) {
			f = reset // see TestFaultsLostCreate
		}
		return f
	}
	// A busy machine may take longer than stallFor(stall) to start an upload:
	// given up and tried again, it leaves one that nobody knows of.
	b, direct, _ := pair(t, server, script, func(o *s3.Options) { o.StallTimeout, o.MaxRetries = 3*time.Second, 50 })

	sizes := []int{0, 1, 3000, 600_000, 5<<20 - 1, 5 << 20, 5<<20 + 1, 17<<20 + 5}
	var all sync.WaitGroup
	for i, size := range sizes {
		all.Go(func() {
			data := storagetest.Content(byte(i), size)
			name := fmt.Sprintf("objects/%d", size)
			info, err := b.Put(t.Context(), name, iotest.HalfReader(bytes.NewReader(data)), storage.PutOptions{IfAbsent: i%2 == 0})
			if err != nil {
				t.Errorf("Put of %d bytes: %v", size, err)
				return
			}
			if info.Size != int64(size) {
				t.Errorf("Put of %d bytes tells %d", size, info.Size)
			}
			if got := storagetest.MustGet(t, direct, name); !bytes.Equal(got, data) {
				t.Errorf("object of %d bytes holds %d others", size, len(got))
			}
		})
	}
	all.Wait()
	wantClean(t, b, direct)
	// One part for each Put, and the budget; small objects hold one chunk.
	if _, peak := b.Memory(); peak > int64(len(sizes)+2)*(5<<20)+int64(len(sizes))<<20 {
		t.Errorf("held %d bytes at most", peak)
	}
}

// TestFaultsFailedPutLeavesNothing breaks each step of an upload for good.
func TestFaultsFailedPutLeavesNothing(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{})
	for name, is := range map[string]func(*http.Request) bool{"Create": isCreate, "Part": isPart, "Complete": isComplete, "Put": isPut} {
		for _, f := range []fault{fail500, reset} {
			t.Run(fmt.Sprint(name, f), func(t *testing.T) {
				t.Parallel()
				b, direct, _ := pair(t, server, times(1<<40, f, is), func(o *s3.Options) { o.MaxRetries = 2 })
				old := storagetest.Content(1, 100)
				storagetest.MustPut(t, direct, "x", old)
				size := 12 << 20
				if name == "Put" {
					size = 1 << 20
				}
				_, err := b.Put(t.Context(), "x", bytes.NewReader(storagetest.Content(2, size)), storage.PutOptions{})
				if err == nil {
					t.Fatal("Put succeeded")
				}
				if errors.Is(err, storage.ErrPermanent) {
					t.Errorf("what may pass is permanent: %v", err)
				}
				if got := storagetest.MustGet(t, direct, "x"); !bytes.Equal(got, old) {
					t.Error("the old object is gone")
				}
				wantClean(t, b, direct)
			})
		}
	}
}

// TestFaultsReaderOrCallerGivesUp: also then nothing is left, though the
// context has ended.
func TestFaultsReaderOrCallerGivesUp(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{})
	b, direct, _ := pair(t, server, never, nil)
	boom := errors.New("boom")
	r := io.MultiReader(bytes.NewReader(storagetest.Content(1, 12<<20)), iotest.ErrReader(boom))
	if _, err := b.Put(t.Context(), "x", r, storage.PutOptions{}); !errors.Is(err, boom) {
		t.Errorf("Put of a reader that fails: %v", err)
	}
	wantClean(t, b, direct)
	ctx, cancel := context.WithCancel(t.Context())
	r = io.MultiReader(bytes.NewReader(storagetest.Content(1, 12<<20)), cancels{cancel}, bytes.NewReader(storagetest.Content(1, 12<<20)))
	if _, err := b.Put(ctx, "x", r, storage.PutOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Put whose context ends: %v", err)
	}
	wantClean(t, b, direct)
	if names := storagetest.Names(t, direct, "", storage.ListOptions{}); len(names) != 0 {
		t.Errorf("objects: %q", names)
	}
}

type cancels struct{ cancel func() }

func (c cancels) Read([]byte) (int, error) { c.cancel(); return 0, io.EOF }

// TestFaultsLostAnswer: the store has done the last step, and its answer is
// lost. The second try is told that the object exists, or the upload does not.
func TestFaultsLostAnswer(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{})
	for _, c := range []struct {
		name string
		is   func(*http.Request) bool
		size int
	}{{"Put", isPut, 1000}, {"Complete", isComplete, 6 << 20}, {"Part", isPart, 6 << 20}} {
		for _, ifAbsent := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, ifAbsent), func(t *testing.T) {
				t.Parallel()
				b, direct, _ := pair(t, server, once(lose, c.is), nil)
				data := storagetest.Content(3, c.size)
				opt := storage.PutOptions{IfAbsent: ifAbsent}
				if _, err := b.Put(t.Context(), "x", bytes.NewReader(data), opt); err != nil {
					t.Fatal(err)
				}
				if got := storagetest.MustGet(t, direct, "x"); !bytes.Equal(got, data) {
					t.Error("the object is another")
				}
				wantClean(t, b, direct)
				if _, err := b.Put(t.Context(), "x", bytes.NewReader(data), storage.PutOptions{IfAbsent: true}); !errors.Is(err, storage.ErrExist) {
					t.Errorf("another Put IfAbsent: %v", err)
				}
			})
		}
	}
}

// TestFaultsLostCreate: an upload whose id nobody got to know can only be
// found later.
func TestFaultsLostCreate(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{})
	b, direct, _ := pair(t, server, once(lose, isCreate), nil)
	if _, err := b.Put(t.Context(), "d/x", bytes.NewReader(storagetest.Content(1, 6<<20)), storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	left := unfinished(t, direct)
	if len(left) != 1 || left[0].Name != "d/x" || left[0].ID == "" || time.Since(left[0].Started) > time.Hour {
		t.Fatalf("unfinished uploads: %+v", left)
	}
	sweeper, ok := storage.SweeperOf(direct)
	if !ok {
		t.Fatal("S3 tells no unfinished uploads")
	}
	var uploads []storage.Leftover
	for u, err := range sweeper.Leftovers(t.Context(), "d/") {
		if err != nil {
			t.Fatal(err)
		}
		uploads = append(uploads, u)
	}
	if len(uploads) != 1 || uploads[0] != (storage.Leftover{Name: "d/x", ID: left[0].ID, Moved: left[0].Started}) {
		t.Fatalf("leftovers: %+v", uploads)
	}
	for range 2 {
		if err := sweeper.DropLeftovers(t.Context(), uploads...); err != nil {
			t.Fatal(err)
		}
	}
	wantClean(t, b, direct)
}

// TestFaultsRead reads through each fault.
func TestFaultsRead(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{})
	data := storagetest.Content(1, 3<<20+7)
	for f := pass; f < faultsCount; f++ {
		for _, parallel := range []int{1, 4} {
			t.Run(fmt.Sprint(int(f), "x", parallel), func(t *testing.T) {
				t.Parallel()
				b, direct, _ := pair(t, server, times(3, f, isGet), func(o *s3.Options) {
					o.StallTimeout = stallFor(f)
					o.ReadParallel, o.ReadRange = parallel, 256<<10
				})
				storagetest.MustPut(t, direct, "x", data)
				got, err := read(t.Context(), b, storage.Range{})
				if f == shorten {
					// Nothing but the checksum tells.
					if !errors.Is(err, storage.ErrPermanent) {
						t.Errorf("half of the object, told as the whole: %d bytes, %v", len(got), err)
					}
					return
				}
				if f == lengthen {
					// There is nothing to go on with: the store has no more.
					if !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.HasPrefix(data, got) {
						t.Errorf("less than was told: %d bytes, %v", len(got), err)
					}
				} else if err != nil || !bytes.Equal(got, data) {
					t.Errorf("read %d bytes of %d: %v", len(got), len(data), err)
				}
				if now, _ := b.Memory(); now != 0 {
					t.Errorf("%d bytes are still held", now)
				}
			})
		}
	}
}

// TestFaultsReadWithoutResuming: what ends early is told.
func TestFaultsReadWithoutResuming(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{})
	data := storagetest.Content(1, 300_000)
	for _, f := range []fault{cut, lengthen, freeze} {
		b, direct, _ := pair(t, server, once(f, isGet), func(o *s3.Options) { o.Resumes, o.StallTimeout = -1, stallFor(f) })
		storagetest.MustPut(t, direct, "x", data)
		got, err := read(t.Context(), b, storage.Range{})
		if !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.HasPrefix(data, got) {
			t.Errorf("fault %d: %d bytes, %v", f, len(got), err)
		}
	}
	// A range is known by what it tells, without a checksum.
	b, direct, _ := pair(t, server, once(shorten, isGet), nil)
	storagetest.MustPut(t, direct, "x", data)
	if got, err := read(t.Context(), b, storage.Range{Offset: 10}); err == nil && !bytes.Equal(got, data[10:]) {
		t.Errorf("half of a range: %d bytes", len(got))
	}
}

// TestFaultsReplacedWhileRead: a continuation never mixes two versions.
func TestFaultsReplacedWhileRead(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{})
	for _, parallel := range []int{1, 3} {
		f := cut
		if parallel > 1 {
			f = pass
		}
		b, direct, _ := pair(t, server, once(f, isGet), func(o *s3.Options) { o.ReadParallel, o.ReadRange = parallel, 64<<10 })
		old := storagetest.Content(1, 2<<20)
		storagetest.MustPut(t, direct, "x", old)
		r, err := retry.New(b, retry.Options{First: time.Millisecond}).Open(t.Context(), "x", storage.Range{})
		if err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 10)
		if _, err := io.ReadFull(r, head); err != nil {
			t.Fatal(err)
		}
		storagetest.MustPut(t, direct, "x", storagetest.Content(2, 2<<20))
		rest, err := io.ReadAll(r)
		if got := append(head, rest...); !bytes.HasPrefix(old, got) || err == nil && len(got) != len(old) {
			t.Errorf("parallel %d: %d bytes that are not of the old object, %v", parallel, len(got), err)
		}
		r.Close()
	}
}

// TestFaultsServerStopped: the store goes away in the middle of an upload and
// of a download, and comes back.
func TestFaultsServerStopped(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{})
	b, direct, p := pair(t, server, never, func(o *s3.Options) { o.MaxRetries, o.MaxRetryDelay = 1000, 20*time.Millisecond })
	data := storagetest.Content(1, 17<<20)
	comeBack := func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
		go func() {
			for range 5 {
				<-p.refused
			}
			if err := server.Restart(t.Context()); err != nil {
				t.Error(err)
			}
		}()
	}
	r := io.MultiReader(bytes.NewReader(data[:11<<20]), calls{comeBack}, bytes.NewReader(data[11<<20:]))
	if _, err := b.Put(t.Context(), "x", r, storage.PutOptions{IfAbsent: true}); err != nil {
		t.Fatal(err)
	}
	if got := storagetest.MustGet(t, direct, "x"); !bytes.Equal(got, data) {
		t.Error("the object is not what was put")
	}
	wantClean(t, b, direct)

	body, err := b.Open(t.Context(), "x", storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	head := make([]byte, 1<<20)
	if _, err := io.ReadFull(body, head); err != nil {
		t.Fatal(err)
	}
	for len(p.refused) > 0 {
		<-p.refused
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	p.CloseClientConnections()
	go func() {
		for range 3 {
			<-p.refused
		}
		if err := server.Restart(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	rest, err := io.ReadAll(body)
	if got := append(head, rest...); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d bytes of %d: %v", len(got), len(data), err)
	}
}

type calls struct{ f func() }

func (c calls) Read([]byte) (int, error) { c.f(); return 0, io.EOF }

func read(ctx context.Context, b storage.Bucket, rng storage.Range) ([]byte, error) {
	r, err := b.Open(ctx, "x", rng)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}
