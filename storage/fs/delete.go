package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"github.com/walherd/walherd/storage"
)

// Delete implements storage.Bucket. Directories that become empty go too, up
// to the root.
//
// A run of names in one directory is made durable before a name in another
// one is touched. So a backup whose sentinel is named first cannot come back
// after a power cut with its parts gone.
func (b *Bucket) Delete(ctx context.Context, names ...string) error {
	if err := storage.CheckNames(names); err != nil {
		return err
	}
	root, err := b.open()
	if err != nil {
		return err
	}
	defer root.Close()
	for len(names) > 0 {
		dir := path.Dir(names[0])
		n := 1
		for n < len(names) && path.Dir(names[n]) == dir {
			n++
		}
		if err := b.deleteIn(ctx, root, dir, names[:n]); err != nil {
			return err
		}
		names = names[n:]
	}
	return nil
}

// deleteIn removes names, all of them in dir.
func (b *Bucket) deleteIn(ctx context.Context, root *os.Root, dir string, names []string) error {
	parent, err := openDir(root, dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || isNotDir(err) {
			return nil
		}
		return b.explain("delete object", names[0], err)
	}
	defer parent.Close()
	removed := false
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("delete object %s: %w", name, err)
		}
		base := path.Base(name)
		// A directory of that name is no object. os.Root.Remove would
		// remove it when empty, hence the look.
		st, err := parent.Lstat(base)
		if err == nil && !st.IsDir() {
			err = parent.Remove(base)
			removed = true
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return b.explain("delete object", name, err)
		}
	}
	if removed {
		if err := syncRemoval(parent); err != nil {
			return b.explain("delete object", names[0], err)
		}
	}
	b.removeEmpty(root, dir)
	return nil
}

func syncRemoval(parent *os.Root) error {
	d, err := parent.Open(".")
	if errors.Is(err, os.ErrNotExist) {
		return nil // a concurrent Delete removed the directory itself
	}
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// removeEmpty removes dir and its parents as far as they are empty. The
// system refuses to remove one that is not, which makes it safe beside a Put;
// so an error only means that there is nothing more to remove.
func (b *Bucket) removeEmpty(root *os.Root, dir string) {
	for ; dir != "."; dir = path.Dir(dir) {
		// Remove would take a symbolic link away whatever it points to.
		if st, err := root.Lstat(dir); err != nil || !st.IsDir() {
			return
		}
		b.settled.forget(dir)
		if root.Remove(dir) != nil {
			return
		}
		b.settled.forget(dir)
	}
}
