package telemetry

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// receiver is an OTLP receiver over HTTP.
type receiver struct {
	*httptest.Server
	mu       sync.Mutex
	paths    []string
	headers  []http.Header
	requests []*coltrace.ExportTraceServiceRequest
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		m, err := readRequest(q)
		if err != nil {
			t.Error(err)
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.paths = append(r.paths, q.URL.Path)
		r.headers = append(r.headers, q.Header)
		r.requests = append(r.requests, m)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "{}")
	}))
	t.Cleanup(r.Close)
	return r
}

// got is what has arrived.
func (r *receiver) got() ([]*coltrace.ExportTraceServiceRequest, []string, []http.Header) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests), slices.Clone(r.paths), slices.Clone(r.headers)
}

func TestExport(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"", "/", "/v1/traces", "/other/path"} {
		r := newReceiver(t)
		var log bytes.Buffer
		tel, err := Start(t.Context(), Options{
			ServiceName: "walherd", Version: "1.2.3", Endpoint: r.URL + path,
			Logger:        slog.New(NewHandler(&log, slog.LevelDebug)),
			ExportTimeout: time.Minute, ShutdownLimit: time.Minute,
		})
		if err != nil {
			t.Fatal(err)
		}
		_, span := tel.TracerProvider().Tracer("test").Start(t.Context(), "store segment")
		span.SetAttributes(attribute.String(KeySegment, "000000010000000000000001"))
		span.End()
		tel.Shutdown(t.Context())
		tel.Shutdown(t.Context())

		want := path
		if path == "" || path == "/" {
			want = "/v1/traces"
		}
		requests, paths, _ := r.got()
		if len(paths) != 1 || paths[0] != want {
			t.Fatalf("%q: requests to %q, want one to %s; log %s", path, paths, want, log.String())
		}
		rs := requests[0].ResourceSpans[0]
		resource := map[string]string{}
		for _, a := range rs.Resource.Attributes {
			resource[a.Key] = a.Value.GetStringValue()
		}
		if resource["service.name"] != "walherd" || resource["service.version"] != "1.2.3" {
			t.Errorf("resource %v", resource)
		}
		got := rs.ScopeSpans[0].Spans[0]
		id := span.SpanContext().TraceID()
		if got.Name != "store segment" || !bytes.Equal(got.TraceId, id[:]) ||
			got.Attributes[0].Key != "segment" || got.Attributes[0].Value.GetStringValue() != "000000010000000000000001" {
			t.Errorf("span %v", got)
		}
		if log.Len() != 0 {
			t.Errorf("log %s", log.String())
		}
	}
}

func TestNoEndpoint(t *testing.T) {
	t.Parallel()
	tel, err := Start(t.Context(), Options{ServiceName: "walherd"})
	if err != nil {
		t.Fatal(err)
	}
	defer tel.Shutdown(t.Context())
	if tel.sdk != nil || tel.export != nil {
		t.Error("an exporter without an endpoint")
	}
	ctx, span := tel.TracerProvider().Tracer("test").Start(t.Context(), "x")
	defer span.End()
	if span.IsRecording() || span.SpanContext().IsValid() {
		t.Error("a span is recorded")
	}
	// The trace of others goes through all the same.
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	ctx = tel.Propagator().Extract(ctx, propagation.MapCarrier{"traceparent": parent})
	ctx, span = tel.TracerProvider().Tracer("test").Start(ctx, "y")
	defer span.End()
	out := propagation.MapCarrier{}
	tel.Propagator().Inject(ctx, out)
	if out["traceparent"] != parent {
		t.Errorf("passed on %q", out)
	}
}

func BenchmarkStartWithoutEndpoint(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		tel, err := Start(context.Background(), Options{ServiceName: "walherd"})
		if err != nil {
			b.Fatal(err)
		}
		tel.Shutdown(context.Background())
	}
}

func TestBadEndpoint(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"localhost:4318", "ftp://host", "http://", "http://a b", "/v1/traces", "%",
		"ftp://bob:sesame@host", "http://bob:sesame@host:x",
	} {
		_, err := Start(t.Context(), Options{Endpoint: s})
		if err == nil {
			t.Errorf("%q is taken", s)
		} else if strings.Contains(err.Error(), "sesame") {
			t.Errorf("a password in %q", err)
		}
	}
}

// TestDeadReceiver must not fail, hang or flood.
func TestDeadReceiver(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	hangs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		select {
		case <-release:
		case <-q.Context().Done():
		}
	}))
	t.Cleanup(func() { close(release); hangs.Close() })
	refuses := httptest.NewServer(nil)
	refuses.Close()
	fails := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no", http.StatusServiceUnavailable)
	}))
	t.Cleanup(fails.Close)

	for name, url := range map[string]string{"hangs": hangs.URL, "refuses": refuses.URL, "fails": fails.URL} {
		var log lockedBuffer
		tel, err := Start(t.Context(), Options{
			Endpoint: url, Logger: slog.New(NewHandler(&log, slog.LevelInfo)),
			ExportTimeout: 50 * time.Millisecond, ShutdownLimit: 200 * time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		tracer := tel.TracerProvider().Tracer("test")
		for range 2 * queueSpans { // more than the queue holds
			_, span := tracer.Start(t.Context(), "x")
			span.End()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		tel.Shutdown(ctx)
		if ctx.Err() != nil {
			t.Errorf("%s: Shutdown took its caller's time, not its limit", name)
		}
		cancel()
		if got := log.String(); strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, "WARNING: ") || !strings.Contains(got, url) {
			t.Errorf("%s: log %q", name, got)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
