package compress

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The LZ4 frame format, version 1.6.4 (doc/lz4_Frame_format.md of lz4/lz4).
const (
	lz4Magic       uint32 = 0x184D2204
	lz4SkipMagic   uint32 = 0x184D2A50 // and the fifteen above it
	lz4LegacyMagic uint32 = 0x184C2102

	lz4Stored     uint32 = 1 << 31 // in a block's size: not compressed
	lz4History           = 64 << 10
	lz4MaxRatio          = 255 // plain bytes one byte of a block can stand for
	lz4SizePrefix        = 4
)

// Bits of the frame's flag byte.
const (
	flgDictID        = 1 << 0
	flgReserved      = 1 << 1
	flgContentSum    = 1 << 2
	flgContentSize   = 1 << 3
	flgBlockSum      = 1 << 4
	flgIndependent   = 1 << 5
	flgVersion       = 1 << 6
	flgVersionMask   = 3 << 6
	bdReserved       = 0x8f
	lz4HeaderVersion = flgVersion | flgIndependent | flgContentSum
)

// lz4BlockSize is the writer's block size; lz4BlockSizeID is its code.
//
// Measured by packing the files of a pgbench cluster (828 MB, two workers):
//
//	block    ratio  CPU as a share of tar | lz4 -1  peak memory
//	64 KiB   8.10   0.47                            under 12 MiB
//	256 KiB  8.52   0.48                            under 12 MiB
//	1 MiB    8.65   0.56                            14 MiB
//	4 MiB    8.69   0.56                            31 MiB
//
// WAL-G writes 4 MiB; every reader takes all four. 256 KiB still fits a
// core's cache, plain and packed.
const (
	lz4BlockSize   = 256 << 10
	lz4BlockSizeID = 5
)

// lz4WriterHeader is the only header this package writes: independent blocks
// and a content checksum, as in WAL-G; no block checksums, no content size.
func lz4WriterHeader() []byte {
	h := binary.LittleEndian.AppendUint32(nil, lz4Magic)
	h = append(h, lz4HeaderVersion, lz4BlockSizeID<<4)
	return append(h, byte(xxh32Sum(h[4:])>>8))
}

// lz4Frame is what a frame's header tells.
type lz4Frame struct {
	blockMax   int
	linked     bool // blocks refer to those before them
	blockSum   bool
	contentSum bool
	size       int64 // -1: not told
}

// readLZ4Header reads up to the first block of the next frame, over any
// skippable frames. io.EOF is a clean end.
func readLZ4Header(r *bufio.Reader) (*lz4Frame, error) {
	var buf [15]byte
	for {
		if _, err := io.ReadFull(r, buf[:4]); err != nil {
			return nil, err // io.EOF only when there is not one byte
		}
		magic := binary.LittleEndian.Uint32(buf[:])
		if magic == lz4Magic {
			break
		}
		if magic == lz4LegacyMagic {
			return nil, errors.New("legacy LZ4 frame (made by lz4 -l) is not supported")
		}
		if magic&^0xf != lz4SkipMagic {
			return nil, fmt.Errorf("no LZ4 frame: magic number %08x", magic)
		}
		if err := readFull(r, buf[:4]); err != nil {
			return nil, err
		}
		skip := int64(binary.LittleEndian.Uint32(buf[:]))
		if n, err := io.CopyN(io.Discard, r, skip); err != nil {
			return nil, fmt.Errorf("skippable frame of %d bytes ends after %d: %w", skip, n, noEOF(err))
		}
	}
	if err := readFull(r, buf[:2]); err != nil {
		return nil, err
	}
	flg, bd := buf[0], buf[1]
	n := 2
	if flg&flgContentSize != 0 {
		n += 8
	}
	if flg&flgDictID != 0 {
		n += 4
	}
	if err := readFull(r, buf[2:n+1]); err != nil {
		return nil, err
	}
	if got := byte(xxh32Sum(buf[:n]) >> 8); got != buf[n] {
		return nil, fmt.Errorf("frame header checksum is %02x, the header says %02x", got, buf[n])
	}
	code := bd >> 4
	switch {
	case flg&flgVersionMask != flgVersion:
		return nil, fmt.Errorf("frame version %d is not supported", flg>>6)
	case flg&flgReserved != 0, bd&bdReserved != 0, code < 4:
		return nil, fmt.Errorf("frame header %02x %02x has reserved values", flg, bd)
	case flg&flgDictID != 0:
		return nil, errors.New("frame needs a dictionary, which is not supported")
	}
	f := &lz4Frame{
		blockMax:   1 << (8 + 2*code),
		linked:     flg&flgIndependent == 0,
		blockSum:   flg&flgBlockSum != 0,
		contentSum: flg&flgContentSum != 0,
		size:       -1,
	}
	if flg&flgContentSize != 0 {
		size := binary.LittleEndian.Uint64(buf[2:])
		if size > 1<<62 {
			return nil, fmt.Errorf("frame header tells a size of %d bytes", size)
		}
		f.size = int64(size)
	}
	return f, nil
}

// readBlock reads the frame's next block, or its end, into b.
func (f *lz4Frame) readBlock(r *bufio.Reader, b *block) error {
	b.frame, b.end, b.asIs, b.plain, b.err = f, false, false, nil, nil
	size, err := readWord(r)
	if err != nil {
		return err
	}
	if size == 0 {
		b.end = true
		if f.contentSum {
			b.sum, err = readWord(r)
		}
		return err
	}
	b.asIs = size&lz4Stored != 0
	size &^= lz4Stored
	if int(size) > f.blockMax {
		return fmt.Errorf("block of %d bytes in a frame of blocks of at most %d", size, f.blockMax)
	}
	b.packed = grow(b.packed, int(size))
	b.stored = b.packed[:size]
	if err := readFull(r, b.stored); err != nil {
		return err
	}
	if f.blockSum {
		b.sum, err = readWord(r)
	}
	return err
}

func readWord(r *bufio.Reader) (uint32, error) {
	var w [4]byte
	err := readFull(r, w[:])
	return binary.LittleEndian.Uint32(w[:]), err
}

// readFull is io.ReadFull inside a frame, where no end is a good end.
func readFull(r io.Reader, p []byte) error {
	_, err := io.ReadFull(r, p)
	return noEOF(err)
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func grow(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}
