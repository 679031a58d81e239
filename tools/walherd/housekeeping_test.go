package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/producer/pgconn"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/failover"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/tools/walherd/render"
	"github.com/walherd/walherd/tools/walherd/settings"
)

// grown is a storage of many objects that takes no memory: names and documents
// are made up as they are asked for. Every tenth backup is full, and gap, if
// not 0, is the distance of missing segments.
type grown struct {
	storage.Bucket // what is not made up is not asked for
	backups, wal   int
	gap            int
}

const (
	grownSize = pg.SegmentSize(16 << 20)
	// grownEach is how many segments lie between two backups.
	grownEach = 100
)

func (g *grown) name(i int) pg.BackupName {
	start := pg.SegmentAt(1, uint64(i*grownEach+1), grownSize)
	if i%10 == 0 {
		return pg.FullBackupName(start)
	}
	return pg.IncrementName(start, pg.FullBackupName(pg.SegmentAt(1, uint64((i-1)*grownEach+1), grownSize)))
}

func (g *grown) List(ctx context.Context, prefix string, _ storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		at := time.Unix(1700000000, 0)
		switch prefix {
		case repo.WALFolder:
			for i := range g.wal {
				if g.gap > 0 && i%g.gap == g.gap/2 {
					continue
				}
				name := repo.WALFolder + pg.SegmentAt(1, uint64(i+1), grownSize).String() + ".lz4"
				if !yield(storage.Info{Name: name, Size: 1 << 20, Modified: at.Add(time.Duration(i) * time.Minute)}, nil) {
					return
				}
			}
		case string(repo.BaseBackups):
			for i := range g.backups {
				name := g.name(i)
				if !yield(storage.Info{Name: string(repo.BaseBackups) + string(name), Dir: true}, nil) ||
					!yield(storage.Info{Name: repo.SentinelKey(name), Size: 600, Modified: at.Add(time.Duration(i*grownEach) * time.Minute)}, nil) {
					return
				}
			}
		default:
			yield(storage.Info{}, fmt.Errorf("%s is listed", prefix))
		}
	}
}

func (g *grown) Stat(context.Context, string) (storage.Info, error) { return storage.Info{}, nil }

func (g *grown) Open(_ context.Context, name string, _ storage.Range) (io.ReadCloser, error) {
	backup := strings.TrimPrefix(name, string(repo.BaseBackups))
	seg, ok := pg.FirstSegmentName(backup)
	if !ok {
		return nil, fmt.Errorf("%s is read: %w", name, storage.ErrNotExist)
	}
	start := seg.Start(grownSize) + 0x28
	doc := fmt.Sprintf(`{"start_time":"2026-11-22T16:27:52.701819Z","finish_time":"2026-11-22T16:27:54.692638Z","date_fmt":"%%Y-%%m-%%dT%%H:%%M:%%S.%%fZ","hostname":"vm","data_dir":"/var/lib/postgresql/15/main","pg_version":150018,"start_lsn":%d,"finish_lsn":%d,"is_permanent":%t,"system_identifier":7711032298377616593,"uncompressed_size":41916481,"compressed_size":9390590,"user_data":{"label":"nightly"}}`,
		start, start+0x2000000, seg.Number(grownSize)%7 == 0)
	if strings.HasSuffix(name, "_sentinel.json") {
		link := ""
		if _, parent, ok := strings.Cut(backup, "_D_"); ok {
			parent = strings.TrimSuffix(parent, repo.SentinelSuffix)
			n := int(seg.Number(grownSize)-1) / grownEach
			below, _ := g.name(n - 1).Segment()
			link = fmt.Sprintf(`,"DeltaLSN":%d,"DeltaFrom":%q,"DeltaFullName":%q,"DeltaCount":%d`, below.Start(grownSize)+0x28, g.name(n-1), g.name(n-n%10), n%10)
		}
		doc = fmt.Sprintf(`{"LSN":%d,"FinishLSN":%d%s}`, start, start+0x2000000, link)
	}
	return io.NopCloser(strings.NewReader(doc)), nil
}

var errMarked = errors.New("written")

func (g *grown) Put(_ context.Context, name string, _ io.Reader, _ storage.PutOptions) (storage.Info, error) {
	return storage.Info{}, fmt.Errorf("%w: %s", errMarked, name)
}

// grownApp is a program with a storage g.
func grownApp(tb testing.TB, g *grown, out io.Writer) (*app, *storages) {
	tb.Helper()
	set, err := failover.Open(failover.Options{Members: []failover.Member{{Name: failover.Primary, Bucket: g, ID: "g"}}, Write: true})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(set.Close)
	a := &app{name: "walherd", stdout: out, stderr: os.Stderr, screen: io.Discard, set: &settings.Settings{}, log: slog.New(slog.DiscardHandler)}
	a.set.Postgres.WALSize = 16
	return a, &storages{set: set}
}

// housekeeping are the commands that look at everything.
func housekeeping(a *app, stores *storages, g *grown) map[string]func(context.Context) error {
	at := pgconn.Position{Timeline: 1, LSN: pg.LSN(uint64(g.wal+1) * uint64(grownSize))}
	return map[string]func(context.Context) error{
		"backup-list": func(ctx context.Context) error { return a.listBackups(ctx, stores, render.Options{}) },
		"backup-list-detail": func(ctx context.Context) error {
			return a.listBackups(ctx, stores, render.Options{Detail: true, Pretty: true})
		},
		"backup-list-json": func(ctx context.Context) error {
			return a.listBackups(ctx, stores, render.Options{Detail: true, JSON: true})
		},
		"wal-show":      func(ctx context.Context) error { return a.showWAL(ctx, stores, render.TimelineOptions{}) },
		"wal-show-json": func(ctx context.Context) error { return a.showWAL(ctx, stores, render.TimelineOptions{JSON: true}) },
		"wal-verify": func(ctx context.Context) error {
			return a.verifyWAL(ctx, stores, verification{checks: []string{checkIntegrity, checkTimeline}, at: at, uploading: 16, asJSON: true})
		},
		"backup-mark": func(ctx context.Context) error {
			err := a.mark(ctx, stores, string(g.name(g.backups-1)), true)
			if !errors.Is(err, errMarked) {
				return fmt.Errorf("backup-mark wrote nothing: %w", err)
			}
			return nil
		},
		"backup-unmark": func(ctx context.Context) error {
			err := a.mark(ctx, stores, string(g.name(7*(g.backups/7)-1)), false)
			if err != nil && !errors.Is(err, errMarked) && !strings.Contains(err.Error(), "permanent") {
				return err
			}
			return nil
		},
	}
}

// TestHousekeepingOfAGrownArchive: the commands find in a large storage what is
// in it.
func TestHousekeepingOfAGrownArchive(t *testing.T) {
	t.Parallel()
	g := &grown{backups: 200, wal: 20_000, gap: 1000}
	var out bytes.Buffer
	a, stores := grownApp(t, g, &out)
	for name, do := range housekeeping(a, stores, g) {
		out.Reset()
		if err := do(t.Context()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		text := out.String()
		switch name {
		case "backup-list":
			if n := strings.Count(text, "\n"); n != 201 {
				t.Errorf("%s: %d lines", name, n)
			}
		case "backup-list-detail":
			if n := strings.Count(text, "| true      |"); n != 28 && n != 29 {
				t.Errorf("%s: %d permanent backups", name, n)
			}
		case "wal-show":
			if !strings.Contains(text, "|         20000 |          19980 | LOST_SEGMENTS |           200 |") {
				t.Errorf("%s: %s", name, text)
			}
		case "wal-show-json":
			if n := strings.Count(text, `"backup_name"`); n != 200 {
				t.Errorf("%s: %d backups", name, n)
			}
		case "wal-verify":
			if n := strings.Count(text, "MISSING_LOST"); n != 20 || !strings.Contains(text, `"status":"FAILURE"`) {
				t.Errorf("%s: %d gaps", name, n)
			}
		}
	}
}

// BenchmarkHousekeeping runs the commands that look at everything on 10,000
// backups and 1,000,000 segments with 1,000 gaps. peak-MB is the largest heap
// seen, cpu-ms the processor's time, listing-ms the time that the making up of the names alone takes; a
// store takes longer for that.
func BenchmarkHousekeeping(b *testing.B) {
	g := &grown{backups: 10_000, wal: 1_000_000, gap: 1000}
	a, stores := grownApp(b, g, io.Discard)
	listing := func() (took time.Duration) {
		began := time.Now()
		for _, folder := range []string{repo.WALFolder, string(repo.BaseBackups)} {
			for range g.List(b.Context(), folder, storage.ListOptions{}) { //nolint:revive // it is the walk that counts
			}
		}
		return time.Since(began)
	}()
	for name, do := range housekeeping(a, stores, g) {
		b.Run(name, func(b *testing.B) {
			peak, before := uint64(0), cpuTime()
			for b.Loop() {
				runtime.GC()
				debug.FreeOSMemory()
				stop := watchHeap()
				if err := do(b.Context()); err != nil {
					b.Fatal(err)
				}
				peak = max(peak, stop())
			}
			b.ReportMetric(float64((cpuTime()-before).Milliseconds())/float64(b.N), "cpu-ms")
			b.ReportMetric(float64(peak)/1e6, "peak-MB")
			b.ReportMetric(float64(listing.Milliseconds()), "listing-ms")
		})
	}
}

// cpuTime is what this process has used: on a busy machine it tells more than
// the clock.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// watchHeap samples the heap, garbage included, until stop is called.
func watchHeap() (stop func() (peak uint64)) {
	end, done := make(chan struct{}), make(chan uint64)
	go func() {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		peak := uint64(0)
		for {
			metrics.Read(sample)
			peak = max(peak, sample[0].Value.Uint64())
			select {
			case <-tick.C:
			case <-end:
				done <- peak
				return
			}
		}
	}()
	return func() uint64 { close(end); return <-done }
}
