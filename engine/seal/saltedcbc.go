package seal

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
)

// The head of a salted stream: the magic and eight bytes of salt, as the
// program openssl enc writes it.
const (
	saltedMagic = "Salted__"
	saltLen     = 8
	// SaltedCBCHead is how many bytes of a stream IsSaltedCBC wants to see.
	SaltedCBCHead = len(saltedMagic)
	// cbcBuffer is how much is decrypted at once, in bytes.
	cbcBuffer = 64 << 10
)

// IsSaltedCBC reports whether data begins as OpenSaltedCBC's input does.
func IsSaltedCBC(data []byte) bool { return bytes.HasPrefix(data, []byte(saltedMagic)) }

// OpenSaltedCBC decrypts what openssl enc -aes-256-cbc -md sha1 writes, which
// is how pgBackRest encrypts its repository: "Salted__", the salt, and CBC
// blocks with PKCS #7 padding, key and vector by EVP_BytesToKey with one round
// of SHA-1. Nothing here writes it.
//
// The format authenticates nothing. A stream cut within a block, or whose
// padding is wrong, is ErrCorrupt, which is also what a wrong passphrase gives
// in 255 of 256 cases; an altered byte elsewhere is other plain bytes, without
// an error. Whoever reads must have a checksum of the plain bytes.
//
// The reader holds 64 KiB. It reads r to its end before it returns io.EOF, and
// does not close it.
func OpenSaltedCBC(r io.Reader, passphrase string) io.ReadCloser {
	src := &source{r: r}
	return &reader{method: "aes-256-cbc", src: src, stage: &cbcReader{src: bufio.NewReaderSize(src, cbcBuffer), passphrase: passphrase}}
}

type cbcReader struct {
	src        *bufio.Reader
	passphrase string
	mode       cipher.BlockMode
	buf        []byte
	plain      []byte // of buf, not yet handed out
	ended      bool
}

func (c *cbcReader) Read(p []byte) (int, error) {
	for len(c.plain) == 0 {
		if c.ended {
			return 0, io.EOF
		}
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.plain)
	c.plain = c.plain[n:]
	return n, nil
}

var (
	errNotSalted = errors.New("it does not begin with the mark of encrypted data")
	errPadding   = errors.New("its end does not decrypt: the passphrase is wrong, or bytes are altered")
	errCutBlock  = errors.New("it is cut short")
)

// fill decrypts the next blocks; the last one loses its padding.
func (c *cbcReader) fill() error {
	if c.mode == nil {
		if err := c.begin(); err != nil {
			return err
		}
	}
	n, err := io.ReadFull(c.src, c.buf)
	switch {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
	case err != nil:
		return err
	}
	if n == 0 || n%aes.BlockSize != 0 {
		return errCutBlock
	}
	c.plain = c.buf[:n]
	c.mode.CryptBlocks(c.plain, c.plain)
	if _, err := c.src.Peek(1); err == nil {
		return nil
	} else if err != io.EOF {
		return err
	}
	c.ended = true
	pad := int(c.plain[n-1])
	if pad == 0 || pad > aes.BlockSize {
		return errPadding
	}
	for _, b := range c.plain[n-pad:] {
		if int(b) != pad {
			return errPadding
		}
	}
	c.plain = c.plain[:n-pad]
	return nil
}

// begin reads the head and derives key and vector from it.
func (c *cbcReader) begin() error {
	head := make([]byte, len(saltedMagic)+saltLen)
	if _, err := io.ReadFull(c.src, head); err == io.EOF || err == io.ErrUnexpectedEOF {
		return errCutBlock // nothing at all is no stream either
	} else if err != nil {
		return err
	}
	if !IsSaltedCBC(head) {
		return errNotSalted
	}
	const keyLen = 32
	var derived, last []byte
	for len(derived) < keyLen+aes.BlockSize {
		sum := sha1.Sum(append(append(last, c.passphrase...), head[len(saltedMagic):]...))
		last = sum[:]
		derived = append(derived, last...)
	}
	block, err := aes.NewCipher(derived[:keyLen])
	if err != nil {
		return fmt.Errorf("make cipher: %w", err)
	}
	c.mode = cipher.NewCBCDecrypter(block, derived[keyLen:keyLen+aes.BlockSize])
	c.buf = make([]byte, cbcBuffer)
	return nil
}
