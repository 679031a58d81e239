package intake_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/seal"
	"github.com/walherd/walherd/workers/intake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// chunks is a transfer that ends in err instead of io.EOF if set.
type chunks struct {
	left []byte
	size int
	err  error
}

func (c *chunks) Next(context.Context) ([]byte, error) {
	if len(c.left) > 0 {
		n := min(c.size, len(c.left))
		b := c.left[:n]
		c.left = c.left[n:]
		return b, nil
	}
	if c.err != nil {
		return nil, c.err
	}
	return nil, io.EOF
}

func (c *chunks) Close() {}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

// codecs runs one promise for each way to store.
func codecs(t *testing.T, promise func(t *testing.T, c intake.Codec)) {
	t.Helper()
	sealer, err := seal.NewLibsodium(seal.LibsodiumOptions{Key: "0123456789abcdef0123456789abcdef"})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]intake.Codec{"as it comes": {}}
	for _, m := range []compress.Method{compress.LZ4, compress.Zstd, compress.None} {
		all[string(m)] = intake.Codec{Compress: compress.Options{Method: m, Workers: 2}}
		all[string(m)+", sealed"] = intake.Codec{Compress: compress.Options{Method: m, Workers: 2}, Sealer: sealer}
	}
	for name, c := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			promise(t, c)
		})
	}
}

func stored(c intake.Codec, data []byte, chunk int) ([]byte, error) {
	var object bytes.Buffer
	n, err := intake.Store(context.Background(), &chunks{left: data, size: chunk}, c,
		func(r io.Reader) error { _, err := io.Copy(&object, r); return err })
	if err == nil && n != int64(len(data)) {
		err = errors.New("another count")
	}
	return object.Bytes(), err
}

func opened(c intake.Codec, object []byte) ([]byte, error) {
	r, err := c.Open(context.Background(), bytes.NewReader(object), strings.TrimPrefix(c.Extension(), "."))
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

func TestWhatIsStoredIsReadBack(t *testing.T) {
	t.Parallel()
	codecs(t, func(t *testing.T, c intake.Codec) {
		rapid.Check(t, func(t *rapid.T) {
			data := noise(rapid.IntRange(0, 1<<18).Draw(t, "noise"))
			data = append(data, make([]byte, rapid.IntRange(0, 1<<19).Draw(t, "zeros"))...)
			object, err := stored(c, data, rapid.IntRange(1000, 1<<19).Draw(t, "chunk"))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := opened(c, object); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("read %d of %d: %v", len(got), len(data), err)
			}
		})
	})
}

// TestABrokenTransferStoresNothing: the store's reader ends in the transfer's
// error, whatever stages are in between, and never in io.EOF.
func TestABrokenTransferStoresNothing(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken on the way")
	codecs(t, func(t *testing.T, c intake.Codec) {
		var read error
		_, err := intake.Store(t.Context(), &chunks{left: make([]byte, 3<<20), size: 1 << 19, err: broken}, c, func(r io.Reader) error {
			_, read = io.Copy(io.Discard, r)
			return read
		})
		if !errors.Is(read, broken) || !errors.Is(err, broken) {
			t.Fatalf("the store read %v, Store returned %v", read, err)
		}
	})
}

func TestAFailingStoreEndsTheStages(t *testing.T) {
	t.Parallel()
	full := errors.New("no space left")
	codecs(t, func(t *testing.T, c intake.Codec) {
		_, err := intake.Store(t.Context(), &chunks{left: noise(4 << 20), size: 1 << 19}, c, func(r io.Reader) error {
			_, _ = io.CopyN(io.Discard, r, 1000)
			return full
		})
		if !errors.Is(err, full) {
			t.Fatalf("got %v", err)
		}
	})
}

// TestACutObjectIsNoticed wherever it is cut, the seal's own end included: a
// decompressor may stop before it.
func TestACutObjectIsNoticed(t *testing.T) {
	t.Parallel()
	codecs(t, func(t *testing.T, c intake.Codec) {
		if c.Sealer == nil && c.Extension() == "" {
			return // nothing tells; the tar inside does
		}
		object, err := stored(c, bytes.Repeat([]byte("page"), 100_000), 1<<19)
		if err != nil {
			t.Fatal(err)
		}
		for _, cut := range []int{1, 4, 8, 16, 17, 18, len(object) / 2, len(object) - 1} {
			if _, err := opened(c, object[:len(object)-cut]); err == nil {
				t.Errorf("%d bytes cut off: not noticed", cut)
			}
		}
	})
}
