package mem

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/walherd/walherd/storage"
)

func TestCopy(t *testing.T) {
	t.Parallel()
	b := New()
	if _, err := storage.Copy(t.Context(), b, "a/from", "b/to"); !errors.Is(err, storage.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
	for _, name := range []string{"a/from", "b/to"} {
		if _, err := b.Put(t.Context(), name, strings.NewReader("content of "+name), storage.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	info, err := storage.Copy(t.Context(), b, "a/from", "b/to")
	if err != nil || info.Size != int64(len("content of a/from")) {
		t.Fatalf("%+v, %v", info, err)
	}
	r, err := b.Open(t.Context(), "b/to", storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "content of a/from" {
		t.Errorf("copied %q, %v", got, err)
	}
}
