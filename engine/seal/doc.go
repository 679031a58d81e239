// Package seal encrypts a stream and opens it again, in the formats WAL-G
// stores. It is the only importer of cryptographic libraries: the rest of the
// program holds a Sealer and moves bytes through an io.Writer or io.Reader.
//
// The stage lies between compression and the bucket: data is compressed, then
// sealed, then put. Nothing in an object or its name tells that it is sealed,
// nor how; the configuration decides (Choose).
//
//	method           settings                           format
//	OpenPGP          WALG_PGP_KEY, _KEY_PATH            binary message, SEIPD v1 with MDC
//	envelope OpenPGP WALG_ENVELOPE_PGP_KEY, _KEY_PATH   header with the wrapped OpenPGP key, then a message
//	AWS KMS          WALG_CSE_KMS_ID                    wrapped data key of 184 bytes, then DARE 2.0
//	Yandex KMS       YC_CSE_KMS_KEY_ID                  header with the wrapped data key, then DARE 2.0
//	libsodium        WALG_LIBSODIUM_KEY, _KEY_PATH      secretstream XChaCha20-Poly1305, chunks of 8192 bytes
//
// ENCRYPTION.md shows each in use. Apart from these, OpenSaltedCBC reads the
// encrypted files of a pgBackRest repository, a format that authenticates
// nothing.
//
// Both directions stream, in the caller's goroutine. A writer or reader holds
// a few buffers of at most 128 KiB, whatever the length of the stream.
//
// How it fails: a key that cannot be used is an error of the constructor, and
// at the latest of Seal, before a byte of the object is written; no error
// carries key material. A writer's first error is returned by that call and by
// every later one. A reader answers input that was cut short, altered,
// extended or never sealed with an error that is ErrCorrupt or ErrWrongKey,
// never with io.EOF; an error of the underlying reader is passed on wrapped
// and is neither.
//
// What is read before io.EOF is unproven. DARE and libsodium authenticate each
// chunk before they hand it out, but say only at the end that there was no
// more. OpenPGP's integrity code comes after the last byte: until io.EOF
// nothing is authenticated at all. Whoever opens an object therefore writes to
// a place marked incomplete (a temporary file, a directory with a marker) and
// takes the mark away after io.EOF.
//
// With a public OpenPGP key a Sealer seals and cannot open, so a host that
// holds no secret can run this stage.
package seal
