package seal

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// The classes of failure when sealed data is opened. Reading again will not
// help in either case.
var (
	// ErrCorrupt marks input that is no whole, unaltered object of the
	// method: cut short, changed, extended, of another format or plain.
	ErrCorrupt = errors.New("sealed data is damaged")

	// ErrWrongKey marks input that the configured key does not open. Where a
	// format cannot tell a wrong key from a damaged beginning, the error is
	// ErrCorrupt too.
	ErrWrongKey = errors.New("the key does not open the data")

	// ErrNoPrivateKey is the answer of Open and CanOpen where only a public
	// key is configured.
	ErrNoPrivateKey = errors.New("only a public key is configured, which seals and cannot open")
)

// Sealer encrypts and decrypts streams with one configured key. It is safe for
// concurrent use; what it returns is not.
type Sealer interface {
	// Seal returns a Writer that sends the sealed stream to w. Every problem
	// of the key is an error here, before anything is written to w; the head
	// of the object may be written. ctx bounds calls of a key service and is
	// not kept.
	Seal(ctx context.Context, w io.Writer) (Writer, error)

	// Open returns a reader of the plain stream behind r, of which it may
	// read the head. What the reader gives is unproven until io.EOF, which it
	// returns only after all of r was read and found whole. ctx bounds calls
	// of a key service and is not kept. The caller closes the reader; that
	// does not close r.
	Open(ctx context.Context, r io.Reader) (io.ReadCloser, error)

	// CanSeal is nil if Seal can work with this key now, else the reason: an
	// OpenPGP key may have expired or have no part to encrypt with.
	CanSeal() error

	// CanOpen is nil if Open can work with this key, else ErrNoPrivateKey.
	CanOpen() error

	// Describe names the method and the key's public identity for people. It
	// holds nothing secret.
	Describe() string
}

// Writer seals what is written to it. It is not safe for concurrent use and
// starts no goroutine. The caller ends it with Close or Abort; after an error
// both are harmless and needless.
type Writer interface {
	// Write takes p whole or fails. Its error may be that of earlier bytes.
	io.Writer

	// Close completes the stream and reports the first error of all. It does
	// not close the underlying writer. A second Close says the same again.
	Close() error

	// Abort gives the stream up: what was written so far opens as damaged.
	// It is for a caller whose own source failed; Close would make half a
	// source look whole.
	Abort()
}

var (
	errEnded   = errors.New("write to a closed sealer")
	errAborted = errors.New("sealing was aborted")
	errClosed  = errors.New("read from a closed reader of sealed data")
)

// writer keeps the Writer contract around a method's stage, whose Close
// completes the stream.
type writer struct {
	method string
	stage  io.WriteCloser
	err    error
	ended  bool
}

func (w *writer) Write(p []byte) (int, error) {
	if w.err == nil && w.ended {
		w.err = errEnded
	}
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.stage.Write(p)
	if err != nil {
		w.fail(err)
	}
	return n, w.err
}

func (w *writer) Close() error {
	if w.ended || w.err != nil {
		w.ended = true
		return w.err
	}
	w.ended = true
	if err := w.stage.Close(); err != nil {
		w.fail(err)
	}
	return w.err
}

func (w *writer) Abort() {
	if !w.ended && w.err == nil {
		w.err = errAborted
	}
	w.ended = true
}

func (w *writer) fail(err error) { w.err = fmt.Errorf("seal with %s: %w", w.method, err) }

// reader keeps the promises of Open around a method's stage: its first error
// stays, and is classified.
type reader struct {
	method string
	src    *source
	stage  io.Reader
	err    error
}

func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := r.stage.Read(p)
	if err != nil && (err != io.EOF || r.src.err != nil) {
		err = r.src.explain(r.method, err)
	}
	r.err = err
	return n, err
}

func (r *reader) Close() error {
	r.err = errClosed
	return nil
}

// source remembers the underlying reader's own error, to tell a failing disk
// or network from damaged data behind a decoder's error.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// explain turns a method's error into the package's: the source's error as it
// is, anything else ErrCorrupt unless it has a class already, and a premature
// end io.ErrUnexpectedEOF too.
func (s *source) explain(method string, err error) error {
	switch {
	case s.err != nil:
		return fmt.Errorf("read data sealed with %s: %w", method, s.err)
	case errors.Is(err, ErrCorrupt), errors.Is(err, ErrWrongKey):
		return fmt.Errorf("open with %s: %w", method, err)
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("open with %s: %w: %w", method, ErrCorrupt, err)
}
