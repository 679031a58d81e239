package fs

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/walherd/walherd/storage"
)

// readDir calls visit for each entry of the directory f until it fails. buf
// holds what the system tells at once. os.File.ReadDir looks at each entry when
// the directory was opened through an os.Root, which doubles the cost of a
// listing and makes one with a prefix look at what it will not show.
func readDir(ctx context.Context, f *os.File, buf []byte, visit func(name []byte, k kind) error) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.ReadDirent(int(f.Fd()), buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "getdents", Path: f.Name(), Err: err}
		}
		if n == 0 {
			return nil
		}
		// struct linux_dirent64: inode 8 bytes, offset 8, length of the record
		// 2, type 1, name, zero byte and padding; see getdents64(2).
		const lengthAt, typeAt, nameAt = 16, 18, 19
		for rest := buf[:n]; len(rest) > nameAt; {
			length := int(binary.NativeEndian.Uint16(rest[lengthAt:]))
			if length <= nameAt || length > len(rest) {
				return &os.PathError{Op: "getdents", Path: f.Name(), Err: unix.EIO}
			}
			record := rest[:length]
			rest = rest[length:]
			name := record[nameAt:]
			if i := bytes.IndexByte(name, 0); i >= 0 {
				name = name[:i]
			}
			if string(name) == "." || string(name) == ".." {
				continue
			}
			k, err := kindOf(f, name, record[typeAt])
			if err == nil {
				err = visit(name, k)
			}
			if err != nil {
				return err
			}
		}
	}
}

func kindOf(f *os.File, name []byte, direntType byte) (kind, error) {
	switch direntType {
	case unix.DT_DIR:
		return kindDir, nil
	case unix.DT_LNK:
		return kindLink, nil
	case unix.DT_UNKNOWN: // some file systems do not tell
		var st unix.Stat_t
		if err := unix.Fstatat(int(f.Fd()), string(name), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			if err == unix.ENOENT {
				return kindOther, nil
			}
			return kindOther, &os.PathError{Op: "fstatat", Path: string(name), Err: err}
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			return kindDir, nil
		case unix.S_IFLNK:
			return kindLink, nil
		}
	}
	return kindOther, nil
}

// statEntry describes the file name of the directory d, which is open as f;
// regular is false for what is no regular file, a link included. A listing of
// a million segments asks this a million times, hence the bare call, which
// leaves no garbage behind.
func statEntry(_ *os.Root, f *os.File, name string) (info storage.Info, regular bool, err error) {
	var st unix.Stat_t
	for {
		err = unix.Fstatat(int(f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return storage.Info{}, false, &os.PathError{Op: "fstatat", Path: name, Err: err}
	}
	info = storage.Info{Name: name, Size: st.Size, Modified: time.Unix(st.Mtim.Unix())}
	return info, st.Mode&unix.S_IFMT == unix.S_IFREG, nil
}
