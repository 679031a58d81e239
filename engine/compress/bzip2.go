package compress

import (
	"compress/bzip2"
	"io"
)

// newBzip2Reader reads bzip2 streams, one after the other. Nothing here writes
// bzip2; pgBackRest can.
func newBzip2Reader(r io.Reader, _ int) (io.ReadCloser, error) {
	return newStreamReader(Bzip2, r, func(r io.Reader) (io.Reader, error) {
		return bzip2.NewReader(r), nil
	}), nil
}
