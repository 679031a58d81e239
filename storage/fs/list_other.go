//go:build !linux

package fs

import (
	"context"
	"io"
	"os"

	"github.com/walherd/walherd/storage"
)

// readDir calls visit for each entry of the directory f until it fails.
func readDir(ctx context.Context, f *os.File, _ []byte, visit func(name []byte, k kind) error) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		entries, err := f.ReadDir(1024)
		for _, e := range entries {
			k := kindOther
			switch {
			case e.IsDir():
				k = kindDir
			case e.Type()&os.ModeSymlink != 0:
				k = kindLink
			}
			if err := visit([]byte(e.Name()), k); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// statEntry describes the file name of the directory d; regular is false for
// what is no regular file, a link included.
func statEntry(d *os.Root, _ *os.File, name string) (info storage.Info, regular bool, err error) {
	st, err := d.Lstat(name)
	if err != nil {
		return storage.Info{}, false, err
	}
	return infoOf(name, st), st.Mode().IsRegular(), nil
}
