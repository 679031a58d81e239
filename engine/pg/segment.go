package pg

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"strings"
)

// Timeline is a PostgreSQL timeline number; 0 is not a timeline.
type Timeline uint32

// String prints the eight hexadecimal digits used in file names.
func (t Timeline) String() string { return fmt.Sprintf("%08X", uint32(t)) }

// HistoryFile is the name of the timeline's history file (00000002.history).
func (t Timeline) HistoryFile() string { return t.String() + ".history" }

// SystemID identifies one cluster; initdb makes it. 0 means unknown. It is
// above 2^53 in practice: never pass it through a float.
type SystemID uint64

// SegmentSize is the size of a WAL segment file in bytes: a power of two
// from 1 MiB to 1 GiB.
type SegmentSize uint64

// DefaultSegmentSize is PostgreSQL's default of 16 MiB.
const DefaultSegmentSize SegmentSize = 16 << 20

// Validate reports whether PostgreSQL would accept the size.
func (s SegmentSize) Validate() error {
	if s < 1<<20 || s > 1<<30 || bits.OnesCount64(uint64(s)) != 1 {
		return fmt.Errorf("WAL segment size %d: want a power of two from 1 MiB to 1 GiB", uint64(s))
	}
	return nil
}

// PerLog is how many segments share the middle eight digits of their names.
func (s SegmentSize) PerLog() uint64 { return (1 << 32) / uint64(s) }

// SegmentName is the name of a WAL segment: timeline, log and segment number,
// each eight upper-case hexadecimal digits. The zero value is no name.
//
// Names of one timeline sort as their positions do, whatever the segment size.
type SegmentName struct {
	Timeline Timeline
	Log, Seg uint32
}

// ErrNotSegment marks a file name that is no WAL segment name.
var ErrNotSegment = errors.New("not a WAL segment name (24 hexadecimal digits)")

// SegmentNameLen is the length of a segment name.
const SegmentNameLen = 24

// ParseSegmentName reads exactly 24 upper-case hexadecimal digits.
func ParseSegmentName(s string) (SegmentName, error) {
	if len(s) != SegmentNameLen || strings.ToUpper(s) != s {
		return SegmentName{}, fmt.Errorf("parse %q: %w", s, ErrNotSegment)
	}
	var part [3]uint32
	for i := range part {
		v, err := parseHex32(s[i*8 : i*8+8])
		if err != nil {
			return SegmentName{}, fmt.Errorf("parse %q: %w", s, ErrNotSegment)
		}
		part[i] = v
	}
	return SegmentName{Timeline: Timeline(part[0]), Log: part[1], Seg: part[2]}, nil
}

// SegmentAt is the segment with the given number, counted from the start of
// the WAL stream (segment number = LSN / size).
func SegmentAt(tl Timeline, number uint64, size SegmentSize) SegmentName {
	return SegmentName{Timeline: tl, Log: uint32(number / size.PerLog()), Seg: uint32(number % size.PerLog())}
}

// String prints the 24 digits.
func (n SegmentName) String() string {
	return fmt.Sprintf("%08X%08X%08X", uint32(n.Timeline), n.Log, n.Seg)
}

// IsZero reports whether n is no name.
func (n SegmentName) IsZero() bool { return n == SegmentName{} }

// Number counts the segment from the start of the WAL stream.
func (n SegmentName) Number(size SegmentSize) uint64 {
	return uint64(n.Log)*size.PerLog() + uint64(n.Seg)
}

// Start is the LSN of the segment's first byte.
func (n SegmentName) Start(size SegmentSize) LSN {
	return LSN(n.Number(size) * uint64(size))
}

// Next is the following segment of the same timeline.
func (n SegmentName) Next(size SegmentSize) SegmentName {
	return SegmentAt(n.Timeline, n.Number(size)+1, size)
}

// Compare orders by timeline, then position.
func (n SegmentName) Compare(o SegmentName) int {
	return cmp.Or(
		cmp.Compare(n.Timeline, o.Timeline),
		cmp.Compare(n.Log, o.Log),
		cmp.Compare(n.Seg, o.Seg))
}

// FirstSegmentName finds the first run of 24 upper-case hexadecimal digits in
// s: how WAL-G tells which segment an object belongs to.
func FirstSegmentName(s string) (SegmentName, bool) {
	for i := 0; i+SegmentNameLen <= len(s); i++ {
		if n, err := ParseSegmentName(s[i : i+SegmentNameLen]); err == nil {
			return n, true
		}
	}
	return SegmentName{}, false
}

// WALFileKind tells what PostgreSQL hands to archive_command.
type WALFileKind int

// The kinds of file PostgreSQL archives. OtherFile is none of them; WAL-G
// archives such a file all the same.
const (
	OtherFile    WALFileKind = iota
	SegmentFile              // 000000010000000000000003
	PartialFile              // 000000010000000000000003.partial
	BackupFile               // 000000010000000000000003.00000028.backup
	TimelineHist             // 00000002.history
)

// ClassifyWALFile tells the kind of an archived file by its base name, and
// the segment it belongs to (zero for a history file or another file).
func ClassifyWALFile(base string) (WALFileKind, SegmentName) {
	if stem, ok := strings.CutSuffix(base, ".history"); ok {
		if _, err := parseHex32(stem); err == nil && len(stem) == 8 {
			return TimelineHist, SegmentName{}
		}
		return OtherFile, SegmentName{}
	}
	stem, suffix, dotted := strings.Cut(base, ".")
	seg, err := ParseSegmentName(stem)
	switch {
	case err != nil:
		return OtherFile, SegmentName{}
	case !dotted:
		return SegmentFile, seg
	case suffix == "partial":
		return PartialFile, seg
	}
	if offset, ok := strings.CutSuffix(suffix, ".backup"); ok {
		if _, err := parseHex32(offset); err == nil && len(offset) == 8 {
			return BackupFile, seg
		}
	}
	return OtherFile, SegmentName{}
}
