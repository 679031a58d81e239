//go:build !linux

package durable

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

func renameNoReplace(from, to string) error { return linkNoReplace(from, to) }

// SyncTree makes everything below dir durable, contents and names, one file
// after the other. Symbolic links are not followed.
func SyncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return fmt.Errorf("sync %s: %w", path, err)
		case d.IsDir():
			return SyncDir(path)
		case d.Type().IsRegular():
			return syncFile(path)
		}
		return nil
	})
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync file %s: %w", path, err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync file %s: %w", path, err)
	}
	return nil
}
