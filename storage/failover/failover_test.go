package failover_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/failover"
	"github.com/walherd/walherd/storage/fs"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	checkObject = "wal-g_storage_check"
	lifetime    = 15 * time.Minute
)

// testBundle is some storages, a clock and a status file.
type testBundle struct {
	stores []*storagetest.Faulty
	opt    failover.Options
	log    *logBuffer
	mu     sync.Mutex
	time   time.Time
}

func setup(t testing.TB, names ...string) *testBundle {
	t.Helper()
	b := &testBundle{log: &logBuffer{}, time: time.Date(2026, 11, 22, 16, 55, 54, 997079613, time.UTC)}
	b.opt = failover.Options{
		Check: true, Write: true, CheckSize: 100 << 10, Lifetime: lifetime,
		CachePath: failover.CachePath(t.TempDir(), true),
		Now:       b.now,
		Log:       slog.New(slog.NewTextHandler(b.log, nil)),
	}
	for _, name := range names {
		store := storagetest.NewFaulty(mem.New())
		b.stores = append(b.stores, store)
		b.opt.Members = append(b.opt.Members, failover.Member{Name: name, Bucket: store, ID: "id-of-" + name})
	}
	return b
}

func (b *testBundle) now() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.time
}

func (b *testBundle) advance(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.time = b.time.Add(d)
}

// open is what each short command does.
func (b *testBundle) open(t testing.TB) *failover.Set {
	t.Helper()
	set, err := failover.Open(b.opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(set.Close)
	return set
}

// writer is the choice of a short command of its own.
func (b *testBundle) writer(t testing.TB) string {
	t.Helper()
	set := b.open(t)
	defer set.Close()
	m, err := set.Writer(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return m.Name
}

// push is a wal-push: a choice and a Put.
func (b *testBundle) push(t testing.TB) (string, error) {
	t.Helper()
	set := b.open(t)
	defer set.Close()
	m, err := set.Writer(t.Context(), "")
	if err != nil {
		return "", err
	}
	_, err = m.Bucket.Put(t.Context(), "wal_005/x", strings.NewReader("x"), storage.PutOptions{})
	return m.Name, err
}

func (b *testBundle) checks(store int) int {
	n := 0
	for _, c := range b.stores[store].Calls() {
		if c.Op == storagetest.List {
			n++
		}
	}
	return n
}

func (b *testBundle) file(t testing.TB) map[string]map[string]any {
	t.Helper()
	data, err := os.ReadFile(b.opt.CachePath)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]map[string]any
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatalf("status file %q: %v", data, err)
	}
	return doc
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func wantWriter(t testing.TB, b *testBundle, want string) {
	t.Helper()
	if got := b.writer(t); got != want {
		t.Fatalf("the writer is %q, want %q", got, want)
	}
}

func names(ms []failover.Member) string {
	var all []string
	for _, m := range ms {
		all = append(all, m.Name)
	}
	return strings.Join(all, " ")
}

var (
	down     = []storagetest.Fault{{Op: storagetest.List}, {Op: storagetest.Put}, {Op: storagetest.Open}, {Op: storagetest.Stat}, {Op: storagetest.Delete}}
	readOnly = storagetest.Fault{Op: storagetest.Put, Err: fmt.Errorf("read-only file system: %w", storage.ErrPermanent)}
)

// TestBucket: what a Set hands out keeps the promise of a Bucket.
func TestBucket(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(t *testing.T) storage.Bucket {
		b := setup(t, "default")
		b.opt.Members[0].Bucket = mem.New()
		b.opt.CheckSize = 0
		m, err := b.open(t).Writer(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		return m.Bucket
	})
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	bucket := mem.New()
	for _, tc := range []struct{ names, want string }{
		{"", "none"},
		{"b", `"default"`},
		{"default Default", `"default"`},
		{"default ALL", "reserved"},
		{"default b B", "two"},
	} {
		opt := failover.Options{Check: true}
		for _, name := range strings.Fields(tc.names) {
			opt.Members = append(opt.Members, failover.Member{Name: name, Bucket: bucket, ID: "x"})
		}
		if _, err := failover.Open(opt); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("storages %q: got error %v, want one with %q", tc.names, err, tc.want)
		}
	}
	for _, m := range []failover.Member{{Name: "default", ID: "x"}, {Name: "default", Bucket: bucket}} {
		if _, err := failover.Open(failover.Options{Check: true, CachePath: "/x", Members: []failover.Member{m}}); err == nil {
			t.Errorf("member %+v was taken", m)
		}
	}
}

func TestPrimaryFirst(t *testing.T) {
	t.Parallel()
	b := setup(t, "default", "B", "c")
	wantWriter(t, b, "default")
	set := b.open(t)
	all, err := set.Readers(t.Context(), "")
	if err != nil || names(all) != "default B c" {
		t.Errorf("readers are %q, %v", names(all), err)
	}
	for i, store := range b.stores {
		if left := storagetest.Names(t, store, "", storage.ListOptions{}); len(left) > 0 {
			t.Errorf("storage %d: the checks left %q", i, left)
		}
	}
}

// TestFileIsThatOfWALG holds the form of the file to a sample.
func TestFileIsThatOfWALG(t *testing.T) {
	t.Parallel()
	b := setup(t, "default", "Storage_B")
	b.stores[1].Add(readOnly)
	set := b.open(t)
	if _, err := set.Readers(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(b.opt.CachePath)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"default#id-of-default":{"potential_aliveness":100,"actual_aliveness":100,"previous_aliveness":true,"updated":"2026-11-22T16:55:54.997079613Z"},` +
		`"storage_b#id-of-Storage_B":{"potential_aliveness":100,"actual_aliveness":0,"previous_aliveness":false,"updated":"2026-11-22T16:55:54.997079613Z"}}`
	if string(data) != want {
		t.Errorf("the file is\n%s\nwant\n%s", data, want)
	}
	for write, want := range map[bool]string{false: "/h/.walg_storage_ro_status_cache", true: "/h/.walg_storage_rw_status_cache"} {
		if got := failover.CachePath("/h", write); got != want {
			t.Errorf("CachePath is %q, want %q", got, want)
		}
	}
}

// TestStatusesOfWALG reads averages that WAL-G may have written.
func TestStatusesOfWALG(t *testing.T) {
	t.Parallel()
	const at = `"updated":"2026-11-22T16:55:54.997079613Z"`
	for _, tc := range []struct {
		name, status string
		want         failover.State
	}{
		{"checked", `{"potential_aliveness":100,"actual_aliveness":100,"previous_aliveness":true,` + at + `}`, failover.Alive},
		{"falling, above the limit of the dead", `{"potential_aliveness":100,"actual_aliveness":88,"previous_aliveness":true,` + at + `}`, failover.Alive},
		{"fallen", `{"potential_aliveness":100,"actual_aliveness":87.9,"previous_aliveness":true,` + at + `}`, failover.Dead},
		{"rising", `{"potential_aliveness":100,"actual_aliveness":98.9,"previous_aliveness":false,` + at + `}`, failover.Dead},
		{"risen", `{"potential_aliveness":100,"actual_aliveness":99,"previous_aliveness":false,` + at + `}`, failover.Alive},
		{"nothing learned", `{"potential_aliveness":0,"actual_aliveness":0,"previous_aliveness":true,` + at + `}`, failover.Unknown},
		{"more members", `{"new":[1],"potential_aliveness":5000,"actual_aliveness":5000,"previous_aliveness":true,"updated":"2026-11-22T18:55:54.997079613+02:00"}`, failover.Alive},
		{"from the future", `{"potential_aliveness":100,"actual_aliveness":100,"previous_aliveness":true,"updated":"2027-11-22T16:55:54Z"}`, failover.Unknown},
		{"expired", `{"potential_aliveness":100,"actual_aliveness":100,"previous_aliveness":true,"updated":"2026-11-22T16:40:54Z"}`, failover.Unknown},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, "default", "b")
			if err := os.WriteFile(b.opt.CachePath, []byte(`{"default#id-of-default":`+tc.status+`}`), 0o600); err != nil {
				t.Fatal(err)
			}
			st := b.open(t).Statuses(t.Context())
			if st[0].State != tc.want || st[1].State != failover.Unknown {
				t.Errorf("statuses %+v, want the first %q", st, tc.want)
			}
			if (st[0].Err != nil) != (tc.want == failover.Dead) {
				t.Errorf("the reason is %v", st[0].Err)
			}
			if n := b.checks(0) + b.checks(1); n > 0 {
				t.Errorf("%d checks", n)
			}
		})
	}
}

func TestWarmCacheChecksNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, "default", "b")
	if _, err := b.open(t).Readers(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	b.advance(lifetime - time.Second)
	before := len(b.stores[0].Calls()) + len(b.stores[1].Calls())
	wantWriter(t, b, "default")
	if ms, err := b.open(t).Readers(t.Context(), failover.All); err != nil || len(ms) != 2 {
		t.Fatalf("readers %v, %v", ms, err)
	}
	if n := len(b.stores[0].Calls()) + len(b.stores[1].Calls()) - before; n > 0 {
		t.Errorf("%d calls with a warm cache", n)
	}
	b.advance(time.Second)
	wantWriter(t, b, "default")
	if n := b.checks(0); n != 2 {
		t.Errorf("%d checks of the primary, want another one after the lifetime", n)
	}
}

func TestNoLifetimeChecksEachTime(t *testing.T) {
	t.Parallel()
	b := setup(t, "default")
	b.opt.Lifetime = 0
	for want := 1; want <= 3; want++ {
		wantWriter(t, b, "default")
		if n := b.checks(0); n != want {
			t.Fatalf("%d checks, want %d", n, want)
		}
	}
}

func TestWithoutCheck(t *testing.T) {
	t.Parallel()
	b := setup(t, "default", "b")
	b.opt.Check = false
	b.stores[0].Add(down...)
	wantWriter(t, b, "default")
	wantWriter(t, b, "default")
	if ms, err := b.open(t).Readers(t.Context(), "B"); err != nil || names(ms) != "b" {
		t.Errorf("readers %v, %v", ms, err)
	}
	if st := b.open(t).Statuses(t.Context()); st[0].State != failover.Alive {
		t.Errorf("statuses %+v", st)
	}
	if _, err := os.Stat(b.opt.CachePath); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("status file: %v, want none", err)
	}
}

func TestCheckSize(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		size  int64
		write bool
		put   int64
	}{{0, true, -1}, {1, true, 1}, {300_000, true, 300_000}, {300_000, false, -1}} {
		b := setup(t, "default")
		sizes := &sizeBucket{Bucket: mem.New(), put: -1}
		b.opt.Members[0].Bucket, b.opt.CheckSize, b.opt.Write = sizes, tc.size, tc.write
		if _, err := b.open(t).Readers(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		if sizes.put != tc.put {
			t.Errorf("size %d, write %v: a check wrote %d bytes, want %d (-1 is no write)", tc.size, tc.write, sizes.put, tc.put)
		}
	}
}

type sizeBucket struct {
	storage.Bucket
	put int64
}

func (b *sizeBucket) Delete(ctx context.Context, names ...string) error {
	info, err := b.Stat(ctx, names[0])
	if err != nil {
		return err
	}
	b.put = info.Size
	return b.Bucket.Delete(ctx, names...)
}

func TestTarget(t *testing.T) {
	t.Parallel()
	b := setup(t, "default", "Storage_B")
	set := b.open(t)
	for _, target := range []string{"Storage_B", "storage_b", "STORAGE_B"} {
		if m, err := set.Writer(t.Context(), target); err != nil || m.Name != "Storage_B" {
			t.Errorf("writer %q: %q, %v", target, m.Name, err)
		}
		if ms, err := set.Readers(t.Context(), target); err != nil || names(ms) != "Storage_B" {
			t.Errorf("readers %q: %q, %v", target, names(ms), err)
		}
	}
	if n := b.checks(0); n > 0 {
		t.Errorf("the storage not asked for was checked")
	}
	if _, err := set.Writer(t.Context(), "c"); !errors.Is(err, failover.ErrUnknown) || !strings.Contains(err.Error(), "Storage_B") {
		t.Errorf("unknown name: %v", err)
	}
	if _, err := set.Writer(t.Context(), "ALL"); !errors.Is(err, failover.ErrUnknown) {
		t.Errorf("write to all: %v", err)
	}
	b.stores[1].Add(readOnly)
	b.advance(lifetime)
	if _, err := set.Writer(t.Context(), "storage_b"); !errors.Is(err, failover.ErrNoneAlive) {
		t.Errorf("dead target: %v, though another storage is alive", err)
	}
	b.opt.Write = false
	if _, err := b.open(t).Writer(t.Context(), ""); err == nil {
		t.Error("a Set opened for reading gave a writer")
	}
}

// TestReadOnlyPrimary: the write half of a check counts.
func TestReadOnlyPrimary(t *testing.T) {
	t.Parallel()
	b := setup(t, "default", "b")
	b.stores[0].Add(readOnly)
	wantWriter(t, b, "b")
	if !strings.Contains(b.log.String(), "read-only file system") {
		t.Errorf("the log does not tell why: %s", b.log)
	}
	b.opt.Write, b.opt.CachePath = false, failover.CachePath(t.TempDir(), false)
	if ms, err := b.open(t).Readers(t.Context(), ""); err != nil || names(ms) != "default b" {
		t.Errorf("readers %q, %v: a read-only storage can be read", names(ms), err)
	}
}

// TestFullPrimary: the check fits where the segment does not.
func TestFullPrimary(t *testing.T) {
	t.Parallel()
	b := setup(t, "default", "b")
	b.stores[0].Add(storagetest.Fault{Op: storagetest.Put, Name: "wal_005/x",
		Err: fmt.Errorf("no space left on device: %w", storage.ErrPermanent)})
	if name, err := b.push(t); name != "default" || !errors.Is(err, storage.ErrPermanent) {
		t.Fatalf("first push to %q: %v", name, err)
	}
	if name, err := b.push(t); name != "b" || err != nil {
		t.Fatalf("second push to %q: %v", name, err)
	}
	b.stores[0].Clear()
	b.advance(failover.DefaultRecheck - time.Second)
	wantWriter(t, b, "b")
	b.advance(time.Second)
	wantWriter(t, b, "default")
	if !strings.Contains(b.log.String(), "alive again") {
		t.Errorf("the log does not tell of the return: %s", b.log)
	}
}

// TestLostDirectory: the directory of a file storage goes away, which may look
// like a missing object.
func TestLostDirectory(t *testing.T) {
	t.Parallel()
	b := setup(t, "default", "b")
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	bucket, err := fs.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	b.opt.Members[0].Bucket = bucket
	wantWriter(t, b, "default")
	if err := os.Remove(root); err != nil {
		t.Fatal(err)
	}
	if name, err := b.push(t); name != "default" || err == nil {
		t.Fatalf("first push to %q: %v", name, err)
	}
	if name, err := b.push(t); name != "b" || err != nil {
		t.Fatalf("second push to %q: %v", name, err)
	}
	b.advance(lifetime)
	wantWriter(t, b, "b")
}

// TestLongLife: a daemon notices what its own calls and other processes find.
func TestLongLife(t *testing.T) {
	t.Parallel()
	b := setup(t, "default", "b")
	daemon := b.open(t)
	choice := func() string {
		m, err := daemon.Writer(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		return m.Name
	}
	if got := choice(); got != "default" {
		t.Fatalf("writer %q", got)
	}
	b.stores[0].Add(readOnly)
	if _, err := b.push(t); err == nil {
		t.Fatal("a push to a read-only storage succeeded")
	}
	if got := choice(); got != "b" {
		t.Errorf("writer %q after another process found the primary dead", got)
	}
	st := daemon.Statuses(t.Context())
	if st[0].State != failover.Dead || st[0].Err == nil || !st[0].Updated.Equal(b.now()) {
		t.Errorf("status %+v", st[0])
	}
	if err := os.Remove(b.opt.CachePath); err != nil {
		t.Fatal(err)
	}
	b.stores[0].Clear()
	if got := choice(); got != "default" {
		t.Errorf("writer %q after the status file was removed", got)
	}
}

func TestDoubt(t *testing.T) {
	t.Parallel()
	fail := map[string]func(t *testing.T, bucket storage.Bucket){
		"stat":   func(t *testing.T, bucket storage.Bucket) { bucket.Stat(t.Context(), "x") },
		"open":   func(t *testing.T, bucket storage.Bucket) { bucket.Open(t.Context(), "x", storage.Range{}) },
		"delete": func(t *testing.T, bucket storage.Bucket) { bucket.Delete(t.Context(), "x") },
		"list": func(t *testing.T, bucket storage.Bucket) {
			for range bucket.List(t.Context(), "x", storage.ListOptions{}) {
			}
		},
		"put late": func(t *testing.T, bucket storage.Bucket) {
			ctx, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
			defer cancel()
			bucket.Put(ctx, "x", strings.NewReader(""), storage.PutOptions{})
		},
	}
	for name, call := range fail {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, "default", "b")
			set := b.open(t)
			m, err := set.Writer(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			call(t, m.Bucket)
			if name != "put late" { // x does not exist, which is an answer
				if st := set.Statuses(t.Context()); st[0].State != failover.Alive {
					t.Fatalf("an answer made the storage %s", st[0].State)
				}
				b.stores[0].Add(down...)
				call(t, m.Bucket)
			}
			if st := set.Statuses(t.Context()); st[0].State != failover.Unknown {
				t.Fatalf("the storage is %s, want it in doubt", st[0].State)
			}
			if _, ok := b.file(t)["default#id-of-default"]; ok {
				t.Error("other processes do not learn of the doubt")
			}
			want := "b"
			if name == "put late" {
				want = "default"
			}
			wantWriter(t, b, want)
			// What is dead does not get better by more failures.
			call(t, m.Bucket)
			if st := set.Statuses(t.Context()); name != "put late" && st[0].State != failover.Dead {
				t.Errorf("the storage is %s", st[0].State)
			}
		})
	}
}

func TestBrokenBody(t *testing.T) {
	t.Parallel()
	b := setup(t, "default")
	storagetest.MustPut(t, b.stores[0], "x", storagetest.Content(1, 100))
	set := b.open(t)
	m, err := set.Writer(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	b.stores[0].Add(storagetest.Fault{Op: storagetest.Open, Bytes: 10})
	read := func(closeFirst bool) {
		r, err := m.Bucket.Open(t.Context(), "x", storage.Range{})
		if err != nil {
			t.Fatal(err)
		}
		if closeFirst {
			r.Close()
		}
		if _, err := new(bytes.Buffer).ReadFrom(r); err == nil {
			t.Fatal("the body did not break")
		}
		r.Close()
	}
	read(true)
	if st := set.Statuses(t.Context()); st[0].State != failover.Alive {
		t.Errorf("reading a closed body made the storage %s", st[0].State)
	}
	read(false)
	if st := set.Statuses(t.Context()); st[0].State != failover.Unknown {
		t.Errorf("the storage is %s, want it in doubt", st[0].State)
	}
}

// TestInnocent: what does not speak against a storage.
func TestInnocent(t *testing.T) {
	t.Parallel()
	b := setup(t, "default")
	set := b.open(t)
	m, err := set.Writer(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	boom := errors.New("boom")
	put := func(ctx context.Context, name string, opt storage.PutOptions) error {
		_, err := m.Bucket.Put(ctx, name, strings.NewReader("x"), opt)
		return err
	}
	if err := put(t.Context(), "x", storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Bucket.Put(t.Context(), "y", iotest.ErrReader(boom), storage.PutOptions{}); !errors.Is(err, boom) {
		t.Errorf("failing reader: %v", err)
	}
	for want, err := range map[error]error{
		context.Canceled: put(canceled, "x", storage.PutOptions{}),
		storage.ErrExist: put(t.Context(), "x", storage.PutOptions{IfAbsent: true}),
		storage.ErrName:  put(t.Context(), "../x", storage.PutOptions{}),
	} {
		if !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	if _, err := m.Bucket.Open(t.Context(), "x", storage.Range{Offset: 9}); !errors.Is(err, storage.ErrRange) {
		t.Errorf("range: %v", err)
	}
	if st := set.Statuses(t.Context()); st[0].State != failover.Alive {
		t.Errorf("the storage is %+v", st[0])
	}
}

func TestAllDead(t *testing.T) {
	t.Parallel()
	b := setup(t, "default", "B")
	// A missing root must not look like a missing object.
	b.stores[0].Add(storagetest.Fault{Op: storagetest.List, Err: fmt.Errorf("no such bucket: %w", storage.ErrNotExist)})
	b.stores[1].Add(readOnly)
	for range 2 { // fresh, and with both known as dead
		set := b.open(t)
		_, werr := set.Writer(t.Context(), "")
		_, rerr := set.Readers(t.Context(), "")
		for _, err := range []error{werr, rerr} {
			if !errors.Is(err, failover.ErrNoneAlive) || errors.Is(err, storage.ErrNotExist) {
				t.Fatalf("got error %v", err)
			}
			for _, want := range []string{"no alive storages: default: ", "no such bucket", ", B: ", "read-only file system"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not tell %q", err, want)
				}
			}
		}
	}
	// Nothing usable is known, so the next command looks at once.
	b.stores[1].Clear()
	wantWriter(t, b, "B")
	b.stores[0].Clear()
	wantWriter(t, b, "B")
	b.advance(failover.DefaultRecheck)
	wantWriter(t, b, "default")
}

// TestUndeletable: who keeps backups from being deleted can still write them.
func TestUndeletable(t *testing.T) {
	t.Parallel()
	b := setup(t, "default", "b")
	b.stores[0].Add(storagetest.Fault{Op: storagetest.Delete, Err: fmt.Errorf("access denied: %w", storage.ErrPermanent)})
	wantWriter(t, b, "default")
	if !strings.Contains(b.log.String(), "access denied") {
		t.Errorf("log: %s", b.log)
	}
	b.stores[0].Clear()
	b.stores[0].Add(storagetest.Fault{Op: storagetest.Delete})
	b.advance(lifetime)
	wantWriter(t, b, "b")
}

func TestProbeBucket(t *testing.T) {
	t.Parallel()
	b := setup(t, "default")
	b.opt.Members[0].Probe = mem.New()
	b.stores[0].Add(down...)
	wantWriter(t, b, "default")
}

func TestCorruptFile(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{
		"no JSON":           "{\"default#",
		"another document":  "[1]",
		"zeros":             "\x00\x00\x00",
		"broken entry":      `{"default#id-of-default":7}`,
		"unreadable time":   `{"default#id-of-default":{"updated":"yesterday"}}`,
		"longer than sense": strings.Repeat(" ", 2<<20),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, "default", "b")
			b.stores[0].Add(readOnly)
			if err := os.WriteFile(b.opt.CachePath, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			wantWriter(t, b, "b")
			if n := strings.Count(b.log.String(), "level=WARN msg=\"cannot read the status file"); n != 1 {
				t.Errorf("%d warnings, want 1: %s", n, b.log)
			}
			if n := len(b.file(t)); n != 2 {
				t.Errorf("%d entries in the new file", n)
			}
			wantWriter(t, b, "b")
			if b.checks(0) != 1 {
				t.Error("the new file is not believed")
			}
		})
	}
	for name, content := range map[string]string{"empty": "", "null": "null"} {
		b := setup(t, "default")
		if err := os.WriteFile(b.opt.CachePath, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		wantWriter(t, b, "default")
		if strings.Contains(b.log.String(), "WARN") {
			t.Errorf("%s file: %s", name, b.log)
		}
	}
}

// TestUnusableFile: the path holds what cannot be the file; the Set works
// without, with what it finds out itself.
func TestUnusableFile(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, path string) error{
		"directory": func(_ *testing.T, path string) error { return os.Mkdir(path, 0o700) },
		"link": func(t *testing.T, path string) error {
			target := filepath.Join(t.TempDir(), "target")
			return errors.Join(os.WriteFile(target, nil, 0o600), os.Symlink(target, path))
		},
		"no parent": func(_ *testing.T, path string) error { return os.Remove(filepath.Dir(path)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, "default", "b")
			if err := spoil(t, b.opt.CachePath); err != nil {
				t.Fatal(err)
			}
			set := b.open(t)
			for range 2 {
				m, err := set.Writer(t.Context(), "")
				if err != nil || m.Name != "default" {
					t.Fatalf("writer %q, %v", m.Name, err)
				}
			}
			if n := b.checks(0); n != 1 {
				t.Errorf("%d checks in one process", n)
			}
			b.stores[0].Add(down...)
			m, err := set.Writer(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			m.Bucket.Stat(t.Context(), "x")
			if m, err = set.Writer(t.Context(), ""); err != nil || m.Name != "b" {
				t.Fatalf("writer %q, %v: the doubt was lost", m.Name, err)
			}
			set.Close()
			if n := strings.Count(b.log.String(), "cannot write the status file"); n != 1 {
				t.Errorf("%d warnings about writing: %s", n, b.log)
			}
		})
	}
}

// TestForeignEntries: other storages' statuses stay, outlived ones go.
func TestForeignEntries(t *testing.T) {
	t.Parallel()
	b := setup(t, "default")
	entry := func(at time.Time) string {
		return `{"potential_aliveness":1,"actual_aliveness":1,"previous_aliveness":true,"updated":"` + at.Format(time.RFC3339Nano) + `","more":1}`
	}
	content := fmt.Sprintf(`{"other#1":%s,"default#old-settings":%s}`, entry(b.now().Add(-time.Hour)), entry(b.now().AddDate(0, 0, -8)))
	if err := os.WriteFile(b.opt.CachePath, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	wantWriter(t, b, "default")
	doc := b.file(t)
	if len(doc) != 2 || doc["other#1"]["more"] != 1.0 || doc["default#id-of-default"] == nil {
		t.Errorf("the file holds %v", doc)
	}
}

// TestSharedFile: many processes find many storages out at once; what each
// found is in the file at the end.
func TestSharedFile(t *testing.T) {
	t.Parallel()
	b := setup(t, "default")
	b.opt.Write = false
	const processes, rounds = 16, 10
	var wg sync.WaitGroup
	for p := range processes {
		wg.Go(func() {
			for r := range rounds {
				opt := b.opt
				opt.Members = append(slices.Clone(opt.Members),
					failover.Member{Name: fmt.Sprintf("s%d-%d", p, r), ID: "x", Bucket: mem.New()})
				set, err := failover.Open(opt)
				if err != nil {
					t.Error(err)
					return
				}
				if ms, err := set.Readers(t.Context(), ""); err != nil || len(ms) != 2 {
					t.Errorf("readers %q, %v", names(ms), err)
				}
				set.Close()
			}
		})
	}
	wg.Wait()
	if n := len(b.file(t)); n != 1+processes*rounds {
		t.Errorf("%d entries in the file, want %d", n, 1+processes*rounds)
	}
	if b.log.String() != "" {
		t.Errorf("log: %s", b.log)
	}
}

// bubble is a setup on the bubble's clock.
func bubble(t *testing.T, names ...string) *testBundle {
	b := setup(t, names...)
	b.opt.Now = nil
	return b
}

func TestHangingPrimary(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := bubble(t, "default", "b", "c")
		b.opt.Timeout = 30 * time.Second
		hang := storagetest.Fault{Op: storagetest.List, Gate: make(chan struct{})}
		b.stores[0].Add(hang)
		b.stores[1].Add(hang)
		start := time.Now()
		wantWriter(t, b, "c")
		if d := time.Since(start); d != 30*time.Second {
			t.Errorf("the choice took %v: want both checked at once, for their whole time", d)
		}
		start = time.Now()
		wantWriter(t, b, "c")
		if d := time.Since(start); d != 0 {
			t.Errorf("the second choice took %v", d)
		}
		time.Sleep(failover.DefaultRecheck)
		start = time.Now()
		wantWriter(t, b, "c")
		if d := time.Since(start); d != failover.DefaultRecheckTimeout {
			t.Errorf("the choice with a look at the dead took %v", d)
		}
		if !strings.Contains(b.log.String(), "no answer within 30s") {
			t.Errorf("log: %s", b.log)
		}
	})
}

// TestSlowFailover: who is not needed is not waited for.
func TestSlowFailover(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := bubble(t, "default", "b")
		b.stores[1].Add(storagetest.Fault{Op: storagetest.List, Gate: make(chan struct{})})
		start := time.Now()
		for range 3 {
			wantWriter(t, b, "default")
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("choosing the primary took %v", d)
		}
		if n := b.checks(1); n != 1 {
			t.Errorf("%d checks of a storage behind one known to be alive, want that of the first choice", n)
		}
	})
}

// TestDeafStore: a store that ignores its context holds nobody up.
func TestDeafStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := bubble(t, "default", "b")
		deaf := &deafBucket{Bucket: mem.New(), wake: make(chan struct{})}
		b.opt.Members[0].Bucket = deaf
		start := time.Now()
		set := b.open(t)
		m, err := set.Writer(t.Context(), "")
		if err != nil || m.Name != "b" {
			t.Fatalf("writer %q, %v", m.Name, err)
		}
		set.Close()
		if d := time.Since(start); d != failover.DefaultTimeout+time.Second {
			t.Errorf("it took %v", d)
		}
		close(deaf.wake)
	})
}

type deafBucket struct {
	storage.Bucket
	wake chan struct{}
}

func (b *deafBucket) Put(ctx context.Context, name string, _ io.Reader, _ storage.PutOptions) (storage.Info, error) {
	<-b.wake
	return storage.Info{}, errors.New("woken")
}

// TestCheckBrokenOff: a check that ends between put and delete leaves nothing.
func TestCheckBrokenOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := bubble(t, "default")
		b.stores[0].Add(storagetest.Fault{Op: storagetest.Delete, Nth: 1, Gate: make(chan struct{})})
		if _, err := b.open(t).Writer(t.Context(), ""); !errors.Is(err, failover.ErrNoneAlive) {
			t.Fatalf("got error %v", err)
		}
		synctest.Wait()
		if left := storagetest.Names(t, b.stores[0], "", storage.ListOptions{}); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	})
}

func TestWaitEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := bubble(t, "default")
		b.stores[0].Add(storagetest.Fault{Op: storagetest.List, Gate: make(chan struct{})})
		set := b.open(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := set.Writer(ctx, ""); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got error %v", err)
		}
		var werr error
		var wg sync.WaitGroup
		wg.Go(func() { _, werr = set.Writer(t.Context(), "") })
		synctest.Wait()
		set.Close()
		set.Close()
		wg.Wait()
		if werr == nil || errors.Is(werr, failover.ErrNoneAlive) {
			t.Errorf("the choice under way at Close: %v", werr)
		}
		if _, err := set.Writer(t.Context(), ""); err == nil {
			t.Error("a choice after Close")
		}
		if n := b.checks(0); n != 1 {
			t.Errorf("%d checks, want that all join one", n)
		}
		if _, err := os.Stat(b.opt.CachePath); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a check broken off was noted: %v", err)
		}
	})
}

// TestOldCheckDoesNotOutweighFailure: a check began, a Put failed, the check
// ended well.
func TestOldCheckDoesNotOutweighFailure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := bubble(t, "default", "b")
		first := b.open(t)
		m, err := first.Writer(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(lifetime)
		gate := make(chan struct{})
		b.stores[0].Add(storagetest.Fault{Op: storagetest.List, Gate: gate},
			storagetest.Fault{Op: storagetest.Put, Name: "x"})
		second := b.open(t)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := second.Writer(t.Context(), ""); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		time.Sleep(time.Second)
		m.Bucket.Put(t.Context(), "x", strings.NewReader(""), storage.PutOptions{})
		time.Sleep(time.Second)
		close(gate)
		wg.Wait()
		if st := first.Statuses(t.Context()); st[0].State != failover.Dead {
			t.Errorf("the storage is %s", st[0].State)
		}
		wantWriter(t, b, "b")
	})
}

// TestDelays: after any sequence of faults and recoveries, as many pushes fail
// as there are storages, at most, before one succeeds, if there is a storage
// that takes it; a command says that none is alive only when a check finds
// something wrong with each; and one Recheck after all faults ended pushes go
// to the primary.
func TestDelays(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		b := setup(t, "default", "b", "c")
		defer os.Remove(b.opt.CachePath)
		b.opt.CheckSize = int64(rapid.SampledFrom([]int{0, 1, 1000}).Draw(rt, "check size"))
		kinds := map[string][]storagetest.Fault{
			"well":      nil,
			"down":      down,
			"read-only": {readOnly},
			"full":      {{Op: storagetest.Put, Name: "wal_005/x", Err: storage.ErrPermanent}},
		}
		is := []string{"well", "well", "well"}
		accepts := func(i int) bool { return is[i] == "well" }
		visible := func(i int) bool { // to a check
			return is[i] == "down" || is[i] == "read-only" && b.opt.CheckSize > 0
		}
		index := map[string]int{"default": 0, "b": 1, "c": 2}
		failures := 0 // pushes failed in a row, without the model or the clock moving
		rt.Repeat(map[string]func(*rapid.T){
			"change": func(rt *rapid.T) {
				i := rapid.IntRange(0, 2).Draw(rt, "storage")
				is[i] = rapid.SampledFrom([]string{"well", "down", "read-only", "full"}).Draw(rt, "kind")
				b.stores[i].Clear()
				b.stores[i].Add(kinds[is[i]]...)
				failures = 0
			},
			"time": func(rt *rapid.T) {
				b.advance(time.Duration(rapid.IntRange(1, 1200).Draw(rt, "seconds")) * time.Second)
				failures = 0
			},
			"push": func(rt *rapid.T) {
				name, err := b.push(t)
				switch {
				case err == nil:
					if !accepts(index[name]) {
						rt.Fatalf("a push to %s, which is %s, succeeded", name, is[index[name]])
					}
					failures = 0
				case errors.Is(err, failover.ErrNoneAlive):
					for i := range is {
						if !visible(i) {
							rt.Fatalf("storage %d is %s, and yet: %v", i, is[i], err)
						}
					}
				default:
					// Each failure takes one storage out.
					if failures++; failures > len(is) && slices.Contains(is, "well") {
						rt.Fatalf("%d pushes failed in a row with storages %v", failures, is)
					}
				}
			},
			"recover": func(rt *rapid.T) {
				for i := range is {
					is[i] = "well"
					b.stores[i].Clear()
				}
				b.advance(failover.DefaultRecheck)
				failures = 0
				if name, err := b.push(t); name != "default" || err != nil {
					rt.Fatalf("push to %q a minute after all faults ended: %v", name, err)
				}
			},
		})
	})
}

func BenchmarkChoose(b *testing.B) {
	bundle := setup(b, "default", "b", "c")
	set := bundle.open(b)
	if _, err := set.Readers(b.Context(), ""); err != nil {
		b.Fatal(err)
	}
	b.Run("Command", func(b *testing.B) { // all that an archive_command pays
		b.ReportAllocs()
		for b.Loop() {
			set, err := failover.Open(bundle.opt)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := set.Writer(b.Context(), ""); err != nil {
				b.Fatal(err)
			}
			set.Close()
		}
	})
	b.Run("Daemon", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := set.Writer(b.Context(), ""); err != nil {
				b.Fatal(err)
			}
		}
	})
}
