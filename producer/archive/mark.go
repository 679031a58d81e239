package archive

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/walherd/walherd/engine/durable"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/messages"
)

// identity tells one state of a file from another: PostgreSQL renames and
// overwrites segments in place, so a name alone says nothing.
type identity struct {
	Device uint64 `json:"dev"`
	Inode  uint64 `json:"ino"`
	Size   int64  `json:"size"`
	// Modified is the modification time in nanoseconds since 1970.
	Modified int64 `json:"mtime"`
}

// identify looks at a file.
func identify(path string) (identity, error) {
	info, err := os.Stat(path)
	if err != nil {
		return identity{}, err
	}
	id := identity{Size: info.Size(), Modified: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		id.Device, id.Inode = uint64(st.Dev), st.Ino
	}
	return id, nil
}

// marks is the directory of marks: one file for each WAL file that read-ahead
// has shipped and PostgreSQL has not asked for yet, <pg_wal>/walg_data/
// walg_archive_status/<name>, where WAL-G keeps its own.
//
// A mark's name is the full name of its WAL file. WAL-G drops the last
// extension, so that X.partial and X share a mark and one can be taken for the
// other; with full names the mark of a segment is the same file for both
// programs, and any other mark is of no meaning to WAL-G. A mark holds the
// identity of what was shipped. WAL-G's are empty, and such a one counts for
// whole segments only, if the segment is older than the mark and no partial
// segment is about that the mark might be of.
//
// PostgreSQL believes a mark after a crash: it is written after the file was
// acknowledged, and is durable when write returns.
type marks struct{ dir string }

func marksOf(walDir string) marks {
	return marks{dir: filepath.Join(walDir, "walg_data", "walg_archive_status")}
}

// mark is the content of a mark.
type mark struct {
	Version int                   `json:"v"`
	Name    string                `json:"name"`
	File    identity              `json:"file"`
	Reply   messages.ArchiveReply `json:"reply"`
}

const markVersion = 1

func (m marks) path(name string) string { return filepath.Join(m.dir, name) }

// prepare makes the directory.
func (m marks) prepare() error {
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return fmt.Errorf("make the directory of read-ahead marks: %w", err)
	}
	return nil
}

// write makes a mark durable.
func (m marks) write(name string, id identity, reply messages.ArchiveReply) error {
	data, err := json.Marshal(mark{Version: markVersion, Name: name, File: id, Reply: reply})
	if err != nil {
		return fmt.Errorf("mark %s as archived: %w", name, err)
	}
	err = durable.WriteFile(m.path(name), 0o600, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}, durable.Options{})
	if err != nil {
		return fmt.Errorf("mark %s as archived: %w", name, err)
	}
	return nil
}

// read tells whether a mark vouches for the file at path as it is now. A mark
// that does not is as good as none; only the caller's remove deletes it.
func (m marks) read(path string) (messages.ArchiveReply, bool) {
	name := filepath.Base(path)
	data, err := os.ReadFile(m.path(name))
	if err != nil {
		return messages.ArchiveReply{}, false
	}
	if len(data) == 0 {
		return messages.ArchiveReply{Name: name, Final: true}, m.foreign(path, name)
	}
	var got mark
	if err := json.Unmarshal(data, &got); err != nil || got.Version != markVersion || got.Name != name {
		return messages.ArchiveReply{}, false
	}
	now, err := identify(path)
	return got.Reply, err == nil && now == got.File
}

// foreign judges an empty mark.
func (m marks) foreign(path, name string) bool {
	if kind, _ := pg.ClassifyWALFile(name); kind != pg.SegmentFile {
		return false
	}
	when, err := os.Stat(m.path(name))
	if err != nil {
		return false
	}
	file, err := os.Stat(path)
	if err != nil || !file.ModTime().Before(when.ModTime()) {
		return false
	}
	for _, other := range []string{
		path + ".partial", readyPath(filepath.Dir(path), name+".partial"), donePath(filepath.Dir(path), name+".partial"),
	} {
		if _, err := os.Lstat(other); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return true
}

// has reports whether there is a mark, whatever it is worth.
func (m marks) has(name string) bool {
	_, err := os.Lstat(m.path(name))
	return err == nil
}

// remove drops a mark. It need not be durable: a mark that comes back after a
// power cut still tells the truth.
func (m marks) remove(name string) error {
	if err := os.Remove(m.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove read-ahead mark: %w", err)
	}
	return nil
}

// tidy removes the marks of files that PostgreSQL will not ask for any more,
// so that they do not gather: a name can come again with another content.
func (m marks) tidy(walDir string) {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return
	}
	tidy(m.dir, entries)
	for _, e := range entries {
		if kind, _ := pg.ClassifyWALFile(e.Name()); kind != pg.OtherFile && !isReady(walDir, e.Name()) {
			_ = m.remove(e.Name()) // it is worth nothing either way
		}
	}
}

// tidyAge is how old a temporary file of a mark or of the spool must be to be
// taken for a left-over of a crash.
const tidyAge = time.Hour

// tidy removes temporary files that a crash has left in dir.
func tidy(dir string, entries []fs.DirEntry) {
	for _, e := range entries {
		if !durable.IsTemp(e.Name()) {
			continue
		}
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > tidyAge {
			_ = os.Remove(filepath.Join(dir, e.Name())) // it is in nobody's way
		}
	}
}
