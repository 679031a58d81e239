package s3test

import (
	"os"
	"path/filepath"
	"syscall"
)

// keepsAttributes tells whether files in dir can have attributes of the
// user's.
func keepsAttributes(dir string) bool {
	probe := filepath.Join(dir, "attributes")
	if err := os.WriteFile(probe, nil, 0o600); err != nil {
		return false
	}
	defer os.Remove(probe)
	return syscall.Setxattr(probe, "user.walherd", []byte("x"), 0) == nil
}
