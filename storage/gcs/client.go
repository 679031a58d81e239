package gcs

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	// answerLimit bounds the answers that are read whole: a page of a
	// thousand names of a kilobyte is below two MiB.
	answerLimit = 16 << 20
	// patienceLimit bounds what Retry-After can ask for.
	patienceLimit = 10 * time.Minute

	userAgent = "walherd"
)

// newTransport speaks HTTP/1.1 only: over HTTP/2 all transfers to a host share
// one connection, its congestion window and its fate.
func newTransport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	t.ForceAttemptHTTP2 = false
	t.MaxIdleConnsPerHost = 64
	t.MaxIdleConns = 128
	t.WriteBufferSize = 64 << 10
	t.ReadBufferSize = 64 << 10
	return t
}

// request is one request, which may take several tries.
type request struct {
	method string
	url    string
	header http.Header
	// secret adds the encryption key.
	secret bool
	// body makes what each try sends, of size bytes; nil sends nothing. Each
	// try has its own, since net/http may still read that of a try that has
	// failed.
	body func(touch func()) io.ReadCloser
	size int64
	// into is where the JSON of a good answer goes; nil ignores it.
	into any
	// unfinished takes 308 as a good answer, without JSON.
	unfinished bool
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	tries  int
}

// do sends a request until it is answered, for as long as Options.Timeout
// allows.
func (b *Bucket) do(ctx context.Context, r *request) (answer, error) {
	ctx, cancel := b.limited(ctx)
	defer cancel()
	t := b.newTries()
	for {
		a, err := b.once(ctx, r)
		a.tries = t.failed + 1
		if err == nil {
			return a, nil
		}
		if err := t.Again(ctx, err); err != nil {
			return a, err
		}
	}
}

// limited is ctx with the limit of one operation. That is no deadline of the
// caller's: its error says so.
func (b *Bucket) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, b.opt.Timeout, &timeoutError{b.opt.Timeout})
}

type timeoutError struct{ after time.Duration }

func (e *timeoutError) Error() string {
	return fmt.Sprintf("no success within %s: look at the network, or raise GCS_CONTEXT_TIMEOUT", e.after)
}

// once is a single try whose answer is read whole.
func (b *Bucket) once(ctx context.Context, r *request) (answer, error) {
	res, c, err := b.send(ctx, r)
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	a := answer{status: res.StatusCode, header: res.Header}
	data, err := io.ReadAll(io.LimitReader(c, answerLimit+1))
	switch {
	case err != nil:
		return a, c.explain(err)
	case len(data) > answerLimit:
		return a, fmt.Errorf("the store's answer has more than %d bytes", answerLimit)
	case res.StatusCode == http.StatusPermanentRedirect && r.unfinished:
		return a, nil
	case res.StatusCode/100 != 2:
		return a, newAPIError(res, data)
	case r.into == nil:
		return a, nil
	}
	if err := json.Unmarshal(data, r.into); err != nil {
		return a, fmt.Errorf("the store answers %q: %w", res.Status, &badAnswerError{err})
	}
	return a, nil
}

// badAnswerError is an answer that cannot be read: as good as a lost one.
type badAnswerError struct{ err error }

func (e *badAnswerError) Error() string { return "it cannot be read: " + e.err.Error() }
func (e *badAnswerError) Unwrap() error { return e.err }

// send is a single try; the caller closes the connection.
func (b *Bucket) send(ctx context.Context, r *request) (*http.Response, *conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, r.method, r.url, nil)
	if err != nil {
		cancel(nil)
		return nil, nil, err
	}
	for name, values := range r.header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", userAgent)
	if r.secret {
		b.addKey(req.Header)
	}
	if b.tokens != nil {
		token, err := b.tokens.Token()
		if err != nil {
			cancel(nil)
			return nil, nil, &tokenError{err}
		}
		token.SetAuthHeader(req)
	}
	c := newConn(cancel, b.opt.StallTimeout)
	if r.body != nil {
		body := r.body(c.touch)
		// A body is over when its try is: the memory goes to others.
		defer body.Close()
		req.Body, req.ContentLength = body, r.size
		if r.size == 0 {
			req.Body = http.NoBody
		}
	}
	c.touch()
	res, err := b.client.Do(req)
	if err != nil {
		c.Close()
		return nil, nil, c.explain(shorten(err))
	}
	c.watch.Stop()
	c.rc = res.Body
	return res, c, nil
}

// addKey is how a customer's own key is told:
// https://cloud.google.com/storage/docs/encryption/using-customer-supplied-keys
func (b *Bucket) addKey(h http.Header) {
	if b.opt.EncryptionKey == nil {
		return
	}
	sum := sha256.Sum256(b.opt.EncryptionKey)
	h.Set("X-Goog-Encryption-Algorithm", "AES256")
	h.Set("X-Goog-Encryption-Key", base64.StdEncoding.EncodeToString(b.opt.EncryptionKey))
	h.Set("X-Goog-Encryption-Key-Sha256", base64.StdEncoding.EncodeToString(sum[:]))
}

// conn is one exchange and its answer's body. It ends when nothing moves.
type conn struct {
	rc     io.ReadCloser // nil before the answer
	cancel context.CancelCauseFunc
	stall  time.Duration
	watch  *time.Timer
	stale  atomic.Bool
}

func newConn(cancel context.CancelCauseFunc, stall time.Duration) *conn {
	c := &conn{cancel: cancel, stall: stall}
	c.watch = time.AfterFunc(stall, func() {
		c.stale.Store(true)
		cancel(errStalled)
	})
	return c
}

var errStalled = errors.New("stalled")

// touch tells that a byte moved.
func (c *conn) touch() { c.watch.Reset(c.stall) }

func (c *conn) Read(p []byte) (int, error) {
	c.touch()
	n, err := c.rc.Read(p)
	c.watch.Stop()
	if err != nil && err != io.EOF {
		err = c.explain(err)
	}
	return n, err
}

// explain names the stall behind an error.
func (c *conn) explain(err error) error {
	if c.stale.Load() {
		return &stalledError{after: c.stall}
	}
	return err
}

// Close ends the exchange, also while a Read waits.
func (c *conn) Close() error {
	c.watch.Stop()
	c.cancel(nil)
	if c.rc == nil {
		return nil
	}
	return c.rc.Close()
}

type stalledError struct{ after time.Duration }

func (e *stalledError) Error() string { return fmt.Sprintf("no byte moved for %s", e.after) }

// tries counts the tries of one request and pauses between them.
type tries struct {
	b      *Bucket
	failed int
	pauses backoff.ExponentialBackOff
}

func (b *Bucket) newTries() *tries {
	t := &tries{b: b}
	t.Reset()
	return t
}

// Reset starts the count anew: something got further.
func (t *tries) Reset() {
	t.failed = 0
	t.pauses = backoff.ExponentialBackOff{
		InitialInterval:     t.b.opt.MinRetryDelay,
		RandomizationFactor: 0.5,
		Multiplier:          2,
		MaxInterval:         t.b.opt.MaxRetryDelay,
	}
	t.pauses.Reset()
}

// Again takes a failure and pauses: nil is another try, else the request ends
// with the error.
func (t *tries) Again(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ended(ctx, err)
	}
	if !passes(err) {
		return err
	}
	t.failed++
	if t.failed > t.b.opt.MaxRetries {
		if t.failed > 1 {
			err = fmt.Errorf("%w (tried %d times)", err, t.failed)
		}
		return err
	}
	pause := t.pauses.NextBackOff()
	var api *apiError
	if errors.As(err, &api) {
		pause = max(pause, min(api.after, patienceLimit))
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ended(ctx, err)
	}
}

// ended is the error of a context that ended after err. What net/http makes of
// it is told but not wrapped: our own limit is no deadline of the caller's.
func ended(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if errors.Is(err, cause) {
		return cause
	}
	return fmt.Errorf("%w (after: %s)", cause, err)
}

// retryAfter reads the header of that name, which is seconds or a date.
func retryAfter(res *http.Response) time.Duration {
	value := res.Header.Get("Retry-After")
	if seconds, err := strconv.Atoi(value); err == nil && seconds > 0 {
		return time.Duration(min(seconds, int(patienceLimit/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		now, err := http.ParseTime(res.Header.Get("Date"))
		if err != nil {
			now = time.Now()
		}
		return max(at.Sub(now), 0)
	}
	return 0
}
