package s3_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"testing"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/s3"
	"github.com/walherd/walherd/storage/s3/s3test"
	"github.com/walherd/walherd/storage/storagetest"
)

// plant puts n empty objects.
func plant(t testing.TB, b *s3.Bucket, n int) []string {
	t.Helper()
	names := make([]string, n)
	var all sync.WaitGroup
	const workers = 16
	for w := range workers {
		all.Go(func() {
			for i := w; i < n; i += workers {
				names[i] = fmt.Sprintf("wal_005/%08X%016X.lz4", 1, i)
				if _, err := b.Put(t.Context(), names[i], bytes.NewReader(nil), storage.PutOptions{}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	return names
}

// objects is how many a benchmark of listings uses: WALHERD_BENCH_OBJECTS, or
// few enough for a machine that has other work.
func objects(b *testing.B) int {
	n, err := strconv.Atoi(os.Getenv("WALHERD_BENCH_OBJECTS"))
	if err != nil {
		return 2000
	}
	return n
}

func BenchmarkPut(b *testing.B) {
	server := s3test.Start(b, s3test.Options{})
	for _, size := range []int{16 << 20, 128 << 20} {
		for _, sum := range []s3.Checksum{s3.ChecksumCRC32C, s3.ChecksumMD5} {
			b.Run(fmt.Sprintf("%dMiB/%s", size>>20, sum), func(b *testing.B) {
				opt := options(b, server)
				opt.PartSize, opt.UploadConcurrency, opt.Checksum = 16<<20, 4, sum
				bucket := open(b, opt)
				data := storagetest.Content(1, size)
				b.SetBytes(int64(size))
				for b.Loop() {
					storagetest.MustPut(b, bucket, "x", data)
				}
				_, peak := bucket.Memory()
				b.ReportMetric(float64(peak>>20), "MiB-held")
			})
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	server := s3test.Start(b, s3test.Options{})
	for _, parallel := range []int{1, 4} {
		b.Run(fmt.Sprintf("128MiB/parallel-%d", parallel), func(b *testing.B) {
			opt := options(b, server)
			opt.ReadParallel = parallel
			bucket := open(b, opt)
			storagetest.MustPut(b, bucket, "x", storagetest.Content(1, 128<<20))
			b.SetBytes(128 << 20)
			buf := make([]byte, 256<<10)
			for b.Loop() {
				r, err := bucket.Open(b.Context(), "x", storage.Range{})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf); err != nil {
					b.Fatal(err)
				}
				r.Close()
			}
		})
	}
}

func BenchmarkList(b *testing.B) {
	server := s3test.Start(b, s3test.Options{})
	bucket, direct, p := pair(b, server, never, nil)
	n := objects(b)
	plant(b, direct, n)
	p.requests.Store(0)
	for b.Loop() {
		if got := len(storagetest.Names(b, bucket, "", storage.ListOptions{})); got != n {
			b.Fatalf("listed %d", got)
		}
	}
	b.ReportMetric(float64(p.requests.Load())/float64(b.N), "requests/op")
	b.ReportMetric(float64(n), "objects/op")
}

func BenchmarkDelete(b *testing.B) {
	server := s3test.Start(b, s3test.Options{})
	bucket, direct, p := pair(b, server, never, func(o *s3.Options) { o.Versioning = s3.VersioningDisabled })
	n := objects(b)
	var requests int64
	for b.Loop() {
		b.StopTimer()
		names := plant(b, direct, n)
		p.requests.Store(0)
		b.StartTimer()
		if err := bucket.Delete(b.Context(), names...); err != nil {
			b.Fatal(err)
		}
		requests += p.requests.Load()
	}
	b.ReportMetric(float64(requests)/float64(b.N), "requests/op")
	b.ReportMetric(float64(n), "objects/op")
}
