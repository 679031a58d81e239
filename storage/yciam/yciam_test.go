package yciam_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/yciam"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is one that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// metadata is a metadata service whose tokens are numbered.
type metadata struct {
	*httptest.Server
	asked  atomic.Int64
	status atomic.Int64 // instead of 200
	life   time.Duration
}

func newMetadata(t *testing.T) *metadata {
	m := &metadata{life: 12 * time.Hour}
	m.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.Header.Get("Metadata-Flavor") != "Google" {
			http.Error(w, "forbidden", http.StatusForbidden)
			return
		}
		n := m.asked.Add(1)
		if s := m.status.Load(); s != 0 {
			w.WriteHeader(int(s))
			return
		}
		fmt.Fprintf(w, `{"access_token":"t1.%d","expires_in":%d,"token_type":"Bearer"}`, n, int(m.life.Seconds()))
	}))
	t.Cleanup(m.Close)
	return m
}

func want(t *testing.T, tokens *yciam.Tokens, value string) {
	t.Helper()
	if got, err := tokens.Token(t.Context()); err != nil || got != value {
		t.Errorf("Token: %q, %v; want %q", got, err, value)
	}
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	m, c := newMetadata(t), newClock()
	tokens := yciam.Metadata(yciam.Options{URL: m.URL, Now: c.Now})
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() { want(t, tokens, "t1.1") })
	}
	all.Wait()
	c.pass(time.Hour - time.Second)
	want(t, tokens, "t1.1")
	c.pass(time.Second)
	want(t, tokens, "t1.2")
	tokens.Drop("t1.1") // an older one: the present one stays
	want(t, tokens, "t1.2")
	tokens.Drop("t1.2")
	want(t, tokens, "t1.3")

	// The service is away: the present token is used to its end, and the
	// service is not asked with every request.
	m.status.Store(http.StatusInternalServerError)
	c.pass(time.Hour)
	before := m.asked.Load()
	want(t, tokens, "t1.3")
	want(t, tokens, "t1.3")
	if n := m.asked.Load() - before; n != 1 {
		t.Errorf("asked %d times", n)
	}
	c.pass(11*time.Hour - 10*time.Second)
	if got, err := tokens.Token(t.Context()); err == nil || errors.Is(err, storage.ErrPermanent) {
		t.Errorf("Token at its end: %q, %v; want an error that may pass", got, err)
	}
	m.status.Store(0)
	if got, err := tokens.Token(t.Context()); err != nil {
		t.Errorf("Token when the service is back: %q, %v", got, err)
	}
}

// TestShortLife: also a token of a minute is replaced before its end.
func TestShortLife(t *testing.T) {
	t.Parallel()
	m, c := newMetadata(t), newClock()
	m.life = time.Minute
	tokens := yciam.Metadata(yciam.Options{URL: m.URL, Now: c.Now})
	want(t, tokens, "t1.1")
	c.pass(44 * time.Second)
	want(t, tokens, "t1.1")
	c.pass(time.Second)
	want(t, tokens, "t1.2")
}

func TestMetadataRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status    int
		body      string
		permanent bool
		hint      string
	}{
		"no account": {http.StatusNotFound, "", true, "link a service account"},
		"busy":       {http.StatusTooManyRequests, "", false, "HTTP 429"},
		"down":       {http.StatusServiceUnavailable, `{"message":"later"}`, false, "later"},
		"no JSON":    {http.StatusOK, "<html>", false, "not the JSON"},
		"no token":   {http.StatusOK, `{"expires_in":3600}`, false, "no token"},
		"two lines":  {http.StatusOK, `{"access_token":"a\r\nb","expires_in":3600}`, false, "no token"},
		"over":       {http.StatusOK, `{"access_token":"a","expires_in":5}`, false, "set the clock"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(c.status)
			fmt.Fprint(w, c.body)
		}))
		_, err := yciam.Metadata(yciam.Options{URL: server.URL}).Token(t.Context())
		server.Close()
		if err == nil || errors.Is(err, storage.ErrPermanent) != c.permanent || !strings.Contains(err.Error(), c.hint) {
			t.Errorf("%s: %v; want permanent %v and %q", name, err, c.permanent, c.hint)
		}
	}
}

func TestContextEnds(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	asked := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { close(asked); <-hang }))
	tokens := yciam.Metadata(yciam.Options{URL: server.URL})
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	all.Go(func() {
		if _, err := tokens.Token(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("who asks: %v", err)
		}
	})
	<-asked
	over, end := context.WithCancel(t.Context())
	end()
	if _, err := tokens.Token(over); !errors.Is(err, context.Canceled) {
		t.Errorf("who waits: %v", err)
	}
	cancel()
	all.Wait()
	close(hang)
	server.Close()
}

// TestNoAnswer: the limit of a request is not the end of the caller's context,
// which nobody would try again after.
func TestNoAnswer(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	_, err := yciam.Metadata(yciam.Options{URL: server.URL, Limit: 20 * time.Millisecond}).Token(t.Context())
	if err == nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, storage.ErrPermanent) || !strings.Contains(err.Error(), "no answer within 20ms") {
		t.Errorf("Token: %v", err)
	}
	close(hang)
	server.Close()
}

// keyFile is what yc iam key create writes.
func keyFile(t *testing.T, private *rsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(map[string]string{
		"id": "aje-key", "service_account_id": "aje-account", "created_at": "2026-01-01T00:00:00Z", "key_algorithm": "RSA_2048",
		"private_key": "PLEASE DO NOT REMOVE THIS LINE! Yandex.Cloud SA Key ID <aje-key>\n" +
			string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func rsaKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// verify holds a JWT against the documented form, with the standard library
// alone.
func verify(signed string, public *rsa.PublicKey, now time.Time) error {
	parts := strings.Split(signed, ".")
	if len(parts) != 3 {
		return fmt.Errorf("%d parts", len(parts))
	}
	var raw [3][]byte
	for i, p := range parts {
		var err error
		if raw[i], err = base64.RawURLEncoding.DecodeString(p); err != nil {
			return err
		}
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err := rsa.VerifyPSS(public, crypto.SHA256, sum[:], raw[2], &rsa.PSSOptions{SaltLength: sha256.Size}); err != nil {
		return err
	}
	var head struct{ Typ, Alg, Kid string }
	var claims struct {
		Iss, Aud string
		Iat, Exp int64
	}
	if err := errors.Join(json.Unmarshal(raw[0], &head), json.Unmarshal(raw[1], &claims)); err != nil {
		return err
	}
	if head.Typ != "JWT" || head.Alg != "PS256" || head.Kid != "aje-key" || claims.Iss != "aje-account" ||
		claims.Aud != "https://iam.api.cloud.yandex.net/iam/v1/tokens" || claims.Iat != now.Unix() || claims.Exp <= now.Unix() || claims.Exp > now.Unix()+3600 {
		return fmt.Errorf("head %+v, claims %+v", head, claims)
	}
	return nil
}

func TestServiceAccount(t *testing.T) {
	t.Parallel()
	private, c := rsaKey(t), newClock()
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct{ JWT string }
		err := json.NewDecoder(r.Body).Decode(&in)
		if err == nil {
			err = verify(in.JWT, &private.PublicKey, c.Now())
		}
		if err != nil || r.Method != http.MethodPost {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprintf(w, `{"code":16,"message":%q}`, fmt.Sprint("The token is invalid: ", err))
			return
		}
		fmt.Fprintf(w, `{"iamToken":"t1.%d","expiresAt":%q}`, asked.Add(1), c.Now().Add(12*time.Hour).Format(time.RFC3339Nano))
	}))
	t.Cleanup(server.Close)
	path := filepath.Join(t.TempDir(), "key.json")
	if err := os.WriteFile(path, keyFile(t, private), 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := yciam.ReadKey(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(verb, key); text != "key aje-key of service account aje-account" {
			t.Errorf("%s prints %s", verb, text)
		}
	}
	o := yciam.Options{URL: server.URL, Now: c.Now}
	tokens := yciam.ServiceAccount(key, o)
	want(t, tokens, "t1.1")
	c.pass(59 * time.Minute)
	want(t, tokens, "t1.1")
	c.pass(time.Minute)
	want(t, tokens, "t1.2")

	other, err := yciam.ParseKey(keyFile(t, rsaKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = yciam.ServiceAccount(other, o).Token(t.Context())
	if !errors.Is(err, storage.ErrPermanent) || !strings.Contains(err.Error(), "aje-key") || !strings.Contains(err.Error(), "not deleted") {
		t.Errorf("another key: %v", err)
	}
}

func TestWrongKeyFile(t *testing.T) {
	t.Parallel()
	if _, err := yciam.ReadKey("/no/such/secret"); !errors.Is(err, os.ErrNotExist) || !errors.Is(err, storage.ErrPermanent) || strings.Contains(err.Error(), "secret") {
		t.Errorf("no file: %v", err)
	}
	for text, hint := range map[string]string{
		"":                                  "not the JSON",
		"-----BEGIN PRIVATE KEY":            "not the JSON",
		`{"id":"secret"}`:                   "no private_key",
		`{"private_key":"secret"}`:          "no id",
		`{"id":"a","private_key":"secret"}`: "service_account_id",
		`{"id":"a","service_account_id":"b","private_key":"secret"}`:                                                             "no RSA key",
		`{"id":"a","service_account_id":"b","private_key":"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"}`: "no RSA key",
	} {
		_, err := yciam.ParseKey([]byte(text))
		if !errors.Is(err, storage.ErrPermanent) || !strings.Contains(err.Error(), hint) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v; want %q", text, err, hint)
		}
	}
}
