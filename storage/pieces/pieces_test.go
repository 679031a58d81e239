package pieces_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/semaphore"
	"pgregory.net/rapid"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/pieces"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const chunk = 64

func someBytes(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + i>>8)
	}
	return p
}

func TestPauseStaysInBounds(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		lo := time.Duration(rapid.Int64Range(1, int64(time.Minute)).Draw(t, "lo"))
		hi := lo + time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "more"))
		n := rapid.IntRange(-1, 1000).Draw(t, "n")
		if d := pieces.Pause(n, lo, hi); d < lo/2 || d > hi {
			t.Fatalf("pause %d between %s and %s is %s", n, lo, hi, d)
		}
	})
}

func TestContentGivesBackWhatItRead(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		data := someBytes(rapid.IntRange(0, 5*chunk).Draw(t, "size"))
		limit := int64(rapid.IntRange(1, 6*chunk).Draw(t, "limit"))
		pool := pieces.NewPool(pieces.PoolOptions{Chunk: chunk, Keep: 3})
		sum := md5.New()
		src := pieces.NewSource(iotest.HalfReader(bytes.NewReader(data)), sum)
		var got []byte
		for more := true; more; {
			c := pieces.NewContent(pool)
			var err error
			if more, err = c.Fill(context.Background(), src, limit); err != nil {
				t.Fatal(err)
			}
			if more && c.Size() != limit {
				t.Fatalf("a content in the middle has %d bytes of %d", c.Size(), limit)
			}
			part, err := io.ReadAll(c.Reader(0, nil))
			if err != nil {
				t.Fatal(err)
			}
			var written bytes.Buffer
			if n, err := c.WriteTo(&written); err != nil || n != c.Size() || !bytes.Equal(written.Bytes(), part) {
				t.Fatalf("WriteTo gives %d bytes, %v", n, err)
			}
			got = append(got, part...)
			c.Release()
		}
		if !bytes.Equal(got, data) || src.Size() != int64(len(data)) || !bytes.Equal(sum.Sum(nil), md5Of(data)) {
			t.Fatalf("%d bytes come back of %d", len(got), len(data))
		}
		if now, _, _ := pool.Used(); now != 0 {
			t.Fatalf("%d bytes are not given back", now)
		}
	})
}

func md5Of(p []byte) []byte { s := md5.Sum(p); return s[:] }

func TestContentOfFullPoolEndsEarly(t *testing.T) {
	t.Parallel()
	pool := pieces.NewPool(pieces.PoolOptions{Chunk: chunk, Limit: chunk, Free: 1})
	src := pieces.NewSource(bytes.NewReader(someBytes(10*chunk)), nil)
	a, b := pieces.NewContent(pool), pieces.NewContent(pool)
	for _, c := range []*pieces.Content{a, b} {
		if more, err := c.Fill(t.Context(), src, 4*chunk); err != nil || !more {
			t.Fatalf("more %t, %v", more, err)
		}
	}
	if a.Size() != 2*chunk || b.Size() != chunk {
		t.Fatalf("contents have %d and %d bytes, want a free chunk each and one of the limit", a.Size(), b.Size())
	}
	a.Release()
	b.Release()
	if now, peak, taken := pool.Used(); now != 0 || taken != 0 || peak != 3*chunk {
		t.Fatalf("now %d, peak %d, taken %d", now, peak, taken)
	}
}

func TestReaderErrorsAreTheCallers(t *testing.T) {
	t.Parallel()
	pool := pieces.NewPool(pieces.PoolOptions{Chunk: chunk})
	boom := errors.New("boom")
	c := pieces.NewContent(pool)
	_, err := c.Fill(t.Context(), pieces.NewSource(io.MultiReader(bytes.NewReader(someBytes(10)), iotest.ErrReader(boom)), nil), chunk)
	var read *pieces.ReadError
	if !errors.As(err, &read) || !errors.Is(err, boom) {
		t.Fatalf("Fill: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(boom)
	if _, err := c.Fill(ctx, pieces.NewSource(bytes.NewReader(someBytes(10)), nil), chunk); err != boom {
		t.Fatalf("Fill of an ended context: %v", err)
	}
	c.Release()
}

func TestClosedReaderSeesNoMemory(t *testing.T) {
	t.Parallel()
	c := pieces.NewContent(pieces.NewPool(pieces.PoolOptions{Chunk: chunk}))
	data := someBytes(3*chunk + 5)
	if _, err := c.Fill(t.Context(), pieces.NewSource(bytes.NewReader(data), nil), 4*chunk); err != nil {
		t.Fatal(err)
	}
	r := c.Reader(chunk-1, nil)
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data[chunk-1:]) {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
	if !r.Stop() {
		t.Error("Stop after all was read is false")
	}
	if at, err := r.Seek(-5, io.SeekEnd); err != nil || at != int64(len(data)-5) || r.Len() != 5 {
		t.Errorf("seek: at %d, %d left, %v", at, r.Len(), err)
	}
	if _, err := r.Seek(1, io.SeekEnd); err == nil {
		t.Error("a seek behind the end succeeds")
	}
	if r.Stop() {
		t.Error("Stop in the middle is true")
	}
	if _, err := r.Read(make([]byte, 1)); err != os.ErrClosed {
		t.Errorf("read of a stopped reader: %v", err)
	}
	if _, err := r.Seek(0, io.SeekStart); err != os.ErrClosed || r.Len() != 0 {
		t.Errorf("seek of a stopped reader: %v", err)
	}
}

func TestPlanHoldsTheLargestObject(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		o := pieces.PlanOptions{
			Base: rapid.Int64Range(1, 1<<24).Draw(t, "base"), Count: rapid.IntRange(10, 10_000).Draw(t, "count"),
			Object: 1 << 42, Largest: 1 << 40, Grain: rapid.Int64Range(0, 1<<20).Draw(t, "grain"), Name: "parts", Setting: "X",
		}
		p := pieces.NewPlan(o)
		total, last := int64(0), int64(0)
		for n := 1; n <= o.Count; n++ {
			size := p.Size(n)
			if size < last || size > o.Largest {
				t.Fatalf("part %d has %d bytes after %d", n, size, last)
			}
			total, last = total+size, size
		}
		if total < o.Object && last < o.Largest {
			t.Fatalf("%d parts hold %d bytes", o.Count, total)
		}
		if p.Check(o.Count) != nil || !errors.Is(p.Check(o.Count+1), storage.ErrPermanent) {
			t.Fatal("Check refuses the wrong part")
		}
	})
}

// queue runs an upload of data against a store that keeps parts.
func queue(ctx context.Context, data io.Reader, budget int64, fail func(n int) error) (parts map[int][]byte, most int, held int64, err error) {
	pool := pieces.NewPool(pieces.PoolOptions{Chunk: chunk})
	sem := semaphore.NewWeighted(budget)
	var mu sync.Mutex
	parts = map[int][]byte{}
	flying := 0
	q := pieces.Queue{
		Pool: pool, Budget: sem, Most: 4,
		Plan: pieces.NewPlan(pieces.PlanOptions{Base: 2 * chunk, Count: 100, Largest: 1 << 20, Object: 200 * chunk * 4, Name: "parts", Setting: "X"}),
		Send: func(_ context.Context, n int, c *pieces.Content) error {
			mu.Lock()
			flying++
			most = max(most, flying)
			mu.Unlock()
			got, err := io.ReadAll(c.Reader(0, nil))
			mu.Lock()
			defer mu.Unlock()
			flying--
			parts[n] = got
			if err == nil {
				err = fail(n)
			}
			return err
		},
		Fail: func(_ context.Context, err error) error { return fmt.Errorf("put: %w", err) },
	}
	first := pieces.NewContent(pool)
	src := pieces.NewSource(data, nil)
	if _, err = first.Fill(ctx, src, q.Plan.Size(1)); err == nil {
		err = q.Run(ctx, first, src)
	}
	first.Release()
	if !sem.TryAcquire(budget) {
		err = errors.Join(err, errors.New("the budget was not given back"))
	}
	held, _, _ = pool.Used()
	return parts, most, held, err
}

func TestQueueSendsEveryPart(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		data := someBytes(rapid.IntRange(2*chunk+1, 60*chunk).Draw(t, "size"))
		budget := int64(rapid.IntRange(0, 20*chunk).Draw(t, "budget"))
		parts, most, held, err := queue(context.Background(), bytes.NewReader(data), budget, func(int) error { return nil })
		if err != nil || held != 0 {
			t.Fatalf("held %d, %v", held, err)
		}
		var got []byte
		for n := 1; n <= len(parts); n++ {
			got = append(got, parts[n]...)
		}
		if !bytes.Equal(got, data) {
			t.Fatalf("%d bytes of %d arrive", len(got), len(data))
		}
		if most > 4 || budget < 2*chunk && most > 1 {
			t.Fatalf("%d parts under way with a budget of %d", most, budget)
		}
	})
}

func TestQueueEndsWithItsFirstFailure(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	none := func(int) error { return nil }
	long := func() io.Reader { return bytes.NewReader(someBytes(40 * chunk)) }
	t.Run("part", func(t *testing.T) {
		t.Parallel()
		_, _, held, err := queue(t.Context(), long(), 20*chunk, func(n int) error {
			if n == 5 {
				return boom
			}
			return nil
		})
		if err != boom || held != 0 {
			t.Errorf("held %d, %v", held, err)
		}
	})
	t.Run("reader", func(t *testing.T) {
		t.Parallel()
		_, _, held, err := queue(t.Context(), io.MultiReader(long(), iotest.ErrReader(boom)), 20*chunk, none)
		var read *pieces.ReadError
		if !errors.As(err, &read) || !errors.Is(err, boom) || held != 0 {
			t.Errorf("held %d, %v", held, err)
		}
	})
	t.Run("too large", func(t *testing.T) {
		t.Parallel()
		_, _, held, err := queue(t.Context(), bytes.NewReader(someBytes(3000*chunk)), 20*chunk, none)
		if !errors.Is(err, storage.ErrPermanent) || held != 0 {
			t.Errorf("held %d, %v", held, err)
		}
	})
	t.Run("context", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		_, _, held, err := queue(ctx, long(), 20*chunk, func(n int) error {
			if n == 3 {
				cancel()
			}
			return ctx.Err() // as a request does
		})
		if !errors.Is(err, context.Canceled) || held != 0 {
			t.Errorf("held %d, %v", held, err)
		}
	})
}

// broken gives some bytes and then an error.
type broken struct {
	io.Reader
	closed *int
}

func (b broken) Close() error { *b.closed++; return nil }

// body reads data over connections that break after breaks bytes each.
func body(ctx context.Context, data []byte, breaks int, tries int, sum *pieces.Sum, open func(at int64) error) (*pieces.Body, *int, *int) {
	opened, closed := new(int), new(int)
	inner, cancel := context.WithCancel(ctx)
	s := pieces.NewStream(inner, pieces.StreamOptions{
		Left: int64(len(data)), Pace: pieces.NewTries(tries, 1, 2),
		Open: func(_ context.Context, at, left int64) (io.ReadCloser, error) {
			if err := open(at); err != nil {
				return nil, err
			}
			*opened++
			n := min(int64(breaks), left)
			return broken{io.MultiReader(bytes.NewReader(data[at:at+n]), iotest.ErrReader(errors.New("cut"))), closed}, nil
		},
	})
	return pieces.NewBody(pieces.BodyOptions{
		Ctx: ctx, Cancel: cancel, Where: "x://b/k", Info: storage.Info{Name: "k"}, Known: true, Left: int64(len(data)), Source: s, Sum: sum,
	}), opened, closed
}

func TestBodyContinuesWhereItBroke(t *testing.T) {
	t.Parallel()
	data := someBytes(1000)
	b, opened, closed := body(t.Context(), data, 300, 3, &pieces.Sum{Name: "MD5", Hash: md5.New(), Want: md5Of(data)}, func(int64) error { return nil })
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
	if info, known := b.Info(); !known || info.Name != "k" {
		t.Errorf("Info is %+v, %t", info, known)
	}
	b.Close()
	if *opened != 4 || *closed != 4 {
		t.Errorf("%d connections opened, %d closed; want 4", *opened, *closed)
	}
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, pieces.ErrClosed) {
		t.Errorf("read of a closed body: %v", err)
	}
}

func TestBodyEndsWithTheReason(t *testing.T) {
	t.Parallel()
	data := someBytes(1000)
	ok := func(int64) error { return nil }
	replaced := errors.New("replaced")
	for name, test := range map[string]struct {
		tries int
		sum   []byte
		open  func(int64) error
		want  error
		bytes int
	}{
		"tries run out": {2, nil, ok, io.ErrUnexpectedEOF, 900},
		"stopped": {9, nil, func(at int64) error {
			if at > 0 {
				return pieces.Stop(replaced)
			}
			return nil
		}, replaced, 300},
		"damaged": {9, md5Of(nil), ok, storage.ErrPermanent, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var sum *pieces.Sum
			if test.sum != nil {
				sum = &pieces.Sum{Name: "MD5", Hash: md5.New(), Want: test.sum}
			}
			b, _, _ := body(t.Context(), data, 300, test.tries, sum, test.open)
			defer b.Close()
			got, err := io.ReadAll(b)
			if !errors.Is(err, test.want) || len(got) != test.bytes {
				t.Fatalf("%d bytes and then %v", len(got), err)
			}
			if _, again := b.Read(make([]byte, 1)); again != err {
				t.Errorf("read again: %v", again)
			}
		})
	}
}

// TestProgressResetsTheTries: a body far longer than its tries allow arrives,
// when each connection brings it on by a megabyte.
func TestProgressResetsTheTries(t *testing.T) {
	t.Parallel()
	data := someBytes(8 << 20)
	b, opened, _ := body(t.Context(), data, 1<<20, 1, nil, func(int64) error { return nil })
	defer b.Close()
	n, err := io.Copy(io.Discard, b)
	if err != nil || n != int64(len(data)) || *opened != 8 {
		t.Fatalf("%d bytes over %d connections, %v", n, *opened, err)
	}
}

func TestConnEndsWhenNothingMoves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		r, w := io.Pipe()
		context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })
		named := errors.New("no byte moved")
		c := pieces.NewConn(r, cancel, time.Minute, func(error) error { return named })
		go func() { w.Write([]byte("ab")) }()
		if n, err := c.Read(make([]byte, 2)); n != 2 || err != nil {
			t.Fatalf("read %d bytes, %v", n, err)
		}
		// The reader of the body may take his time: only a Read is watched.
		time.Sleep(time.Hour)
		start := time.Now()
		if _, err := c.Read(make([]byte, 1)); err != named {
			t.Fatalf("read of a stalled connection: %v", err)
		}
		if d := time.Since(start); d != time.Minute {
			t.Errorf("it took %s to see", d)
		}
		if context.Cause(ctx) != pieces.ErrStalled {
			t.Errorf("the request ended with %v", context.Cause(ctx))
		}
		c.Close()
	})
}
