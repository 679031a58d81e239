package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ErrNotCluster marks a directory that is no PostgreSQL data directory.
var ErrNotCluster = errors.New("not a PostgreSQL data directory")

// Check reports whether dir is a data directory: it has PG_VERSION and
// global/pg_control. The error names what is missing; it is ErrNotCluster
// unless the directory could not be looked at.
func Check(dir string) error {
	_, err := MajorVersion(dir)
	if err != nil {
		return err
	}
	info, err := os.Stat(filepath.Join(dir, "global", "pg_control"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("check data directory %s: global/pg_control is missing: %w (it is written last by a restore: was one cut short?)", dir, ErrNotCluster)
	case err != nil:
		return fmt.Errorf("check data directory: %w", hint(err))
	case !info.Mode().IsRegular():
		return fmt.Errorf("check data directory %s: global/pg_control is not a file: %w", dir, ErrNotCluster)
	}
	return nil
}

// MajorVersion reads PG_VERSION: 15 for a cluster of PostgreSQL 15.
func MajorVersion(dir string) (int, error) {
	text, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	switch {
	case gone(err):
		return 0, fmt.Errorf("check data directory %s: PG_VERSION is missing: %w (name the directory that SHOW data_directory prints)", dir, ErrNotCluster)
	case err != nil:
		return 0, fmt.Errorf("check data directory: %w", hint(err))
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || major < 1 {
		return 0, fmt.Errorf("check data directory %s: PG_VERSION holds %.20q, not a major version: %w", dir, text, ErrNotCluster)
	}
	return major, nil
}
