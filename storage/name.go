package storage

import (
	"fmt"
	"strings"
)

// CheckName reports ErrName for what is no object name (see Bucket). Every
// Bucket calls it first.
func CheckName(name string) error {
	if name == "" {
		return fmt.Errorf("%w: it is empty", ErrName)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("%w %q: it holds a zero byte", ErrName, name)
	}
	for element := range strings.SplitSeq(name, "/") {
		switch element {
		case "":
			return fmt.Errorf("%w %q: want no slash at the start, at the end or twice in a row", ErrName, name)
		case ".", "..":
			return fmt.Errorf("%w %q: want no %q element", ErrName, name, element)
		}
	}
	return nil
}

// CheckNames is CheckName for each of names.
func CheckNames(names []string) error {
	for _, name := range names {
		if err := CheckName(name); err != nil {
			return err
		}
	}
	return nil
}

// Check reports ErrRange for a range with a negative number.
func (r Range) Check() error {
	if r.Offset < 0 || r.Length < 0 {
		return fmt.Errorf("%w: offset %d, length %d: want no negative number", ErrRange, r.Offset, r.Length)
	}
	return nil
}

// Cut applies the range to an object of size bytes: how many bytes there are
// to read from Offset on. An offset behind the end is ErrRange.
func (r Range) Cut(size int64) (int64, error) {
	if err := r.Check(); err != nil {
		return 0, err
	}
	if r.Offset > size {
		return 0, fmt.Errorf("%w: it starts at %d, the object has %d bytes", ErrRange, r.Offset, size)
	}
	left := size - r.Offset
	if r.Length > 0 && r.Length < left {
		left = r.Length
	}
	return left, nil
}
