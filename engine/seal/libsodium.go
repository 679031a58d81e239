package seal

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// Sizes of the libsodium format as WAL-G cuts it, in bytes.
const (
	plainChunk  = 8192
	sealedChunk = plainChunk + streamOverhead
	// chunkBatch is how many chunks are handed on with one write, for the
	// next stage is often a pipe.
	chunkBatch = 8
	// minRawKey is the shortest key that WAL-G takes untransformed.
	minRawKey = 25
)

// Key transforms of WALG_LIBSODIUM_KEY_TRANSFORM.
const (
	TransformNone   = "none"
	TransformBase64 = "base64"
	TransformHex    = "hex"
)

// LibsodiumOptions is a key for NewLibsodium. Key is required.
type LibsodiumOptions struct {
	// Key is the key's text. How it becomes 32 bytes is told by Transform.
	Key string

	// Transform is TransformBase64 (standard alphabet, padded) or
	// TransformHex, which must give exactly 32 bytes, or TransformNone, the
	// default, which takes the bytes of Key themselves: at least 25, cut or
	// filled with zero bytes to 32. Whoever can choose takes one of the
	// former with 32 random bytes.
	Transform string
}

func (o LibsodiumOptions) key() (key [streamKeySize]byte, err error) {
	var raw []byte
	switch o.Transform {
	case "", TransformNone:
		if len(o.Key) < minRawKey {
			return key, fmt.Errorf("the key has %d bytes, want at least %d", len(o.Key), minRawKey)
		}
		copy(key[:], o.Key)
		return key, nil
	case TransformBase64:
		// The decoders' own errors tell bytes of the key.
		if raw, err = base64.StdEncoding.DecodeString(o.Key); err != nil {
			return key, errors.New("the key is not valid base64 (standard alphabet, padded)")
		}
	case TransformHex:
		if raw, err = hex.DecodeString(o.Key); err != nil {
			return key, errors.New("the key is not valid hex")
		}
	default:
		return key, fmt.Errorf("unknown transform %q in WALG_LIBSODIUM_KEY_TRANSFORM (want none, base64 or hex)", o.Transform)
	}
	if len(raw) != len(key) {
		return key, fmt.Errorf("the key decodes to %d bytes, want %d", len(raw), len(key))
	}
	copy(key[:], raw)
	return key, nil
}

// libsodium is the Sealer of NewLibsodium.
type libsodium struct {
	key       [streamKeySize]byte
	transform string
}

// NewLibsodium returns a Sealer whose objects are libsodium secretstreams
// (XChaCha20-Poly1305): a header of 24 bytes, chunks of 8192 plain bytes with
// 17 more each, and a last, shorter, possibly empty chunk with the tag FINAL.
//
// A stream without its FINAL chunk is damaged, though WAL-G takes one cut at a
// chunk's border for whole. So is one whose FINAL chunk is full: WAL-G neither
// writes nor reads those.
func NewLibsodium(o LibsodiumOptions) (Sealer, error) {
	key, err := o.key()
	if err != nil {
		return nil, fmt.Errorf("read libsodium key: %w", err)
	}
	if o.Transform == "" {
		o.Transform = TransformNone
	}
	return &libsodium{key: key, transform: o.Transform}, nil
}

func (l *libsodium) CanSeal() error { return nil }

func (l *libsodium) CanOpen() error { return nil }

func (l *libsodium) Describe() string {
	return "libsodium secretstream (XChaCha20-Poly1305), key transform " + l.transform
}

func (l *libsodium) Seal(_ context.Context, w io.Writer) (Writer, error) {
	e := &sodiumWriter{w: w, buf: make([]byte, streamBlock+streamHeaderSize+chunkBatch*sealedChunk)}
	header := e.buf[streamBlock : streamBlock+streamHeaderSize]
	if _, err := rand.Read(header); err != nil {
		return nil, fmt.Errorf("make secretstream header: %w", err)
	}
	var err error
	if e.stream, err = newSecretstream(&l.key, header); err != nil {
		return nil, fmt.Errorf("start secretstream: %w", err)
	}
	e.at = streamBlock + streamHeaderSize
	return &writer{method: "libsodium", stage: e}, nil
}

// sodiumWriter gathers plain bytes where their chunk will stand in buf, seals
// them in place, and hands several chunks on at once.
type sodiumWriter struct {
	w      io.Writer
	stream *secretstream

	// buf begins with streamBlock bytes of room, which sealing its first
	// chunk uses; what goes out lies behind. at is where the present chunk
	// begins, n how many plain bytes it has.
	buf   []byte
	at, n int
}

func (e *sodiumWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		c := copy(e.buf[e.at+1+e.n:e.at+1+plainChunk], p)
		e.n += c
		p = p[c:]
		// The last chunk is never full, so a full one can go at once.
		if e.n < plainChunk {
			break
		}
		if err := e.chunk(tagMessage); err != nil {
			return total - len(p), err
		}
		if e.at+sealedChunk > len(e.buf) {
			if err := e.flush(); err != nil {
				return total - len(p), err
			}
		}
	}
	return total, nil
}

// chunk seals the present chunk. Sealing in place needs room before it, where
// the chunk before ends: those bytes are put aside.
func (e *sodiumWriter) chunk(tag byte) error {
	start := e.at + 1 - streamBlock
	var aside [streamBlock - 1]byte
	copy(aside[:], e.buf[start:e.at])
	_, err := e.stream.seal(e.buf[start:e.at+1+e.n], tag)
	copy(e.buf[start:e.at], aside[:])
	e.at += e.n + streamOverhead
	e.n = 0
	return err
}

func (e *sodiumWriter) flush() error {
	_, err := e.w.Write(e.buf[streamBlock:e.at])
	e.at = streamBlock
	return err
}

func (e *sodiumWriter) Close() error {
	if err := e.chunk(tagFinal); err != nil {
		return err
	}
	return e.flush()
}

func (l *libsodium) Open(_ context.Context, r io.Reader) (io.ReadCloser, error) {
	src := &source{r: r}
	return &reader{method: "libsodium", src: src, stage: &sodiumReader{key: &l.key, r: src}}, nil
}

// sodiumReader opens several chunks in place and hands each out after it was
// authenticated.
type sodiumReader struct {
	key    *[streamKeySize]byte
	r      io.Reader
	stream *secretstream
	first  bool // no chunk was opened yet

	buf   []byte // streamBlock bytes of room, then chunks
	at    int    // the next chunk in buf
	end   int    // the end of what was read into buf
	atEOF bool   // r has ended
	plain []byte // opened, not handed out yet
	final bool   // plain is the last chunk's
}

func (d *sodiumReader) Read(p []byte) (int, error) {
	for len(d.plain) == 0 {
		if d.final {
			return 0, io.EOF
		}
		if err := d.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, d.plain)
	d.plain = d.plain[n:]
	return n, nil
}

func (d *sodiumReader) start() error {
	var header [streamHeaderSize]byte
	if _, err := io.ReadFull(d.r, header[:]); err != nil {
		return fmt.Errorf("read secretstream header: %w", io.ErrUnexpectedEOF)
	}
	d.buf = make([]byte, streamBlock+chunkBatch*sealedChunk)
	d.at, d.end = len(d.buf), len(d.buf)
	d.first = true
	var err error
	d.stream, err = newSecretstream(d.key, header[:])
	return err
}

// next opens one chunk.
func (d *sodiumReader) next() error {
	if d.stream == nil {
		if err := d.start(); err != nil {
			return err
		}
	}
	if d.at == d.end && !d.atEOF {
		d.at = streamBlock
		n, err := io.ReadFull(d.r, d.buf[streamBlock:])
		d.end = streamBlock + n
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			d.atEOF = true
		default:
			return err
		}
	}
	size := min(sealedChunk, d.end-d.at)
	if size < streamOverhead {
		return fmt.Errorf("the final chunk is missing: %w", io.ErrUnexpectedEOF)
	}
	// The room before the chunk holds a chunk handed out, or nothing.
	plain, tag, err := d.stream.open(d.buf[d.at+1-streamBlock : d.at+size])
	if err != nil && d.first {
		return fmt.Errorf("%w, or its beginning is damaged (%w)", ErrWrongKey, ErrCorrupt)
	}
	if err != nil {
		return err
	}
	d.first = false
	d.at += size
	switch {
	case size == sealedChunk && tag != tagMessage:
		return fmt.Errorf("a full chunk has the tag %d, want %d", tag, tagMessage)
	case size < sealedChunk && tag != tagFinal:
		return fmt.Errorf("the last chunk has the tag %d, want %d", tag, tagFinal)
	}
	d.plain, d.final = plain, tag == tagFinal
	return nil
}
