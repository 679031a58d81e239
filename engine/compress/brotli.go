package compress

import (
	"io"

	"github.com/andybalholm/brotli"
)

// brotliQuality is WAL-G's. The library has two encoders; the one used here is
// its newer. 168 MB of a pgbench cluster's files, one core of a busy machine:
//
//	encoder, quality     MB/s  ratio
//	newer, 3              270  17.3
//	newer, 2              470  14.1
//	newer, 1              630  13.7
//	port of C, 3          130  15.5
//
// Blocks of 64 KiB, the library's choice, each with its own codes, pack better
// than 128 or 256 KiB (17.1, 16.6).
const (
	brotliQuality = 3
	brotliBlock   = 64 << 10
)

// newBrotliWriter writes one raw brotli stream (RFC 7932). Options.Workers has
// no effect: meta-blocks are joined at the bit, not at the byte, and refer to
// the ones before.
func newBrotliWriter(w io.Writer, _ Options) (Writer, error) {
	return &streamWriter{method: Brotli, enc: brotli.NewWriterV2(w, brotliQuality), chunk: brotliBlock}, nil
}

// newBrotliReader reads one raw brotli stream of any window that RFC 7932
// knows, hence at most 16 MiB; the "large window" extension is refused. A raw
// stream has nothing to tell where the next one begins, so bytes after its end
// are an error.
func newBrotliReader(r io.Reader, _ int) (io.ReadCloser, error) {
	return newStreamReader(Brotli, r, func(r io.Reader) (io.Reader, error) {
		return brotli.NewReader(r), nil
	}), nil
}
