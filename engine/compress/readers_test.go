package compress

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
)

// A reader gives its own stream and no other's, whatever the one before it met.
func TestReaders(t *testing.T) {
	t.Parallel()
	for _, m := range []Method{Zstd, LZ4} {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			var readers Readers
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					for n := range 20 {
						plain := bytes.Repeat([]byte(fmt.Sprintf("%d of %d;", n, i)), 1+n*997)
						stored := packMethod(t, m, plain)
						cut := n%3 == 1
						if cut {
							stored = stored[:len(stored)-1-n%len(stored)/2]
						}
						r, err := readers.New(bytes.NewReader(stored), m)
						if err != nil {
							t.Errorf("%d: %v", n, err)
							return
						}
						if n%3 == 2 {
							_, _ = r.Read(make([]byte, 3)) // and it is left there
						} else if got, err := io.ReadAll(r); cut != errors.Is(err, ErrCorrupt) || !cut && (err != nil || !bytes.Equal(got, plain)) {
							t.Errorf("%d, cut %t: %d bytes, error %v", n, cut, len(got), err)
						}
						if err := errors.Join(r.Close(), r.Close()); err != nil {
							t.Error(err)
						}
						if n, err := r.Read(make([]byte, 1)); n > 0 || err == nil {
							t.Errorf("read after Close: %d bytes, error %v", n, err)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// BenchmarkSmallStreams reads streams of 8 KiB, as the files of a backup that is
// kept file by file.
func BenchmarkSmallStreams(b *testing.B) {
	stored := packMethod(b, Zstd, bytes.Repeat([]byte("relation"), 1024))
	var readers Readers
	for name, open := range map[string]func(io.Reader) (io.ReadCloser, error){
		"each its own": func(r io.Reader) (io.ReadCloser, error) { return NewReader(r, Zstd, 1) },
		"used again":   func(r io.Reader) (io.ReadCloser, error) { return readers.New(r, Zstd) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r, err := open(bytes.NewReader(stored))
				if err != nil {
					b.Fatal(err)
				}
				// By Read, as who checks what it reads does.
				if _, err := io.Copy(io.Discard, struct{ io.Reader }{r}); err != nil {
					b.Fatal(err)
				}
				if err := r.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
