package compress

import (
	"fmt"
	"io"
	"strings"
)

// Level trades speed for ratio. Only zstd has levels; the zero value is
// LevelDefault.
type Level string

// The levels, from fast and large to slow and small.
const (
	LevelFastest Level = "fastest"
	LevelDefault Level = "default"
	LevelBetter  Level = "better"
	LevelBest    Level = "best"
)

// ParseLevel reads a level's name in any case. Numbers are not levels.
func ParseLevel(s string) (Level, error) {
	switch l := Level(strings.ToLower(s)); l {
	case LevelFastest, LevelDefault, LevelBetter, LevelBest:
		return l, nil
	}
	return "", fmt.Errorf("unknown zstd level %q (want fastest, default, better or best)", s)
}

// Options tunes a writer. Method is required.
type Options struct {
	Method Method

	// Level is for Zstd alone; with another method it is an error, for it
	// would be silently without effect.
	Level Level

	// Workers is how many blocks of this one stream are compressed at a
	// time. 0 and 1 compress in the caller's goroutine and start none; so do
	// Brotli and LZMA with any number, for their streams cannot be cut.
	Workers int
}

// Validate checks the fields and how they go together.
func (o Options) Validate() error {
	c, err := o.Method.writing()
	if err != nil {
		return err
	}
	if o.Workers < 0 {
		return fmt.Errorf("compression workers %d: want 0 or more", o.Workers)
	}
	if o.Level == "" {
		return nil
	}
	if !c.levels {
		return fmt.Errorf("compression level %q: method %s has no levels (they are for zstd; remove WALG_ZSTD_LEVEL)", string(o.Level), o.Method)
	}
	_, err = ParseLevel(string(o.Level))
	return err
}

// Writer compresses what is written to it. It is not safe for concurrent use.
//
// With two or more workers the underlying writer is called from another
// goroutine, by one at a time and in order, until Close or Abort returns or a
// call has returned an error. Then all goroutines have ended.
//
// The caller ends every Writer with Close or Abort. One of whose calls has
// returned an error needs neither, and both are harmless.
type Writer interface {
	// Write takes p whole or fails. Its error may be that of earlier bytes.
	io.Writer

	// Close completes the stream and reports the first error of all. It does
	// not close the underlying writer. A second Close says the same again.
	Close() error

	// Abort gives the stream up without completing it: what was written so
	// far reads as damaged. It is for a caller whose own source failed; Close
	// would make half a source look whole. It waits for a write to the
	// underlying writer that is under way.
	Abort()
}

// NewWriter returns a Writer that sends the compressed stream to w. It writes
// nothing before the first Write or Close; an empty stream is a valid one.
func NewWriter(w io.Writer, o Options) (Writer, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o.Workers = max(1, o.Workers)
	c, err := o.Method.writing()
	if err != nil {
		return nil, err
	}
	return c.writer(w, o)
}

// NewReader returns a reader of the plain stream behind r. Concatenated
// streams of LZ4, Zstd, Gzip and Bzip2 are read as one; anything after the end
// of one of Brotli or LZMA is an error. With two or more workers, blocks of LZ4 and
// Zstd are decompressed ahead of the caller, and r is read in another
// goroutine; the other methods work in the caller's.
//
// The caller closes the reader, at any point. Close ends all goroutines; it
// does not close r, and it waits for a Read of r under way: to give up on an r
// that hangs, make its Read fail first. The reader is not safe for concurrent
// use.
func NewReader(r io.Reader, m Method, workers int) (io.ReadCloser, error) {
	c, err := m.codec()
	if err != nil {
		return nil, err
	}
	return c.reader(r, max(1, workers))
}
