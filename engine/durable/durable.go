// Package durable holds the one way this program writes a file that must be
// whole after a crash: a temporary file beside the target, a check of its
// length, fsync, close, rename, fsync of the directory. It also makes a whole
// directory durable at once.
//
// How it fails: with an error that names the path, and the temporary file
// removed. A crash leaves at most a temporary file, which IsTemp recognizes.
// An fsync that failed is never tried again: the kernel forgets the pages it
// could not write, and a second fsync would say that all is well.
package durable

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// Options tunes one WriteFile. The zero value replaces the target and syncs.
type Options struct {
	// NoReplace refuses with fs.ErrExist when the target exists; of two
	// concurrent such writes exactly one succeeds.
	NoReplace bool

	// NoSync leaves out both fsyncs: the file still appears whole or not at
	// all, but not after a power cut. It is for a file its reader makes
	// durable itself, as PostgreSQL does with what restore_command brings.
	NoSync bool
}

// WriteFile calls write once and makes what it wrote the content of the file
// at path, with permissions perm before the umask. A reader of path sees the
// old file or the new one, never a part.
//
// An error of write is wrapped and leaves path as it was. So does every other
// error but one: when the fsync of the directory fails, the new file is in
// place and may be lost in a power cut.
func WriteFile(path string, perm fs.FileMode, write func(io.Writer) error, o Options) error {
	return system{
		syncFile: (*os.File).Sync,
		syncDir:  SyncDir,
	}.writeFile(path, perm, write, o)
}

// system is what a test replaces to see the order of things and to make an
// fsync fail.
type system struct {
	syncFile func(*os.File) error
	syncDir  func(string) error
}

func (s system) writeFile(path string, perm fs.FileMode, write func(io.Writer) error, o Options) (err error) {
	f, err := createTemp(path, perm)
	if err != nil {
		return fmt.Errorf("write file %s: %w", path, err)
	}
	placed := false
	defer func() { // also when write panics
		if !placed {
			f.Close() // a second Close is harmless
			os.Remove(f.Name())
		}
	}()

	if err := s.fill(f, write, o.NoSync); err != nil {
		return fmt.Errorf("write file %s: %w", path, err)
	}
	if o.NoReplace {
		err = renameNoReplace(f.Name(), path)
	} else {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("put file %s in place: %w", path, err)
	}
	placed = true
	if o.NoSync {
		return nil
	}
	return s.syncDir(filepath.Dir(path))
}

// fill writes, checks, syncs and closes the temporary file.
func (s system) fill(f *os.File, write func(io.Writer) error, noSync bool) error {
	w := &counter{f: f}
	if err := write(w); err != nil {
		return err
	}
	if w.err != nil {
		return fmt.Errorf("an error of the file was not reported on: %w", w.err)
	}
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("check the length: %w", err)
	}
	// Network filesystems were seen to lose the end of a file without an
	// error when their quota ran out.
	if info.Size() != w.n {
		return fmt.Errorf("the file has %d bytes after writing %d", info.Size(), w.n)
	}
	if !noSync {
		if err := s.syncFile(f); err != nil {
			return err
		}
	}
	return f.Close()
}

// counter counts what reaches the file and keeps its first error, so that a
// callback that drops one does not make a file look whole.
type counter struct {
	f   *os.File
	n   int64
	err error
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.f.Write(p)
	return n, c.count(int64(n), err)
}

// ReadFrom lets the kernel copy from file to file where it can. An error may
// be the source's, whom the callback answers to, so it is not kept: what was
// counted is what was written.
func (c *counter) ReadFrom(r io.Reader) (int64, error) {
	n, err := c.f.ReadFrom(r)
	c.n += n
	return n, err
}

func (c *counter) count(n int64, err error) error {
	c.n += n
	if c.err == nil {
		c.err = err
	}
	return err
}

// The temporary name is the target's with a suffix of WAL-G's shape, so that
// both programs hide it from listings: NAME.tmp.20260102T030405Z-0123456789abcdef.
const (
	tempStamp  = "20060102T150405Z"
	tempSuffix = len(".tmp.") + len(tempStamp) + len("-") + 16
	maxName    = 255 // bytes in a file name, on every filesystem of note
)

var tempPattern = regexp.MustCompile(`\.tmp\.[0-9]{8}T[0-9]{6}Z-[0-9a-f]{16}$`)

// IsTemp reports whether name, a base name or a path, is that of a temporary
// file of WriteFile. One that is old was left behind by a crash.
func IsTemp(name string) bool { return tempPattern.MatchString(name) }

func createTemp(path string, perm fs.FileMode) (*os.File, error) {
	dir, base := filepath.Split(path)
	if base == "" || base == "." || base == ".." {
		return nil, fmt.Errorf("not the path of a file: %w", fs.ErrInvalid)
	}
	base = base[:min(len(base), maxName-tempSuffix)]
	for {
		var random [8]byte
		rand.Read(random[:]) // never fails
		name := fmt.Sprintf("%s%s.tmp.%s-%x", dir, base, time.Now().UTC().Format(tempStamp), random)
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
		if !errors.Is(err, fs.ErrExist) {
			return f, err
		}
	}
}

// linkNoReplace is the portable atomic rename that does not replace: a link
// to a name that exists fails.
func linkNoReplace(from, to string) error {
	if err := os.Link(from, to); err != nil {
		return err
	}
	// The file is in place. A second name that will not go away is a left
	// over, not a failure.
	os.Remove(from)
	return nil
}
