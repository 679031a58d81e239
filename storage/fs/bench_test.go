package fs

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/walherd/walherd/storage"
)

var (
	benchPutMiB    = flag.Int64("put-mib", 64, "size of the object in BenchmarkPut")
	benchListFiles = flag.Int("list-files", 10_000, "number of objects in BenchmarkList")
)

// zeros is an endless reader that costs next to nothing.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// endTimer notes when its reader ended.
type endTimer struct {
	r   io.Reader
	end time.Time
}

func (e *endTimer) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if err != nil {
		e.end = time.Now()
	}
	return n, err
}

// BenchmarkPut shows what starting the write-back early is worth. The sync at
// the end counts.
func BenchmarkPut(b *testing.B) {
	for name, every := range map[string]int64{"writeback=8MiB": writebackEvery, "writeback=off": 0} {
		b.Run(name, func(b *testing.B) {
			bucket, err := Open(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			bucket.writeback = every
			b.SetBytes(*benchPutMiB << 20)
			var tail time.Duration // from the end of the content to that of Put
			for b.Loop() {
				r := &endTimer{r: io.LimitReader(zeros{}, *benchPutMiB<<20)}
				if _, err := bucket.Put(b.Context(), "part", r, storage.PutOptions{}); err != nil {
					b.Fatal(err)
				}
				tail += time.Since(r.end)
			}
			b.ReportMetric(float64(tail.Milliseconds())/float64(b.N), "tail-ms/op")
		})
	}
}

// BenchmarkPutSegment is the latency of archiving one compressed segment.
func BenchmarkPutSegment(b *testing.B) {
	bucket, err := Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	const size = 4 << 20
	b.SetBytes(size)
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprintf("wal_005/%024X.lz4", i)
		if _, err := bucket.Put(b.Context(), name, io.LimitReader(zeros{}, size), storage.PutOptions{IfAbsent: true}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkList lists one large folder.
func BenchmarkList(b *testing.B) {
	dir := b.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "wal_005"), 0o755); err != nil {
		b.Fatal(err)
	}
	for i := range *benchListFiles {
		if err := os.WriteFile(filepath.Join(dir, "wal_005", fmt.Sprintf("%024X.lz4", i)), nil, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	bucket, err := Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	for _, prefix := range []string{"", "wal_005/" + fmt.Sprintf("%024X", *benchListFiles-1)} {
		b.Run(fmt.Sprintf("prefix=%d", len(prefix)), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for _, err := range bucket.List(b.Context(), prefix, storage.ListOptions{}) {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
