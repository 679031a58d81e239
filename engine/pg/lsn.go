package pg

import (
	"fmt"
	"strconv"
	"strings"
)

// LSN is a log sequence number: a byte position in the WAL stream of one
// timeline. It is stored in JSON as a plain integer, as WAL-G does, and
// printed as PostgreSQL prints it (16/B374D848).
type LSN uint64

// ParseLSN reads PostgreSQL's X/Y notation: two hexadecimal numbers of at
// most eight digits each.
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	if !ok {
		return 0, fmt.Errorf("parse LSN %q: want two hexadecimal numbers as in 16/B374D848", s)
	}
	h, err := parseHex32(hi)
	if err != nil {
		return 0, fmt.Errorf("parse LSN %q: %w", s, err)
	}
	l, err := parseHex32(lo)
	if err != nil {
		return 0, fmt.Errorf("parse LSN %q: %w", s, err)
	}
	return LSN(uint64(h)<<32 | uint64(l)), nil
}

func parseHex32(s string) (uint32, error) {
	if len(s) == 0 || len(s) > 8 {
		return 0, fmt.Errorf("%q is not a hexadecimal number of one to eight digits", s)
	}
	for i := range len(s) {
		if !isHex(s[i]) {
			return 0, fmt.Errorf("%q is not a hexadecimal number of one to eight digits", s)
		}
	}
	v, err := strconv.ParseUint(s, 16, 32)
	return uint32(v), err
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

// String prints the LSN in PostgreSQL's notation, without leading zeros.
func (l LSN) String() string {
	return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l))
}

// Segment returns the segment of timeline tl that contains the byte at l.
func (l LSN) Segment(tl Timeline, size SegmentSize) SegmentName {
	return SegmentAt(tl, uint64(l)/uint64(size), size)
}
