package manifest_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/manifest"
)

func TestSetPermanent(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ in, permanent, not string }{
		"plain":            {`{"a":1,"is_permanent":false,"b":[2]}`, `{"a":1,"is_permanent":true,"b":[2]}`, `{"a":1,"is_permanent":false,"b":[2]}`},
		"spaced":           {"{ \"is_permanent\" :\n true }", "{ \"is_permanent\" :\n true }", "{ \"is_permanent\" :\n false }"},
		"absent":           {`{"a":1}`, `{"is_permanent":true,"a":1}`, `{"is_permanent":false,"a":1}`},
		"empty":            {`{}`, `{"is_permanent":true}`, `{"is_permanent":false}`},
		"not the nested":   {`{"user_data":{"is_permanent":7},"is_permanent":null}`, `{"user_data":{"is_permanent":7},"is_permanent":true}`, `{"user_data":{"is_permanent":7},"is_permanent":false}`},
		"twice and by any": {`{"Is_Permanent":false,"is_permanent":0}`, `{"Is_Permanent":true,"is_permanent":true}`, `{"Is_Permanent":false,"is_permanent":false}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for permanent, want := range map[bool]string{true: c.permanent, false: c.not} {
				got, err := manifest.SetPermanent([]byte(c.in), permanent)
				if err != nil || string(got) != want {
					t.Errorf("%t: %s, %v; want %s", permanent, got, err, want)
				}
			}
		})
	}
	for _, bad := range []string{"", "[]", "null", `{"a":1`, `{"a"}`, "7"} {
		if got, err := manifest.SetPermanent([]byte(bad), true); err == nil {
			t.Errorf("%q became %q", bad, got)
		}
	}
}

// FuzzSetPermanent: what is made of a readable document reads the same but for
// the flag.
func FuzzSetPermanent(f *testing.F) {
	m := manifest.Metadata{StartTime: time.Unix(1700000000, 1000), Hostname: "h", UserData: manifest.UserData(`{"x":1}`)}
	doc, err := m.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc, true)
	f.Add([]byte(`{"is_permanent":true}`), false)
	f.Fuzz(func(t *testing.T, doc []byte, permanent bool) {
		before, err := manifest.ParseMetadata(doc)
		if err != nil {
			return
		}
		out, err := manifest.SetPermanent(doc, permanent)
		if err != nil {
			return // null is a document to the parser
		}
		after, err := manifest.ParseMetadata(out)
		if err != nil {
			t.Fatalf("%s became %s: %v", doc, out, err)
		}
		if after.IsPermanent != permanent {
			t.Fatalf("%s became %s", doc, out)
		}
		before.IsPermanent = permanent
		want, _ := json.Marshal(before)
		if got, _ := json.Marshal(after); string(got) != string(want) {
			t.Fatalf("%s became %s", doc, out)
		}
	})
}
