package swift_test

import (
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/storagetest"
	"github.com/walherd/walherd/storage/swift"
)

// direct is a Bucket on the Swift at WALHERD_TEST_SWIFT_AUTH without the
// tests' front.
func direct(b *testing.B, tune func(*swift.Options)) *swift.Bucket {
	b.Helper()
	opt := start(b, true).options(b)
	opt.Settings["OS_AUTH_URL"] = os.Getenv("WALHERD_TEST_SWIFT_AUTH")
	tune(&opt)
	return open(b, opt)
}

func BenchmarkPut(b *testing.B) {
	for _, size := range []int{1 << 10, 16 << 20, 128 << 20} {
		for _, segments := range []bool{false, true} {
			b.Run(fmt.Sprintf("%dKiB/segments-%v", size>>10, segments), func(b *testing.B) {
				bucket := direct(b, func(o *swift.Options) { o.Segments, o.SegmentSize = segments, 32<<20 })
				data := storagetest.Content(1, size)
				b.SetBytes(int64(size))
				for b.Loop() {
					if err := put(b, bucket, "x", streamed(data)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, size := range []int{1 << 10, 128 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			bucket := direct(b, func(*swift.Options) {})
			storagetest.MustPut(b, bucket, "x", storagetest.Content(1, size))
			b.SetBytes(int64(size))
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
