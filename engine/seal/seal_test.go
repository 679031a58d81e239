package seal

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// failer is what helpers need of a test, a benchmark, a fuzz target or a rapid
// check.
type failer interface {
	Helper()
	Fatal(args ...any)
}

const fixtureKey = "fixture-key-fixture-key-fixture!"

func testdata(t failer, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// fakeService is a key service in memory: AES-GCM under its own key, filled
// up with zero bytes to the size asked for.
type fakeService struct {
	aead  cipher.AEAD
	size  int // of what Wrap returns; 0 as it comes
	calls atomic.Int64
	err   error
}

func newFakeService(size int) *fakeService {
	block, err := aes.NewCipher([]byte("the master key of the fake, 32 b"))
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return &fakeService{aead: aead, size: size}
}

func (f *fakeService) Describe() string { return "a fake" }

func (f *fakeService) Wrap(_ context.Context, key []byte) ([]byte, error) {
	f.calls.Add(1)
	nonce := make([]byte, 12)
	rand.Read(nonce)
	if f.size > 0 {
		// The plain text is its length and zero bytes up to the size.
		key = append([]byte{byte(len(key))}, key...)
		key = append(key, make([]byte, f.size-len(key)-28)...)
	}
	return f.aead.Seal(nonce, nonce, key, nil), f.err
}

func (f *fakeService) Unwrap(_ context.Context, wrapped []byte) ([]byte, error) {
	f.calls.Add(1)
	if f.err != nil {
		return nil, f.err
	}
	if len(wrapped) < 28 {
		return nil, errors.New("fake: too short")
	}
	key, err := f.aead.Open(nil, wrapped[:12], wrapped[12:], nil)
	if err != nil {
		return nil, fmt.Errorf("fake: %w: %w", ErrCorrupt, err)
	}
	if f.size > 0 {
		key = key[1 : 1+key[0]]
	}
	return key, nil
}

// fixtureEnvelope is the fixture's private key wrapped by the fake.
func fixtureEnvelope(t failer, f *fakeService) string {
	wrapped, err := f.Wrap(context.Background(), testdata(t, "pgp-private.asc"))
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(wrapped)
}

// method is a Sealer under test and what its format cannot do.
type method struct {
	name    string
	sealer  Sealer
	noEmpty bool // cannot hold an empty stream
}

func methods(t failer) []method {
	t.Helper()
	pgp, err := NewOpenPGP(OpenPGPOptions{Armor: string(testdata(t, "pgp-private.asc"))})
	if err != nil {
		t.Fatal(err)
	}
	sodium, err := NewLibsodium(LibsodiumOptions{Key: fixtureKey})
	if err != nil {
		t.Fatal(err)
	}
	service := newFakeService(0)
	envelope, err := NewEnvelopePGP(context.Background(), EnvelopePGPOptions{Key: fixtureEnvelope(t, service), Service: service})
	if err != nil {
		t.Fatal(err)
	}
	return []method{
		{"openpgp", pgp, false},
		{"libsodium", sodium, false},
		{"awskms", NewAWSKMS(newFakeService(awsBlob)), true},
		{"yandexkms", NewYandexKMS(newFakeService(0)), true},
		{"envelope", envelope, false},
	}
}

func each(t *testing.T, f func(t *testing.T, m method)) {
	t.Helper()
	for _, m := range methods(t) {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			f(t, m)
		})
	}
}

func noise(n int) []byte {
	data := make([]byte, n)
	mathrand.NewChaCha8([32]byte{1}).Read(data)
	return data
}

// sealed seals data in writes of at most chunk bytes.
func sealed(t failer, s Sealer, data []byte, chunk int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := s.Seal(context.Background(), &out)
	if err != nil {
		t.Fatal(err)
	}
	for p := data; err == nil && len(p) > 0; p = p[min(chunk, len(p)):] {
		_, err = w.Write(p[:min(chunk, len(p))])
	}
	if err := errors.Join(err, w.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// opened reads to the end; what came before an error is given too.
func opened(s Sealer, r io.Reader) ([]byte, error) {
	o, err := s.Open(context.Background(), r)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	data, err := io.ReadAll(o)
	if err != nil {
		if _, again := o.Read(make([]byte, 1)); again != err {
			return data, fmt.Errorf("the error %w did not stay, but became %v", err, again)
		}
	}
	return data, err
}

// wantDamaged holds that data is not taken for whole, and that the error is of
// the right class.
func wantDamaged(t failer, s Sealer, data []byte, what string) {
	t.Helper()
	_, err := opened(s, bytes.NewReader(data))
	if err == nil {
		t.Fatal(what + ": taken for whole")
	}
	if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrWrongKey) {
		t.Fatal(fmt.Sprintf("%s: %v is neither ErrCorrupt nor ErrWrongKey", what, err))
	}
}

var borders = []int{0, 1, 15, 16, 17, 63, 64, 511, 512, 513, 8191, 8192, 8193, 16383, 16384, 16385, 65535, 65536, 65537, 8*8192 - 1, 8*8192 + 1, 131072, 200000}

func TestRoundTripAtBorders(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, m method) {
		for _, n := range borders {
			if n == 0 && m.noEmpty {
				continue
			}
			data := noise(n)
			for _, chunk := range []int{1 << 30, 4096, 8193} {
				object := sealed(t, m.sealer, data, chunk)
				if n > 16 && bytes.Contains(object, data[:16]) {
					t.Fatalf("%d bytes: the object holds plain text", n)
				}
				for _, r := range []io.Reader{bytes.NewReader(object), iotest.HalfReader(bytes.NewReader(object)), iotest.DataErrReader(bytes.NewReader(object))} {
					got, err := opened(m.sealer, r)
					if err != nil || !bytes.Equal(got, data) {
						t.Fatalf("%d bytes in writes of %d: got %d bytes, %v", n, chunk, len(got), err)
					}
				}
			}
		}
	})
}

func TestRoundTripProperty(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, m method) {
		rapid.Check(t, func(t *rapid.T) {
			data := rapid.SliceOfN(rapid.Byte(), 1, 40).Draw(t, "seed")
			data = bytes.Repeat(data, rapid.IntRange(1, 2000).Draw(t, "times"))
			object := sealed(t, m.sealer, data, rapid.IntRange(1, 20000).Draw(t, "write"))
			r, err := m.sealer.Open(context.Background(), iotest.HalfReader(bytes.NewReader(object)))
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			buf := make([]byte, rapid.IntRange(1, 20000).Draw(t, "read"))
			for err == nil {
				var n int
				n, err = r.Read(buf)
				got = append(got, buf[:n]...)
			}
			if err != io.EOF || !bytes.Equal(got, data) {
				t.Fatalf("got %d bytes of %d, %v", len(got), len(data), err)
			}
		})
	})
}

func TestEmptyStreamIsRefusedWhereTheFormatHasNone(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, m method) {
		w, err := m.sealer.Seal(context.Background(), io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); (err != nil) != m.noEmpty {
			t.Fatalf("Close of an empty stream: %v", err)
		}
	})
}

func TestSealIsSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, m method) {
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				data := noise(10000 + i)
				got, err := opened(m.sealer, bytes.NewReader(sealed(t, m.sealer, data, 1000)))
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("got %d bytes, %v", len(got), err)
				}
			})
		}
		all.Wait()
	})
}

func TestTwoObjectsOfTheSameDataDiffer(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, m method) {
		data := noise(100)
		a, b := sealed(t, m.sealer, data, 100), sealed(t, m.sealer, data, 100)
		if bytes.Equal(a, b) || bytes.Equal(a[len(a)-32:], b[len(b)-32:]) {
			t.Fatal("two objects are alike")
		}
	})
}

func TestCutAnywhereIsDamaged(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, m method) {
		for _, n := range []int{1, 300} {
			object := sealed(t, m.sealer, noise(n), n)
			for cut := range object {
				wantDamaged(t, m.sealer, object[:cut], fmt.Sprintf("%d of %d bytes", cut, len(object)))
			}
		}
	})
}

func TestCutAtChunkBordersIsDamaged(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, m method) {
		for _, n := range []int{3 * 8192, 3*65536 + 5, 4 * 65536} {
			object := sealed(t, m.sealer, noise(n), 70000)
			head := len(object) - n
			for _, size := range []int{sealedChunk, 65536, 65536 + 32} {
				for _, start := range []int{0, 24, awsBlob, head} {
					for cut := start; cut < len(object); cut += size {
						for d := -1; d <= 1; d++ {
							if c := cut + d; c >= 0 && c < len(object) {
								wantDamaged(t, m.sealer, object[:c], fmt.Sprintf("%d of %d bytes", c, len(object)))
							}
						}
					}
				}
			}
		}
	})
}

// OpenPGP writes the encrypted session key as a number whose length in bits
// nobody needs: changed within its byte, it means the same. That is the one
// place of any format where a change goes unnoticed, and then the data is
// proved to be the same.
func TestEveryFlippedByteIsDamaged(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, m method) {
		for _, n := range []int{1, 100} {
			data := noise(n)
			object := sealed(t, m.sealer, data, n)
			meaningless := -1
			masks := []byte{0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff}
			if m.name == "openpgp" || m.name == "envelope" {
				masks = []byte{0x01, 0x80, 0xff} // each costs an RSA operation
			}
			switch m.name {
			case "openpgp":
				meaningless = 14
			case "envelope":
				meaningless = 14 + bytes.LastIndex(object, []byte("\xc1\xc0\x4c\x03"))
			}
			for i := range object {
				for _, mask := range masks {
					altered := bytes.Clone(object)
					altered[i] ^= mask
					if i == meaningless {
						if got, err := opened(m.sealer, bytes.NewReader(altered)); err == nil && bytes.Equal(got, data) {
							continue
						}
					}
					wantDamaged(t, m.sealer, altered, fmt.Sprintf("byte %d of %d, mask %#x", i, len(object), mask))
				}
			}
		}
	})
}

func TestFlipInALargeObjectIsDamaged(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, m method) {
		object := sealed(t, m.sealer, noise(150000), 65536)
		for i := 0; i < len(object); i += 4999 {
			altered := bytes.Clone(object)
			altered[i] ^= 0x10
			wantDamaged(t, m.sealer, altered, fmt.Sprintf("byte %d of %d", i, len(object)))
		}
	})
}

func TestDataAfterTheEndIsDamaged(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, m method) {
		for _, n := range []int{1, 8192, 65536} {
			object := sealed(t, m.sealer, noise(n), n)
			wantDamaged(t, m.sealer, append(bytes.Clone(object), 0), "one more byte")
			wantDamaged(t, m.sealer, append(bytes.Clone(object), object...), "the object twice")
		}
	})
}

func TestForeignInputIsDamaged(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, m method) {
		for name, data := range map[string][]byte{
			"empty": nil, "text": []byte("plain text, stored without encryption"),
			"zstd":  append([]byte{0x28, 0xb5, 0x2f, 0xfd}, noise(10000)...),
			"zeros": make([]byte, 100000), "noise": noise(100000),
			"literal packet": append([]byte{0xcb, 10, 'u', 0, 0, 0, 0, 0}, "evil"...),
		} {
			wantDamaged(t, m.sealer, data, name)
		}
		for _, other := range methods(t) {
			if other.name != m.name {
				wantDamaged(t, m.sealer, sealed(t, other.sealer, noise(100), 100), other.name)
			}
		}
	})
}

// Chunks of the same stream in another order, twice, left out, and of another
// stream under the same key.
func TestMovedChunksAreDamaged(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name        string
		head, chunk int
	}{{"libsodium", streamHeaderSize, sealedChunk}, {"awskms", awsBlob, 65536 + 32}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var m method
			for _, m = range methods(t) {
				if m.name == c.name {
					break
				}
			}
			data := noise(3*c.chunk + 100)
			a, b := sealed(t, m.sealer, data, 1<<20), sealed(t, m.sealer, data, 1<<20)
			at := func(object []byte, i int) []byte {
				rest := object[c.head+i*c.chunk:]
				return rest[:min(c.chunk, len(rest))]
			}
			join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
			if got, err := opened(m.sealer, bytes.NewReader(join(a[:c.head], at(a, 0), at(a, 1), at(a, 2), at(a, 3)))); err != nil || !bytes.Equal(got, data) {
				t.Fatal("the parts do not make the whole", err)
			}
			for name, object := range map[string][]byte{
				"swapped":            join(a[:c.head], at(a, 1), at(a, 0), at(a, 2), at(a, 3)),
				"twice":              join(a[:c.head], at(a, 0), at(a, 0), at(a, 1), at(a, 2), at(a, 3)),
				"left out":           join(a[:c.head], at(a, 0), at(a, 2), at(a, 3)),
				"end alone":          join(a[:c.head], at(a, 3)),
				"no end":             join(a[:c.head], at(a, 0), at(a, 1), at(a, 2)),
				"chunk of another":   join(a[:c.head], at(a, 0), at(b, 1), at(a, 2), at(a, 3)),
				"end of another":     join(a[:c.head], at(a, 0), at(a, 1), at(a, 2), at(b, 3)),
				"head of another":    join(b[:c.head], a[c.head:]),
				"nothing but a head": a[:c.head],
			} {
				wantDamaged(t, m.sealer, object, name)
			}
		})
	}
}

func TestWrongKey(t *testing.T) {
	t.Parallel()
	sodium, err := NewLibsodium(LibsodiumOptions{Key: fixtureKey})
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewLibsodium(LibsodiumOptions{Key: strings.ToUpper(fixtureKey)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := opened(other, bytes.NewReader(sealed(t, sodium, noise(20000), 100))); !errors.Is(err, ErrWrongKey) {
		t.Fatalf("libsodium: %v", err)
	}
}

var errDisk = errors.New("the disk is gone")

// The source's own failure is not damage, wherever it comes, also where all
// data has been read already.
func TestSourceErrorIsPassedOn(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, m method) {
		object := sealed(t, m.sealer, noise(300), 300)
		for cut := 0; cut <= len(object); cut++ {
			_, err := opened(m.sealer, io.MultiReader(bytes.NewReader(object[:cut]), iotest.ErrReader(errDisk)))
			if !errors.Is(err, errDisk) || errors.Is(err, ErrCorrupt) {
				t.Fatalf("after %d of %d bytes: %v", cut, len(object), err)
			}
		}
		_, err := opened(m.sealer, io.MultiReader(bytes.NewReader(object), iotest.ErrReader(io.ErrUnexpectedEOF)))
		if err == nil || errors.Is(err, ErrCorrupt) {
			t.Fatalf("a body shorter than promised, all data there: %v", err)
		}
	})
}

// failAfter takes n bytes.
type failAfter struct {
	n      int
	closed bool
}

func (w *failAfter) Write(p []byte) (int, error) {
	if w.n -= len(p); w.n < 0 {
		return 0, errDisk
	}
	return len(p), nil
}

func (w *failAfter) Close() error {
	w.closed = true
	return nil
}

func TestTargetErrorStays(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, m method) {
		data := noise(300000)
		whole := len(sealed(t, m.sealer, data, 1<<20))
		for _, n := range []int{0, 10, 200, 1000, 70000, 140000, whole - 1} {
			target := &failAfter{n: n}
			w, err := m.sealer.Seal(context.Background(), target)
			if err != nil {
				if !errors.Is(err, errDisk) {
					t.Fatal(err)
				}
				continue
			}
			var first error
			for p := data; first == nil && len(p) > 0; p = p[min(30000, len(p)):] {
				_, first = w.Write(p[:min(30000, len(p))])
			}
			if err := w.Close(); first == nil {
				first = err
			}
			if !errors.Is(first, errDisk) {
				t.Fatalf("after %d bytes: %v", n, first)
			}
			w.Abort()
			_, err = w.Write([]byte("more"))
			if err != first || w.Close() != first {
				t.Fatalf("the error did not stay: %v, %v", err, w.Close())
			}
			if target.closed {
				t.Fatal("the target was closed")
			}
		}
	})
}

func TestWriterEnds(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, m method) {
		for _, n := range []int{1, 100, 8192, 65536, 100000} {
			var out bytes.Buffer
			w, err := m.sealer.Seal(context.Background(), &out)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(noise(n)); err != nil {
				t.Fatal(err)
			}
			w.Abort()
			w.Abort()
			if err := w.Close(); !errors.Is(err, errAborted) {
				t.Fatalf("Close after Abort: %v", err)
			}
			wantDamaged(t, m.sealer, out.Bytes(), fmt.Sprintf("aborted after %d bytes", n))
		}
		target := &failAfter{n: 1 << 20}
		w, err := m.sealer.Seal(context.Background(), target)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		w.Abort()
		if err := w.Close(); err != nil {
			t.Fatalf("second Close: %v", err)
		}
		if _, err := w.Write([]byte("x")); !errors.Is(err, errEnded) {
			t.Fatalf("Write after Close: %v", err)
		}
		if target.closed {
			t.Fatal("the target was closed")
		}
	})
}

func TestReaderClosed(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, m method) {
		r, err := m.sealer.Open(context.Background(), bytes.NewReader(sealed(t, m.sealer, noise(100), 100)))
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, errClosed) {
			t.Fatal(err)
		}
	})
}

// The stream behind the wrapped key, read by the format's description alone.
func TestDARELayout(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 65535, 65536, 65537, 200000} {
		service := newFakeService(0)
		data := noise(n)
		object := sealed(t, NewYandexKMS(service), data, 1000)
		if string(object[:6]) != "yckms\x01" {
			t.Fatalf("begins with %q", object[:6])
		}
		size := int(binary.LittleEndian.Uint32(object[6:]))
		key, err := service.Unwrap(context.Background(), object[10:10+size])
		if err != nil {
			t.Fatal(err)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			t.Fatal(err)
		}
		var got, base []byte
		for i, p := 0, object[10+size:]; len(p) > 0; i++ {
			length := int(binary.LittleEndian.Uint16(p[2:])) + 1
			last := len(p) == 32+length
			if p[0] != 0x20 || p[1] != 0 || p[4]&0x80 != 0 != last || !last && length != 65536 {
				t.Fatalf("package %d: header % x, last %v", i, p[:16], last)
			}
			nonce := bytes.Clone(p[4:16])
			same := append([]byte{nonce[0] & 0x7f}, nonce[1:]...)
			if base == nil {
				base = same
			}
			if !bytes.Equal(base, same) {
				t.Fatalf("package %d has another nonce", i)
			}
			binary.LittleEndian.PutUint32(nonce[8:], binary.LittleEndian.Uint32(nonce[8:])^uint32(i))
			plain, err := aead.Open(nil, nonce, p[16:32+length], p[:4])
			if err != nil {
				t.Fatalf("package %d: %v", i, err)
			}
			got = append(got, plain...)
			p = p[32+length:]
		}
		if !bytes.Equal(got, data) {
			t.Fatal("other data")
		}
	}
}

func TestKeyServiceFailures(t *testing.T) {
	t.Parallel()
	errService := errors.New("access denied")
	failing := newFakeService(awsBlob)
	good := sealed(t, NewAWSKMS(failing), noise(10), 10)
	failing.err = errService
	var out bytes.Buffer
	if _, err := NewAWSKMS(failing).Seal(context.Background(), &out); !errors.Is(err, errService) || out.Len() != 0 {
		t.Fatalf("%v, %d bytes written", err, out.Len())
	}
	if _, err := NewAWSKMS(failing).Open(context.Background(), bytes.NewReader(good)); !errors.Is(err, errService) || errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	for _, size := range []int{183, 185} {
		if _, err := NewAWSKMS(newFakeService(size)).Seal(context.Background(), &out); err == nil || out.Len() != 0 {
			t.Fatalf("a blob of %d bytes: %v, %d bytes written", size, err, out.Len())
		}
	}
	if _, err := NewYandexKMS(newFakeService(4097)).Seal(context.Background(), &out); err == nil || out.Len() != 0 {
		t.Fatalf("a blob of 4097 bytes: %v, %d bytes written", err, out.Len())
	}
}

func TestEnvelopeLayout(t *testing.T) {
	t.Parallel()
	service := newFakeService(0)
	key := fixtureEnvelope(t, service)
	wrapped, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		t.Fatal(err)
	}
	e, err := NewEnvelopePGP(context.Background(), EnvelopePGPOptions{Key: key + "\n", Service: service})
	if err != nil {
		t.Fatal(err)
	}
	object := sealed(t, e, []byte("data"), 10)
	id := "C27E20AEEB827A1A"
	want := "envelope-yc-kms\x01\x10\x00\x00\x00" + id + string(binary.LittleEndian.AppendUint32(nil, uint32(len(wrapped)))) + string(wrapped)
	if !strings.HasPrefix(string(object), want) {
		t.Fatalf("the header is %q", object[:60])
	}
	// Behind the header is a message as NewOpenPGP has it.
	pgp := methods(t)[0].sealer
	if got, err := opened(pgp, bytes.NewReader(object[len(want):])); err != nil || string(got) != "data" {
		t.Fatalf("%q, %v", got, err)
	}
	// Another process with another wrapping of the same key opens it.
	other, err := NewEnvelopePGP(context.Background(), EnvelopePGPOptions{Key: fixtureEnvelope(t, service), Service: service})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := opened(other, bytes.NewReader(object)); err != nil || string(got) != "data" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestEnvelopeCache(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		expiration time.Duration
		after      time.Duration
		want       int64
	}{{0, 1000 * time.Hour, 1}, {time.Minute, 59 * time.Second, 1}, {time.Minute, time.Minute, 2}} {
		service := newFakeService(0)
		key := fixtureEnvelope(t, service)
		service.calls.Store(0)
		now := time.Now()
		e, err := newEnvelopePGP(context.Background(), EnvelopePGPOptions{Key: key, Service: service, Expiration: c.expiration}, func() time.Time { return now })
		if err != nil {
			t.Fatal(err)
		}
		now = now.Add(c.after)
		for range 3 {
			if _, err := opened(e, bytes.NewReader(sealed(t, e, []byte("x"), 1))); err != nil {
				t.Fatal(err)
			}
		}
		if got := service.calls.Load(); got != c.want {
			t.Fatalf("expiration %v, %v later: the service was asked %d times, want %d", c.expiration, c.after, got, c.want)
		}
	}
}

// A service that is down after the key expired is an error, not a plain
// object, and waiting for another who asks ends with the context.
func TestEnvelopeCacheFailures(t *testing.T) {
	t.Parallel()
	service := newFakeService(0)
	now := time.Now()
	e, err := newEnvelopePGP(context.Background(), EnvelopePGPOptions{Key: fixtureEnvelope(t, service), Service: service, Expiration: time.Minute}, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Hour)
	service.err = errors.New("down")
	var out bytes.Buffer
	if _, err := e.Seal(context.Background(), &out); !errors.Is(err, service.err) || out.Len() != 0 {
		t.Fatalf("%v, %d bytes written", err, out.Len())
	}
	service.err = nil
	e.cache.lock <- struct{}{}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := e.Seal(ctx, &out); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	<-e.cache.lock
	for i := range 3 * envelopeKeys {
		now = now.Add(time.Duration(i))
		wrapped, err := base64.StdEncoding.DecodeString(fixtureEnvelope(t, service))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.cache.get(context.Background(), wrapped); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(e.cache.rings); n != envelopeKeys {
		t.Fatalf("the cache holds %d rings", n)
	}
}
