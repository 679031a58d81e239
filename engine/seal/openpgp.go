package seal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

const (
	// pgpBuffer is how many plain bytes are handed to the library at a time,
	// and so the length of an OpenPGP partial body.
	pgpBuffer = 64 << 10

	// pgpHead bounds the packets before the data: some hundreds of bytes per
	// recipient. Without it, a forged object could fill the memory.
	pgpHead = 1 << 20
)

// OpenPGPOptions is a key ring for NewOpenPGP. Armor is required.
type OpenPGPOptions struct {
	// Armor is one or more armored key blocks, public or private.
	Armor string

	// Passphrase unlocks every private key of the ring. It is not used if
	// none is locked.
	Passphrase string
}

// openPGP is the Sealer of NewOpenPGP.
type openPGP struct {
	ring    openpgp.EntityList
	canOpen bool
	now     func() time.Time
}

// NewOpenPGP returns a Sealer whose objects are OpenPGP messages: per key of
// the ring one encrypted session key, then a packet that is encrypted with AES
// and protected by a modification detection code (SEIPD version 1), with one
// literal packet inside, neither compressed nor signed. AES-128 is used where
// the preferences of all keys allow it, else AES-256. gpg reads and writes the
// same. The literal packet says binary, where WAL-G's says text; WAL-G reads
// both, and gpg reads only the former without loss.
//
// A ring of public keys alone seals and cannot open. A ring that can do
// neither, and a private key that stays locked, is an error. A key that has
// expired still opens.
//
// Open refuses a message that is not encrypted, and one that is signed, for
// nothing here could check the signature; WAL-G writes neither. The format
// does not tell who sealed an object: whoever has the public key and may write
// to the bucket can replace one.
func NewOpenPGP(o OpenPGPOptions) (Sealer, error) {
	p, err := newOpenPGP(o, time.Now)
	if err != nil {
		return nil, fmt.Errorf("read OpenPGP key: %w", err)
	}
	return p, nil
}

func newOpenPGP(o OpenPGPOptions, now func() time.Time) (*openPGP, error) {
	ring, err := readRing(o.Armor)
	if err != nil {
		return nil, err
	}
	if err := unlock(ring, o.Passphrase); err != nil {
		return nil, err
	}
	p := &openPGP{ring: ring, now: now}
	for _, k := range ring.DecryptionKeys() {
		p.canOpen = p.canOpen || !k.PrivateKey.Dummy()
	}
	for _, e := range ring {
		p.canOpen = p.canOpen || e.PrivateKey != nil && !e.PrivateKey.Dummy() && e.PrivateKey.PubKeyAlgo.CanEncrypt()
	}
	if err := p.CanSeal(); err != nil && !p.canOpen {
		return nil, err
	}
	return p, nil
}

func (p *openPGP) config() *packet.Config { return &packet.Config{Time: p.now} }

func (p *openPGP) CanSeal() error {
	now := p.now()
	for _, e := range p.ring {
		if err := recipientErr(e, now); err != nil {
			return err
		}
	}
	return nil
}

func (p *openPGP) CanOpen() error {
	if !p.canOpen {
		return fmt.Errorf("open with OpenPGP: %w: set WALG_PGP_KEY_PATH to the private key (gpg --armor --export-secret-keys)", ErrNoPrivateKey)
	}
	return nil
}

func (p *openPGP) Describe() string {
	var names []string
	for _, e := range p.ring {
		names = append(names, keyName(e))
	}
	what := "private"
	if !p.canOpen {
		what = "public"
	}
	return fmt.Sprintf("OpenPGP, %s key %s", what, strings.Join(names, ", "))
}

func (p *openPGP) Seal(_ context.Context, w io.Writer) (Writer, error) {
	if err := p.CanSeal(); err != nil {
		return nil, fmt.Errorf("seal with OpenPGP: %w", err)
	}
	// The library writes lengths of one byte; and what it writes before it
	// meets a bad key never leaves this buffer.
	out := bufio.NewWriterSize(w, pgpBuffer)
	// WAL-G marks the data as text (u), which it never looks at; but gpg
	// then drops every carriage return, and no archive survives that.
	message, err := openpgp.Encrypt(out, p.ring, nil, &openpgp.FileHints{IsBinary: true}, p.config())
	if err != nil {
		return nil, fmt.Errorf("seal with OpenPGP: %w", err)
	}
	in := bufio.NewWriterSize(pieces{message}, pgpBuffer)
	return &writer{method: "OpenPGP", stage: &pgpWriter{in: in, message: message, out: out}}, nil
}

// pgpWriter buffers both sides of the library.
type pgpWriter struct {
	in      *bufio.Writer
	message io.Closer
	out     *bufio.Writer
}

func (w *pgpWriter) Write(p []byte) (int, error) { return w.in.Write(p) }

func (w *pgpWriter) Close() error {
	if err := w.in.Flush(); err != nil {
		return err
	}
	if err := w.message.Close(); err != nil {
		return err
	}
	return w.out.Flush()
}

// pieces cuts large writes: the library buffers each write whole, several
// times over.
type pieces struct{ w io.Writer }

func (s pieces) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		var m int
		m, err = s.w.Write(p[:min(len(p), pgpBuffer)])
		n += m
		p = p[m:]
	}
	return n, err
}

func (p *openPGP) Open(_ context.Context, r io.Reader) (io.ReadCloser, error) {
	if err := p.CanOpen(); err != nil {
		return nil, err
	}
	src := &source{r: r}
	in := bufio.NewReaderSize(src, pgpBuffer)
	head := &headReader{r: in, left: pgpHead}
	message, err := openpgp.ReadMessage(head, p.ring, nil, p.config())
	switch {
	case errors.Is(err, pgperrors.ErrKeyIncorrect):
		err = fmt.Errorf("%w: it is sealed for a key other than %s", ErrWrongKey, p.Describe())
	case err != nil:
	case !message.IsEncrypted || message.DecryptedWith.PrivateKey == nil:
		err = errors.New("the message is not encrypted for a key")
	case message.IsSigned:
		err = errors.New("the message is signed, which the format does not know")
	}
	if err != nil {
		return nil, src.explain("OpenPGP", err)
	}
	head.left = -1
	return &reader{method: "OpenPGP", src: src, stage: &pgpReader{message: message.UnverifiedBody, in: in}}, nil
}

// headReader fails after left bytes; below zero it does not count.
type headReader struct {
	r    io.Reader
	left int
}

func (h *headReader) Read(p []byte) (int, error) {
	if h.left < 0 {
		return h.r.Read(p)
	}
	if h.left == 0 {
		return 0, fmt.Errorf("more than %d bytes before the message's data", pgpHead)
	}
	n, err := h.r.Read(p[:min(len(p), h.left)])
	h.left -= n
	return n, err
}

// pgpReader lets io.EOF pass only where the source ends too: the library
// checks the integrity of the encrypted packet and ignores what follows it.
type pgpReader struct {
	message io.Reader
	in      *bufio.Reader
}

func (r *pgpReader) Read(p []byte) (int, error) {
	n, err := r.message.Read(p)
	if err != io.EOF {
		return n, err
	}
	switch _, err := r.in.Peek(1); err {
	case io.EOF:
		return n, io.EOF
	case nil:
		return n, errors.New("there is data after the message")
	default:
		return n, err
	}
}
