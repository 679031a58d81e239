package delta

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrFormat marks what is no increment, or a damaged one.
var ErrFormat = errors.New("invalid increment")

const (
	magic      = "\x77\x69\x31\x55"
	headerSize = 16
	numberSize = 4
)

// MaxFileSize is the largest file an increment is made of or read for, in
// bytes: many times what PostgreSQL makes, and small enough that the pages of a
// file are a bitmap of a mebibyte. A larger file is stored whole.
const MaxFileSize = 64 << 30

// bufferSize bounds a read or write of adjacent pages, in bytes.
const bufferSize = 256 << 10

func formatError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// validPageSize is what PostgreSQL can be built with.
func validPageSize(n int) bool { return n >= 1<<10 && n <= 32<<10 && n&(n-1) == 0 }

// Size is the length of an increment with n pages, in bytes.
func Size(n int64, pageSize int) int64 { return headerSize + n*(numberSize+int64(pageSize)) }

// Reader reads one increment. What it holds is bounded by MaxFileSize, never by
// what the increment says of itself: the numbers take a bit each, in the room
// of the file's length, and the count has to agree with the entry's length.
type Reader struct {
	r        io.Reader
	pageSize int64
	fileSize int64
	pages    *set  // within the file
	surplus  int64 // pages beyond it
}

// NewReader reads the head of an increment that is size bytes long, the length
// of the tar's entry. r is read to exactly that length by what consumes the
// Reader. An end of r before it is io.ErrUnexpectedEOF.
func NewReader(r io.Reader, size int64, pageSize int) (*Reader, error) {
	d, err := readHead(r, size, pageSize)
	if err != nil {
		return nil, fmt.Errorf("read increment: %w", unexpected(err))
	}
	return d, nil
}

func readHead(r io.Reader, size int64, pageSize int) (*Reader, error) {
	if !validPageSize(pageSize) {
		return nil, fmt.Errorf("page size %d is not a power of two from 1024 to 32768", pageSize)
	}
	if size < headerSize {
		return nil, formatError("%d bytes are too short", size)
	}
	var head [headerSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	if string(head[:4]) != magic {
		return nil, formatError("it begins with % x", head[:4])
	}
	fileSize, n := binary.LittleEndian.Uint64(head[4:]), int64(binary.LittleEndian.Uint32(head[12:]))
	switch {
	case fileSize > MaxFileSize:
		return nil, formatError("of a file of %d bytes, which is more than %d", fileSize, int64(MaxFileSize))
	case fileSize%uint64(pageSize) != 0:
		return nil, formatError("of a file of %d bytes, which are no whole pages of %d; see WALG_PG_BLOCK_SIZE", fileSize, pageSize)
	case size != Size(n, pageSize):
		return nil, formatError("%d pages of %d bytes take %d bytes, these are %d; see WALG_PG_BLOCK_SIZE", n, pageSize, Size(n, pageSize), size)
	}
	d := &Reader{r: r, pageSize: int64(pageSize), fileSize: int64(fileSize), pages: newSet(int64(fileSize) / int64(pageSize))}
	// Not beyond the numbers: what follows is read from r itself.
	numbers := bufio.NewReaderSize(io.LimitReader(r, n*numberSize), 16<<10)
	last := int64(-1)
	for range n {
		var b [numberSize]byte
		if _, err := io.ReadFull(numbers, b[:]); err != nil {
			return nil, err
		}
		number := int64(binary.LittleEndian.Uint32(b[:]))
		if number <= last {
			return nil, formatError("page %d follows page %d", number, last)
		}
		last = number
		if number < d.pages.limit {
			d.pages.add(number)
		} else {
			d.surplus++
		}
	}
	return d, nil
}

// FileSize is the length of the file, in bytes.
func (d *Reader) FileSize() int64 { return d.fileSize }

// Pages is how many pages within the file the increment holds.
func (d *Reader) Pages() int64 { return d.pages.count() }

// finish passes over the pages beyond the file, which come last.
func (d *Reader) finish() error {
	if _, err := io.CopyN(io.Discard, d.r, d.surplus*d.pageSize); err != nil {
		return unexpected(err)
	}
	return nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// WriteError is a failure to write a restored file, which another reading of
// the increment would meet again.
type WriteError struct{ Err error }

// Error implements error.
func (e *WriteError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *WriteError) Unwrap() error { return e.Err }

// File is what increments are applied to. *os.File is one.
type File interface {
	io.WriterAt
	Truncate(size int64) error
}

// Apply makes f, the file as the parent backup has it, the file that the
// increment is of: its length is set, then the pages are written. Applying an
// increment again gives the same file, also after a failure. A *WriteError is
// f's. progress, which may be nil, is told of written bytes.
func Apply(f File, d *Reader, progress func(n int64)) error {
	if err := f.Truncate(d.fileSize); err != nil {
		return fmt.Errorf("apply increment: %w", &WriteError{err})
	}
	buf := make([]byte, min(bufferSize, d.fileSize))
	for first, n := range d.pages.runs() {
		if err := copyRange(f, first*d.pageSize, n*d.pageSize, d.r, buf, progress); err != nil {
			return fmt.Errorf("apply increment: %w", err)
		}
	}
	if err := d.finish(); err != nil {
		return fmt.Errorf("apply increment: %w", err)
	}
	return nil
}

// copyRange writes the next n bytes of r at offset at.
func copyRange(f File, at, n int64, r io.Reader, buf []byte, progress func(int64)) error {
	for n > 0 {
		b := buf[:min(n, int64(len(buf)))]
		if _, err := io.ReadFull(r, b); err != nil {
			return unexpected(err)
		}
		if _, err := f.WriteAt(b, at); err != nil {
			return &WriteError{err}
		}
		at, n = at+int64(len(b)), n-int64(len(b))
		if progress != nil {
			progress(int64(len(b)))
		}
	}
	return nil
}
