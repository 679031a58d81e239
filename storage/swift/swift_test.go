package swift_test

import (
	"testing"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/storagetest"
	"github.com/walherd/walherd/storage/swift"
)

var manners = map[string]func(*swift.Options){
	"Default": func(*swift.Options) {},
	// A small buffer makes the suite's objects streamed ones.
	"Streamed": func(o *swift.Options) { o.BufferSize, o.Prefix, o.DeleteBatch = 500, "", 1 },
	// Small segments make them large ones.
	"Segments": func(o *swift.Options) {
		o.BufferSize, o.Segments, o.SegmentSize, o.MaxObject = 500, true, 100_000, 3000
	},
}

// TestBucket runs the promise in each manner of writing.
func TestBucket(t *testing.T) {
	t.Parallel()
	server := start(t, false)
	runSuite(t, server)
}

// TestBucketReal runs it on a Swift of the tester's.
func TestBucketReal(t *testing.T) {
	t.Parallel()
	runSuite(t, start(t, true))
}

func runSuite(t *testing.T, server *server) {
	for name, tune := range manners {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storagetest.Run(t, func(t *testing.T) storage.Bucket {
				opt := server.options(t)
				tune(&opt)
				return open(t, opt)
			})
		})
	}
}

func mustGet(t *testing.T, b storage.Bucket, name string) string {
	t.Helper()
	return string(storagetest.MustGet(t, b, name))
}
