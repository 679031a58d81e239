package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"time"

	"github.com/walherd/walherd/storage"
)

const (
	// copySize suits both a disk and the compressors that feed it.
	copySize = 512 << 10
	// writebackEvery is how many bytes are written before the system is
	// asked to start bringing them to disk. Without it a part of gigabytes
	// sits in the page cache until the final sync, which then blocks for
	// minutes on a slow disk while the source stands still.
	writebackEvery = 8 << 20
	// parentTries bounds the race with a Delete that removes the directory
	// between its making and the first file in it.
	parentTries = 1000
)

// Put implements storage.Bucket. The steps are in the order that makes the
// object whole, then visible, then durable: write beside the target, check
// the length, sync, close, rename, sync the directory.
func (b *Bucket) Put(ctx context.Context, name string, r io.Reader, opt storage.PutOptions) (storage.Info, error) {
	if err := checkPutName(name); err != nil {
		return storage.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return storage.Info{}, fmt.Errorf("put object %s: %w", name, err)
	}
	root, err := b.open()
	if err != nil {
		return storage.Info{}, err
	}
	defer root.Close()
	if opt.IfAbsent {
		// Only to spare the copying: the rename decides.
		if _, err := root.Lstat(name); err == nil {
			return storage.Info{}, fmt.Errorf("put object %s: %w", name, storage.ErrExist)
		}
	}
	up, err := b.begin(root, name)
	if err != nil {
		b.removeEmpty(root, path.Dir(name))
		return storage.Info{}, b.explainPut(name, err)
	}
	return b.finish(ctx, root, up, r, opt)
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

// upload is an object that is being written.
type upload struct {
	name      string
	dir, base string
	temp      string // name of file in parent
	parent    *os.Root
	file      *os.File
	made      bool // begin made dir or a parent of it
}

// begin makes the parents and the temporary file. From then on the directory
// is not empty, so no Delete can remove it.
func (b *Bucket) begin(root *os.Root, name string) (*upload, error) {
	up := &upload{name: name}
	up.dir, up.base = path.Dir(name), path.Base(name)
	up.temp = tempName(up.base, b.now())
	for try := 0; ; try++ {
		err := up.create(root)
		if err == nil {
			return up, nil
		}
		if !errors.Is(err, os.ErrNotExist) || try == parentTries {
			return nil, err
		}
	}
}

func (up *upload) create(root *os.Root) error {
	parent, err := openDir(root, up.dir)
	if errors.Is(err, os.ErrNotExist) {
		up.made = true
		if err := root.MkdirAll(up.dir, 0o755); err != nil {
			return err
		}
		parent, err = openDir(root, up.dir)
	}
	if err != nil {
		return err
	}
	file, err := parent.OpenFile(up.temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		parent.Close()
		return err
	}
	up.parent, up.file = parent, file
	return nil
}

// finish writes the object and makes it visible, or removes all traces.
func (b *Bucket) finish(ctx context.Context, root *os.Root, up *upload, r io.Reader, opt storage.PutOptions) (info storage.Info, err error) {
	defer up.parent.Close()
	visible := false
	defer func() {
		if err != nil && !visible {
			up.file.Close()             // often closed before
			up.parent.Remove(up.temp)   // Unfinished finds what cannot be removed
			b.removeEmpty(root, up.dir) // a failed Put leaves no new directory
		}
	}()

	w := &writer{ctx: ctx, f: up.file, every: b.writeback}
	if err := b.copyAll(w, r); err != nil {
		if w.err != nil {
			return storage.Info{}, b.explainPut(up.name, w.err)
		}
		return storage.Info{}, fmt.Errorf("put object %s: read its content: %w", up.name, err)
	}
	if err := up.file.Sync(); err != nil {
		return storage.Info{}, b.explainPut(up.name, err)
	}
	st, err := up.file.Stat()
	if err != nil {
		return storage.Info{}, b.explainPut(up.name, err)
	}
	if st.Size() != w.n {
		return storage.Info{}, fmt.Errorf("put object %s: %d bytes written, the file has %d: is another process writing to it?", up.name, w.n, st.Size())
	}
	// A network file system tells some write errors only here.
	if err := up.file.Close(); err != nil {
		return storage.Info{}, b.explainPut(up.name, err)
	}
	if err := ctx.Err(); err != nil {
		return storage.Info{}, fmt.Errorf("put object %s: %w", up.name, err)
	}
	if err := up.publish(opt.IfAbsent); err != nil {
		if opt.IfAbsent && errors.Is(err, os.ErrExist) {
			return storage.Info{}, fmt.Errorf("put object %s: %w", up.name, storage.ErrExist)
		}
		return storage.Info{}, b.explainPut(up.name, err)
	}
	visible = true
	if err := b.settle(root, up); err != nil {
		return storage.Info{}, b.explainPut(up.name, err)
	}
	return infoOf(up.name, st), nil
}

// publish gives the file its name.
func (up *upload) publish(ifAbsent bool) error {
	if !ifAbsent {
		return up.parent.Rename(up.temp, up.base)
	}
	if done, err := renameNoReplace(up.parent, up.temp, up.base); done {
		return err
	}
	return linkNoReplace(up.parent, up.temp, up.base)
}

// linkNoReplace renames by a hard link, the older way not to replace: two
// names for a moment, of which one is hidden. When the old one cannot be
// removed the object is stored all the same, and Unfinished finds the rest.
func linkNoReplace(dir *os.Root, from, to string) error {
	if err := dir.Link(from, to); err != nil {
		return err
	}
	_ = dir.Remove(from)
	return nil
}

// settle makes the new name durable, and those of the directories above it
// when this Put made one of them or nothing is known of them yet: another
// Put, or another process, may have made them and not synced them so far.
func (b *Bucket) settle(root *os.Root, up *upload) error {
	if err := syncDir(root, up.dir); err != nil {
		return err
	}
	if up.dir == "." || !up.made && b.settled.has(up.dir) {
		return nil
	}
	for dir := up.dir; dir != "."; {
		dir = path.Dir(dir)
		if err := syncDir(root, dir); err != nil {
			return err
		}
	}
	b.settled.add(up.dir)
	return nil
}

func syncDir(root *os.Root, dir string) error {
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// explainPut is explain for a Put, where a missing directory is not a missing
// object.
func (b *Bucket) explainPut(name string, err error) error {
	if way := wayOut(err); way == "" && errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("put object %s in %s: its directory vanishes again and again: %w", name, b.root, cause(err))
	}
	if isNotDir(err) {
		return fmt.Errorf("put object %s in %s: %w: %s: %w", name, b.root, cause(err), wayOut(err), storage.ErrPermanent)
	}
	return b.explain("put object", name, err)
}

// writer counts, starts write-back early, and looks at the context.
type writer struct {
	ctx    context.Context
	f      *os.File
	every  int64
	n      int64 // written
	queued int64 // handed to write-back
	err    error // the first error of the file or the context
}

func (w *writer) Write(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		if w.err == nil {
			w.err = w.ctx.Err()
		}
		if w.err != nil {
			return total, w.err
		}
		chunk := p
		if w.every > 0 {
			chunk = p[:min(int64(len(p)), w.queued+w.every-w.n)]
		}
		n, err := w.f.Write(chunk)
		w.n += int64(n)
		total += n
		if err != nil {
			w.err = err
			return total, err
		}
		if w.every > 0 && w.n-w.queued >= w.every {
			startWriteback(w.f, w.queued, w.n-w.queued)
			w.queued = w.n
		}
		p = p[n:]
	}
	return total, nil
}

// copyAll copies r to its end. A reader that can write does so itself, else a
// pooled buffer is used.
func (b *Bucket) copyAll(w *writer, r io.Reader) error {
	if from, ok := r.(io.WriterTo); ok {
		_, err := from.WriteTo(w)
		return err
	}
	buf, ok := b.buffers.Get().(*[copySize]byte)
	if !ok {
		buf = new([copySize]byte)
	}
	defer b.buffers.Put(buf)
	_, err := io.CopyBuffer(w, r, buf[:])
	return err
}

// Unfinished describes an upload that has not ended, or never will.
type Unfinished struct {
	// Name is the temporary object name. Delete takes it.
	Name string
	// Size in bytes so far.
	Size int64
	// Modified is the time of the last write; an old one is a leftover of
	// a crash.
	Modified time.Time
}
