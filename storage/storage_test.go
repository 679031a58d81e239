package storage_test

import (
	"errors"
	"path"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/storagetest"
)

func TestCheckName(t *testing.T) {
	t.Parallel()
	for _, name := range storagetest.BadNames() {
		if err := storage.CheckName(name); !errors.Is(err, storage.ErrName) {
			t.Errorf("CheckName(%q) = %v, want ErrName", name, err)
		}
	}
	for _, name := range []string{"a", "a/b", "...", "..a/b..", ".a", "a.", "a/.b"} {
		if err := storage.CheckName(name); err != nil {
			t.Errorf("CheckName(%q) = %v", name, err)
		}
	}
}

// A name that passes stays below any root it is joined to, unchanged.
func FuzzCheckName(f *testing.F) {
	for _, name := range append(storagetest.BadNames(), "a/b", "a.b/..c") {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if storage.CheckName(name) != nil {
			return
		}
		if got := path.Join("/root", name); got != "/root/"+name {
			t.Errorf("%q below /root is %q", name, got)
		}
	})
}

func TestRangeCut(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(0, 50).Draw(t, "size")
		rng := storage.Range{Offset: rapid.Int64Range(-2, 60).Draw(t, "offset"), Length: rapid.Int64Range(-2, 60).Draw(t, "length")}
		n, err := rng.Cut(size)
		switch {
		case rng.Offset < 0 || rng.Length < 0:
			if !errors.Is(err, storage.ErrRange) {
				t.Fatalf("%+v: %v, want ErrRange", rng, err)
			}
		case rng.Offset > size:
			if !errors.Is(err, storage.ErrRange) {
				t.Fatalf("%+v of %d: %v, want ErrRange", rng, size, err)
			}
		default:
			data := strings.Repeat("x", int(size))[rng.Offset:]
			if rng.Length > 0 && int(rng.Length) < len(data) {
				data = data[:rng.Length]
			}
			if err != nil || n != int64(len(data)) {
				t.Fatalf("%+v of %d: %d, %v; want %d", rng, size, n, err, len(data))
			}
		}
	})
}

func TestSub(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(t *testing.T) storage.Bucket {
		below := mem.New()
		storagetest.MustPut(t, below, "pg/main", []byte("not below the prefix"))
		storagetest.MustPut(t, below, "pg/mainx/y", []byte("not below the prefix"))
		b, err := storage.Sub(below, "/pg/main/")
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}

func TestSubPrefix(t *testing.T) {
	t.Parallel()
	below := mem.New()
	for _, prefix := range []string{"", "/", "//"} {
		if b, err := storage.Sub(below, prefix); err != nil || b != storage.Bucket(below) {
			t.Errorf("Sub(%q) = %v, %v; want the bucket itself", prefix, b, err)
		}
	}
	for _, prefix := range []string{"..", "a/../b", "a//b", "./a"} {
		if _, err := storage.Sub(below, prefix); !errors.Is(err, storage.ErrName) {
			t.Errorf("Sub(%q): %v, want ErrName", prefix, err)
		}
	}
	b, err := storage.Sub(below, "a/b")
	if err != nil {
		t.Fatal(err)
	}
	storagetest.MustPut(t, b, "c/d", []byte("x"))
	if got := storagetest.MustGet(t, below, "a/b/c/d"); string(got) != "x" {
		t.Errorf("got %q", got)
	}
}
