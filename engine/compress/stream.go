package compress

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"
)

// streamWriter keeps the Writer contract for an encoder that works in the
// caller's goroutine and starts none.
type streamWriter struct {
	method Method
	enc    io.WriteCloser
	chunk  int // the encoder sees no larger write
	state
}

// Write hands p on in chunks: an encoder that copies what it is given would
// else hold the caller's largest write twice.
func (s *streamWriter) Write(p []byte) (int, error) {
	if err := s.writable(); err != nil {
		return 0, err
	}
	n := 0
	for n < len(p) {
		k := min(s.chunk, len(p)-n)
		if _, err := s.enc.Write(p[n : n+k]); err != nil {
			return n, s.fail(err)
		}
		n += k
	}
	return n, nil
}

func (s *streamWriter) fail(err error) error {
	if err != nil {
		s.err = fmt.Errorf("compress %s: %w", s.method, err)
		s.enc = nil
	}
	return s.err
}

func (s *streamWriter) Close() error {
	if s.ended || s.err != nil {
		s.ended = true
		return s.err
	}
	s.ended = true
	err := s.fail(s.enc.Close())
	s.enc = nil
	return err
}

func (s *streamWriter) Abort() {
	if s.abort() {
		s.enc = nil
	}
}

// errCodecPanic marks a decoder's bug met by the data at hand.
var errCodecPanic = errors.New("panic in a codec")

// streamReader keeps NewReader's contract for a decoder that works in the
// caller's goroutine and starts none.
type streamReader struct {
	method Method
	src    *source
	open   func(r io.Reader) (io.Reader, error) // at the first Read; reads the header
	dec    io.Reader
	err    error
}

func newStreamReader(m Method, r io.Reader, open func(io.Reader) (io.Reader, error)) *streamReader {
	return &streamReader{method: m, src: &source{r: r}, open: open}
}

func (s *streamReader) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := s.decode(p)
	switch {
	case err == nil:
	case err == io.EOF && s.src.err == nil && s.src.read > 0:
		s.err = io.EOF
	default:
		s.err = s.src.explain(s.method, err)
	}
	if s.err != nil {
		s.dec = nil
	}
	return n, s.err
}

// decode turns a panic of the decoder, which is fed with what a stranger may
// have stored, into an error.
func (s *streamReader) decode(p []byte) (n int, err error) {
	defer func() {
		if r := recover(); r != nil {
			n, err = 0, fmt.Errorf("%w: %v\n%s", errCodecPanic, r, debug.Stack())
		}
	}()
	if s.dec == nil {
		if s.dec, err = s.open(s.src); err != nil {
			return 0, noEOF(err) // no stream ends within its header
		}
	}
	return s.dec.Read(p)
}

// Close ends the reader; see NewReader.
func (s *streamReader) Close() error {
	if s.err == nil {
		s.err = errReaderClosed
	}
	s.dec = nil
	return nil
}
