package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/walherd/walherd/engine/pg"
)

// Why a segment is refused, for errors.Is.
var (
	ErrSize     = errors.New("wrong WAL segment size")
	ErrMagic    = errors.New("unknown WAL page magic")
	ErrHeader   = errors.New("damaged WAL page header")
	ErrSystemID = errors.New("WAL of another cluster")
	ErrTimeline = errors.New("WAL of another timeline")
	ErrAddress  = errors.New("WAL of another position")
)

// LongHeaderSize is the length of the header on a segment's first page, in
// bytes: XLogLongPageHeaderData of src/include/access/xlog_internal.h.
const LongHeaderSize = 40

// PageInfo is xlp_info, the flags of a page header.
type PageInfo uint16

// The flags of a page header.
const (
	FirstIsContRecord          PageInfo = 1 << iota // the page begins within a record
	LongHeader                                      // the first page of a segment
	BackupRemovable                                 // its full-page images may be removed
	FirstIsOverwriteContRecord                      // the record begun before was lost
	knownPageInfo              = 1<<iota - 1
)

// Header is the long page header at the start of a segment.
type Header struct {
	Magic    uint16
	Info     PageInfo
	Timeline pg.Timeline // of the page; may be older than the segment's name
	Address  pg.LSN
	// Remaining is how many bytes of a record begun before follow.
	Remaining   uint32
	SystemID    pg.SystemID
	SegmentSize pg.SegmentSize
	BlockSize   uint32
}

// ParseHeader reads the first LongHeaderSize bytes of a segment,
// little-endian. It judges nothing but the length.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < LongHeaderSize {
		return Header{}, fmt.Errorf("parse WAL page header: %w: %d bytes, want %d", ErrHeader, len(b), LongHeaderSize)
	}
	le := binary.LittleEndian
	return Header{
		Magic:       le.Uint16(b[0:]),
		Info:        PageInfo(le.Uint16(b[2:])),
		Timeline:    pg.Timeline(le.Uint32(b[4:])),
		Address:     pg.LSN(le.Uint64(b[8:])),
		Remaining:   le.Uint32(b[16:]),
		SystemID:    pg.SystemID(le.Uint64(b[24:])),
		SegmentSize: pg.SegmentSize(le.Uint32(b[32:])),
		BlockSize:   le.Uint32(b[36:]),
	}, nil
}

// Magic is the page magic that a major version of PostgreSQL writes; false
// for a version that is not known.
func Magic(major int) (uint16, bool) {
	switch major {
	case 13:
		return 0xD106, true
	case 14:
		return 0xD10D, true
	case 15:
		return 0xD110, true
	case 16:
		return 0xD113, true
	case 17:
		return 0xD116, true
	case 18:
		return 0xD118, true
	}
	return 0, false
}

// Expect is what a segment is held against. A zero field is not checked.
type Expect struct {
	// SystemID of the cluster that archives.
	SystemID pg.SystemID
	// SegmentSize the cluster is set up with. 0: the size that the header
	// itself names is taken.
	SegmentSize pg.SegmentSize
}

// Verdict is what a segment that passed is.
type Verdict struct {
	Header Header
	// Major is PostgreSQL's major version; 0 if it is newer than known.
	Major int
	// Newer tells that the magic is above all known ones. The segment is
	// let through, since refusing it would stop archiving on the day of an
	// upgrade, but a person should hear of it.
	Newer bool
}

// CheckSegment decides whether a file of fileSize bytes that begins with
// header (at least LongHeaderSize bytes) is the segment called name. It serves
// a .partial file too: PostgreSQL keeps it at full size.
//
// The page's timeline may be older than the name's, because a new timeline
// starts in a copy of the segment it branched off in; it is never newer.
func CheckSegment(header []byte, name pg.SegmentName, fileSize int64, want Expect) (Verdict, error) {
	v, err := checkSegment(header, name, fileSize, want)
	if err != nil {
		return Verdict{}, fmt.Errorf("check WAL segment %s: %w", name, err)
	}
	return v, nil
}

func checkSegment(header []byte, name pg.SegmentName, fileSize int64, want Expect) (Verdict, error) {
	if fileSize == 0 {
		return Verdict{}, fmt.Errorf("%w: the file is empty", ErrSize)
	}
	if want.SegmentSize != 0 && fileSize != int64(want.SegmentSize) {
		return Verdict{}, fmt.Errorf("%w: %d bytes, want %d (a segment of another size needs WALG_PG_WAL_SIZE)", ErrSize, fileSize, want.SegmentSize)
	}
	h, err := ParseHeader(header)
	if err != nil {
		return Verdict{}, err
	}
	v := Verdict{Header: h}
	if v.Major, v.Newer, err = judgeMagic(header, h); err != nil {
		return Verdict{}, err
	}
	if h.Info&LongHeader == 0 || !v.Newer && h.Info&^knownPageInfo != 0 {
		return Verdict{}, fmt.Errorf("%w: flags %#04x are not those of a segment's first page", ErrHeader, uint16(h.Info))
	}
	if h.BlockSize < 1<<10 || h.BlockSize > 1<<16 || bits.OnesCount32(h.BlockSize) != 1 {
		return Verdict{}, fmt.Errorf("%w: WAL block size %d", ErrHeader, h.BlockSize)
	}
	if err := h.SegmentSize.Validate(); err != nil {
		return Verdict{}, fmt.Errorf("%w: %w", ErrHeader, err)
	}
	if int64(h.SegmentSize) != fileSize {
		return Verdict{}, fmt.Errorf("%w: %d bytes, its header says %d (a copy cut short?)", ErrSize, fileSize, h.SegmentSize)
	}
	if want.SystemID != 0 && h.SystemID != want.SystemID {
		return Verdict{}, fmt.Errorf("%w: system identifier %d, want %d (two clusters with one archive setting?)", ErrSystemID, h.SystemID, want.SystemID)
	}
	if h.Timeline == 0 || h.Timeline > name.Timeline {
		return Verdict{}, fmt.Errorf("%w: page of timeline %d, the name says %d", ErrTimeline, h.Timeline, name.Timeline)
	}
	if uint64(name.Seg) >= h.SegmentSize.PerLog() {
		return Verdict{}, fmt.Errorf("%w: no such name with segments of %d bytes", ErrAddress, h.SegmentSize)
	}
	if start := name.Start(h.SegmentSize); h.Address != start {
		return Verdict{}, fmt.Errorf("%w: page address %s, want %s (a recycled or renamed file)", ErrAddress, h.Address, start)
	}
	return v, nil
}

// lastMagic bounds what is taken for a future version: PostgreSQL counts up
// the low byte, and went from 0xD0 to 0xD1 in version 12.
const lastMagic = 0xD1FF

func judgeMagic(raw []byte, h Header) (major int, newer bool, err error) {
	for m := pg.MinMajor; m <= pg.MaxMajor; m++ {
		if known, _ := Magic(m); known == h.Magic {
			return m, false, nil
		}
	}
	last, _ := Magic(pg.MaxMajor)
	switch {
	case h.Magic > last && h.Magic <= lastMagic:
		return 0, true, nil
	case allZero(raw[:LongHeaderSize]):
		return 0, false, fmt.Errorf("%w: the page is all zeros (a segment never written, or lost in a crash)", ErrMagic)
	}
	return 0, false, fmt.Errorf("%w: %#04x (PostgreSQL %d and later, little-endian, are supported)", ErrMagic, h.Magic, pg.MinMajor)
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
