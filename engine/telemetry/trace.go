package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Options says who is traced and where traces go.
type Options struct {
	// ServiceName and Version describe the program (service.name,
	// service.version).
	ServiceName string
	Version     string

	// Endpoint is the URL of an OTLP receiver over HTTP. A URL without a path
	// gets /v1/traces, as OTEL_EXPORTER_OTLP_ENDPOINT does. Empty: no traces,
	// and no cost.
	Endpoint string

	// Headers go with every request, in the form of the variables
	// OTEL_EXPORTER_OTLP_HEADERS and OTEL_EXPORTER_OTLP_TRACES_HEADERS:
	// name=value,name=value, values percent-encoded.
	Headers string

	// TLS is for an https Endpoint.
	TLS TLSFiles

	// Logger hears once that traces do not arrive, be it for a receiver that
	// does not answer, for Headers or for TLS. nil: nobody does.
	Logger *slog.Logger

	// ExportTimeout bounds the sending of one batch, retries included; 0 is
	// 5 s.
	ExportTimeout time.Duration

	// ShutdownLimit bounds Shutdown; 0 is 3 s.
	ShutdownLimit time.Duration
}

// TLSFiles are paths of PEM files, "" for none (OTEL_EXPORTER_OTLP_CERTIFICATE,
// OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE, OTEL_EXPORTER_OTLP_CLIENT_KEY).
type TLSFiles struct {
	CA          string // who may vouch for the receiver; "": whom the system trusts
	Certificate string // this client's, with Key
	Key         string
}

// Bounds of what waits to be sent. A span that finds the queue full is
// dropped: a slow receiver shall cost spans, not time or memory.
const (
	queueSpans  = 2048
	batchSpans  = 512
	batchPeriod = 2 * time.Second

	defaultExportTimeout = 5 * time.Second
	defaultShutdownLimit = 3 * time.Second
)

// Telemetry gives out tracers. Make it with Start, end it with Shutdown.
type Telemetry struct {
	provider trace.TracerProvider
	sdk      *sdktrace.TracerProvider // nil: nothing is traced
	export   *exporter
	limit    time.Duration
}

// Start sets tracing up. It does not talk to the receiver, so the only error
// is an Endpoint that is no URL. Without an Endpoint it starts no goroutine
// and constructs no exporter.
func Start(_ context.Context, o Options) (*Telemetry, error) {
	if o.Endpoint == "" {
		return &Telemetry{provider: noop.NewTracerProvider()}, nil
	}
	endpoint, err := url.Parse(o.Endpoint)
	if err != nil {
		// Without the text, which may hold a password.
		var parse *url.Error
		if errors.As(err, &parse) {
			err = parse.Err
		}
		return nil, fmt.Errorf("parse OTLP endpoint: %w", err)
	}
	if endpoint.Scheme != "http" && endpoint.Scheme != "https" || endpoint.Host == "" {
		return nil, fmt.Errorf("OTLP endpoint %q: want a URL such as http://localhost:4318", endpoint.Redacted())
	}
	if endpoint.Path == "" || endpoint.Path == "/" {
		endpoint.Path = "/v1/traces"
	}
	timeout := o.ExportTimeout
	if timeout == 0 {
		timeout = defaultExportTimeout
	}
	t := &Telemetry{
		export: &exporter{otlp: newOTLP(endpoint, o, timeout), log: o.Logger, endpoint: endpoint.Redacted()},
		limit:  o.ShutdownLimit,
	}
	if t.limit == 0 {
		t.limit = defaultShutdownLimit
	}
	t.sdk = sdktrace.NewTracerProvider(
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", o.ServiceName),
			attribute.String("service.version", o.Version))),
		sdktrace.WithBatcher(t.export,
			sdktrace.WithMaxQueueSize(queueSpans),
			sdktrace.WithMaxExportBatchSize(batchSpans),
			sdktrace.WithBatchTimeout(batchPeriod),
			sdktrace.WithExportTimeout(timeout)))
	t.provider = t.sdk
	return t, nil
}

// TracerProvider is where components get their tracers; never nil.
func (t *Telemetry) TracerProvider() trace.TracerProvider { return t.provider }

// Propagator carries a trace through message headers: W3C traceparent and
// tracestate. It works without an endpoint too, so that this process does not
// break the trace of others.
func (t *Telemetry) Propagator() propagation.TextMapPropagator { return propagation.TraceContext{} }

// Shutdown sends what is queued and ends tracing, within ctx and the limit of
// Options. Spans that do not make it are lost, which the Logger hears. A
// second Shutdown does nothing.
func (t *Telemetry) Shutdown(ctx context.Context) {
	if t.sdk == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, t.limit)
	defer cancel()
	t.export.hurry()
	if err := t.sdk.Shutdown(ctx); err != nil {
		t.export.complain(err)
	}
}

// exporter keeps the receiver's errors from the OpenTelemetry library's global
// error handler, which would print each of them on stderr in another shape.
type exporter struct {
	*otlp
	log      *slog.Logger
	endpoint string
	once     sync.Once
}

func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if err := e.otlp.ExportSpans(ctx, spans); err != nil {
		e.complain(err)
	}
	return nil
}

func (e *exporter) complain(err error) {
	e.once.Do(func() {
		if e.log == nil {
			return
		}
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no answer in time: %w", err)
		}
		e.log.Warn("traces cannot be sent; further failures are not reported", "endpoint", e.endpoint, KeyError, err)
	})
}
