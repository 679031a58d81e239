package s3_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"pgregory.net/rapid"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/s3"
	"github.com/walherd/walherd/storage/s3/s3test"
	"github.com/walherd/walherd/storage/storagetest"
)

func TestParsePrefix(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][2]string{
		"s3://bucket":           {"bucket", ""},
		"s3://bucket/":          {"bucket", ""},
		"s3://bucket/a":         {"bucket", "a"},
		"s3://my.bucket-1/a/b/": {"my.bucket-1", "a/b"},
		"s3://Old_Bucket//a/":   {"Old_Bucket", "a"},
	} {
		bucket, prefix, err := s3.ParsePrefix(in)
		if err != nil || bucket != want[0] || prefix != want[1] {
			t.Errorf("ParsePrefix(%q) = %q, %q, %v", in, bucket, prefix, err)
		}
	}
	for _, in := range []string{"", "bucket", "gs://bucket/a", "s3://", "s3:///a", "s3://b", "s3://bu cket/a", "s3://bucket/a//b", "s3://bucket/../a", "s3://bucket/a\x01", "s3://a?b=c/d"} {
		if bucket, prefix, err := s3.ParsePrefix(in); err == nil {
			t.Errorf("ParsePrefix(%q) = %q, %q", in, bucket, prefix)
		}
	}
}

func FuzzParsePrefix(f *testing.F) {
	f.Add("s3://bucket/path")
	f.Fuzz(func(t *testing.T, in string) {
		bucket, prefix, err := s3.ParsePrefix(in)
		if err != nil {
			return
		}
		again, same, err := s3.ParsePrefix("s3://" + bucket + "/" + prefix)
		if err != nil || again != bucket || same != prefix {
			t.Errorf("%q became %q, %q and then %q, %q, %v", in, bucket, prefix, again, same, err)
		}
	})
}

// TestOpenRefusesOptions: each says which setting to mend, before a request.
func TestOpenRefusesOptions(t *testing.T) {
	t.Parallel()
	for hint, spoil := range map[string]func(*s3.Options){
		"WALG_S3_PREFIX":                func(o *s3.Options) { o.Bucket = "" },
		"AWS_ENDPOINT":                  func(o *s3.Options) { o.Endpoint = "localhost:9000" },
		"S3_MAX_PART_SIZE":              func(o *s3.Options) { o.PartSize = 1 << 20 },
		"S3_DELETE_BATCH_SIZE":          func(o *s3.Options) { o.DeleteBatch = 1001 },
		"S3_SSE ":                       func(o *s3.Options) { o.SSE = "rot13" },
		"S3_SSE_KMS_ID to":              func(o *s3.Options) { o.SSE = "aws:kms" },
		"S3_SSE to aws:kms":             func(o *s3.Options) { o.SSEKMSKeyID = "x" },
		"S3_SSE_C has 3":                func(o *s3.Options) { o.SSECKey = []byte("abc") },
		"AWS_ENDPOINT to https":         func(o *s3.Options) { o.SSECKey = make([]byte, 32) },
		"S3_RETENTION_MODE":             func(o *s3.Options) { o.RetentionMode = "SOMETIMES" },
		"S3_ENABLE_VERSIONING":          func(o *s3.Options) { o.Versioning = "perhaps" },
		"S3_MIN_THROTTLING_RETRY_DELAY": func(o *s3.Options) { o.MinThrottleDelay = time.Hour },
		"S3_CA_CERT_FILE":               func(o *s3.Options) { o.CAFile = "/does/not/exist" },
		"crc32c, md5 or none":           func(o *s3.Options) { o.Checksum = "crc7" },
	} {
		opt := s3.Options{Bucket: "bucket", Endpoint: "http://127.0.0.1:1", Region: "x", AccessKeyID: "a", SecretAccessKey: "b"}
		spoil(&opt)
		b, err := s3.Open(t.Context(), opt)
		if err == nil {
			b.Close()
			t.Errorf("Open took what should speak of %q", hint)
			continue
		}
		if !errors.Is(err, storage.ErrPermanent) || !strings.Contains(err.Error(), hint) {
			t.Errorf("Open: %v; want a permanent error that speaks of %q", err, hint)
		}
	}
}

// wantRefused checks that every operation fails for good with a hint.
func wantRefused(t *testing.T, b *s3.Bucket, hint string) {
	t.Helper()
	errs := map[string]error{}
	_, errs["Put"] = b.Put(t.Context(), "x", strings.NewReader("x"), storage.PutOptions{})
	_, errs["PutIfAbsent"] = b.Put(t.Context(), "x", strings.NewReader("x"), storage.PutOptions{IfAbsent: true})
	_, errs["PutParts"] = b.Put(t.Context(), "x", bytes.NewReader(make([]byte, 6<<20)), storage.PutOptions{})
	_, errs["Open"] = b.Open(t.Context(), "x", storage.Range{})
	_, errs["Stat"] = b.Stat(t.Context(), "x")
	errs["Delete"] = b.Delete(t.Context(), "x", "y")
	for _, err := range b.List(t.Context(), "", storage.ListOptions{}) {
		errs["List"] = err
	}
	for _, err := range b.Unfinished(t.Context(), "") {
		errs["Unfinished"] = err
	}
	_, errs["Probe"] = b.Probe(t.Context())
	for op, err := range errs {
		if !errors.Is(err, storage.ErrPermanent) || errors.Is(err, storage.ErrNotExist) {
			t.Errorf("%s: %v; want a permanent error", op, err)
		} else if op != "Stat" && op != "PutIfAbsent" && !strings.Contains(err.Error(), hint) {
			// (An answer to a HEAD holds no code: its status has to do.)
			t.Errorf("%s: %v; want a hint about %q", op, err, hint)
		}
	}
	if now, _ := b.Memory(); now != 0 || !b.BudgetFree() {
		t.Errorf("%d bytes are still held", now)
	}
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{})
	skewed := newProxy(t, server.Endpoint, never)
	skewed.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
		refuse(w, http.StatusForbidden, "RequestTimeTooSkewed")
	})
	closed := newProxy(t, server.Endpoint, never)
	closed.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { refuse(w, http.StatusForbidden, "AccessDenied") })
	moved := newProxy(t, server.Endpoint, never)
	moved.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "http://127.0.0.1:1/elsewhere")
		refuse(w, http.StatusMovedPermanently, "PermanentRedirect")
	})
	for name, c := range map[string]struct {
		spoil func(*s3.Options)
		hint  string
	}{
		"Secret":     {func(o *s3.Options) { o.SecretAccessKey = "wrong" }, "AWS_SECRET_ACCESS_KEY"},
		"AccessKey":  {func(o *s3.Options) { o.AccessKeyID = "nobody" }, "AWS_ACCESS_KEY_ID"},
		"Bucket":     {func(o *s3.Options) { o.Bucket = "no-such-bucket" }, "WALG_S3_PREFIX"},
		"Region":     {func(o *s3.Options) { o.Region = "mars-north-1" }, "AWS_REGION"},
		"Clock":      {func(o *s3.Options) { o.Endpoint = skewed.URL }, "set the clock"},
		"Access":     {func(o *s3.Options) { o.Endpoint = closed.URL }, "s3:GetObject"},
		"OtherPlace": {func(o *s3.Options) { o.Endpoint = moved.URL }, "AWS_REGION"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opt := options(t, server)
			opt.PartSize, opt.MaxRetries = 5<<20, 2
			c.spoil(&opt)
			wantRefused(t, open(t, opt), c.hint)
			opt.Validate = true
			b, err := s3.Open(t.Context(), opt)
			if err == nil {
				b.Close()
				t.Fatal("Open with Validate succeeded")
			}
			if !errors.Is(err, storage.ErrPermanent) {
				t.Errorf("Open with Validate: %v", err)
			}
		})
	}
}

// TestNamesS3CannotHold: ones a listing could not show.
func TestNamesS3CannotHold(t *testing.T) {
	t.Parallel()
	b := open(t, s3.Options{Bucket: "bucket", Endpoint: "http://127.0.0.1:1", Region: "x", AccessKeyID: "a", SecretAccessKey: "b"})
	for _, name := range []string{"a\x01", "a\nb", "a\x7f", "a\xff", "a\uffff", strings.Repeat("x", 1025)} {
		if _, err := b.Stat(t.Context(), name); !errors.Is(err, storage.ErrName) {
			t.Errorf("Stat(%q): %v", name, err)
		}
	}
}

// TestTLS goes over https with an authority of its own, and sees what is
// sent there.
func TestTLS(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{})
	p := newTLSProxy(t, server.Endpoint, never)
	p.remember = true
	opt := options(t, server)
	opt.Endpoint, opt.PartSize, opt.MaxRetries = p.URL, 5<<20, 1
	b := open(t, opt)
	_, err := b.Stat(t.Context(), "x")
	if !errors.Is(err, storage.ErrPermanent) || !strings.Contains(err.Error(), "S3_CA_CERT_FILE") {
		t.Errorf("an unknown authority: %v", err)
	}
	opt.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(opt.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	opt.SSECKey = []byte("0123456789abcdef0123456789abcdef")
	opt.Headers = map[string]string{"X-Walherd-Test": "seen"}
	b = open(t, opt)
	data := storagetest.Content(1, 6<<20)
	// versitygw takes no SSE-C, so only what is sent can be looked at.
	b.Put(t.Context(), "x", bytes.NewReader(data), storage.PutOptions{})
	b.Put(t.Context(), "y", strings.NewReader("y"), storage.PutOptions{})
	b.Stat(t.Context(), "y")
	if r, err := b.Open(t.Context(), "y", storage.Range{}); err == nil {
		r.Close()
	}
	for method, least := range map[string]int{http.MethodPut: 1, http.MethodHead: 1, http.MethodGet: 1} {
		sent := 0
		for _, r := range p.headers(method) {
			if has(r, "list-type") || has(r, "versioning") {
				continue
			}
			sent++
			if r.Header.Get("X-Amz-Server-Side-Encryption-Customer-Algorithm") != "AES256" ||
				r.Header.Get("X-Amz-Server-Side-Encryption-Customer-Key") != "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=" ||
				r.Header.Get("X-Amz-Server-Side-Encryption-Customer-Key-Md5") == "" {
				t.Errorf("%s %s without the key's headers", method, r.URL)
			}
			if r.Header.Get("X-Walherd-Test") != "seen" {
				t.Errorf("%s %s without the additional header", method, r.URL)
			}
			if sum := r.Header.Get("X-Amz-Content-Sha256"); method == http.MethodPut && sum != "UNSIGNED-PAYLOAD" {
				t.Errorf("%s %s hashes its body over TLS: %s", method, r.URL, sum)
			}
		}
		if sent < least {
			t.Errorf("%d requests of method %s", sent, method)
		}
	}
	// And without SSE-C all works over TLS.
	opt.SSECKey = nil
	b = open(t, opt)
	storagetest.MustPut(t, b, "x", data)
	if got := storagetest.MustGet(t, b, "x"); !bytes.Equal(got, data) {
		t.Error("read others than were put")
	}
}

// TestHeadersOfNewObjects looks at what a Put asks for.
func TestHeadersOfNewObjects(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{})
	p := newProxy(t, server.Endpoint, times(1<<40, fail500, func(r *http.Request) bool { return r.Method == http.MethodPost || r.Method == http.MethodPut }))
	p.remember = true
	opt := options(t, server)
	opt.Endpoint, opt.PartSize, opt.MaxRetries = p.URL, 5<<20, -1
	opt.StorageClass, opt.SSE, opt.SSEKMSKeyID = "STANDARD_IA", "aws:kms", "key-1"
	opt.RetentionPeriod, opt.RetentionMode = time.Hour, "compliance"
	b := open(t, opt)
	b.SetNow(func() time.Time { return time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC) })
	b.Put(t.Context(), "x", strings.NewReader("x"), storage.PutOptions{IfAbsent: true})
	b.Put(t.Context(), "x", bytes.NewReader(make([]byte, 6<<20)), storage.PutOptions{})
	puts, posts := p.headers(http.MethodPut), p.headers(http.MethodPost)
	if len(puts) != 1 || len(posts) != 1 {
		t.Fatalf("%d and %d requests: -1 retries", len(puts), len(posts))
	}
	for _, r := range append(puts, posts...) {
		for k, want := range map[string]string{
			"X-Amz-Storage-Class": "STANDARD_IA", "X-Amz-Server-Side-Encryption": "aws:kms", "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "key-1",
			"X-Amz-Object-Lock-Mode": "COMPLIANCE", "X-Amz-Object-Lock-Retain-Until-Date": "2030-01-02T04:04:05Z",
		} {
			if got := r.Header.Get(k); got != want {
				t.Errorf("%s sends %s %q, want %q", r.Method, k, got, want)
			}
		}
	}
	if got := puts[0].Header.Get("If-None-Match"); got != "*" {
		t.Errorf("If-None-Match is %q", got)
	}
	if got := puts[0].Header.Get("X-Amz-Checksum-Crc32c"); got == "" {
		t.Error("no checksum")
	}
}

// TestProbe holds a good store and a poor one against what is found.
func TestProbe(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{})
	b := open(t, options(t, server))
	caps, err := b.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	caps.Probed = time.Time{}
	want := s3.Capabilities{ConditionalPut: true, ConditionalComplete: true, Checksums: true, FullObject: true, Multipart: true, Metadata: true, ListAfterPut: true, DeleteMany: true, Versioning: caps.Versioning}
	if caps != want {
		t.Errorf("versitygw can %+v", caps)
	}
	if names := storagetest.Names(t, b, "", storage.ListOptions{}); len(names) != 0 {
		t.Errorf("Probe left %q", names)
	}
	wantClean(t, b, b)

	// A gateway that knows neither conditions nor the newer checksums.
	p := newProxy(t, server.Endpoint, never)
	forward := p.Config.Handler
	p.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for k := range r.Header {
			if k == "If-None-Match" || strings.HasPrefix(k, "X-Amz-Checksum-") || k == "X-Amz-Sdk-Checksum-Algorithm" {
				refuse(w, http.StatusNotImplemented, "NotImplemented")
				return
			}
		}
		forward.ServeHTTP(w, r)
	})
	opt := options(t, server)
	opt.Endpoint, opt.MaxRetries, opt.Checksum = p.URL, 1, s3.ChecksumMD5
	if caps, err = open(t, opt).Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	caps.Probed = time.Time{}
	want = s3.Capabilities{Multipart: true, Metadata: true, ListAfterPut: true, DeleteMany: true, Versioning: caps.Versioning}
	if caps != want {
		t.Errorf("the poor gateway can %+v", caps)
	}
	// With that known, everything but the race works.
	opt.Checksum, opt.Capabilities, opt.PartSize = s3.ChecksumCRC32C, &caps, 5<<20
	poor := open(t, opt)
	for _, n := range []int{10, 6 << 20} {
		name := "o" + strconv.Itoa(n)
		data := storagetest.Content(1, n)
		if _, err := poor.Put(t.Context(), name, bytes.NewReader(data), storage.PutOptions{IfAbsent: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := poor.Put(t.Context(), name, bytes.NewReader(data), storage.PutOptions{IfAbsent: true}); !errors.Is(err, storage.ErrExist) {
			t.Errorf("Put IfAbsent of an object that exists: %v", err)
		}
		if got := storagetest.MustGet(t, poor, name); !bytes.Equal(got, data) {
			t.Error("the object is another")
		}
	}
	if err := poor.Delete(t.Context(), "o10", "o6291456", "none"); err != nil {
		t.Error(err)
	}
}

// TestDeleteRemovesVersions in a bucket that keeps them.
func TestDeleteRemovesVersions(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{Versioning: true})
	for _, v := range []s3.Versioning{s3.VersioningAsk, s3.VersioningEnabled, s3.VersioningDisabled} {
		opt := options(t, server)
		opt.Versioning, opt.DeleteBatch = v, 2
		b := open(t, opt)
		if _, err := b.Client().PutBucketVersioning(t.Context(), &awss3.PutBucketVersioningInput{Bucket: &opt.Bucket,
			VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled}}); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			for _, name := range []string{"d/x", "d/x.more", "d/y", "keep"} {
				storagetest.MustPut(t, b, name, storagetest.Content(byte(i), 100+i))
			}
		}
		if err := b.Delete(t.Context(), "d/x", "d/y", "never/was"); err != nil {
			t.Fatal(err)
		}
		if got := storagetest.Names(t, b, "", storage.ListOptions{}); fmt.Sprint(got) != "[d/x.more keep]" {
			t.Errorf("versioning %q: left %q", v, got)
		}
		left := map[string]int{}
		out, err := b.Client().ListObjectVersions(t.Context(), &awss3.ListObjectVersionsInput{Bucket: &opt.Bucket})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range out.Versions {
			left[strings.TrimPrefix(aws.ToString(o.Key), "some/path/")]++
		}
		x, other := 0, 3
		if v == s3.VersioningDisabled {
			x = 3 // only hidden by delete markers
		}
		if left["d/x"] != x || left["d/y"] != x || left["d/x.more"] != other || left["keep"] != other {
			t.Errorf("versioning %q: versions left: %v", v, left)
		}
	}
}

// TestRequestsCounted: a page for each thousand names, and the first name of
// a deletion by itself.
func TestRequestsCounted(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{})
	p := newProxy(t, server.Endpoint, never)
	opt := options(t, server)
	opt.Endpoint, opt.Versioning, opt.DeleteBatch = p.URL, s3.VersioningDisabled, 100
	b := open(t, opt)
	names := plant(t, b, 250)
	p.requests.Store(0)
	if got := storagetest.Names(t, b, "", storage.ListOptions{}); len(got) != len(names) {
		t.Errorf("listed %d names", len(got))
	}
	if n := p.requests.Swap(0); n != 1 {
		t.Errorf("listing 250 objects took %d requests", n)
	}
	if err := b.Delete(t.Context(), names...); err != nil {
		t.Fatal(err)
	}
	if n := p.requests.Load(); n != 4 {
		t.Errorf("deleting 250 objects in hundreds took %d requests", n)
	}
}

// TestRegionIsAsked: also a refusal tells it.
func TestRegionIsAsked(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusOK, http.StatusMovedPermanently, http.StatusForbidden} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodHead || r.URL.Path != "/bucket" {
				t.Errorf("%s %s", r.Method, r.URL)
			}
			w.Header().Set("X-Amz-Bucket-Region", "eu-north-1")
			w.WriteHeader(status)
		}))
		defer s.Close()
		region, err := s3.BucketRegion(t.Context(), s3.Options{Bucket: "bucket", Endpoint: s.URL, PathStyle: true, AccessKeyID: "a", SecretAccessKey: "b"})
		if err != nil || region != "eu-north-1" {
			t.Errorf("HTTP %d: region %q, %v", status, region, err)
		}
	}
}

// TestEndpointSource connects to the host it is told, under the name of the
// endpoint.
func TestEndpointSource(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{})
	asked := 0
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		fmt.Fprintln(w, "127.0.0.1")
	}))
	defer source.Close()
	at, err := url.Parse(server.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	opt := options(t, server)
	opt.Endpoint, opt.EndpointProtocol = "https://storage.example.test", "http"
	opt.EndpointSource = source.URL
	if opt.EndpointPort, err = strconv.Atoi(at.Port()); err != nil {
		t.Fatal(err)
	}
	b := open(t, opt)
	storagetest.MustPut(t, b, "x", []byte("x"))
	if got := storagetest.MustGet(t, b, "x"); string(got) != "x" || asked == 0 {
		t.Errorf("read %q, asked %d times", got, asked)
	}
}

// TestPartsHoldTheLargestObject: any part size and count gives legal parts
// that together hold 5 TiB, or as much as is possible.
func TestPartsHoldTheLargestObject(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		base := rapid.Int64Range(5<<20, 5<<30).Draw(t, "base")
		count := rapid.IntRange(10, 10_000).Draw(t, "count")
		var total, last int64
		for i, size := range s3.PartSizes(base, count) {
			if size < 5<<20 || size > 5<<30 || size < last {
				t.Fatalf("part %d has %d bytes after one of %d", i+1, size, last)
			}
			total, last = total+size, size
		}
		if total < 5<<40 && last < 5<<30 {
			t.Fatalf("%d parts from %d on hold %d bytes, the last %d", count, base, total, last)
		}
	})
	sizes := s3.PartSizes(20<<20, 10_000)
	if sizes[0] != 20<<20 || sizes[999] != 20<<20 || sizes[9999] > 1500<<20 {
		t.Errorf("default parts go from %d over %d to %d", sizes[0], sizes[999], sizes[9999])
	}
}
