package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/walherd/walherd/engine/pg"
)

// ErrRecord marks a record that makes no sense: damage, or the end of what was
// written.
var ErrRecord = errors.New("damaged WAL record")

// RecordError tells where reading WAL failed.
type RecordError struct {
	// LSN of the record, or of the page when its header is at fault.
	LSN pg.LSN
	Err error
}

// Error names the position in PostgreSQL's notation.
func (e *RecordError) Error() string { return fmt.Sprintf("read WAL at %s: %v", e.LSN, e.Err) }

// Unwrap gives the cause: ErrRecord, ErrHeader, ErrMagic, ErrAddress,
// ErrSystemID, ErrTimeline or that of the input.
func (e *RecordError) Unwrap() error { return e.Err }

// Record is one WAL record. A Reader's is valid until its next call: the
// slices point into its buffers.
type Record struct {
	// Start is the position of the record's first byte. End is where the next
	// may begin, rounded up to 8; for a segment switch the segment's end.
	Start, End pg.LSN
	// Prev is where the record before starts.
	Prev    pg.LSN
	Major   int // PostgreSQL's version that wrote it
	XID     uint32
	Manager Manager
	// Info holds four bits of the manager (0xF0) and some of the WAL's own.
	Info   uint8
	Length uint32 // in bytes, header included
	// Blocks are the pages the record changes, by ascending ID.
	Blocks []BlockRef
	// Data is the main data, which belongs to the manager.
	Data []byte
	// Cut tells that the record is longer than the Reader keeps: Data is
	// nil although it has some. Blocks are whole all the same.
	Cut bool
}

// Op is the manager's part of Info.
func (r *Record) Op() uint8 { return r.Info & 0xF0 }

// BlockRef is one reference of a record to a page.
type BlockRef struct {
	ID      uint8
	Fork    Fork
	Rel     RelFile
	Block   uint32 // counted over all files of the fork
	Image   bool   // a full-page image comes with it
	Apply   bool   // replay restores the image; without, it is there to compare
	Inits   bool   // replay makes the page anew
	HoleLen uint16 // bytes the image leaves out in its middle
}

// The layout of a record: src/include/access/xlogrecord.h.
const (
	recordHeader = 24
	recordCRC    = 20 // where the checksum lies in the header

	// No server writes more: XLogRecordMaxSize is 1020 MiB since 16, before
	// it was what one allocation can hold.
	maxRecord = 1<<30 - 1

	blockHasImage = 0x10
	blockHasData  = 0x20
	blockWillInit = 0x40
	blockSameRel  = 0x80

	maxBlockID      = 32
	idDataShort     = 255
	idDataLong      = 254
	idOrigin        = 253
	idTopLevelXID   = 252 // since 14
	imageHasHole    = 0x01
	opSwitch        = 0x40 // XLOG_SWITCH
	maxHeaders      = (maxBlockID+1)*(4+5+2+12+4) + 3 + 5 + 5
	defaultPageSize = 8192
)

// imageBits are the flags of a page image. In 15 the bit that had meant
// "compressed" came to mean "apply", and "apply" to mean "compressed with
// pglz": a reader that takes the one for the other expects two more bytes, or
// two less, and is lost for the rest of the record.
type imageBits struct{ apply, compressed, known uint8 }

func imageBitsOf(major int) imageBits {
	if major < 15 {
		return imageBits{apply: 0x04, compressed: 0x02, known: 0x07}
	}
	return imageBits{apply: 0x02, compressed: 0x04 | 0x08 | 0x10, known: 0x1F} // pglz, lz4, zstd
}

// ParseRecord reads one whole record whose bytes were put together out of
// several pages, headers left out. pageSize is the size of a data page, 0 for
// 8192. End is not known and left 0.
func ParseRecord(raw []byte, start pg.LSN, major, pageSize int) (*Record, error) {
	if pageSize == 0 {
		pageSize = defaultPageSize
	}
	rec := &Record{Start: start}
	err := fmt.Errorf("%w: %d bytes", ErrRecord, len(raw))
	if len(raw) >= recordHeader && int64(len(raw)) == int64(binary.LittleEndian.Uint32(raw)) {
		if err = checkCRC(raw, crc32.Checksum(raw[recordHeader:], crc32c())); err == nil {
			err = rec.parse(raw, major, pageSize)
		}
	}
	if err != nil {
		return nil, &RecordError{LSN: start, Err: err}
	}
	return rec, nil
}

// crc32c is the table of the checksum all of PostgreSQL's files use; the
// standard library keeps one.
func crc32c() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// checkCRC holds a record's checksum against body, the sum of all that follows
// the header. The header's beginning comes last in the sum.
func checkCRC(header []byte, body uint32) error {
	got := crc32.Update(body, crc32c(), header[:recordCRC])
	if want := binary.LittleEndian.Uint32(header[recordCRC:]); got != want {
		return fmt.Errorf("%w: checksum %08x, the record says %08x", ErrRecord, got, want)
	}
	return nil
}

// parse reads a record of which raw holds at least the headers. It keeps
// Start and End.
func (r *Record) parse(raw []byte, major, pageSize int) error {
	le := binary.LittleEndian
	*r = Record{
		Start: r.Start, End: r.End, Blocks: r.Blocks[:0],
		Major: major, Length: le.Uint32(raw), XID: le.Uint32(raw[4:]), Prev: pg.LSN(le.Uint64(raw[8:])),
		Info: raw[16], Manager: Manager(raw[17]),
	}
	if !r.Manager.known(major) {
		return fmt.Errorf("%w: resource manager %d", ErrRecord, uint8(r.Manager))
	}
	s := scanner{rest: raw[recordHeader:], left: uint64(r.Length) - recordHeader}
	var (
		payload uint64 // what is to follow all headers
		data    uint64
		rel     RelFile
		hasRel  bool
		bits    = imageBitsOf(major)
	)
	for s.left > payload && !s.short {
		switch id := s.u8(); {
		case id == idDataShort || id == idDataLong:
			if id == idDataShort {
				data = uint64(s.u8())
			} else {
				data = uint64(s.u32())
			}
			if s.left != payload+data && !s.short {
				return fmt.Errorf("%w: %d bytes of data, %d left for them", ErrRecord, payload+data, s.left)
			}
			payload += data
		case id == idOrigin:
			s.u16()
		case id == idTopLevelXID && major >= 14:
			s.u32()
		case id <= maxBlockID:
			if n := len(r.Blocks); n > 0 && id <= r.Blocks[n-1].ID {
				return fmt.Errorf("%w: block reference %d after %d", ErrRecord, id, r.Blocks[n-1].ID)
			}
			b := BlockRef{ID: id}
			n, err := b.parse(&s, bits, pageSize, &rel, &hasRel)
			if err != nil {
				return fmt.Errorf("%w: block reference %d: %w", ErrRecord, id, err)
			}
			payload += n
			r.Blocks = append(r.Blocks, b)
		default:
			return fmt.Errorf("%w: block reference %d", ErrRecord, id)
		}
	}
	if s.short || s.left != payload {
		return fmt.Errorf("%w: its parts do not add up to its length of %d", ErrRecord, r.Length)
	}
	switch skip := payload - data; {
	case data == 0:
	case uint64(len(s.rest)) < payload:
		r.Cut = true
	default:
		r.Data = s.rest[skip:payload:payload]
	}
	return nil
}

// parse reads one XLogRecordBlockHeader and gives the number of bytes that
// belong to it after all headers. rel is that of the reference before.
func (b *BlockRef) parse(s *scanner, bits imageBits, pageSize int, rel *RelFile, hasRel *bool) (payload uint64, err error) {
	flags := s.u8()
	b.Fork, b.Inits = Fork(flags&0x0F), flags&blockWillInit != 0
	if b.Fork >= numForks {
		return 0, fmt.Errorf("fork %d", b.Fork)
	}
	n := s.u16()
	if (flags&blockHasData != 0) != (n != 0) {
		return 0, fmt.Errorf("%d bytes of data, flags %#02x", n, flags)
	}
	payload = uint64(n)
	if flags&blockHasImage != 0 {
		length, err := b.parseImage(s, bits, pageSize)
		if err != nil {
			return 0, err
		}
		payload += uint64(length)
	}
	switch {
	case flags&blockSameRel == 0:
		*rel, *hasRel = RelFile{Tablespace: s.u32(), Database: s.u32(), Relation: s.u32()}, true
	case !*hasRel:
		return 0, errors.New("the relation of the one before, but it is the first")
	}
	b.Rel = *rel
	b.Block = s.u32()
	return payload, nil
}

// parseImage reads an XLogRecordBlockImageHeader and gives the image's length
// as stored. The rules for the hole are those of DecodeXLogRecord
// (src/backend/access/transam/xlogreader.c).
func (b *BlockRef) parseImage(s *scanner, bits imageBits, pageSize int) (length uint16, err error) {
	length = s.u16()
	offset := s.u16()
	info := s.u8()
	if info&^bits.known != 0 {
		return 0, fmt.Errorf("page image with flags %#02x", info)
	}
	hole, compressed := info&imageHasHole != 0, info&bits.compressed != 0
	switch {
	case !compressed && int(length) <= pageSize:
		b.HoleLen = uint16(pageSize - int(length))
	case compressed && hole:
		b.HoleLen = s.u16()
	}
	full := int(length) >= pageSize
	if s.short || int(length) > pageSize ||
		hole && (offset == 0 || b.HoleLen == 0 || full) ||
		!hole && (offset != 0 || b.HoleLen != 0) ||
		compressed && full {
		return 0, fmt.Errorf("page image of %d bytes, hole of %d at %d, flags %#02x (is a data page %d bytes long?)",
			length, b.HoleLen, offset, info, pageSize)
	}
	b.Image, b.Apply = true, info&bits.apply != 0
	return length, nil
}

// scanner reads little-endian numbers off a record. Past the end it gives
// zeros and remembers.
type scanner struct {
	rest  []byte
	left  uint64 // of the record; rest may hold less of it
	short bool
}

func (s *scanner) take(n int) []byte {
	if len(s.rest) < n || s.left < uint64(n) {
		s.short = true
		s.rest, s.left = nil, 0
		return make([]byte, n)
	}
	b := s.rest[:n]
	s.rest, s.left = s.rest[n:], s.left-uint64(n)
	return b
}

func (s *scanner) u8() uint8   { return s.take(1)[0] }
func (s *scanner) u16() uint16 { return binary.LittleEndian.Uint16(s.take(2)) }
func (s *scanner) u32() uint32 { return binary.LittleEndian.Uint32(s.take(4)) }
