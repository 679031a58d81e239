package seal

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

const (
	envelopeMagic = "envelope-yc-kms\x01"
	// envelopeHead bounds the header, from the magic to the wrapped key.
	envelopeHead = 8192
	// envelopeKeys bounds the cache. A bucket has a key or, after a change,
	// two; forged objects could carry any number.
	envelopeKeys = 16
)

// EnvelopePGPOptions is a wrapped key ring for NewEnvelopePGP. Key and Service
// are required.
type EnvelopePGPOptions struct {
	// Key is the base64 (standard alphabet, padded) of an armored private
	// OpenPGP key encrypted by Service.
	Key string

	// Service decrypts Key, and what older objects carry in its place.
	Service Unwrapper

	// Expiration is how long a decrypted key is kept in memory; 0 is for
	// ever. After it the service is asked again.
	Expiration time.Duration
}

// envelopePGP is the Sealer of NewEnvelopePGP.
type envelopePGP struct {
	wrapped []byte
	cache   *keyCache
	name    string
}

// NewEnvelopePGP returns a Sealer whose objects are a header with the ids of
// the OpenPGP keys and the wrapped key ring, and then an OpenPGP message as
// NewOpenPGP has it. An object carries all that the service needs to open it,
// so one sealed with an earlier key opens too.
//
// The constructor asks the service for the key: one that cannot be unwrapped
// or used is its error.
func NewEnvelopePGP(ctx context.Context, o EnvelopePGPOptions) (Sealer, error) {
	e, err := newEnvelopePGP(ctx, o, time.Now)
	if err != nil {
		return nil, fmt.Errorf("read envelope OpenPGP key: %w", err)
	}
	return e, nil
}

func newEnvelopePGP(ctx context.Context, o EnvelopePGPOptions, now func() time.Time) (*envelopePGP, error) {
	wrapped, err := base64.StdEncoding.DecodeString(strings.TrimSpace(o.Key))
	switch {
	case err != nil:
		return nil, errors.New("the wrapped key is not valid base64 (standard alphabet, padded)")
	case len(wrapped) == 0:
		return nil, errors.New("the wrapped key is empty")
	case o.Service == nil:
		return nil, errors.New("there is no key service to unwrap it")
	case o.Expiration < 0:
		return nil, fmt.Errorf("WALG_ENVELOPE_CACHE_EXPIRATION is %v, want 0 or more", o.Expiration)
	}
	e := &envelopePGP{wrapped: wrapped, cache: newKeyCache(o.Service, o.Expiration, now)}
	ring, err := e.cache.get(ctx, wrapped)
	if err != nil {
		return nil, err
	}
	if err := ring.CanOpen(); err != nil {
		return nil, errors.New("the wrapped key is a public one, want a private one")
	}
	if n := len(envelopeHeader(ring, wrapped)); n > envelopeHead {
		return nil, fmt.Errorf("the object's header would have %d bytes, the format holds %d: wrap a smaller key", n, envelopeHead)
	}
	e.name = fmt.Sprintf("envelope %s, wrapped by %s", ring.Describe(), o.Service.Describe())
	return e, nil
}

// envelopeID lists the primary keys of a ring as the header does: hexadecimal,
// upper case, without leading zeros.
func envelopeID(ring *openPGP) string {
	var ids []string
	for _, e := range ring.ring {
		ids = append(ids, fmt.Sprintf("%X", e.PrimaryKey.KeyId))
	}
	return strings.Join(ids, ",")
}

func envelopeHeader(ring *openPGP, wrapped []byte) []byte {
	id := envelopeID(ring)
	head := binary.LittleEndian.AppendUint32([]byte(envelopeMagic), uint32(len(id)))
	head = append(head, id...)
	head = binary.LittleEndian.AppendUint32(head, uint32(len(wrapped)))
	return append(head, wrapped...)
}

func (e *envelopePGP) CanSeal() error {
	if ring := e.cache.peek(e.wrapped); ring != nil {
		return ring.CanSeal()
	}
	return nil
}

func (e *envelopePGP) CanOpen() error { return nil }

func (e *envelopePGP) Describe() string { return e.name }

func (e *envelopePGP) Seal(ctx context.Context, w io.Writer) (Writer, error) {
	ring, err := e.cache.get(ctx, e.wrapped)
	if err != nil {
		return nil, fmt.Errorf("seal with envelope OpenPGP: %w", err)
	}
	// The message's head stays in a buffer until enough has come together,
	// so nothing is written before this header.
	message, err := ring.Seal(ctx, w)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(envelopeHeader(ring, e.wrapped)); err != nil {
		return nil, fmt.Errorf("seal with envelope OpenPGP: %w", err)
	}
	return message, nil
}

func (e *envelopePGP) Open(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
	const method = "envelope OpenPGP"
	src := &source{r: r}
	id, wrapped, err := readEnvelope(io.LimitReader(src, envelopeHead))
	if err != nil {
		return nil, src.explain(method, fmt.Errorf("read header: %w", ended(err)))
	}
	ring, err := e.cache.get(ctx, wrapped)
	if err != nil {
		return nil, fmt.Errorf("open with %s: %w", method, err)
	}
	// WAL-G does not compare the ids; it always writes those of the ring.
	if envelopeID(ring) != id {
		return nil, src.explain(method, errors.New("the header names other keys than it carries"))
	}
	return ring.Open(ctx, src.r)
}

func readEnvelope(r io.Reader) (id string, wrapped []byte, err error) {
	magic := make([]byte, len(envelopeMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return "", nil, err
	}
	if string(magic) != envelopeMagic {
		return "", nil, errors.New("it does not begin as objects of this method do")
	}
	ids, err := readBlob(r, envelopeHead)
	if err != nil {
		return "", nil, err
	}
	wrapped, err = readBlob(r, envelopeHead)
	return string(ids), wrapped, err
}

// keyCache keeps unwrapped key rings by the digest of their wrapped form.
type keyCache struct {
	service    Unwrapper
	expiration time.Duration
	now        func() time.Time

	// lock is a mutex that gives up with a context. It is held while the
	// service is asked, so that many readers of one key ask once.
	lock  chan struct{}
	rings map[[sha256.Size]byte]cachedRing
}

type cachedRing struct {
	ring *openPGP
	got  time.Time
}

func newKeyCache(service Unwrapper, expiration time.Duration, now func() time.Time) *keyCache {
	return &keyCache{service: service, expiration: expiration, now: now, lock: make(chan struct{}, 1), rings: map[[sha256.Size]byte]cachedRing{}}
}

func (c *keyCache) fresh(r cachedRing) bool {
	return c.expiration == 0 || c.now().Sub(r.got) < c.expiration
}

// get returns the ring of a wrapped key, from the service if need be. An error
// is not kept.
func (c *keyCache) get(ctx context.Context, wrapped []byte) (*openPGP, error) {
	select {
	case c.lock <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("unwrap OpenPGP key: %w", context.Cause(ctx))
	}
	defer func() { <-c.lock }()
	at := sha256.Sum256(wrapped)
	if r, ok := c.rings[at]; ok && c.fresh(r) {
		return r.ring, nil
	}
	delete(c.rings, at)
	armored, err := c.service.Unwrap(ctx, wrapped)
	if err != nil {
		return nil, fmt.Errorf("unwrap OpenPGP key: %w", err)
	}
	ring, err := newOpenPGP(OpenPGPOptions{Armor: string(armored)}, c.now)
	clear(armored)
	if err != nil {
		return nil, fmt.Errorf("read unwrapped OpenPGP key: %w", err)
	}
	c.makeRoom()
	c.rings[at] = cachedRing{ring: ring, got: c.now()}
	return ring, nil
}

// makeRoom drops expired rings and, if there are still too many, the oldest.
func (c *keyCache) makeRoom() {
	var oldest [sha256.Size]byte
	var when time.Time
	for at, r := range c.rings {
		if !c.fresh(r) {
			delete(c.rings, at)
		} else if when.IsZero() || r.got.Before(when) {
			oldest, when = at, r.got
		}
	}
	if len(c.rings) >= envelopeKeys {
		delete(c.rings, oldest)
	}
}

// peek returns a ring without asking the service, nil if there is none or
// somebody is asking just now.
func (c *keyCache) peek(wrapped []byte) *openPGP {
	select {
	case c.lock <- struct{}{}:
	default:
		return nil
	}
	defer func() { <-c.lock }()
	if r, ok := c.rings[sha256.Sum256(wrapped)]; ok && c.fresh(r) {
		return r.ring
	}
	return nil
}
