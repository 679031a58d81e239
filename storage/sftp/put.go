package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sync"
	"time"

	"github.com/pkg/sftp"

	"github.com/walherd/walherd/storage"
)

const (
	// parentTries bounds the race with a Delete that removes the directory
	// between its making and the first file in it.
	parentTries = 100
	// grace is how long a failed Put may take to clean up behind itself.
	grace = 5 * time.Second
)

// Put implements storage.Bucket. The steps are in the order that makes the
// object whole, then visible, then durable: write beside the target, sync,
// check the length, close, rename, sync the directory.
//
// Requests under way when ctx ends are left to the server for a few seconds,
// so that the unfinished upload can be removed; r is not touched then.
func (b *Bucket) Put(ctx context.Context, name string, r io.Reader, opt storage.PutOptions) (storage.Info, error) {
	if err := checkPutName(name); err != nil {
		return storage.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return storage.Info{}, b.explain(ctx, "put", name, err)
	}
	l, err := b.acquire(ctx)
	if err != nil {
		return storage.Info{}, b.explain(ctx, "put", name, err)
	}
	up := &upload{b: b, l: l, ctx: ctx, name: name, src: &source{ctx: ctx, r: r}, ifAbsent: opt.IfAbsent}
	var info storage.Info
	done := make(chan error, 1)
	go func() {
		defer l.release()
		var err error
		info, err = up.run()
		if broken(err) && !errors.As(err, new(*contentError)) {
			l.close() // as in do
		}
		done <- err
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		up.src.stop()
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case err = <-done:
		case <-timer.C:
			err = ctx.Err()
		}
	}
	if err != nil {
		if errors.Is(err, os.ErrNotExist) && !errors.As(err, new(*contentError)) {
			// Not storage.ErrNotExist: that is no answer to a Put.
			err = fmt.Errorf("its unfinished upload was removed meanwhile: %v", err)
		}
		return storage.Info{}, b.explain(ctx, "put", name, err)
	}
	return info, nil
}

func checkPutName(name string) error {
	if err := storage.CheckName(name); err != nil {
		return err
	}
	if isTemp(name) {
		return fmt.Errorf("%w %q: it has the form of an unfinished upload, which no listing shows", storage.ErrName, name)
	}
	if base := path.Base(name); len(base) > elementMax {
		return fmt.Errorf("%w %q: its last element has %d bytes, a file has room for %d", storage.ErrName, name, len(base), elementMax)
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if n := len(path.Base(dir)); n > 255 {
			return fmt.Errorf("%w %q: an element has %d bytes, a directory has room for 255", storage.ErrName, name, n)
		}
	}
	return nil
}

// source is what a Put reads, until the Put is over.
type source struct {
	ctx context.Context
	r   io.Reader
	n   int64

	mu   sync.Mutex
	over bool
	err  error // of r, but io.EOF
}

// errSource ends an upload; source.err tells why. The library takes each error
// that has io.EOF in its chain for the end of the content and would store the
// half of it.
var errSource = errors.New("the content cannot be read")

func (s *source) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return 0, errSource
	}
	if s.err = s.ctx.Err(); s.err != nil {
		return 0, errSource
	}
	n, err := s.r.Read(p)
	s.n += int64(n)
	if err != nil && err != io.EOF {
		s.err = err
		return n, errSource
	}
	return n, err
}

// contentError is the reader's error, which says nothing about the server even
// when it looks like one of its errors.
type contentError struct{ err error }

func (e *contentError) Error() string { return "read its content: " + e.err.Error() }
func (e *contentError) Unwrap() error { return e.err }

// stop waits for a Read under way and lets no other begin.
func (s *source) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
}

func (s *source) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// upload is an object that is being written.
type upload struct {
	b        *Bucket
	l        *link
	ctx      context.Context
	name     string
	temp     string
	src      *source
	ifAbsent bool
	made     bool // a parent of the object was made for it
}

func (up *upload) run() (info storage.Info, err error) {
	b, files := up.b, up.l.files
	if up.ifAbsent {
		// Only to spare the copying: publish decides.
		if _, err := files.Lstat(b.place.at(up.name)); err == nil {
			return storage.Info{}, storage.ErrExist
		}
	}
	dir := path.Dir(up.name)
	up.temp = path.Join(dir, tempName(path.Base(up.name), b.now()))
	f, err := up.create(dir)
	if err != nil {
		err = b.diagnose(up.l, up.name, err)
		if up.made {
			b.removeEmpty(up.l, dir)
		}
		return storage.Info{}, err
	}
	visible := false
	defer func() {
		if err != nil && !visible {
			err = b.diagnose(up.l, up.name, err) // before space is freed
			up.discard(f, dir)
		}
	}()
	if info, err = up.fill(f); err != nil {
		return storage.Info{}, err
	}
	if err := f.Close(); err != nil {
		return storage.Info{}, err
	}
	if err := up.ctx.Err(); err != nil {
		return storage.Info{}, err
	}
	if err := up.publish(); err != nil {
		return storage.Info{}, err
	}
	visible = true
	return info, up.settle(dir)
}

// create opens the temporary file and makes the directories it lacks. From
// then on its directory is not empty, so no Delete can remove it.
func (up *upload) create(dir string) (*sftp.File, error) {
	for try := 0; ; try++ {
		f, err := up.l.files.OpenFile(up.b.place.at(up.temp), os.O_WRONLY|os.O_CREATE|os.O_EXCL)
		if !errors.Is(err, os.ErrNotExist) {
			return f, err
		}
		if try == parentTries {
			return nil, fmt.Errorf("its directory is removed again and again: %w", err)
		}
		if dir == "." {
			if rootErr := up.b.checkRoot(up.l); rootErr != nil {
				return nil, rootErr
			}
			return nil, err
		}
		up.made = true
		if err := up.b.makeDir(up.l, dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
}

// makeDir makes dir and the directories above it, but not the root.
func (b *Bucket) makeDir(l *link, dir string) error {
	err := l.files.Mkdir(b.place.at(dir))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrNotExist):
		parent := path.Dir(dir)
		if parent == "." {
			if rootErr := b.checkRoot(l); rootErr != nil {
				return rootErr
			}
			return err
		}
		if err := b.makeDir(l, parent); err != nil {
			return err
		}
		return b.makeDir(l, dir)
	}
	// Made by somebody else, most likely: no code tells so.
	if st, statErr := l.files.Stat(b.place.at(dir)); statErr == nil && st.IsDir() {
		return nil
	} else if errors.Is(statErr, os.ErrNotExist) && hasCode(err, codeFailure) {
		if err = b.diagnose(l, dir, err); !errors.Is(err, storage.ErrPermanent) {
			return os.ErrNotExist // made, and removed again
		}
	}
	return err
}

// fill copies the content with concurrent writes and has it brought to disk.
func (up *upload) fill(f *sftp.File) (storage.Info, error) {
	_, err := f.ReadFromWithConcurrency(up.src, perFile)
	if readErr := up.src.failure(); readErr != nil {
		return storage.Info{}, &contentError{readErr}
	}
	if err != nil {
		return storage.Info{}, err
	}
	if up.l.canSync {
		if err := f.Sync(); err != nil {
			return storage.Info{}, fmt.Errorf("sync: %w", err)
		}
	}
	st, err := f.Stat()
	if err != nil {
		return storage.Info{}, err
	}
	if st.Size() != up.src.n {
		return storage.Info{}, fmt.Errorf("%d bytes written, the file has %d: is another process writing to it?", up.src.n, st.Size())
	}
	return storage.Info{Name: up.name, Size: st.Size(), Modified: st.ModTime()}, nil
}

// publish gives the file its name.
//
// Without posix-rename a name that is taken cannot be given to another file in
// one step, and is left alone. Without hardlink, or where the server's
// file system has no links, IfAbsent rests on the plain rename, which must fail
// on a name that is taken (draft-ietf-secsh-filexfer-02, section 6.5).
// OpenSSH's keeps to that, though on such a file system it looks first and
// then renames.
func (up *upload) publish() error {
	files, from, to := up.l.files, up.b.place.at(up.temp), up.b.place.at(up.name)
	if !up.ifAbsent {
		if _, ok := files.HasExtension("posix-rename@openssh.com"); ok {
			return files.PosixRename(from, to)
		}
		err := files.Rename(from, to)
		if st, statErr := files.Lstat(to); err != nil && statErr == nil && !st.IsDir() {
			return &permanent{err, "the server cannot replace a file (it lacks posix-rename@openssh.com): use OpenSSH's"}
		}
		return err
	}
	err := error(&sftp.StatusError{Code: codeUnsupported})
	if _, ok := files.HasExtension("hardlink@openssh.com"); ok {
		if err = files.Link(from, to); err == nil {
			// Two names now, one of them hidden. When it cannot be
			// removed the object is stored all the same, and Unfinished
			// finds the rest.
			_ = files.Remove(from)
			return nil
		}
	}
	if !hasCode(err, codeFailure) && !hasCode(err, codeUnsupported) && !errors.Is(err, os.ErrPermission) {
		return err
	}
	if _, statErr := files.Lstat(to); statErr == nil {
		return storage.ErrExist
	}
	err = files.Rename(from, to)
	if _, statErr := files.Lstat(to); err != nil && statErr == nil {
		return storage.ErrExist
	}
	return err
}

// settle makes the new name durable, and those of the directories above it
// when this Put made one of them or nothing is known of them yet.
func (up *upload) settle(dir string) error {
	b := up.b
	if err := b.syncDir(up.l, dir); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil // a Delete of this very object was quicker
		}
		return err
	}
	if dir == "." || !up.made && b.settled.has(dir) {
		return nil
	}
	for above := dir; above != "."; {
		above = path.Dir(above)
		if err := b.syncDir(up.l, above); err != nil {
			return err
		}
	}
	b.settled.add(dir)
	return nil
}

// syncDir makes the names in dir durable, where the server can: OpenSSH's
// opens a directory like a file.
func (b *Bucket) syncDir(l *link, dir string) error {
	if !l.canSync || l.noDirSync.Load() {
		return nil
	}
	f, err := l.files.Open(b.place.at(dir))
	var status *sftp.StatusError
	if errors.As(err, &status) || errors.Is(err, os.ErrPermission) {
		l.noDirSync.Store(true)
		return nil
	}
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", b.place.at(dir), err)
	}
	defer func() { go f.Close() }() // its answer tells nothing
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", b.place.at(dir), err)
	}
	return nil
}

// discard removes all traces of an upload, over a new connection when the old
// one broke. Unfinished finds what it cannot remove.
func (up *upload) discard(f *sftp.File, dir string) {
	go f.Close() // often closed before, or waits for a dead server
	ctx, cancel := context.WithTimeout(up.b.life, grace)
	defer cancel()
	// What broke one connection has most likely broken the others too.
	for range len(up.b.slots) + 1 {
		_, err := do(ctx, up.b, func(l *link) (struct{}, error) {
			err := l.files.Remove(up.b.place.at(up.temp))
			if up.made && !broken(err) {
				up.b.removeEmpty(l, dir)
			}
			return struct{}{}, err
		}, nil)
		if !broken(err) {
			return
		}
	}
}

// removeEmpty removes dir and its parents as far as they are empty. The
// server refuses to remove one that is not, which makes it safe beside a Put;
// so an error only means that there is nothing more to remove.
func (b *Bucket) removeEmpty(l *link, dir string) {
	for ; dir != "."; dir = path.Dir(dir) {
		// Some servers would remove a file or a symbolic link, too.
		if st, err := l.files.Lstat(b.place.at(dir)); err != nil || !st.IsDir() {
			return
		}
		b.settled.forget(dir)
		if l.files.RemoveDirectory(b.place.at(dir)) != nil {
			return
		}
		b.settled.forget(dir)
	}
}
