//go:build unix

package compress

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"
)

// BenchmarkStage is what one core does, and what the bare library does with
// the same bytes and parameters: METHOD/encode|decode/ours|library. The figure
// is MB/core-s, bytes over the processor time of the process, collector
// included; run it with -cpu 1. WALHERD_BENCH_CORPUS names a file to use
// instead of made-up pages.
func BenchmarkStage(b *testing.B) {
	data := stageCorpus(b)
	for _, m := range []Method{LZ4, Zstd, Brotli, LZMA, None} {
		var out bytes.Buffer
		if err := encodeAll(&out, data, func(w io.Writer) (io.WriteCloser, error) { return libraryWriter(m, w) }); err != nil {
			b.Fatal(err)
		}
		packed := out.Bytes()
		for _, c := range []struct {
			name string
			run  func() error
		}{
			{"encode/ours", func() error {
				return encodeAll(new(copySink), data, func(w io.Writer) (io.WriteCloser, error) {
					return NewWriter(w, Options{Method: m, Workers: 1})
				})
			}},
			{"encode/library", func() error {
				return encodeAll(new(copySink), data, func(w io.Writer) (io.WriteCloser, error) { return libraryWriter(m, w) })
			}},
			{"decode/ours", func() error {
				r, err := NewReader(bareReader(packed), m, 1)
				if err != nil {
					return err
				}
				defer r.Close()
				return drain(r, len(data))
			}},
			{"decode/library", func() error {
				r, err := libraryReader(m, bareReader(packed))
				if err != nil {
					return err
				}
				return drain(r, len(data))
			}},
		} {
			b.Run(fmt.Sprintf("%s/%s", m, c.name), func(b *testing.B) { perCore(b, len(data), c.run) })
		}
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
		return pages(16 << 20)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	return data
}

const stageWrite = 256 << 10

func encodeAll(w io.Writer, data []byte, open func(io.Writer) (io.WriteCloser, error)) error {
	enc, err := open(w)
	if err != nil {
		return err
	}
	for p := data; len(p) > 0; p = p[min(len(p), stageWrite):] {
		if _, err := enc.Write(p[:min(len(p), stageWrite)]); err != nil {
			return err
		}
	}
	return enc.Close()
}

// copySink takes bytes as the next stage does: it copies them.
type copySink [stageWrite]byte

func (s *copySink) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		rest = rest[copy(s[:], rest):]
	}
	return len(p), nil
}

// bareReader hides all but Read, as a network does.
func bareReader(p []byte) io.Reader { return struct{ io.Reader }{bytes.NewReader(p)} }

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

// libraryWriter is the library's own stream writer in one goroutine, with the
// parameters the package gives it.
func libraryWriter(m Method, w io.Writer) (io.WriteCloser, error) {
	switch m {
	case LZ4:
		z := lz4.NewWriter(w)
		return z, z.Apply(lz4.BlockSizeOption(lz4.Block256Kb), lz4.ChecksumOption(true), lz4.ConcurrencyOption(1))
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(true))
	case Brotli:
		return brotli.NewWriterV2(w, brotliQuality), nil
	case LZMA:
		out := bufio.NewWriterSize(w, lzmaBuffer)
		enc, err := lzma.WriterConfig{DictCap: lzmaDictionary, EOSMarker: true}.NewWriter(out)
		return &lzmaEncoder{enc, out}, err
	}
	return nopCloser{w}, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func libraryReader(m Method, r io.Reader) (io.Reader, error) {
	switch m {
	case LZ4:
		z := lz4.NewReader(r)
		return z, z.Apply(lz4.ConcurrencyOption(1))
	case Zstd:
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
	case Brotli:
		return brotli.NewReader(r), nil
	case LZMA:
		return lzma.NewReader(bufio.NewReaderSize(r, lzmaBuffer))
	}
	return r, nil
}
