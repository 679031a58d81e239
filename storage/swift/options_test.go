package swift_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/swift"
)

func TestParsePrefix(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"swift://c": "c|", "swift://c/": "c|", "swift://c/a/b": "c|a/b", "swift://c/a/b/": "c|a/b", "swift://my container/ü": "my container|ü",
	} {
		container, prefix, err := swift.ParsePrefix(s)
		if got := container + "|" + prefix; err != nil || got != want {
			t.Errorf("ParsePrefix(%q) = %q, %v; want %q", s, got, err, want)
		}
	}
	for _, s := range []string{"", "swift://", "swift:///a", "s3://c/a", "c/a", "swift://c/a//b", "swift://c/../b", "swift://../b", "swift://c\xff", "swift://" + strings.Repeat("c", 250)} {
		if c, p, err := swift.ParsePrefix(s); err == nil {
			t.Errorf("ParsePrefix(%q) = %q, %q", s, c, p)
		}
	}
}

// FuzzParsePrefix: what is taken can be written and read again.
func FuzzParsePrefix(f *testing.F) {
	f.Add("swift://c/a/b")
	f.Add("swift://c//")
	f.Fuzz(func(t *testing.T, s string) {
		container, prefix, err := swift.ParsePrefix(s)
		if err != nil {
			return
		}
		c, p, err := swift.ParsePrefix("swift://" + container + "/" + prefix)
		if err != nil || c != container || p != prefix {
			t.Errorf("%q became %q, %q and then %q, %q, %v", s, container, prefix, c, p, err)
		}
	})
}

func TestSettings(t *testing.T) {
	t.Parallel()
	good := map[string]string{"OS_AUTH_URL": "https://id.example.org/v3", "OS_USERNAME": "u", "OS_PASSWORD": "p"}
	junk := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(junk, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, value, hint string
	}{
		{"OS_AUTH_URL", "", "OS_AUTH_URL"},
		{"OS_AUTH_URL", "id.example.org", "https://"},
		{"OS_AUTH_URL", "https://id.example.org/", "ST_AUTH_VERSION"},
		{"OS_ENDPOINT_TYPE", "outside", "OS_ENDPOINT_TYPE"},
		{"ST_AUTH_VERSION", "4", "ST_AUTH_VERSION"},
		{"OS_IDENTITY_API_VERSION", "x", "OS_IDENTITY_API_VERSION"},
		{"GOSWIFT_INTERNAL", "maybe", "GOSWIFT_INTERNAL"},
		{"GOSWIFT_TIMEOUT", "60", "GOSWIFT_TIMEOUT"},
		{"GOSWIFT_CONNECT_TIMEOUT", "-1s", "GOSWIFT_CONNECT_TIMEOUT"},
		{"GOSWIFT_RETRIES", "many", "GOSWIFT_RETRIES"},
		{"OS_CACERT", junk, "OS_CACERT"},
		{"OS_CACERT", junk + ".none", "OS_CACERT"},
	} {
		set := map[string]string{c.name: c.value}
		for k, v := range good {
			if _, ok := set[k]; !ok {
				set[k] = v
			}
		}
		_, err := swift.Open(t.Context(), swift.Options{Container: "c", Settings: set})
		wantHint(t, err, c.hint)
	}
	for _, set := range []map[string]string{
		good,
		{"OS_AUTH_URL": "https://id.example.org", "OS_IDENTITY_API_VERSION": "3", "OS_USERNAME": "u", "OS_ENDPOINT_TYPE": "internalURL"},
		{"OS_AUTH_URL": "https://id.example.org", "OS_IDENTITY_API_VERSION": "2.0", "OS_USERNAME": "u", "UNKNOWN": "x"},
		{"OS_STORAGE_URL": "https://swift.example.org/v1/AUTH_x", "OS_AUTH_TOKEN": "t"},
		{"ST_AUTH": "https://swift.example.org/auth/v1.0", "ST_USER": "u", "ST_KEY": "p", "GOSWIFT_RETRIES": "0", "GOSWIFT_TIMEOUT": "90s"},
	} {
		b, err := swift.Open(t.Context(), swift.Options{Container: "c", Prefix: "/a/", Settings: set})
		if err != nil {
			t.Errorf("%v: %v", set, err)
			continue
		}
		if got := b.Location(); got != "swift://c/a" {
			t.Errorf("location %q", got)
		}
	}
	for _, bad := range []swift.Options{
		{}, {Container: "a/b"}, {Container: "c", Prefix: "../x"}, {Container: "c", MaxObject: 6 << 30}, {Container: "c", SegmentSize: -1},
		{Container: "c", BufferSize: -1}, {Container: "c", BufferSize: 10, MaxObject: 5}, {Container: "c", DeleteBatch: -1},
	} {
		bad.Settings = good
		_, err := swift.Open(t.Context(), bad)
		wantIs(t, err, storage.ErrPermanent)
	}
	if names := swift.SettingNames(); len(names) < 25 {
		t.Errorf("settings %q", names)
	}
}

// TestLongNames: what Swift cannot hold is no name.
func TestLongNames(t *testing.T) {
	t.Parallel()
	s := start(t, false)
	b := open(t, s.options(t)) // its prefix has 10 bytes with the slash
	longest := strings.Repeat("n", 1014)
	storagetest1(t, b, longest)
	for _, name := range []string{longest + "n", "bad\xff"} {
		_, err := b.Stat(t.Context(), name)
		wantIs(t, err, storage.ErrName)
		wantIs(t, put(t, b, name, nil), storage.ErrName)
	}
	for range b.List(t.Context(), "bad\xff", storage.ListOptions{}) {
		t.Error("listed something")
	}
	n := 0
	for _, err := range b.List(t.Context(), "", storage.ListOptions{After: "n\xff"}) {
		if err != nil {
			t.Error(err)
		}
		n++
	}
	if n != 0 {
		t.Errorf("%d names behind", n)
	}
}

func storagetest1(t *testing.T, b storage.Bucket, name string) {
	t.Helper()
	if err := put(t, b, name, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Stat(t.Context(), name); err != nil {
		t.Error(err)
	}
}

// TestSizesAroundTheLimits: whatever the limits are, content comes back.
func TestSizesAroundTheLimits(t *testing.T) {
	t.Parallel()
	s := start(t, false)
	base := s.options(t)
	n := 0
	rapid.Check(t, func(r *rapid.T) {
		opt := base
		opt.BufferSize = rapid.IntRange(1, 50).Draw(r, "buffer")
		opt.MaxObject = int64(rapid.IntRange(opt.BufferSize, 100).Draw(r, "max"))
		opt.SegmentSize = int64(rapid.IntRange(5, 60).Draw(r, "segment"))
		opt.Segments = true
		data := rapid.SliceOfN(rapid.Byte(), 0, 250).Draw(r, "data")
		hidden := rapid.Bool().Draw(r, "hidden")
		b, err := swift.Open(t.Context(), opt)
		if err != nil {
			r.Fatal(err)
		}
		defer b.Close()
		n++
		name := fmt.Sprint("x", n%3)
		var put error
		if hidden {
			_, put = b.Put(t.Context(), name, streamed(data), storage.PutOptions{})
		} else {
			_, put = b.Put(t.Context(), name, strings.NewReader(string(data)), storage.PutOptions{})
		}
		if put != nil {
			r.Fatal(put)
		}
		if got := mustGet(t, b, name); got != string(data) {
			r.Fatalf("got %d bytes of %d", len(got), len(data))
		}
	})
}
