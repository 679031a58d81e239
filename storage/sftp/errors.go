package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/pkg/sftp"

	"github.com/walherd/walherd/storage"
)

// Codes of SFTP version 3 (draft-ietf-secsh-filexfer-02, section 7). Code 4
// is OpenSSH's for everything that has none: a full disk, an existing file.
const (
	codeFailure     = 4
	codeBadMessage  = 5
	codeUnsupported = 8
)

func hasCode(err error, code uint32) bool {
	var status *sftp.StatusError
	return errors.As(err, &status) && status.Code == code
}

// permanent is an error that tells a person what to do.
type permanent struct {
	cause error
	way   string
}

func (p *permanent) Error() string {
	return fmt.Sprintf("%v: %s: %v", p.cause, p.way, storage.ErrPermanent)
}

func (p *permanent) Unwrap() []error { return []error{p.cause, storage.ErrPermanent} }

// explain turns an error into one that says what was done to which object,
// whether another try can help, and what a person can do.
func (b *Bucket) explain(ctx context.Context, verb, name string, err error) error {
	at := verb + " " + b.place.url(name)
	if ctxErr := ctx.Err(); ctxErr != nil {
		return fmt.Errorf("%s: %w", at, ctxErr)
	}
	if errors.As(err, new(*contentError)) {
		return fmt.Errorf("%s: %w", at, err)
	}
	for _, known := range []error{storage.ErrPermanent, storage.ErrNotExist, storage.ErrExist, storage.ErrRange} {
		if errors.Is(err, known) {
			return fmt.Errorf("%s: %w", at, err)
		}
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s: %w", at, storage.ErrNotExist)
	case errors.Is(err, os.ErrPermission):
		err = &permanent{err, fmt.Sprintf("give user %q of the server access to the directory (a server that is set to read only says this too)", b.opt.User)}
	case hasCode(err, codeBadMessage):
		err = &permanent{err, "the server does not take such a name or request"}
	case hasCode(err, codeUnsupported):
		err = &permanent{err, "the server does not know the request: use another SFTP server, such as OpenSSH's"}
	case broken(err):
		return fmt.Errorf("%s: the connection to %s broke: %w", at, b.place.addr, opaque(err))
	}
	return fmt.Errorf("%s: %w", at, err)
}

// opaque hides what must not be found in a broken connection's error: an end
// of file or of a context, which would be taken for that of the caller's.
func opaque(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return errors.New(err.Error())
	}
	return err
}

// absent looks at an error about a missing file, or one that may be: OpenSSH
// says so when a parent is a file, others fail without a reason. It is
// storage.ErrNotExist, a permanent error when the root is missing, or err.
func (b *Bucket) absent(l *link, name string, err error) error {
	missing := errors.Is(err, os.ErrNotExist)
	for dir := path.Dir(path.Clean(name)); !missing && hasCode(err, codeFailure) && dir != "."; dir = path.Dir(dir) {
		st, statErr := l.files.Stat(b.place.at(dir))
		missing = errors.Is(statErr, os.ErrNotExist) || statErr == nil && !st.IsDir()
	}
	if !missing {
		return err
	}
	if rootErr := b.checkRoot(l); rootErr != nil {
		return rootErr
	}
	return storage.ErrNotExist
}

// checkRoot tells a lost disk from a missing object.
func (b *Bucket) checkRoot(l *link) error {
	st, err := l.files.Stat(b.place.dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("directory %s does not exist on %s: create it (or mount its disk), or correct WALG_SSH_PREFIX: %w",
			b.place.dir, b.place.addr, storage.ErrPermanent)
	case err == nil && !st.IsDir():
		return fmt.Errorf("%s on %s is no directory: correct WALG_SSH_PREFIX: %w", b.place.dir, b.place.addr, storage.ErrPermanent)
	}
	return err
}

// Full is below this much: servers do not tell how much a write wanted.
const fullBelow = 1 << 20

// diagnose finds out why a change of an object failed for no given reason. It
// is err when nothing is found.
func (b *Bucket) diagnose(l *link, name string, err error) error {
	if !hasCode(err, codeFailure) || errors.As(err, new(*contentError)) {
		return err
	}
	if st, statErr := l.files.Stat(b.place.at(name)); statErr == nil && st.IsDir() {
		return &permanent{err, "a directory and an object have the same name; move one of them away"}
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if st, statErr := l.files.Stat(b.place.at(dir)); statErr == nil && !st.IsDir() {
			return &permanent{err, fmt.Sprintf("%s is an object, not a directory; move it away", b.place.at(dir))}
		}
	}
	if _, ok := l.files.HasExtension("statvfs@openssh.com"); !ok {
		return err
	}
	vfs, vfsErr := l.files.StatVFS(b.place.dir)
	if vfsErr != nil {
		return err
	}
	if way := shortage(vfs); way != "" {
		return &permanent{err, way}
	}
	return err
}

// shortage is what a person can do about the server's file system, empty when
// nothing is wrong.
func shortage(vfs *sftp.StatVFS) string {
	const readOnly = 1 // SSH2_FXE_STATVFS_ST_RDONLY
	switch {
	case vfs.Flag&readOnly != 0:
		return "the server's file system is read-only; look for a disk error in its system log and mount it writable"
	case vfs.Frsize*vfs.Bavail < fullBelow:
		return "free space on the server's file system, or delete old backups"
	case vfs.Files > 0 && vfs.Favail == 0:
		return "the server's file system has no inode left; delete old backups"
	}
	return ""
}
