package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/errgroup"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/telemetry"
)

// File is a file of a backup that is kept file by file.
type File struct {
	// Path below the data directory, clean and slash-separated; a file of a
	// tablespace is pg_tblspc/16397/...
	Path string
	Mode fs.FileMode
	// Size in bytes.
	Size     int64
	Modified time.Time
}

// Directory is a directory of such a backup; "." is the data directory.
type Directory struct {
	Path string
	Mode fs.FileMode
}

// Batch is what is read in one go: one file, or several that are stored one
// behind the other.
type Batch struct {
	// Object is the stored object, for messages.
	Object string
	// Stored is how many bytes are read of it.
	Stored int64
	Files  []File
}

// FilesSource yields the content of batches. It is safe for concurrent use.
type FilesSource interface {
	// Open begins to read the batch with that index. It is called again for
	// another attempt.
	Open(ctx context.Context, batch int) (Contents, error)
}

// Contents are the files of one batch, in the batch's order.
type Contents interface {
	// Next is the next file's content. The reader ends with io.EOF only
	// after the content was found to be what was backed up, and is read to
	// its end before Next is called again.
	Next() (io.Reader, error)
	// Close frees what is held. Stored bytes that are not read are no error.
	Close() error
}

// FilesRequest is what a user wants restored of a backup kept file by file.
type FilesRequest struct {
	// Backup is the backup's name, for messages.
	Backup string
	// Destination is the data directory to make: an absolute path.
	Destination string
	// Original tells where data directory and tablespaces were, Spec moves
	// the tablespaces as NewPlan says; either may be nil.
	Original, Spec *manifest.TablespaceSpec
	// Directories are made whether they hold files or not.
	Directories []Directory
	Batches     []Batch
	// Offline: the server was down when the backup was taken, which has no
	// backup_label then.
	Offline bool
	// Concurrency is how many batches are restored at once; 0 is
	// DefaultConcurrency.
	Concurrency int
}

// FilesPlan is what RunFiles will do. It is not changed by it.
type FilesPlan struct {
	request FilesRequest
	base    *Plan
	// order are the batches in the order of their restore: the largest
	// first, so that the last to end is a small one.
	order []int
}

// NewFilesPlan plans the restore of a backup that is kept file by file. It
// refuses paths that leave the data directory, or that occur twice
// (ErrArchive), and a list that cannot be a whole backup (ErrIncomplete). The
// tablespaces go where NewPlan puts them; the backup's tablespace_map is left
// out, as the links are made.
func NewFilesPlan(r FilesRequest) (*FilesPlan, error) {
	p := &FilesPlan{request: r, base: &Plan{
		Backup: pg.BackupName(r.Backup), Destination: r.Destination, Concurrency: concurrency(len(r.Batches), r.Concurrency),
	}}
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("plan restore of %s: %w", r.Backup, err)
	}
	if err := p.base.placeTablespaces(r.Original, r.Spec); err != nil {
		return nil, fmt.Errorf("plan restore of %s: %w", r.Backup, err)
	}
	p.order = make([]int, len(r.Batches))
	for i := range p.order {
		p.order[i] = i
	}
	slices.SortStableFunc(p.order, func(a, b int) int { return cmp.Compare(r.Batches[b].Stored, r.Batches[a].Stored) })
	return p, nil
}

// check looks at every path.
func (p *FilesPlan) check() error {
	var names []string
	for _, d := range p.request.Directories {
		if !fs.ValidPath(d.Path) {
			return archiveError("directory %q is no clean path below the data directory", d.Path)
		}
	}
	for _, b := range p.request.Batches {
		for _, f := range b.Files {
			switch {
			case !fs.ValidPath(f.Path) || f.Path == ".":
				return archiveError("file %q is no clean path below the data directory", f.Path)
			case f.Size < 0:
				return archiveError("file %q has a negative size", f.Path)
			case f.Path == controlPath && f.Size > maxControlSize:
				return archiveError("file %q: %d bytes are no control file", f.Path, f.Size)
			}
			names = append(names, f.Path)
		}
	}
	slices.Sort(names)
	for i := range names[min(1, len(names)):] {
		if names[i] == names[i+1] {
			return archiveError("file %q is listed twice", names[i])
		}
	}
	needed := []string{controlPath, labelPath}
	if p.request.Offline {
		needed = needed[:1]
	}
	for _, name := range needed {
		if _, ok := slices.BinarySearch(names, name); !ok {
			return fmt.Errorf("%w: it lists no %s", ErrIncomplete, name)
		}
	}
	return nil
}

// Tablespaces are where the tablespaces go.
func (p *FilesPlan) Tablespaces() []Placement { return p.base.Tablespaces }

// StoredBytes is how many bytes are read in all.
func (p *FilesPlan) StoredBytes() (n int64) {
	for _, b := range p.request.Batches {
		n += b.Stored
	}
	return n
}

// RunFiles restores a plan from src, as Run does for tars: with the same
// marker, the same confinement, the same last step, and with the
// configuration's Decompress left to the source. An interrupted one is begun
// anew, in an empty destination. Modes and times of the files
// are restored, owners are not.
func RunFiles(ctx context.Context, p *FilesPlan, src FilesSource, cfg Config) (Result, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Backoff == nil {
		cfg.Backoff = defaultBackoff
	}
	if cfg.Attempts <= 0 {
		cfg.Attempts = DefaultAttempts
	}
	const anew = "make space, empty the directory and restore again"
	t, err := openTarget(p.base, !cfg.DisableFsync, false, "")
	if err != nil {
		return Result{}, fmt.Errorf("restore %s: %w", p.base.Backup, wayOut(err, anew))
	}
	r := &filesRestorer{plan: p, src: src, restorer: &restorer{plan: p.base, cfg: cfg, target: t}}
	if err := r.run(ctx); err != nil {
		err = errors.Join(wayOut(err, anew), t.explain(err), t.close())
		return r.result(), fmt.Errorf("restore %s to %s: %w", p.base.Backup, p.base.Destination, err)
	}
	if err := t.close(); err != nil {
		return r.result(), fmt.Errorf("restore %s to %s: %w", p.base.Backup, p.base.Destination, err)
	}
	return r.result(), nil
}

// filesRestorer is a restorer fed with files instead of tars.
type filesRestorer struct {
	*restorer
	plan *FilesPlan
	src  FilesSource
	// controlTime is global/pg_control's.
	controlTime time.Time
}

func (r *filesRestorer) run(ctx context.Context) error {
	// Parents first, so that none is made with another's mode.
	dirs := slices.Clone(r.plan.request.Directories)
	slices.SortFunc(dirs, func(a, b Directory) int { return strings.Compare(a.Path, b.Path) })
	for _, d := range dirs {
		if err := r.target.directory(d.Path, d.Mode); err != nil {
			return fmt.Errorf("make directory %s: %w", d.Path, err)
		}
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(max(1, r.plan.base.Concurrency))
	for _, i := range r.plan.order {
		if groupCtx.Err() != nil {
			break
		}
		group.Go(func() error { return r.batch(groupCtx, i) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := r.target.root.MkdirAll(walDir, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", walDir, err)
	}
	if err := r.target.sync(); err != nil {
		return fmt.Errorf("sync restored files: %w", err)
	}
	// As in run: the file that PostgreSQL starts from comes after all it
	// vouches for.
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := r.writeControl(); err != nil {
		return fmt.Errorf("write %s: %w", controlPath, err)
	}
	if err := r.target.root.Chtimes(controlPath, r.controlTime, r.controlTime); err != nil {
		return fmt.Errorf("set time of %s: %w", controlPath, err)
	}
	if err := r.target.removeMarker(); err != nil {
		return fmt.Errorf("remove %s: %w; the restore is complete otherwise", MarkerName, err)
	}
	return nil
}

// batch restores one batch, in several attempts if need be.
func (r *filesRestorer) batch(ctx context.Context, i int) error {
	b := r.plan.request.Batches[i]
	log := r.cfg.Log.With(telemetry.KeyBackup, r.plan.base.Backup, telemetry.KeyObject, b.Object)
	a := &fileAttempt{attempt: &attempt{restorer: r.restorer, object: Object{Name: b.Object, Size: b.Stored}}}
	try := func() (struct{}, error) {
		a.number++
		err := r.try(ctx, i, a)
		if err != nil && !r.retryable(err) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}
	_, err := backoff.Retry(ctx, try,
		backoff.WithBackOff(r.cfg.Backoff()),
		backoff.WithMaxTries(uint(r.cfg.Attempts)),
		backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(err error, pause time.Duration) {
			log.Warn("restore of an object failed, trying again", telemetry.KeyAttempt, a.number, "pause", pause, telemetry.KeyError, err)
		}))
	switch cause := context.Cause(ctx); {
	case err != nil && cause != nil:
		return cause
	case err != nil:
		if p := (*backoff.PermanentError)(nil); errors.As(err, &p) {
			err = p.Unwrap()
		}
		return &ObjectError{Backup: r.plan.base.Backup, Object: b.Object, Attempts: a.number, Err: err}
	}
	a.done()
	log.Debug("object restored", telemetry.KeyBytes, a.now.bytes)
	return nil
}

// fileAttempt is the reading of one batch, begun again by each run.
type fileAttempt struct {
	*attempt
	// written are the files of the batch that runs so far have created.
	written int
}

func (r *filesRestorer) try(ctx context.Context, i int, a *fileAttempt) (err error) {
	a.begin()
	b := r.plan.request.Batches[i]
	contents, err := r.src.Open(ctx, i)
	if err != nil {
		return fmt.Errorf("open object: %w", err)
	}
	defer func() { err = errors.Join(err, contents.Close()) }()
	buf := make([]byte, min(bufferSize, max(512, largest(b.Files))))
	for n, f := range b.Files {
		content, err := contents.Next()
		if err == nil {
			err = r.file(ctx, f, content, buf, a, n)
		}
		if err != nil {
			return fmt.Errorf("file %s: %w", f.Path, err)
		}
	}
	a.read(int(b.Stored))
	return nil
}

func largest(files []File) (n int64) {
	for _, f := range files {
		n = max(n, f.Size)
	}
	return n
}

// file writes the n-th file of a batch.
func (r *filesRestorer) file(ctx context.Context, f File, content io.Reader, buf []byte, a *fileAttempt, n int) error {
	switch f.Path {
	case controlPath:
		return r.keep(f, content)
	case tablespaceMapPath, MarkerName:
		// The links are made, and a backup of an unfinished restore is not
		// made unfinished by it; what is read is still checked.
		_, err := io.Copy(io.Discard, io.LimitReader(content, f.Size+1))
		return readError(err)
	}
	replace := n < a.written
	out, err := r.target.create(f.Path, f.Mode, replace)
	if errors.Is(err, fs.ErrExist) {
		return final(archiveError("its name is taken by another entry: %w", err))
	}
	if err != nil {
		return err
	}
	a.written = max(a.written, n+1)
	if err := errors.Join(copyFile(ctx, out, content, f.Size, buf, a), final(out.Close())); err != nil {
		return err
	}
	root, rel, err := r.target.locate(f.Path)
	if err != nil {
		return err
	}
	a.now.files++
	return final(root.Chtimes(rel, f.Modified, f.Modified))
}

// copyFile writes size bytes and sees that the content ends there.
func copyFile(ctx context.Context, out *os.File, content io.Reader, size int64, buf []byte, a *fileAttempt) error {
	for left := size; ; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := content.Read(buf)
		if int64(n) > left {
			return fmt.Errorf("the content is longer than the %d bytes that the backup lists", size)
		}
		left -= int64(n)
		if _, err := out.Write(buf[:n]); err != nil {
			return final(err)
		}
		a.wrote(int64(n))
		switch {
		case err == io.EOF && left == 0:
			return nil
		case err != nil:
			return short(left, err)
		}
	}
}

func (r *filesRestorer) keep(f File, content io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(content, f.Size+1))
	switch {
	case err != nil:
		return readError(err)
	case int64(len(b)) != f.Size:
		return fmt.Errorf("%d bytes are stored, and the backup lists %d", len(b), f.Size)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.control, r.controlTime = &controlFile{mode: f.Mode, content: b}, f.Modified
	return nil
}
