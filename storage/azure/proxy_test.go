package azure_test

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
)

// fault is what the proxy does to one request.
type fault int

const (
	pass   fault = iota
	fail         // answers 500 by itself
	busy         // answers 503 ServerBusy by itself, with a Retry-After
	reset        // cuts the connection after some of the request's body
	lose         // lets the store do it, then cuts the connection
	damage       // changes a byte of the request's body
	stall        // never answers
	cut          // cuts the answer's body in its middle
	freeze       // stops in the middle of the answer's body
)

// proxy is an HTTP proxy in front of the server that spoils requests as a
// script tells it to.
type proxy struct {
	*httptest.Server
	requests atomic.Int64
	closing  chan struct{}
}

func newProxy(t testing.TB, backend string, script func(*http.Request) fault) *proxy {
	t.Helper()
	target, err := url.Parse(backend)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{closing: make(chan struct{})}
	back := &http.Transport{MaxIdleConnsPerHost: 64}
	forward := &httputil.ReverseProxy{
		Transport:    back,
		ErrorLog:     log.New(io.Discard, "", 0),
		Rewrite:      func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host },
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.requests.Add(1)
		p.spoil(w, r, script(r), forward)
	}))
	p.Config.ErrorLog = log.New(io.Discard, "", 0)
	p.Start()
	t.Cleanup(func() {
		close(p.closing)
		p.Server.CloseClientConnections()
		p.Server.Close()
		back.CloseIdleConnections()
	})
	return p
}

func (p *proxy) spoil(w http.ResponseWriter, r *http.Request, f fault, forward http.Handler) {
	switch f {
	case pass:
		forward.ServeHTTP(w, r)
	case fail:
		http.Error(w, "made by the test", http.StatusInternalServerError)
	case busy:
		w.Header().Set("x-ms-error-code", "ServerBusy")
		w.Header().Set("x-ms-retry-after-ms", "3")
		w.WriteHeader(http.StatusServiceUnavailable)
	case reset:
		io.CopyN(io.Discard, r.Body, 100_000)
		abort(w)
	case lose:
		forward.ServeHTTP(httptest.NewRecorder(), r)
		abort(w)
	case damage:
		// Azurite refuses it with another code than Azure.
		r.Body = &damaged{ReadCloser: r.Body}
		rec := httptest.NewRecorder()
		forward.ServeHTTP(rec, r)
		if rec.Code == http.StatusBadRequest {
			w.Header().Set("x-ms-error-code", "Md5Mismatch")
		}
		w.WriteHeader(rec.Code)
	case stall:
		p.wait(r)
	case cut, freeze:
		rec := httptest.NewRecorder()
		forward.ServeHTTP(rec, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
		w.(http.Flusher).Flush()
		if f == freeze {
			p.wait(r)
		}
		abort(w)
	}
}

func (p *proxy) wait(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-p.closing:
	}
}

type damaged struct {
	io.ReadCloser
	done bool
}

func (d *damaged) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if n > 0 && !d.done {
		p[0] ^= 1
		d.done = true
	}
	return n, err
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

const always = 1 << 40

func comp(r *http.Request) string { return r.URL.Query().Get("comp") }

func isPut(r *http.Request) bool    { return r.Method == http.MethodPut && comp(r) == "" }
func isBlock(r *http.Request) bool  { return r.Method == http.MethodPut && comp(r) == "block" }
func isCommit(r *http.Request) bool { return r.Method == http.MethodPut && comp(r) == "blocklist" }
func isGet(r *http.Request) bool {
	return r.Method == http.MethodGet && comp(r) == "" && strings.Count(r.URL.Path, "/") > 2
}
func never(*http.Request) fault { return pass }
