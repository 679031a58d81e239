package limit_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/limit"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/storagetest"
)

func TestBucket(t *testing.T) {
	t.Parallel()
	for name, perSecond := range map[string]int64{"Limited": 1 << 40, "Unlimited": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storagetest.Run(t, func(*testing.T) storage.Bucket {
				return limit.New(mem.New(), limit.PerSecond(perSecond), limit.PerSecond(perSecond))
			})
		})
	}
}

// wantTime checks what f takes on a clock that only moves when all wait: the
// first 64 KiB are free, the rest costs its share.
func wantTime(t *testing.T, what string, want time.Duration, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if got := time.Since(start); got < want-time.Millisecond || got > want+time.Millisecond {
		t.Errorf("%s took %v, want %v", what, got, want)
	}
}

func TestRate(t *testing.T) {
	t.Parallel()
	const size = 1<<20 + 64<<10
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"in one buffer":       func(r io.Reader) io.Reader { return r },
		"in a hidden seeker":  func(r io.Reader) io.Reader { return struct{ io.Reader }{r} },
		"in a hidden writer":  func(r io.Reader) io.Reader { return struct{ io.ReadSeeker }{r.(io.ReadSeeker)} },
		"one read of it all":  func(r io.Reader) io.Reader { return &atOnce{r} },
		"few bytes at a time": func(r io.Reader) io.Reader { return &few{r} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := limit.New(mem.New(), limit.PerSecond(1<<20), limit.PerSecond(256<<10))
				wantTime(t, "Put", time.Second, func() {
					if _, err := b.Put(t.Context(), "x", wrap(bytes.NewReader(make([]byte, size))), storage.PutOptions{}); err != nil {
						t.Error(err)
					}
				})
				r, err := b.Open(t.Context(), "x", storage.Range{})
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				wantTime(t, "read", 4*time.Second, func() {
					if n, err := io.Copy(io.Discard, wrap2(name, r)); n != size || err != nil {
						t.Errorf("read %d bytes, %v", n, err)
					}
				})
			})
		})
	}
}

func wrap2(name string, r io.Reader) io.Reader {
	switch name {
	case "one read of it all":
		return &atOnce{r}
	case "few bytes at a time":
		return &few{r}
	}
	return r
}

// atOnce reads through one large buffer, far larger than the burst.
type atOnce struct{ r io.Reader }

func (a *atOnce) Read(p []byte) (int, error) {
	buf := make([]byte, 4<<20)
	n, err := a.r.Read(buf[:max(len(p), 1)])
	return copy(p, buf[:n]), err
}

type few struct{ r io.Reader }

func (f *few) Read(p []byte) (int, error) { return f.r.Read(p[:min(len(p), 1000)]) }

func TestOneLimiterForBothDirectionsAndTwoBuckets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		shared := limit.PerSecond(64 << 10)
		first, second := limit.New(mem.New(), shared, shared), limit.New(mem.New(), shared, shared)
		wantTime(t, "four moves of 64 KiB", 3*time.Second, func() {
			for _, b := range []storage.Bucket{first, second} {
				storagetest.MustPut(t, b, "x", make([]byte, 64<<10))
				storagetest.MustGet(t, b, "x")
			}
		})
	})
}

func TestContextEndsTheWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := limit.New(mem.New(), limit.PerSecond(1000), nil)
		data := make([]byte, 1<<20)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		wantTime(t, "a cancelled Put", time.Second, func() {
			if _, err := b.Put(ctx, "x", bytes.NewReader(data), storage.PutOptions{}); !errors.Is(err, context.Canceled) {
				t.Errorf("Put: %v, want Canceled", err)
			}
		})
		// The limiter sees at once that the deadline is too soon.
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Put(ctx, "x", bytes.NewReader(data), storage.PutOptions{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Put: %v, want DeadlineExceeded", err)
		}
		if _, err := b.Stat(t.Context(), "x"); !errors.Is(err, storage.ErrNotExist) {
			t.Errorf("something was stored: %v", err)
		}
	})
}

func TestPutKeepsTheSeeker(t *testing.T) {
	t.Parallel()
	spy := &spy{Bucket: mem.New()}
	b := limit.New(spy, rate.NewLimiter(rate.Inf, 1), nil)
	b.Put(t.Context(), "x", bytes.NewReader(nil), storage.PutOptions{})
	if !spy.seeker {
		t.Error("the store was given no io.Seeker")
	}
	b.Put(t.Context(), "x", bytes.NewBuffer(nil), storage.PutOptions{})
	if spy.seeker {
		t.Error("the store was given an io.Seeker that is none")
	}
}

type spy struct {
	storage.Bucket
	seeker bool
}

func (s *spy) Put(ctx context.Context, name string, r io.Reader, opt storage.PutOptions) (storage.Info, error) {
	_, s.seeker = r.(io.Seeker)
	return s.Bucket.Put(ctx, name, r, opt)
}
