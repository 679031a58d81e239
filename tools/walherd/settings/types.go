package settings

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ByteSize is a number of bytes. It is written as a plain number or with a
// suffix b, k, kb, m, mb, g or gb in either case; a kilobyte is 1024 bytes.
type ByteSize int64

// UnmarshalText reads a size.
func (b *ByteSize) UnmarshalText(text []byte) error {
	s := strings.ToLower(strings.TrimSpace(string(text)))
	num := strings.TrimRight(s, "bkmg")
	shift := 0
	switch s[len(num):] {
	case "", "b":
	case "k", "kb":
		shift = 10
	case "m", "mb":
		shift = 20
	case "g", "gb":
		shift = 30
	default:
		return errSize
	}
	n, err := strconv.ParseInt(strings.TrimSpace(num), 10, 64)
	if err != nil {
		return errSize
	}
	if n > math.MaxInt64>>shift || n < math.MinInt64>>shift {
		return errors.New("size does not fit 64 bits")
	}
	*b = ByteSize(n << shift)
	return nil
}

var errSize = errors.New("want a number of bytes, or a number with kb, mb or gb behind it")

// StorageMap is the failover storages: settings by storage name. Names keep their case
// and are matched without it.
// It is read from a JSON object of objects.
type StorageMap map[string]map[string]string

// UnmarshalText reads the map.
func (m *StorageMap) UnmarshalText(text []byte) error {
	var raw map[string]map[string]any
	if err := json.Unmarshal(text, &raw); err != nil {
		return errors.New("want a map of storage names to settings, which only a config file can hold")
	}
	*m = make(StorageMap, len(raw))
	seen := map[string]bool{}
	for name, values := range raw {
		lower := strings.ToLower(name)
		if seen[lower] {
			return fmt.Errorf("storage %q is there twice: letter case does not count", name)
		}
		seen[lower] = true
		storage := make(map[string]string, len(values))
		for k, v := range values {
			storage[strings.ToUpper(k)] = fmt.Sprint(v)
		}
		(*m)[name] = storage
	}
	return nil
}

// TagMap is a map of tag names to values, read from a JSON object.
type TagMap map[string]string

// UnmarshalText reads the map.
func (m *TagMap) UnmarshalText(text []byte) error {
	var raw map[string]any
	if err := json.Unmarshal(text, &raw); err != nil {
		return errors.New("want a map of tag names to values, which only a config file can hold")
	}
	*m = make(TagMap, len(raw))
	for k, v := range raw {
		(*m)[k] = fmt.Sprint(v)
	}
	return nil
}
