package compress

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
)

// rows is what testdata/rows.bz2 (of libbzip2, with blocks of 100 kB) holds.
func rows() []byte {
	var b bytes.Buffer
	for i := range 300 {
		fmt.Fprintf(&b, "%d row of a table %d\n", i, i*i)
	}
	return b.Bytes()
}

// TestBzip2 reads what libbzip2 wrote, once and twice in a row; cut anywhere or
// altered anywhere it is an error.
func TestBzip2(t *testing.T) {
	t.Parallel()
	packed := fixture(t, "rows.bz2")
	if got, err := unpack(Bzip2, packed, 1); err != nil || !bytes.Equal(got, rows()) {
		t.Fatalf("read %d bytes, error %v", len(got), err)
	}
	twice := append(bytes.Clone(packed), packed...)
	if got, err := unpack(Bzip2, twice, 2); err != nil || !bytes.Equal(got, append(rows(), rows()...)) {
		t.Fatalf("two streams: read %d bytes, error %v", len(got), err)
	}
	for i := range packed {
		if _, err := unpack(Bzip2, packed[:i], 1); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d bytes: error %v", i, err)
		}
		altered := bytes.Clone(packed)
		altered[i] ^= 0x10
		if got, err := unpack(Bzip2, altered, 1); !errors.Is(err, ErrCorrupt) && !bytes.Equal(got, rows()) {
			t.Fatalf("byte %d altered: read other %d bytes, error %v", i, len(got), err)
		}
	}
	if _, err := unpack(Bzip2, append(bytes.Clone(packed), 'x'), 1); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a byte behind the end: error %v", err)
	}
	if _, err := NewWriter(&bytes.Buffer{}, Options{Method: Bzip2}); err == nil {
		t.Fatal("a method that is only read wrote")
	}
}

// FuzzReadBzip2: no panic, and an error that is ErrCorrupt.
func FuzzReadBzip2(f *testing.F) {
	f.Add(fixture(f, "rows.bz2"))
	f.Add([]byte("BZh9\x17\x72\x45\x38\x50\x90\x00\x00\x00\x00")) // of nothing
	f.Fuzz(func(t *testing.T, packed []byte) {
		if len(packed) > 16<<10 {
			return
		}
		_, err := unpackSome(Bzip2, packed, 1)
		if err != nil && !errors.Is(err, errTooMuch) && (!errors.Is(err, ErrCorrupt) || errors.Is(err, errCodecPanic)) {
			t.Fatal(err)
		}
	})
}
