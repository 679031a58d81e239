package compress

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

const (
	// lzmaDictionary is WAL-G's and that of `xz --format=lzma -6`.
	lzmaDictionary = 8 << 20

	// lzmaMaxDictionary is the largest dictionary a reader accepts. It is
	// allocated as soon as the header is read, and the header has no
	// checksum: a flipped bit must not cost 2 GiB. 128 MiB is twice what any
	// preset of xz asks for (64 MiB, -9), and the bound that zstd has here.
	lzmaMaxDictionary = 128 << 20

	lzmaBuffer = 64 << 10
)

// newLZMAWriter writes the "LZMA alone" format (.lzma; doc/lzma-file-format.txt
// of XZ Utils): lc 3, lp 0, pb 2, unknown size, end marker. Options.Workers
// has no effect: every bit depends on all before it.
//
// The encoder finds matches with a hash table. The library's other finder, a
// binary tree, had not packed 8 MiB of a pgbench table in eight minutes; with
// the hash table they take a fraction of a second. Its worst case is data that
// does not compress: 0.5 MB/s of CPU time, against 20 to 60 of a cluster's
// pages. Archives with wal_compression on or encrypted columns want another
// method.
func newLZMAWriter(w io.Writer, _ Options) (Writer, error) {
	out := bufio.NewWriterSize(w, lzmaBuffer)
	enc, err := lzma.WriterConfig{
		Properties: &lzma.Properties{LC: 3, LP: 0, PB: 2},
		DictCap:    lzmaDictionary,
		Matcher:    lzma.HashTable4,
		EOSMarker:  true,
	}.NewWriter(out) // the header goes to the buffer
	if err != nil {
		return nil, fmt.Errorf("set up lzma: %w", err)
	}
	return &streamWriter{method: LZMA, enc: &lzmaEncoder{enc, out}, chunk: lzmaBuffer}, nil
}

type lzmaEncoder struct {
	*lzma.Writer
	out *bufio.Writer
}

func (e *lzmaEncoder) Close() error {
	return errors.Join(e.Writer.Close(), e.out.Flush())
}

// newLZMAReader reads one stream of any parameters, with or without a size in
// its header. The format cannot be concatenated (xz does not read that
// either), so bytes after its end are an error.
func newLZMAReader(r io.Reader, _ int) (io.ReadCloser, error) {
	return newStreamReader(LZMA, r, openLZMA), nil
}

func openLZMA(r io.Reader) (io.Reader, error) {
	in := bufio.NewReaderSize(r, lzmaBuffer)
	if _, err := in.Peek(lzma.HeaderLen); err != nil {
		return nil, err
	}
	dec, err := lzma.ReaderConfig{DictCap: lzmaMaxDictionary}.NewReader(in)
	if err != nil {
		return nil, err
	}
	return &lzmaDecoder{dec, in}, nil
}

type lzmaDecoder struct {
	dec *lzma.Reader
	in  *bufio.Reader
}

var errTrailing = errors.New("bytes after the end of the stream")

func (d *lzmaDecoder) Read(p []byte) (int, error) {
	n, err := d.dec.Read(p)
	if err != io.EOF {
		return n, err
	}
	if _, err = d.in.ReadByte(); err == nil {
		err = errTrailing
	}
	return n, err // io.EOF, if not the source's
}
