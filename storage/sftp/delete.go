package sftp

import (
	"context"
	"errors"
	"os"
	"path"

	"github.com/walherd/walherd/storage"
)

// Delete implements storage.Bucket, with one round trip for each name.
// Directories that become empty go too, up to the root.
//
// A run of names in one directory is made durable before a name in another
// one is touched. So a backup whose sentinel is named first cannot come back
// after a power cut with its parts gone.
func (b *Bucket) Delete(ctx context.Context, names ...string) error {
	if err := storage.CheckNames(names); err != nil {
		return err
	}
	for len(names) > 0 {
		dir := path.Dir(names[0])
		n := 1
		for n < len(names) && path.Dir(names[n]) == dir {
			n++
		}
		run := names[:n]
		failed, err := do(ctx, b, func(l *link) (string, error) { return b.deleteIn(ctx, l, dir, run) }, nil)
		if err != nil {
			if failed == "" {
				failed = run[0]
			}
			return b.explain(ctx, "delete", failed, err)
		}
		names = names[n:]
	}
	return nil
}

// deleteIn removes names, all of them in dir, or tells which one it could not.
func (b *Bucket) deleteIn(ctx context.Context, l *link, dir string, names []string) (failed string, err error) {
	removed := false
	rooted := false
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return name, err
		}
		err := b.deleteOne(l, name)
		switch {
		case err == nil:
			removed = true
		case !errors.Is(err, storage.ErrNotExist):
			return name, err
		case !rooted:
			if err := b.checkRoot(l); err != nil {
				return name, err
			}
			rooted = true
		}
	}
	if removed {
		// Another Delete may have removed the directory itself.
		if err := b.syncDir(l, dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			return names[0], err
		}
	}
	b.removeEmpty(l, dir)
	return "", nil
}

// deleteOne removes a file. An empty directory of that name goes as well:
// it is nothing to a Bucket.
func (b *Bucket) deleteOne(l *link, name string) error {
	err := l.files.Remove(b.place.at(name))
	if err == nil {
		return nil
	}
	st, statErr := l.files.Lstat(b.place.at(name))
	if errors.Is(statErr, os.ErrNotExist) || statErr == nil && st.IsDir() {
		return storage.ErrNotExist
	}
	if statErr != nil && hasCode(statErr, codeFailure) {
		err = statErr
	}
	return b.absent(l, name, b.diagnose(l, name, err))
}
