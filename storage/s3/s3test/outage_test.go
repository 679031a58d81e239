//go:build unix

package s3test_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"go.uber.org/goleak"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/retry"
	"github.com/walherd/walherd/storage/s3"
	"github.com/walherd/walherd/storage/s3/s3test"
)

// The heap is a process's: this test has a test binary of its own, so that
// what it samples is what the storages hold.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	// frozen and killed are how long the store is away: long enough for the
	// pauses between tries to have grown, shorter than what any limit gives
	// up at. To its clients a killed one is away for longer: they come back
	// with their next try, up to 20 s later.
	frozen = 30 * time.Second
	killed = 22 * time.Second

	partSize    = 5 << 20
	concurrency = 4
	streams     = 4 // large Puts at once
	streamSize  = 64 << 20
	putters     = 2 // that store small objects one after the other
	smallSize   = 1 << 20
	listed      = 1100 // more than a page

	// heapBound is what the two storages may hold by their settings: parts
	// under way, a part for each large Put (one more comes during the
	// outage), and small objects with their readers; and 32 MiB for all else,
	// the garbage of the moment among it.
	// What is streamed is many times as much.
	heapBound = 2 * ((concurrency+streams+1)*partSize + 2*putters*smallSize + 32<<20)
)

// work is what goes on before, during and after an outage.
type work struct {
	t       *testing.T
	server  *s3test.Server
	bucket  string
	store   storage.Bucket // as the program opens it
	s3      *s3.Bucket
	stopped chan struct{} // closed when the store is away
	over    chan struct{} // closed when it is back
	midway  chan struct{} // a token from each that must be in mid-work then

	mu    sync.Mutex
	acked map[string][sha256.Size]byte
	all   sync.WaitGroup
}

// TestOutage: the store is away for half a minute, frozen or killed, while
// objects are stored, read and listed. Nothing fails; what was acknowledged is
// whole; nothing is left of any upload.
func TestOutage(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for half a minute")
	}
	peak := watchHeap(t)
	for name, c := range map[string]struct {
		outage     time.Duration
		stop, back func(context.Context, *s3test.Server) error
	}{
		"Frozen": {
			frozen,
			func(_ context.Context, s *s3test.Server) error { return s.Freeze() },
			func(_ context.Context, s *s3test.Server) error { return s.Thaw() },
		},
		"Killed": {
			killed,
			func(_ context.Context, s *s3test.Server) error { return s.Stop() },
			func(ctx context.Context, s *s3test.Server) error { return s.Restart(ctx) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWork(t)
			w.before()
			for range cap(w.midway) {
				select {
				case <-w.midway:
				case <-t.Context().Done():
					t.Fatal(t.Context().Err())
				}
			}
			if err := c.stop(t.Context(), w.server); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			close(w.stopped)
			w.during()
			<-time.After(c.outage)
			if err := c.back(t.Context(), w.server); err != nil {
				t.Fatal(err)
			}
			close(w.over)
			w.all.Wait()
			t.Logf("all was done %s after the store went away, %d objects, %d MiB of heap at most",
				time.Since(began).Round(time.Second), len(w.acked), peak.Load()>>20)
			w.check()
			if p := peak.Load(); p > heapBound {
				t.Errorf("%d bytes of heap at most, want no more than %d", p, heapBound)
			}
		})
	}
}

// watchHeap samples how many bytes are in use, garbage not counted.
func watchHeap(t *testing.T) *atomic.Uint64 {
	peak, end, ended := new(atomic.Uint64), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak.Store(max(peak.Load(), m.HeapAlloc))
		}
	}()
	t.Cleanup(func() { close(end); <-ended })
	return peak
}

func newWork(t *testing.T) *work {
	t.Helper()
	server := s3test.Start(t, s3test.Options{})
	w := &work{
		t: t, server: server, bucket: server.NewBucket(t), acked: map[string][sha256.Size]byte{},
		stopped: make(chan struct{}), over: make(chan struct{}), midway: make(chan struct{}, streams+2),
	}
	// What the program gives when nothing but the place and the memory is
	// set.
	b, err := s3.Open(t.Context(), s3.Options{
		Bucket: w.bucket, Prefix: "main", Endpoint: server.Endpoint, PathStyle: true, Region: server.Region,
		AccessKeyID: server.AccessKeyID, SecretAccessKey: server.SecretAccessKey,
		PartSize: partSize, UploadConcurrency: concurrency, MaxRetries: 15, Resumes: 10, DeleteBatch: 1000,
		MinThrottleDelay: 500 * time.Millisecond, MaxThrottleDelay: 5 * time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	w.s3, w.store = b, retry.New(b, retry.Options{Tries: 2})
	return w
}

// content is size bytes that only name decides.
func content(name string, size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8(sha256.Sum256([]byte(name))), size)
}

// gate is a point of a reader: it calls f once when it is reached.
type gate struct{ f func() }

func (g *gate) Read([]byte) (int, error) {
	if g.f != nil {
		g.f()
		g.f = nil
	}
	return 0, io.EOF
}

// put stores r and remembers what was acknowledged.
func (w *work) put(name string, r io.Reader, opt storage.PutOptions) {
	h := sha256.New()
	if s, ok := r.(io.ReadSeeker); ok {
		if _, err := io.Copy(h, s); err != nil {
			w.t.Error(err)
		}
		if _, err := s.Seek(0, io.SeekStart); err != nil {
			w.t.Error(err)
		}
	} else {
		r = io.TeeReader(r, h)
	}
	if _, err := w.store.Put(w.t.Context(), name, r, opt); err != nil {
		w.t.Errorf("Put of %s: %v", name, err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked[name] = [sha256.Size]byte(h.Sum(nil))
}

// get reads an object; half is called in its middle.
func (w *work) get(name string, size int64, half func()) {
	body, err := w.store.Open(w.t.Context(), name, storage.Range{})
	if err != nil {
		w.t.Errorf("Open of %s: %v", name, err)
		return
	}
	defer body.Close()
	h := sha256.New()
	_, err = io.CopyN(h, body, size/3)
	half()
	if err == nil {
		_, err = io.Copy(h, body)
	}
	w.mu.Lock()
	want := w.acked[name]
	w.mu.Unlock()
	if err != nil || [sha256.Size]byte(h.Sum(nil)) != want {
		w.t.Errorf("read of %s: other bytes, or %v", name, err)
	}
}

// list walks the objects that no one touches; half is called in the middle of
// the first page.
func (w *work) list(half func()) {
	n := 0
	for info, err := range w.store.List(w.t.Context(), "list/", storage.ListOptions{}) {
		if err != nil {
			w.t.Errorf("List: %v", err)
			return
		}
		if info.Name != listName(n) {
			w.t.Errorf("List: %s comes as number %d", info.Name, n)
			return
		}
		if n++; n == 500 {
			half()
		}
	}
	if n != listed {
		w.t.Errorf("List: %d objects, want %d", n, listed)
	}
}

func listName(n int) string { return fmt.Sprintf("list/%05d", n) }

// awaitStop says that the store may go away and waits for it.
func (w *work) awaitStop() {
	w.midway <- struct{}{}
	<-w.stopped
}

func (w *work) before() {
	var fill sync.WaitGroup
	for i := range 8 {
		fill.Go(func() {
			for n := i; n < listed; n += 8 {
				w.put(listName(n), bytes.NewReader(binary.AppendUvarint(nil, uint64(n))), storage.PutOptions{})
			}
		})
	}
	for _, name := range []string{"read/before", "read/during"} {
		fill.Go(func() { w.put(name, content(name, streamSize), storage.PutOptions{}) })
	}
	fill.Wait()
	for i := range streams {
		name := fmt.Sprintf("stream/before/%d", i)
		r := content(name, streamSize)
		w.all.Go(func() {
			w.put(name, io.MultiReader(
				// The upload has begun and parts are under way; more is
				// left than the buffers hold.
				io.LimitReader(r, 2*partSize+1), &gate{func() { w.midway <- struct{}{} }},
				io.LimitReader(r, 2*partSize), &gate{func() { <-w.stopped }}, r), storage.PutOptions{IfAbsent: i%2 == 0})
		})
	}
	for i := range putters {
		w.all.Go(func() {
			for n := 0; ; n++ {
				name := fmt.Sprintf("small/%d/%d", i, n)
				data, err := io.ReadAll(content(name, smallSize))
				if err != nil {
					w.t.Error(err)
				}
				var r io.Reader = bytes.NewReader(data)
				if n%3 == 0 {
					r = bytes.NewBuffer(data) // cannot be read twice
				}
				w.put(name, r, storage.PutOptions{IfAbsent: n%2 == 0})
				select {
				case <-w.over:
					return
				case <-w.stopped:
				default:
				}
			}
		})
	}
	w.all.Go(func() { w.get("read/before", streamSize, w.awaitStop) })
	w.all.Go(func() { w.list(w.awaitStop) })
}

// during starts what first speaks to the store while it is away.
func (w *work) during() {
	w.all.Go(func() {
		w.put("stream/during", content("stream/during", 3*partSize+1), storage.PutOptions{IfAbsent: true})
	})
	w.all.Go(func() { w.get("read/during", streamSize, func() {}) })
	w.all.Go(func() { w.list(func() {}) })
	w.all.Go(func() {
		if info, err := w.store.Stat(w.t.Context(), "read/before"); err != nil || info.Size != streamSize {
			w.t.Errorf("Stat: %d bytes, %v", info.Size, err)
		}
	})
	w.all.Go(func() {
		if _, err := w.store.Stat(w.t.Context(), "no/such"); !errors.Is(err, storage.ErrNotExist) {
			w.t.Errorf("Stat of what is not there: %v", err)
		}
		if err := w.store.Delete(w.t.Context(), "no/such", "no/other"); err != nil {
			w.t.Errorf("Delete: %v", err)
		}
	})
}

// check reads everything with the SDK alone.
func (w *work) check() {
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := awss3.New(awss3.Options{
		BaseEndpoint: &w.server.Endpoint, UsePathStyle: true, Region: w.server.Region, HTTPClient: &http.Client{Transport: transport},
		Credentials: credentials.NewStaticCredentialsProvider(w.server.AccessKeyID, w.server.SecretAccessKey, ""),
	})
	for name, want := range w.acked {
		out, err := client.GetObject(w.t.Context(), &awss3.GetObjectInput{Bucket: &w.bucket, Key: aws.String("main/" + name)})
		if err != nil {
			w.t.Errorf("acknowledged, but: %v", err)
			continue
		}
		h := sha256.New()
		_, err = io.Copy(h, out.Body)
		out.Body.Close()
		if err != nil || [sha256.Size]byte(h.Sum(nil)) != want {
			w.t.Errorf("%s was acknowledged and is not whole (%v)", name, err)
		}
	}
	var stored []string
	pages := awss3.NewListObjectsV2Paginator(client, &awss3.ListObjectsV2Input{Bucket: &w.bucket})
	for pages.HasMorePages() {
		page, err := pages.NextPage(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		for _, o := range page.Contents {
			stored = append(stored, (*o.Key)[len("main/"):])
		}
	}
	if acked := slices.Sorted(maps.Keys(w.acked)); !slices.Equal(stored, acked) {
		w.t.Errorf("%d objects are stored, %d were acknowledged", len(stored), len(acked))
	}
	for u, err := range w.s3.Unfinished(w.t.Context(), "") {
		w.t.Errorf("an upload is left: %+v, %v", u, err)
	}
}
