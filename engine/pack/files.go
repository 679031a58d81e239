package pack

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/walherd/walherd/engine/cluster"
	"golang.org/x/sys/unix"
)

// Body is the content of one entry. It yields exactly Size bytes and then
// io.EOF; io.ErrUnexpectedEOF or another error otherwise.
type Body interface {
	io.ReadCloser
	// Size in bytes, known before the first Read.
	Size() int64
}

// Opener gives the content of entries, one at a time: a Stream closes a Body
// before it opens the next, so an Opener may use one Body again and again. It
// belongs to one Stream.
type Opener interface {
	// Open is called for regular files. An error that is fs.ErrNotExist
	// leaves the entry out as missing, ErrSkip as skipped; any other error
	// ends the stream.
	Open(index int32, e *cluster.Entry) (Body, error)
}

// ErrSkip is an Opener's answer for an entry that turns out not to belong in
// this backup, such as a file that an increment finds unchanged.
var ErrSkip = errors.New("entry is not part of this backup")

// bigFile is from what size on read-ahead is worth a system call, in bytes.
const bigFile = 1 << 20

// Files opens the files themselves. A file that grew since the walk is cut,
// one that shrank is filled up with zeros: PostgreSQL truncates and extends
// files under a running backup, and WAL replay does the same again.
type Files struct {
	root string
	file file
}

// NewFiles reads files below the data directory root.
func NewFiles(root string) *Files { return &Files{root: root} }

// Open opens entry e. It works on bare descriptors: an os.File costs three
// allocations and a futile registration with the poller, for each of what may
// be a million small files.
func (f *Files) Open(_ int32, e *cluster.Entry) (Body, error) {
	// No following: what was a file may be a link to anywhere by now. No
	// blocking: or a FIFO nobody writes to.
	const flags = unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK
	path := e.Path(f.root)
	for {
		fd, err := unix.Open(path, flags, 0)
		switch {
		case err == nil:
			if e.Size >= bigFile {
				adviseSequential(fd)
			}
			f.file = file{fd: fd, name: path, size: e.Size, left: e.Size}
			return &f.file, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOTDIR):
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		default:
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

type file struct {
	fd         int
	name       string
	size, left int64
	short      bool // the file ended before its size
}

func (f *file) Size() int64 { return f.size }

func (f *file) Read(p []byte) (int, error) {
	if f.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), f.left)]
	if f.short {
		clear(p)
		f.left -= int64(len(p))
		return len(p), nil
	}
	for {
		n, err := unix.Read(f.fd, p)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, &fs.PathError{Op: "read", Path: f.name, Err: err}
		case n == 0 && len(p) > 0:
			f.short = true
			return f.Read(p)
		}
		f.left -= int64(n)
		return n, nil
	}
}

func (f *file) Close() error {
	if err := unix.Close(f.fd); err != nil {
		return fmt.Errorf("close %s: %w", f.name, err)
	}
	return nil
}
