package s3_test

import (
	"testing"
	"time"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/s3"
	"github.com/walherd/walherd/storage/s3/s3test"
	"github.com/walherd/walherd/storage/storagetest"
)

// options are those of a fresh bucket on the server, with short pauses.
func options(t testing.TB, s *s3test.Server) s3.Options {
	t.Helper()
	return s3.Options{
		Bucket: s.NewBucket(t), Prefix: "some/path",
		Endpoint: s.Endpoint, PathStyle: true, Region: s.Region,
		AccessKeyID: s.AccessKeyID, SecretAccessKey: s.SecretAccessKey,
		MinRetryDelay: time.Millisecond, MaxRetryDelay: 50 * time.Millisecond,
		MinThrottleDelay: time.Millisecond, MaxThrottleDelay: 50 * time.Millisecond,
	}
}

func open(t testing.TB, opt s3.Options) *s3.Bucket {
	t.Helper()
	b, err := s3.Open(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// TestBucket runs the promise in each manner of speaking to a store.
func TestBucket(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{})
	for name, tune := range map[string]func(*s3.Options){
		"Default": func(*s3.Options) {},
		// Parts of the smallest size make the suite's large objects
		// multipart uploads and ranged reads.
		"Parts": func(o *s3.Options) {
			o.PartSize, o.UploadConcurrency = 5<<20, 2
			o.ReadParallel, o.ReadRange = 3, 128<<10
		},
		"OldGateway": func(o *s3.Options) {
			o.Prefix, o.Checksum, o.ListV1, o.DeleteBatch, o.PartSize, o.NoExpectContinue = "", s3.ChecksumMD5, true, 1, 5<<20, true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storagetest.Run(t, func(t *testing.T) storage.Bucket {
				opt := options(t, server)
				tune(&opt)
				return open(t, opt)
			})
		})
	}
}
