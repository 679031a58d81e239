// Package compress turns a plain stream into a compressed one and back. It is
// the only importer of compression libraries: the rest of the program names a
// Method and moves bytes through an io.Writer or io.Reader.
//
// Both directions stream. What they hold is bounded by the method and the
// number of workers, never by the length of the stream. Heap measured with
// incompressible data, the worst case, in MiB:
//
//	writing with       1 worker  2 workers  4 workers
//	lz4                       4          5          7
//	zstd fastest             12         57         82
//	zstd default             21         66         82
//	zstd better              24        164        200
//	zstd best                54        312        443
//
// Reading lz4 holds two blocks of the frame (each at most 4 MiB, 256 KiB if
// written here) a worker and two more pairs; reading zstd holds the frame's
// window, of which more than 128 MiB is refused, and some blocks of 128 KiB a
// worker.
//
// How it fails: a writer's first error, be it the encoder's or the underlying
// writer's, is returned by that call and by every later one. A reader answers
// input that was cut short or altered with an error that is ErrCorrupt, never
// with io.EOF; an error of the underlying reader is passed on wrapped and is
// not ErrCorrupt. What lz4 and zstd cannot see is a stream cut exactly between
// two concatenated frames; writers of this package never concatenate.
package compress
