// Package page reads PostgreSQL's data pages: the header that every page of a
// relation begins with, whether it can be one, and the checksum.
//
// It judges bytes and nothing else: no files, no state, no input that makes it
// panic but a slice that is no page (shorter than its header, or for the
// checksum not a multiple of 128 bytes). A page that is read while the server
// writes it may be torn; what a bad verdict means is for the caller to say.
//
// Pages are in the byte order of the host that wrote them, which for all
// systems PostgreSQL still has packages for is little-endian.
package page

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/walherd/walherd/engine/pg"
)

// DefaultSize is the page size PostgreSQL is built with by default, in bytes.
const DefaultSize = 8192

// HeaderSize is the length of the fixed header (SizeOfPageHeaderData in
// src/include/storage/bufpage.h), in bytes.
const HeaderSize = 24

// PagesPerFile is how many pages a file of a relation holds at most
// (RELSEG_SIZE): files of 1 GiB, as PostgreSQL is built by default.
func PagesPerFile(size int) uint32 { return uint32(1 << 30 / size) }

// AllVisible is the flag of a heap page all of whose tuples are visible to
// everybody (PD_ALL_VISIBLE).
const AllVisible = 0x0004

const (
	knownFlags = 0x0007 // PD_VALID_FLAG_BITS
	maxVersion = 5      // PG_PAGE_LAYOUT_VERSION is 4 since 8.3
)

// ErrHeader marks a page whose header PostgreSQL would not write.
var ErrHeader = errors.New("implausible page header")

// Header is a page's header.
type Header struct {
	// LSN is the end of the last WAL record that changed the page; 0 for
	// pages of unlogged relations.
	LSN pg.LSN
	// Checksum is 0 for a page written without one.
	Checksum uint16
	Flags    uint16
	// Lower and Upper bound the free space, Special is where the access
	// method's own area begins; offsets in bytes.
	Lower, Upper, Special uint16
	// Size in bytes and Version of the layout share a field.
	Size    int
	Version uint8
}

// ParseHeader reads the first HeaderSize bytes of p. It takes any bytes:
// Check tells whether they make sense.
func ParseHeader(p []byte) Header {
	_ = p[HeaderSize-1]
	le := binary.LittleEndian
	sizeVersion := le.Uint16(p[18:])
	return Header{
		LSN:      pg.LSN(le.Uint32(p))<<32 | pg.LSN(le.Uint32(p[4:])),
		Checksum: le.Uint16(p[8:]), Flags: le.Uint16(p[10:]),
		Lower: le.Uint16(p[12:]), Upper: le.Uint16(p[14:]), Special: le.Uint16(p[16:]),
		Size: int(sizeVersion & 0xff00), Version: uint8(sizeVersion),
	}
}

// IsNew reports whether the page was never initialized, as PostgreSQL tells it
// (PageIsNew): extended relations end in such pages.
func (h Header) IsNew() bool { return h.Upper == 0 }

// Check returns an ErrHeader unless the header is one of an initialized, logged
// page of size bytes. It is at least as strict as PostgreSQL's own check
// (PageIsVerified): an LSN of 0 is refused, since nothing follows from it.
func (h Header) Check(size int) error {
	switch {
	case h.LSN == 0:
		return fmt.Errorf("%w: LSN is 0", ErrHeader)
	case !h.plausible(size):
		return fmt.Errorf("%w: flags %#x, lower %d, upper %d, special %d, size %d, version %d",
			ErrHeader, h.Flags, h.Lower, h.Upper, h.Special, h.Size, h.Version)
	}
	return nil
}

// Plausible is Check for whom the reason does not matter.
func (h Header) Plausible(size int) bool { return h.LSN != 0 && h.plausible(size) }

func (h Header) plausible(size int) bool {
	return h.Flags&^knownFlags == 0 && h.Lower >= HeaderSize && h.Lower <= h.Upper && h.Upper <= h.Special &&
		int(h.Special) <= size && h.Size == size && h.Version <= maxVersion
}

// IsZero reports whether all bytes are zero: what a relation is extended by,
// and what a hole in a file reads as.
func IsZero(p []byte) bool {
	for len(p) >= len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}

var zeros [DefaultSize]byte
