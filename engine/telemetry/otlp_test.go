package telemetry

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// readRequest decodes a request into the protocol's own types. Members these
// do not know are errors.
func readRequest(q *http.Request) (*coltrace.ExportTraceServiceRequest, error) {
	if kind := q.Header.Get("Content-Type"); q.Method != http.MethodPost || kind != "application/json" {
		return nil, fmt.Errorf("%s of %s", q.Method, kind)
	}
	var body io.Reader = q.Body
	if q.Header.Get("Content-Encoding") == "gzip" {
		var err error
		if body, err = gzip.NewReader(body); err != nil {
			return nil, err
		}
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	return decodeJSON(data)
}

// decodeJSON is protobuf's JSON decoder with OTLP's exception: ids are
// hexadecimal. The decoder takes their digits for base64, which is undone.
func decodeJSON(data []byte) (*coltrace.ExportTraceServiceRequest, error) {
	m := &coltrace.ExportTraceServiceRequest{}
	if err := (protojson.UnmarshalOptions{}).Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("%w in %s", err, data)
	}
	var errs []error
	unhex := func(id *[]byte, length int) {
		raw, err := hex.DecodeString(base64.StdEncoding.EncodeToString(*id))
		if err == nil && len(raw) != length && len(raw) != 0 {
			err = fmt.Errorf("an id of %d bytes", len(raw))
		}
		errs = append(errs, err)
		*id = raw
	}
	for _, r := range m.ResourceSpans {
		for _, s := range r.ScopeSpans {
			for _, span := range s.Spans {
				unhex(&span.TraceId, 16)
				unhex(&span.SpanId, 8)
				unhex(&span.ParentSpanId, 8)
				for _, l := range span.Links {
					unhex(&l.TraceId, 16)
					unhex(&l.SpanId, 8)
				}
			}
		}
	}
	return m, errors.Join(errs...)
}

// drawSpans draws a batch with every part a span can have.
func drawSpans(t *rapid.T) tracetest.SpanStubs {
	text := rapid.StringN(0, 12, -1)
	var value func(depth int) attribute.Value
	var attributes func(depth int) []attribute.KeyValue
	attributes = func(depth int) []attribute.KeyValue {
		var all []attribute.KeyValue
		for i := range rapid.IntRange(0, 3).Draw(t, "attributes") {
			all = append(all, attribute.KeyValue{Key: attribute.Key(fmt.Sprintf("k%d", i)), Value: value(depth)})
		}
		return all
	}
	value = func(depth int) attribute.Value {
		kinds := 10
		if depth == 0 {
			kinds = 8
		}
		switch rapid.IntRange(0, kinds).Draw(t, "type") {
		case 0:
			return attribute.BoolValue(rapid.Bool().Draw(t, "bool"))
		case 1:
			return attribute.Int64Value(rapid.Int64().Draw(t, "int"))
		case 2:
			return attribute.Float64Value(rapid.OneOf(rapid.Float64(),
				rapid.SampledFrom([]float64{0, math.NaN(), math.Inf(1), math.Inf(-1), math.MaxFloat64})).Draw(t, "float"))
		case 3:
			return attribute.StringValue(text.Draw(t, "string"))
		case 4:
			return attribute.BoolSliceValue(rapid.SliceOfN(rapid.Bool(), 0, 3).Draw(t, "bools"))
		case 5:
			return attribute.Int64SliceValue(rapid.SliceOfN(rapid.Int64(), 0, 3).Draw(t, "ints"))
		case 6:
			return attribute.Float64SliceValue(rapid.SliceOfN(rapid.Float64(), 0, 3).Draw(t, "floats"))
		case 7:
			return attribute.StringSliceValue(rapid.SliceOfN(text, 0, 3).Draw(t, "strings"))
		case 8:
			return attribute.ByteSliceValue(rapid.SliceOfN(rapid.Byte(), 0, 5).Draw(t, "bytes"))
		case 9:
			return attribute.SliceValue(value(depth-1), attribute.Value{}, value(depth-1))
		}
		return attribute.MapValue(attributes(depth - 1)...)
	}
	moment := func() time.Time {
		return time.Unix(0, rapid.Int64Range(-1, math.MaxInt64).Draw(t, "time"))
	}
	spanContext := func() trace.SpanContext {
		c := trace.SpanContextConfig{
			TraceFlags: trace.TraceFlags(rapid.Byte().Draw(t, "flags")),
			Remote:     rapid.Bool().Draw(t, "remote"),
		}
		copy(c.TraceID[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "trace id"))
		copy(c.SpanID[:], rapid.SliceOfN(rapid.Byte(), 8, 8).Draw(t, "span id"))
		return trace.NewSpanContext(c)
	}
	count := rapid.IntRange(0, 3)
	res := resource.NewSchemaless(attribute.String("service.name", text.Draw(t, "service")))
	scopes := []instrumentation.Scope{
		{Name: "a"},
		{Name: "a", Version: "1", SchemaURL: "http://schema", Attributes: attribute.NewSet(attribute.Int("n", 1))},
	}
	var spans tracetest.SpanStubs
	for range rapid.IntRange(1, 4).Draw(t, "spans") {
		s := tracetest.SpanStub{
			Name: text.Draw(t, "name"), SpanContext: spanContext(), Resource: res,
			SpanKind:  trace.SpanKind(rapid.IntRange(0, 5).Draw(t, "kind")),
			StartTime: moment(), EndTime: moment(), Attributes: attributes(2),
			Status:            sdktrace.Status{Code: codes.Code(rapid.Uint32Range(0, 2).Draw(t, "code")), Description: text.Draw(t, "status")},
			DroppedAttributes: count.Draw(t, "dropped"), DroppedEvents: count.Draw(t, "dropped"), DroppedLinks: count.Draw(t, "dropped"),
			InstrumentationScope: rapid.SampledFrom(scopes).Draw(t, "scope"),
		}
		if rapid.Bool().Draw(t, "child") {
			s.Parent = spanContext()
		}
		if rapid.Bool().Draw(t, "state") {
			state, err := trace.ParseTraceState("vendor=x,other=y")
			if err != nil {
				t.Fatal(err)
			}
			s.SpanContext = s.SpanContext.WithTraceState(state)
		}
		for range count.Draw(t, "events") {
			s.Events = append(s.Events, sdktrace.Event{
				Name: text.Draw(t, "event"), Time: moment(), Attributes: attributes(1), DroppedAttributeCount: count.Draw(t, "dropped"),
			})
		}
		for range count.Draw(t, "links") {
			s.Links = append(s.Links, sdktrace.Link{
				SpanContext: spanContext(), Attributes: attributes(1), DroppedAttributeCount: count.Draw(t, "dropped"),
			})
		}
		spans = append(spans, s)
	}
	return spans
}

// TestConformance: what encodeSpans says in JSON, read by the official types,
// is the spans it was given.
func TestConformance(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		spans := drawSpans(t).Snapshots()
		data, err := encodeSpans(spans)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeJSON(data)
		if err != nil {
			t.Fatal(err)
		}
		if want := wantRequest(spans); !proto.Equal(got, want) {
			t.Fatalf("got %s\nwant %s", prototext.Format(got), prototext.Format(want))
		}
	})
}

// wantRequest is the request for spans in the official types, a mapping of its
// own. OpenTelemetry's exporter sends the same (compared once, over drawSpans).
func wantRequest(spans []sdktrace.ReadOnlySpan) *coltrace.ExportTraceServiceRequest {
	rs := &tracepb.ResourceSpans{Resource: &resourcepb.Resource{Attributes: wantAttributes(spans[0].Resource().Attributes())}}
	groups := map[instrumentation.Scope]*tracepb.ScopeSpans{}
	for _, s := range spans {
		scope := s.InstrumentationScope()
		if groups[scope] == nil {
			groups[scope] = &tracepb.ScopeSpans{
				Scope:     &commonpb.InstrumentationScope{Name: scope.Name, Version: scope.Version, Attributes: wantAttributes(scope.Attributes.ToSlice())},
				SchemaUrl: scope.SchemaURL,
			}
			rs.ScopeSpans = append(rs.ScopeSpans, groups[scope])
		}
		groups[scope].Spans = append(groups[scope].Spans, wantSpan(s))
	}
	return &coltrace.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{rs}}
}

func wantSpan(s sdktrace.ReadOnlySpan) *tracepb.Span {
	traceID, spanID, parentID := s.SpanContext().TraceID(), s.SpanContext().SpanID(), s.Parent().SpanID()
	m := &tracepb.Span{
		TraceId: traceID[:], SpanId: spanID[:], TraceState: s.SpanContext().TraceState().String(),
		Flags:             wantFlags(s.SpanContext().TraceFlags(), s.Parent()),
		Name:              s.Name(),
		Kind:              tracepb.Span_SpanKind(tracepb.Span_SpanKind_value["SPAN_KIND_"+strings.ToUpper(s.SpanKind().String())]),
		StartTimeUnixNano: uint64(max(s.StartTime().UnixNano(), 0)), EndTimeUnixNano: uint64(max(s.EndTime().UnixNano(), 0)),
		Attributes:             wantAttributes(s.Attributes()),
		DroppedAttributesCount: uint32(s.DroppedAttributes()), DroppedEventsCount: uint32(s.DroppedEvents()), DroppedLinksCount: uint32(s.DroppedLinks()),
		Status: &tracepb.Status{
			Code:    tracepb.Status_StatusCode(tracepb.Status_StatusCode_value["STATUS_CODE_"+strings.ToUpper(s.Status().Code.String())]),
			Message: s.Status().Description,
		},
	}
	if s.Parent().HasSpanID() {
		m.ParentSpanId = parentID[:]
	}
	for _, e := range s.Events() {
		m.Events = append(m.Events, &tracepb.Span_Event{
			TimeUnixNano: uint64(max(e.Time.UnixNano(), 0)), Name: e.Name,
			Attributes: wantAttributes(e.Attributes), DroppedAttributesCount: uint32(e.DroppedAttributeCount),
		})
	}
	for _, l := range s.Links() {
		traceID, spanID := l.SpanContext.TraceID(), l.SpanContext.SpanID()
		m.Links = append(m.Links, &tracepb.Span_Link{
			TraceId: traceID[:], SpanId: spanID[:], TraceState: l.SpanContext.TraceState().String(),
			Attributes: wantAttributes(l.Attributes), DroppedAttributesCount: uint32(l.DroppedAttributeCount),
			Flags: wantFlags(l.SpanContext.TraceFlags(), l.SpanContext),
		})
	}
	return m
}

func wantFlags(w3c trace.TraceFlags, other trace.SpanContext) uint32 {
	f := uint32(w3c) | uint32(tracepb.SpanFlags_SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK)
	if other.IsRemote() {
		f |= uint32(tracepb.SpanFlags_SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK)
	}
	return f
}

func wantAttributes(attrs []attribute.KeyValue) []*commonpb.KeyValue {
	var out []*commonpb.KeyValue
	for _, a := range attrs {
		out = append(out, &commonpb.KeyValue{Key: string(a.Key), Value: wantValue(a.Value)})
	}
	return out
}

func wantValue(v attribute.Value) *commonpb.AnyValue {
	var items []attribute.Value
	switch v.Type() {
	case attribute.EMPTY:
		return &commonpb.AnyValue{}
	case attribute.BOOL:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_BoolValue{BoolValue: v.AsBool()}}
	case attribute.INT64:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: v.AsInt64()}}
	case attribute.FLOAT64:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: v.AsFloat64()}}
	case attribute.STRING:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: v.AsString()}}
	case attribute.BYTESLICE:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_BytesValue{BytesValue: v.AsByteSlice()}}
	case attribute.MAP:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_KvlistValue{KvlistValue: &commonpb.KeyValueList{Values: wantAttributes(v.AsMap())}}}
	case attribute.BOOLSLICE:
		for _, x := range v.AsBoolSlice() {
			items = append(items, attribute.BoolValue(x))
		}
	case attribute.INT64SLICE:
		for _, x := range v.AsInt64Slice() {
			items = append(items, attribute.Int64Value(x))
		}
	case attribute.FLOAT64SLICE:
		for _, x := range v.AsFloat64Slice() {
			items = append(items, attribute.Float64Value(x))
		}
	case attribute.STRINGSLICE:
		for _, x := range v.AsStringSlice() {
			items = append(items, attribute.StringValue(x))
		}
	case attribute.SLICE:
		items = v.AsSlice()
	}
	array := &commonpb.ArrayValue{}
	for _, item := range items {
		array.Values = append(array.Values, wantValue(item))
	}
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: array}}
}

// TestEncodedText fixes the JSON itself in what a decoder would forgive.
func TestEncodedText(t *testing.T) {
	t.Parallel()
	state, err := trace.ParseTraceState("vendor=x")
	if err != nil {
		t.Fatal(err)
	}
	link := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{0xcd}, SpanID: trace.SpanID{0xef}, TraceState: state})
	data, err := encodeSpans(tracetest.SpanStubs{{
		Name: "store \xff segment", SpanKind: trace.SpanKindConsumer,
		SpanContext: trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{0xab}, SpanID: trace.SpanID{0xff}, TraceFlags: 1}),
		StartTime:   time.Unix(1, 0), EndTime: time.Unix(2, 0),
		Attributes: []attribute.KeyValue{attribute.Int("bytes", 1<<24)},
		Links:      []sdktrace.Link{{SpanContext: link}},
		Status:     sdktrace.Status{Code: codes.Error, Description: "no"},
		Resource:   resource.Empty(),
	}}.Snapshots())
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"resourceSpans":[{"resource":{},"scopeSpans":[{"scope":{},"spans":[{` +
		`"traceId":"ab000000000000000000000000000000","spanId":"ff00000000000000","flags":257,` +
		`"name":"store \ufffd segment","kind":5,"startTimeUnixNano":"1000000000","endTimeUnixNano":"2000000000",` +
		`"attributes":[{"key":"bytes","value":{"intValue":"16777216"}}],` +
		`"links":[{"traceId":"cd000000000000000000000000000000","spanId":"ef00000000000000","traceState":"vendor=x","flags":256}],` +
		`"status":{"code":2,"message":"no"}}]}]}]}`
	if string(data) != want {
		t.Errorf("got  %s\nwant %s", data, want)
	}
}

// roundTrip is a receiver without a network, for tests in a bubble.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(q *http.Request) (*http.Response, error) { return f(q) }

// scripted is an exporter whose receiver gives the answers in turn, the last
// one for ever, and notes when it was asked.
func scripted(t *testing.T, timeout time.Duration, answers ...answer) (*otlp, *[]time.Duration) {
	t.Helper()
	endpoint, err := url.Parse("http://collector/v1/traces")
	if err != nil {
		t.Fatal(err)
	}
	e := newOTLP(endpoint, Options{}, timeout)
	start := time.Now()
	var asked []time.Duration
	e.client.Transport = roundTrip(func(q *http.Request) (*http.Response, error) {
		if _, err := readRequest(q); err != nil { // each try has the whole body
			t.Error(err)
		}
		a := answers[min(len(asked), len(answers)-1)]
		asked = append(asked, time.Since(start))
		if a.err != nil {
			return nil, a.err
		}
		h := http.Header{"Content-Type": {"application/json; charset=utf-8"}}
		if a.after != "" {
			h.Set("Retry-After", a.after)
		}
		return &http.Response{
			StatusCode: a.status, Status: fmt.Sprintf("%d %s", a.status, http.StatusText(a.status)),
			Header: h, Body: io.NopCloser(strings.NewReader(a.body)),
		}, nil
	})
	return e, &asked
}

type answer struct {
	status      int
	after, body string
	err         error
}

func oneSpan() []sdktrace.ReadOnlySpan {
	return tracetest.SpanStubs{{Name: "x", Resource: resource.Empty()}}.Snapshots()
}

func TestRetry(t *testing.T) {
	t.Parallel()
	dead := errors.New("connection refused")
	for name, test := range map[string]struct {
		timeout time.Duration
		answers []answer
		tries   int
		second  time.Duration // when the second try is; 0: any
		want    string        // in the error; "": success
	}{
		"success":              {timeout: 5 * time.Second, answers: []answer{{status: 200}}, tries: 1},
		"accepted":             {timeout: 5 * time.Second, answers: []answer{{status: 202}}, tries: 1},
		"busy once":            {timeout: 5 * time.Second, answers: []answer{{status: 503}, {status: 200}}, tries: 2},
		"busy, says how long":  {timeout: 5 * time.Second, answers: []answer{{status: 429, after: "2"}, {status: 200}}, tries: 2, second: 2 * time.Second},
		"busy, says when":      {timeout: 5 * time.Second, answers: []answer{{status: 503, after: "Sat, 01 Jan 2000 00:00:03 GMT"}, {status: 200}}, tries: 2, second: 3 * time.Second},
		"busy, says nonsense":  {timeout: 5 * time.Second, answers: []answer{{status: 503, after: "soon"}, {status: 200}}, tries: 2},
		"busy for longer":      {timeout: 5 * time.Second, answers: []answer{{status: 503, after: "6"}}, tries: 1, want: "503 Service Unavailable"},
		"busy for ages":        {timeout: 5 * time.Second, answers: []answer{{status: 503, after: "18446744073709551615"}}, tries: 1, want: "503"},
		"always busy":          {timeout: 5 * time.Second, answers: []answer{{status: 504}}, tries: exportTries, want: "504"},
		"always, no time":      {timeout: time.Millisecond, answers: []answer{{status: 502}}, tries: 1, want: "502"},
		"refused":              {timeout: 5 * time.Second, answers: []answer{{err: dead}}, tries: 1, want: "connection refused"},
		"refused after busy":   {timeout: 5 * time.Second, answers: []answer{{status: 503}, {err: dead}}, tries: 2, want: "connection refused"},
		"not understood":       {timeout: 5 * time.Second, answers: []answer{{status: 400, body: `{"code":3,"message":"bad span"}`}}, tries: 1, want: "400 Bad Request: bad span"},
		"server error":         {timeout: 5 * time.Second, answers: []answer{{status: 500, body: "oh\n no"}}, tries: 1, want: "500 Internal Server Error: oh no"},
		"long answer":          {timeout: 5 * time.Second, answers: []answer{{status: 500, body: strings.Repeat("é", 4096)}}, tries: 1, want: strings.Repeat("é", quoteLimit/2) + "..."},
		"redirect":             {timeout: 5 * time.Second, answers: []answer{{status: 302}}, tries: 1, want: "302 Found"},
		"nothing wrong":        {timeout: 5 * time.Second, answers: []answer{{status: 200, body: `{"partialSuccess":{}}`}}, tries: 1},
		"null":                 {timeout: 5 * time.Second, answers: []answer{{status: 200, body: `{"partialSuccess":null}`}}, tries: 1},
		"not JSON":             {timeout: 5 * time.Second, answers: []answer{{status: 200, body: "fine"}}, tries: 1},
		"partial success":      {timeout: 5 * time.Second, answers: []answer{{status: 200, body: `{"partialSuccess":{"rejectedSpans":"1","errorMessage":"too old"}}`}}, tries: 1, want: `rejected 1 of them: "too old"`},
		"partial, number":      {timeout: 5 * time.Second, answers: []answer{{status: 200, body: `{"partialSuccess":{"rejectedSpans":1}}`}}, tries: 1, want: "rejected 1 "},
		"success with warning": {timeout: 5 * time.Second, answers: []answer{{status: 200, body: `{"partialSuccess":{"errorMessage":"slow down"}}`}}, tries: 1, want: "slow down"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				e, asked := scripted(t, test.timeout, test.answers...)
				err := e.ExportSpans(t.Context(), oneSpan())
				switch {
				case test.want == "" && err != nil:
					t.Error(err)
				case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
					t.Errorf("error %v, want %q", err, test.want)
				}
				if len(*asked) != test.tries {
					t.Fatalf("asked at %v, want %d tries", *asked, test.tries)
				}
				if test.second != 0 && (*asked)[1] != test.second {
					t.Errorf("asked at %v, want the second at %v", *asked, test.second)
				}
			})
		})
	}
}

// TestNoRetryAtTheEnd: a command that ends does not wait for a busy receiver.
func TestNoRetryAtTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e, asked := scripted(t, time.Minute, answer{status: 503, after: "10"})
		start := time.Now()
		done := make(chan error)
		go func() { done <- e.ExportSpans(t.Context(), oneSpan()) }()
		synctest.Wait() // it waits for the 10 s
		e.hurry()
		if err := <-done; err == nil || !strings.Contains(err.Error(), "503") {
			t.Errorf("error %v", err)
		}
		if err := e.ExportSpans(t.Context(), oneSpan()); err == nil || !strings.Contains(err.Error(), "503") {
			t.Errorf("error %v", err)
		}
		if len(*asked) != 2 || time.Since(start) != 0 {
			t.Errorf("asked at %v, ended at %v", *asked, time.Since(start))
		}
	})
}

func TestCanceledWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e, asked := scripted(t, time.Minute, answer{status: 503, after: "10"})
		ctx, cancel := context.WithTimeout(t.Context(), 11*time.Second)
		defer cancel()
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		if err := e.ExportSpans(ctx, oneSpan()); err == nil {
			t.Error("success")
		}
		if len(*asked) != 1 || time.Since(start) != time.Second {
			t.Errorf("asked at %v, ended at %v", *asked, time.Since(start))
		}
		e.hurry()
	})
}

func TestParseHeaders(t *testing.T) {
	t.Parallel()
	got, err := parseHeaders(" api-key = a%20b%3D , x=1=2,,y=")
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got.Get("Api-Key") != "a b=" || got.Get("X") != "1=2" || got.Get("Y") != "" {
		t.Errorf("headers %q", got)
	}
	if got, err := parseHeaders(""); err != nil || len(got) != 0 {
		t.Errorf("headers %q, error %v", got, err)
	}
	for _, s := range []string{"sesame", "=sesame", "key=sesame%2", "a=b,sesame"} {
		if _, err := parseHeaders(s); err == nil || strings.Contains(err.Error(), "sesame") {
			t.Errorf("%q: error %v", s, err)
		}
	}
}

// export sends spans of the given name through the whole of Telemetry and
// returns what the logger heard.
func export(t *testing.T, o Options, spans int, name string) string {
	t.Helper()
	var log lockedBuffer
	o.Logger = slog.New(NewHandler(&log, slog.LevelDebug))
	o.ExportTimeout, o.ShutdownLimit = time.Minute, time.Minute // a slow machine is no dead receiver
	tel, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for range spans {
		_, span := tel.TracerProvider().Tracer("test").Start(t.Context(), name)
		span.End()
	}
	tel.Shutdown(t.Context())
	return log.String()
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	r := newReceiver(t)
	endpoint := strings.Replace(r.URL, "http://", "http://bob:sesame@", 1)
	if log := export(t, Options{Version: "1.2.3", Endpoint: endpoint, Headers: "Api-Key=secret,Content-Type=text/plain"}, 1, "x"); log != "" {
		t.Error(log)
	}
	_, _, headers := r.got()
	if len(headers) != 1 {
		t.Fatalf("%d requests", len(headers))
	}
	h := headers[0]
	if h.Get("Api-Key") != "secret" || h.Get("User-Agent") != "walherd/1.2.3" || !strings.HasPrefix(h.Get("Authorization"), "Basic ") || h.Get("Content-Encoding") != "" {
		t.Errorf("headers %v", h)
	}
}

// TestBadOptions: what is wrong with headers or certificates costs the traces
// and one warning, which shows no secret.
func TestBadOptions(t *testing.T) {
	t.Parallel()
	r := newReceiver(t)
	noPEM := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(noPEM, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	endpoint := strings.Replace(r.URL, "http://", "http://bob:sesame@", 1)
	for _, o := range []Options{
		{Headers: "sesame"},
		{Headers: "bad name=sesame"},
		{Headers: "name=sesame%0a"},
		{TLS: TLSFiles{CA: noPEM}},
		{TLS: TLSFiles{CA: noPEM + ".absent"}},
		{TLS: TLSFiles{Key: noPEM}},
	} {
		o.Endpoint = endpoint
		if log := export(t, o, 2*batchSpans, "x"); strings.Count(log, "\n") != 1 || !strings.HasPrefix(log, "WARNING: ") || strings.Contains(log, "sesame") {
			t.Errorf("%+v: log %q", o, log)
		}
	}
	if requests, _, _ := r.got(); len(requests) != 0 {
		t.Errorf("%d requests", len(requests))
	}
}

func TestCompressed(t *testing.T) {
	t.Parallel()
	r := newReceiver(t)
	name := strings.Repeat("long ", 50)
	if log := export(t, Options{Endpoint: r.URL}, 100, name); log != "" {
		t.Error(log)
	}
	requests, _, headers := r.got()
	if len(requests) != 1 || headers[0].Get("Content-Encoding") != "gzip" {
		t.Fatalf("%d requests, headers %v", len(requests), headers)
	}
	spans := requests[0].ResourceSpans[0].ScopeSpans[0].Spans
	if len(spans) != 100 || spans[99].Name != name {
		t.Errorf("%d spans", len(spans))
	}
}

// TestTLS: the receiver's certificate is of a CA of its own, and it wants one
// of the client.
func TestTLS(t *testing.T) {
	t.Parallel()
	files, clients := clientCertificate(t)
	requests := make(chan *coltrace.ExportTraceServiceRequest, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		m, err := readRequest(q)
		if err != nil {
			t.Error(err)
		}
		requests <- m
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	t.Cleanup(server.Close)
	files.CA = filepath.Join(t.TempDir(), "ca.pem")
	writePEM(t, files.CA, "CERTIFICATE", server.Certificate().Raw)

	if log := export(t, Options{Endpoint: server.URL, TLS: files}, 1, "x"); log != "" {
		t.Fatal(log)
	}
	if m := <-requests; len(m.ResourceSpans) != 1 {
		t.Errorf("request %v", m)
	}
	for _, files := range []TLSFiles{{}, {CA: files.CA}} {
		if log := export(t, Options{Endpoint: server.URL, TLS: files}, 1, "x"); !strings.Contains(log, "tls: ") {
			t.Errorf("%+v: log %q", files, log)
		}
	}
}

func clientCertificate(t *testing.T) (TLSFiles, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := TLSFiles{Certificate: filepath.Join(dir, "client.pem"), Key: filepath.Join(dir, "client.key")}
	writePEM(t, files.Certificate, "CERTIFICATE", der)
	writePEM(t, files.Key, "PRIVATE KEY", keyDER)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return files, pool
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	var b bytes.Buffer
	if err := pem.Encode(&b, &pem.Block{Type: kind, Bytes: der}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}
