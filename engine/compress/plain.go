package compress

import (
	"errors"
	"fmt"
	"io"
)

// plainWriter is None: the bytes unchanged, the Writer contract kept.
type plainWriter struct {
	w io.Writer
	state
}

func newPlainWriter(w io.Writer, _ Options) (Writer, error) { return &plainWriter{w: w}, nil }

func (p *plainWriter) Write(b []byte) (int, error) {
	if err := p.writable(); err != nil {
		return 0, err
	}
	n, err := p.w.Write(b)
	if err != nil {
		p.err = fmt.Errorf("write stream: %w", err)
	}
	return n, p.err
}

func (p *plainWriter) Close() error {
	p.ended = true
	return p.err
}

func (p *plainWriter) Abort() { p.abort() }

func newPlainReader(r io.Reader, _ int) (io.ReadCloser, error) { return io.NopCloser(r), nil }

var (
	errEnded   = errors.New("write to a closed compressor")
	errAborted = errors.New("compression was aborted")
)

// state is the part of the Writer contract that all methods share: the first
// error stays, and an ended writer takes no more.
type state struct {
	err   error
	ended bool
}

func (s *state) writable() error {
	if s.err == nil && s.ended {
		s.err = errEnded
	}
	return s.err
}

// abort reports whether there is anything left to stop.
func (s *state) abort() bool {
	live := !s.ended
	s.ended = true
	if live && s.err == nil {
		s.err = errAborted
		return true
	}
	return false
}

// source remembers the underlying reader's own error, to tell a failing disk
// or network from damaged data behind a decoder's error.
type source struct {
	r    io.Reader
	read int64
	err  error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.read += int64(n)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// explain turns a decoder's error into the package's: the source's error as
// it is, everything else ErrCorrupt, a premature end io.ErrUnexpectedEOF too.
func (s *source) explain(m Method, err error) error {
	switch {
	case s.err != nil:
		return fmt.Errorf("read %s stream: %w", m, s.err)
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("decompress %s: %w: %w", m, ErrCorrupt, err)
}
