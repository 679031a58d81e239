package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// The reference's frames, byte for byte.
func TestFrames(t *testing.T) {
	t.Parallel()
	const segment = "000000010000000000000003"
	for _, tc := range []struct {
		req  Request
		want string
	}{
		{Request{Kind: Check}, "C\x00\x03"},
		{Request{Kind: Push, Name: segment}, "F\x00\x1b" + segment},
		{Request{Kind: Push, Name: "00000002.history"}, "F\x00\x1300000002.history"},
		{Request{Kind: Fetch, Name: segment, Destination: "pg_wal/RECOVERYXLOG"},
			"f\x00\x33\x02\x00\x18" + segment + "\x00\x13pg_wal/RECOVERYXLOG"},
	} {
		got, err := tc.req.AppendTo([]byte("before"))
		if err != nil || string(got) != "before"+tc.want {
			t.Errorf("%v: frame %q, %v, want %q", tc.req, got, err, tc.want)
		}
		// One byte at a time, as a socket may give them; what follows stays.
		r := strings.NewReader(tc.want + "after")
		back, err := ReadRequest(iotest.OneByteReader(r))
		if err != nil || back != tc.req {
			t.Errorf("%q: read %v, %v", tc.want, back, err)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "after" {
			t.Errorf("%q: the reader took bytes of the next frame; left %q", tc.want, rest)
		}
	}
	if req, err := ReadRequest(strings.NewReader("C\x00\x06abc")); err != nil || req != (Request{Kind: Check}) {
		t.Errorf("a check with a body: %v, %v", req, err)
	}
}

func TestMalformed(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		frame string
		want  error
	}{
		"nothing":                 {"", io.EOF},
		"only a kind":             {"F", io.ErrUnexpectedEOF},
		"half a length":           {"F\x00", io.ErrUnexpectedEOF},
		"no body":                 {"F\x00\x05", io.ErrUnexpectedEOF},
		"short body":              {"F\x00\x05a", io.ErrUnexpectedEOF},
		"unknown kind":            {"X\x00\x03", ErrMalformed},
		"kind zero":               {"\x00\x00\x03", ErrMalformed},
		"length 0":                {"C\x00\x00", ErrMalformed},
		"length 2":                {"C\x00\x02", ErrMalformed},
		"too long":                {"F\x20\x01", ErrMalformed},
		"as long as can be":       {"F\xff\xff", ErrMalformed},
		"push without a name":     {"F\x00\x03", ErrMalformed},
		"fetch without a body":    {"f\x00\x03", ErrMalformed},
		"no arguments":            {"f\x00\x04\x00", ErrMalformed},
		"one argument":            {"f\x00\x07\x01\x00\x01a", ErrMalformed},
		"three arguments":         {"f\x00\x0d\x03\x00\x01a\x00\x01b\x00\x01c", ErrMalformed},
		"fewer than announced":    {"f\x00\x07\x02\x00\x01a", ErrMalformed},
		"argument beyond the end": {"f\x00\x0a\x02\x00\x01a\x00\x02b", ErrMalformed},
		"half an argument length": {"f\x00\x08\x02\x00\x01a\x00", ErrMalformed},
		"bytes after the last":    {"f\x00\x0b\x02\x00\x01a\x00\x01bc", ErrMalformed},
		"empty name":              {"f\x00\x09\x02\x00\x00\x00\x01b", ErrMalformed},
		"empty destination":       {"f\x00\x09\x02\x00\x01a\x00\x00", ErrMalformed},
	} {
		if req, err := ReadRequest(strings.NewReader(tc.frame)); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, %v, want %v", name, req, err, tc.want)
		}
	}
}

func TestTooLongToSend(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", MaxFrame)
	for _, req := range []Request{
		{Kind: Push, Name: long},
		{Kind: Push, Name: long[:MaxFrame-2]},
		{Kind: Fetch, Name: "a", Destination: long},
		{Kind: Fetch, Name: "a", Destination: strings.Repeat(long, 9)}, // past the two bytes of length
		{Kind: 'X'},
	} {
		if b, err := req.AppendTo(nil); err == nil || len(b) > 0 {
			t.Errorf("%s of %d bytes: a frame of %d bytes, %v", req.Kind, len(req.Name)+len(req.Destination), len(b), err)
		}
	}
	if b, err := (Request{Kind: Push, Name: long[:MaxFrame-3]}).AppendTo(nil); err != nil || len(b) != MaxFrame {
		t.Errorf("the longest frame: %d bytes, %v", len(b), err)
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.Map(rapid.SliceOfN(rapid.Byte(), 1, 4000), func(b []byte) string { return string(b) })
		req := Request{Kind: rapid.SampledFrom([]Kind{Check, Push, Fetch}).Draw(t, "kind")}
		if req.Kind != Check {
			req.Name = text.Draw(t, "name")
		}
		if req.Kind == Fetch {
			req.Destination = text.Draw(t, "destination")
		}
		frame, err := req.AppendTo(nil)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := ReadRequest(bytes.NewReader(frame)); err != nil || back != req {
			t.Fatalf("%+v came back as %+v, %v", req, back, err)
		}
	})
}

// FuzzReadRequest: whatever is read can be said again and means the same, and
// no byte after the frame is taken.
func FuzzReadRequest(f *testing.F) {
	for _, s := range []string{"C\x00\x03", "C\x00\x06abc", "F\x00\x05ab", "f\x00\x09\x02\x00\x01a\x00\x01b", "f\x00\x07\x02\x00\x01a", "F\xff\xff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		req, err := ReadRequest(r)
		if err != nil {
			return
		}
		size := int(b[1])<<8 | int(b[2])
		if taken := len(b) - r.Len(); taken != size {
			t.Fatalf("took %d bytes of a frame of %d", taken, size)
		}
		frame, err := req.AppendTo(nil)
		if err != nil {
			t.Fatalf("%+v was read and cannot be sent: %v", req, err)
		}
		if req.Kind != Check && !bytes.Equal(frame, b[:size]) {
			t.Fatalf("%q was read, %q is sent", b[:size], frame)
		}
	})
}
