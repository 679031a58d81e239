package pg

import (
	"fmt"
	"regexp"
)

// BackupName names a backup in storage: base_SEG for a full backup,
// base_SEG_D_SEGPARENT for an increment; WAL-E's base_SEG_OFFSET is read too.
// The parent part names only the parent's own segment; the exact parent is in
// the sentinel.
type BackupName string

var backupNamePattern = regexp.MustCompile(`^base_([0-9A-F]{24})(?:_D_([0-9A-FZ]{24}))?(?:_[0-9A-F]{8})?$`)

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
	if !backupNamePattern.MatchString(s) {
		return "", fmt.Errorf("%q is not a backup name (base_ and 24 hexadecimal digits; see backup-list)", s)
	}
	return BackupName(s), nil
}

// Segment is the segment the backup starts in; false if the name holds none.
func (n BackupName) Segment() (SegmentName, bool) { return FirstSegmentName(string(n)) }

// IsIncrement reports whether the name is that of an increment.
func (n BackupName) IsIncrement() bool {
	m := backupNamePattern.FindStringSubmatch(string(n))
	return m != nil && m[2] != ""
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
