package gcs_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/oauth2"
	"pgregory.net/rapid"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/gcs"
	"github.com/walherd/walherd/storage/gcs/gcstest"
	"github.com/walherd/walherd/storage/storagetest"
)

func TestParsePrefix(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][3]string{
		// The prefix as it is, and the root without and with KeepSlashes.
		"gs://bucket":            {"", "", ""},
		"gs://bucket/":           {"", "", ""},
		"gs://bucket/a":          {"a", "a/", "a/"},
		"gs://bucket/a/b/":       {"a/b/", "a/b/", "a/b/"},
		"gs://bucket//a//b":      {"/a//b", "a/b/", "/a//b/"},
		"gs://bucket/a//":        {"a//", "a/", "a//"},
		"gs://my.bucket-1_x/a/b": {"a/b", "a/b/", "a/b/"},
	} {
		bucket, prefix, err := gcs.ParsePrefix(in)
		if err != nil || prefix != want[0] || !strings.HasPrefix(in, "gs://"+bucket) {
			t.Errorf("ParsePrefix(%q) = %q, %q, %v", in, bucket, prefix, err)
		}
		for i, keep := range []bool{false, true} {
			b := open(t, gcs.Options{Bucket: bucket, Prefix: prefix, KeepSlashes: keep, EmulatorHost: "localhost:1"})
			if b.Root() != want[1+i] {
				t.Errorf("%q with KeepSlashes %t has the root %q, want %q", in, keep, b.Root(), want[1+i])
			}
		}
	}
	for _, in := range []string{"", "bucket", "s3://bucket/a", "gs://", "gs:///a", "gs://b", "gs://Bucket/a", "gs://bu cket/a", "gs://bucket/../a", "gs://bucket/a\n"} {
		if bucket, prefix, err := gcs.ParsePrefix(in); err == nil {
			t.Errorf("ParsePrefix(%q) = %q, %q", in, bucket, prefix)
		}
	}
}

func FuzzParsePrefix(f *testing.F) {
	f.Add("gs://bucket/path")
	f.Add("gs://bucket//a//b/")
	f.Fuzz(func(t *testing.T, in string) {
		bucket, prefix, err := gcs.ParsePrefix(in)
		if err != nil {
			return
		}
		if in != "gs://"+bucket+"/"+prefix && in != "gs://"+bucket {
			t.Errorf("%q became %q, %q", in, bucket, prefix)
		}
		for _, keep := range []bool{false, true} {
			b, err := gcs.Open(t.Context(), gcs.Options{Bucket: bucket, Prefix: prefix, KeepSlashes: keep, EmulatorHost: "localhost:1"})
			if err != nil {
				if !keep {
					t.Errorf("Open refuses what ParsePrefix took of %q: %v", in, err)
				}
				continue
			}
			if root := b.Root(); root != "" && !strings.HasSuffix(root, "/") || !keep && strings.Contains(root, "//") {
				t.Errorf("%q has the root %q", in, root)
			}
			b.Close()
		}
	})
}

// TestKeepSlashes: objects below double slashes are found only with it.
func TestKeepSlashes(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	opt := options(t, server)
	opt.Prefix, opt.KeepSlashes = "/old//walg/", true
	odd := open(t, opt)
	storagetest.MustPut(t, odd, "d/x", []byte("x"))
	if got := storagetest.MustGet(t, odd, "d/x"); string(got) != "x" {
		t.Errorf("read %q", got)
	}
	if got := storagetest.Names(t, odd, "", storage.ListOptions{}); len(got) != 1 || got[0] != "d/x" {
		t.Errorf("listed %q", got)
	}
	opt.KeepSlashes = false
	if got := storagetest.Names(t, open(t, opt), "", storage.ListOptions{}); len(got) != 0 {
		t.Errorf("listed %q with a normal prefix", got)
	}
}

// TestEmulatorHost is read as Google's libraries read it.
func TestEmulatorHost(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"localhost:9000":                     "http://localhost:9000",
		"http://localhost:9000":              "http://localhost:9000",
		"https://gcs.example.org/storage/v1": "https://gcs.example.org",
	} {
		b := open(t, gcs.Options{Bucket: "bucket", EmulatorHost: in})
		if b.Service() != want {
			t.Errorf("%q is %q, want %q", in, b.Service(), want)
		}
	}
}

// TestOpenRefusesOptions: each says which setting to mend, before a request.
func TestOpenRefusesOptions(t *testing.T) {
	t.Parallel()
	broken := filepath.Join(t.TempDir(), "broken.json")
	if err := os.WriteFile(broken, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for hint, spoil := range map[string]func(*gcs.Options){
		"WALG_GS_PREFIX":                      func(o *gcs.Options) { o.Bucket = "" },
		"check WALG_GS_PREFIX":                func(o *gcs.Options) { o.Prefix = "a/../b" },
		"STORAGE_EMULATOR_HOST to host:port":  func(o *gcs.Options) { o.EmulatorHost = "ftp://x" },
		"the endpoint to":                     func(o *gcs.Options) { o.Endpoint = "localhost" },
		"GCS_MAX_CHUNK_SIZE":                  func(o *gcs.Options) { o.ChunkSize = 1000 },
		"GCS_ENCRYPTION_KEY has 3":            func(o *gcs.Options) { o.EncryptionKey, o.EmulatorHost = []byte("abc"), "https://x" },
		"GCS_ENCRYPTION_KEY is sent":          func(o *gcs.Options) { o.EncryptionKey = make([]byte, 32) },
		"GCS_CONTEXT_TIMEOUT":                 func(o *gcs.Options) { o.Timeout = -1 },
		"want the first to be shorter":        func(o *gcs.Options) { o.MinRetryDelay = 1 << 60 },
		"set GOOGLE_APPLICATION_CREDENTIALS":  func(o *gcs.Options) { o.EmulatorHost, o.CredentialsFile = "", "/does/not/exist" },
		"broken.json is no credentials file:": func(o *gcs.Options) { o.EmulatorHost, o.CredentialsFile = "", broken },
	} {
		opt := gcs.Options{Bucket: "bucket", EmulatorHost: "127.0.0.1:1"}
		spoil(&opt)
		b, err := gcs.Open(t.Context(), opt)
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

// TestNamesTheStoreCannotHold are refused before a request.
func TestNamesTheStoreCannotHold(t *testing.T) {
	t.Parallel()
	b := open(t, gcs.Options{Bucket: "bucket", EmulatorHost: "127.0.0.1:1", MaxRetries: -1})
	for _, name := range []string{"a\nb", "a\rb", "\xff", strings.Repeat("x", 1025), ".well-known/acme-challenge/x"} {
		if _, err := b.Stat(t.Context(), name); !errors.Is(err, storage.ErrName) {
			t.Errorf("Stat(%q): %v", name, err)
		}
		if err := b.Delete(t.Context(), "x", name); !errors.Is(err, storage.ErrName) {
			t.Errorf("Delete(%q): %v", name, err)
		}
	}
}

// TestAnyName: whatever CheckName and the store take comes back under the same
// name.
func TestAnyName(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	b := open(t, options(t, server))
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringN(1, 40, 200).Draw(t, "name")
		_, err := b.Put(t.Context(), name, strings.NewReader(name), storage.PutOptions{})
		if errors.Is(err, storage.ErrName) {
			t.Skip("no name")
		}
		if err != nil {
			t.Fatalf("Put(%q): %v", name, err)
		}
		found := false
		for info, err := range b.List(t.Context(), name, storage.ListOptions{}) {
			if err != nil {
				t.Fatalf("List(%q): %v", name, err)
			}
			found = found || info.Name == name
		}
		if info, err := b.Stat(t.Context(), name); err != nil || info.Size != int64(len(name)) || !found {
			t.Fatalf("%q: %+v, %v, listed %t", name, info, err, found)
		}
		if err := b.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	})
}

// tokenServer answers for tokens; it refuses the first refuse times.
func tokenServer(t *testing.T, refuse int64, status int) (uri string, asked *atomic.Int64) {
	t.Helper()
	asked = new(atomic.Int64)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if asked.Add(1) <= refuse {
			w.WriteHeader(status)
			fmt.Fprint(w, `{"error":"invalid_grant","error_description":"made by the test"}`)
			return
		}
		fmt.Fprint(w, `{"access_token":"the-token","token_type":"Bearer","expires_in":3600}`)
	}))
	t.Cleanup(s.Close)
	return s.URL, asked
}

// keyFile writes a service account's key.
func keyFile(t *testing.T, tokenURI string) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "walherd@test", "private_key_id": "1", "token_uri": tokenURI,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestServiceAccount: a key file gives one token for all requests.
func TestServiceAccount(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	f := newFront(t, server.Host, false, never)
	uri, asked := tokenServer(t, 1, http.StatusServiceUnavailable)
	opt := options(t, server)
	opt.EmulatorHost, opt.Endpoint, opt.CredentialsFile = "", f.URL, keyFile(t, uri)
	b := open(t, opt)
	storagetest.MustPut(t, b, "x", []byte("x"))
	storagetest.MustGet(t, b, "x")
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.headers {
		if h.Get("Authorization") != "Bearer the-token" {
			t.Errorf("a request without the token: %v", h)
		}
	}
	if asked.Load() != 2 || len(f.headers) != 2 {
		t.Errorf("asked %d times for a token, for %d requests", asked.Load(), len(f.headers))
	}
}

// TestServiceAccountRefused: a key that was taken back is no matter of trying
// again.
func TestServiceAccountRefused(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	uri, asked := tokenServer(t, 1<<30, http.StatusBadRequest)
	opt := options(t, server)
	opt.EmulatorHost, opt.Endpoint, opt.CredentialsFile, opt.ChunkSize = "", "http://"+server.Host, keyFile(t, uri), 256<<10
	wantRefused(t, opt, "GOOGLE_APPLICATION_CREDENTIALS")
	if n := asked.Load(); n > 20 {
		t.Errorf("asked %d times", n)
	}
}

// TestTokenSource replaces the search for credentials.
func TestTokenSource(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	f := newFront(t, server.Host, false, never)
	opt := options(t, server)
	opt.EmulatorHost, opt.Endpoint = "", f.URL
	opt.TokenSource = oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "mine"})
	storagetest.MustPut(t, open(t, opt), "x", nil)
	f.mu.Lock()
	defer f.mu.Unlock()
	if got := f.headers[0].Get("Authorization"); got != "Bearer mine" {
		t.Errorf("Authorization: %q", got)
	}
}
