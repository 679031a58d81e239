package pack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/walherd/walherd/engine/cluster"
)

// Limiter bounds how fast files are read. *rate.Limiter is one.
type Limiter interface {
	// WaitN blocks until n bytes may be read. n is at most LimiterBurst.
	WaitN(ctx context.Context, n int) error
}

// LimiterBurst is the most that is asked of a Limiter at once, in bytes; its
// burst must be at least this.
const LimiterBurst = 64 << 10

// Report is what a stream put in its tar.
type Report struct {
	// EntryBytes is the sum of the bodies: the part's share of the
	// sentinel's UncompressedSize. TarBytes is the tar's length.
	EntryBytes, TarBytes int64
	// Entries counts the tar's entries.
	Entries int
	// Missing are the indexes of the files that were gone when their turn
	// came: they stay in TarFileSets and must not be in Files.
	Missing []int32
	// Skipped are the indexes the Opener answered with ErrSkip.
	Skipped []int32
	// Incremented are those whose body is an increment, as an Opener that
	// makes such (Incrementer) tells.
	Incremented []int32
	// Damage is what a check found, as an Opener that checks (Checker) tells.
	Damage []Damage
}

// Damage is what is wrong with the pages of one file.
type Damage struct {
	// Index of the file's entry.
	Index int32
	// Corrupt counts the pages whose checksum is wrong; Blocks are the first
	// of their numbers within the file, or all.
	Corrupt int
	Blocks  []uint32
	// Implausible counts pages whose header makes no sense, which have no
	// checksum to speak of.
	Implausible int
	// Ragged: the file is not made of whole pages and was not checked.
	Ragged bool
}

// Checker is what an Opener may also be: it tells what it found in the bytes
// that went through it.
type Checker interface{ Damage() []Damage }

// Incrementer is what an Opener may also be: it tells which entries it gave an
// increment for in place of the file.
type Incrementer interface{ Incremented() []int32 }

// StreamOptions tunes a Stream.
type StreamOptions struct {
	// Owners gives the names in headers; nil writes none.
	Owners OwnerNames
	// Limiter for the bytes of bodies; nil is none.
	Limiter Limiter
}

// Stream produces the tar of one part. Files are opened one at a time, when
// their turn comes, and read directly into the buffer that Fill is given.
//
// It is not safe for concurrent use and holds no goroutine. After an error it
// stays at that error; another attempt takes a new Stream.
type Stream struct {
	entries []cluster.Entry
	todo    []int32
	open    Opener
	limiter Limiter
	head    *headers
	report  Report

	pending []byte         // of a header
	entry   *cluster.Entry // of the body
	body    Body
	left    int64 // of the body
	zeros   int64 // padding or the end
	done    bool  // the end is in zeros or behind
	err     error
}

// NewStream prepares the tar of part, whose indexes point into entries.
// Neither may change while the stream is used. The caller closes it.
func NewStream(entries []cluster.Entry, part Part, open Opener, opt StreamOptions) *Stream {
	return &Stream{entries: entries, todo: part.Entries, open: open, limiter: opt.Limiter, head: newHeaders(opt.Owners)}
}

// Fill writes the tar's next bytes to buf and returns how many: all of buf,
// or less with io.EOF once the tar is complete. Unlike an io.Reader it never
// returns less without an error. With any error but io.EOF the bytes are
// worthless.
func (s *Stream) Fill(ctx context.Context, buf []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.fill(ctx, buf)
	s.report.TarBytes += int64(n)
	if err != nil {
		s.err = err
		if cerr := s.closeBody(); cerr != nil {
			s.err = errors.Join(err, cerr)
		}
		return n, s.err
	}
	return n, nil
}

func (s *Stream) fill(ctx context.Context, buf []byte) (n int, err error) {
	if ctx.Err() != nil {
		return 0, fmt.Errorf("pack files: %w", context.Cause(ctx))
	}
	for n < len(buf) {
		rest := buf[n:]
		switch {
		case len(s.pending) > 0:
			c := copy(rest, s.pending)
			s.pending = s.pending[c:]
			n += c
		case s.left > 0:
			c, err := s.read(ctx, rest)
			if err != nil {
				return n, err
			}
			n += c
		case s.body != nil:
			if err := s.closeBody(); err != nil {
				return n, err
			}
		case s.zeros > 0:
			c := int(min(s.zeros, int64(len(rest))))
			clear(rest[:c])
			s.zeros -= int64(c)
			n += c
		case s.done:
			return n, io.EOF
		case len(s.todo) == 0:
			s.zeros, s.done = trailerSize, true
		default:
			i := s.todo[0]
			s.todo = s.todo[1:]
			if err := s.begin(i); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// begin opens entry i and renders its header.
func (s *Stream) begin(i int32) (err error) {
	e := &s.entries[i]
	var size int64
	if !e.IsDir() {
		body, err := s.open.Open(i, e)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			s.report.Missing = append(s.report.Missing, i)
			return nil
		case errors.Is(err, ErrSkip):
			s.report.Skipped = append(s.report.Skipped, i)
			return nil
		case err != nil:
			return fmt.Errorf("pack %s: %w", e.Name, err)
		}
		s.body, size = body, body.Size()
	}
	if s.pending, err = s.head.entry(e, size); err != nil {
		return err
	}
	s.entry, s.left, s.zeros = e, size, padded(size)-size
	s.report.Entries++
	s.report.EntryBytes += size
	return nil
}

// read takes body bytes into p.
func (s *Stream) read(ctx context.Context, p []byte) (int, error) {
	p = p[:min(int64(len(p)), s.left)]
	if s.limiter != nil {
		p = p[:min(len(p), LimiterBurst)]
		if err := s.limiter.WaitN(ctx, len(p)); err != nil {
			return 0, fmt.Errorf("pack %s: wait for the disk rate limit: %w", s.entry.Name, err)
		}
	}
	n, err := s.body.Read(p)
	s.left -= int64(n)
	if errors.Is(err, io.EOF) {
		err = nil
		if s.left > 0 {
			// The header has promised more than the body has.
			err = io.ErrUnexpectedEOF
		}
	}
	if err != nil {
		return n, fmt.Errorf("pack %s: %w", s.entry.Name, err)
	}
	return n, nil
}

func (s *Stream) closeBody() error {
	if s.body == nil {
		return nil
	}
	body := s.body
	s.body = nil
	if err := body.Close(); err != nil {
		return fmt.Errorf("pack %s: %w", s.entry.Name, err)
	}
	return nil
}

// Report is complete once Fill has returned io.EOF.
func (s *Stream) Report() Report {
	r := s.report
	if o, ok := s.open.(Incrementer); ok {
		r.Incremented = o.Incremented()
	}
	if o, ok := s.open.(Checker); ok {
		r.Damage = o.Damage()
	}
	return r
}

// Close releases what is open; the stream is at its end then. It may be called
// at any time, and more than once.
func (s *Stream) Close() error {
	if s.err == nil {
		s.err = fmt.Errorf("pack files: %w", fs.ErrClosed)
	}
	return s.closeBody()
}

// Reader is the stream as an io.Reader, for what wants one.
func (s *Stream) Reader(ctx context.Context) io.Reader {
	return readerFunc(func(p []byte) (int, error) { return s.Fill(ctx, p) })
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
