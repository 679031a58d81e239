package s3_test

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fault is what the proxy does to one request.
type fault int

const (
	pass        fault = iota
	fail500           // answers by itself
	slowDown          // answers 503 SlowDown by itself
	reset             // cuts the connection after some of the request's body
	lose              // lets the store do it, then cuts the connection
	stall             // never answers
	cut               // cuts the answer's body in its middle
	shorten           // tells and sends only half of the answer's body
	lengthen          // tells more bytes than it sends
	dribble           // sends the answer's body in small pieces
	freeze            // stops in the middle of the answer's body
	faultsCount = iota
)

// proxy is an HTTP proxy in front of a store that spoils requests as a script
// tells it to.
type proxy struct {
	*httptest.Server
	script   func(r *http.Request) fault
	requests atomic.Int64
	refused  chan struct{} // a token for each request the store did not take
	back     *http.Transport
	closing  chan struct{}

	mu   sync.Mutex
	seen []*http.Request // their headers, when remember is set

	remember bool
}

func newProxy(t testing.TB, backend string, script func(*http.Request) fault) *proxy {
	t.Helper()
	p := prepare(t, backend, script)
	p.Start()
	return p
}

func newTLSProxy(t testing.TB, backend string, script func(*http.Request) fault) *proxy {
	t.Helper()
	p := prepare(t, backend, script)
	p.StartTLS()
	return p
}

func prepare(t testing.TB, backend string, script func(*http.Request) fault) *proxy {
	target, err := url.Parse(backend)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{script: script, refused: make(chan struct{}, 1000), back: &http.Transport{MaxIdleConnsPerHost: 64}, closing: make(chan struct{})}
	forward := &httputil.ReverseProxy{
		Transport: p.back,
		ErrorLog:  log.New(io.Discard, "", 0),
		Rewrite: func(r *httputil.ProxyRequest) {
			// The host is part of the signature, so it stays.
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = target.Scheme, target.Host, r.In.Host
			r.Out.Header["X-Forwarded-For"] = nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			select {
			case p.refused <- struct{}{}:
			default:
			}
			panic(http.ErrAbortHandler)
		},
	}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.requests.Add(1)
		if p.remember {
			p.mu.Lock()
			p.seen = append(p.seen, r.Clone(r.Context()))
			p.mu.Unlock()
		}
		p.spoil(w, r, p.script(r), forward)
	}))
	p.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(func() {
		close(p.closing)
		p.Server.CloseClientConnections()
		p.Server.Close()
		p.back.CloseIdleConnections()
	})
	return p
}

func (p *proxy) headers(method string) []*http.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []*http.Request
	for _, r := range p.seen {
		if r.Method == method {
			list = append(list, r)
		}
	}
	return list
}

// refuse answers as S3 does.
func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	io.WriteString(w, "<Error><Code>"+code+"</Code><Message>made by the test</Message></Error>")
}

func (p *proxy) spoil(w http.ResponseWriter, r *http.Request, f fault, forward http.Handler) {
	switch f {
	case pass:
		forward.ServeHTTP(w, r)
	case fail500:
		refuse(w, http.StatusInternalServerError, "InternalError")
	case slowDown:
		refuse(w, http.StatusServiceUnavailable, "SlowDown")
	case reset:
		io.CopyN(io.Discard, r.Body, 100_000)
		abort(w)
	case lose:
		forward.ServeHTTP(httptest.NewRecorder(), r)
		abort(w)
	case stall:
		select {
		case <-r.Context().Done():
		case <-p.closing:
		}
	default:
		rec := httptest.NewRecorder()
		forward.ServeHTTP(rec, r)
		p.spoilAnswer(w, r, f, rec)
	}
}

func (p *proxy) spoilAnswer(w http.ResponseWriter, r *http.Request, f fault, rec *httptest.ResponseRecorder) {
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	body := rec.Body.Bytes()
	if len(body) < 2 || rec.Code >= 300 {
		w.WriteHeader(rec.Code)
		w.Write(body)
		return
	}
	half := body[:len(body)/2]
	switch f {
	case shorten:
		w.Header().Set("Content-Length", strconv.Itoa(len(half)))
		body = half
	case lengthen:
		w.Header().Set("Content-Length", strconv.Itoa(len(body)+1000))
	}
	w.WriteHeader(rec.Code)
	switch f {
	case cut, freeze:
		w.Write(half)
		w.(http.Flusher).Flush()
		if f == freeze {
			select {
			case <-r.Context().Done():
			case <-p.closing:
			}
		}
		abort(w)
	case dribble:
		for len(body) > 0 {
			n := min(len(body), 1+len(body)/20)
			w.Write(body[:n])
			w.(http.Flusher).Flush()
			body = body[n:]
		}
	default:
		w.Write(body)
	}
}

// abort resets the connection.
func abort(w http.ResponseWriter) {
	h, ok := w.(http.Hijacker)
	if !ok {
		panic(http.ErrAbortHandler)
	}
	c, _, err := h.Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}

// once spoils the first request that is of a kind.
func once(f fault, is func(*http.Request) bool) func(*http.Request) fault {
	return times(1, f, is)
}

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

func has(r *http.Request, param string) bool { return r.URL.Query().Has(param) }

func isPut(r *http.Request) bool      { return r.Method == http.MethodPut && !has(r, "partNumber") }
func isPart(r *http.Request) bool     { return r.Method == http.MethodPut && has(r, "partNumber") }
func isCreate(r *http.Request) bool   { return r.Method == http.MethodPost && has(r, "uploads") }
func isComplete(r *http.Request) bool { return r.Method == http.MethodPost && has(r, "uploadId") }
func isGet(r *http.Request) bool {
	return r.Method == http.MethodGet && !has(r, "list-type") && strings.Count(r.URL.Path, "/") > 1
}
func never(*http.Request) fault { return pass }

// stallFor is a limit that a busy machine keeps, and a short one where a fault
// is waited for.
func stallFor(f fault) time.Duration {
	if f == stall || f == freeze {
		return 500 * time.Millisecond
	}
	return time.Minute
}
