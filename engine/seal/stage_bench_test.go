//go:build unix

package seal

import (
	"bufio"
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"golang.org/x/crypto/chacha20poly1305"
)

// BenchmarkStage is what one core does, and what the bare library does with
// the same bytes: METHOD/encode|decode/ours|library. The figure is MB/core-s,
// bytes over the processor time of the process, collector included; run it
// with -cpu 1. WALHERD_BENCH_CORPUS names a file to use instead of noise.
//
// The library is, for OpenPGP and the envelope, the library's own message
// writer and reader with the same keys; for libsodium and the key services the
// bare AEAD over buffers in place, in pieces of the format's size: no stream,
// no copy, no framing.
func BenchmarkStage(b *testing.B) {
	data := stageCorpus(b)
	chacha, err := chacha20poly1305.New(make([]byte, chacha20poly1305.KeySize))
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
	for _, m := range methods(b) {
		bare := barePGP(b, m.sealer)
		switch m.name {
		case "libsodium":
			bare = bareAEAD(b, chacha, plainChunk)
		case "awskms", "yandexkms":
			bare = bareAEAD(b, gcm, 64<<10)
		}
		packed := sealed(b, m.sealer, data, stageWrite)
		for _, c := range []struct {
			name string
			run  func() error
		}{
			{"encode/ours", func() error {
				w, err := m.sealer.Seal(context.Background(), new(copySink))
				if err != nil {
					return err
				}
				return writeAll(w, data)
			}},
			{"encode/library", func() error { return bare.encode(data) }},
			{"decode/ours", func() error {
				r, err := m.sealer.Open(context.Background(), struct{ io.Reader }{bytes.NewReader(packed)})
				if err != nil {
					return err
				}
				return drain(r, len(data))
			}},
			{"decode/library", func() error { return bare.decode(len(data)) }},
		} {
			b.Run(fmt.Sprintf("%s/%s", m.name, c.name), func(b *testing.B) { perCore(b, len(data), c.run) })
		}
	}
}

// bareLibrary seals data, and opens as many bytes sealed before.
type bareLibrary struct {
	encode func(data []byte) error
	decode func(size int) error
}

func bareAEAD(b *testing.B, aead cipher.AEAD, chunk int) bareLibrary {
	nonce := make([]byte, aead.NonceSize())
	plain := make([]byte, chunk, chunk+aead.Overhead())
	box := aead.Seal(nil, nonce, plain, nil)
	opened := make([]byte, chunk)
	return bareLibrary{
		encode: func(data []byte) error {
			for ; len(data) > 0; data = data[min(len(data), chunk):] {
				aead.Seal(plain[:0], nonce, plain, nil)
			}
			return nil
		},
		decode: func(size int) error {
			for ; size > 0; size -= chunk {
				if _, err := aead.Open(opened[:0], nonce, box, nil); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// barePGP is the library's message for the keys of s; nothing if s has none.
func barePGP(b *testing.B, s Sealer) bareLibrary {
	if e, ok := s.(*envelopePGP); ok {
		s = e.cache.peek(e.wrapped)
	}
	p, ok := s.(*openPGP)
	if !ok {
		return bareLibrary{}
	}
	encode := func(w io.Writer, data []byte) error {
		out := bufio.NewWriterSize(w, pgpBuffer)
		message, err := openpgp.Encrypt(out, p.ring, nil, &openpgp.FileHints{IsBinary: true}, p.config())
		if err != nil {
			return err
		}
		for ; len(data) > 0; data = data[min(len(data), pgpBuffer):] {
			if _, err := message.Write(data[:min(len(data), pgpBuffer)]); err != nil {
				return err
			}
		}
		if err := message.Close(); err != nil {
			return err
		}
		return out.Flush()
	}
	var packed bytes.Buffer
	if err := encode(&packed, stageCorpus(b)); err != nil {
		b.Fatal(err)
	}
	return bareLibrary{
		encode: func(data []byte) error { return encode(new(copySink), data) },
		decode: func(size int) error {
			message, err := openpgp.ReadMessage(bytes.NewReader(packed.Bytes()), p.ring, nil, p.config())
			if err != nil {
				return err
			}
			return drain(message.UnverifiedBody, size)
		},
	}
}

// perCore runs f and reports its rate in plain bytes per second of processor
// time.
func perCore(b *testing.B, size int, f func() error) {
	b.SetBytes(int64(size))
	start := processorTime(b)
	for b.Loop() {
		if err := f(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(size)*float64(b.N)/1e6/(processorTime(b)-start).Seconds(), "MB/core-s")
}

func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func stageCorpus(b *testing.B) []byte {
	name := os.Getenv("WALHERD_BENCH_CORPUS")
	if name == "" {
		return noise(benchSize)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	return data
}

const stageWrite = 256 << 10

func writeAll(w io.WriteCloser, data []byte) error {
	for ; len(data) > 0; data = data[min(len(data), stageWrite):] {
		if _, err := w.Write(data[:min(len(data), stageWrite)]); err != nil {
			return err
		}
	}
	return w.Close()
}

// copySink takes bytes as the next stage does: it copies them.
type copySink [stageWrite]byte

func (s *copySink) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		rest = rest[copy(s[:], rest):]
	}
	return len(p), nil
}

func drain(r io.Reader, want int) error {
	buf, n := make([]byte, stageWrite), 0
	for {
		k, err := r.Read(buf)
		n += k
		switch {
		case err == io.EOF && n == want:
			return nil
		case err == io.EOF:
			return fmt.Errorf("read %d bytes, want %d", n, want)
		case err != nil:
			return err
		}
	}
}
