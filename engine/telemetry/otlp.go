package telemetry

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// otlp sends spans to an OTLP receiver over HTTP, in the protocol's JSON
// encoding (https://opentelemetry.io/docs/specs/otlp/).
//
// OpenTelemetry's own exporter, otlptracehttp, is not used: PostgreSQL starts
// this program once per WAL segment, traced or not, and that exporter links
// gRPC, a gateway and protobuf, whose package initialisation every start pays.
// It was 130 of 970 page faults, which on a virtual machine are 30 µs each, and
// 4 of 33 MB of the binary. The SDK, which makes spans and batches, cost nothing
// measurable and is used. The tests hold this exporter against the protocol's
// own types.
//
// How it fails: a batch that cannot be delivered is lost, which is an error of
// ExportSpans. A receiver that says it is busy is asked again, a few times
// within the context's deadline, until hurry is called; one that does not
// answer is not.
type otlp struct {
	url    string
	header http.Header
	client *http.Client
	// broken is what is wrong with the options. It costs the traces, and not
	// the command, which is why newOTLP does not return it.
	broken error

	timeout  time.Duration   // of a batch
	patience context.Context // bounds the waits between tries, not the requests
	hurry    context.CancelFunc
}

const (
	exportTries = 3
	firstWait   = 250 * time.Millisecond

	answerLimit = 64 << 10 // bytes read of an answer
	quoteLimit  = 200      // bytes of it quoted in an error

	// A compressor touches hundreds of kilobytes of memory first. The few
	// spans of a short command are sent as they are.
	compressFrom = 8 << 10
)

// newOTLP makes the exporter to the receiver at endpoint; timeout bounds a
// batch, its tries and waits together.
func newOTLP(endpoint *url.URL, o Options, timeout time.Duration) *otlp {
	e := &otlp{url: endpoint.String(), timeout: timeout}
	header, headerErr := parseHeaders(o.Headers)
	conf, tlsErr := tlsConfig(o.TLS)
	e.header = header
	e.header.Set("User-Agent", "walherd/"+o.Version)
	e.header.Set("Content-Type", "application/json")
	e.client = &http.Client{
		// Its own, since Shutdown closes the connections.
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: conf, ForceAttemptHTTP2: true},
		// A redirected POST may arrive as a GET, and answered well, or with
		// the headers' keys at another host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	e.broken = errors.Join(headerErr, tlsErr)
	e.patience, e.hurry = context.WithCancel(context.Background())
	return e
}

// parseHeaders reads name=value pairs between commas, values percent-encoded:
// the W3C baggage format without properties, as the variables
// OTEL_EXPORTER_OTLP_*HEADERS hold it. Errors show no value: it may be a key.
func parseHeaders(text string) (http.Header, error) {
	h := http.Header{}
	for pair := range strings.SplitSeq(text, ",") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		if !ok || name == "" {
			return h, errors.New("read OTLP headers: want name=value,name=value")
		}
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if err != nil {
			return h, fmt.Errorf("read OTLP header %s: the value is not percent-encoded", name)
		}
		h.Set(name, value)
	}
	return h, nil
}

// tlsConfig reads the files; nil leaves all to the system.
func tlsConfig(files TLSFiles) (*tls.Config, error) {
	if files == (TLSFiles{}) {
		return nil, nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if files.CA != "" {
		pem, err := os.ReadFile(files.CA)
		if err != nil {
			return nil, fmt.Errorf("read OTLP receiver's CA: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read OTLP receiver's CA: no certificate in %s", files.CA)
		}
	}
	if files.Certificate != "" || files.Key != "" {
		pair, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
		if err != nil {
			return nil, fmt.Errorf("read OTLP client certificate: %w", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

// ExportSpans sends the spans, which are of one provider, as one request.
func (e *otlp) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if e.broken != nil {
		return e.broken
	}
	if len(spans) == 0 {
		return nil
	}
	body, err := encodeSpans(spans)
	if err != nil {
		return err
	}
	header := e.header
	if len(body) >= compressFrom {
		if body, err = compress(body); err != nil {
			return err
		}
		header = header.Clone()
		header.Set("Content-Encoding", "gzip")
	}

	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	patience, lose := context.WithCancel(e.patience)
	defer lose()
	defer context.AfterFunc(ctx, lose)()
	deadline, _ := ctx.Deadline()
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval = firstWait
	var last error
	_, err = backoff.Retry(patience, func() (struct{}, error) {
		last = e.post(ctx, header, body)
		var busy *busyError
		switch {
		case last == nil:
			return struct{}{}, nil
		case !errors.As(last, &busy):
			return struct{}{}, backoff.Permanent(last)
		case busy.after > 0:
			return struct{}{}, &backoff.RetryAfterError{Duration: busy.after}
		}
		return struct{}{}, last
	}, backoff.WithBackOff(wait), backoff.WithMaxTries(exportTries), backoff.WithMaxElapsedTime(time.Until(deadline)))
	if err != nil {
		// Retry's own error may be only that it lost patience.
		return fmt.Errorf("send %d spans: %w", len(spans), last)
	}
	return nil
}

// Shutdown closes the connections. The SDK sends no spans after it.
func (e *otlp) Shutdown(context.Context) error {
	e.hurry()
	e.client.CloseIdleConnections()
	return nil
}

func compress(body []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	if err != nil {
		return nil, fmt.Errorf("compress spans: %w", err)
	}
	if _, err := w.Write(body); err != nil {
		return nil, fmt.Errorf("compress spans: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("compress spans: %w", err)
	}
	return out.Bytes(), nil
}

// busyError is an answer after which the protocol lets a client try again.
type busyError struct {
	answer string
	after  time.Duration // what the receiver asks to wait; 0: it does not say
}

func (e *busyError) Error() string { return e.answer }

// post sends one request and judges the answer.
func (e *otlp) post(ctx context.Context, header http.Header, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header = header.Clone()
	resp, err := e.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, readErr := io.ReadAll(io.LimitReader(resp.Body, answerLimit))
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return &busyError{quote(resp, answer), retryAfter(resp.Header.Get("Retry-After"), time.Now())}
	}
	if resp.StatusCode/100 != 2 {
		return errors.New(quote(resp, answer))
	}
	if readErr != nil {
		return fmt.Errorf("read the receiver's answer: %w", readErr)
	}
	return rejected(resp, answer)
}

// quote is an answer's status, and what the receiver says about it: the
// message of a google.rpc.Status, or else the text.
func quote(resp *http.Response, answer []byte) string {
	var status struct {
		Message string `json:"message"`
	}
	text := string(answer)
	if isJSON(resp) && json.Unmarshal(answer, &status) == nil && status.Message != "" {
		text = status.Message
	}
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > quoteLimit {
		text = strings.ToValidUTF8(text[:quoteLimit], "") + "..."
	}
	if text == "" {
		return "the receiver answered " + resp.Status
	}
	return "the receiver answered " + resp.Status + ": " + text
}

// rejected reads a good answer: it may say that spans were refused all the
// same (partial success), which no retry mends. An answer that cannot be read
// says nothing.
func rejected(resp *http.Response, answer []byte) error {
	var body struct {
		PartialSuccess struct {
			RejectedSpans json.Number `json:"rejectedSpans"` // an int64, as a string or not
			ErrorMessage  string      `json:"errorMessage"`
		} `json:"partialSuccess"`
	}
	if !isJSON(resp) || json.Unmarshal(answer, &body) != nil {
		return nil
	}
	p := body.PartialSuccess
	n, _ := p.RejectedSpans.Int64() // 0 if absent
	if n == 0 && p.ErrorMessage == "" {
		return nil
	}
	return fmt.Errorf("the receiver rejected %d of them: %q", n, p.ErrorMessage)
}

func isJSON(resp *http.Response) bool {
	kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return err == nil && kind == "application/json"
}

// retryAfter reads the header of that name: seconds, or a date. What cannot be
// read, or is past, is 0.
func retryAfter(text string, now time.Time) time.Duration {
	const most = time.Hour // longer than any batch waits
	if seconds, err := strconv.ParseUint(text, 10, 64); err == nil {
		return time.Duration(min(seconds, uint64(most/time.Second))) * time.Second
	}
	if date, err := http.ParseTime(text); err == nil {
		return min(max(date.Sub(now), 0), most)
	}
	return 0
}
