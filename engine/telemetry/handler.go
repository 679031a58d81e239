package telemetry

import (
	"context"
	"encoding"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/trace"
)

// ParseLogLevel reads WALG_LOG_LEVEL: NORMAL, DEVEL or ERROR, in capitals.
// Empty is NORMAL.
func ParseLogLevel(s string) (slog.Level, error) {
	switch s {
	case "", "NORMAL":
		return slog.LevelInfo, nil
	case "DEVEL":
		return slog.LevelDebug, nil
	case "ERROR":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("unknown log level %q (want NORMAL, DEVEL or ERROR)", s)
}

// timeLayout is that of the reference's log lines, in local time.
const timeLayout = "2006/01/02 15:04:05.000000"

// Handler writes each record as one line:
//
//	INFO: 2026/11/22 19:01:02.000123 segment is stored segment=000000010000000000000001 bytes=16777216
//
// The level is INFO, WARNING, ERROR or DEBUG. Attributes follow the text as
// key=value, a group's as group.key=value; a value with a space, a quote, an
// equals sign or a control character is quoted as Go quotes it. In the text,
// line ends and other control characters are written as Go escapes. When the
// context has a span, the trace's id comes last as trace_id.
type Handler struct {
	out    *output
	level  slog.Leveler
	prefix string // of the open groups, each with its dot
	attrs  []byte // of WithAttrs, formatted, each with a space in front
}

// output is shared by a handler and all made from it.
type output struct {
	mu sync.Mutex
	w  io.Writer
}

var _ slog.Handler = (*Handler)(nil)

// NewHandler returns a Handler that writes records of at least level to w,
// one Write for each. level may change while it is used (slog.LevelVar).
func NewHandler(w io.Writer, level slog.Leveler) *Handler {
	return &Handler{out: &output{w: w}, level: level}
}

// Enabled implements slog.Handler.
func (h *Handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func levelName(l slog.Level) string {
	switch {
	case l < slog.LevelInfo:
		return "DEBUG"
	case l < slog.LevelWarn:
		return "INFO"
	case l < slog.LevelError:
		return "WARNING"
	}
	return "ERROR"
}

// Handle implements slog.Handler.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	t := r.Time
	if t.IsZero() {
		t = time.Now()
	}
	line := make([]byte, 0, 256)
	line = append(line, levelName(r.Level)...)
	line = append(line, ": "...)
	line = t.Local().AppendFormat(line, timeLayout)
	line = append(line, ' ')
	line = appendText(line, r.Message)
	line = append(line, h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		line = appendAttr(line, h.prefix, a)
		return true
	})
	if span := trace.SpanContextFromContext(ctx); span.HasTraceID() {
		line = appendAttr(line, "", slog.String(KeyTraceID, span.TraceID().String()))
	}
	line = append(line, '\n')

	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	_, err := h.out.w.Write(line)
	return err
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs = c.attrs[:len(c.attrs):len(c.attrs)] // never into a sibling's bytes
	for _, a := range attrs {
		c.attrs = appendAttr(c.attrs, h.prefix, a)
	}
	return &c
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.prefix += name + "."
	return &c
}

func appendAttr(line []byte, prefix string, a slog.Attr) []byte {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, inner := range v.Group() {
			line = appendAttr(line, prefix, inner)
		}
		return line
	}
	if a.Key == "" && v.Equal(slog.Value{}) {
		return line
	}
	line = append(line, ' ')
	line = appendWord(line, prefix+a.Key)
	line = append(line, '=')
	return appendWord(line, valueText(v))
}

func valueText(v slog.Value) string {
	switch v.Kind() {
	case slog.KindTime:
		return v.Time().Format(time.RFC3339Nano)
	case slog.KindAny:
		// An error first: some are texts too, of less use.
		switch x := v.Any().(type) {
		case error:
			return x.Error()
		case fmt.Stringer:
			return x.String()
		case encoding.TextMarshaler:
			if b, err := x.MarshalText(); err == nil {
				return string(b)
			}
		case []byte:
			return string(x)
		}
	}
	return v.String()
}

// appendWord quotes what would not read as one word.
func appendWord(line []byte, s string) []byte {
	if s == "" || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool {
		return r == ' ' || r == '"' || r == '=' || !strconv.IsPrint(r)
	}) {
		return strconv.AppendQuote(line, s)
	}
	return append(line, s...)
}

// appendText keeps a message on its line; unlike a word, it keeps spaces and
// quotes as they are.
func appendText(line []byte, s string) []byte {
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			line = fmt.Appendf(line, `\x%02x`, s[0])
		case r == '\'' || r == '"' || r == '\\' || strconv.IsPrint(r):
			line = append(line, s[:n]...)
		default:
			q := strconv.QuoteRune(r)
			line = append(line, q[1:len(q)-1]...)
		}
		s = s[n:]
	}
	return line
}
