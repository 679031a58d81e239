package pieces

import (
	"context"
	"errors"
	"io"
	"sync"
)

// progress is how many bytes reset the count of resumptions, as in
// storage/retry.
const progress = 1 << 20

// ErrClosed is what a read of a closed body tells.
var ErrClosed = errors.New("the body is closed")

// StreamOptions say what a Stream reads and how it goes on.
type StreamOptions struct {
	// At is the offset of the first byte, Left how many there are.
	At, Left int64
	// Conn gives the first bytes; nil asks Open for them at the first Read.
	Conn io.ReadCloser
	// Open gives the bytes at .. at+left-1 of the same version of the
	// object. Its errors are tried again, but for those of Stop.
	Open func(ctx context.Context, at, left int64) (io.ReadCloser, error)
	// Pace counts the tries and pauses between them.
	Pace Pace
	// AtEnd, unless nil, looks at a connection whose bytes were all read.
	AtEnd func(conn io.Reader) error
}

// Pace says how often, and how fast, one stream is continued.
type Pace interface {
	// Again takes a failure and pauses: nil is another try, else the stream
	// ends with the error.
	Again(ctx context.Context, cause error) error
	// Reset starts the count anew: something got further.
	Reset()
}

// Stop makes err one that no other try can mend: the stream ends with it.
func Stop(err error) error { return &stopError{err} }

type stopError struct{ err error }

func (e *stopError) Error() string { return e.err.Error() }
func (e *stopError) Unwrap() error { return e.err }

// Stream reads a part of one version of an object over as many connections as
// it takes. One goroutine reads; Close may come from another.
type Stream struct {
	ctx   context.Context
	opt   StreamOptions
	at    int64 // offset of the next byte
	left  int64
	since int64 // bytes since the last failure

	mu     sync.Mutex
	conn   io.ReadCloser
	closed bool
}

// NewStream makes a stream whose connections live as long as ctx.
func NewStream(ctx context.Context, o StreamOptions) *Stream {
	return &Stream{ctx: ctx, opt: o, at: o.At, left: o.Left, conn: o.Conn}
}

// Left is how many bytes are still to be read; only the reader may ask.
func (s *Stream) Left() int64 { return s.left }

// Read implements io.Reader.
func (s *Stream) Read(p []byte) (int, error) {
	for {
		s.mu.Lock()
		c, closed := s.conn, s.closed
		s.mu.Unlock()
		if closed {
			return 0, ErrClosed
		}
		if c == nil {
			if err := s.begin(); err != nil {
				return 0, err
			}
			continue
		}
		if s.left == 0 {
			if s.opt.AtEnd != nil {
				if err := s.opt.AtEnd(c); err != nil {
					return 0, err
				}
			}
			return 0, io.EOF
		}
		if len(p) == 0 {
			return 0, nil
		}
		n, err := c.Read(p[:min(int64(len(p)), s.left)])
		s.at += int64(n)
		s.left -= int64(n)
		s.since += int64(n)
		if n > 0 || err == nil {
			return n, nil // an error comes again, or is of no matter
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err := s.resume(err); err != nil {
			return 0, err
		}
	}
}

// begin opens the first connection.
func (s *Stream) begin() error {
	c, err := s.opt.Open(s.ctx, s.at, s.left)
	if err != nil {
		// As if a connection had broken before its first byte.
		return s.resume(err)
	}
	if !s.replace(c) {
		return ErrClosed
	}
	return nil
}

// resume goes on behind the last byte read, over another connection.
func (s *Stream) resume(cause error) error {
	s.replace(nil)
	if s.since >= progress {
		s.opt.Pace.Reset()
	}
	s.since = 0
	for {
		var stop *stopError
		if errors.As(cause, &stop) {
			return stop.err
		}
		if err := s.opt.Pace.Again(s.ctx, cause); err != nil {
			return err
		}
		c, err := s.opt.Open(s.ctx, s.at, s.left)
		if err != nil {
			cause = err
			continue
		}
		if !s.replace(c) {
			return ErrClosed
		}
		return nil
	}
}

// replace closes the present connection and sets the next; false when the
// stream is closed.
func (s *Stream) replace(c io.ReadCloser) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close() // broken already
	}
	s.conn = c
	if s.closed && c != nil {
		c.Close()
		s.conn = nil
	}
	return !s.closed
}

// Close ends the stream.
func (s *Stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.conn != nil {
		// What it says is of no matter: nothing more is wanted of it.
		s.conn.Close()
		s.conn = nil
	}
	return nil
}
