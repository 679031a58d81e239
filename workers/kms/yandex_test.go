package kms_test

import (
	"bytes"
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
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/seal"
	"github.com/walherd/walherd/workers/kms"
)

const (
	yandexKeyID = "abj76v82fics"
	tokenLife   = 12 * time.Hour
)

// fakeYandex is IAM, KMS, the list of services and the metadata service of
// Yandex Cloud as their documentation describes them; there is no emulator to
// test against.
type fakeYandex struct {
	*httptest.Server
	client *http.Client
	public *rsa.PublicKey
	file   string // the authorized key

	mu      sync.Mutex
	now     time.Time
	tokens  map[string]time.Time // to their ends
	secrets map[string][]byte    // by ciphertext
	answers []int                // of the next calls of KMS, instead of theirs
	role    bool                 // the account may use the key
	calls   map[string]int       // by path
}

func newFakeYandex(t *testing.T) *fakeYandex {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeYandex{
		public: &private.PublicKey, file: writeKey(t, private), now: time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC),
		tokens: map[string]time.Time{}, secrets: map[string][]byte{}, role: true, calls: map[string]int{},
		client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /iam/v1/tokens", f.iam)
	mux.HandleFunc("GET /metadata", f.metadata)
	mux.HandleFunc("POST /kms/v1/keys/{call}", f.kms)
	mux.HandleFunc("GET /endpoints", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"endpoints":[{"id":"compute","address":"compute.invalid:443"},{"id":"iam","address":%q},{"id":"kms-crypto","address":%q}]}`, r.Host, r.Host)
	})
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.calls[r.URL.Path]++
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

func writeKey(t *testing.T, private *rsa.PrivateKey) string {
	t.Helper()
	text, err := json.Marshal(map[string]string{
		"id": "aje-key", "service_account_id": "aje-account", "key_algorithm": "RSA_2048",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)})),
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (f *fakeYandex) clock() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

// set changes what the fake does next.
func (f *fakeYandex) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeYandex) count(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[path]
}

func refuse(w http.ResponseWriter, status, code int, message string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"code":%d,"message":%q,"details":[]}`, code, message)
}

func (f *fakeYandex) newToken() string {
	token := "t1." + rand.Text()
	f.tokens[token] = f.now.Add(tokenLife)
	return token
}

func (f *fakeYandex) iam(w http.ResponseWriter, r *http.Request) {
	var in struct{ JWT string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		refuse(w, http.StatusBadRequest, 3, "no JSON")
		return
	}
	if err := f.verify(in.JWT); err != nil {
		refuse(w, http.StatusUnauthorized, 16, "the JWT is invalid: "+err.Error())
		return
	}
	fmt.Fprintf(w, `{"iamToken":%q,"expiresAt":%q}`, f.newToken(), f.now.Add(tokenLife).Format(time.RFC3339Nano))
}

// verify checks signature and claims with the standard library alone.
func (f *fakeYandex) verify(signed string) error {
	head, rest, _ := strings.Cut(signed, ".")
	claims, signature, _ := strings.Cut(rest, ".")
	sum := sha256.Sum256([]byte(head + "." + claims))
	raw, err := base64.RawURLEncoding.DecodeString(signature)
	if err != nil {
		return err
	}
	if err := rsa.VerifyPSS(f.public, crypto.SHA256, sum[:], raw, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}); err != nil {
		return err
	}
	var h struct{ Alg, Kid string }
	var c struct {
		Iss, Aud string
		Iat, Exp int64
	}
	for text, into := range map[string]any{head: &h, claims: &c} {
		raw, err := base64.RawURLEncoding.DecodeString(text)
		if err == nil {
			err = json.Unmarshal(raw, into)
		}
		if err != nil {
			return err
		}
	}
	if h.Alg != "PS256" || h.Kid != "aje-key" || c.Iss != "aje-account" || c.Aud != "https://iam.api.cloud.yandex.net/iam/v1/tokens" ||
		c.Iat > f.now.Unix() || c.Exp <= f.now.Unix() || c.Exp > c.Iat+3600 {
		return fmt.Errorf("%+v %+v", h, c)
	}
	return nil
}

func (f *fakeYandex) metadata(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Metadata-Flavor") != "Google" {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	fmt.Fprintf(w, `{"access_token":%q,"expires_in":%d,"token_type":"Bearer"}`, f.newToken(), int(tokenLife.Seconds()))
}

func (f *fakeYandex) kms(w http.ResponseWriter, r *http.Request) {
	if len(f.answers) > 0 {
		status := f.answers[0]
		f.answers = f.answers[1:]
		if status == 0 { // the connection breaks
			panic(http.ErrAbortHandler)
		}
		refuse(w, status, 14, "made by the test")
		return
	}
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if end, ok := f.tokens[token]; !ok || !f.now.Before(end) {
		refuse(w, http.StatusUnauthorized, 16, "The token has expired")
		return
	}
	key, verb, _ := strings.Cut(r.PathValue("call"), ":")
	switch {
	case key != yandexKeyID:
		refuse(w, http.StatusNotFound, 5, "Symmetric key not found")
		return
	case !f.role:
		refuse(w, http.StatusForbidden, 7, "Permission denied")
		return
	}
	var in struct{ Plaintext, Ciphertext []byte }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		refuse(w, http.StatusBadRequest, 3, "no JSON")
		return
	}
	switch {
	case verb == "encrypt" && len(in.Plaintext) == 32:
		blob := make([]byte, 97)
		_, _ = rand.Read(blob)
		f.secrets[string(blob)] = in.Plaintext
		_ = json.NewEncoder(w).Encode(map[string]any{"keyId": key, "versionId": "1", "ciphertext": blob})
	case verb == "decrypt" && f.secrets[string(in.Ciphertext)] != nil:
		_ = json.NewEncoder(w).Encode(map[string]any{"keyId": key, "versionId": "1", "plaintext": f.secrets[string(in.Ciphertext)]})
	default:
		refuse(w, http.StatusBadRequest, 3, "Invalid ciphertext")
	}
}

func (f *fakeYandex) service(t *testing.T, o seal.YandexKeyOptions) seal.KeyService {
	t.Helper()
	if o.Key == "" {
		o.Key = yandexKeyID
	}
	y := kms.YandexOptions{Client: f.client, MetadataURL: f.URL + "/metadata", Now: f.clock, FirstPause: time.Millisecond}
	if o.Endpoint == "" {
		y.URL, y.TokensURL = f.URL, f.URL+"/iam/v1/tokens"
	}
	s, err := kms.NewYandex(o, y)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func seals(t *testing.T, s seal.Sealer, data []byte) []byte {
	t.Helper()
	var object bytes.Buffer
	w, err := s.Seal(t.Context(), &object)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return object.Bytes()
}

func opens(t *testing.T, s seal.Sealer, object []byte) ([]byte, error) {
	t.Helper()
	r, err := s.Open(t.Context(), bytes.NewReader(object))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// TestYandex: each way to a token and to the service seals what the others
// open.
func TestYandex(t *testing.T) {
	t.Parallel()
	f := newFakeYandex(t)
	data := bytes.Repeat([]byte("walherd "), 25_000)
	ways := map[string]seal.YandexKeyOptions{
		"key":      {ServiceAccountFile: f.file},
		"machine":  {},
		"endpoint": {ServiceAccountFile: f.file, Endpoint: f.URL},
	}
	objects := map[string][]byte{}
	for name, o := range ways {
		objects[name] = seals(t, seal.NewYandexKMS(f.service(t, o)), data)
	}
	for name, o := range ways {
		s := seal.NewYandexKMS(f.service(t, o))
		if want := "Yandex KMS, key " + yandexKeyID; s.Describe() != want {
			t.Errorf("described as %s", s.Describe())
		}
		for from, object := range objects {
			if got, err := opens(t, s, object); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s opens %d bytes of what %s sealed: %v", name, len(got), from, err)
			}
		}
	}
	object := objects["key"]
	if !bytes.HasPrefix(object, []byte("yckms\x01\x61\x00\x00\x00")) {
		t.Errorf("the object begins with %q", object[:16])
	}
	object[20] ^= 1
	if _, err := opens(t, seal.NewYandexKMS(f.service(t, ways["key"])), object); !errors.Is(err, seal.ErrWrongKey) {
		t.Errorf("another ciphertext: %v, want ErrWrongKey", err)
	}
}

// TestYandexToken: one token serves many calls, and is replaced in time, or
// when the service refuses it.
func TestYandexToken(t *testing.T) {
	t.Parallel()
	f := newFakeYandex(t)
	s := f.service(t, seal.YandexKeyOptions{ServiceAccountFile: f.file})
	wrap := func() error { _, err := s.Wrap(t.Context(), make([]byte, 32)); return err }
	want := func(n int) {
		t.Helper()
		if err := wrap(); err != nil {
			t.Error(err)
		}
		if got := f.count("/iam/v1/tokens"); got != n {
			t.Errorf("%d tokens were asked for, want %d", got, n)
		}
	}
	want(1)
	want(1)
	f.set(func() { f.now = f.now.Add(13 * time.Hour) })
	want(2)
	f.set(func() { clear(f.tokens) }) // revoked
	want(3)
	// A service that refuses every token is not asked for ever.
	before := f.count("/kms/v1/keys/" + yandexKeyID + ":encrypt")
	f.set(func() { f.answers = []int{401, 401, 401, 401} })
	if err := wrap(); err == nil || !strings.Contains(err.Error(), "clock") {
		t.Errorf("refused tokens: %v", err)
	}
	if n := f.count("/kms/v1/keys/"+yandexKeyID+":encrypt") - before; n != 2 {
		t.Errorf("called %d times, want 2", n)
	}
}

func TestYandexRetries(t *testing.T) {
	t.Parallel()
	f := newFakeYandex(t)
	s := f.service(t, seal.YandexKeyOptions{ServiceAccountFile: f.file})
	path := "/kms/v1/keys/" + yandexKeyID + ":encrypt"
	f.set(func() { f.answers = []int{500, 503, 0, 429, 504} })
	if _, err := s.Wrap(t.Context(), make([]byte, 32)); err != nil || f.count(path) != 6 {
		t.Errorf("after what passes: %v, %d calls", err, f.count(path))
	}
	f.set(func() { f.answers = slices.Repeat([]int{500}, 20) })
	if _, err := s.Wrap(t.Context(), make([]byte, 32)); err == nil || !strings.Contains(err.Error(), "made by the test") || f.count(path) != 6+8 {
		t.Errorf("a service that is away: %v, %d calls", err, f.count(path))
	}
	f.set(func() { f.answers = nil })

	// What a person must mend is asked once.
	for name, c := range map[string]struct {
		spoil func()
		key   string
		hint  string
	}{
		"role": {func() { f.role = false }, "", "kms.keys.encrypterDecrypter"},
		"key":  {func() {}, "abjother", "check its id"},
	} {
		f.set(func() { f.role = true; clear(f.calls); c.spoil() })
		s := f.service(t, seal.YandexKeyOptions{ServiceAccountFile: f.file, Key: c.key})
		_, err := s.Wrap(t.Context(), make([]byte, 32))
		if err == nil || !strings.Contains(err.Error(), c.hint) {
			t.Errorf("%s: %v; want a hint about %q", name, err, c.hint)
		}
		if n := f.count("/kms/v1/keys/" + yandexKeyID + ":encrypt"); c.key == "" && n != 1 {
			t.Errorf("%s: called %d times", name, n)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Wrap(ctx, make([]byte, 32)); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}
}

func TestYandexWrongKey(t *testing.T) {
	t.Parallel()
	f := newFakeYandex(t)
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s := f.service(t, seal.YandexKeyOptions{ServiceAccountFile: writeKey(t, private)})
	if _, err := s.Wrap(t.Context(), make([]byte, 32)); err == nil || !strings.Contains(err.Error(), "aje-key") || f.count("/iam/v1/tokens") != 1 {
		t.Errorf("a key that IAM does not know: %v (asked %d times)", err, f.count("/iam/v1/tokens"))
	}
	bad := filepath.Join(t.TempDir(), "secret.json")
	if err := os.WriteFile(bad, []byte(`{"id":"a"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for hint, o := range map[string]seal.YandexKeyOptions{
		"no such file":            {Key: "abj", ServiceAccountFile: bad + "x"},
		"no private_key":          {Key: "abj", ServiceAccountFile: bad},
		"id of a symmetric key":   {},
		"id of a symmetric key, ": {Key: "../abj"},
		"want host[:port]":        {Key: "abj", Endpoint: "http://api.cloud.yandex.net"},
	} {
		if _, err := kms.NewYandex(o, kms.YandexOptions{}); err == nil || !strings.Contains(err.Error(), hint) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: %v; want %q", o, err, hint)
		}
	}
}
