package seal

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/poly1305" //nolint:staticcheck // SA1019: secretstream's padding is not RFC 8439's, so the last chunk needs the bare authenticator
)

// Sizes of libsodium's secretstream_xchacha20poly1305, in bytes.
const (
	streamKeySize    = 32
	streamHeaderSize = 24
	streamOverhead   = 17 // one byte of encrypted tag, 16 of authenticator
	streamBlock      = 64 // the ChaCha20 block that carries the tag
)

// Tags of a chunk. tagFinal is libsodium's PUSH|REKEY.
const (
	tagMessage byte = 0
	tagRekey   byte = 2
	tagFinal   byte = 3
)

var errChunk = errors.New("a chunk fails authentication")

// secretstream is the state of libsodium's
// crypto_secretstream_xchacha20poly1305 without additional data, as its
// documentation and doc.libsodium.org describe it.
//
// A chunk of n plain bytes is the ChaCha20 (RFC 8439, counter from 1) of the
// tag followed by 63 zero bytes and the plain bytes, of which the encryption
// of the zeros is left out, and Poly1305 over all of it with padding and
// lengths. When n is 0 or 8 modulo 16 the padding is that of RFC 8439, so the
// chunk is exactly its AEAD, for which there is assembly code: 4 to 5 times
// as fast as cipher and authenticator one after the other. Otherwise
// libsodium pads by n mod 16 bytes instead of up to 16, a slip kept for
// compatibility; only the last chunk of a stream is that long.
type secretstream struct {
	key   [streamKeySize]byte
	nonce [chacha20.NonceSize]byte // 4 bytes of counter, little endian, and 8 that every chunk changes
	aead  cipher.AEAD
}

// newSecretstream derives the state from the key and the stream's header.
func newSecretstream(key *[streamKeySize]byte, header []byte) (*secretstream, error) {
	sub, err := chacha20.HChaCha20(key[:], header[:16])
	if err != nil {
		return nil, err
	}
	s := &secretstream{}
	copy(s.key[:], sub)
	copy(s.nonce[4:], header[16:streamHeaderSize])
	return s, s.reset()
}

// reset begins to count chunks anew under the present key.
func (s *secretstream) reset() (err error) {
	binary.LittleEndian.PutUint32(s.nonce[:4], 1)
	s.aead, err = chacha20poly1305.New(s.key[:])
	return err
}

// seal encrypts in place. buf begins with streamBlock bytes of any content,
// followed by the plain bytes; its capacity has room for 16 more. The chunk is
// the result from index streamBlock-1 on.
func (s *secretstream) seal(buf []byte, tag byte) ([]byte, error) {
	clear(buf[:streamBlock])
	buf[0] = tag
	if aligned(len(buf) - streamBlock) {
		buf = s.aead.Seal(buf[:0], s.nonce[:], buf, nil)
	} else {
		c, err := chacha20.NewUnauthenticatedCipher(s.key[:], s.nonce[:])
		if err != nil {
			return nil, err
		}
		auth := authKey(c)
		c.XORKeyStream(buf, buf)
		mac := authenticate(auth, buf)
		buf = append(buf, mac[:]...)
	}
	buf[streamBlock-1] = buf[0]
	return buf, s.step(tag, buf[len(buf)-poly1305.TagSize:])
}

// open decrypts in place. buf begins with streamBlock-1 bytes of any content,
// followed by the chunk. The plain bytes are the result from index streamBlock
// on. After an error nothing of buf may be used.
func (s *secretstream) open(buf []byte) (plain []byte, tag byte, err error) {
	body := len(buf) - poly1305.TagSize
	if body < streamBlock {
		return nil, 0, errChunk
	}
	var mac [poly1305.TagSize]byte
	copy(mac[:], buf[body:])

	c, err := chacha20.NewUnauthenticatedCipher(s.key[:], s.nonce[:])
	if err != nil {
		return nil, 0, err
	}
	var auth *[32]byte
	if aligned(body - streamBlock) {
		c.SetCounter(1)
	} else {
		auth = authKey(c)
	}
	// The 63 bytes that were left out are the key stream itself.
	first := buf[streamBlock-1]
	var block [streamBlock]byte
	c.XORKeyStream(block[:], block[:])
	tag = first ^ block[0]
	copy(buf[:streamBlock], block[:])
	buf[0] = first

	if auth == nil {
		if _, err := s.aead.Open(buf[:0], s.nonce[:], buf, nil); err != nil {
			return nil, 0, errChunk
		}
	} else {
		if !verify(auth, buf[:body], &mac) {
			return nil, 0, errChunk
		}
		c.XORKeyStream(buf[streamBlock:body], buf[streamBlock:body])
	}
	return buf[streamBlock:body], tag, s.step(tag, mac[:])
}

// aligned tells whether a chunk of n plain bytes is an RFC 8439 AEAD.
func aligned(n int) bool { return n%16 == 0 || n%16 == 8 }

// authKey takes the authenticator's key, which is block 0 of the cipher, and
// leaves the cipher at block 1.
func authKey(c *chacha20.Cipher) *[32]byte {
	var block [streamBlock]byte
	c.XORKeyStream(block[:], block[:])
	return (*[32]byte)(block[:32])
}

// padded is what the authenticator covers: the encrypted block and bytes,
// libsodium's padding, and both lengths.
func padded(body []byte) []byte {
	n := len(body)
	out := make([]byte, n, n+15+16)
	copy(out, body)
	out = out[:n+(n-streamBlock)%16]
	out = binary.LittleEndian.AppendUint64(out, 0)
	return binary.LittleEndian.AppendUint64(out, uint64(n))
}

func authenticate(key *[32]byte, body []byte) (mac [poly1305.TagSize]byte) {
	poly1305.Sum(&mac, padded(body), key)
	return mac
}

func verify(key *[32]byte, body []byte, mac *[poly1305.TagSize]byte) bool {
	return poly1305.Verify(mac, padded(body), key)
}

// step makes the state that of the next chunk.
func (s *secretstream) step(tag byte, mac []byte) error {
	for i := range s.nonce[4:] {
		s.nonce[4+i] ^= mac[i]
	}
	n := binary.LittleEndian.Uint32(s.nonce[:4]) + 1
	binary.LittleEndian.PutUint32(s.nonce[:4], n)
	if tag&tagRekey == 0 && n != 0 {
		return nil
	}
	return s.rekey()
}

// rekey replaces key and nonce by their own encryption. libsodium does so
// after a chunk with the tag and, against reuse, when the counter is spent:
// after 32 TiB in chunks of 8 KiB.
func (s *secretstream) rekey() error {
	c, err := chacha20.NewUnauthenticatedCipher(s.key[:], s.nonce[:])
	if err != nil {
		return err
	}
	var next [streamKeySize + 8]byte
	copy(next[:], s.key[:])
	copy(next[streamKeySize:], s.nonce[4:])
	c.XORKeyStream(next[:], next[:])
	copy(s.key[:], next[:])
	copy(s.nonce[4:], next[streamKeySize:])
	return s.reset()
}
