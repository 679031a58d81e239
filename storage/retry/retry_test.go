package retry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/retry"
	"github.com/walherd/walherd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bundle is a retrying Bucket over a faulty one over memory, whose pauses take
// no time and are recorded.
type bundle struct {
	*retry.Bucket
	faulty *storagetest.Faulty
	below  *mem.Bucket
	events []retry.Event
}

func setup(_ testing.TB, opt retry.Options, faults ...storagetest.Fault) *bundle {
	u := &bundle{below: mem.New()}
	u.faulty = storagetest.NewFaulty(u.below, faults...)
	opt.Wait = func(ctx context.Context, _ time.Duration) error { return ctx.Err() }
	opt.Notify = func(e retry.Event) { u.events = append(u.events, e) }
	u.Bucket = retry.New(u.faulty, opt)
	return u
}

// wantEvents compares op and try of what was retried.
func (u *bundle) wantEvents(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for _, e := range u.events {
		got = append(got, fmt.Sprintf("%s %s %d", e.Op, e.Name, e.Try))
	}
	if !slices.Equal(got, want) {
		t.Errorf("retried %q, want %q", got, want)
	}
}

func TestBucket(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(t *testing.T) storage.Bucket { return retry.New(mem.New(), retry.Options{}) })
}

// The promise holds over a store whose every operation fails twice, and whose
// bodies and listings break.
func TestBucketOverAFaultyStore(t *testing.T) {
	t.Parallel()
	var faults []storagetest.Fault
	for _, op := range []storagetest.Op{storagetest.Put, storagetest.Open, storagetest.Stat, storagetest.List, storagetest.Delete} {
		faults = append(faults, storagetest.Fault{Op: op, Nth: 1}, storagetest.Fault{Op: op, Nth: 2})
	}
	faults = append(faults,
		storagetest.Fault{Op: storagetest.Open, Nth: 4, Bytes: 1}, storagetest.Fault{Op: storagetest.Open, Nth: 5, Bytes: -1},
		storagetest.Fault{Op: storagetest.List, Nth: 3, Bytes: 2}, storagetest.Fault{Op: storagetest.List, Nth: 5, Bytes: 1})
	storagetest.Run(t, func(t *testing.T) storage.Bucket { return setup(t, retry.Options{}, faults...).Bucket })
}

func TestEachOperationIsTriedAgain(t *testing.T) {
	t.Parallel()
	ops := map[storagetest.Op]func(b storage.Bucket) error{
		storagetest.Put: func(b storage.Bucket) error {
			_, err := b.Put(context.Background(), "x", strings.NewReader("new"), storage.PutOptions{})
			return err
		},
		storagetest.Open: func(b storage.Bucket) error {
			r, err := b.Open(context.Background(), "x", storage.Range{})
			if err == nil {
				r.Close()
			}
			return err
		},
		storagetest.Stat: func(b storage.Bucket) error {
			_, err := b.Stat(context.Background(), "x")
			return err
		},
		storagetest.List: func(b storage.Bucket) error {
			for _, err := range b.List(context.Background(), "x", storage.ListOptions{}) {
				if err != nil {
					return err
				}
			}
			return nil
		},
		storagetest.Delete: func(b storage.Bucket) error { return b.Delete(context.Background(), "x") },
	}
	for op, call := range ops {
		t.Run(string(op), func(t *testing.T) {
			t.Parallel()
			const n = 4
			u := setup(t, retry.Options{Tries: n})
			storagetest.MustPut(t, u.below, "x", []byte("old"))
			for i := range n - 1 {
				u.faulty.Add(storagetest.Fault{Op: op, Nth: i + 1})
			}
			if err := call(u); err != nil {
				t.Errorf("%d failures of %d tries: %v", n-1, n, err)
			}
			name := string(op) + " x "
			u.wantEvents(t, name+"1", name+"2", name+"3")

			u.faulty.Clear()
			u.faulty.Add(storagetest.Fault{Op: op})
			before := len(u.faulty.Calls())
			if err := call(u); !errors.Is(err, storagetest.ErrInjected) {
				t.Errorf("a store that always fails: %v", err)
			}
			if got := len(u.faulty.Calls()) - before; got != n {
				t.Errorf("tried %d times, want %d", got, n)
			}

			for _, final := range []error{storage.ErrNotExist, storage.ErrExist, storage.ErrName, storage.ErrRange, storage.ErrPermanent, context.Canceled, context.DeadlineExceeded} {
				u.faulty.Clear()
				u.faulty.Add(storagetest.Fault{Op: op, Err: final})
				before := len(u.faulty.Calls())
				if err := call(u); !errors.Is(err, final) {
					t.Errorf("%v became %v", final, err)
				}
				if got := len(u.faulty.Calls()) - before; got != 1 {
					t.Errorf("%v: tried %d times, want once", final, got)
				}
			}
		})
	}
}

func TestPutRewindsASeeker(t *testing.T) {
	t.Parallel()
	data := storagetest.Content(1, 100_000)
	u := setup(t, retry.Options{}, storagetest.Fault{Op: storagetest.Put, Nth: 1, Bytes: 50_000}, storagetest.Fault{Op: storagetest.Put, Nth: 2, Late: true})
	r := bytes.NewReader(data)
	if _, err := r.Seek(7, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Put(t.Context(), "x", r, storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := storagetest.MustGet(t, u.below, "x"); !bytes.Equal(got, data[7:]) {
		t.Errorf("stored %d bytes, want those from where the reader was", len(got))
	}
	u.wantEvents(t, "put x 1", "put x 2")
}

func TestPutOfATouchedReaderIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	for _, fault := range []storagetest.Fault{{Bytes: 10}, {Bytes: -1}, {Late: true}} {
		fault.Op = storagetest.Put
		u := setup(t, retry.Options{}, fault)
		_, err := u.Put(t.Context(), "x", bytes.NewBufferString(strings.Repeat("x", 100)), storage.PutOptions{})
		if !errors.Is(err, storagetest.ErrInjected) {
			t.Errorf("fault %+v: %v", fault, err)
		}
		// A cut at byte 0 comes before the reader is asked: it is untouched.
		if want := fault.Bytes < 0; (len(u.events) > 0) != want {
			t.Errorf("fault %+v: tried again %d times", fault, len(u.events))
		}
	}
	u := setup(t, retry.Options{}, storagetest.Fault{Op: storagetest.Put, Nth: 1})
	if _, err := u.Put(t.Context(), "x", bytes.NewBufferString("abc"), storage.PutOptions{}); err != nil {
		t.Errorf("an untouched reader was not tried again: %v", err)
	}
}

type badSeeker struct {
	io.Reader
	seeks int
	good  int
}

func (s *badSeeker) Seek(int64, int) (int64, error) {
	if s.seeks++; s.seeks > s.good {
		return 0, errors.New("illegal seek")
	}
	return 0, nil
}

func TestPutOfASeekerThatCannotSeek(t *testing.T) {
	t.Parallel()
	for good := range 2 {
		u := setup(t, retry.Options{}, storagetest.Fault{Op: storagetest.Put, Nth: 1, Bytes: 1})
		_, err := u.Put(t.Context(), "x", &badSeeker{Reader: strings.NewReader("abc"), good: good}, storage.PutOptions{})
		if !errors.Is(err, storagetest.ErrInjected) {
			t.Errorf("%d good seeks: %v, want the store's error", good, err)
		}
		if _, err := u.below.Stat(t.Context(), "x"); !errors.Is(err, storage.ErrNotExist) {
			t.Errorf("%d good seeks: a part of the content was stored", good)
		}
	}
}

func TestPutIfAbsentWithALostAnswer(t *testing.T) {
	t.Parallel()
	u := setup(t, retry.Options{}, storagetest.Fault{Op: storagetest.Put, Nth: 1, Late: true})
	_, err := u.Put(t.Context(), "x", strings.NewReader("abc"), storage.PutOptions{IfAbsent: true})
	if !errors.Is(err, storage.ErrExist) || !errors.Is(err, storagetest.ErrInjected) {
		t.Errorf("%v, want ErrExist with the earlier failure", err)
	}
}

func TestBodyGoesOnWhereItBroke(t *testing.T) {
	t.Parallel()
	data := storagetest.Content(1, 1000)
	for _, rng := range []storage.Range{{}, {Offset: 100}, {Offset: 100, Length: 500}, {Length: 5000}} {
		u := setup(t, retry.Options{},
			storagetest.Fault{Op: storagetest.Open, Nth: 1, Bytes: 200},
			storagetest.Fault{Op: storagetest.Open, Nth: 2},
			storagetest.Fault{Op: storagetest.Open, Nth: 3, Bytes: 1},
			storagetest.Fault{Op: storagetest.Open, Nth: 4, Bytes: -1})
		storagetest.MustPut(t, u.below, "x", data)
		r, err := u.Open(t.Context(), "x", rng)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(iotest.HalfReader(r))
		end := int64(len(data))
		if rng.Length > 0 {
			end = min(end, rng.Offset+rng.Length)
		}
		if err != nil || !bytes.Equal(got, data[rng.Offset:end]) {
			t.Errorf("range %+v: %d bytes, %v", rng, len(got), err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		u.wantEvents(t, "read x 1", "read x 2", "read x 3", "read x 4")
		calls := u.faulty.Calls()
		if last := calls[len(calls)-1].Range; last.Offset != rng.Offset+201 || rng.Length > 0 && last.Length != rng.Length-201 {
			t.Errorf("range %+v went on with %+v", rng, last)
		}
	}
}

// Wherever and however often the body breaks, the bytes are the same.
func TestBodyProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		data := storagetest.Content(9, rapid.IntRange(0, 300).Draw(rt, "size"))
		u := setup(t, retry.Options{Tries: 20})
		storagetest.MustPut(t, u.below, "x", data)
		for i, at := range rapid.SliceOfN(rapid.Int64Range(-1, 60), 0, 15).Draw(rt, "breaks") {
			u.faulty.Add(storagetest.Fault{Op: storagetest.Open, Nth: i + 1, Bytes: at})
		}
		rng := storage.Range{Offset: rapid.Int64Range(0, int64(len(data))).Draw(rt, "offset"), Length: rapid.Int64Range(0, 400).Draw(rt, "length")}
		r, err := u.Open(t.Context(), "x", rng)
		if err != nil {
			rt.Fatal(err)
		}
		defer r.Close()
		got, err := io.ReadAll(r)
		n, _ := rng.Cut(int64(len(data)))
		if err != nil || !bytes.Equal(got, data[rng.Offset:rng.Offset+n]) {
			rt.Fatalf("%d bytes, %v", len(got), err)
		}
	})
}

func TestBodyThatBreaksForEver(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]storagetest.Fault{
		"without progress":      {Bytes: -1},
		"one byte at a time":    {Bytes: 1},
		"gone for good":         {Bytes: 1, Nth: 1},
		"permanently forbidden": {Bytes: 1, Err: storage.ErrPermanent},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fault.Op = storagetest.Open
			u := setup(t, retry.Options{Tries: 5}, fault)
			storagetest.MustPut(t, u.below, "x", storagetest.Content(1, 1000))
			r, err := u.Open(t.Context(), "x", storage.Range{})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if name == "gone for good" {
				if err := u.below.Delete(t.Context(), "x"); err != nil {
					t.Fatal(err)
				}
				defer func() {
					if !errors.Is(err, storage.ErrNotExist) {
						t.Errorf("%v does not hold the cause", err)
					}
				}()
			}
			var n int64
			n, err = io.Copy(io.Discard, r)
			if !errors.Is(err, io.ErrUnexpectedEOF) || n > 5 {
				t.Errorf("read %d bytes, %v; want ErrUnexpectedEOF", n, err)
			}
			if _, again := r.Read(make([]byte, 1)); again == nil || again == io.EOF {
				t.Errorf("the next Read: %v, want the error again", again)
			}
			if got := len(u.faulty.Calls()); got > 5 {
				t.Errorf("opened %d times", got)
			}
		})
	}
}

func TestProgressStartsTheCountAnew(t *testing.T) {
	t.Parallel()
	data := storagetest.Content(1, 20<<20)
	u := setup(t, retry.Options{Tries: 2}, storagetest.Fault{Op: storagetest.Open, Bytes: 3 << 20})
	storagetest.MustPut(t, u.below, "x", data)
	if got := storagetest.MustGet(t, u, "x"); !bytes.Equal(got, data) {
		t.Errorf("got %d bytes", len(got))
	}
	if len(u.events) != 6 {
		t.Errorf("resumed %d times, want 6", len(u.events))
	}
}

func TestBodyOfAReplacedObjectIsNotMixed(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1000, 999} {
		u := setup(t, retry.Options{}, storagetest.Fault{Op: storagetest.Open, Nth: 1, Bytes: 500})
		storagetest.MustPut(t, u.below, "x", storagetest.Content(1, 1000))
		r, err := u.Open(t.Context(), "x", storage.Range{})
		if err != nil {
			t.Fatal(err)
		}
		storagetest.MustPut(t, u.below, "x", storagetest.Content(2, size))
		got, err := io.ReadAll(r)
		if !errors.Is(err, io.ErrUnexpectedEOF) || len(got) != 500 {
			t.Errorf("replaced by %d bytes: read %d, %v; want 500 and ErrUnexpectedEOF", size, len(got), err)
		}
		r.Close()
	}
}

func TestCloseEndsAPausedRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		below := mem.New()
		storagetest.MustPut(t, below, "x", []byte("abc"))
		b := retry.New(storagetest.NewFaulty(below, storagetest.Fault{Op: storagetest.Open, Bytes: 1}), retry.Options{First: time.Hour, Max: time.Hour})
		r, err := b.Open(t.Context(), "x", storage.Range{})
		if err != nil {
			t.Fatal(err)
		}
		start, done := time.Now(), make(chan error)
		go func() {
			_, err := io.ReadAll(r)
			done <- err
		}()
		synctest.Wait() // the reader pauses
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err == nil {
			t.Error("the read ended well")
		}
		if time.Since(start) != 0 {
			t.Errorf("Close took effect after %v", time.Since(start))
		}
	})
}

func TestPausesGrow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var pauses []time.Duration
		b := retry.New(storagetest.NewFaulty(mem.New(), storagetest.Fault{Op: storagetest.Stat}), retry.Options{
			Tries: 12, First: 100 * time.Millisecond, Max: 5 * time.Second,
			Notify: func(e retry.Event) { pauses = append(pauses, e.Pause) },
		})
		start := time.Now()
		if _, err := b.Stat(t.Context(), "x"); !errors.Is(err, storagetest.ErrInjected) {
			t.Error(err)
		}
		var sum time.Duration
		middle := 100 * time.Millisecond
		for i, p := range pauses {
			if p < middle/2 || p > middle*3/2+1 {
				t.Errorf("pause %d is %v, want %v give or take half", i, p, middle)
			}
			sum += p
			middle = min(2*middle, 5*time.Second)
		}
		if len(pauses) != 11 || time.Since(start) != sum {
			t.Errorf("%d pauses of %v in all took %v", len(pauses), sum, time.Since(start))
		}
	})
}

func TestContextEndsAPause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := retry.New(storagetest.NewFaulty(mem.New(), storagetest.Fault{Op: storagetest.Delete}), retry.Options{First: time.Hour, Max: time.Hour})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		err := b.Delete(ctx, "x")
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, storagetest.ErrInjected) {
			t.Errorf("%v, want the deadline and the failure", err)
		}
		if time.Since(start) != time.Second {
			t.Errorf("ended after %v", time.Since(start))
		}
	})
}

func TestListGoesOnBehindTheLastName(t *testing.T) {
	t.Parallel()
	for _, shallow := range []bool{false, true} {
		var faults []storagetest.Fault
		for i := range 30 {
			faults = append(faults, storagetest.Fault{Op: storagetest.List, Nth: 2*i + 1, Bytes: 1}, storagetest.Fault{Op: storagetest.List, Nth: 2*i + 2})
		}
		u := setup(t, retry.Options{Tries: 3}, faults...)
		for _, name := range []string{"a", "b/x", "b/y", "c", "d/e/f", "g"} {
			storagetest.MustPut(t, u.below, name, nil)
		}
		opt := storage.ListOptions{Shallow: shallow}
		want := storagetest.Names(t, u.below, "", opt)
		if got := storagetest.Names(t, u, "", opt); !slices.Equal(got, want) {
			t.Errorf("shallow %v: %q, want %q", shallow, got, want)
		}
	}
}

func TestEachRetryIsLogged(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	u := setup(t, retry.Options{Log: log}, storagetest.Fault{Op: storagetest.Stat, Nth: 1})
	storagetest.MustPut(t, u.below, "x", nil)
	if _, err := u.Stat(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	line := out.String()
	for _, part := range []string{"level=INFO", "op=stat", "object=x", "try=1", "pause=", "err="} {
		if strings.Count(line, "\n") != 1 || !strings.Contains(line, part) {
			t.Errorf("the log is %q, want one record with %q", line, part)
		}
	}
}
