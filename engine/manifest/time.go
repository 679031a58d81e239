package manifest

import "time"

// DateFmt is the constant that every document carries as its date format. It
// describes nothing the reader needs: times are RFC 3339.
const DateFmt = "%Y-%m-%dT%H:%M:%S.%fZ"

// RoundUp is t in UTC, rounded up to the microsecond: the form of start and
// finish times. Up, because PostgreSQL compares a recovery target in
// microseconds with the finish time, and a time before the true one would
// promise a state that the backup does not reach. The zero time stays zero.
func RoundUp(t time.Time) time.Time {
	t = t.UTC().Round(0)
	if down := t.Truncate(time.Microsecond); !down.Equal(t) {
		return down.Add(time.Microsecond)
	}
	return t
}

// lastInstant is the latest time RFC 3339 can hold.
var lastInstant = time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.UTC)

// storable is t as a modification time of files_metadata.json: in the local
// zone, and within what RFC 3339 can express. touch can set a file to the
// year 12000; that must not fail a whole backup. The clamped time differs
// from the file's, so the next increment stores the file again: safe.
func storable(t time.Time) time.Time {
	switch u := t.UTC(); {
	case u.Year() > 9999:
		return lastInstant
	case u.Year() < 1:
		return time.Time{}
	}
	local := t.Local()
	// A zone's local mean time before about 1900 has an offset with
	// seconds, which RFC 3339 would cut; the last hours of 9999 may fall
	// into the next year.
	if _, offset := local.Zone(); offset%60 != 0 || local.Year() > 9999 || local.Year() < 1 {
		return t.UTC()
	}
	return local
}
