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
//	brotli                    4          4          4
//	lzma                     49         49         49
//
// Zstd with several workers takes what it takes with one if the first 256 KiB
// hardly compress; the table is for streams whose noise comes later.
//
// Reading lz4 holds two blocks of the frame (each at most 4 MiB, 256 KiB if
// written here) a worker and two more pairs; reading zstd holds the frame's
// window, of which more than 128 MiB is refused, and some blocks of 128 KiB a
// worker; reading lzma the dictionary, of which more than 128 MiB is refused
// (8 MiB if written here); reading brotli the window, at most 16 MiB; reading
// gzip a window of 32 KiB; reading bzip2 a block of 4 MiB.
//
// How it fails: a writer's first error, be it the encoder's or the underlying
// writer's, is returned by that call and by every later one. A reader answers
// input that was cut short or altered with an error that is ErrCorrupt, never
// with io.EOF (brotli and LZMA see less, see below); an error of the underlying
// reader is passed on wrapped and is not ErrCorrupt. What lz4, zstd, gzip and
// bzip2 cannot see is a stream cut exactly between two concatenated frames;
// writers of this package never concatenate.
//
// Brotli and LZMA streams carry no checksum. Of both, a stream cut short
// anywhere and bytes after its end, be they one more stream, are errors.
// Altered bytes are not always:
//
//   - brotli: what cannot be decoded is an error, but an altered literal or
//     distance is other data, often of the same length. Of all single bits of
//     a packed heap page, every third, flipped, gives other data unnoticed.
//   - LZMA: an altered bit derails the range decoder, which then has to meet
//     the end marker with a code of zero exactly at the stream's end. All
//     single bits of some small streams were tried: 5 to 12 a stream, within
//     the five bytes after the header and the first zero, give other data
//     unnoticed (the first choices are even, so a bit is a choice), no other.
//
// Behind these two only the reader of the plain bytes is left to notice: a
// tar's header checksums, structure and member sizes, a WAL page's CRCs,
// PostgreSQL's page checksums. A file's content altered within a tar passes.
package compress
