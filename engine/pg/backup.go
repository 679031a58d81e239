package pg

import (
	"fmt"
	"strings"
)

// BackupName names a backup in storage: base_SEG for a full backup,
// base_SEG_D_SEGPARENT for an increment; WAL-E's base_SEG_OFFSET is read too.
// The parent part names only the parent's own segment; the exact parent is in
// the sentinel.
type BackupName string

// FullBackupName is the name of a full backup that starts in segment start.
func FullBackupName(start SegmentName) BackupName {
	return BackupName("base_" + start.String())
}

// IncrementName is the name of an increment that starts in segment start on
// top of parent; a parent without a segment in its name is written as 24 Zs.
func IncrementName(start SegmentName, parent BackupName) BackupName {
	p := "ZZZZZZZZZZZZZZZZZZZZZZZZ"
	if seg, ok := FirstSegmentName(string(parent)); ok {
		p = seg.String()
	}
	return BackupName("base_" + start.String() + "_D_" + p)
}

// ParseBackupName checks that s has the form of a backup name.
func ParseBackupName(s string) (BackupName, error) {
	if valid, _ := readBackupName(s); !valid {
		return "", fmt.Errorf("%q is not a backup name (base_ and 24 hexadecimal digits; see backup-list)", s)
	}
	return BackupName(s), nil
}

// Segment is the segment the backup starts in; false if the name holds none.
func (n BackupName) Segment() (SegmentName, bool) { return FirstSegmentName(string(n)) }

// IsIncrement reports whether the name is that of an increment.
func (n BackupName) IsIncrement() bool {
	_, increment := readBackupName(string(n))
	return increment
}

// readBackupName matches base_SEG, then _D_SEGPARENT (or 24 Zs) for an
// increment, then _OFFSET of 8 digits, the latter two optional. A regular
// expression would say it in a line, and be compiled at every start of the
// program.
func readBackupName(s string) (valid, increment bool) {
	const digits = "0123456789ABCDEF"
	s, base := strings.CutPrefix(s, "base_")
	s, ok := cutDigits(s, 24, digits)
	if !base || !ok {
		return false, false
	}
	if parent, marked := strings.CutPrefix(s, "_D_"); marked {
		if s, increment = cutDigits(parent, 24, digits+"Z"); !increment {
			return false, false
		}
	}
	if offset, marked := strings.CutPrefix(s, "_"); marked {
		if s, ok = cutDigits(offset, 8, digits); !ok {
			return false, false
		}
	}
	if s != "" {
		return false, false
	}
	return true, increment
}

// cutDigits cuts n bytes off that are all in set.
func cutDigits(s string, n int, set string) (rest string, ok bool) {
	if len(s) < n || strings.Trim(s[:n], set) != "" {
		return s, false
	}
	return s[n:], true
}

// Version is server_version_num: 150018 is 15.18.
type Version int

// Major is the major version, 15 for 150018.
func (v Version) Major() int { return int(v) / 10000 }

// MinMajor and MaxMajor bound the supported servers.
const (
	MinMajor = 13
	MaxMajor = 18
)
