package expire_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/retain"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/workers/expire"
)

// generated is a store of 10,000 backups of 20 parts, every tenth a full one
// and every hundredth permanent, and of a million segments on two timelines.
// Its objects are made when they are asked for, so that they take no memory. It
// counts requests as an S3 server would get them: a thousand names each.
type generated struct {
	storage.Bucket // the calls that are not made
	requests       atomic.Int64
	deleted        atomic.Int64
}

const (
	manyBackups  = 10_000
	manySegments = 1_000_000
	manyParts    = 20
	apart        = manySegments / manyBackups
)

var generatedEpoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func lineOf(n int) pg.Timeline {
	if n >= manySegments/2 {
		return 2
	}
	return 1
}

func nthName(i int) pg.BackupName {
	seg := pg.SegmentAt(lineOf(i*apart), uint64(i*apart), size)
	if i%10 == 0 {
		return pg.FullBackupName(seg)
	}
	return pg.IncrementName(seg, pg.FullBackupName(pg.SegmentAt(lineOf((i-1)*apart), uint64((i-1)*apart), size)))
}

func nthTime(i int) time.Time { return generatedEpoch.Add(time.Duration(i) * time.Hour) }

func (g *generated) List(_ context.Context, prefix string, opt storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		n := 0
		tell := func(name string, at time.Time) bool {
			if n++; n%1000 == 1 {
				g.requests.Add(1)
			}
			return yield(storage.Info{Name: name, Size: 1, Modified: at, Dir: strings.HasSuffix(name, "/")}, nil)
		}
		switch prefix {
		case string(catalog.WALFolder):
			for i := range manySegments {
				if !tell(walKey(lineOf(i), i), generatedEpoch) {
					return
				}
			}
		case string(catalog.BaseBackups):
			for i := range manyBackups {
				id, at := catalog.BackupID{Folder: catalog.BaseBackups, Name: nthName(i)}, nthTime(i)
				if opt.Shallow {
					if !tell(prefix+string(id.Name)+"/", time.Time{}) {
						return
					}
				} else {
					for p := range manyParts {
						if !tell(id.Key(catalog.PartObject, fmt.Sprintf("part_%03d.tar.lz4", p+1)), at) {
							return
						}
					}
					if !tell(id.Key(catalog.FilesObject, ""), at) || !tell(id.Key(catalog.MetadataObject, ""), at) {
						return
					}
				}
				if !tell(id.Key(catalog.SentinelObject, ""), at) {
					return
				}
			}
		}
		if n == 0 {
			g.requests.Add(1)
		}
	}
}

func (g *generated) number(name string) int {
	o := catalog.Classify(name)
	seg, _ := o.Backup.Segment()
	return int(seg.Number(size)) / apart
}

func (g *generated) Stat(_ context.Context, name string) (storage.Info, error) {
	g.requests.Add(1)
	if catalog.Classify(name).Kind != catalog.MetadataObject {
		return storage.Info{}, storage.ErrNotExist
	}
	return storage.Info{Name: name, Modified: nthTime(g.number(name))}, nil
}

func (g *generated) Open(_ context.Context, name string, _ storage.Range) (io.ReadCloser, error) {
	g.requests.Add(1)
	i := g.number(name)
	lsn := uint64(i*apart)*uint64(size) + 0x28
	doc := fmt.Sprintf(`{"start_time":%q,"finish_time":%q,"hostname":"host","data_dir":"/var/lib/postgresql/17/main","pg_version":170002,"start_lsn":%d,"finish_lsn":%d,"is_permanent":%v,"system_identifier":7711032298377616593,"uncompressed_size":4141039,"compressed_size":2291767}`,
		nthTime(i).Format(time.RFC3339), nthTime(i).Format(time.RFC3339), lsn, lsn+2*uint64(size), i%100 == 0)
	if catalog.Classify(name).Kind == catalog.SentinelObject {
		doc = fmt.Sprintf(`{"LSN":%d,"DeltaLSN":%d,"DeltaFrom":%q,"DeltaFullName":%q,"DeltaCount":%d,"Version":2}`,
			lsn, lsn-uint64(apart)*uint64(size), nthName(i-1), nthName(i-i%10), i%10)
	}
	return &document{bytes.NewReader([]byte(doc)), storage.Info{Name: name, Modified: nthTime(i)}}, nil
}

type document struct {
	*bytes.Reader
	info storage.Info
}

func (d *document) Close() error               { return nil }
func (d *document) Info() (storage.Info, bool) { return d.info, true }

func (g *generated) Delete(_ context.Context, names ...string) error {
	g.requests.Add(int64(len(names)+999) / 1000)
	g.deleted.Add(int64(len(names)))
	return nil
}

// peak is the most memory that the process has had since the last reset, in
// bytes; 0 where that is not told.
func peak(b *testing.B) float64 {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			var kb float64
			if _, err := fmt.Sscan(text, &kb); err != nil {
				b.Fatal(err)
			}
			return kb * 1024
		}
	}
	return 0
}

// processor is the processor time that the process has used.
func processor(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func resetPeak() {
	debug.FreeOSMemory()
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) // else the peak is that of all before
}

// BenchmarkCatalog measures delete in a store of 10,000 backups and 1,000,000
// WAL objects: the listing alone, the plan with all it takes, and all of it
// with the plan's lines and the deletion. MiB is the process's peak.
func BenchmarkCatalog(b *testing.B) {
	work := func(g *generated) *expire.Work {
		return &expire.Work{
			Scanner: expire.Scanner{Stores: []*repo.Repo{repo.New(g, "default")}, Size: size, Logger: slog.New(slog.DiscardHandler)},
			Now:     func() time.Time { return nthTime(manyBackups + 100) },
		}
	}
	measure := func(name string, do func(g *generated) error) {
		b.Run(name, func(b *testing.B) {
			g := &generated{}
			resetPeak()
			start, rounds := processor(b), 0
			for b.Loop() {
				g.requests.Store(0)
				g.deleted.Store(0)
				rounds++
				if err := do(g); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((processor(b)-start).Seconds()/float64(rounds), "cpu-s")
			b.ReportMetric(float64(g.requests.Load()), "requests")
			b.ReportMetric(float64(g.deleted.Load()), "deleted")
			b.ReportMetric(peak(b)/(1<<20), "MiB")
		})
	}
	measure("listing", func(g *generated) error {
		for _, f := range []catalog.Folder{catalog.WALFolder, catalog.BaseBackups, catalog.Catchups} {
			for range g.List(context.Background(), string(f), storage.ListOptions{}) {
			}
		}
		return nil
	})
	for _, line := range []string{"retain FULL 100", "retain --window=14d", "garbage"} {
		name := strings.ReplaceAll(line, " ", "_")
		measure("plan/"+name, func(g *generated) error {
			_, _, err := work(g).Plan(context.Background(), command(line))
			return err
		})
		measure("all/"+name, func(g *generated) error {
			log := slog.New(slog.NewTextHandler(io.Discard, nil))
			_, err := work(g).Do(context.Background(), command(line), func(pl *retain.Plan) error { expire.Tell(log, pl); return nil })
			return err
		})
	}
}
