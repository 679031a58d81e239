package telemetry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/slogtest"
	"time"

	"go.opentelemetry.io/otel/trace"
	"pgregory.net/rapid"
)

func TestLine(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 22, 19, 1, 2, 123_999, time.Local)
	cases := []struct {
		level slog.Level
		text  string
		attrs []any
		want  string
	}{
		{slog.LevelInfo, "plain text", nil, "INFO: 2026/11/22 19:01:02.000123 plain text"},
		{slog.LevelWarn, "w", nil, "WARNING: 2026/11/22 19:01:02.000123 w"},
		{slog.LevelError, "e", nil, "ERROR: 2026/11/22 19:01:02.000123 e"},
		{slog.LevelDebug, "d", nil, "DEBUG: 2026/11/22 19:01:02.000123 d"},
		{slog.LevelInfo + 1, "between", nil, "INFO: 2026/11/22 19:01:02.000123 between"},
		{slog.LevelInfo, `it's "quoted" \ größe`, nil, `INFO: 2026/11/22 19:01:02.000123 it's "quoted" \ größe`},
		{slog.LevelInfo, "two\nlines\r\ttab\x00\xff\u2028", nil, `INFO: 2026/11/22 19:01:02.000123 two\nlines\r\ttab\x00\xff\u2028`},
		{
			slog.LevelInfo, "x",
			[]any{KeySegment, "000000010000000000000001", KeyBytes, 16777216, "ok", true, KeyDuration, 1500 * time.Millisecond},
			"INFO: 2026/11/22 19:01:02.000123 x segment=000000010000000000000001 bytes=16777216 ok=true duration=1.5s",
		},
		{
			slog.LevelInfo, "x",
			[]any{"e", errors.New("a b\nc"), "empty", "", "eq", "a=b", "q", `a"b`, "u", "größe", "b", []byte("raw")},
			`INFO: 2026/11/22 19:01:02.000123 x e="a b\nc" empty="" eq="a=b" q="a\"b" u=größe b=raw`,
		},
		{
			slog.LevelInfo, "x",
			[]any{slog.Group("g", "a", 1, slog.Group("h", "b", 2)), "nil", nil, "key with\nspace", 1},
			`INFO: 2026/11/22 19:01:02.000123 x g.a=1 g.h.b=2 nil=<nil> "key with\nspace"=1`,
		},
	}
	for _, c := range cases {
		var out bytes.Buffer
		r := slog.NewRecord(at, c.level, c.text, 0)
		r.Add(c.attrs...)
		if err := NewHandler(&out, slog.LevelDebug).Handle(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); got != c.want+"\n" {
			t.Errorf("got  %swant %s", got, c.want)
		}
	}
}

func TestLevel(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	var level slog.LevelVar
	log := slog.New(NewHandler(&out, &level))
	log.Debug("no")
	log.Info("yes")
	level.Set(slog.LevelError)
	log.Warn("no")
	log.Error("yes")
	if got := strings.Count(out.String(), "yes"); got != 2 || strings.Contains(out.String(), "no") {
		t.Errorf("%s", out.String())
	}
}

func TestTraceID(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := slog.New(NewHandler(&out, slog.LevelInfo)).With("a", 1).WithGroup("g")
	ctx := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1, 2, 3}, SpanID: trace.SpanID{4},
	}))
	log.InfoContext(ctx, "x", "b", 2)
	log.Info("y")
	lines := strings.Split(out.String(), "\n")
	if !strings.HasSuffix(lines[0], " x a=1 g.b=2 trace_id=01020300000000000000000000000000") || !strings.HasSuffix(lines[1], " y a=1") {
		t.Errorf("%q", lines)
	}
}

// TestSlog runs the standard library's own checks of a handler. They allow a
// record without a time to have none; ours shows the present instead, since
// each line has one, so that check is left out.
func TestSlog(t *testing.T) {
	t.Parallel()
	line := regexp.MustCompile(`^INFO: (\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6}) (\w+)((?: [^ =]+=[^ ]+)*)\n$`)
	var out *bytes.Buffer
	slogtest.Run(t, func(t *testing.T) slog.Handler {
		if strings.HasSuffix(t.Name(), "zero-time") {
			t.Skip("a line always has a time")
		}
		out = new(bytes.Buffer)
		return NewHandler(out, slog.LevelInfo)
	}, func(t *testing.T) map[string]any {
		m := line.FindStringSubmatch(out.String())
		if m == nil {
			t.Fatalf("line %q", out.String())
		}
		record := map[string]any{slog.TimeKey: m[1], slog.LevelKey: "INFO", slog.MessageKey: m[2]}
		for _, f := range strings.Fields(m[3]) {
			key, value, _ := strings.Cut(f, "=")
			at := record
			path := strings.Split(key, ".")
			for _, g := range path[:len(path)-1] {
				if at[g] == nil {
					at[g] = map[string]any{}
				}
				at = at[g].(map[string]any)
			}
			at[path[len(path)-1]] = value
		}
		return record
	})
}

func TestSiblings(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	parent := slog.New(NewHandler(&out, slog.LevelInfo)).With("p", 1)
	var all []*slog.Logger
	for i := range 10 {
		all = append(all, parent.With("c", i))
	}
	for i, log := range all {
		out.Reset()
		log.Info("x")
		if want := fmt.Sprintf(" x p=1 c=%d\n", i); !strings.HasSuffix(out.String(), want) {
			t.Errorf("got %q, want %q", out.String(), want)
		}
	}
}

// oneWrite fails the test when a line comes in pieces.
type oneWrite struct {
	t  *testing.T
	mu sync.Mutex
	n  int
}

func (o *oneWrite) Write(p []byte) (int, error) {
	if !o.mu.TryLock() {
		o.t.Error("two writes at a time")
		return len(p), nil
	}
	defer o.mu.Unlock()
	if bytes.Count(p, []byte("\n")) != 1 || p[len(p)-1] != '\n' {
		o.t.Errorf("write of %q", p)
	}
	o.n++
	return len(p), nil
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	w := &oneWrite{t: t}
	log := slog.New(NewHandler(w, slog.LevelInfo))
	var wg sync.WaitGroup
	for i := range 8 {
		child := log.With("i", i)
		wg.Go(func() {
			for range 100 {
				child.Info("x\ny", "k", "v\nw")
			}
		})
	}
	wg.Wait()
	if w.n != 800 {
		t.Errorf("%d lines", w.n)
	}
}

func TestOneLine(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var out bytes.Buffer
		text := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }))
		slog.New(NewHandler(&out, slog.LevelInfo)).
			WithGroup(text.Draw(t, "group")).
			Info(text.Draw(t, "text"), text.Draw(t, "key"), text.Draw(t, "value"))
		b := out.Bytes()
		for _, c := range b[:len(b)-1] {
			if c < ' ' || c == 0x7f {
				t.Fatalf("control character in %q", b)
			}
		}
		if b[len(b)-1] != '\n' {
			t.Fatalf("no end in %q", b)
		}
	})
}

func TestParseLogLevel(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]slog.Level{"": slog.LevelInfo, "NORMAL": slog.LevelInfo, "DEVEL": slog.LevelDebug, "ERROR": slog.LevelError} {
		if got, err := ParseLogLevel(s); got != want || err != nil {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"normal", "DEBUG", "ERROR "} {
		if _, err := ParseLogLevel(s); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
}

func BenchmarkHandler(b *testing.B) {
	log := slog.New(NewHandler(io.Discard, slog.LevelInfo)).With(KeyCluster, "main")
	b.ReportAllocs()
	for b.Loop() {
		log.LogAttrs(context.Background(), slog.LevelInfo, "segment is stored",
			slog.String(KeySegment, "000000010000000000000001"), slog.Int64(KeyBytes, 16<<20))
	}
}
