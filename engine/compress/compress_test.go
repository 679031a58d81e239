package compress

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// failer is what helpers need of a test, a benchmark or a rapid check.
type failer interface {
	Helper()
	Fatal(args ...any)
}

// pack compresses data in writes of chunk bytes; chunk 0 goes through ReadFrom.
func pack(t failer, o Options, data []byte, chunk int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, o)
	if err != nil {
		t.Fatal(err)
	}
	if chunk == 0 {
		_, err = io.Copy(w, struct{ io.Reader }{bytes.NewReader(data)})
	} else {
		for p := data; err == nil && len(p) > 0; p = p[min(chunk, len(p)):] {
			_, err = w.Write(p[:min(chunk, len(p))])
		}
	}
	if err := errors.Join(err, w.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// packMethod packs data with m, be it one that is only read.
func packMethod(t failer, m Method, data []byte) []byte {
	t.Helper()
	if m != Gzip {
		return pack(t, Options{Method: m}, data, 0)
	}
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(data)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// checked are the methods whose streams carry a checksum.
func checked() []Method { return []Method{LZ4, Zstd, Gzip} }

func framed() []Method { return append(checked(), Brotli, LZMA) }

// lean gives an LZMA stream of at most 4 KiB of plain bytes a dictionary of that
// size, where a test reads it a thousand times.
func lean(m Method, packed []byte) []byte {
	if m == LZMA {
		binary.LittleEndian.PutUint32(packed[1:], lzma.MinDictCap)
	}
	return packed
}

func unpack(m Method, packed []byte, workers int) ([]byte, error) {
	// A reader that gives half of what is asked for meets every short read.
	r, err := NewReader(iotest.HalfReader(bytes.NewReader(packed)), m, workers)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// library unpacks with the format's other implementation.
func library(m Method, packed []byte) ([]byte, error) {
	switch m {
	case LZ4:
		return io.ReadAll(lz4.NewReader(bytes.NewReader(packed)))
	case Zstd:
		d, err := zstd.NewReader(nil)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		return d.DecodeAll(packed, nil)
	case Brotli:
		return io.ReadAll(brotli.NewReader(bytes.NewReader(packed)))
	case LZMA:
		r, err := lzma.NewReader(bytes.NewReader(packed))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(r)
	case Gzip:
		r, err := gzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(r)
	}
	return packed, nil
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		o := Options{
			Method:  rapid.SampledFrom([]Method{LZ4, Zstd, Brotli, LZMA, None}).Draw(t, "method"),
			Workers: rapid.IntRange(0, 3).Draw(t, "workers"),
		}
		if o.Method == Zstd {
			o.Level = rapid.SampledFrom([]Level{"", LevelFastest, LevelDefault, LevelBetter}).Draw(t, "level")
		}
		size := rapid.SampledFrom([]int{0, 1, 12, 13, 15, 16, 100, brotliBlock - 1, brotliBlock, brotliBlock + 1, lz4BlockSize - 1, lz4BlockSize, lz4BlockSize + 1,
			3 * lz4BlockSize, 7*lz4BlockSize + 5}).Draw(t, "size")
		data := rapid.SampledFrom([]func(int) []byte{zeros, noise, pages, mixed}).Draw(t, "data")(size)
		chunk := rapid.SampledFrom([]int{0, 8192, lz4BlockSize, lz4BlockSize + 1, 1 << 20}).Draw(t, "chunk")

		packed := pack(t, o, data, chunk)
		for workers := 1; workers <= 3; workers++ {
			got, err := unpack(o.Method, packed, workers)
			if err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%d workers read %d bytes of %d, error %v", workers, len(got), len(data), err)
			}
		}
		if got, err := library(o.Method, packed); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("the library reads %d bytes of %d, error %v", len(got), len(data), err)
		}
	})
}

func TestZstdJobs(t *testing.T) {
	t.Parallel()
	// Several jobs of 4 MiB, so that overlaps and order are met.
	data := mixed(4*4*zstdJobWindow + 77)
	packed := pack(t, Options{Method: Zstd, Workers: 2}, data, 1<<20)
	for _, workers := range []int{1, 2} {
		if got, err := unpack(Zstd, packed, workers); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("read %d bytes of %d, error %v", len(got), len(data), err)
		}
	}
	if n := bytes.Count(packed, []byte{0x28, 0xb5, 0x2f, 0xfd}); n != 1 {
		t.Errorf("%d frames, want one: a stream cut between two would read as whole", n)
	}
}

// TestZstdProbe: a stream of noise and a small one are no work for jobs.
func TestZstdProbe(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		about string
		data  []byte
		jobs  bool
	}{
		{"noise", noise(1 << 20), false},
		{"packed pages", packMethod(t, Gzip, pages(8<<20)), false},
		{"short of the probe", pages(zstdProbe - 1), false},
		{"the probe's size", pages(zstdProbe), true},
		{"pages", pages(1 << 20), true},
		{"a fifth of zeros in noise", append(zeros(zstdProbe/5), noise(1<<20)...), true},
	} {
		for _, chunk := range []int{8192, 1 << 20} {
			o := Options{Method: Zstd, Workers: 2}
			packed := pack(t, o, c.data, chunk)
			var h zstd.Header
			if err := h.Decode(packed); err != nil {
				t.Fatal(err)
			}
			if jobs := h.WindowSize == zstdJobWindow; jobs != c.jobs {
				t.Errorf("%s: jobs %v, window %d", c.about, jobs, h.WindowSize)
			}
			if got, err := unpack(Zstd, packed, 2); err != nil || !bytes.Equal(got, c.data) {
				t.Errorf("%s: read %d bytes of %d, error %v", c.about, len(got), len(c.data), err)
			}
		}
	}
}

func TestHeader(t *testing.T) {
	t.Parallel()
	packed := pack(t, Options{Method: LZ4}, []byte("x"), 1)
	// Magic, version 1 + independent + content checksum, blocks of 256 KiB,
	// and the header's checksum; WAL-G's differs in the block size alone.
	if got := hex.EncodeToString(packed[:7]); got != "04224d18645008" {
		t.Errorf("LZ4 header %s", got)
	}
	packed = pack(t, Options{Method: Zstd}, []byte("x"), 1)
	if packed[4]&(1<<2) == 0 {
		t.Errorf("zstd frame header %x has no checksum flag", packed[:5])
	}
	// lc 3, lp 0, pb 2, a dictionary of 8 MiB, unknown size, the range coder's zero.
	packed = pack(t, Options{Method: LZMA}, []byte("x"), 1)
	if got := hex.EncodeToString(packed[:14]); got != "5d00008000ffffffffffffffff00" {
		t.Errorf("LZMA header %s", got)
	}
}

// command runs one of the formats' own programs.
func command(t testing.TB, in []byte, name string, args ...string) ([]byte, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%v; run: make deps", err)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(in)
	return cmd.Output()
}

// TestCommand reads what is written here with the formats' own programs.
func TestCommand(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{{Method: LZ4}, {Method: LZ4, Workers: 2}, {Method: Zstd}, {Method: Zstd, Workers: 2}, {Method: Brotli}, {Method: LZMA}} {
		t.Run(fmt.Sprint(o), func(t *testing.T) {
			t.Parallel()
			name, args := string(o.Method), []string{"-dc"}
			if o.Method == LZMA {
				name, args = "xz", []string{"--format=lzma", "-dc"}
			}
			for _, data := range [][]byte{nil, []byte("x"), zeros(3<<20 + 1), mixed(20<<20 + 3)} {
				got, err := command(t, pack(t, o, data, 0), name, args...)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("read %d bytes of %d, error %v", len(got), len(data), err)
				}
			}
		})
	}
}

// TestCommandWrites reads what the programs write, with more than one setting.
func TestCommandWrites(t *testing.T) {
	t.Parallel()
	data := mixed(2<<20 + 3)
	for line, m := range map[string]Method{
		"brotli -c -q 3":                      Brotli,
		"brotli -c -q 9 --lgwin=24":           Brotli,
		"brotli -c -q 1 --lgwin=10":           Brotli,
		"xz -c --format=lzma -1":              LZMA,
		"xz -c --format=lzma -9":              LZMA,
		"xz -c --lzma1=lc=0,lp=2,pb=0 -Flzma": LZMA,
		"gzip -c -1":                          Gzip,
		"gzip -c -9":                          Gzip,
	} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			words := strings.Fields(line)
			for _, data := range [][]byte{nil, []byte("x"), data} {
				packed, err := command(t, data, words[0], words[1:]...)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := unpack(m, packed, 2); err != nil || !bytes.Equal(got, data) {
					t.Errorf("read %d bytes of %d, error %v", len(got), len(data), err)
				}
			}
		})
	}
}

// TestForeign reads frames others have made: linked 64 KiB blocks; high
// compression with block checksums and content size; zstd's level 19.
func TestForeign(t *testing.T) {
	t.Parallel()
	const rows = "932c7e8c9ac0377c614398377c921c7d8bca7ecce6fa37488708c6ffc4e7dd8f"
	for name, m := range map[string]Method{"linked.lz4": LZ4, "checked.lz4": LZ4, "cli.zst": Zstd} {
		for workers := 1; workers <= 2; workers++ {
			got, err := unpack(m, fixture(t, name), workers)
			if sum := sha256.Sum256(got); err != nil || hex.EncodeToString(sum[:]) != rows {
				t.Errorf("%s, %d workers: %d bytes, error %v", name, workers, len(got), err)
			}
		}
	}
	for name, m := range map[string]Method{"walg.lz4": LZ4, "walg.br": Brotli} {
		got, err := unpack(m, fixture(t, name), 1)
		if err != nil || !strings.HasPrefix(string(got), "START WAL LOCATION: 0/") {
			t.Errorf("%s, a backup history file of WAL-G: %.40q, error %v", name, got, err)
		}
	}
	segment, err := unpack(Brotli, fixture(t, "segment.br"), 1)
	if sum := sha256.Sum256(segment); err != nil || hex.EncodeToString(sum[:]) != "53d0593e24d3103d9c132448b5d8c498d8cdc4e7164ec00d78ae43498b22ea56" {
		t.Errorf("WAL segment of WAL-G: %d bytes, error %v", len(segment), err)
	}
	if got, err := unpack(LZMA, fixture(t, "cli.lzma"), 1); err != nil || !bytes.Equal(got, segment) {
		t.Errorf("the same segment by xz: %d bytes, error %v", len(got), err)
	}
}

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFrameParameters(t *testing.T) {
	t.Parallel()
	data := mixed(5<<20 + 1)
	for _, size := range []lz4.BlockSize{lz4.Block64Kb, lz4.Block256Kb, lz4.Block1Mb, lz4.Block4Mb} {
		for _, sum := range []bool{false, true} {
			var out bytes.Buffer
			w := lz4.NewWriter(&out)
			if err := w.Apply(lz4.BlockSizeOption(size), lz4.BlockChecksumOption(sum), lz4.ChecksumOption(!sum),
				lz4.SizeOption(uint64(len(data)))); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(data); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			for workers := 1; workers <= 3; workers++ {
				if got, err := unpack(LZ4, out.Bytes(), workers); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%v, block checksum %v, %d workers: %d bytes, error %v", size, sum, workers, len(got), err)
				}
			}
		}
	}
}

func TestConcatenated(t *testing.T) {
	t.Parallel()
	packed := bytes.Join([][]byte{packMethod(t, Gzip, []byte("a")), packMethod(t, Gzip, nil), packMethod(t, Gzip, []byte("b"))}, nil)
	if got, err := unpack(Gzip, packed, 1); err != nil || string(got) != "ab" {
		t.Errorf("three gzip members: %q, %v", got, err)
	}
	skippable := append([]byte{0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0}, "any"...)
	for _, m := range []Method{LZ4, Zstd} {
		one, two := pages(300_000), noise(1000)
		packed := bytes.Join([][]byte{
			skippable, pack(t, Options{Method: m}, one, 0), pack(t, Options{Method: m}, nil, 0),
			skippable, pack(t, Options{Method: m}, two, 0), skippable,
		}, nil)
		want := append(bytes.Clone(one), two...)
		if m == LZ4 { // a linked frame between independent ones
			packed = append(packed, fixture(t, "linked.lz4")...)
			rows, err := library(LZ4, fixture(t, "linked.lz4"))
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, rows...)
		}
		for workers := 1; workers <= 2; workers++ {
			if got, err := unpack(m, packed, workers); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, %d workers: %d bytes of %d, error %v", m, workers, len(got), len(want), err)
			}
		}
	}
}

func TestTruncated(t *testing.T) {
	t.Parallel()
	for _, m := range framed() {
		for _, data := range [][]byte{nil, noise(60), pages(3000)} {
			packed := lean(m, packMethod(t, m, data))
			for n := range packed {
				for workers := 1; workers <= 2; workers++ {
					_, err := unpack(m, packed[:n], workers)
					if !errors.Is(err, ErrCorrupt) || !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Fatalf("%s cut to %d of %d bytes, %d workers: %v", m, n, len(packed), workers, err)
					}
				}
			}
		}
	}
}

// flip reads packed with each of its bits flipped in turn and returns the bits
// that make other data of it without an error.
func flip(t *testing.T, m Method, packed, data []byte) (unseen []int) {
	t.Helper()
	for bit := range len(packed) * 8 {
		packed[bit/8] ^= 1 << (bit % 8)
		got, err := unpack(m, packed, 1+bit%2)
		if err == nil && !bytes.Equal(got, data) {
			unseen = append(unseen, bit)
		}
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s with bit %d flipped: %v is not ErrCorrupt", m, bit, err)
		}
		packed[bit/8] ^= 1 << (bit % 8)
	}
	return unseen
}

func TestFlippedBit(t *testing.T) {
	t.Parallel()
	for _, m := range checked() {
		for _, data := range [][]byte{nil, noise(40), pages(800)} {
			// No error at all comes of bits that mean nothing, of which
			// zstd's and gzip's headers have some.
			if bits := flip(t, m, packMethod(t, m, data), data); bits != nil {
				t.Errorf("%s with one of the bits %d flipped reads as other data", m, bits)
			}
		}
	}
}

// TestUnseen keeps to the package comment's word on what the methods without a
// checksum let through.
func TestUnseen(t *testing.T) {
	t.Parallel()
	for _, data := range [][]byte{nil, noise(40), pages(800), pages(4000)} {
		bits := flip(t, LZMA, lean(LZMA, packMethod(t, LZMA, data)), data)
		t.Logf("lzma, %d bytes: %d bits", len(data), len(bits))
		for _, bit := range bits {
			if bit/8 < lzma.HeaderLen+1 || bit/8 > lzma.HeaderLen+5 {
				t.Errorf("lzma: bit %d of byte %d is let through", bit%8, bit/8)
			}
		}
	}
	data := pages(8192)
	packed := packMethod(t, Brotli, data)
	bits := flip(t, Brotli, packed, data)
	t.Logf("brotli: %d of %d bits", len(bits), 8*len(packed))
	if len(bits) == 0 {
		t.Error("brotli lets no flipped bit through")
	}
}

func TestTrailingGarbage(t *testing.T) {
	t.Parallel()
	for _, m := range framed() {
		for _, tail := range []string{"\x00", "g", "garbage", strings.Repeat("garbage", 20_000)} {
			packed := append(packMethod(t, m, pages(100)), tail...)
			if _, err := unpack(m, packed, 1); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s and %d bytes: %v", m, len(tail), err)
			}
		}
	}
	for _, m := range []Method{Brotli, LZMA} {
		packed := packMethod(t, m, pages(100))
		if _, err := unpack(m, append(packed, packed...), 1); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s twice: %v", m, err)
		}
	}
}

func TestWindowBound(t *testing.T) {
	t.Parallel()
	// A frame header that asks for a window of 2 GiB, then one raw block.
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, (31 - 10) << 3, 0x09, 0x00, 0x00, 'x'}
	if _, err := unpack(Zstd, frame, 1); !errors.Is(err, zstd.ErrWindowSizeExceeded) || !errors.Is(err, ErrCorrupt) {
		t.Errorf("window of 2 GiB: %v", err)
	}
	frame[5] = (27 - 10) << 3
	if got, err := unpack(Zstd, frame, 1); err != nil || string(got) != "x" {
		t.Errorf("window of 128 MiB: %q, %v", got, err)
	}

	packed := packMethod(t, LZMA, []byte("x"))
	binary.LittleEndian.PutUint32(packed[1:], lzmaMaxDictionary+1)
	var size *lzma.ErrDictSize
	if _, err := unpack(LZMA, packed, 1); !errors.As(err, &size) || !errors.Is(err, ErrCorrupt) {
		t.Errorf("dictionary of more than 128 MiB: %v", err)
	}
	binary.LittleEndian.PutUint32(packed[1:], lzmaMaxDictionary)
	if got, err := unpack(LZMA, packed, 1); err != nil || string(got) != "x" {
		t.Errorf("dictionary of 128 MiB: %q, %v", got, err)
	}

	// The first byte of the "large window" extension (brotli --large_window).
	if _, err := unpack(Brotli, []byte{0x11, 0x1e, 0x03}, 1); !errors.Is(err, ErrCorrupt) {
		t.Errorf("large window: %v", err)
	}
}

// failAfter fails every write from the n-th byte on.
type failAfter struct {
	n    int
	err  error
	dead bool
}

func (f *failAfter) Write(p []byte) (int, error) {
	if f.dead {
		return 0, errors.New("written to after an error")
	}
	if f.n -= len(p); f.n < 0 {
		f.dead = true
		return 0, f.err
	}
	return len(p), nil
}

func TestWriterFails(t *testing.T) {
	t.Parallel()
	full := errors.New("disk full")
	for _, m := range []Method{LZ4, Zstd, Brotli, LZMA, None} {
		for _, workers := range []int{1, 2} {
			for _, room := range []int{0, 5, 8, 300_000, 3 << 20} {
				w, err := NewWriter(&failAfter{n: room, err: full}, Options{Method: m, Workers: workers})
				if err != nil {
					t.Fatal(err)
				}
				// Never closed: an error must end the goroutines too.
				for i := range 100 {
					if _, err = w.Write(noise(1<<20 + i)); err != nil {
						break
					}
				}
				if !errors.Is(err, full) {
					t.Fatalf("%s, %d workers, room for %d: %v", m, workers, room, err)
				}
				if _, again := w.Write([]byte("x")); again == nil || again.Error() != err.Error() {
					t.Errorf("second write says %v, the first %v", again, err)
				}
				if room == 5 {
					w.Abort()
					if last := w.Close(); last == nil || last.Error() != err.Error() {
						t.Errorf("close says %v, the write %v", last, err)
					}
				}
			}
		}
	}
}

func TestCloseFails(t *testing.T) {
	t.Parallel()
	full := errors.New("disk full")
	for _, m := range []Method{LZ4, Zstd, Brotli, LZMA} {
		for _, workers := range []int{1, 2} {
			for _, size := range []int{0, 10, 2*lz4BlockSize + 1} {
				whole := len(pack(t, Options{Method: m, Workers: workers}, noise(size), 0))
				for _, room := range []int{0, min(7, whole-1), whole - 1} {
					w, err := NewWriter(&failAfter{n: room, err: full}, Options{Method: m, Workers: workers})
					if err != nil {
						t.Fatal(err)
					}
					_, first := w.Write(noise(size))
					if err := w.Close(); !errors.Is(err, full) || first != nil && err.Error() != first.Error() {
						t.Errorf("%s, %d workers, %d bytes, room for %d: close says %v, write %v", m, workers, size, room, err, first)
					}
				}
			}
		}
	}
}

func TestAbort(t *testing.T) {
	t.Parallel()
	for _, m := range []Method{LZ4, Zstd, Brotli, LZMA, None} {
		for _, workers := range []int{1, 2} {
			var out bytes.Buffer
			w, err := NewWriter(&out, Options{Method: m, Workers: workers})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(noise(3 << 20)); err != nil {
				t.Fatal(err)
			}
			w.Abort()
			w.Abort()
			if _, err := w.Write([]byte("x")); !errors.Is(err, errAborted) {
				t.Errorf("%s: write after abort: %v", m, err)
			}
			if err := w.Close(); !errors.Is(err, errAborted) {
				t.Errorf("%s: close after abort: %v", m, err)
			}
			if _, err := unpack(m, out.Bytes(), 1); m != None && !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: an aborted stream reads as whole (%v)", m, err)
			}
		}
	}
}

func TestWriteAfterClose(t *testing.T) {
	t.Parallel()
	for _, m := range []Method{LZ4, Zstd, Brotli, LZMA, None} {
		w, err := NewWriter(io.Discard, Options{Method: m, Workers: 2})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		w.Abort()
		if err := w.Close(); err != nil {
			t.Errorf("%s: second close: %v", m, err)
		}
		if _, err := w.Write([]byte("x")); !errors.Is(err, errEnded) {
			t.Errorf("%s: write after close: %v", m, err)
		}
	}
}

func TestReadFromSourceFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	var out bytes.Buffer
	w, err := NewWriter(&out, Options{Method: LZ4, Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	n, err := w.(io.ReaderFrom).ReadFrom(io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(broken)))
	if n != 3 || err != broken {
		t.Errorf("read %d, %v", n, err)
	}
	if err := w.Close(); err != nil {
		t.Fatalf("the writer is usable after its source failed: %v", err)
	}
	if got, err := unpack(LZ4, out.Bytes(), 1); string(got) != "abc" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// TestReaderSourceFails tells a failing source from damage, even where the
// source says that its own bytes ended early.
func TestReaderSourceFails(t *testing.T) {
	t.Parallel()
	for _, broken := range []error{errors.New("connection reset"), io.ErrUnexpectedEOF} {
		for _, m := range framed() {
			packed := packMethod(t, m, noise(1<<20))
			for _, n := range []int{0, 2, 5, 70_000, len(packed) - 2} {
				for workers := 1; workers <= 2; workers++ {
					r, err := NewReader(io.MultiReader(bytes.NewReader(packed[:n]), iotest.ErrReader(broken)), m, workers)
					if err != nil {
						t.Fatal(err)
					}
					_, err = io.Copy(io.Discard, r)
					if !errors.Is(err, broken) || errors.Is(err, ErrCorrupt) {
						t.Errorf("%s, %d workers, after %d bytes: %v", m, workers, n, err)
					}
					if _, again := r.Read(make([]byte, 1)); again == nil || again.Error() != err.Error() {
						t.Errorf("%s: second read says %v, the first %v", m, again, err)
					}
					r.Close()
				}
			}
		}
	}
}

func TestReaderClosedEarly(t *testing.T) {
	t.Parallel()
	for _, m := range framed() {
		packed := packMethod(t, m, mixed(8<<20))
		for workers := 1; workers <= 3; workers++ {
			for _, n := range []int{0, 1, 1 << 20} {
				r, err := NewReader(bytes.NewReader(packed), m, workers)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(r.Close(), r.Close()); err != nil {
					t.Error(err)
				}
				if _, err := r.Read(make([]byte, 1)); err == nil || err == io.EOF {
					t.Errorf("%s: read after close: %v", m, err)
				}
			}
		}
	}
}

func TestWriteToFails(t *testing.T) {
	t.Parallel()
	full := errors.New("disk full")
	for _, m := range framed() {
		r, err := NewReader(bytes.NewReader(packMethod(t, m, mixed(2<<20))), m, 2)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(&failAfter{n: 1 << 20, err: full}, r); !errors.Is(err, full) || errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", m, err)
		}
		r.Close()
	}
}

func TestSmallObjectInLargeFrame(t *testing.T) {
	t.Parallel()
	// WAL-G frames a history file of a few bytes with blocks of 4 MiB.
	packed := fixture(t, "walg.lz4")
	r, err := newLZ4Reader(bytes.NewReader(packed), 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	if b := r.(*lz4Reader).single; cap(b.raw)+cap(b.packed) > 256<<10 {
		t.Errorf("%d bytes of buffers for an object of %d", cap(b.raw)+cap(b.packed), len(packed))
	}
}

func TestXXH32(t *testing.T) {
	t.Parallel()
	// The first is xxHash's own sanity value; the others were made by the
	// frame checksums of the lz4 command.
	for in, want := range map[string]uint32{"": 0x02CC5D05, "Nobody inspects the spammish repetition": 0xE2293B2F} {
		if got := xxh32Sum([]byte(in)); got != want {
			t.Errorf("XXH32 of %q is %08x, want %08x", in, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		data := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "data")
		var x xxh32
		x.reset()
		for p := data; len(p) > 0; {
			n := rapid.IntRange(1, len(p)).Draw(t, "n")
			x.write(p[:n])
			p = p[n:]
		}
		var out bytes.Buffer
		w := lz4.NewWriter(&out)
		_, _ = w.Write(data)
		_ = w.Close()
		want := binary.LittleEndian.Uint32(out.Bytes()[out.Len()-4:])
		if got := x.sum(); got != want || xxh32Sum(data) != want {
			t.Fatalf("XXH32 is %08x, the library says %08x", got, want)
		}
	})
}

func TestMethods(t *testing.T) {
	t.Parallel()
	for _, m := range []Method{LZ4, Zstd, Brotli, LZMA, None} {
		if got, err := ParseMethod(string(m)); got != m || err != nil {
			t.Errorf("ParseMethod(%q) = %q, %v", m, got, err)
		}
		if got, err := ByExtension(m.Extension()); got != m || err != nil {
			t.Errorf("ByExtension(%q) = %q, %v", m.Extension(), got, err)
		}
	}
	for ext, want := range map[string]Method{"lz4": LZ4, "zst": Zstd, "br": Brotli, "lzma": LZMA, "gz": Gzip, "bz2": Bzip2, "": None} {
		if m, err := ByExtension(ext); m != want || err != nil {
			t.Errorf("ByExtension(%q) = %q, %v", ext, m, err)
		}
	}
	if got := fmt.Sprint(Extensions()); got != "[lz4 zst br lzma gz bz2]" {
		t.Errorf("Extensions() = %s", got)
	}
	for _, s := range []string{"", "gzip", "lzo", "LZ4", "zst"} {
		if m, err := ParseMethod(s); m != "" || err == nil || !strings.Contains(err.Error(), "lz4, zstd, brotli, lzma, none") {
			t.Errorf("ParseMethod(%q) = %q, %v", s, m, err)
		}
	}
	if _, err := ByExtension("lzo"); err == nil || !strings.Contains(err.Error(), "lzop -d") {
		t.Errorf("lzop: %v", err)
	}
	for _, s := range []string{"lzo", "tar", ".lz4", "lz4 "} {
		if m, err := ByExtension(s); err == nil {
			t.Errorf("ByExtension(%q) = %q", s, m)
		}
	}
	for in, want := range map[string]Level{"Fastest": LevelFastest, "BEST": LevelBest, "default": LevelDefault, "better": LevelBetter} {
		if got, err := ParseLevel(in); got != want || err != nil {
			t.Errorf("ParseLevel(%q) = %q, %v", in, got, err)
		}
	}
	for _, s := range []string{"", "3", "fast"} {
		if l, err := ParseLevel(s); err == nil {
			t.Errorf("ParseLevel(%q) = %q", s, l)
		}
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	for o, ok := range map[Options]bool{
		{Method: LZ4}:                       true,
		{Method: Zstd, Level: LevelBest}:    true,
		{Method: None, Workers: 4}:          true,
		{}:                                  false,
		{Method: Gzip}:                      false,
		{Method: Brotli, Workers: 2}:        true,
		{Method: LZMA, Workers: 2}:          true,
		{Method: Brotli, Level: LevelBest}:  false,
		{Method: LZ4, Level: LevelDefault}:  false,
		{Method: None, Level: LevelDefault}: false,
		{Method: Zstd, Level: "3"}:          false,
		{Method: Zstd, Workers: -1}:         false,
	} {
		if err := o.Validate(); (err == nil) != ok {
			t.Errorf("%+v: %v", o, err)
		}
		if _, err := NewWriter(io.Discard, o); (err == nil) != ok {
			t.Errorf("NewWriter with %+v: %v", o, err)
		}
	}
	if _, err := NewReader(strings.NewReader(""), "lzo", 1); err == nil {
		t.Error("NewReader takes an unknown method")
	}
}

func TestPoolPanic(t *testing.T) {
	t.Parallel()
	p := newPool(2, 3, func() func(*block) { return func(b *block) { b.plain[0] = 1 } })
	p.submit(p.take())
	if b := p.next(); b.err == nil || !strings.Contains(b.err.Error(), "panic") {
		t.Errorf("a panic in a worker became %v", b.err)
	}
	p.close()
	p.wait()
	if b := p.next(); b != nil {
		t.Error("a block after the last")
	}
}
