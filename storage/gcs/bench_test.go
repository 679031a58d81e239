package gcs_test

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/gcs"
	"github.com/walherd/walherd/storage/gcs/gcstest"
	"github.com/walherd/walherd/storage/storagetest"
)

// sink takes uploads and forgets them: what the emulator costs is not what is
// measured.
func sink(b *testing.B, data []byte) string {
	sum := crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))
	object := fmt.Sprintf(`{"size":"%d","generation":"1","crc32c":%q,"timeCreated":"2024-05-01T00:00:00Z"}`,
		len(data), base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		buf := make([]byte, 256<<10)
		io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r.Body}, buf)
		switch kindOf(r) {
		case begin:
			w.Header().Set("Location", "http://"+r.Host+r.URL.Path+"?upload_id=1")
		case chunk:
			place, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Content-Range"), "bytes "), "/")
			w.Header().Set("Range", "bytes=0-"+place[strings.Index(place, "-")+1:])
			w.WriteHeader(http.StatusPermanentRedirect)
		default:
			io.WriteString(w, object)
		}
	}))
	b.Cleanup(s.Close)
	return s.URL
}

func BenchmarkPut(b *testing.B) {
	for _, c := range []struct{ size, chunk int64 }{{16 << 20, 50 << 20}, {128 << 20, 16 << 20}} {
		b.Run(fmt.Sprintf("%dMiB/chunk-%dMiB", c.size>>20, c.chunk>>20), func(b *testing.B) {
			data := storagetest.Content(1, int(c.size))
			bucket := open(b, gcs.Options{Bucket: "bucket", EmulatorHost: sink(b, data), ChunkSize: c.chunk})
			b.SetBytes(c.size)
			for b.Loop() {
				storagetest.MustPut(b, bucket, "x", data)
			}
			_, peak, _ := bucket.Memory()
			b.ReportMetric(float64(peak>>20), "MiB-held")
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	server := gcstest.Start(b)
	bucket := open(b, options(b, server))
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
