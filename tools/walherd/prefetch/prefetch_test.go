package prefetch_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
	"github.com/walherd/walherd/tools/walherd/prefetch"
)

const (
	size     = pg.SegmentSize(1 << 20)
	systemID = 0x1122334455667788
)

// segment makes the content of a segment: the long header of its first page as
// in PostgreSQL 15's xlog_internal.h, then its name over and over.
func segment(t testing.TB, name string) []byte {
	t.Helper()
	seg, err := pg.ParseSegmentName(name)
	if err != nil {
		t.Fatal(err)
	}
	b := bytes.Repeat([]byte(name+"......"), int(size)/30+1)[:size]
	le := binary.LittleEndian
	le.PutUint16(b[0:], 0xD110) // XLOG_PAGE_MAGIC of 15
	le.PutUint16(b[2:], 0x0002) // XLP_LONG_HEADER
	le.PutUint32(b[4:], uint32(seg.Timeline))
	le.PutUint64(b[8:], uint64(seg.Start(size)))
	le.PutUint32(b[16:], 0)
	le.PutUint32(b[20:], 0)
	le.PutUint64(b[24:], systemID)
	le.PutUint32(b[32:], uint32(size))
	le.PutUint32(b[36:], 8192)
	return b
}

func name(n int) string { return fmt.Sprintf("00000002%016X", n) }

var errAbsent = errors.New("not archived")

// archive has the segments up to last.
type archive struct {
	t    *testing.T
	last int
	// damage changes what is fetched.
	damage func(name string, b []byte) []byte

	mu      sync.Mutex
	fetched []string
}

func (a *archive) fetch(_ context.Context, n string, w io.Writer) error {
	a.mu.Lock()
	a.fetched = append(a.fetched, n)
	a.mu.Unlock()
	if n > name(a.last) {
		return errAbsent
	}
	b := segment(a.t, n)
	if a.damage != nil {
		b = a.damage(n, b)
	}
	_, err := w.Write(b)
	return err
}

func store(t *testing.T, a *archive) prefetch.Store {
	return prefetch.Store{
		Base: t.TempDir(), Expect: wal.Expect{SegmentSize: size, SystemID: systemID},
		Fetch: a.fetch, Logger: slog.New(slog.DiscardHandler),
	}
}

func files(t *testing.T, s prefetch.Store) (complete, running []string) {
	t.Helper()
	for i, dir := range []string{".wal-g/prefetch", ".wal-g/prefetch/running"} {
		entries, err := os.ReadDir(filepath.Join(s.Base, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.IsDir() {
				continue
			}
			if i == 0 {
				complete = append(complete, e.Name())
			} else {
				running = append(running, e.Name())
			}
		}
	}
	return complete, running
}

func TestWhatWasFetchedAheadIsTaken(t *testing.T) {
	t.Parallel()
	a := &archive{t: t, last: 100}
	s := store(t, a)
	if err := s.Ahead(t.Context(), name(1), 4); err != nil {
		t.Fatal(err)
	}
	if got, _ := files(t, s); !slices.Equal(got, []string{name(2), name(3), name(4), name(5)}) {
		t.Fatalf("fetched %v", got)
	}
	to := filepath.Join(t.TempDir(), "RECOVERYXLOG")
	if ok, err := s.Take(t.Context(), name(3), to); !ok || err != nil {
		t.Fatalf("%v, %v", ok, err)
	}
	if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, segment(t, name(3))) {
		t.Fatalf("another content, %v", err)
	}
	// What is before 4 goes, what follows is fetched, nothing twice.
	if err := s.Ahead(t.Context(), name(4), 2); err != nil {
		t.Fatal(err)
	}
	if got, running := files(t, s); !slices.Equal(got, []string{name(4), name(5), name(6)}) || len(running) > 0 {
		t.Fatalf("there are %v, running %v", got, running)
	}
	slices.Sort(a.fetched)
	if len(slices.Compact(slices.Clone(a.fetched))) != len(a.fetched) {
		t.Fatalf("fetched twice: %v", a.fetched)
	}
	if ok, err := s.Take(t.Context(), name(50), to+"2"); ok || err != nil {
		t.Fatalf("one that nobody fetched: %v, %v", ok, err)
	}
	if ok, err := s.Take(t.Context(), "00000002.history", to+"2"); ok || err != nil {
		t.Fatalf("a history file: %v, %v", ok, err)
	}
}

func TestDestinationIsNotReplaced(t *testing.T) {
	t.Parallel()
	s := store(t, &archive{t: t, last: 100})
	if err := s.Ahead(t.Context(), name(1), 1); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(to, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Take(t.Context(), name(2), to); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("got %v, want ErrExist", err)
	}
	if got, _ := os.ReadFile(to); string(got) != "mine" {
		t.Fatalf("replaced by %d bytes", len(got))
	}
}

// TestNothingBadIsHandedOut: a segment that is no good is never taken, whether
// it was fetched so or spoilt afterwards.
func TestNothingBadIsHandedOut(t *testing.T) {
	t.Parallel()
	for what, damage := range map[string]func(string, []byte) []byte{
		"short":           func(_ string, b []byte) []byte { return b[:len(b)-1] },
		"empty":           func(string, []byte) []byte { return nil },
		"long":            func(_ string, b []byte) []byte { return append(b, 0) },
		"no magic":        func(_ string, b []byte) []byte { b[0], b[1] = 0, 0; return b },
		"another segment": func(string, []byte) []byte { return segment(t, name(77)) },
		"another cluster": func(_ string, b []byte) []byte { b[24]++; return b },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			a := &archive{t: t, last: 100, damage: damage}
			s := store(t, a)
			if err := s.Ahead(t.Context(), name(1), 1); err == nil {
				t.Error("prefetched without an error")
			}
			if complete, running := files(t, s); len(complete)+len(running) > 0 {
				t.Errorf("left %v, running %v", complete, running)
			}
			a.damage = nil
			if err := s.Ahead(t.Context(), name(1), 1); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(s.Base, ".wal-g/prefetch", name(2))
			if err := os.WriteFile(path, damage(name(2), segment(t, name(2))), 0o600); err != nil {
				t.Fatal(err)
			}
			to := filepath.Join(t.TempDir(), "x")
			if ok, err := s.Take(t.Context(), name(2), to); ok || err != nil {
				t.Fatalf("taken: %v, %v", ok, err)
			}
			for _, p := range []string{to, path} {
				if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) {
					t.Fatalf("%s: %v, want it gone", p, err)
				}
			}
		})
	}
}

// TestTheEndOfTheArchive: what is there is kept, however soon it is known that
// the next is not; what is not leaves nothing.
func TestTheEndOfTheArchive(t *testing.T) {
	t.Parallel()
	a := &archive{t: t, last: 2}
	s := store(t, a)
	absent := make(chan struct{})
	inner := s.Fetch
	s.Fetch = func(ctx context.Context, n string, w io.Writer) error {
		if n == name(2) {
			<-absent
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		err := inner(ctx, n, w)
		if n == name(3) {
			close(absent)
		}
		return err
	}
	if err := s.Ahead(t.Context(), name(1), 3); !errors.Is(err, errAbsent) {
		t.Fatalf("got %v", err)
	}
	if complete, running := files(t, s); !slices.Equal(complete, []string{name(2)}) || len(running) > 0 {
		t.Fatalf("there are %v, running %v", complete, running)
	}
}

// TestOneFetchesWhileOthersWait: contenders make one fetch of a segment, and
// who needs it waits for that one.
func TestOneFetchesWhileOthersWait(t *testing.T) {
	t.Parallel()
	a := &archive{t: t, last: 100}
	s := store(t, a)
	entered, goOn := make(chan struct{}), make(chan struct{})
	var fetches atomic.Int32
	inner := s.Fetch
	s.Fetch = func(ctx context.Context, n string, w io.Writer) error {
		if fetches.Add(1) == 1 {
			close(entered)
		}
		<-goOn
		return inner(ctx, n, w)
	}
	ahead := make(chan error, 1)
	go func() { ahead <- s.Ahead(t.Context(), name(1), 1) }()
	<-entered
	if err := s.Ahead(t.Context(), name(1), 1); err != nil { // finds it running
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "x")
	taken := make(chan error, 1)
	go func() {
		ok, err := s.Take(t.Context(), name(2), to)
		if err == nil && !ok {
			err = errors.New("not taken")
		}
		taken <- err
	}()
	close(goOn)
	for _, c := range []chan error{ahead, taken} {
		if err := <-c; err != nil {
			t.Fatal(err)
		}
	}
	if n := fetches.Load(); n != 1 {
		t.Fatalf("%d fetches", n)
	}
}

// TestADeadPrefetcherIsNotWaitedFor: what it left is cleared away, and at once
// if it is old: a crash leaves as many as were being fetched.
func TestADeadPrefetcherIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	for about, tc := range map[string]struct{ age, least, most time.Duration }{
		"just now":              {0, 2 * time.Second, 3 * time.Second},
		"an hour ago":           {time.Hour, 0, 100 * time.Millisecond},
		"before a clock's step": {-time.Hour, 2 * time.Second, 3 * time.Second},
	} {
		t.Run(about, func(t *testing.T) {
			t.Parallel()
			s := store(t, &archive{t: t, last: 100})
			left, to := filepath.Join(s.Base, ".wal-g/prefetch/running", name(2)), filepath.Join(t.TempDir(), "x")
			if err := os.MkdirAll(filepath.Dir(left), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				if err := os.Chtimes(left, begin.Add(-tc.age), begin.Add(-tc.age)); err != nil {
					t.Fatal(err)
				}
				if ok, err := s.Take(t.Context(), name(2), to); ok || err != nil {
					t.Fatalf("taken: %v, %v", ok, err)
				}
				if took := time.Since(begin); took < tc.least || took > tc.most {
					t.Errorf("waited for %s", took)
				}
			})
			if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("still there: %v", err)
			}
		})
	}
}
