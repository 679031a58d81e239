package wal

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"

	"github.com/walherd/walherd/engine/pg"
)

// ReaderOptions tunes a Reader. The zero value reads everything.
type ReaderOptions struct {
	// From is the position of the first record wanted: those that start
	// before are read and checked, but not given. 0: all.
	From pg.LSN
	// To ends the reading: a record that starts there or later is not given.
	// 0: to the end of the input.
	To pg.LSN
	// PageSize is the size of a data page (not of a WAL page, which the WAL
	// tells), in bytes. 0: 8192, as PostgreSQL is built by default.
	PageSize int
	// MaxRecord bounds what is kept of one record, in bytes: of a longer one
	// (a logical message can have a gigabyte) the checksum is checked and the
	// block references are given, but no data. 0: 16 MiB.
	MaxRecord int
}

const (
	defaultMaxRecord = 16 << 20
	readBuffer       = 256 << 10
	shortHeaderSize  = 24 // XLogPageHeaderData
)

// Fragment is a part of a record that lies on both sides of the border of what
// was read.
type Fragment struct {
	// Start is where the record begins; 0 if that is before the input, whose
	// first bytes then are the fragment.
	Start pg.LSN
	// Bytes of the record, without page headers.
	Bytes []byte
	// Missing is how many of its bytes follow after the input's end.
	Missing uint32
	// Cut tells that Bytes was too long to keep and is nil.
	Cut bool
}

// Reader reads the records of consecutive segments, streaming: it holds one
// page and one record. It is for one goroutine.
//
// It fails with a *RecordError; after that, and after io.EOF, it goes on
// failing with the same.
type Reader struct {
	src *bufio.Reader
	opt ReaderOptions
	err error
	all struct { // what all pages have in common
		pageSize int
		major    int
		magic    uint16
		size     pg.SegmentSize
		system   pg.SystemID
	}
	page     []byte // the current one, valid until the next is loaded
	addr     pg.LSN // of the page
	off      int    // in it
	header   Header // of the page, long fields of the last long one
	timeline pg.Timeline
	first    pg.LSN // where the input begins
	prev     pg.LSN // start of the last whole record
	rec      Record
	buf      []byte
	head     *Fragment
	tail     *Fragment
	broken   bool // the record begun before the input never ended
}

// NewReader reads src: whole segments one after the other, beginning with a
// segment's first byte. It may end anywhere at the end of a page.
func NewReader(src io.Reader, opt ReaderOptions) *Reader {
	opt.PageSize = cmp.Or(opt.PageSize, defaultPageSize)
	opt.MaxRecord = max(cmp.Or(opt.MaxRecord, defaultMaxRecord), maxHeaders+recordHeader)
	return &Reader{src: bufio.NewReaderSize(src, readBuffer), opt: opt}
}

// Next gives the next record, or io.EOF where the written WAL ends: at the end
// of the input, or at To, or where only zeros follow.
func (r *Reader) Next() (*Record, error) {
	for r.err == nil {
		rec, err := r.next()
		switch {
		case err != nil:
			r.err = err
		case rec == nil || rec.Start < r.opt.From:
		default:
			return rec, nil
		}
	}
	return nil, r.err
}

// Major is PostgreSQL's version, 0 before the first record.
func (r *Reader) Major() int { return r.all.major }

// SegmentSize is that of the input, 0 before the first record.
func (r *Reader) SegmentSize() pg.SegmentSize { return r.all.size }

// SystemID is the cluster's, 0 before the first record.
func (r *Reader) SystemID() pg.SystemID { return r.all.system }

// Timeline is that of the last page read.
func (r *Reader) Timeline() pg.Timeline { return r.timeline }

// Begin is the position of the input's first byte.
func (r *Reader) Begin() pg.LSN { return r.first }

// End is the position up to which the input was read. When Next gave io.EOF,
// every record that starts before it was read, but for one that Tail has.
func (r *Reader) End() pg.LSN { return r.addr + pg.LSN(r.off) }

// Head is the rest of a record that begins before the input; nil if none does.
// It may be the whole input, and then has bytes Missing.
func (r *Reader) Head() *Fragment { return r.head }

// Tail is the record that the input's end cuts in two; nil if there is none.
// It is known when Next has given io.EOF.
func (r *Reader) Tail() *Fragment { return r.tail }

// HeadLost tells that the record begun before the input was never completed:
// the server crashed while it wrote it and began anew on the input's first page.
func (r *Reader) HeadLost() bool { return r.broken }

func (r *Reader) fail(at pg.LSN, format string, args ...any) error {
	return &RecordError{LSN: at, Err: fmt.Errorf(format, args...)}
}

// next reads one record; nil without an error means: look again.
func (r *Reader) next() (*Record, error) {
	r.off = align(r.off)
	if r.opt.To != 0 && r.End() >= r.opt.To && r.page != nil {
		return nil, io.EOF
	}
	if r.page == nil || r.off >= len(r.page) {
		cont, err := r.load()
		if err != nil {
			return nil, err
		}
		if cont > 0 {
			if r.addr != r.first {
				return nil, r.fail(r.addr, "%w: %d bytes of a record that does not begin before", ErrRecord, cont)
			}
			return nil, r.readHead(cont)
		}
		return nil, nil
	}
	start := r.End()
	total := binary.LittleEndian.Uint32(r.page[r.off:])
	switch {
	case total == 0:
		return nil, r.readZeros(start)
	case total < recordHeader || total > maxRecord:
		return nil, r.fail(start, "%w: length %d", ErrRecord, total)
	}
	raw, sum, whole, err := r.assemble(start, int(total))
	if err != nil || !whole {
		return nil, err
	}
	if err := checkCRC(raw, sum); err != nil {
		return nil, &RecordError{LSN: start, Err: err}
	}
	r.rec.Start, r.rec.End = start, r.addr+pg.LSN(align(r.off))
	if err := r.rec.parse(raw, r.all.major, r.opt.PageSize); err != nil {
		return nil, &RecordError{LSN: start, Err: err}
	}
	if r.rec.Prev >= start || r.prev != 0 && r.rec.Prev != r.prev {
		return nil, r.fail(start, "%w: the record before it is at %s, not at %s", ErrRecord, r.rec.Prev, r.prev)
	}
	r.prev = start
	if r.rec.Manager == XLog && r.rec.Op() == opSwitch {
		if err := r.skipSegment(); err != nil {
			return nil, err
		}
		r.rec.End = r.End()
	}
	return &r.rec, nil
}

// assemble reads the record of total bytes at the current place: raw is it, or
// its beginning if it is longer than what is kept; sum the checksum of what
// follows its header. It is not whole when the input ends first, which is
// io.EOF, or when the server never finished it.
func (r *Reader) assemble(start pg.LSN, total int) (raw []byte, sum uint32, whole bool, err error) {
	if rest := r.page[r.off:]; total <= len(rest) {
		r.off += total
		return rest[:total:total], crc32.Checksum(rest[recordHeader:total], crc32c()), true, nil
	}
	a := assembly{buf: r.buf[:0], limit: r.opt.MaxRecord}
	for {
		n := min(total-a.size, len(r.page)-r.off)
		a.add(r.page[r.off : r.off+n])
		r.off += n
		if a.size == total {
			r.buf = a.buf
			return a.buf, a.sum, true, nil
		}
		cont, err := r.load()
		r.buf = a.buf
		switch {
		case errors.Is(err, io.EOF):
			r.tail = a.fragment(start, total)
			return nil, 0, false, err
		case err != nil:
			return nil, 0, false, err
		case r.header.Info&FirstIsOverwriteContRecord != 0:
			// It was being written when the server crashed; what comes
			// now was written after recovery.
			return nil, 0, false, nil
		case int(cont) != total-a.size:
			return nil, 0, false, r.fail(start, "%w: %d of its %d bytes are to follow, the page at %s has %d", ErrRecord, total-a.size, total, r.addr, cont)
		}
	}
}

// readHead reads the rest of a record that begins before the input.
func (r *Reader) readHead(cont uint32) error {
	total := int(cont)
	a := assembly{limit: r.opt.MaxRecord}
	for {
		n := min(total-a.size, len(r.page)-r.off)
		a.add(r.page[r.off : r.off+n])
		r.off += n
		if a.size == total {
			r.head = a.fragment(0, total)
			return nil
		}
		cont, err := r.load()
		switch {
		case errors.Is(err, io.EOF):
			r.head = a.fragment(0, total)
			return err
		case err != nil:
			return err
		case r.header.Info&FirstIsOverwriteContRecord != 0:
			r.broken = true
			return nil
		case int(cont) != total-a.size:
			return r.fail(r.addr, "%w: %d bytes of a record are to follow, the page has %d", ErrRecord, total-a.size, cont)
		}
	}
}

// assembly puts a record together.
type assembly struct {
	buf   []byte
	limit int
	size  int
	sum   uint32
}

func (a *assembly) add(p []byte) {
	if skip := max(recordHeader-a.size, 0); skip < len(p) {
		a.sum = crc32.Update(a.sum, crc32c(), p[skip:])
	}
	a.size += len(p)
	a.buf = append(a.buf, p[:min(len(p), a.limit-len(a.buf))]...)
}

func (a *assembly) fragment(start pg.LSN, total int) *Fragment {
	f := &Fragment{Start: start, Missing: uint32(total - a.size)}
	if f.Cut = a.size > len(a.buf); !f.Cut {
		f.Bytes = append([]byte(nil), a.buf...)
	}
	return f
}

// load goes to the next page and gives the number of bytes on it that belong
// to a record begun before. io.EOF: the input, or the written WAL, ends.
func (r *Reader) load() (cont uint32, err error) {
	if err := r.advance(); err != nil {
		return 0, err
	}
	h, err := r.parsePage()
	if err != nil {
		if allZero(r.page) {
			err = r.readZeros(r.addr)
		}
		return 0, err
	}
	r.header = h
	r.off = shortHeaderSize
	if h.Info&LongHeader != 0 {
		r.off = LongHeaderSize
	}
	if h.Info&FirstIsContRecord == 0 {
		return 0, nil
	}
	return h.Remaining, nil
}

// advance makes the next page the current one, whatever it holds. On the first
// it learns what all have in common.
func (r *Reader) advance() error {
	if r.page == nil {
		if err := r.learn(); err != nil {
			return err
		}
	} else {
		r.src.Discard(len(r.page)) // peeked before: it cannot fail
		r.addr += pg.LSN(len(r.page))
		r.page, r.off = r.page[:0], 0
	}
	page, err := r.src.Peek(r.all.pageSize)
	switch {
	case errors.Is(err, io.EOF) && len(page) == 0:
		return io.EOF
	case errors.Is(err, io.EOF):
		return &RecordError{LSN: r.addr, Err: io.ErrUnexpectedEOF}
	case err != nil:
		return &RecordError{LSN: r.addr, Err: err}
	}
	r.page, r.off = page, 0
	return nil
}

// learn reads the long header at the beginning of the input.
func (r *Reader) learn() error {
	raw, err := r.src.Peek(LongHeaderSize)
	switch {
	case errors.Is(err, io.EOF) && len(raw) == 0:
		return io.EOF
	case errors.Is(err, io.EOF):
		return &RecordError{Err: io.ErrUnexpectedEOF}
	case err != nil:
		return &RecordError{Err: err}
	}
	h, err := ParseHeader(raw)
	if err != nil {
		return &RecordError{Err: err}
	}
	major, newer, err := judgeMagic(raw, h)
	switch {
	case err != nil:
		return &RecordError{LSN: h.Address, Err: err}
	case newer:
		return r.fail(h.Address, "%w: %#04x is newer than PostgreSQL %d, whose records are known", ErrMagic, h.Magic, pg.MaxMajor)
	case h.Info&LongHeader == 0:
		return r.fail(h.Address, "%w: not the first page of a segment", ErrHeader)
	case h.BlockSize < 1<<10 || h.BlockSize > 1<<16 || bits.OnesCount32(h.BlockSize) != 1:
		return r.fail(h.Address, "%w: WAL block size %d", ErrHeader, h.BlockSize)
	case uint64(h.Address)%uint64(max(h.SegmentSize, 1)) != 0:
		return r.fail(h.Address, "%w: not the beginning of a segment of %d bytes", ErrAddress, h.SegmentSize)
	}
	if err := h.SegmentSize.Validate(); err != nil {
		return r.fail(h.Address, "%w: %w", ErrHeader, err)
	}
	r.all.pageSize, r.all.major, r.all.magic = int(h.BlockSize), major, h.Magic
	r.all.size, r.all.system = h.SegmentSize, h.SystemID
	r.addr, r.first = h.Address, h.Address
	return nil
}

// parsePage reads and judges the current page's header.
func (r *Reader) parsePage() (Header, error) {
	le := binary.LittleEndian
	h := Header{
		Magic:     le.Uint16(r.page),
		Info:      PageInfo(le.Uint16(r.page[2:])),
		Timeline:  pg.Timeline(le.Uint32(r.page[4:])),
		Address:   pg.LSN(le.Uint64(r.page[8:])),
		Remaining: le.Uint32(r.page[16:]),
	}
	atStart := uint64(r.addr)%uint64(r.all.size) == 0
	switch {
	case h.Magic != r.all.magic:
		return h, r.fail(r.addr, "%w: %#04x, before it was %#04x", ErrMagic, h.Magic, r.all.magic)
	case h.Info&^knownPageInfo != 0 || (h.Info&LongHeader != 0) != atStart:
		return h, r.fail(r.addr, "%w: flags %#04x", ErrHeader, uint16(h.Info))
	case h.Address != r.addr:
		return h, r.fail(r.addr, "%w: the page says %s (a recycled or misplaced segment)", ErrAddress, h.Address)
	case h.Timeline == 0 || h.Timeline < r.timeline:
		return h, r.fail(r.addr, "%w: page of timeline %d after %d", ErrTimeline, h.Timeline, r.timeline)
	case h.Info&FirstIsContRecord != 0 && h.Info&FirstIsOverwriteContRecord != 0,
		h.Info&FirstIsContRecord != 0 && (h.Remaining == 0 || h.Remaining > maxRecord):
		return h, r.fail(r.addr, "%w: flags %#04x, %d bytes of a record begun before", ErrHeader, uint16(h.Info), h.Remaining)
	}
	if atStart {
		long, err := ParseHeader(r.page)
		switch {
		case err != nil:
			return h, &RecordError{LSN: r.addr, Err: err}
		case long.SystemID != r.all.system:
			return h, r.fail(r.addr, "%w: system identifier %d after %d", ErrSystemID, long.SystemID, r.all.system)
		case long.SegmentSize != r.all.size || int(long.BlockSize) != r.all.pageSize:
			return h, r.fail(r.addr, "%w: segment of %d bytes, pages of %d after %d and %d", ErrSize, long.SegmentSize, long.BlockSize, r.all.size, r.all.pageSize)
		}
		if r.addr == r.first && h.Info&FirstIsOverwriteContRecord != 0 {
			r.broken = true
		}
		h = long
	}
	r.timeline = h.Timeline
	return h, nil
}

// skipSegment passes over what follows a segment switch: the server fills the
// rest with zeros, some versions with page headers in them.
func (r *Reader) skipSegment() error {
	end := r.addr/pg.LSN(r.all.size)*pg.LSN(r.all.size) + pg.LSN(r.all.size)
	for r.addr+pg.LSN(len(r.page)) < end {
		switch err := r.advance(); {
		case errors.Is(err, io.EOF):
			// The switch is on the page before; what is cut off is filling.
			r.addr, r.off, r.page = end, 0, r.page[:0]
			return nil
		case err != nil:
			return err
		}
	}
	r.off = len(r.page)
	return nil
}

// readZeros makes sure that what begins at the current place is the end of the
// written WAL: nothing but zeros to the end of the input. It gives io.EOF, and
// leaves End at the place.
func (r *Reader) readZeros(end pg.LSN) error {
	rest := r.page[r.off:]
	for {
		if !allZero(rest) {
			return r.fail(end, "%w: length 0, but the WAL goes on", ErrRecord)
		}
		switch err := r.advance(); {
		case errors.Is(err, io.EOF):
			r.addr, r.off, r.page = end, 0, r.page[:0]
			return io.EOF
		case err != nil:
			return err
		}
		rest = r.page
	}
}

// align rounds up to MAXALIGN, on which every record starts.
func align(n int) int { return (n + 7) &^ 7 }
