package basebackup

import (
	"context"
	"io"

	"github.com/walherd/walherd/engine/pack"
)

// memory is content that is at hand: the small tars.
type memory struct {
	left    []byte
	entries int64 // bytes of the bodies of its entries
	total   int64
}

func newMemory(data []byte, entryBytes int64) opener {
	return func(func() error) (content, error) {
		return &memory{left: data, entries: entryBytes, total: int64(len(data))}, nil
	}
}

func (m *memory) Fill(_ context.Context, buf []byte) (int, error) {
	n := copy(buf, m.left)
	m.left = m.left[n:]
	if n < len(buf) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) Report() pack.Report {
	return pack.Report{EntryBytes: m.entries, TarBytes: m.total}
}

func (m *memory) Close() error { return nil }

// written is content that a function writes: a document too large to hold.
type written struct {
	r *io.PipeReader
}

// newWritten makes content of what write writes. write is called anew for each
// reading and must write the same.
func newWritten(write func(io.Writer) error) opener {
	return func(func() error) (content, error) {
		r, w := io.Pipe()
		go func() { w.CloseWithError(write(w)) }() // ends when r is closed
		return written{r}, nil
	}
}

func (c written) Fill(_ context.Context, buf []byte) (int, error) {
	n, err := io.ReadFull(c.r, buf)
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	return n, err
}

func (c written) Report() pack.Report { return pack.Report{} }
func (c written) Close() error        { return c.r.Close() }
