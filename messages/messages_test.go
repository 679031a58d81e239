package messages_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/messages"
)

func TestEnvelopeRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		job := messages.ArchiveJob{
			Name: rapid.String().Draw(t, "name"), KeepExisting: rapid.Bool().Draw(t, "keep"),
			Bytes: messages.Ref{Carrier: "jetstream", ID: rapid.String().Draw(t, "id"), Size: rapid.Int64().Draw(t, "size"),
				Seqs: []messages.SeqRange{{First: rapid.Uint64().Draw(t, "first"), Last: rapid.Uint64().Draw(t, "last")}}},
		}
		data, err := messages.Encode(messages.KindArchive, "c1", time.Now(), job)
		if err != nil {
			t.Fatal(err)
		}
		e, err := messages.Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		got, err := messages.Unpack[messages.ArchiveJob](e)
		if err != nil {
			t.Fatal(err)
		}
		a, _ := json.Marshal(job)
		b, _ := json.Marshal(got)
		if string(a) != string(b) {
			t.Fatalf("got %s, sent %s", b, a)
		}
	})
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		data string
		want error
	}{
		"not json":        {"{", messages.ErrMalformed},
		"newer version":   {`{"v":2,"kind":"part","cluster":"c"}`, messages.ErrVersion},
		"no version":      {`{"kind":"part","cluster":"c"}`, messages.ErrVersion},
		"bad cluster":     {`{"v":1,"kind":"part","cluster":"a.b"}`, messages.ErrMalformed},
		"unknown members": {`{"v":1,"kind":"part","cluster":"c","later":{"x":1}}`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := messages.Decode([]byte(tc.data)); !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"v":1,"kind":"part","cluster":"c","body":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := messages.Decode(data)
		if err == nil && e.Version != messages.Version {
			t.Fatalf("accepted version %d", e.Version)
		}
	})
}

func TestChunkSubjectIsOneTokenPerPart(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.StringN(1, 60, -1).Draw(t, "part")
		s := messages.ChunkSubject("c", "run", part, 3)
		if n := strings.Count(s, "."); n != 5 {
			t.Fatalf("%q has %d dots", s, n)
		}
		if strings.ContainsAny(s, " *>") {
			t.Fatalf("%q is no subject to publish on", s)
		}
	})
}
