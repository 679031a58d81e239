package compress

import (
	"io"

	"github.com/klauspost/compress/gzip"
)

// newGzipReader reads gzip members (RFC 1952), one after the other. Nothing
// here writes gzip; old archives have it.
func newGzipReader(r io.Reader, _ int) (io.ReadCloser, error) {
	return newStreamReader(Gzip, r, func(r io.Reader) (io.Reader, error) {
		return gzip.NewReader(r)
	}), nil
}
