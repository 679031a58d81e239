package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Options tunes a walk. The zero value is an ordinary backup.
type Options struct {
	// Exclude holds further base names to leave out at any depth, as the
	// built-in ones are (see CatchupExclusions).
	Exclude []string
	// Warn is called, in the walk's goroutine, with each thing that is left
	// out although it is there, or vanished. nil ignores them.
	Warn func(Warning)
}

// Scan walks root and keeps everything.
func Scan(ctx context.Context, root string, opt Options) (*Listing, error) {
	l := &Listing{}
	var err error
	if l.Root, err = resolveRoot(root); err != nil {
		return nil, err
	}
	l.Summary, err = walk(ctx, l.Root, opt, func(e Entry) error {
		l.Entries = append(l.Entries, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Walk calls fn for each entry of a backup of the data directory root: a
// directory before its contents, names of one directory in byte order, and
// the tablespaces before the entry /pg_tblspc. The control file is in the
// summary only.
//
// An error of fn ends the walk and is returned as it is. A symbolic link as
// root is followed.
func Walk(ctx context.Context, root string, opt Options, fn func(Entry) error) (Summary, error) {
	root, err := resolveRoot(root)
	if err != nil {
		return Summary{}, err
	}
	return walk(ctx, root, opt, fn)
}

func resolveRoot(root string) (string, error) {
	abs, err := filepath.Abs(root)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return "", fmt.Errorf("resolve data directory %s: %w", root, err)
	}
	return abs, nil
}

func walk(ctx context.Context, root string, opt Options, fn func(Entry) error) (Summary, error) {
	info, err := os.Lstat(root)
	if err != nil {
		return Summary{}, fmt.Errorf("walk data directory: %w", err)
	}
	if !info.IsDir() {
		return Summary{}, fmt.Errorf("walk data directory %s: not a directory", root)
	}
	w := &walker{ctx: ctx, root: root, opt: opt, fn: fn}
	if w.opt.Warn == nil {
		w.opt.Warn = func(Warning) {}
	}
	if err := w.findTablespaces(info); err != nil {
		return Summary{}, err
	}
	if err := w.visit("/", info, 0); err != nil {
		return Summary{}, err
	}
	return w.sum, nil
}

type walker struct {
	ctx  context.Context
	root string
	opt  Options
	fn   func(Entry) error
	sum  Summary
	// homes are the data directory and the tablespaces' locations: each is
	// walked under its own name and under no other.
	homes []os.FileInfo
	// targets[i] is the directory Tablespaces[i] points to, nil if missing.
	targets []os.FileInfo
}

func (w *walker) path(name string) string {
	if name == "/" {
		return w.root
	}
	return w.root + name
}

// findTablespaces reads the links of pg_tblspc ahead of the walk, since a
// location may lie in a directory that sorts before pg_tblspc.
func (w *walker) findTablespaces(root os.FileInfo) error {
	w.homes = append(w.homes, root)
	dir := w.path(TablespaceDirName)
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
		return nil // the walk itself says so
	}
	names, err := readNames(dir)
	if err != nil {
		return fmt.Errorf("find tablespaces: %w", err)
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		info, err := os.Lstat(path)
		if gone(err) || err == nil && info.Mode()&fs.ModeSymlink == 0 {
			continue // dropped meanwhile, or an in-place tablespace
		}
		if err != nil {
			return fmt.Errorf("find tablespaces: %w", err)
		}
		target, err := os.Readlink(path)
		if gone(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("find tablespaces: %w", err)
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(dir, target)
		}
		ts := Tablespace{OID: name, Location: filepath.Clean(target)}
		home, err := os.Stat(path)
		switch {
		case gone(err):
			home = nil
			w.opt.Warn(Warning{Kind: TablespaceMissing, Path: path, Target: ts.Location})
		case err != nil:
			return fmt.Errorf("find tablespace %s: %w", name, err)
		case !home.IsDir():
			return fmt.Errorf("find tablespace %s: %s is not a directory", name, ts.Location)
		case w.isHome(home):
			home = nil
			w.opt.Warn(Warning{Kind: NestedTablespace, Path: path, Target: ts.Location})
		default:
			w.homes = append(w.homes, home)
		}
		w.sum.Tablespaces = append(w.sum.Tablespaces, ts)
		w.targets = append(w.targets, home)
	}
	return nil
}

// visit handles one thing below the data directory (depth 0) by its kind.
func (w *walker) visit(name string, info os.FileInfo, depth int) error {
	w.sum.CatalogSize += info.Size()
	base := name[strings.LastIndexByte(name, '/')+1:]
	out, needed := false, false
	if depth > 0 {
		out, needed = excluded(base)
		out = out || slices.Contains(w.opt.Exclude, base)
	}
	switch mode := info.Mode(); {
	case mode.IsDir():
		return w.directory(name, info, depth, out)
	case mode&fs.ModeSymlink != 0 && depth == 1 && needed:
		return w.linkedDirectory(name, info)
	case out:
		return nil
	case mode&fs.ModeSymlink != 0:
		return w.symlink(name)
	case !mode.IsRegular():
		w.opt.Warn(Warning{Kind: Special, Path: w.path(name)})
		return nil
	}
	switch name {
	case ControlName:
		e := newEntry(name, info)
		w.sum.Control = &e
		return nil
	case "/backup_label", "/tablespace_map":
		w.opt.Warn(Warning{Kind: StaleLabel, Path: w.path(name)})
		return nil
	}
	return w.emit(newEntry(name, info))
}

func (w *walker) emit(e Entry) error {
	if e.IsDir() {
		w.sum.Dirs++
	} else {
		w.sum.Files++
		w.sum.DataSize += e.Size
	}
	return w.fn(e)
}

func (w *walker) directory(name string, info os.FileInfo, depth int, empty bool) error {
	if depth > 0 && w.isHome(info) {
		w.opt.Warn(Warning{Kind: NestedTablespace, Path: w.path(name)})
		return nil
	}
	if name == TablespaceDirName {
		if err := w.tablespaces(); err != nil {
			return err
		}
	}
	if err := w.emit(newEntry(name, info)); err != nil || empty {
		return err
	}
	return w.contents(name, depth)
}

func (w *walker) isHome(info os.FileInfo) bool {
	return slices.ContainsFunc(w.homes, func(h os.FileInfo) bool { return os.SameFile(h, info) })
}

// tablespaces walks each location; the location itself is no entry, since
// neither a link nor a directory may stand where restore makes the link.
func (w *walker) tablespaces() error {
	for i, ts := range w.sum.Tablespaces {
		if w.targets[i] == nil {
			continue
		}
		w.sum.CatalogSize += w.targets[i].Size()
		if err := w.contents(TablespaceDirName+"/"+ts.OID, 2); err != nil {
			return err
		}
	}
	return nil
}

// contents visits what a directory holds, in byte order.
func (w *walker) contents(name string, depth int) error {
	if err := context.Cause(w.ctx); err != nil {
		return fmt.Errorf("walk %s: %w", w.path(name), err)
	}
	names, err := readNames(w.path(name))
	if gone(err) && depth > 0 {
		w.opt.Warn(Warning{Kind: Vanished, Path: w.path(name)})
		return nil
	}
	if errors.Is(err, fs.ErrPermission) && strings.HasSuffix(name, "/lost+found") {
		// Root's own, wherever a file system is mounted. PostgreSQL never
		// looks inside, so a backup must not fail for it.
		w.opt.Warn(Warning{Kind: Unreadable, Path: w.path(name)})
		return nil
	}
	if err != nil {
		return fmt.Errorf("walk data directory: %w", hint(err))
	}
	prefix := name + "/"
	if name == "/" {
		prefix = "/"
	}
	for _, base := range names {
		child := prefix + base
		info, err := os.Lstat(w.root + child)
		if gone(err) {
			w.opt.Warn(Warning{Kind: Vanished, Path: w.root + child})
			continue
		}
		if err != nil {
			return fmt.Errorf("walk data directory: %w", hint(err))
		}
		if err := w.visit(child, info, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// linkedDirectory stores a directory where the server's directory is a link,
// as pg_wal often is: without it a restored cluster does not start.
func (w *walker) linkedDirectory(name string, link os.FileInfo) error {
	e := newEntry(name, link)
	e.Size, e.Mode = 0, fs.ModeDir|0o700
	if target, err := os.Stat(w.path(name)); err == nil && target.IsDir() {
		e = newEntry(name, target)
	}
	return w.emit(e)
}

func (w *walker) symlink(name string) error {
	top, rest, _ := strings.Cut(name[1:], "/")
	inLinkDir := top == "pg_tblspc" && rest != "" && !strings.Contains(rest, "/")
	if inLinkDir && slices.ContainsFunc(w.sum.Tablespaces, func(t Tablespace) bool { return t.OID == rest }) {
		return nil
	}
	target, err := os.Readlink(w.path(name))
	if gone(err) {
		w.opt.Warn(Warning{Kind: Vanished, Path: w.path(name)})
		return nil
	}
	if err != nil {
		return fmt.Errorf("walk data directory: %w", err)
	}
	kind := Symlink
	// A link that appeared in pg_tblspc after the links were read belongs to
	// a tablespace made during the backup: replay of its WAL makes it again.
	if coreDirectory(top) && !inLinkDir {
		kind = CoreSymlink
	}
	w.opt.Warn(Warning{Kind: kind, Path: w.path(name), Target: target})
	return nil
}

// readNames lists a directory in byte order. Names alone, because every one
// is stat'ed anyhow and a directory may hold a million of them.
func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	slices.Sort(names)
	return names, err
}

// gone reports whether err says that the path is not there any more; a
// parent that became a file in between counts too.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

func hint(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w (run as the data directory's owner, usually postgres)", err)
	}
	return err
}
