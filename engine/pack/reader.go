package pack

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// Why a tar is refused, for errors.Is. Every such error names the entry, if
// there is one.
var (
	// ErrName: the entry's name leads out of the target, or is no name.
	ErrName = errors.New("unsafe name in tar")
	// ErrType: a link, or a file in an encoding that PostgreSQL backups
	// never have.
	ErrType = errors.New("unsupported entry in tar")
	// ErrTooBig: a bound of ReaderOptions is exceeded.
	ErrTooBig = errors.New("tar holds more than allowed")
	// ErrTruncated: the tar ends before its end marker.
	ErrTruncated = errors.New("tar is cut short")
	// ErrTrailing: something other than zeros follows the end marker.
	ErrTrailing = errors.New("data after the end of the tar")
	// ErrFormat: not a tar at all, or a damaged one.
	ErrFormat = errors.New("invalid tar")
)

// maxName is PATH_MAX of Linux: nothing longer can be made anyhow.
const maxName = 4096

// Foreign is an entry that is neither a file nor a directory.
type Foreign struct {
	// Name as in Header.
	Name string
	// Type is the tar type flag: '2' is a symbolic link.
	Type byte
	// Target of a link, as it stands in the tar. Nothing checked it.
	Target string
}

// ReaderOptions bounds a Reader. The zero value bounds names only.
type ReaderOptions struct {
	// MaxEntry is the largest entry that is accepted, MaxTotal the largest
	// sum of entries, both in bytes. 0 is no bound.
	MaxEntry, MaxTotal int64
	// Foreign is asked about each entry that is neither a file nor a
	// directory; nil skips the entry, an error ends the reading. Without it
	// links are refused and all else is skipped.
	Foreign func(Foreign) error
}

// Header describes an entry of a tar.
type Header struct {
	// Name is cleaned: relative, slashes, no "." or ".." elements; "." is
	// the data directory itself.
	Name string
	// Raw is the name as it is spelled in the tar: the key of the backup's
	// file list.
	Raw string
	// Mode holds the permission bits, and fs.ModeDir for a directory.
	Mode fs.FileMode
	// Size in bytes; 0 for a directory.
	Size int64
}

// IsDir reports whether the entry is a directory; else it is a regular file.
func (h Header) IsDir() bool { return h.Mode&fs.ModeDir != 0 }

// Reader reads a tar that may be damaged or hostile. Names are safe to join to
// a directory, but a path may still cross a symbolic link that is there
// already: write through os.Root.
type Reader struct {
	opt   ReaderOptions
	in    *source
	tar   *tar.Reader
	name  string // of the current entry
	total int64  // of the entries' sizes
	end   int64  // where the current entry's content and padding end
	local bool   // a name began with a slash
	err   error
}

// NewReader reads the tar in r, which is read to its end.
func NewReader(r io.Reader, opt ReaderOptions) *Reader {
	in := &source{r: r}
	return &Reader{opt: opt, in: in, tar: tar.NewReader(in)}
}

// Next advances to the next file or directory, skipping what is left of the
// current one. io.EOF tells that the tar was whole: it had its end marker, and
// nothing but zeros behind it. After an error it stays at that error.
func (r *Reader) Next() (Header, error) {
	for r.err == nil {
		hdr, err := r.tar.Next()
		if errors.Is(err, tar.ErrInsecurePath) {
			// GODEBUG=tarinsecurepath=0 is set: our own names begin with a
			// slash, and all names are judged below.
			err = nil
		}
		switch {
		case err == io.EOF:
			r.err = r.finish()
		case err != nil:
			r.err = r.wrap(err)
		default:
			r.end = padded(r.in.total)
			if hasContent(hdr.Typeflag) {
				r.end += padded(hdr.Size)
			}
			r.local = r.local || strings.HasPrefix(hdr.Name, "/")
			var h Header
			var ok bool
			if h, ok, r.err = r.accept(hdr); ok {
				r.name = h.Raw
				return h, nil
			}
		}
	}
	return Header{}, r.err
}

// Read reads the current entry's content.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.tar.Read(p)
	if err != nil && err != io.EOF {
		r.err = r.wrap(err)
		return n, r.err
	}
	return n, err
}

// wrap sorts an error of archive/tar or of the source into ours. An error of
// the source is kept for errors.Is.
func (r *Reader) wrap(err error) error {
	at := ""
	if r.name != "" {
		at = fmt.Sprintf(" at or after %q", r.name)
	}
	switch {
	case r.in.err != nil && !errors.Is(r.in.err, io.ErrUnexpectedEOF):
		return fmt.Errorf("read tar%s: %w", at, r.in.err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("read tar%s: %w: %w", at, ErrTruncated, err)
	}
	return fmt.Errorf("read tar%s: %w: %w", at, ErrFormat, err)
}

// accept judges a header; false for an entry to skip.
func (r *Reader) accept(hdr *tar.Header) (Header, bool, error) {
	refuse := func(err error) (Header, bool, error) {
		return Header{}, false, fmt.Errorf("read tar: entry %.300q: %w", hdr.Name, err)
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return Header{}, false, nil
	}
	name, err := cleanName(hdr.Name)
	if err != nil {
		return refuse(err)
	}
	h := Header{Name: name, Raw: hdr.Name, Mode: fs.FileMode(hdr.Mode) & fs.ModePerm}
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			// A few bytes may stand for petabytes.
			return refuse(fmt.Errorf("%w: a sparse file", ErrType))
		}
	}
	switch hdr.Typeflag {
	case tar.TypeReg:
		if strings.HasSuffix(hdr.Name, "/") || name == "." {
			return refuse(fmt.Errorf("%w: a file named like a directory", ErrName))
		}
		h.Size = hdr.Size
	case tar.TypeDir:
		h.Mode |= fs.ModeDir
		return h, true, nil
	case tar.TypeGNUSparse, tar.TypeCont:
		// These hold a file's content: skipping one would lose data.
		return refuse(fmt.Errorf("%w: type %q", ErrType, hdr.Typeflag))
	default:
		if err := r.foreign(Foreign{Name: name, Type: hdr.Typeflag, Target: hdr.Linkname}); err != nil {
			return refuse(err)
		}
		return Header{}, false, nil
	}
	if r.opt.MaxEntry > 0 && h.Size > r.opt.MaxEntry {
		return refuse(fmt.Errorf("%w: %d bytes, at most %d", ErrTooBig, h.Size, r.opt.MaxEntry))
	}
	if r.opt.MaxTotal > 0 && h.Size > r.opt.MaxTotal-r.total {
		return refuse(fmt.Errorf("%w: %d bytes after %d, at most %d in all", ErrTooBig, h.Size, r.total, r.opt.MaxTotal))
	}
	r.total += h.Size
	return h, true, nil
}

func (r *Reader) foreign(f Foreign) error {
	if r.opt.Foreign != nil {
		return r.opt.Foreign(f)
	}
	if f.Type == tar.TypeLink || f.Type == tar.TypeSymlink {
		return fmt.Errorf("%w: a link to %.300q", ErrType, f.Target)
	}
	return nil
}

// cleanName takes the spellings of WAL-G ("/base/1/1259") and of BASE_BACKUP
// ("base/", "./pg_wal/archive_status/"), and none that leads elsewhere.
func cleanName(raw string) (string, error) {
	switch {
	case raw == "":
		return "", fmt.Errorf("%w: empty", ErrName)
	case len(raw) > maxName:
		return "", fmt.Errorf("%w: %d bytes long", ErrName, len(raw))
	case strings.IndexByte(raw, 0) >= 0:
		return "", fmt.Errorf("%w: a NUL in it", ErrName)
	case strings.HasPrefix(raw, "//"):
		return "", fmt.Errorf("%w: absolute", ErrName)
	}
	for element := range strings.SplitSeq(raw, "/") {
		if element == ".." {
			return "", fmt.Errorf("%w: leads to a parent directory", ErrName)
		}
	}
	return path.Clean(strings.TrimPrefix(raw, "/")), nil
}

// hasContent tells which types' sizes count.
func hasContent(flag byte) bool { return flag < tar.TypeLink || flag > tar.TypeFifo }

// finish decides whether the tar was whole. archive/tar takes a missing end
// marker for an end, so a tar cut at an entry's border looks whole to it. What
// tells is two zero blocks, read behind the last entry: a file may end in
// zeros too, and PAX records may be two blocks behind an entry.
//
// A server's BASE_BACKUP of a tablespace has no end marker, and WAL-G stores it
// as it comes. Its names have no slash in front, unlike all those of a local
// backup; there, a cut at an entry's border is left to the compression and the
// seal to find.
func (r *Reader) finish() error {
	if r.in.total == r.end && r.end > 0 && !r.local {
		return io.EOF
	}
	if r.in.total != r.end+trailerSize || r.in.last != [trailerSize]byte{} {
		return r.wrap(io.ErrUnexpectedEOF)
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := r.in.Read(buf)
		if len(bytes.TrimLeft(buf[:n], "\x00")) > 0 {
			return fmt.Errorf("read tar after %q: %w", r.name, ErrTrailing)
		}
		if err == io.EOF {
			return io.EOF
		}
		if err != nil {
			return fmt.Errorf("read tar after its end: %w", err)
		}
	}
}

// source counts what was read, and remembers the last bytes and the error.
type source struct {
	r     io.Reader
	err   error // but io.EOF
	total int64
	last  [trailerSize]byte
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.total += int64(n)
	if tail := p[:n]; n >= len(s.last) {
		copy(s.last[:], tail[n-len(s.last):])
	} else if n > 0 {
		copy(s.last[:], s.last[n:])
		copy(s.last[len(s.last)-n:], tail)
	}
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}
