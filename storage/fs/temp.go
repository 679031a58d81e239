package fs

import (
	"crypto/rand"
	"encoding/hex"
	"time"
)

// An unfinished upload of x is x.tmp.20261122T161847Z-e1871ab0d324b6a6:
// WAL-G's form, which its listings skip as ours do.
const (
	tempMark  = ".tmp."
	tempStamp = "20060102T150405Z"
	tempLen   = len(tempMark) + len(tempStamp) + 1 + 16
	// elementMax is how long a file name may be, so that its temporary name
	// fits the 255 bytes file systems allow.
	elementMax = 255 - tempLen
)

// tempName is a new temporary name beside base.
func tempName(base string, now time.Time) string {
	var random [8]byte
	rand.Read(random[:]) // never fails
	return base + tempMark + now.UTC().Format(tempStamp) + "-" + hex.EncodeToString(random[:])
}

// isTemp reports whether name is that of an unfinished upload. It is asked
// for every file of every listing, hence no regular expression.
func isTemp(name string) bool {
	at := len(name) - tempLen
	if at < 0 || name[at:at+len(tempMark)] != tempMark {
		return false
	}
	stamp := name[at+len(tempMark):]
	for i := range len(stamp) {
		c := stamp[i]
		digit := c >= '0' && c <= '9'
		var ok bool
		switch {
		case i == 8:
			ok = c == 'T'
		case i == 15:
			ok = c == 'Z'
		case i == 16:
			ok = c == '-'
		case i < 16:
			ok = digit
		default:
			ok = digit || c >= 'a' && c <= 'f'
		}
		if !ok {
			return false
		}
	}
	return true
}
