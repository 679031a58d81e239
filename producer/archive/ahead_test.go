package archive

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/messages"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testSegment pg.SegmentSize = 1 << 20

// walDir is a made-up pg_wal.
type walDir struct {
	t   tester
	dir string
}

// tester is what testing.T and rapid.T have in common.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

func newWALDir(t tester, dir string) *walDir {
	if err := os.MkdirAll(statusDir(dir), 0o700); err != nil {
		t.Fatalf("%v", err)
	}
	return &walDir{t, dir}
}

func seg(n uint64) string { return pg.SegmentAt(1, n, testSegment).String() }

// ready makes files that PostgreSQL wants archived.
func (w *walDir) ready(names ...string) {
	w.t.Helper()
	for _, n := range names {
		w.write(n, "content of "+n)
		if err := os.WriteFile(readyPath(w.dir, n), nil, 0o600); err != nil {
			w.t.Fatalf("%v", err)
		}
	}
}

func (w *walDir) write(name, content string) {
	w.t.Helper()
	if err := os.WriteFile(w.path(name), []byte(content), 0o600); err != nil {
		w.t.Fatalf("%v", err)
	}
}

func (w *walDir) path(name string) string { return filepath.Join(w.dir, name) }

func (w *walDir) marks() (names []string) {
	entries, _ := os.ReadDir(marksOf(w.dir).dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// pusher is a made-up archive: it keeps what it was given.
type pusher struct {
	mu      sync.Mutex
	order   []string
	content map[string]string
	running int
	most    int
	// before, if set, is called with each name, outside of the lock; its
	// error is the push's.
	before func(ctx context.Context, name string) error
}

var errNoBroker = errors.New("no broker")

func (p *pusher) push(ctx context.Context, path string) (messages.ArchiveReply, error) {
	name := filepath.Base(path)
	p.mu.Lock()
	p.order = append(p.order, name)
	p.running++
	p.most = max(p.most, p.running)
	before := p.before
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.running--
		p.mu.Unlock()
	}()
	data, err := os.ReadFile(path)
	if err == nil && before != nil {
		err = before(ctx, name)
	}
	if err != nil {
		return messages.ArchiveReply{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.content == nil {
		p.content = map[string]string{}
	}
	p.content[name] = string(data)
	return messages.ArchiveReply{Name: name, Final: true, Object: name + ".lz4"}, nil
}

func (p *pusher) pushed() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.order)
}

func (p *pusher) ahead(w *walDir, change func(*AheadOptions)) *Ahead {
	opt := AheadOptions{
		Push: p.push, Dir: w.dir, SegmentSize: testSegment, Concurrency: 4, Limit: 8, Logger: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&opt)
	}
	return NewAhead(opt)
}

func mustPush(t tester, a *Ahead, path string) messages.ArchiveReply {
	t.Helper()
	r, err := a.Push(context.Background(), path)
	if err != nil {
		t.Fatalf("push %s: %v", path, err)
	}
	if want := filepath.Base(path); r.Name != want {
		t.Fatalf("pushed %s, answered for %s", want, r.Name)
	}
	return r
}

func TestOrderIsPostgreSQLs(t *testing.T) {
	t.Parallel()
	w := newWALDir(t, t.TempDir())
	w.ready(seg(7), seg(5), seg(6), seg(12), seg(3), "00000003.history", "00000002.history", seg(5)+".00000028.backup", seg(20)+".partial")
	if err := os.WriteFile(readyPath(w.dir, "junk"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	q := newQueue(w.dir, seg(5), testSegment)
	var got []string
	for {
		name, err := q.pop()
		if err != nil {
			t.Fatal(err)
		}
		if name == "" {
			break
		}
		got = append(got, name)
	}
	want := []string{seg(6), seg(7), "00000002.history", "00000003.history", seg(3), seg(5) + ".00000028.backup", seg(12), seg(20) + ".partial"}
	if !slices.Equal(got, want) {
		t.Fatalf("got  %v\nwant %v", got, want)
	}
}

// TestEveryCourseOfAsks is the promise of Ahead under any course of events: an ask
// succeeds exactly if the file, as it is, was archived; no more runs at once
// and is pushed on account of an ask than is allowed; and what is shipped ahead
// comes in order.
func TestEveryCourseOfAsks(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		w := newWALDir(t, filepath.Join(root, fmt.Sprint(n)))
		resident, rename := rapid.Bool().Draw(t, "resident"), rapid.Bool().Draw(t, "rename")
		concurrency, limit := rapid.IntRange(1, 4).Draw(t, "concurrency"), rapid.IntRange(1, 6).Draw(t, "limit")
		fails := map[string]bool{}
		var failing sync.Mutex
		p := &pusher{before: func(_ context.Context, name string) error {
			failing.Lock()
			defer failing.Unlock()
			if fails[name] {
				return errNoBroker
			}
			return nil
		}}
		change := func(o *AheadOptions) {
			o.Concurrency, o.Limit, o.Resident, o.ReadyRename = concurrency, limit, resident, rename
		}
		a := p.ahead(w, change)
		defer func() { a.Close() }()
		version := 0
		t.Repeat(map[string]func(*rapid.T){
			"ready": func(t *rapid.T) {
				w.ready(seg(rapid.Uint64Range(1, 12).Draw(t, "segment")))
			},
			"history": func(t *rapid.T) { w.ready(fmt.Sprintf("%08X.history", rapid.IntRange(2, 4).Draw(t, "timeline"))) },
			"recycled": func(t *rapid.T) { // the same name with another content
				name := seg(rapid.Uint64Range(1, 12).Draw(t, "segment"))
				version++
				w.write(name, fmt.Sprint("version ", strings.Repeat("x", version)))
			},
			"failing": func(t *rapid.T) {
				failing.Lock()
				defer failing.Unlock()
				fails[seg(rapid.Uint64Range(1, 12).Draw(t, "segment"))] = rapid.Bool().Draw(t, "fails")
			},
			"restart": func(*rapid.T) {
				a.Close()
				a = p.ahead(w, change)
			},
			"ask": func(t *rapid.T) {
				names, err := listReady(w.dir)
				if err != nil || len(names) == 0 {
					return
				}
				name := names[rapid.IntRange(0, min(2, len(names)-1)).Draw(t, "which")]
				before := len(p.pushed())
				_, err = a.Push(context.Background(), w.path(name))
				have, rerr := os.ReadFile(w.path(name))
				if rerr != nil {
					t.Fatalf("%v", rerr)
				}
				p.mu.Lock()
				stored := p.content[name]
				p.mu.Unlock()
				failing.Lock()
				fail := fails[name]
				failing.Unlock()
				if err == nil && stored != string(have) {
					t.Fatalf("%s: PostgreSQL was told that it is archived; it is %q, archived %q", name, have, stored)
				}
				if err != nil && !fail {
					t.Fatalf("%s: %v", name, err)
				}
				if !resident {
					if pushed := p.pushed()[before:]; len(pushed) > max(limit, 1) {
						t.Fatalf("%d pushes on account of one ask, at most %d: %v", len(pushed), limit, pushed)
					}
				}
				if err == nil { // PostgreSQL's own rename; it may find it done
					_ = os.Rename(readyPath(w.dir, name), donePath(w.dir, name))
				}
			},
			"": func(t *rapid.T) {
				p.mu.Lock()
				most := p.most
				p.mu.Unlock()
				if most > max(concurrency, 1) {
					t.Fatalf("%d pushes at once, at most %d", most, concurrency)
				}
				a.mu.Lock()
				defer a.mu.Unlock()
				if len(a.tasks) > limit+1 {
					t.Fatalf("%d files held, at most %d", len(a.tasks), limit)
				}
			},
		})
	})
}

// TestFollowingAsksAreAnsweredAtOnce: ask for N, and N+1 to N+3 are archived
// when they are asked for, once.
func TestFollowingAsksAreAnsweredAtOnce(t *testing.T) {
	t.Parallel()
	for _, resident := range []bool{false, true} {
		t.Run(fmt.Sprint("resident ", resident), func(t *testing.T) {
			t.Parallel()
			w := newWALDir(t, t.TempDir())
			w.ready(seg(1), seg(2), seg(3), seg(4))
			// The asked one ends after the others have begun.
			begun := make(chan struct{}, 4)
			p := &pusher{before: func(_ context.Context, name string) error {
				if name != seg(1) {
					begun <- struct{}{}
					return nil
				}
				for range 3 {
					<-begun
				}
				return nil
			}}
			a := p.ahead(w, func(o *AheadOptions) { o.Resident = resident })
			defer a.Close()
			for n := range uint64(4) {
				if r := mustPush(t, a, w.path(seg(n+1))); r.Object != seg(n+1)+".lz4" {
					t.Fatalf("the answer is %+v", r)
				}
				if err := os.Rename(readyPath(w.dir, seg(n+1)), donePath(w.dir, seg(n+1))); err != nil {
					t.Fatal(err)
				}
			}
			got := p.pushed()
			slices.Sort(got)
			if want := []string{seg(1), seg(2), seg(3), seg(4)}; !slices.Equal(got, want) {
				t.Fatalf("pushed %v, want each once", got)
			}
			if left := w.marks(); len(left) > 0 {
				t.Fatalf("marks left: %v", left)
			}
		})
	}
}

// TestAnAskWaitsForWhatIsUnderWay instead of pushing it twice.
func TestAnAskWaitsForWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	w := newWALDir(t, t.TempDir())
	w.ready(seg(1), seg(2))
	hold, begun := make(chan struct{}), make(chan struct{})
	p := &pusher{before: func(_ context.Context, name string) error {
		if name == seg(2) {
			close(begun)
			<-hold
		}
		return nil
	}}
	a := p.ahead(w, func(o *AheadOptions) { o.Resident = true })
	defer a.Close()
	mustPush(t, a, w.path(seg(1)))
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Push(ctx, w.path(seg(2))); !errors.Is(err, context.Canceled) || !errors.Is(err, ErrNotArchived) {
		t.Fatalf("an ask that is over got %v", err)
	}
	close(hold)
	mustPush(t, a, w.path(seg(2)))
	if got := p.pushed(); len(got) != 2 {
		t.Fatalf("pushed %v", got)
	}
}

// TestAFileThatChangedIsPushedAgain, whether it changed after it was shipped or
// meanwhile.
func TestAFileThatChangedIsPushedAgain(t *testing.T) {
	t.Parallel()
	for _, resident := range []bool{false, true} {
		for _, meanwhile := range []bool{false, true} {
			t.Run(fmt.Sprint("resident ", resident, ", meanwhile ", meanwhile), func(t *testing.T) {
				t.Parallel()
				w := newWALDir(t, t.TempDir())
				w.ready(seg(1), seg(2))
				shipping := make(chan struct{})
				var once sync.Once
				p := &pusher{before: func(_ context.Context, name string) error {
					if name != seg(2) {
						<-shipping
						return nil
					}
					once.Do(func() {
						if meanwhile {
							w.write(seg(2), "the new content")
						}
						close(shipping)
					})
					return nil
				}}
				a := p.ahead(w, func(o *AheadOptions) { o.Resident = resident })
				mustPush(t, a, w.path(seg(1)))
				if resident { // or the ask would wait and see the change itself
					a.mu.Lock()
					shipped := a.tasks[seg(2)]
					a.mu.Unlock()
					if shipped != nil {
						<-shipped.done
					}
				}
				if !meanwhile {
					w.write(seg(2), "the new content")
				}
				mustPush(t, a, w.path(seg(2)))
				a.Close()
				if got := p.content[seg(2)]; got != "the new content" {
					t.Fatalf("told that it is archived; archived is %q", got)
				}
			})
		}
	}
}

// TestAnAskIsBounded: a shipped file that hangs does not hold up the answer for
// the asked one for ever.
func TestAnAskIsBounded(t *testing.T) {
	t.Parallel()
	w := newWALDir(t, t.TempDir())
	w.ready(seg(1), seg(2))
	p := &pusher{before: func(ctx context.Context, name string) error {
		if name == seg(2) {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		return nil
	}}
	a := p.ahead(w, func(o *AheadOptions) { o.Timeout = 10 * time.Millisecond })
	defer a.Close()
	mustPush(t, a, w.path(seg(1)))
	if left := w.marks(); len(left) > 0 {
		t.Fatalf("marked %v", left)
	}
}

// TestAskedFileHasTheReserve: without room nothing is shipped ahead, and what
// is asked for is pushed all the same.
func TestAskedFileHasTheReserve(t *testing.T) {
	t.Parallel()
	w := newWALDir(t, t.TempDir())
	w.ready(seg(1), seg(2), seg(3), seg(4), seg(5))
	full := make(chan struct{})
	p := &pusher{before: func(ctx context.Context, name string) error {
		if name == seg(1) {
			<-full // nothing is shipped on account of an ask that is answered
		}
		return nil
	}}
	left := 2 // files that may be shipped ahead
	a := p.ahead(w, func(o *AheadOptions) {
		o.Concurrency = 2 // one ahead at a time
		o.Room = func(context.Context, int) bool {
			if left--; left == -1 {
				close(full)
			}
			return left >= 0
		}
	})
	defer a.Close()
	if _, err := a.Push(t.Context(), w.path(seg(1))); err != nil {
		t.Fatal(err)
	}
	got := p.pushed()
	slices.Sort(got)
	if want := []string{seg(1), seg(2), seg(3)}; !slices.Equal(got, want) {
		t.Fatalf("pushed %v, want %v", got, want)
	}
	for _, n := range []string{seg(2), seg(3), seg(4), seg(5)} {
		if _, err := a.Push(t.Context(), w.path(n)); err != nil {
			t.Fatalf("%s: %v", n, err)
		}
	}
}

func TestClosedAheadRefuses(t *testing.T) {
	t.Parallel()
	w := newWALDir(t, t.TempDir())
	w.ready(seg(1))
	a := (&pusher{}).ahead(w, nil)
	a.Close()
	if _, err := a.Push(t.Context(), w.path(seg(1))); !errors.Is(err, ErrClosed) || !errors.Is(err, ErrNotArchived) {
		t.Fatalf("got %v", err)
	}
}

// TestAPanicOfAShippedFileIsItsFailure and nobody else's.
func TestAPanicOfAShippedFileIsItsFailure(t *testing.T) {
	t.Parallel()
	w := newWALDir(t, t.TempDir())
	w.ready(seg(1), seg(2))
	p := &pusher{before: func(_ context.Context, name string) error {
		if name == seg(2) {
			panic("boom")
		}
		return nil
	}}
	a := p.ahead(w, nil)
	defer a.Close()
	mustPush(t, a, w.path(seg(1)))
	if left := w.marks(); len(left) > 0 {
		t.Fatalf("marked %v", left)
	}
}

// TestReadyRename: PostgreSQL will not ask for what was shipped, so it leaves
// no mark; what failed stays ready.
func TestReadyRename(t *testing.T) {
	t.Parallel()
	w := newWALDir(t, t.TempDir())
	w.ready(seg(1), seg(2), seg(3), seg(4))
	begun := make(chan struct{}, 3)
	p := &pusher{before: func(_ context.Context, name string) error {
		switch name {
		case seg(1):
			for range cap(begun) {
				<-begun
			}
			return nil
		case seg(4):
			w.write(name, "changed while it was shipped")
		}
		begun <- struct{}{}
		if name == seg(3) {
			return errNoBroker
		}
		return nil
	}}
	a := p.ahead(w, func(o *AheadOptions) { o.ReadyRename = true })
	defer a.Close()
	mustPush(t, a, w.path(seg(1)))
	if !isReady(w.dir, seg(1)) {
		t.Error("the .ready of the asked file is PostgreSQL's to rename")
	}
	if _, err := os.Stat(donePath(w.dir, seg(2))); err != nil || isReady(w.dir, seg(2)) {
		t.Errorf("a shipped file is not done: %v", err)
	}
	if !isReady(w.dir, seg(3)) {
		t.Error("a file that failed is not ready any more")
	}
	if !isReady(w.dir, seg(4)) {
		t.Error("a file that changed is not ready any more")
	}
	if left := w.marks(); len(left) > 0 {
		t.Errorf("marks: %v", left)
	}
}

// mark makes a mark file as another process would.
func (w *walDir) mark(name, content string, age time.Duration) {
	w.t.Helper()
	m := marksOf(w.dir)
	if err := m.prepare(); err != nil {
		w.t.Fatalf("%v", err)
	}
	if err := os.WriteFile(m.path(name), []byte(content), 0o600); err != nil {
		w.t.Fatalf("%v", err)
	}
	when := time.Now().Add(-age)
	if err := os.Chtimes(m.path(name), when, when); err != nil {
		w.t.Fatalf("%v", err)
	}
}

// TestForeignMarks: an empty mark is WAL-G's.
func TestForeignMarks(t *testing.T) {
	t.Parallel()
	const newer, older = -time.Minute, time.Hour
	for _, tc := range []struct {
		name     string
		file     string
		mark     string
		content  string
		age      time.Duration
		beside   string // another file that is ready
		believed bool
	}{
		{name: "of a segment", file: seg(1), mark: seg(1), age: newer, believed: true},
		{name: "older than the segment", file: seg(1), mark: seg(1), age: older},
		{name: "that a partial segment may have left", file: seg(1), mark: seg(1), age: newer, beside: seg(1) + ".partial"},
		{name: "of a segment, asked for its partial", file: seg(1) + ".partial", mark: seg(1), age: newer},
		{name: "named as a partial segment", file: seg(1) + ".partial", mark: seg(1) + ".partial", age: newer},
		{name: "of a history file", file: "00000002.history", mark: "00000002", age: newer},
		{name: "with junk", file: seg(1), mark: seg(1), content: "{", age: newer},
		{name: "of a later version", file: seg(1), mark: seg(1), content: `{"v":2,"name":"` + seg(1) + `"}`, age: newer},
		{name: "of another file", file: seg(1), mark: seg(1), content: `{"v":1,"name":"` + seg(2) + `"}`, age: newer},
		{name: "of another content", file: seg(1), mark: seg(1), content: `{"v":1,"name":"` + seg(1) + `","file":{"size":1}}`, age: newer},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWALDir(t, t.TempDir())
			w.ready(tc.file)
			if tc.beside != "" {
				w.ready(tc.beside)
			}
			w.mark(tc.mark, tc.content, tc.age)
			p := &pusher{}
			a := p.ahead(w, func(o *AheadOptions) { o.Limit = 1 })
			defer a.Close()
			mustPush(t, a, w.path(tc.file))
			if got := len(p.pushed()) == 0; got != tc.believed {
				t.Errorf("believed: %v", got)
			}
			if tc.mark == tc.file && marksOf(w.dir).has(tc.mark) {
				t.Error("the mark was not consumed")
			}
		})
	}
}

// TestMarksAreNamedSoThatWALGIsNotMisled: WAL-G looks for the name without its
// last extension.
func TestMarksAreNamedSoThatWALGIsNotMisled(t *testing.T) {
	t.Parallel()
	w := newWALDir(t, t.TempDir())
	shipped := []string{"00000002.history", seg(2), seg(3) + ".partial", seg(4) + ".00000028.backup"}
	w.ready(append(shipped, seg(1))...)
	begun := make(chan struct{}, len(shipped))
	p := &pusher{before: func(_ context.Context, name string) error {
		if name != seg(1) {
			begun <- struct{}{}
			return nil
		}
		for range shipped {
			<-begun
		}
		return nil
	}}
	a := p.ahead(w, nil)
	defer a.Close()
	mustPush(t, a, w.path(seg(1)))
	looked := map[string]bool{}
	for _, name := range append(shipped, seg(3), seg(4)) {
		looked[strings.TrimSuffix(name, filepath.Ext(name))] = true
	}
	var seen []string
	for _, m := range w.marks() {
		if looked[m] {
			seen = append(seen, m)
		}
	}
	if len(w.marks()) != len(shipped) || !slices.Equal(seen, []string{seg(2)}) {
		t.Fatalf("of the marks %v WAL-G sees %v, want %s alone", w.marks(), seen, seg(2))
	}
}

// TestACrashBeforeTheMark leaves a file that is pushed again.
func TestACrashBeforeTheMark(t *testing.T) {
	t.Parallel()
	w := newWALDir(t, t.TempDir())
	w.ready(seg(1), seg(2))
	p := &pusher{}
	a := p.ahead(w, nil)
	mustPush(t, a, w.path(seg(1)))
	a.Close()
	if err := errors.Join(marksOf(w.dir).remove(seg(2)), os.Rename(readyPath(w.dir, seg(1)), donePath(w.dir, seg(1)))); err != nil {
		t.Fatal(err)
	}
	b := p.ahead(w, nil)
	defer b.Close()
	mustPush(t, b, w.path(seg(2)))
	if got := p.pushed(); !slices.Equal(got, []string{seg(1), seg(2), seg(2)}) && !slices.Equal(got, []string{seg(2), seg(1), seg(2)}) {
		t.Fatalf("pushed %v", got)
	}
}

// TestMarksOfWhatIsNotReadyGo: a name can come again with another content.
func TestMarksOfWhatIsNotReadyGo(t *testing.T) {
	t.Parallel()
	w := newWALDir(t, t.TempDir())
	w.ready(seg(1))
	w.mark(seg(9), "", 0)
	w.mark("00000002", "", 0) // not ours to judge
	a := (&pusher{}).ahead(w, nil)
	defer a.Close()
	mustPush(t, a, w.path(seg(1)))
	if got := w.marks(); !slices.Equal(got, []string{"00000002"}) {
		t.Fatalf("marks left: %v", got)
	}
}

// TestAFileFromElsewhereIsPushedAndNoMore.
func TestAFileFromElsewhereIsPushedAndNoMore(t *testing.T) {
	t.Parallel()
	w, other := newWALDir(t, t.TempDir()), newWALDir(t, t.TempDir())
	w.ready(seg(1), seg(2))
	w.mark(seg(1), "", -time.Minute)
	other.ready(seg(1), seg(2))
	p := &pusher{}
	a := p.ahead(w, nil)
	defer a.Close()
	mustPush(t, a, other.path(seg(1)))
	if got := p.pushed(); !slices.Equal(got, []string{seg(1)}) {
		t.Fatalf("pushed %v", got)
	}
}
