package compress

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/ulikunitz/xz/lzma"
)

// benchSize is that of a large enough stream for several zstd jobs.
const benchSize = 64 << 20

// benchInputs are generated; COMPRESS_BENCH_FILE adds a file of the user's,
// such as a tar of a data directory.
func benchInputs(b *testing.B) map[string][]byte {
	in := map[string][]byte{"pages": pages(benchSize), "noise": noise(benchSize), "zeros": zeros(benchSize)}
	if name := os.Getenv("COMPRESS_BENCH_FILE"); name != "" {
		data, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		in["file"] = data
	}
	return in
}

func benchOptions() []Options {
	var all []Options
	for _, workers := range []int{1, 2} {
		all = append(all, Options{Method: LZ4, Workers: workers})
		for _, l := range []Level{LevelFastest, LevelDefault} {
			all = append(all, Options{Method: Zstd, Level: l, Workers: workers})
		}
	}
	return append(all, Options{Method: Brotli, Workers: 1}, Options{Method: LZMA, Workers: 1})
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

func BenchmarkWrite(b *testing.B) {
	for name, data := range benchInputs(b) {
		for _, o := range benchOptions() {
			b.Run(fmt.Sprintf("%s/%s%s/workers=%d", name, o.Method, o.Level, o.Workers), func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				b.ReportAllocs()
				var out counter
				for b.Loop() {
					out = 0
					w, err := NewWriter(&out, o)
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
				b.ReportMetric(float64(len(data))/float64(out), "ratio")
			})
		}
	}
}

func BenchmarkRead(b *testing.B) {
	for name, data := range benchInputs(b) {
		for _, o := range benchOptions() {
			b.Run(fmt.Sprintf("%s/%s%s/workers=%d", name, o.Method, o.Level, o.Workers), func(b *testing.B) {
				packed := pack(b, o, data, 0)
				b.SetBytes(int64(len(data)))
				b.ReportAllocs()
				for b.Loop() {
					r, err := NewReader(bytes.NewReader(packed), o.Method, o.Workers)
					if err != nil {
						b.Fatal(err)
					}
					if n, err := io.Copy(io.Discard, r); err != nil || n != int64(len(data)) {
						b.Fatal(n, err)
					}
					r.Close()
				}
			})
		}
	}
}

// BenchmarkLibrary is what the two single-threaded codecs do alone.
func BenchmarkLibrary(b *testing.B) {
	encoders := map[string]func(io.Writer) (io.WriteCloser, error){
		"brotli": func(w io.Writer) (io.WriteCloser, error) { return brotli.NewWriterV2(w, brotliQuality), nil },
		"brotli-port": func(w io.Writer) (io.WriteCloser, error) {
			return brotli.NewWriterLevel(w, brotliQuality), nil
		},
		"lzma": func(w io.Writer) (io.WriteCloser, error) { return lzma.NewWriter(w) },
	}
	for input, data := range benchInputs(b) {
		for name, open := range encoders {
			b.Run(fmt.Sprintf("write/%s/%s", input, name), func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				var out counter
				for b.Loop() {
					out = 0
					w, err := open(&out)
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
				b.ReportMetric(float64(len(data))/float64(out), "ratio")
			})
		}
		for _, m := range []Method{Brotli, LZMA} {
			b.Run(fmt.Sprintf("read/%s/%s", input, m), func(b *testing.B) {
				packed := pack(b, Options{Method: m}, data, 0)
				b.SetBytes(int64(len(data)))
				for b.Loop() {
					if _, err := library(m, packed); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkXXH32(b *testing.B) {
	data := noise(lz4BlockSize)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		xxh32Sum(data)
	}
}
