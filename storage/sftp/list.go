package sftp

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/walherd/walherd/storage"
)

// List implements storage.Bucket. It holds one directory and those above it,
// so memory grows with the largest directory, not with the storage. A
// directory with no object below it is not shown.
func (b *Bucket) List(ctx context.Context, prefix string, opt storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		b.walk(ctx, prefix, opt, false, yield)
	}
}

// Unfinished describes an upload that has not ended, or never will.
type Unfinished struct {
	// Name is the temporary object name. Delete takes it.
	Name string
	// Size in bytes so far.
	Size int64
	// Modified is the time of the last write; an old one is a leftover of
	// a crash or a broken connection.
	Modified time.Time
}

// Unfinished yields the uploads below prefix that are not finished, in the
// order of their names. Those with a time far in the past are left over and
// can be deleted; a young one may still be written to.
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
	w := &walker{b: b, ctx: ctx, opt: opt, temps: temps, yield: yield}
	w.dir(dir, part)
}

// walker is one listing.
type walker struct {
	b     *Bucket
	ctx   context.Context
	opt   storage.ListOptions
	temps bool // yield unfinished uploads, and only those
	yield func(storage.Info, error) bool
}

// entry is a name in a directory; that of a directory ends in a slash, which
// counts in the order: "a.b" comes before "a/x", since '.' sorts before '/'.
type entry struct {
	name string
	info os.FileInfo
}

// dir yields what is below at, a directory's name with its slash ("" is the
// root), with names that go on with part. It reports whether to go on.
func (w *walker) dir(at, part string) bool {
	entries, err := do(w.ctx, w.b, func(l *link) ([]entry, error) { return w.read(l, at, part) }, nil)
	if err != nil {
		return gone(err) || w.fail(at, err)
	}
	for _, e := range entries {
		if err := w.ctx.Err(); err != nil {
			return w.fail(at, err)
		}
		full := at + e.name
		more := true
		switch {
		case e.info != nil:
			more = w.yield(storage.Info{Name: full, Size: e.info.Size(), Modified: e.info.ModTime()}, nil)
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

// gone tells a directory that was removed while the listing ran, or was never
// there: it is just not in the listing.
func gone(err error) bool { return errors.Is(err, storage.ErrNotExist) }

// fail ends the listing with err, found at the named place.
func (w *walker) fail(at string, err error) bool {
	w.yield(storage.Info{}, w.b.explain(w.ctx, "list", at, err))
	return false
}

// read gives the entries of a directory to look at, in the order of full
// object names. info is nil for a directory.
func (w *walker) read(l *link, at, part string) ([]entry, error) {
	infos, err := l.files.ReadDirContext(w.ctx, w.b.place.at(at))
	if err != nil {
		return nil, w.b.absent(l, at+"x", err)
	}
	var entries []entry
	for _, info := range infos {
		name := info.Name()
		if !strings.HasPrefix(name, part) || storage.CheckName(name) != nil {
			continue
		}
		isDir, regular, info, err := w.follow(l, at+name, info)
		if err != nil {
			return nil, err
		}
		if isDir {
			name, info = name+"/", nil
		}
		if (isDir || regular) && w.wanted(at, name, isDir) {
			entries = append(entries, entry{name, info})
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return entries, nil
}

// follow tells what a name is, for a symbolic link what it leads to.
func (w *walker) follow(l *link, name string, info os.FileInfo) (isDir, regular bool, _ os.FileInfo, _ error) {
	if info.Mode()&os.ModeSymlink != 0 {
		st, err := l.files.Stat(w.b.place.at(name))
		if errors.Is(err, os.ErrNotExist) || hasCode(err, codeFailure) {
			return false, false, info, nil // it leads nowhere, or in a circle
		}
		if err != nil {
			return false, false, info, err
		}
		info = st
	}
	return info.IsDir(), info.Mode().IsRegular(), info, nil
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

func (w *walker) shallow(full string) bool {
	some, err := do(w.ctx, w.b, func(l *link) (bool, error) { return w.hasObject(l, full) }, nil)
	switch {
	case err != nil:
		return gone(err) || w.fail(full, err)
	case !some:
		return true
	}
	return w.yield(storage.Info{Name: full, Dir: true}, nil)
}

// hasObject looks for any object below a directory: empty ones are normal
// (WAL-G creates a folder by reading it) and no store of objects has them.
func (w *walker) hasObject(l *link, at string) (bool, error) {
	// A folder of WAL can hold a million names, told a hundred at a time, and
	// nearly always one of the first is an object.
	infos, err := l.files.ReadDirContext(&glance{Context: w.ctx}, w.b.place.at(at))
	cut := errors.Is(err, errGlance)
	if err != nil && !cut {
		return false, w.b.absent(l, at+"x", err)
	}
	if some, err := w.anyObject(l, at, infos); some || err != nil || !cut {
		return some, err
	}
	if infos, err = l.files.ReadDirContext(w.ctx, w.b.place.at(at)); err != nil {
		return false, w.b.absent(l, at+"x", err)
	}
	return w.anyObject(l, at, infos)
}

func (w *walker) anyObject(l *link, at string, infos []os.FileInfo) (bool, error) {
	var dirs []string
	for _, info := range infos {
		name := info.Name()
		if isTemp(name) || storage.CheckName(name) != nil {
			continue
		}
		isDir, regular, _, err := w.follow(l, at+name, info)
		switch {
		case err != nil:
			return false, err
		case regular:
			return true, nil
		case isDir:
			dirs = append(dirs, at+name+"/")
		}
	}
	for _, dir := range dirs {
		if some, err := w.hasObject(l, dir); err != nil && !gone(err) || some {
			return some, err
		}
	}
	return false, nil
}

// glance is a context that ends after two requests: the opening of a directory
// and the first reading from it. The library asks for Done once for each. Were
// it to ask more often, hasObject would read the directory whole.
type glance struct {
	context.Context
	asked int
}

var errGlance = errors.New("seen enough")

func (g *glance) over() bool { return g.asked > 2 }

func (g *glance) Done() <-chan struct{} {
	if g.asked++; g.over() {
		ended := make(chan struct{})
		close(ended)
		return ended
	}
	return g.Context.Done()
}

func (g *glance) Err() error {
	if err := g.Context.Err(); err != nil || !g.over() {
		return err
	}
	return errGlance
}
