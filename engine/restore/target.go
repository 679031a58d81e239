package restore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/walherd/walherd/engine/durable"
)

// target is the destination and its tablespaces. Every write goes through an
// os.Root, so that no name and no link leads out of it.
type target struct {
	plan *Plan
	root *os.Root
	// fsync is whether anything is made durable.
	fsync bool
	// spaces are the tablespaces' directories by OID.
	spaces map[string]*os.Root
	// resumable tells whether an interrupted restore can be gone on with.
	resumable bool
	// session is the machine's present run, see Config.Session.
	session string
	// journal keeps what is done, and past is what an earlier restore had
	// done; nil if this is the first.
	journal *journal
	past    *past
	// inner are the tablespaces' directories that lie below the
	// destination, relative to it.
	inner []string
}

// maxShown is how many names a message about a non-empty directory shows.
const maxShown = 5

// checkEmpty accepts a directory that is absent or empty.
func checkEmpty(dir string) error {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(maxShown + 1)
	if err != nil && err != io.EOF {
		return fmt.Errorf("list %s: %w", dir, err)
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	more := ""
	if len(names) > maxShown {
		names, more = names[:maxShown], ", ..."
	}
	hint := ""
	if _, err := os.Lstat(filepath.Join(dir, MarkerName)); err == nil {
		hint = "; it is what an earlier restore left unfinished, and can be removed"
	}
	return fmt.Errorf("%s: %w: it holds %s%s%s", dir, ErrNotEmpty, strings.Join(names, ", "), more, hint)
}

// openTarget makes the destination and the marker, then the tablespaces and
// their links. All directories are looked at before any is made. A destination
// that an interrupted restore of the same plan left is gone on with, if the
// plan is one that can be.
func openTarget(p *Plan, fsync, resumable bool, session string) (*target, error) {
	t := &target{plan: p, fsync: fsync, resumable: resumable, session: session, spaces: make(map[string]*os.Root, len(p.Tablespaces))}
	if resumable {
		if err := t.resume(); err != nil {
			return nil, fmt.Errorf("go on with the restore in %s: %w", p.Destination, err)
		}
	}
	if t.past == nil {
		if err := checkEmpty(p.Destination); err != nil {
			return nil, fmt.Errorf("check destination: %w", err)
		}
	}
	for _, s := range p.Tablespaces {
		if t.linked(s) {
			continue
		}
		if err := checkEmpty(s.Directory); err != nil {
			err = fmt.Errorf("check directory of tablespace %s: %w; empty it, or give another place with --restore-spec", s.OID, err)
			return nil, errors.Join(err, t.close())
		}
	}
	if t.past == nil {
		var err error
		if t.root, err = makeRoot(p.Destination); err != nil {
			return nil, fmt.Errorf("make destination: %w", err)
		}
		if err := t.writeMarker(); err != nil {
			err = fmt.Errorf("write marker of the unfinished restore: %w", err)
			return nil, errors.Join(err, t.explain(err), t.close())
		}
	}
	if err := t.prepare(); err != nil {
		return nil, errors.Join(err, t.explain(err), t.close())
	}
	return t, nil
}

// linked reports whether an interrupted restore has made a tablespace's
// directory and, after it, its link.
func (t *target) linked(s Placement) bool {
	if t.past == nil {
		return false
	}
	to, err := t.root.Readlink("pg_tblspc/" + s.OID)
	return err == nil && to == s.Directory
}

func (t *target) prepare() error {
	for _, s := range t.plan.Tablespaces {
		space, err := makeRoot(s.Directory)
		if err != nil {
			return fmt.Errorf("make directory of tablespace %s: %w", s.OID, err)
		}
		t.spaces[s.OID] = space
		if rel, err := filepath.Rel(t.plan.Destination, s.Directory); err == nil && filepath.IsLocal(rel) {
			t.inner = append(t.inner, filepath.ToSlash(rel))
		}
		if t.linked(s) {
			continue
		}
		if err := t.root.MkdirAll("pg_tblspc", 0o700); err != nil {
			return fmt.Errorf("make pg_tblspc: %w", err)
		}
		if err := t.root.Symlink(s.Directory, "pg_tblspc/"+s.OID); err != nil {
			return fmt.Errorf("link tablespace %s: %w", s.OID, err)
		}
	}
	return nil
}

// makeRoot makes dir and its parents and opens it. The mode is set on an
// existing directory as well: PostgreSQL refuses one that others may read.
func makeRoot(dir string) (*os.Root, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	if err := root.Chmod(".", 0o700); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

func (t *target) close() error {
	var errs []error
	for _, r := range t.spaces {
		errs = append(errs, r.Close())
	}
	if t.journal != nil {
		errs = append(errs, t.journal.close())
	}
	if t.root != nil {
		errs = append(errs, t.root.Close())
	}
	return errors.Join(errs...)
}

// locate finds the directory that p lies in, p being a path below the data
// directory, and the path from there.
func (t *target) locate(p string) (*os.Root, string, error) {
	for _, dir := range t.inner {
		if p == dir || strings.HasPrefix(p, dir+"/") {
			return nil, "", final(archiveError("entry %q lies where the plan puts a tablespace; place the tablespace elsewhere with --restore-spec", p))
		}
	}
	rest, ok := strings.CutPrefix(p, "pg_tblspc/")
	if !ok {
		return t.root, p, nil
	}
	oid, inside, below := strings.Cut(rest, "/")
	space, ok := t.spaces[oid]
	switch {
	case !ok:
		// An in-place tablespace is a plain directory.
		return t.root, p, nil
	case !below:
		return space, ".", nil
	}
	return space, inside, nil
}

// directory makes a directory and its parents. Whatever the archive says, the
// owner may use it: the files below it come later.
func (t *target) directory(p string, mode fs.FileMode) error {
	root, rel, err := t.locate(p)
	if err != nil {
		return err
	}
	mode = mode.Perm() | 0o700
	if p == "." || rel == "." {
		// PostgreSQL starts with 0700 or 0750 only.
		mode &= 0o750
	}
	if err := root.MkdirAll(rel, 0o700); err != nil {
		return final(err)
	}
	return final(root.Chmod(rel, mode))
}

// create opens a new file for writing, with exactly the mode given. An
// existing file is an error that matches fs.ErrExist, unless it is to be
// replaced.
func (t *target) create(p string, mode fs.FileMode, replace bool) (*os.File, error) {
	root, rel, err := t.locate(p)
	if err != nil {
		return nil, err
	}
	if replace {
		// Removed and made anew: opening it to truncate would fail for one
		// that its own mode forbids to write.
		if err := root.Remove(rel); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, final(err)
		}
	}
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	f, err := root.OpenFile(rel, flags, mode.Perm())
	if errors.Is(err, fs.ErrNotExist) {
		if err := root.MkdirAll(path.Dir(rel), 0o700); err != nil {
			return nil, final(err)
		}
		f, err = root.OpenFile(rel, flags, mode.Perm())
	}
	if err != nil {
		return nil, final(err)
	}
	if err := f.Chmod(mode.Perm()); err != nil {
		return nil, final(errors.Join(err, f.Close()))
	}
	return f, nil
}

// sync puts everything restored on disk, with one call for each file system
// instead of one for each of a million files.
func (t *target) sync() error {
	if !t.fsync {
		return nil
	}
	if err := durable.SyncTree(t.plan.Destination); err != nil {
		return err
	}
	for _, s := range t.plan.Tablespaces {
		if err := durable.SyncTree(s.Directory); err != nil {
			return err
		}
	}
	return nil
}

// syncDir makes the names in a directory of the destination durable.
func (t *target) syncDir(name string) error {
	if !t.fsync {
		return nil
	}
	return durable.SyncDir(filepath.Join(t.plan.Destination, name))
}
