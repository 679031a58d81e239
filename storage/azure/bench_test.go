package azure_test

import (
	"fmt"
	"io"
	"testing"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/azure"
	"github.com/walherd/walherd/storage/storagetest"
)

// The server shares the machine and is a single thread: these numbers are a
// floor.

func BenchmarkPut(b *testing.B) {
	for _, c := range []struct {
		size int
		sum  azure.Checksum
	}{{16 << 20, azure.ChecksumMD5}, {128 << 20, azure.ChecksumMD5}} {
		b.Run(fmt.Sprintf("%dMiB/%s", c.size>>20, c.sum), func(b *testing.B) {
			opt := options(b)
			opt.Checksum = c.sum
			bucket := open(b, opt)
			data := storagetest.Content(1, c.size)
			b.SetBytes(int64(c.size))
			for b.Loop() {
				storagetest.MustPut(b, bucket, "x", data)
			}
			_, peak := bucket.Memory()
			b.ReportMetric(float64(peak>>20), "MiB-held")
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	bucket := open(b, options(b))
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
}

// BenchmarkSum is what the checksums cost.
func BenchmarkSum(b *testing.B) {
	for _, kind := range []azure.Checksum{azure.ChecksumCRC64, azure.ChecksumMD5} {
		b.Run(string(kind), func(b *testing.B) {
			sum := azure.SumOf(kind, 8<<20)
			b.SetBytes(8 << 20)
			for b.Loop() {
				sum()
			}
		})
	}
}
