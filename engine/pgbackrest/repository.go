package pgbackrest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"time"

	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/restore"
	"github.com/walherd/walherd/engine/seal"
)

// Store is the storage a repository is in. It is safe for concurrent use.
type Store interface {
	// Open reads an object from an offset, length bytes of it or with 0 to
	// its end. An object that does not exist is fs.ErrNotExist. A body that
	// ends early is an error and not io.EOF. ctx covers the body too. The
	// caller closes it.
	Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error)
	// List yields the objects whose names begin with prefix, in the order of
	// their names. What is deeper than the next slash is yielded once, under
	// a name that ends in that slash.
	List(ctx context.Context, prefix string) iter.Seq2[Object, error]
}

// Object is one object of a Store.
type Object struct {
	// Name under the repository's root.
	Name     string
	Modified time.Time
}

// Options tell which repository it is.
type Options struct {
	// Stanza is the name of the cluster in the repository.
	Stanza string
	// Passphrase is repo-cipher-pass; empty for a repository that is not
	// encrypted. No error shows it.
	Passphrase string
	// PassphraseFrom is the setting it comes from, for messages.
	PassphraseFrom string
}

// Repository is one stanza of a repository. It is safe for concurrent use, and
// keeps nothing of what it reads.
type Repository struct {
	store Store
	opt   Options
}

// New makes a Repository. Nothing is read yet.
func New(store Store, opt Options) (*Repository, error) {
	if !stanzaForm.MatchString(opt.Stanza) {
		return nil, fmt.Errorf("%q is no name of a stanza: want letters, digits, _, - and .", opt.Stanza)
	}
	return &Repository{store: store, opt: opt}, nil
}

// Backups reads the list of backups. A stanza without one is fs.ErrNotExist.
func (r *Repository) Backups(ctx context.Context) (info *BackupInfo, err error) {
	err = r.document(ctx, "backup/"+r.opt.Stanza+"/backup.info", r.opt.Passphrase, func(plain io.Reader) (err error) {
		info, err = ParseBackupInfo(plain)
		return err
	})
	return info, err
}

// Archive reads whose WAL is archived. A stanza without any is fs.ErrNotExist.
func (r *Repository) Archive(ctx context.Context) (info *ArchiveInfo, err error) {
	err = r.document(ctx, "archive/"+r.opt.Stanza+"/archive.info", r.opt.Passphrase, func(plain io.Reader) (err error) {
		info, err = ParseArchiveInfo(plain)
		return err
	})
	return info, err
}

// Manifest reads what is in a backup that info lists. ErrUnfinished is what it
// says of one that is in the repository and not in the list.
func (r *Repository) Manifest(ctx context.Context, info *BackupInfo, label Label) (m *Manifest, err error) {
	name := backupFolder(r.opt.Stanza, label) + "backup.manifest"
	if _, ok := info.Find(label); !ok {
		return nil, r.unlisted(ctx, name, label)
	}
	err = r.document(ctx, name, info.passphrase, func(plain io.Reader) (err error) {
		m, err = ParseManifest(plain)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case m.Label != label:
		return nil, fmt.Errorf("read %s: %w", name, corrupt("it is the manifest of %s", m.Label))
	}
	return m, nil
}

// unlisted is why a backup that is not in the list cannot be used.
func (r *Repository) unlisted(ctx context.Context, manifest string, label Label) error {
	for _, name := range []string{manifest, manifest + ".copy"} {
		body, err := r.store.Open(ctx, name, 0, 1)
		if err == nil {
			body.Close()
			return fmt.Errorf("backup %s of stanza %s: %w, or it was removed in part: backup.info does not list it", label, r.opt.Stanza, ErrUnfinished)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("backup %s of stanza %s: %w", label, r.opt.Stanza, fs.ErrNotExist)
}

// document reads a document, or its copy.
func (r *Repository) document(ctx context.Context, name, passphrase string, read func(io.Reader) error) error {
	err := r.one(ctx, name, passphrase, read)
	if err == nil || ctx.Err() != nil || errors.Is(err, ErrUnsupported) {
		return err
	}
	again := r.one(ctx, name+".copy", passphrase, read)
	switch {
	case again == nil:
		return nil
	case errors.Is(again, fs.ErrNotExist):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return again
	case errors.Is(err, ErrPassphrase):
		return err
	}
	return errors.Join(err, again)
}

func (r *Repository) one(ctx context.Context, name, passphrase string, read func(io.Reader) error) error {
	stored, err := r.store.Open(ctx, name, 0, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	defer stored.Close()
	plain, err := r.opened(stored, passphrase)
	if err == nil {
		err = read(plain)
	}
	if errors.Is(err, seal.ErrCorrupt) {
		err = corrupt("%w", err)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

// opened decrypts a document, and sees that it begins like one: what a wrong
// passphrase gives does not.
func (r *Repository) opened(stored io.Reader, passphrase string) (io.Reader, error) {
	const begin = "[" + headSection + "]\n"
	head := bufio.NewReader(stored)
	first, err := head.Peek(seal.SaltedCBCHead)
	sealed := seal.IsSaltedCBC(first)
	switch {
	case err != nil && err != io.EOF:
		return nil, err
	case sealed && passphrase == "":
		return nil, fmt.Errorf("the repository is encrypted: %w: it is missing%s", ErrPassphrase, r.hint("set %s to its repo-cipher-pass"))
	case !sealed && passphrase == "":
		return head, nil
	case !sealed && bytes.HasPrefix([]byte(begin), first):
		return nil, fmt.Errorf("the repository is not encrypted: %w%s", ErrPassphrase, r.hint("remove %s"))
	}
	plain := bufio.NewReader(seal.OpenSaltedCBC(head, passphrase))
	got, err := plain.Peek(len(begin))
	switch {
	case err != nil && !errors.Is(err, seal.ErrCorrupt) && err != io.EOF:
		return nil, err
	case !bytes.HasPrefix([]byte(begin), got) || len(got) == 0:
		return nil, fmt.Errorf("%w: it is wrong, or the file is damaged%s", ErrPassphrase, r.hint("check %s"))
	}
	return plain, nil
}

func (r *Repository) hint(format string) string {
	if r.opt.PassphraseFrom == "" {
		return ""
	}
	return " (" + fmt.Sprintf(format, r.opt.PassphraseFrom) + ")"
}

// Restore does what a plan of a manifest of this repository says. It fails as
// restore.RunFiles does: what is there after a failure is marked incomplete.
func (r *Repository) Restore(ctx context.Context, p *Plan, cfg restore.Config) (restore.Result, error) {
	res, err := restore.RunFiles(ctx, p.FilesPlan, filesSource{r, p, new(compress.Readers)}, cfg)
	res.Notes = append(res.Notes, p.Notes...)
	return res, err
}
