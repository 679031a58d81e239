package s3_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/s3"
)

// TestListNeverEndsEarly: a gateway that knows only the older call, or loses
// the place, tells that a listing goes on and not where. What such a listing
// lacks would be taken for gone: a delete would not know of the newest backups.
func TestListNeverEndsEarly(t *testing.T) {
	t.Parallel()
	const truncated = "<IsTruncated>true</IsTruncated>"
	object := func(n int) string {
		return fmt.Sprintf("<Contents><Key>d/%d</Key><LastModified>2026-11-22T12:00:00Z</LastModified><Size>1</Size></Contents>", n)
	}
	for _, c := range []struct {
		name string
		v1   bool
		page string
		hint string
	}{
		{"the older answer to the newer call", false, truncated + "<NextMarker>d/1</NextMarker>" + object(1), "S3_USE_LIST_OBJECTS_V1"},
		{"the same place again", false, truncated + "<NextContinuationToken>x</NextContinuationToken>" + object(1), ""},
		{"the older call, an empty page", true, truncated, ""},
		{"the older call, the same page again", true, truncated + object(1), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			requests := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				page := c.page
				if requests++; requests > 10 {
					page = "" // the end of a listing that goes in circles
				}
				w.Header().Set("Content-Type", "application/xml")
				io.WriteString(w, "<ListBucketResult>"+page+"</ListBucketResult>")
			}))
			t.Cleanup(server.Close)
			b := open(t, s3.Options{
				Bucket: "bucket", Endpoint: server.URL, PathStyle: true, Region: "r", AccessKeyID: "a", SecretAccessKey: "s",
				ListV1: c.v1,
			})
			var failed error
			for _, err := range b.List(t.Context(), "d/", storage.ListOptions{}) {
				failed = err
			}
			if !errors.Is(failed, storage.ErrPermanent) || !strings.Contains(fmt.Sprint(failed), c.hint) || requests > 3 {
				t.Errorf("after %d requests: %v", requests, failed)
			}
		})
	}
}
