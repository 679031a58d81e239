package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// node is one file or directory. What does not change anything is the
// loopback's.
type node struct {
	fs.LoopbackNode
	j *journal
}

var (
	_ fs.NodeCreater        = (*node)(nil)
	_ fs.NodeOpener         = (*node)(nil)
	_ fs.NodeMkdirer        = (*node)(nil)
	_ fs.NodeUnlinker       = (*node)(nil)
	_ fs.NodeRmdirer        = (*node)(nil)
	_ fs.NodeRenamer        = (*node)(nil)
	_ fs.NodeLinker         = (*node)(nil)
	_ fs.NodeSymlinker      = (*node)(nil)
	_ fs.NodeSetattrer      = (*node)(nil)
	_ fs.NodeFsyncer        = (*node)(nil)
	_ fs.NodeTmpfiler       = (*node)(nil)
	_ fs.NodeCopyFileRanger = (*node)(nil)
	_ fs.NodeReaddirer      = (*node)(nil)
	_ fs.NodeOpendirHandler = (*node)(nil)
	_ fs.FileReader         = (*handle)(nil)
	_ fs.FileWriter         = (*handle)(nil)
	_ fs.FileReleaser       = (*handle)(nil)
	_ fs.FileFlusher        = (*handle)(nil)
	_ fs.FileGetattrer      = (*handle)(nil)
	_ fs.FileAllocater      = (*handle)(nil)
)

func newRoot(j *journal) (fs.InodeEmbedder, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(j.root, &st); err != nil {
		return nil, err
	}
	data := &fs.LoopbackRoot{Path: j.root, Dev: uint64(st.Dev)}
	data.NewNode = func(data *fs.LoopbackRoot, _ *fs.Inode, _ string, _ *syscall.Stat_t) fs.InodeEmbedder {
		return &node{fs.LoopbackNode{RootData: data}, j}
	}
	root := &node{fs.LoopbackNode{RootData: data}, j}
	data.RootNode = root
	return root, nil
}

// rel is the node's path below the root, or that of an entry of it.
func (n *node) rel(name ...string) string {
	return filepath.Join(append([]string{".", n.Path(n.Root())}, name...)...)
}

func (n *node) child(name string) inode {
	id, _, err := inodeOf(n.j.abs(n.rel(name)))
	if err != nil {
		return 0
	}
	return id
}

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	_, serr := os.Lstat(n.j.abs(n.rel(name)))
	ch, _, _, errno := n.LoopbackNode.Create(ctx, name, flags&^syscall.O_TRUNC, mode, out)
	if errno != 0 {
		return nil, nil, 0, errno
	}
	if serr != nil {
		n.j.note(change{what: created, id: n.child(name), from: n.rel(name)})
	}
	h, fuseFlags, errno := n.j.open(n.rel(name), flags&^(syscall.O_CREAT|syscall.O_EXCL))
	return ch, h, fuseFlags, errno
}

func (n *node) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return n.j.open(n.rel(), flags)
}

// open gives a handle past the kernel's page cache: after a power cut it would
// show what the disk no longer has.
func (j *journal) open(rel string, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	f, err := os.OpenFile(j.abs(rel), int(flags)&^(syscall.O_APPEND|syscall.O_TRUNC|syscall.O_SYNC|syscall.O_DSYNC|syscall.O_DIRECT|fuse.FMODE_EXEC), 0)
	if err != nil {
		return nil, 0, fs.ToErrno(err)
	}
	h := &handle{j: j, f: f, rel: rel, sync: flags&(syscall.O_SYNC|syscall.O_DSYNC) != 0}
	if flags&syscall.O_TRUNC != 0 {
		if err := j.beforeTruncate(f, 0); err == nil {
			err = f.Truncate(0)
		}
		if err != nil {
			f.Close()
			return nil, 0, fs.ToErrno(err)
		}
	}
	return h, fuse.FOPEN_DIRECT_IO, 0
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	ch, errno := n.LoopbackNode.Mkdir(ctx, name, mode, out)
	if errno == 0 {
		n.j.note(change{what: madeDir, id: n.child(name), from: n.rel(name)})
	}
	return ch, errno
}

func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	grave, id, err := n.j.bury(n.rel(name))
	if err != nil {
		return fs.ToErrno(err)
	}
	errno := n.LoopbackNode.Unlink(ctx, name)
	if errno == 0 {
		n.j.note(change{what: removed, id: id, from: n.rel(name), grave: grave, graveID: id})
	}
	return errno
}

func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	id := n.child(name)
	errno := n.LoopbackNode.Rmdir(ctx, name)
	if errno == 0 {
		n.j.note(change{what: removedDir, id: id, from: n.rel(name)})
	}
	return errno
}

func (n *node) Rename(ctx context.Context, name string, newParent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	to, ok := newParent.(*node)
	if !ok {
		return syscall.EXDEV
	}
	if flags != 0 {
		return syscall.EINVAL // exchange and whiteout are not modelled
	}
	from, target := n.rel(name), to.rel(newName)
	id := n.child(name)
	grave, graveID, err := n.j.bury(target)
	if err != nil {
		return fs.ToErrno(err)
	}
	// The loopback asks for its own type.
	if err := syscall.Rename(n.j.abs(from), n.j.abs(target)); err != nil {
		return fs.ToErrno(err)
	}
	n.j.note(change{what: renamed, id: id, from: from, to: target, grave: grave, graveID: graveID})
	return 0
}

// Link, Symlink and Tmpfile are not modelled, so they are refused.
func (n *node) Link(context.Context, fs.InodeEmbedder, string, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

func (n *node) Symlink(context.Context, string, string, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

func (n *node) Tmpfile(context.Context, uint32, uint32, *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	return nil, nil, 0, syscall.EOPNOTSUPP
}

// CopyFileRange makes the kernel copy by reading and writing.
func (n *node) CopyFileRange(context.Context, fs.FileHandle, uint64, *fs.Inode, fs.FileHandle, uint64, uint64, uint64) (uint32, syscall.Errno) {
	return 0, syscall.EOPNOTSUPP
}

func (n *node) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		w, err := os.OpenFile(n.j.abs(n.rel()), os.O_RDWR, 0)
		if err != nil {
			return fs.ToErrno(err)
		}
		err = n.j.beforeTruncate(w, int64(size))
		w.Close()
		if err != nil {
			return fs.ToErrno(err)
		}
	}
	return n.LoopbackNode.Setattr(ctx, nil, in, out)
}

func (n *node) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	rel := n.rel()
	id, mode, err := inodeOf(n.j.abs(rel))
	if err != nil {
		return 0 // removed: nothing of it is to be kept
	}
	n.j.sync(rel, id, mode&syscall.S_IFMT == syscall.S_IFDIR)
	return 0
}

func (n *node) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	entries, err := os.ReadDir(n.j.abs(n.rel()))
	if err != nil {
		return nil, fs.ToErrno(err)
	}
	entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool { return e.Name() == graveDir })
	list := make([]fuse.DirEntry, 0, len(entries))
	for _, e := range entries {
		id, mode, err := inodeOf(n.j.abs(n.rel(e.Name())))
		if err != nil {
			continue // gone meanwhile
		}
		list = append(list, fuse.DirEntry{Name: e.Name(), Ino: uint64(id), Mode: mode})
	}
	return fs.NewListDirStream(list), 0
}

func (n *node) OpendirHandle(ctx context.Context, _ uint32) (fs.FileHandle, uint32, syscall.Errno) {
	ds, errno := n.Readdir(ctx)
	return ds, 0, errno
}

// handle is one open file.
type handle struct {
	j    *journal
	f    *os.File
	rel  string
	sync bool
}

func (h *handle) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := h.f.ReadAt(dest, off)
	if err != nil && err != io.EOF {
		return nil, fs.ToErrno(err)
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (h *handle) Write(_ context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	if err := h.j.beforeWrite(h.f, off, int64(len(data))); err != nil {
		return 0, fs.ToErrno(err)
	}
	n, err := h.f.WriteAt(data, off)
	if err == nil && h.sync {
		if id, _, err := inodeOf(h.j.abs(h.rel)); err == nil {
			h.j.sync(h.rel, id, false)
		}
	}
	return uint32(n), fs.ToErrno(err)
}

func (h *handle) Allocate(_ context.Context, off, size uint64, mode uint32) syscall.Errno {
	// Growing destroys nothing; the size that it grows from is what counts.
	if err := h.j.beforeWrite(h.f, int64(off), 0); err != nil {
		return fs.ToErrno(err)
	}
	if mode != 0 {
		return syscall.EOPNOTSUPP
	}
	return fs.ToErrno(syscall.Fallocate(int(h.f.Fd()), mode, int64(off), int64(size)))
}

func (h *handle) Getattr(_ context.Context, out *fuse.AttrOut) syscall.Errno {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(h.f.Fd()), &st); err != nil {
		return fs.ToErrno(err)
	}
	out.FromStat(&st)
	return 0
}

// Flush is close(2), which syncs nothing.
func (h *handle) Flush(context.Context) syscall.Errno { return 0 }

func (h *handle) Release(context.Context) syscall.Errno { return fs.ToErrno(h.f.Close()) }
