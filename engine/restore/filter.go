package restore

import (
	"fmt"
	"path/filepath"
)

// Filter reports whether a file is wanted. path is relative to the data
// directory, slash-separated, without leading slash (base/16384/1259; a file
// of a tablespace is pg_tblspc/16397/...). A nil Filter wants every file.
// Directories are never asked about: PostgreSQL does not make those it needs.
type Filter func(path string) bool

// MaskFilter keeps the files whose whole path matches a pattern of
// path/filepath.Match, in which * stays within one element:
// base/*/PG_VERSION. Every file is subject to it, global/pg_control and
// backup_label as well, so a masked restore is for looking at files and not
// for starting a server. No pattern is no filter.
func MaskFilter(pattern string) (Filter, error) {
	if pattern == "" {
		return nil, nil
	}
	if _, err := filepath.Match(pattern, ""); err != nil {
		return nil, fmt.Errorf("parse mask %q: %w (a mask is a file name pattern such as base/*/PG_VERSION)", pattern, err)
	}
	return func(path string) bool {
		ok, err := filepath.Match(pattern, path)
		return ok && err == nil
	}, nil
}

func (f Filter) wants(path string) bool { return f == nil || f(path) }
