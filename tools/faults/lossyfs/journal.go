package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// journal knows what the disk would not have if the power were cut now: for
// each inode with unsynced bytes its old size and the bytes that were
// overwritten, and every change of a directory that no sync has made durable,
// in order. All paths are below the backing directory.
type journal struct {
	root string
	// strict is POSIX to the letter: the name of a file is durable only when
	// its directory was synced. Otherwise syncing a file makes its own name
	// durable too, and those of the directories above it, as ext4 and XFS do.
	strict bool

	mu     sync.Mutex
	files  map[inode]*dirty
	names  []change
	graves int
}

// inode numbers are stable while the journal holds the inode: a file that is
// removed or replaced stays, under another name, until that is durable.
type inode uint64

// dirty is one inode's unsynced content.
type dirty struct {
	f    *os.File
	size int64 // the durable size
	old  []extent
}

type extent struct {
	off  int64
	data []byte
}

// change is one change of a name.
type change struct {
	what     changed
	id       inode
	from, to string
	// grave is where what was removed or replaced is kept; empty if nothing.
	grave   string
	graveID inode
}

type changed int

const (
	created    changed = iota // from
	madeDir                   // from
	removed                   // from, kept in grave
	removedDir                // from
	renamed                   // from, to; what was replaced is in grave
)

// graveDir is hidden from the mounted file system.
const graveDir = ".lossyfs-graves"

func newJournal(root string, strict bool) (*journal, error) {
	if err := os.MkdirAll(filepath.Join(root, graveDir), 0o700); err != nil {
		return nil, err
	}
	return &journal{root: root, strict: strict, files: map[inode]*dirty{}}, nil
}

func (j *journal) abs(rel string) string { return filepath.Join(j.root, rel) }

func inodeOf(path string) (inode, uint32, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return 0, 0, err
	}
	return inode(st.Ino), st.Mode, nil
}

// beforeWrite notes what a write of n bytes at off to f will destroy. The
// caller holds no lock; writes to one inode are serialised by the kernel.
func (j *journal) beforeWrite(f *os.File, off, n int64) error {
	return j.before(f, func(d *dirty) (from, to int64) { return off, min(off+n, d.size) })
}

// beforeTruncate notes what setting f's size will destroy.
func (j *journal) beforeTruncate(f *os.File, size int64) error {
	return j.before(f, func(d *dirty) (from, to int64) { return size, d.size })
}

func (j *journal) before(f *os.File, lost func(*dirty) (from, to int64)) error {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	d := j.files[inode(st.Ino)]
	if d == nil {
		// A handle of our own: the caller's may be closed, its file removed,
		// long before the content is synced.
		own, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		d = &dirty{f: own, size: st.Size}
		j.files[inode(st.Ino)] = d
	}
	from, to := lost(d)
	if from >= to {
		return nil
	}
	data := make([]byte, to-from)
	n, err := d.f.ReadAt(data, from)
	if n == 0 && err != nil {
		return nil // truncated since: what was there is saved already
	}
	d.old = append(d.old, extent{from, data[:n]})
	return nil
}

// note records a change of a name that has been made.
func (j *journal) note(c change) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.names = append(j.names, c)
}

// bury keeps the file at rel under another name before it is removed or
// replaced. The grave is empty if there is no file.
func (j *journal) bury(rel string) (grave string, id inode, err error) {
	id, mode, err := inodeOf(j.abs(rel))
	if errors.Is(err, syscall.ENOENT) || err == nil && mode&syscall.S_IFMT == syscall.S_IFDIR {
		return "", 0, nil
	}
	if err != nil {
		return "", 0, err
	}
	j.mu.Lock()
	j.graves++
	grave = filepath.Join(graveDir, strconv.Itoa(j.graves))
	j.mu.Unlock()
	return grave, id, os.Link(j.abs(rel), j.abs(grave))
}

// sync makes a file's content durable, or a directory's entries.
func (j *journal) sync(rel string, id inode, dir bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if dir {
		j.settle(func(c change) bool {
			return filepath.Dir(c.from) == rel || c.what == renamed && filepath.Dir(c.to) == rel
		})
	} else if d := j.files[id]; d != nil {
		d.f.Close()
		delete(j.files, id)
	}
	if j.strict {
		return
	}
	// The file and every directory above it.
	ids := map[inode]bool{id: true}
	for p := rel; p != "." && p != "/" && p != ""; p = filepath.Dir(p) {
		if up, _, err := inodeOf(j.abs(p)); err == nil {
			ids[up] = true
		}
	}
	j.settle(func(c change) bool { return ids[c.id] && (c.what == created || c.what == madeDir || c.what == renamed) })
}

// settle drops the changes that are durable now, and what was kept for them.
// The caller holds mu.
func (j *journal) settle(durable func(change) bool) {
	rest := j.names[:0]
	for _, c := range j.names {
		if !durable(c) {
			rest = append(rest, c)
			continue
		}
		if c.grave != "" {
			os.Remove(j.abs(c.grave))
			j.forget(c.graveID)
		}
	}
	j.names = rest
}

// forget drops the content of an inode that nobody can reach any more. The
// caller holds mu.
func (j *journal) forget(id inode) {
	d := j.files[id]
	if d == nil {
		return
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(int(d.f.Fd()), &st); err == nil && st.Nlink == 0 {
		d.f.Close()
		delete(j.files, id)
	}
}

// lost is what a power cut took.
type lost struct {
	Files   int   // files whose content went back
	Bytes   int64 // bytes by which files are shorter, and bytes that are as they were
	Names   int   // changes of names undone
	Skipped int   // changes that could not be undone, because a later one is durable
}

// cut is the power cut: everything goes back to what was synced.
func (j *journal) cut() (lost, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out lost
	var errs []error
	for id, d := range j.files {
		out.Files++
		if info, err := d.f.Stat(); err == nil {
			out.Bytes += max(info.Size()-d.size, 0)
		}
		for i := len(d.old) - 1; i >= 0; i-- {
			out.Bytes += int64(len(d.old[i].data))
			if _, err := d.f.WriteAt(d.old[i].data, d.old[i].off); err != nil {
				errs = append(errs, err)
			}
		}
		if err := d.f.Truncate(d.size); err != nil {
			errs = append(errs, err)
		}
		d.f.Close()
		delete(j.files, id)
	}
	for i := len(j.names) - 1; i >= 0; i-- {
		done, err := j.undo(j.names[i])
		if err != nil {
			errs = append(errs, err)
		}
		if done {
			out.Names++
		} else {
			out.Skipped++
		}
	}
	j.names = nil
	if err := os.RemoveAll(j.abs(graveDir)); err != nil {
		errs = append(errs, err)
	}
	if err := os.Mkdir(j.abs(graveDir), 0o700); err != nil {
		errs = append(errs, err)
	}
	return out, errors.Join(errs...)
}

func (j *journal) undo(c change) (bool, error) {
	is := func(rel string) bool {
		id, _, err := inodeOf(j.abs(rel))
		return err == nil && id == c.id
	}
	var err error
	switch c.what {
	case created:
		if !is(c.from) {
			return false, nil
		}
		err = os.Remove(j.abs(c.from))
	case madeDir:
		if !is(c.from) {
			return false, nil
		}
		err = os.Remove(j.abs(c.from))
		if errors.Is(err, syscall.ENOTEMPTY) {
			return false, nil // something in it is durable
		}
	case removed:
		if _, serr := os.Lstat(j.abs(c.from)); serr == nil {
			return false, nil
		}
		err = os.Link(j.abs(c.grave), j.abs(c.from))
	case removedDir:
		err = os.Mkdir(j.abs(c.from), 0o700)
		if errors.Is(err, os.ErrExist) {
			return false, nil
		}
	case renamed:
		if !is(c.to) {
			return false, nil
		}
		err = os.Rename(j.abs(c.to), j.abs(c.from))
		if err == nil && c.grave != "" {
			err = os.Link(j.abs(c.grave), j.abs(c.to))
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // a directory above it is gone for good
	}
	if err != nil {
		return false, fmt.Errorf("undo %+v: %w", c, err)
	}
	return true, nil
}
