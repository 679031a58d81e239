package restore

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/errgroup"

	"github.com/walherd/walherd/engine/pack"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/telemetry"
)

// DefaultAttempts is how often an object is tried unless a Config says
// otherwise.
const DefaultAttempts = 15

const (
	// bufferSize is the size of each of the two buffers a part in progress
	// uses, in bytes.
	bufferSize = 512 << 10
	// maxControlSize bounds what is kept of pg_control, in bytes;
	// PostgreSQL's is 8192.
	maxControlSize = 64 << 10
	// maxNotes bounds the notes about odd entries.
	maxNotes = 20

	controlPath       = "global/pg_control"
	labelPath         = "backup_label"
	tablespaceMapPath = "tablespace_map"
	walDir            = "pg_wal"
)

// Config is how Run works. Decompress is required, all else may be zero.
type Config struct {
	// Decompress undoes the compression of the object of that name; it
	// chooses by the name's extension. Closing its reader frees what it
	// holds and leaves stored open. A name it does not know is an error.
	Decompress func(object string, stored io.Reader) (io.ReadCloser, error)
	// Attempts bounds how often an object is tried; 0 is DefaultAttempts.
	Attempts int
	// Backoff makes the pauses between the attempts at one object; nil is
	// exponential, from a second to a minute.
	Backoff func() backoff.BackOff
	// Retryable reports whether a failure to read is worth another attempt;
	// nil holds that each is. Failures to write never are.
	Retryable func(error) bool
	// Progress is told what was restored. Calls do not overlap; they hold
	// up the restore while they last.
	Progress func(Progress)
	// Log receives each failed attempt (warning) and each restored object
	// (debug); nil is no log.
	Log *slog.Logger
	// Session identifies the machine's present run: what an interrupted
	// restore says to have written is believed in the same run only, for
	// after a power cut it need not be on the disk. Empty asks the kernel; a
	// system that does not tell resumes by restoring every part again.
	Session string
	// DisableFsync leaves it to the operating system when the files reach
	// the disk: a crash soon after Run may leave a broken directory.
	DisableFsync bool
}

// Progress is the state of a restore after some bytes.
type Progress struct {
	// Object is the part of Backup that went on; ObjectBytes of file content are
	// restored from it. They start at 0 again with another attempt.
	Backup      pg.BackupName
	Object      string
	ObjectBytes int64
	// Done is set once, when the object is complete.
	Done bool
	// Bytes of file content restored from all objects. How many there will
	// be is not known.
	Bytes int64
	// StoredBytes read, to compare with Plan.StoredBytes.
	StoredBytes int64
}

// Result is what a restore did.
type Result struct {
	// Files and Bytes written, the content of directories not counted.
	Files, Bytes int64
	// Resumed is how many parts were there from an interrupted restore.
	Resumed int
	// Notes tell the user what is not as it was in the backed up directory,
	// the plan's notes first.
	Notes []string
}

// Run restores the plan of a full backup from src. RunChain tells the rest.
func Run(ctx context.Context, p *Plan, src Source, cfg Config) (Result, error) {
	return RunChain(ctx, p, []Source{src}, cfg)
}

// RunChain restores a plan from the backups' sources, those of p.Bases first and
// the target's last. It returns when every goroutine it started
// has ended. On an error the destination stays as it is, marked, without
// global/pg_control (unless all that failed was to remove the marker); an
// ObjectError in the error names the object that failed.
//
// A file may occur once among the data parts, which are restored in any order;
// twice is ErrArchive. Only the label objects, which come later, replace: a
// data directory may hold a stale backup_label of its own. Of several
// global/pg_control the last object's counts, so that of pg_control.tar.
// Directories may be repeated.
//
// Of a chain, one backup after the other is restored, each with its parts at
// once, and the label and the control file come from the target alone. A file
// of a chain that its backup lists and does not have is ErrIncomplete. An
// increment is put on the file as the older backups have it, or, in reverse
// order, older backups give the pages which the newer did not; which pages those
// are is kept in a file without a name in the destination, a bit for a page.
//
// A destination that an interrupted or failed restore of the same plan has left
// is gone on with: the marker says which parts were done, and those are not read
// again. The result is that of a restore without interruption. The recovery
// settings may differ, but not be left out once they are written. What another
// plan has left is ErrUnfinished.
//
// Owners, times and links of the archive are not restored. Links are noted:
// WAL-G does not store where they point to.
func RunChain(ctx context.Context, p *Plan, sources []Source, cfg Config) (Result, error) {
	if len(sources) != len(p.Bases)+1 {
		return Result{}, fmt.Errorf("restore %s: %d sources for %d backups", p.Backup, len(sources), len(p.Bases)+1)
	}
	if cfg.Decompress == nil {
		return Result{}, fmt.Errorf("restore %s: no Decompress in the configuration", p.Backup)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Backoff == nil {
		cfg.Backoff = defaultBackoff
	}
	cfg.Attempts = cmp.Or(max(cfg.Attempts, 0), DefaultAttempts)

	const goesOn = "make space, and the same restore goes on where this one stopped"
	t, err := openTarget(p, !cfg.DisableFsync, true, cmp.Or(cfg.Session, session()))
	if err != nil {
		return Result{}, fmt.Errorf("restore %s: %w", p.Backup, wayOut(err, goesOn))
	}
	r := &restorer{plan: p, sources: sources, cfg: cfg, target: t}
	err = r.run(ctx)
	if err = errors.Join(err, r.layers.close()); err != nil {
		err = errors.Join(wayOut(err, goesOn), t.explain(err), t.close())
		return r.result(), fmt.Errorf("restore %s to %s: %w", p.Backup, p.Destination, err)
	}
	if err := t.close(); err != nil {
		return r.result(), fmt.Errorf("restore %s to %s: %w", p.Backup, p.Destination, err)
	}
	return r.result(), nil
}

func defaultBackoff() backoff.BackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = time.Second
	b.MaxInterval = time.Minute
	return b
}

type restorer struct {
	plan    *Plan
	sources []Source
	cfg     Config
	target  *target
	layers  *layers // nil for a full backup

	buffers sync.Pool // *buffers
	files   atomic.Int64
	resumed int
	label   atomic.Bool
	vital   atomic.Bool // see tally.vital

	mu       sync.Mutex
	progress Progress
	notes    []string
	odd      int
	control  *controlFile
	// met are the files that this run has written where an interrupted one
	// may have, by a hash of their names.
	met    map[uint64]struct{}
	metKey maphash.Seed
}

// buffers are what one part in progress uses.
type buffers struct {
	in  *bufio.Reader
	out []byte
}

// controlFile is global/pg_control, kept until everything else is on disk.
type controlFile struct {
	mode    fs.FileMode
	content []byte
}

// phase tells the objects apart by what their entries may do.
type phase int

const (
	dataPhase phase = iota
	labelPhase
	controlPhase
)

func (r *restorer) run(ctx context.Context) error {
	if err := r.allData(ctx); err != nil {
		return err
	}
	if err := r.target.dropScratch(); err != nil {
		return err
	}
	for _, group := range []struct {
		phase   phase
		objects []Object
	}{{labelPhase, r.plan.Label}, {controlPhase, r.plan.Control}} {
		for _, o := range group.objects {
			if err := r.object(ctx, o, len(r.plan.Bases), group.phase); err != nil {
				return err
			}
		}
	}
	if err := r.check(); err != nil {
		return err
	}
	// WAL-G stores nothing for a pg_wal that is a link, and PostgreSQL does
	// not make the directory.
	if err := r.target.root.MkdirAll(walDir, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", walDir, err)
	}
	if err := r.target.writeRecovery(); err != nil {
		return fmt.Errorf("write recovery settings: %w", err)
	}
	if err := r.target.sync(); err != nil {
		return fmt.Errorf("sync restored files: %w", err)
	}
	// Last, and after the sync: PostgreSQL starts from a directory that has
	// this file, so it must not reach the disk before what it vouches for.
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := r.writeControl(); err != nil {
		return fmt.Errorf("write %s: %w", controlPath, err)
	}
	if err := r.target.removeMarker(); err != nil {
		return fmt.Errorf("remove %s: %w; the restore is complete otherwise", MarkerName, err)
	}
	return nil
}

// allData restores the data parts of all backups.
func (r *restorer) allData(ctx context.Context) (err error) {
	if r.plan.chain == nil {
		return r.data(ctx, 0, r.plan.Data)
	}
	if r.layers, err = newLayers(r.plan.chain, r.target); err != nil {
		return err
	}
	for _, step := range r.layers.order() {
		if r.target.past.ended(step) {
			if err := r.recall(step); err != nil {
				return err
			}
			r.layers.end()
			for _, o := range r.dataOf(step) {
				if r.target.past.has(step, o) {
					r.skip(o)
				}
			}
			continue
		}
		if err := r.oneStep(ctx, step); err != nil {
			return err
		}
	}
	return nil
}

// oneStep restores what is needed of one backup of a chain.
func (r *restorer) oneStep(ctx context.Context, step int) error {
	l := r.layers
	if step < len(r.plan.Bases) && !l.wantsAny(step) {
		return r.target.journal.end(step, r.vital.Load())
	}
	l.begin()
	needed, redundant := l.split(step, r.dataOf(step))
	if err := r.recall(step); err != nil {
		return err
	}
	if err := r.data(ctx, step, needed); err != nil {
		return err
	}
	err := l.missing(step)
	if err != nil && len(redundant) > 0 {
		// The lists were wrong: look where nothing should be.
		r.cfg.Log.Warn("tars that list nothing needed are read after all", telemetry.KeyBackup, r.backup(step), telemetry.KeyReason, err)
		if err := r.data(ctx, step, redundant); err != nil {
			return err
		}
		err = l.missing(step)
	}
	if err != nil {
		return fmt.Errorf("backup %s: %w", r.backup(step), err)
	}
	l.end()
	return r.target.journal.end(step, r.vital.Load())
}

// dataOf is the data parts of the backup of a step.
func (r *restorer) dataOf(step int) []Object {
	if step < len(r.plan.Bases) {
		return r.plan.Bases[step].Data
	}
	return r.plan.Data
}

// backup is the name of the backup of a step.
func (r *restorer) backup(step int) pg.BackupName {
	if step < len(r.plan.Bases) {
		return r.plan.Bases[step].Backup
	}
	return r.plan.Backup
}

// data restores the data parts of one backup.
func (r *restorer) data(ctx context.Context, step int, objects []Object) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(r.plan.Concurrency)
	for _, o := range objects {
		if groupCtx.Err() != nil {
			break
		}
		if r.target.past.has(step, o) {
			r.skip(o)
			continue
		}
		group.Go(func() error { return r.object(groupCtx, o, step, dataPhase) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// check refuses what would start and be wrong. Without backup_label
// PostgreSQL begins its recovery at the checkpoint in pg_control, which is
// later than the backup's start, and silently keeps torn pages.
func (r *restorer) check() error {
	if r.plan.Keep.wants(labelPath) && !r.label.Load() {
		return fmt.Errorf("%w: no object holds %s", ErrIncomplete, labelPath)
	}
	if r.plan.Keep.wants(controlPath) && r.control == nil {
		return fmt.Errorf("%w: no object holds %s", ErrIncomplete, controlPath)
	}
	return nil
}

// object restores one object, in several attempts if need be.
func (r *restorer) object(ctx context.Context, o Object, step int, ph phase) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	log := r.cfg.Log.With(telemetry.KeyBackup, r.backup(step), telemetry.KeyObject, o.Name)
	a := &attempt{restorer: r, object: o, step: step, phase: ph}
	try := func() (struct{}, error) {
		a.number++
		err := a.try(ctx)
		switch {
		case err == nil:
			return struct{}{}, nil
		case !r.retryable(err):
			return struct{}{}, backoff.Permanent(err)
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
		// It was cut off: the object is not at fault.
		return cause
	case err != nil:
		if p := (*backoff.PermanentError)(nil); errors.As(err, &p) {
			err = p.Unwrap()
		}
		return &ObjectError{Backup: r.backup(step), Object: o.Name, Attempts: a.number, Err: err}
	}
	log.Debug("object restored", telemetry.KeyBytes, a.now.bytes)
	if a.now.vital {
		r.vital.Store(true)
	}
	if ph == dataPhase && !a.now.vital {
		if err := r.target.journal.done(step, o, a.outcome()); err != nil {
			return fmt.Errorf("note in %s that %s is restored: %w", MarkerName, o.Name, err)
		}
	}
	return nil
}

func (r *restorer) retryable(err error) bool {
	if f := (finalError{}); errors.As(err, &f) {
		return false
	}
	return r.cfg.Retryable == nil || r.cfg.Retryable(err)
}

// attempt is the reading of one object, begun again by each run.
type attempt struct {
	*restorer
	object Object
	step   int
	phase  phase

	// number counts the runs. Of a chain, run is a number that no other run
	// of any attempt has, and runs are those of this attempt.
	number int
	run    uint32
	runs   []uint32
	// made is how many file entries of the object the runs so far have
	// created: those, and no other, a further run may replace.
	made int
	// now is what this run counted so far.
	now tally
}

// tally is what one run of an attempt at an object counts.
type tally struct {
	// entries are the file entries met, files those completed.
	entries int
	files   int64
	// bytes of content restored, and stored bytes read.
	bytes, stored int64
	// vital tells that the control file or the label was among the entries:
	// they are kept apart, so the object has to be read in every run.
	vital bool
	// notes are on the first of the odd entries.
	notes []string
	odd   int
}

func (a *attempt) try(ctx context.Context) (err error) {
	a.begin()
	stored, err := a.sources[a.step].Open(ctx, a.object.Name)
	if err != nil {
		return fmt.Errorf("open object: %w", err)
	}
	defer func() { err = errors.Join(err, stored.Close()) }()

	raw := meter{r: stored, add: a.read}
	plain, err := a.cfg.Decompress(a.object.Name, raw)
	if err != nil {
		return fmt.Errorf("decompress: %w", err)
	}
	err = a.archive(ctx, plain)
	if err = errors.Join(err, plain.Close()); err != nil {
		return err
	}
	// A decompressor may stop at its own end mark. What is behind it must be
	// nothing, and is read so that a store or a cipher can check the end.
	n, err := io.Copy(io.Discard, raw)
	if err != nil {
		return fmt.Errorf("read the end of the object: %w", err)
	}
	if n > 0 {
		return archiveError("%d bytes follow the compressed data", n)
	}
	a.done()
	return nil
}

// archive restores the entries of a decompressed object.
func (a *attempt) archive(ctx context.Context, plain io.Reader) error {
	b, ok := a.buffers.Get().(*buffers)
	if !ok {
		b = &buffers{in: bufio.NewReaderSize(nil, bufferSize), out: make([]byte, bufferSize)}
	}
	b.in.Reset(plain)
	defer func() {
		b.in.Reset(nil)
		a.buffers.Put(b)
	}()

	archive := pack.NewReader(b.in, pack.ReaderOptions{Foreign: a.foreign})
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return readError(err)
		}
		if err := a.entry(ctx, h, archive, b.out); err != nil {
			return fmt.Errorf("restore entry %q: %w", h.Raw, err)
		}
	}
}

// readError sorts out what is wrong with an archive: a cut or damaged one may
// be read whole another time, one with forbidden entries never.
func readError(err error) error {
	for _, cause := range []error{pack.ErrName, pack.ErrType, pack.ErrTooBig} {
		if errors.Is(err, cause) {
			return final(fmt.Errorf("%w: %w", ErrArchive, err))
		}
	}
	for _, cause := range []error{pack.ErrTruncated, pack.ErrTrailing, pack.ErrFormat} {
		if errors.Is(err, cause) {
			return fmt.Errorf("%w: %w", ErrArchive, err)
		}
	}
	return err
}

func (a *attempt) entry(ctx context.Context, h pack.Header, content io.Reader, buf []byte) error {
	if a.layers != nil && a.phase == dataPhase {
		return a.layer(ctx, h, content, buf)
	}
	if h.IsDir() {
		return a.target.directory(h.Name, h.Mode)
	}
	switch {
	case !a.plan.Keep.wants(h.Name):
		return nil
	case h.Name == controlPath:
		return a.keepControl(h, content)
	case h.Name == tablespaceMapPath && a.plan.DropTablespaceMap:
		return nil
	case h.Name == MarkerName, h.Name == scratchName, h.Name == newName:
		// A backup of an unfinished restore is not made unfinished by it.
		return nil
	}
	return a.file(ctx, h, content, buf)
}

// file writes one file of a full backup, or one that comes after all parts.
func (a *attempt) file(ctx context.Context, h pack.Header, content io.Reader, buf []byte) error {
	replace := a.phase != dataPhase || a.now.entries < a.made || a.first(h.Name)
	a.now.entries++
	if err := a.write(ctx, h, content, buf, replace); err != nil {
		return err
	}
	if h.Name == labelPath {
		a.now.vital = true
		a.label.Store(true)
	}
	return nil
}

// create opens a new file for an entry.
func (a *attempt) create(h pack.Header, replace bool) (*os.File, error) {
	f, err := a.target.create(h.Name, h.Mode, replace)
	if errors.Is(err, fs.ErrExist) {
		return nil, final(archiveError("the file occurs twice in the backup, or its name is taken by another kind of entry: %w", err))
	}
	return f, err
}

// write writes one whole file.
func (a *attempt) write(ctx context.Context, h pack.Header, content io.Reader, buf []byte, replace bool) (err error) {
	f, err := a.create(h, replace)
	if err != nil {
		return err
	}
	a.made = max(a.made, a.now.entries)
	defer func() { err = errors.Join(err, final(f.Close())) }()

	for left := h.Size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(content, buf[:min(left, int64(len(buf)))])
		if err != nil {
			return short(left-int64(n), err)
		}
		if _, err := f.Write(buf[:n]); err != nil {
			return final(err)
		}
		left -= int64(n)
		a.wrote(int64(n))
	}
	a.now.files++
	return nil
}

func (a *attempt) keepControl(h pack.Header, content io.Reader) error {
	if h.Size > maxControlSize {
		return final(archiveError("%d bytes are no control file", h.Size))
	}
	b := make([]byte, h.Size)
	if _, err := io.ReadFull(content, b); err != nil {
		return short(h.Size, err)
	}
	a.now.vital = true
	a.mu.Lock()
	defer a.mu.Unlock()
	a.restorer.control = &controlFile{mode: h.Mode, content: b}
	return nil
}

// short is the error of content that ends left bytes early.
func short(left int64, err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%d bytes are missing: %w", left, readError(err))
}

func (r *restorer) writeControl() (err error) {
	if r.control == nil {
		return nil // masked
	}
	f, err := r.target.create(controlPath, r.control.mode, r.target.past != nil)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, r.target.root.Remove(controlPath))
		}
	}()
	if _, err := f.Write(r.control.content); err != nil {
		return err
	}
	if r.target.fsync {
		if err := f.Sync(); err != nil {
			return err
		}
		if err := r.target.syncDir(path.Dir(controlPath)); err != nil {
			return err
		}
	}
	r.files.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress.Bytes += int64(len(r.control.content))
	return nil
}

// foreign notes an entry that is neither file nor directory; none is
// restored.
func (a *attempt) foreign(f pack.Foreign) error {
	if dir, oid := path.Split(f.Name); dir == "pg_tblspc/" && a.target.spaces[oid] != nil {
		return nil // the plan's own link is there
	}
	if a.layers != nil {
		// It is not lost, and it is noted once.
		if i, ok := a.layers.files.find(fileKey(f.Name)); ok && a.layers.holds(a.step, i) != nothing {
			a.layers.claims[i].Store(a.run)
		}
		if a.step < a.layers.last {
			return nil
		}
	}
	kind := "special file"
	if f.Type == tar.TypeSymlink || f.Type == tar.TypeLink {
		kind = "link"
	}
	if a.now.odd++; a.now.odd <= maxNotes {
		a.now.notes = append(a.now.notes, fmt.Sprintf("%s is a %s and was not restored", f.Name, kind))
	}
	return nil
}

// meter counts what is read of an object.
type meter struct {
	r   io.Reader
	add func(int)
}

func (m meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.add(n)
	return n, err
}

// begin takes back what an earlier run counted.
func (a *attempt) begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.layers != nil {
		a.run = a.layers.runs.Add(1)
		a.runs = append(a.runs, a.run)
	}
	a.progress.Bytes -= a.now.bytes
	a.progress.StoredBytes -= a.now.stored
	a.now = tally{}
}

func (a *attempt) read(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now.stored += int64(n)
	a.progress.StoredBytes += int64(n)
}

func (a *attempt) wrote(n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now.bytes += n
	a.progress.Bytes += n
	a.report(false)
}

func (a *attempt) done() {
	a.restorer.files.Add(a.now.files)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.restorer.odd += a.now.odd
	room := max(0, maxNotes-len(a.restorer.notes))
	a.restorer.notes = append(a.restorer.notes, a.now.notes[:min(room, len(a.now.notes))]...)
	a.report(true)
}

// report is called with mu held.
func (a *attempt) report(done bool) {
	if a.cfg.Progress == nil {
		return
	}
	p := a.progress
	p.Backup, p.Object, p.ObjectBytes, p.Done = a.backup(a.step), a.object.Name, a.now.bytes, done
	a.cfg.Progress(p)
}

func (r *restorer) result() Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	notes := append([]string(nil), r.plan.Notes...)
	notes = append(notes, r.notes...)
	if more := r.odd - len(r.notes); more > 0 {
		notes = append(notes, fmt.Sprintf("%d more links or special files were not restored", more))
	}
	return Result{Files: r.files.Load(), Bytes: r.progress.Bytes, Resumed: r.resumed, Notes: notes}
}
