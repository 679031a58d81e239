package swift

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	ncw "github.com/ncw/swift/v2"
)

// never is for the library's own timeouts. They give up while the request and
// the read of the caller's buffer go on behind them, and the one for an answer
// without a body begins when the connection does: 10 s for a manifest of a
// thousand segments. transport keeps the limits instead.
const never = 10 * 365 * 24 * time.Hour

func newConnection(o *Options) (*ncw.Connection, *transport, error) {
	s := settings(o.Settings)
	base := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: o.ConnectTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   o.ConnectTimeout,
		ExpectContinueTimeout: time.Second,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       90 * time.Second,
		WriteBufferSize:       64 << 10,
		ReadBufferSize:        64 << 10,
		// Of a store that compresses, the length and the sum are not ours.
		DisableCompression: true,
	}
	if path := s[caFile]; path != "" {
		pem, err := readCAs(path)
		if err != nil {
			return nil, nil, err
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, nil, fmt.Errorf("read the certificate authorities: %s holds no PEM certificate: correct OS_CACERT", path)
		}
		base.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	t := &transport{base: base, stall: o.StallTimeout, small: int64(o.BufferSize)}
	c := &ncw.Connection{
		Transport: t, UserAgent: "walherd", Timeout: never, ConnectTimeout: never,
		// One: for a token that ended. See also Bucket.again.
		Retries: 1,
	}
	if s["GOSWIFT_USER_AGENT"] != "" {
		c.UserAgent = ""
	}
	if err := s.apply(c); err != nil {
		return nil, nil, err
	}
	return c, t, nil
}

// transport ends requests in which nothing moves.
type transport struct {
	base  *http.Transport
	stall time.Duration
	small int64
}

// CloseIdleConnections is what the library calls when it gets a new token.
func (t *transport) CloseIdleConnections() { t.base.CloseIdleConnections() }

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	w := newWatch(t.stall, cancel)
	req = req.Clone(ctx)
	if req.ContentLength > 0 && req.ContentLength <= t.small {
		// A body that can be sent again is not worth asking first.
		req.Header.Del("Expect")
	}
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &sent{ReadCloser: req.Body, watch: w}
	}
	w.start()
	resp, err := t.base.RoundTrip(req)
	if err != nil {
		w.end()
		cancel(nil)
		return nil, w.explain(err)
	}
	w.stop()
	resp.Body = &received{rc: resp.Body, watch: w, cancel: cancel}
	return resp, nil
}

var errStalled = errors.New("no byte moved")

// watch is a timer that runs while the other side has to do something.
type watch struct {
	limit time.Duration
	timer *time.Timer

	mu    sync.Mutex
	over  bool
	stale bool
}

func newWatch(limit time.Duration, cancel context.CancelCauseFunc) *watch {
	w := &watch{limit: limit}
	w.timer = time.AfterFunc(limit, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.over {
			w.stale = true
			cancel(errStalled)
		}
	})
	w.timer.Stop()
	return w
}

func (w *watch) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		w.timer.Reset(w.limit)
	}
}

func (w *watch) stop() { w.timer.Stop() }

func (w *watch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.timer.Stop()
}

func (w *watch) explain(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stale && err != io.EOF {
		return fmt.Errorf("%w for %v (GOSWIFT_TIMEOUT)", errStalled, w.limit)
	}
	return err
}

// sent is a request's body. The time our own content takes does not count.
type sent struct {
	io.ReadCloser
	watch *watch
}

func (s *sent) Read(p []byte) (int, error) {
	s.watch.stop()
	defer s.watch.start()
	return s.ReadCloser.Read(p)
}

// received is an answer's body. The time between reads does not count.
type received struct {
	rc     io.ReadCloser
	watch  *watch
	cancel context.CancelCauseFunc
}

func (r *received) Read(p []byte) (int, error) {
	r.watch.start()
	n, err := r.rc.Read(p)
	r.watch.stop()
	if err != nil {
		err = r.watch.explain(err)
	}
	return n, err
}

// Close cuts the connection when the body was not read to its end.
func (r *received) Close() error {
	r.watch.end()
	r.cancel(nil)
	return r.rc.Close()
}
