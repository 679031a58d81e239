package seal

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha1"
	"io"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"
)

// benchSize is that of a stream long enough for its head not to count.
const benchSize = 16 << 20

func BenchmarkSeal(b *testing.B) {
	data := noise(benchSize)
	for _, m := range methods(b) {
		b.Run(m.name, func(b *testing.B) {
			b.SetBytes(benchSize)
			b.ReportAllocs()
			for b.Loop() {
				w, err := m.sealer.Seal(context.Background(), io.Discard)
				if err != nil {
					b.Fatal(err)
				}
				for p := data; len(p) > 0; p = p[min(len(p), 256<<10):] {
					if _, err := w.Write(p[:min(len(p), 256<<10)]); err != nil {
						b.Fatal(err)
					}
				}
				if err := w.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	data := noise(benchSize)
	for _, m := range methods(b) {
		object := sealed(b, m.sealer, data, 1<<20)
		b.Run(m.name, func(b *testing.B) {
			b.SetBytes(benchSize)
			b.ReportAllocs()
			buf := make([]byte, 256<<10)
			for b.Loop() {
				r, err := m.sealer.Open(context.Background(), bytes.NewReader(object))
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, buf); err != nil || n != benchSize {
					b.Fatal(n, err)
				}
			}
		})
	}
}

// BenchmarkRaw is what the primitives give without any format: the figure to
// hold the others against.
func BenchmarkRaw(b *testing.B) {
	chacha, err := chacha20poly1305.New(make([]byte, 32))
	if err != nil {
		b.Fatal(err)
	}
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		b.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		aead  cipher.AEAD
		chunk int
	}{{"chacha20poly1305-8KiB", chacha, 8192}, {"aes256gcm-64KiB", gcm, 65536}} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(c.chunk))
			buf, nonce := make([]byte, c.chunk, c.chunk+16), make([]byte, 12)
			for b.Loop() {
				c.aead.Seal(buf[:0], nonce, buf, nil)
			}
		})
	}
	b.Run("sha1-64KiB", func(b *testing.B) {
		b.SetBytes(65536)
		buf := make([]byte, 65536)
		for b.Loop() {
			sha1.Sum(buf)
		}
	})
}
