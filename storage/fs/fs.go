// Package fs is a storage.Bucket on a directory: an object is a regular file
// whose path below the root is the object's name. The layout, the names of
// unfinished uploads and the removal of emptied directories are WAL-G's, so
// that both can share one directory.
//
// A Put writes beside its target, syncs, and renames, so that a crash leaves
// the old object, the new one, or a file with a temporary name that no
// listing shows (Unfinished finds it). Unlike WAL-G, reading and listing never
// create a directory.
//
// What a person must mend (access denied, a full or read-only file system, a
// missing root) fails with storage.ErrPermanent and says so; every other error
// of the system is left as it is and may pass with another try.
//
// Names cannot lead out of the root. A symbolic link that stays inside is
// followed; one that leads out is an error, never followed. To put a folder
// on another disk, mount it there.
package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/walherd/walherd/storage"
)

// Bucket keeps objects as files below a directory. Make one with Open. It
// holds no file open between calls, so there is nothing to close, and a root
// that was unmounted or made again is seen at the next call.
type Bucket struct {
	root      string
	now       func() time.Time // names unfinished uploads
	writeback int64            // bytes between two early write-backs; 0 is never
	settled   settled
	buffers   sync.Pool // of *[copySize]byte
}

var _ storage.Bucket = (*Bucket)(nil)

// Open makes a Bucket of the directory root, which must exist: WAL-G does not
// create it either, and a typing error or a disk that is not mounted must not
// become a new, empty storage.
func Open(root string) (*Bucket, error) {
	b, err := At(root)
	if err != nil {
		return nil, err
	}
	r, err := b.open()
	if err != nil {
		return nil, err
	}
	r.Close()
	return b, nil
}

// At is Open without the look at root, which each call takes anyway: for a
// storage that others stand in for, a lost disk must not end the command before
// it has asked them.
func At(root string) (*Bucket, error) {
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open storage directory %s: %w", root, err)
	}
	return &Bucket{root: abs, now: time.Now, writeback: writebackEvery}, nil
}

func (b *Bucket) open() (*os.Root, error) {
	r, err := os.OpenRoot(b.root)
	if err != nil {
		err = notDir(err, b.root, os.Stat)
	}
	switch {
	case err == nil:
		return r, nil
	case errors.Is(err, os.ErrNotExist):
		// Not storage.ErrNotExist: a lost disk is not a missing object.
		return nil, fmt.Errorf("open storage directory %s: it does not exist: create it (or mount its disk), or fix WALG_FILE_PREFIX: %w: %w",
			b.root, storage.ErrPermanent, err)
	case isNotDir(err):
		return nil, fmt.Errorf("open storage directory %s: it is not a directory: fix WALG_FILE_PREFIX: %w: %w",
			b.root, storage.ErrPermanent, err)
	}
	return nil, b.explain("open storage directory", "", err)
}

// openDir opens the directory dir below root. It is syscall.ENOTDIR when it is
// something else.
func openDir(root *os.Root, dir string) (*os.Root, error) {
	d, err := root.OpenRoot(dir)
	if err != nil {
		return nil, notDir(err, dir, root.Stat)
	}
	return d, nil
}

// notDir is err, from opening name as an os.Root, or ENOTDIR when that is why:
// os has no error value for it, and none for a link that leads out either.
func notDir(err error, name string, stat func(string) (os.FileInfo, error)) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return err
	}
	if st, statErr := stat(name); statErr == nil && !st.IsDir() {
		return &os.PathError{Op: "open", Path: name, Err: syscall.ENOTDIR}
	}
	return err
}

// Stat implements storage.Bucket.
func (b *Bucket) Stat(ctx context.Context, name string) (storage.Info, error) {
	if err := storage.CheckName(name); err != nil {
		return storage.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return storage.Info{}, fmt.Errorf("stat object %s: %w", name, err)
	}
	root, err := b.open()
	if err != nil {
		return storage.Info{}, err
	}
	defer root.Close()
	st, err := root.Stat(name)
	if err != nil {
		return storage.Info{}, b.explain("stat object", name, err)
	}
	if !st.Mode().IsRegular() || isTemp(name) {
		return storage.Info{}, fmt.Errorf("stat object %s: %w", name, storage.ErrNotExist)
	}
	return infoOf(name, st), nil
}

// Open implements storage.Bucket.
func (b *Bucket) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	if err := storage.CheckName(name); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open object %s: %w", name, err)
	}
	root, err := b.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(name)
	if err != nil {
		return nil, b.explain("open object", name, err)
	}
	body, err := newBody(ctx, f, name, rng)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open object %s: %w", name, err)
	}
	return body, nil
}

func newBody(ctx context.Context, f *os.File, name string, rng storage.Range) (*body, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || isTemp(name) {
		return nil, storage.ErrNotExist
	}
	left, err := rng.Cut(st.Size())
	if err != nil {
		return nil, err
	}
	if rng.Offset > 0 {
		if _, err := f.Seek(rng.Offset, io.SeekStart); err != nil {
			return nil, err
		}
	}
	return &body{ctx: ctx, f: f, info: infoOf(name, st), left: left}, nil
}

// body reads a file up to the length it had when it was opened.
type body struct {
	ctx  context.Context
	f    *os.File
	info storage.Info
	left int64
}

func (b *body) Info() (storage.Info, bool) { return b.info, true }

func (b *body) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, fmt.Errorf("read object %s: %w", b.info.Name, err)
	}
	if b.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.f.Read(p)
	b.left -= int64(n)
	switch {
	case err == io.EOF:
		return n, fmt.Errorf("read object %s: the file was cut short by %d bytes: %w", b.info.Name, b.left, io.ErrUnexpectedEOF)
	case err != nil:
		return n, fmt.Errorf("read object %s: %w", b.info.Name, err)
	}
	return n, nil
}

func (b *body) Close() error { return b.f.Close() }

func infoOf(name string, st os.FileInfo) storage.Info {
	return storage.Info{Name: name, Size: st.Size(), Modified: st.ModTime()}
}

// settled remembers the directories whose own names are known to be durable
// up to the root, so that a Put need not sync every parent each time (a sync
// of a clean directory still flushes the disk's cache).
type settled struct {
	mu   sync.Mutex
	dirs map[string]struct{}
}

// settledMax bounds the memory: a directory per backup and more are met in a
// long life. Forgetting costs a few syncs.
const settledMax = 4096

func (s *settled) has(dir string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.dirs[dir]
	return ok
}

func (s *settled) add(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dirs == nil || len(s.dirs) >= settledMax {
		s.dirs = make(map[string]struct{})
	}
	s.dirs[dir] = struct{}{}
}

func (s *settled) forget(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.dirs, dir)
}
