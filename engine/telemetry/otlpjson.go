package telemetry

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// The messages of opentelemetry/proto/collector/trace/v1 and what they hold,
// as far as the SDK fills them. Their JSON is protobuf's, except that trace and
// span ids are hexadecimal: members in camelCase, 64-bit integers as strings,
// enums as numbers, bytes in base64, zero values left out.
type (
	exportRequest struct {
		ResourceSpans []resourceSpans `json:"resourceSpans"`
	}
	resourceSpans struct {
		Resource   resourceMessage `json:"resource"`
		ScopeSpans []*scopeSpans   `json:"scopeSpans"`
		SchemaURL  string          `json:"schemaUrl,omitempty"`
	}
	resourceMessage struct {
		Attributes []keyValue `json:"attributes,omitempty"`
	}
	scopeSpans struct {
		Scope     scopeMessage  `json:"scope"`
		Spans     []spanMessage `json:"spans"`
		SchemaURL string        `json:"schemaUrl,omitempty"`
	}
	scopeMessage struct {
		Name       string     `json:"name,omitempty"`
		Version    string     `json:"version,omitempty"`
		Attributes []keyValue `json:"attributes,omitempty"`
	}
	spanMessage struct {
		TraceID           trace.TraceID  `json:"traceId"` // both print themselves in hexadecimal
		SpanID            trace.SpanID   `json:"spanId"`
		TraceState        string         `json:"traceState,omitempty"`
		ParentSpanID      string         `json:"parentSpanId,omitempty"`
		Flags             uint32         `json:"flags"`
		Name              string         `json:"name,omitempty"`
		Kind              trace.SpanKind `json:"kind"` // numbered alike
		Start             unixNano       `json:"startTimeUnixNano,string"`
		End               unixNano       `json:"endTimeUnixNano,string"`
		Attributes        []keyValue     `json:"attributes,omitempty"`
		DroppedAttributes int            `json:"droppedAttributesCount,omitempty"`
		Events            []eventMessage `json:"events,omitempty"`
		DroppedEvents     int            `json:"droppedEventsCount,omitempty"`
		Links             []linkMessage  `json:"links,omitempty"`
		DroppedLinks      int            `json:"droppedLinksCount,omitempty"`
		Status            statusMessage  `json:"status"`
	}
	eventMessage struct {
		Time              unixNano   `json:"timeUnixNano,string"`
		Name              string     `json:"name,omitempty"`
		Attributes        []keyValue `json:"attributes,omitempty"`
		DroppedAttributes int        `json:"droppedAttributesCount,omitempty"`
	}
	linkMessage struct {
		TraceID           trace.TraceID `json:"traceId"`
		SpanID            trace.SpanID  `json:"spanId"`
		TraceState        string        `json:"traceState,omitempty"`
		Attributes        []keyValue    `json:"attributes,omitempty"`
		DroppedAttributes int           `json:"droppedAttributesCount,omitempty"`
		Flags             uint32        `json:"flags"`
	}
	statusMessage struct {
		Code    int    `json:"code,omitempty"`
		Message string `json:"message,omitempty"`
	}
	keyValue struct {
		Key   string         `json:"key"`
		Value map[string]any `json:"value"` // one member, named for its type; see anyValue
	}
	unixNano uint64
)

// Bits of a span's and a link's flags above the W3C ones (SpanFlags).
const (
	flagKnowsRemote = 0x100
	flagIsRemote    = 0x200
)

// encodeSpans prints an ExportTraceServiceRequest. The spans are of one
// provider and share its resource.
func encodeSpans(spans []sdktrace.ReadOnlySpan) ([]byte, error) {
	resource := spans[0].Resource()
	rs := resourceSpans{
		Resource:  resourceMessage{keyValues(resource.Attributes())},
		SchemaURL: resource.SchemaURL(),
	}
	byScope := map[instrumentation.Scope]*scopeSpans{}
	for _, s := range spans {
		scope := s.InstrumentationScope()
		group := byScope[scope]
		if group == nil {
			group = &scopeSpans{
				Scope:     scopeMessage{scope.Name, scope.Version, keyValues(scope.Attributes.ToSlice())},
				SchemaURL: scope.SchemaURL,
			}
			byScope[scope] = group
			rs.ScopeSpans = append(rs.ScopeSpans, group)
		}
		group.Spans = append(group.Spans, newSpanMessage(s))
	}
	data, err := json.Marshal(exportRequest{[]resourceSpans{rs}})
	if err != nil {
		return nil, fmt.Errorf("encode spans: %w", err)
	}
	return data, nil
}

func newSpanMessage(s sdktrace.ReadOnlySpan) spanMessage {
	self, parent := s.SpanContext(), s.Parent()
	m := spanMessage{
		TraceID:           self.TraceID(),
		SpanID:            self.SpanID(),
		TraceState:        self.TraceState().String(),
		Flags:             flags(self.TraceFlags(), parent),
		Name:              s.Name(),
		Kind:              s.SpanKind(),
		Start:             nanos(s.StartTime()),
		End:               nanos(s.EndTime()),
		Attributes:        keyValues(s.Attributes()),
		DroppedAttributes: s.DroppedAttributes(),
		DroppedEvents:     s.DroppedEvents(),
		DroppedLinks:      s.DroppedLinks(),
		Status:            newStatus(s.Status()),
	}
	if parent.HasSpanID() {
		m.ParentSpanID = parent.SpanID().String()
	}
	for _, e := range s.Events() {
		m.Events = append(m.Events, eventMessage{nanos(e.Time), e.Name, keyValues(e.Attributes), e.DroppedAttributeCount})
	}
	for _, l := range s.Links() {
		c := l.SpanContext
		m.Links = append(m.Links, linkMessage{
			TraceID: c.TraceID(), SpanID: c.SpanID(), TraceState: c.TraceState().String(),
			Attributes: keyValues(l.Attributes), DroppedAttributes: l.DroppedAttributeCount,
			Flags: flags(c.TraceFlags(), c),
		})
	}
	return m
}

// flags adds to the W3C flags whether other, a parent or a link, is of another
// process, and that this is known.
func flags(w3c trace.TraceFlags, other trace.SpanContext) uint32 {
	f := uint32(w3c) | flagKnowsRemote
	if other.IsRemote() {
		f |= flagIsRemote
	}
	return f
}

// newStatus: OTLP numbers Ok and Error the other way round.
func newStatus(s sdktrace.Status) statusMessage {
	switch s.Code {
	case codes.Ok:
		return statusMessage{1, s.Description}
	case codes.Error:
		return statusMessage{2, s.Description}
	}
	return statusMessage{0, s.Description}
}

func nanos(t time.Time) unixNano { return unixNano(max(0, t.UnixNano())) }

func keyValues(attrs []attribute.KeyValue) []keyValue {
	out := make([]keyValue, 0, len(attrs))
	for _, a := range attrs {
		out = append(out, keyValue{string(a.Key), anyValue(a.Value)})
	}
	return out
}

// anyValue is an AnyValue: an object of one member, or of none for no value.
func anyValue(v attribute.Value) map[string]any {
	switch v.Type() {
	case attribute.BOOL:
		return map[string]any{"boolValue": v.AsBool()}
	case attribute.INT64:
		return map[string]any{"intValue": strconv.FormatInt(v.AsInt64(), 10)}
	case attribute.FLOAT64:
		return map[string]any{"doubleValue": double(v.AsFloat64())}
	case attribute.STRING:
		return map[string]any{"stringValue": v.AsString()}
	case attribute.BYTESLICE:
		return map[string]any{"bytesValue": base64.StdEncoding.EncodeToString(v.AsByteSlice())}
	case attribute.BOOLSLICE:
		return array(v.AsBoolSlice(), attribute.BoolValue)
	case attribute.INT64SLICE:
		return array(v.AsInt64Slice(), attribute.Int64Value)
	case attribute.FLOAT64SLICE:
		return array(v.AsFloat64Slice(), attribute.Float64Value)
	case attribute.STRINGSLICE:
		return array(v.AsStringSlice(), attribute.StringValue)
	case attribute.SLICE:
		return array(v.AsSlice(), func(v attribute.Value) attribute.Value { return v })
	case attribute.MAP:
		return map[string]any{"kvlistValue": map[string]any{"values": keyValues(v.AsMap())}}
	}
	return map[string]any{}
}

func array[T any](items []T, value func(T) attribute.Value) map[string]any {
	values := make([]map[string]any, 0, len(items))
	for _, item := range items {
		values = append(values, anyValue(value(item)))
	}
	return map[string]any{"arrayValue": map[string]any{"values": values}}
}

// double is a number, or protobuf's name for what JSON cannot write.
func double(f float64) any {
	switch {
	case math.IsNaN(f):
		return "NaN"
	case math.IsInf(f, 1):
		return "Infinity"
	case math.IsInf(f, -1):
		return "-Infinity"
	}
	return f
}
