package sftp

import (
	"crypto/rand"
	"encoding/hex"
	"time"
)

// An unfinished upload of x is x.tmp.20261122T161847Z-e1871ab0d324b6a6, as in
// storage/fs: the directory may be used as one, on the server itself.
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
	const form = tempMark + "00000000T000000Z-xxxxxxxxxxxxxxxx"
	at := len(name) - tempLen
	if at < 0 {
		return false
	}
	for i := range tempLen {
		c := name[at+i]
		digit := c >= '0' && c <= '9'
		switch form[i] {
		case '0':
			if !digit {
				return false
			}
		case 'x':
			if !digit && (c < 'a' || c > 'f') {
				return false
			}
		default:
			if c != form[i] {
				return false
			}
		}
	}
	return true
}
