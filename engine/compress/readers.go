package compress

import (
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Readers makes readers for many streams and uses again what they allocate. A
// zstd reader takes the window that its frame tells, which is megabytes also for
// a stream of a few kilobytes that was compressed while its size was not known;
// to make and clear that anew for each of a thousand small files cost three
// times the CPU of all the rest. The zero value is ready; it is safe for
// concurrent use, the readers are not.
type Readers struct {
	zstd sync.Pool // of *zstd.Decoder
}

// New is NewReader for one worker. The reader must not be used after Close.
func (s *Readers) New(r io.Reader, m Method) (io.ReadCloser, error) {
	if m != Zstd {
		return NewReader(r, m, 1)
	}
	src := &source{r: r}
	dec, ok := s.zstd.Get().(*zstd.Decoder)
	if !ok {
		var err error
		if dec, err = newZstdDecoder(src, 1); err != nil {
			return nil, err
		}
	} else if err := dec.Reset(src); err != nil {
		return nil, fmt.Errorf("set up zstd: %w", err)
	}
	return &lentZstdReader{zstdReader: zstdReader{src: src, dec: dec}, owner: s}, nil
}

// lentZstdReader gives its decoder back. One worker decodes in the caller's
// goroutine, so that a decoder nobody takes again leaves nothing running.
type lentZstdReader struct {
	zstdReader
	owner *Readers
}

// Close implements io.Closer.
func (z *lentZstdReader) Close() error {
	if z.owner == nil {
		return nil
	}
	owner := z.owner
	z.owner = nil
	if z.err == nil {
		z.err = errReaderClosed
	}
	if err := z.dec.Reset(nil); err != nil {
		return fmt.Errorf("end zstd: %w", err)
	}
	owner.zstd.Put(z.dec)
	return nil
}
