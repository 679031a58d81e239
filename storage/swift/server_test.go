package swift_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ncw "github.com/ncw/swift/v2"
	"github.com/ncw/swift/v2/swifttest"

	"github.com/walherd/walherd/storage/swift"
)

// fake is the library's in-memory server, made to behave as Swift does where
// it does not: it answers ranges with 200 (and panics behind the end), ignores
// If-Match and If-None-Match: *, mixes the metadata of an object with that of
// the one it replaces (a plain object after a large one stays "large"), checks
// a manifest's ETag against the JSON, does not unquote names in bulk deletions
// and does not tell that it has them, shows one endless page of a listing,
// "null" for an empty one, and has data races.
type fake struct {
	backend *swifttest.SwiftServer
	client  *http.Client
	page    int // entries of a listing
	noSLO   bool

	mu sync.RWMutex
}

func newFake(t testing.TB) *fake {
	t.Helper()
	backend, err := swifttest.NewSwiftServer("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		backend.Close()
	})
	return &fake{backend: backend, client: &http.Client{Transport: transport}, page: 10}
}

// ask sends a request to the backend.
func (f *fake) ask(method string, u *url.URL, h http.Header, body []byte) (*httptest.ResponseRecorder, error) {
	req, err := http.NewRequest(method, "http://"+f.backend.Listener.Addr().String()+u.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for k, v := range h {
		req.Header[k] = v
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	rec := httptest.NewRecorder()
	for k, v := range resp.Header {
		rec.Header()[k] = v
	}
	rec.WriteHeader(resp.StatusCode)
	_, err = io.Copy(rec.Body, resp.Body)
	return rec, err
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler) // the client is gone: nothing is stored
	}
	object := strings.Count(r.URL.Path, "/") >= 4
	write := r.Method != http.MethodGet && r.Method != http.MethodHead || r.URL.Path == "/v1.0"
	if write {
		f.mu.Lock()
		defer f.mu.Unlock()
	} else {
		f.mu.RLock()
		defer f.mu.RUnlock()
	}
	h := r.Header.Clone()
	for _, k := range []string{"Range", "If-Match", "If-None-Match", "Connection", "Expect"} {
		h.Del(k)
	}
	ask := func(method string) *httptest.ResponseRecorder {
		rec, err := f.ask(method, r.URL, h, body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		return rec
	}
	switch {
	case r.URL.Query().Has("bulk-delete"):
		f.bulkDelete(w, r, h, body)
		return
	case r.Method == http.MethodPut && object:
		if r.Header.Get("If-None-Match") == "*" && ask(http.MethodHead).Code == http.StatusOK {
			http.Error(w, "precondition", http.StatusPreconditionFailed)
			return
		}
		if sum := h.Get("Etag"); sum != "" && r.URL.Query().Has("multipart-manifest") {
			var list []struct{ ETag string }
			json.Unmarshal(body, &list)
			own := md5.New()
			for _, s := range list {
				io.WriteString(own, s.ETag)
			}
			if hex.EncodeToString(own.Sum(nil)) != sum {
				http.Error(w, "etag", http.StatusUnprocessableEntity)
				return
			}
			h.Del("Etag")
		}
		if sum, own := h.Get("Etag"), md5.Sum(body); sum != "" && sum != hex.EncodeToString(own[:]) {
			http.Error(w, "etag", http.StatusUnprocessableEntity)
			return
		}
		plain := *r.URL
		plain.RawQuery = ""
		if _, err := f.ask(http.MethodDelete, &plain, h, nil); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	rec := ask(r.Method)
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	answer := rec.Body.Bytes()
	switch {
	case object && r.Method == http.MethodGet && rec.Code == http.StatusOK:
		w.Header().Del("Content-Length")
		w.Header().Set("Etag", `"`+strings.Trim(rec.Header().Get("Etag"), `"`)+`"`)
		at, _ := http.ParseTime(rec.Header().Get("Last-Modified"))
		http.ServeContent(w, r, "", at, bytes.NewReader(answer))
		return
	case r.URL.Path == "/info":
		var info map[string]any
		json.Unmarshal(answer, &info)
		info["bulk_delete"] = map[string]int{"max_deletes_per_request": 5}
		if f.noSLO {
			delete(info, "slo")
		}
		answer, _ = json.Marshal(info)
		w.Header().Del("Content-Length")
	case r.URL.Query().Get("format") == "json" && rec.Code == http.StatusOK:
		entries := []json.RawMessage{}
		json.Unmarshal(answer, &entries)
		if entries == nil {
			entries = []json.RawMessage{}
		}
		answer, _ = json.Marshal(entries[:min(len(entries), f.page)])
		w.Header().Del("Content-Length")
	}
	w.WriteHeader(rec.Code)
	w.Write(answer)
}

func (f *fake) bulkDelete(w http.ResponseWriter, r *http.Request, h http.Header, body []byte) {
	h.Del("Content-Type")
	account := *r.URL
	account.RawQuery = ""
	gone, missed := 0, 0
	for line := range strings.Lines(string(body)) {
		u, err := url.Parse(account.EscapedPath() + strings.TrimSpace(line))
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		rec, err := f.ask(http.MethodDelete, u, h, nil)
		switch {
		case err != nil:
			panic(http.ErrAbortHandler)
		case rec.Code == http.StatusUnauthorized:
			http.Error(w, "token", http.StatusUnauthorized)
			return
		case rec.Code == http.StatusNotFound:
			missed++
		default:
			gone++
		}
	}
	status := "200 OK"
	if gone == 0 {
		status = "404 Not Found"
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"Number Deleted": gone, "Number Not Found": missed, "Response Status": status, "Errors": [][]string{}})
}

// fault is what the front does to one request.
type fault int

const (
	pass    fault = iota
	fail503       // answers by itself
	reset         // cuts the connection after some of the request's body
	lose          // lets the store do it, then cuts the connection
	stall         // never answers
	cut           // cuts the answer's body in its middle
	shorten       // tells and sends only half of the answer's body
	freeze        // stops in the middle of the answer's body
	damage        // stores a body with a flipped bit
	expire        // answers as to a token that has ended
	forbid        // 403
	full          // 413
)

// server is a Swift with an account of ours, behind a front that spoils
// requests as a script tells it to.
type server struct {
	*httptest.Server
	user, key string
	script    atomic.Pointer[func(*http.Request) fault]
	requests  atomic.Int64
	auths     atomic.Int64
	closing   chan struct{}
	fake      *fake // nil: a real one
}

// start starts the in-memory server; or, when real is set, a front of the
// Swift at WALHERD_TEST_SWIFT_AUTH (version 1, http), whose user and key are
// in WALHERD_TEST_SWIFT_USER and _KEY.
func start(t testing.TB, real bool) *server {
	t.Helper()
	s := &server{closing: make(chan struct{})}
	var store http.Handler
	if auth := os.Getenv("WALHERD_TEST_SWIFT_AUTH"); real {
		if auth == "" {
			t.Skip("WALHERD_TEST_SWIFT_AUTH is not set")
		}
		s.user, s.key = os.Getenv("WALHERD_TEST_SWIFT_USER"), os.Getenv("WALHERD_TEST_SWIFT_KEY")
		target, err := url.Parse(auth)
		if err != nil {
			t.Fatal(err)
		}
		back := &http.Transport{MaxIdleConnsPerHost: 64, ExpectContinueTimeout: time.Second}
		t.Cleanup(back.CloseIdleConnections)
		store = &httputil.ReverseProxy{
			Transport: back, ErrorLog: log.New(io.Discard, "", 0), FlushInterval: -1,
			Rewrite: func(r *httputil.ProxyRequest) {
				r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = target.Scheme, target.Host, target.Host
				if r.In.URL.Path == "/v1.0" {
					r.Out.URL.Path = target.Path
				}
			},
			ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		}
	} else {
		s.user, s.key = swifttest.TEST_ACCOUNT, swifttest.TEST_ACCOUNT
		s.fake = newFake(t)
		store = s.fake
	}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		f := pass
		if script := s.script.Load(); script != nil {
			f = (*script)(r)
		}
		if r.URL.Path == "/v1.0" {
			s.auths.Add(1)
			if f == pass {
				w = &homeward{ResponseWriter: w, server: s}
			}
		}
		s.spoil(w, r, f, store)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(func() {
		close(s.closing)
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// homeward makes the storage URL of an answer lead to the front.
type homeward struct {
	http.ResponseWriter
	server *server
}

func (h *homeward) WriteHeader(code int) {
	if u, err := url.Parse(h.Header().Get("X-Storage-Url")); err == nil && u.Path != "" {
		h.Header().Set("X-Storage-Url", h.server.URL+u.Path)
	}
	h.ResponseWriter.WriteHeader(code)
}

func (s *server) do(script func(*http.Request) fault) { s.script.Store(&script) }

func (s *server) spoil(w http.ResponseWriter, r *http.Request, f fault, store http.Handler) {
	switch f {
	case pass:
		store.ServeHTTP(w, r)
	case fail503:
		http.Error(w, "made by the test", http.StatusServiceUnavailable)
	case expire:
		http.Error(w, "made by the test", http.StatusUnauthorized)
	case forbid:
		http.Error(w, "<html><h1>Forbidden</h1></html>", http.StatusForbidden)
	case full:
		http.Error(w, "made by the test", http.StatusRequestEntityTooLarge)
	case reset:
		io.CopyN(io.Discard, r.Body, 100_000)
		abort(w)
	case lose:
		store.ServeHTTP(httptest.NewRecorder(), r)
		abort(w)
	case stall:
		select {
		case <-r.Context().Done():
		case <-s.closing:
		}
	case damage:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if len(body) > 0 {
			body[len(body)/2] ^= 1
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		store.ServeHTTP(w, r)
	default:
		rec := httptest.NewRecorder()
		store.ServeHTTP(rec, r)
		s.spoilAnswer(w, r, f, rec)
	}
}

func (s *server) spoilAnswer(w http.ResponseWriter, r *http.Request, f fault, rec *httptest.ResponseRecorder) {
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	body := rec.Body.Bytes()
	half := body[:len(body)/2]
	if f == shorten {
		w.Header().Set("Content-Length", strconv.Itoa(len(half)))
	}
	w.WriteHeader(rec.Code)
	w.Write(half)
	if f == shorten {
		return
	}
	w.(http.Flusher).Flush()
	if f == freeze {
		select {
		case <-r.Context().Done():
		case <-s.closing:
		}
	}
	abort(w)
}

// abort resets the connection.
func abort(w http.ResponseWriter) {
	c, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}

// times spoils the first n requests that are of a kind.
func times(n int64, f fault, is func(*http.Request) bool) func(*http.Request) fault {
	var left atomic.Int64
	left.Store(n)
	return func(r *http.Request) fault {
		if is(r) && left.Add(-1) >= 0 {
			return f
		}
		return pass
	}
}

func isObject(r *http.Request) bool { return strings.Count(r.URL.Path, "/") >= 4 }
func isSegment(r *http.Request) bool {
	return r.Method == http.MethodPut && isObject(r) && strings.Contains(r.URL.Path, "_segments/")
}
func isManifest(r *http.Request) bool {
	return r.Method == http.MethodPut && r.URL.Query().Has("multipart-manifest")
}
func isPut(r *http.Request) bool    { return r.Method == http.MethodPut && isObject(r) }
func isGet(r *http.Request) bool    { return r.Method == http.MethodGet && isObject(r) }
func isHead(r *http.Request) bool   { return r.Method == http.MethodHead && isObject(r) }
func isDelete(r *http.Request) bool { return r.Method == http.MethodDelete }

// connection is the library's own, to prepare and look at what a test needs.
func (s *server) connection(t testing.TB) *ncw.Connection {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &ncw.Connection{AuthUrl: s.URL + "/v1.0", UserName: s.user, ApiKey: s.key, Transport: transport}
}

func (s *server) settings() map[string]string {
	return map[string]string{"OS_AUTH_URL": s.URL + "/v1.0", "OS_USERNAME": s.user, "OS_PASSWORD": s.key}
}

// options are those of a fresh container on the server, with short pauses.
func (s *server) options(t testing.TB) swift.Options {
	t.Helper()
	c := s.connection(t)
	name := "t" + strings.ToLower(rand.Text())
	if err := c.ContainerCreate(t.Context(), name, nil); err != nil {
		t.Fatal(err)
	}
	if s.fake == nil {
		t.Cleanup(func() {
			ctx := context.Background()
			for _, container := range []string{name, name + "_segments"} {
				left, _ := c.ObjectNamesAll(ctx, container, nil)
				for _, object := range left {
					c.ObjectDelete(ctx, container, object)
				}
				c.ContainerDelete(ctx, container)
			}
		})
	}
	return swift.Options{
		Container: name, Prefix: "some/path", Settings: s.settings(),
		RetryDelay: time.Millisecond, StallTimeout: time.Minute,
	}
}

func open(t testing.TB, opt swift.Options) *swift.Bucket {
	t.Helper()
	b, err := swift.Open(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// segments are the objects left in the container of segments.
func (s *server) segments(t testing.TB, opt swift.Options) []string {
	t.Helper()
	names, err := s.connection(t).ObjectNames(t.Context(), opt.Container+"_segments", nil)
	if err != nil && err != ncw.ContainerNotFound {
		if e, ok := err.(*ncw.Error); !ok || e.StatusCode != http.StatusNotFound {
			names = nil // no such container
		}
	}
	return names
}
