package fs

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"strings"

	"github.com/walherd/walherd/storage"
)

// List implements storage.Bucket. It holds the names of one directory and of
// those above it, so memory grows with the largest directory, not with the
// storage. A directory with no object below it is not shown.
func (b *Bucket) List(ctx context.Context, prefix string, opt storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		b.walk(ctx, prefix, opt, false, yield)
	}
}

// Unfinished yields the uploads below prefix that are not finished, in the
// order of their names. Those with a time far in the past are left over from
// a crash and can be deleted; a young one may still be written to.
func (b *Bucket) Unfinished(ctx context.Context, prefix string) iter.Seq2[Unfinished, error] {
	return func(yield func(Unfinished, error) bool) {
		b.walk(ctx, prefix, storage.ListOptions{}, true, func(info storage.Info, err error) bool {
			return yield(Unfinished{Name: info.Name, Size: info.Size, Modified: info.Modified}, err)
		})
	}
}

// Leftovers implements storage.Sweeper.
func (b *Bucket) Leftovers(ctx context.Context, prefix string) iter.Seq2[storage.Leftover, error] {
	return func(yield func(storage.Leftover, error) bool) {
		for u, err := range b.Unfinished(ctx, prefix) {
			if !yield(storage.Leftover{Name: u.Name, Moved: u.Modified}, err) {
				return
			}
		}
	}
}

// DropLeftovers implements storage.Sweeper.
func (b *Bucket) DropLeftovers(ctx context.Context, uploads ...storage.Leftover) error {
	names := make([]string, len(uploads))
	for i, u := range uploads {
		if !isTemp(u.Name) {
			return fmt.Errorf("%w %q: it is not that of an unfinished upload", storage.ErrName, u.Name)
		}
		names[i] = u.Name
	}
	return b.Delete(ctx, names...)
}

func (b *Bucket) walk(ctx context.Context, prefix string, opt storage.ListOptions, temps bool, yield func(storage.Info, error) bool) {
	dir, part := "", prefix
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		dir, part = prefix[:i+1], prefix[i+1:]
	}
	if dir != "" && storage.CheckName(dir[:len(dir)-1]) != nil {
		return // no object can have such a name
	}
	root, err := b.open()
	if err != nil {
		yield(storage.Info{}, err)
		return
	}
	defer root.Close()
	w := &walker{b: b, ctx: ctx, root: root, opt: opt, temps: temps, yield: yield}
	w.dir(dir, part)
}

// walker is one listing.
type walker struct {
	b     *Bucket
	ctx   context.Context
	root  *os.Root
	opt   storage.ListOptions
	temps bool // yield unfinished uploads, and only those
	yield func(storage.Info, error) bool
	buf   []byte // names reads with it
}

// dir yields what is below at, a directory's name with its slash ("" is the
// root), with names that go on with part. It reports whether to go on.
func (w *walker) dir(at, part string) bool {
	d, err := openDir(w.root, dirPath(at))
	if err != nil {
		return w.gone(err) || w.fail(at, err)
	}
	defer d.Close()
	f, err := d.Open(".")
	if err != nil {
		return w.gone(err) || w.fail(at, err)
	}
	defer f.Close()
	names, err := w.names(f, at, part)
	if err != nil {
		return w.gone(err) || w.fail(at, err)
	}
	for _, name := range names {
		if err := w.ctx.Err(); err != nil {
			return w.fail(at, err)
		}
		full := at + name
		more := true
		switch {
		case !strings.HasSuffix(name, "/"):
			more = w.file(d, f, name, full)
		case w.opt.Shallow:
			more = w.shallow(full)
		default:
			more = w.dir(full, "")
		}
		if !more {
			return false
		}
	}
	return true
}

func (w *walker) file(d *os.Root, f *os.File, name, full string) bool {
	info, regular, err := statEntry(d, f, name)
	if err == nil && !regular {
		var st os.FileInfo
		if st, err = w.root.Stat(full); err == nil { // it may be a link to a file
			info, regular = infoOf(full, st), st.Mode().IsRegular()
		}
	}
	if err != nil {
		return w.gone(err) || w.fail(full, err)
	}
	if !regular {
		return true
	}
	info.Name = full
	return w.yield(info, nil)
}

func (w *walker) shallow(full string) bool {
	some, err := w.hasObject(full)
	switch {
	case err != nil:
		return w.gone(err) || w.fail(full, err)
	case !some:
		return true
	}
	return w.yield(storage.Info{Name: full, Dir: true}, nil)
}

// fail ends the listing with err, found at the named place.
func (w *walker) fail(at string, err error) bool {
	w.yield(storage.Info{}, w.b.explain("list objects in", at, err))
	return false
}

// gone tells an object or directory that was removed while the listing ran,
// or was never there: it is just not in the listing.
func (w *walker) gone(err error) bool { return errors.Is(err, os.ErrNotExist) || isNotDir(err) }

// kind is what a directory says an entry is, without a look at the entry.
type kind int

const (
	kindOther kind = iota // a regular file, most likely
	kindDir
	kindLink
)

// Sizes of the buffers a directory is read with: all of it, or until the first
// hit.
const (
	readWhole = 64 << 10
	readSome  = 4 << 10
)

// errEnough ends the reading of a directory.
var errEnough = errors.New("enough")

// names reads the directory f, called at: the names to look at, directories
// with a slash behind them, in the order of full object names. That slash
// counts in the order: "a.b" comes before "a/x", since '.' sorts before '/'.
func (w *walker) names(f *os.File, at, part string) ([]string, error) {
	var names []string
	if w.buf == nil {
		w.buf = make([]byte, readWhole)
	}
	err := readDir(w.ctx, f, w.buf, func(entry []byte, k kind) error {
		if len(entry) < len(part) || string(entry[:len(part)]) != part {
			return nil // before anything is made of it: most fail here
		}
		name := string(entry)
		isDir, err := w.isDir(at, name, k)
		if err != nil {
			return err
		}
		if isDir {
			name += "/"
		}
		if w.wanted(at, name, isDir) {
			names = append(names, name)
		}
		return nil
	})
	slices.Sort(names)
	return names, err
}

// wanted tells by the name alone whether an entry can be in the listing.
func (w *walker) wanted(at, name string, isDir bool) bool {
	if isDir {
		if at == "" && name == "lost+found/" {
			// mkfs makes it in the root of a file system, for root alone:
			// listing a storage that is a mount point would fail on it.
			return false
		}
		full := at + name
		return full > w.opt.After || !w.opt.Shallow && strings.HasPrefix(w.opt.After, full)
	}
	return isTemp(name) == w.temps && (w.opt.After == "" || at+name > w.opt.After)
}

func (w *walker) isDir(at, name string, k kind) (bool, error) {
	if k != kindLink {
		return k == kindDir, nil
	}
	st, err := w.root.Stat(at + name)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("follow link %s%s: %w", at, name, err)
	}
	return st.IsDir(), nil
}

// hasObject looks for any object below a directory: empty ones are normal
// (WAL-G creates a folder by reading it) and no store of objects has them. It
// stops at the first hit.
func (w *walker) hasObject(at string) (bool, error) {
	d, err := w.root.Open(dirPath(at))
	if err != nil {
		return false, err
	}
	defer d.Close()
	some := false
	err = readDir(w.ctx, d, make([]byte, readSome), func(entry []byte, k kind) error {
		name := string(entry)
		isDir, err := w.isDir(at, name, k)
		switch {
		case err != nil:
			return err
		case isDir:
			some, err = w.hasObject(at + name + "/")
			if err != nil && !w.gone(err) {
				return err
			}
		case !isTemp(name):
			st, err := w.root.Stat(at + name)
			some = err == nil && st.Mode().IsRegular()
		}
		if some {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return some, err
}

// dirPath is the file path of a directory's name.
func dirPath(at string) string {
	if at == "" {
		return "."
	}
	return strings.TrimSuffix(at, "/")
}
