package seal

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/minio/sio"
)

// Unwrapper decrypts keys that a key management service has encrypted.
type Unwrapper interface {
	// Unwrap returns the plain key. Its error says which service and key it
	// asked, and holds no key material. It is called again after an error
	// only by another Seal or Open; what is worth retrying, it retries.
	Unwrap(ctx context.Context, wrapped []byte) ([]byte, error)

	// Describe names the service and its key for people.
	Describe() string
}

// KeyService encrypts and decrypts keys. It is safe for concurrent use.
type KeyService interface {
	Unwrapper

	// Wrap encrypts a data key of 32 bytes.
	Wrap(ctx context.Context, key []byte) ([]byte, error)
}

const (
	dataKeySize = 32

	// awsBlob is the length of a data key wrapped by AWS KMS. The format has
	// no length field, so it can hold no other.
	awsBlob = 184

	yandexMagic   = "yckms\x01"
	yandexMaxBlob = 4096
)

// serviceSealer is a Sealer whose objects begin with a data key that a service
// has wrapped, followed by the data in DARE 2.0 under that key.
type serviceSealer struct {
	method  string
	service KeyService
	suites  []byte // sio's cipher suites, the one to write with first; empty lets the CPU decide
	frame   func(blob []byte) ([]byte, error)
	parse   func(io.Reader) ([]byte, error)
}

// NewAWSKMS returns a Sealer whose objects are a data key of 32 random bytes
// as AWS KMS encrypts it, always 184 bytes, followed by the data in DARE 2.0.
// Each Seal and each Open is one call of the service.
//
// Streams of DARE 1.0 are refused: their end cannot be told from a cut. So is
// sealing an empty stream, which DARE cannot tell from a cut one either.
func NewAWSKMS(service KeyService) Sealer {
	return &serviceSealer{
		method:  "AWS KMS",
		service: service,
		frame: func(blob []byte) ([]byte, error) {
			if len(blob) != awsBlob {
				return nil, fmt.Errorf("the wrapped data key has %d bytes, the format holds %d: use a symmetric key", len(blob), awsBlob)
			}
			return blob, nil
		},
		parse: func(r io.Reader) ([]byte, error) {
			blob := make([]byte, awsBlob)
			_, err := io.ReadFull(r, blob)
			return blob, err
		},
	}
}

// NewYandexKMS is NewAWSKMS with the layout that WAL-G uses for Yandex KMS: a
// header that tells the length of the wrapped key, and AES-256-GCM alone.
func NewYandexKMS(service KeyService) Sealer {
	return &serviceSealer{
		method:  "Yandex KMS",
		service: service,
		suites:  []byte{sio.AES_GCM},
		frame: func(blob []byte) ([]byte, error) {
			if len(blob) == 0 || len(blob) > yandexMaxBlob {
				return nil, fmt.Errorf("the wrapped data key has %d bytes, want 1 to %d", len(blob), yandexMaxBlob)
			}
			head := binary.LittleEndian.AppendUint32([]byte(yandexMagic), uint32(len(blob)))
			return append(head, blob...), nil
		},
		parse: func(r io.Reader) ([]byte, error) {
			head := make([]byte, len(yandexMagic))
			if _, err := io.ReadFull(r, head); err != nil {
				return nil, err
			}
			if string(head) != yandexMagic {
				return nil, errors.New("it does not begin as objects of this method do")
			}
			return readBlob(r, yandexMaxBlob)
		},
	}
}

// readBlob reads a little-endian length of 4 bytes and as many bytes, 1 to
// limit.
func readBlob(r io.Reader, limit int) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(size[:])
	if n == 0 || int64(n) > int64(limit) {
		return nil, fmt.Errorf("the header tells a length of %d, want 1 to %d", n, limit)
	}
	blob := make([]byte, n)
	_, err := io.ReadFull(r, blob)
	return blob, err
}

func (s *serviceSealer) CanSeal() error { return nil }

func (s *serviceSealer) CanOpen() error { return nil }

func (s *serviceSealer) Describe() string { return s.method + ", " + s.service.Describe() }

func (s *serviceSealer) config(key []byte) sio.Config {
	return sio.Config{MinVersion: sio.Version20, MaxVersion: sio.Version20, CipherSuites: s.suites, Key: key}
}

func (s *serviceSealer) Seal(ctx context.Context, w io.Writer) (Writer, error) {
	key := make([]byte, dataKeySize)
	defer clear(key)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make data key: %w", err)
	}
	blob, err := s.service.Wrap(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("seal with %s: wrap data key: %w", s.method, err)
	}
	head, err := s.frame(blob)
	if err != nil {
		return nil, fmt.Errorf("seal with %s: %w", s.method, err)
	}
	dare, err := sio.EncryptWriter(onlyWriter{w}, s.config(key))
	if err != nil {
		return nil, fmt.Errorf("seal with %s: %w", s.method, err)
	}
	if _, err := w.Write(head); err != nil {
		return nil, fmt.Errorf("seal with %s: %w", s.method, err)
	}
	return &writer{method: s.method, stage: &dareWriter{dare: dare}}, nil
}

// onlyWriter hides a Close, which the library would call.
type onlyWriter struct{ io.Writer }

// dareWriter refuses to complete an empty stream.
type dareWriter struct {
	dare io.WriteCloser
	any  bool
}

func (w *dareWriter) Write(p []byte) (int, error) {
	w.any = w.any || len(p) > 0
	return w.dare.Write(p)
}

func (w *dareWriter) Close() error {
	if !w.any {
		return errors.New("an empty stream cannot be sealed: DARE cannot tell it from one cut short (set WALG_COMPRESSION_METHOD, whose streams are never empty)")
	}
	return w.dare.Close()
}

func (s *serviceSealer) Open(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
	src := &source{r: r}
	blob, err := s.parse(src)
	if err != nil {
		return nil, src.explain(s.method, fmt.Errorf("read wrapped data key: %w", ended(err)))
	}
	key, err := s.service.Unwrap(ctx, blob)
	if err != nil {
		return nil, fmt.Errorf("open with %s: unwrap data key: %w", s.method, err)
	}
	defer clear(key)
	if len(key) != dataKeySize {
		return nil, src.explain(s.method, fmt.Errorf("the data key has %d bytes, want %d", len(key), dataKeySize))
	}
	dare, err := sio.DecryptReader(src, s.config(key))
	if err != nil {
		return nil, fmt.Errorf("open with %s: %w", s.method, err)
	}
	return &reader{method: s.method, src: src, stage: dare}, nil
}

// ended makes the end of the input, where more was expected, an unexpected
// one.
func ended(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
