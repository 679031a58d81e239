package s3_test

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/s3"
)

// TestWaiting: a store that goes on failing is told of while it is tried
// again, once for each request; one that fails now and then is not.
func TestWaiting(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ failures, told int64 }{
		"now and then": {2, 0},
		"away":         {6, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked, told atomic.Int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if asked.Add(1) <= c.failures {
					w.WriteHeader(http.StatusInternalServerError)
					return
				}
				_, _ = w.Write([]byte(`<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>`))
			}))
			t.Cleanup(srv.Close)
			b, err := s3.Open(t.Context(), s3.Options{
				Bucket: "bucket", Endpoint: srv.URL, PathStyle: true, Region: "here", AccessKeyID: "a", SecretAccessKey: "b",
				MinRetryDelay: time.Millisecond, MaxRetryDelay: time.Millisecond,
				Waiting: func(failed error) {
					if failed == nil {
						t.Error("told of no failure")
					}
					told.Add(1)
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, err := range b.List(t.Context(), "", storage.ListOptions{}) {
				if err != nil {
					t.Fatal(err)
				}
			}
			if told.Load() != c.told {
				t.Errorf("told %d times in %d tries, want %d", told.Load(), asked.Load(), c.told)
			}
		})
	}
}
