package seal

import (
	"bytes"
	"errors"
	"io"
	"os/exec"
	"testing"
	"testing/iotest"
)

func opensslEnc(t testing.TB, plain []byte, passphrase string) []byte {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("the program openssl is not installed")
	}
	cmd := exec.Command("openssl", "enc", "-aes-256-cbc", "-md", "sha1", "-pass", "pass:"+passphrase)
	cmd.Stdin = bytes.NewReader(plain)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func openCBC(r io.Reader, passphrase string) ([]byte, error) {
	o := OpenSaltedCBC(r, passphrase)
	defer o.Close()
	return io.ReadAll(o)
}

// TestSaltedCBC reads what openssl writes, around each edge.
func TestSaltedCBC(t *testing.T) {
	t.Parallel()
	const passphrase = `geheim & "x" ü`
	for _, size := range []int{0, 1, 15, 16, 17, cbcBuffer - 17, cbcBuffer - 16, cbcBuffer - 1, cbcBuffer, cbcBuffer + 1, 3*cbcBuffer + 5} {
		plain := bytes.Repeat([]byte("0123456789abcdefg"), size/17+1)[:size]
		sealed := opensslEnc(t, plain, passphrase)
		for _, r := range []io.Reader{bytes.NewReader(sealed), iotest.HalfReader(bytes.NewReader(sealed)), iotest.DataErrReader(bytes.NewReader(sealed))} {
			if got, err := openCBC(r, passphrase); err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("%d bytes: read %d, error %v", size, len(got), err)
			}
		}
	}
}

// saltedVector is openssl's encryption of "walherd" with the passphrase "key".
var saltedVector = []byte("Salted__" + "\xdd\xb8\x65\x34\xa0\xb2\x1c\x22" + "\x0a\x10\xd3\xf3\xc3\x34\x95\x86\xc7\x11\xc3\x4f\xdd\xa4\xdb\xa4")

func TestSaltedCBCDamage(t *testing.T) {
	t.Parallel()
	if got, err := openCBC(bytes.NewReader(saltedVector), "key"); err != nil || string(got) != "walherd" {
		t.Fatalf("vector: %q, error %v", got, err)
	}
	for i := range saltedVector {
		if _, err := openCBC(bytes.NewReader(saltedVector[:i]), "key"); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d bytes: error %v", i, err)
		}
	}
	for name, in := range map[string][]byte{
		"plain":        []byte("[backrest]\nbackrest-format=5\n"),
		"extended":     append(bytes.Clone(saltedVector), 0),
		"another end":  append(bytes.Clone(saltedVector), make([]byte, 16)...),
		"no salt":      []byte("Salted__"),
		"other mark":   append([]byte("salted__"), saltedVector[8:]...),
		"altered salt": append([]byte("Salted__\x00"), saltedVector[9:]...),
	} {
		if got, err := openCBC(bytes.NewReader(in), "key"); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %q, error %v", name, got, err)
		}
	}
	if got, err := openCBC(bytes.NewReader(saltedVector), "kex"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("wrong passphrase: %q, error %v", got, err)
	}
	broken := errors.New("the network is gone")
	if _, err := openCBC(io.MultiReader(bytes.NewReader(saltedVector[:20]), iotest.ErrReader(broken)), "key"); !errors.Is(err, broken) || errors.Is(err, ErrCorrupt) {
		t.Errorf("failing source: %v", err)
	}
	if !IsSaltedCBC(saltedVector[:SaltedCBCHead]) || IsSaltedCBC([]byte("Salted_")) {
		t.Error("the mark is not told")
	}
}

// FuzzOpenSaltedCBC: no panic, and an error that is ErrCorrupt.
func FuzzOpenSaltedCBC(f *testing.F) {
	f.Add(saltedVector)
	f.Fuzz(func(t *testing.T, in []byte) {
		if _, err := openCBC(bytes.NewReader(in), "key"); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
	})
}
