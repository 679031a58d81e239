package changemap_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/walherd/walherd/engine/changes"
	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
	"github.com/walherd/walherd/messages/transit"
	"github.com/walherd/walherd/producer/pgtest"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/workers/changemap"
	"github.com/walherd/walherd/workers/intake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const size = 1 << 20

// stretch is WAL of a real server: whole segments, and records that lie in
// several of them.
type stretch struct {
	from, to pg.LSN
	names    []pg.SegmentName
	segments map[pg.SegmentName][]byte
	whole    *changes.Map
}

func (s *stretch) want() changemap.Range {
	return changemap.Range{From: s.from, To: s.to, History: wal.History{Timeline: 1}, SegmentSize: size}
}

func makeStretch(t *testing.T) *stretch {
	t.Helper()
	c := pgtest.New(t, pgtest.WithSegmentSize(1), pgtest.WithConf("autovacuum = off", "wal_keep_size = 1GB"))
	lsn := func(query string) pg.LSN {
		l, err := pg.ParseLSN(c.SQL(query))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	s := &stretch{segments: map[pg.SegmentName][]byte{}}
	s.from = lsn("CHECKPOINT; SELECT redo_lsn FROM pg_control_checkpoint()")
	for i := range 6 {
		c.SQL(fmt.Sprintf("CREATE TABLE t%d AS SELECT g, repeat('x', 300) FROM generate_series(1, 3000) g; UPDATE t%d SET g = 0 WHERE g %% 50 = 0", i, i))
	}
	c.SQL("SELECT pg_logical_emit_message(false, 'test', repeat('long', 600000)) IS NULL") // two segments long
	c.SQL("CREATE TABLE u AS SELECT g FROM generate_series(1, 30000) g")
	s.to = lsn("CHECKPOINT; SELECT redo_lsn FROM pg_control_checkpoint()")
	var all []byte
	for n := s.from.Segment(1, size); n.Next(size).Start(size) <= s.to; n = n.Next(size) {
		b, err := os.ReadFile(filepath.Join(c.WALDir(), n.String()))
		if err != nil {
			t.Fatal(err)
		}
		s.names = append(s.names, n)
		s.segments[n] = b
		all = append(all, b...)
	}
	if len(s.names) < 8 {
		t.Fatalf("the workload made %d segments", len(s.names))
	}
	var err error
	if s.whole, err = changes.Scan(bytes.NewReader(all), changes.ScanOptions{}); err != nil {
		t.Fatal(err)
	}
	return s
}

// workers is a storage with what archives into it.
type workers struct {
	t     *testing.T
	repo  *repo.Repo
	codec intake.Codec
	keep  *changemap.Keeper
	log   bytes.Buffer
}

func newWorkers(t *testing.T) *workers {
	w := &workers{t: t, repo: repo.New(mem.New(), "default"), codec: intake.Codec{Compress: compress.Options{Method: compress.LZ4}}}
	w.keep = changemap.NewKeeper(w.codec, changes.Layout{}, slog.New(slog.NewTextHandler(&w.log, nil)))
	return w
}

// settle waits for the maps under way.
func (w *workers) settle() string {
	w.t.Helper()
	if err := w.keep.Close(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return w.log.String()
}

// pieces is a transfer in chunks of an odd size.
type pieces struct {
	left []byte
	err  error
}

func (p *pieces) Next(context.Context) ([]byte, error) {
	if len(p.left) == 0 {
		if p.err != nil {
			return nil, p.err
		}
		return nil, io.EOF
	}
	n := min(len(p.left), 100_001)
	b := bytes.Clone(p.left[:n])
	p.left = p.left[n:]
	return b, nil
}

func (p *pieces) Close() {}

// archive does what the handler of archive jobs does.
func (w *workers) archive(name string, in transit.Receiver) error {
	scan := w.keep.Begin(name)
	defer scan.Drop()
	_, err := intake.Store(w.t.Context(), scan.Tap(in), w.codec, func(body io.Reader) error {
		_, err := w.repo.PutWAL(w.t.Context(), name+w.codec.Extension(), body, storage.PutOptions{})
		return err
	})
	if err == nil {
		scan.Keep(w.t.Context(), w.repo)
	}
	return err
}

func (w *workers) collector(repairs int) *changemap.Collector {
	return &changemap.Collector{Repos: []*repo.Repo{w.repo}, Codec: w.codec, Logger: slog.New(slog.DiscardHandler), Repairs: repairs}
}

func (w *workers) maps() (keys []string) {
	w.t.Helper()
	for info, err := range w.repo.Bucket().List(w.t.Context(), repo.WALFolder, storage.ListOptions{}) {
		if err != nil {
			w.t.Fatal(err)
		}
		if strings.Contains(info.Name, changemap.Suffix) {
			keys = append(keys, info.Name)
		}
	}
	return keys
}

func encoded(t *testing.T, m *changes.Map) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := m.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestMapsOfAStretch archives the segments of real WAL in any order, some of
// them twice, and gets what a scan of all at once gets; then loses maps.
func TestMapsOfAStretch(t *testing.T) {
	t.Parallel()
	s := makeStretch(t)
	w := newWorkers(t)
	order := append(rand.Perm(len(s.names)), 0, 3, 3)
	for _, i := range order {
		if err := w.archive(s.names[i].String(), &pieces{left: s.segments[s.names[i]]}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"00000002.history", s.names[0].String() + ".00000028.backup", s.names[1].String() + ".partial"} {
		if err := w.archive(name, &pieces{left: []byte("no segment")}); err != nil {
			t.Fatal(err)
		}
	}
	if said := w.settle(); said != "" {
		t.Fatalf("warned: %s", said)
	}
	keys := w.maps()
	if len(keys) != len(s.names) {
		t.Fatalf("%d maps of %d segments: %v", len(keys), len(s.names), keys)
	}
	res, err := w.collector(1).Collect(t.Context(), s.want())
	if err != nil || res.Made != 0 || res.Segments != len(s.names) || res.Next != s.to/size*size {
		t.Fatalf("%+v, %v", res, err)
	}
	if !bytes.Equal(encoded(t, res.Map), encoded(t, s.whole)) {
		t.Fatal("the merged map is not that of all segments at once")
	}

	// One is lost, one damaged, one cut: made anew, once.
	put := func(key string, content []byte) {
		t.Helper()
		if _, err := w.repo.Bucket().Put(t.Context(), key, bytes.NewReader(content), storage.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	body, err := w.repo.Bucket().Open(t.Context(), keys[4], storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	body.Close()
	ruin := func() {
		if err := w.repo.Bucket().Delete(t.Context(), keys[1]); err != nil {
			t.Fatal(err)
		}
		put(keys[3], []byte("damaged"))
		put(keys[4], raw[:len(raw)-20])
	}
	ruin()
	if _, err := w.collector(2).Collect(t.Context(), s.want()); !errors.Is(err, changemap.ErrMissing) {
		t.Fatalf("three maps are missing, two may be made: %v", err)
	}
	ruin()
	for _, made := range []int{3, 0} {
		res, err := w.collector(3).Collect(t.Context(), s.want())
		if err != nil || res.Made != made || !bytes.Equal(encoded(t, res.Map), encoded(t, s.whole)) {
			t.Fatalf("%d to be made: %+v, %v", made, res, err)
		}
	}

	// A segment stored anew without a map: what is beside it is not believed.
	key := repo.WALKey(s.names[2].String() + ".lz4")
	body, err = w.repo.Bucket().Open(t.Context(), key, storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	again, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	body.Close()
	put(key, again)
	if res, err := w.collector(1).Collect(t.Context(), s.want()); err != nil || res.Made != 1 {
		t.Fatalf("a map older than its segment: %+v, %v", res, err)
	}

	// A hole ends it, and what is after is not looked at.
	if err := w.repo.Bucket().Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if res, err := w.collector(1).Collect(t.Context(), s.want()); err != nil || res.Segments != 2 || res.Next != s.names[2].Start(size) {
		t.Fatalf("with a hole: %+v, %v", res, err)
	}
	want := s.want()
	want.From = s.names[2].Start(size) + 100
	if res, err := w.collector(1).Collect(t.Context(), want); err != nil || res.Map != nil || res.Next != s.names[2].Start(size) {
		t.Fatalf("the first is not archived: %+v, %v", res, err)
	}
	want.To = want.From - 1
	if _, err := w.collector(1).Collect(t.Context(), want); err == nil {
		t.Fatal("a range that ends before it begins")
	}
}

// TestArchivingDoesNotNotice: neither WAL that cannot be scanned nor a storage
// that takes no map, nor a transfer that breaks, changes what becomes of the
// segment.
func TestArchivingDoesNotNotice(t *testing.T) {
	t.Parallel()
	const name = "000000010000000000000001"
	w := newWorkers(t)
	if err := w.archive(name, &pieces{left: bytes.Repeat([]byte("no WAL"), 1<<20)}); err != nil {
		t.Fatal(err)
	}
	if said := w.settle(); !strings.Contains(said, name) || len(w.maps()) != 0 {
		t.Fatalf("maps %v, said %q", w.maps(), said)
	}
	broken := errors.New("broken")
	if err := w.archive(name, &pieces{left: make([]byte, 3<<20), err: broken}); !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	// No keeper, no map.
	var none *changemap.Keeper
	scan := none.Begin(name)
	if in := (&pieces{}); scan.Tap(in) != transit.Receiver(in) {
		t.Fatal("tapped")
	}
	scan.Keep(t.Context(), w.repo)
	scan.Drop()
	if err := none.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}
