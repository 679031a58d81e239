package archive

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/service"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
)

// AheadOptions of NewAhead. Push, Dir, SegmentSize and Logger are required.
type AheadOptions struct {
	// Push archives one file under its base name: Pusher.Push. It returns when
	// PostgreSQL may be told so, is called from several goroutines, and heeds
	// its context.
	Push func(ctx context.Context, path string) (messages.ArchiveReply, error)
	// Dir is the pg_wal directory. A file that is asked for from elsewhere is
	// pushed, and nothing is shipped ahead of it.
	Dir         string
	SegmentSize pg.SegmentSize
	// Concurrency is how many files are pushed at once, the asked one
	// included (WALG_UPLOAD_CONCURRENCY); below 2 nothing is shipped ahead.
	Concurrency int
	// Limit is how many files one ask pushes, the asked one included
	// (TOTAL_BG_UPLOADED_LIMIT); below 2 nothing is shipped ahead. A resident
	// Ahead also never holds more shipped files than this.
	Limit int
	// Room, if set, is asked before each file is shipped ahead, beside others
	// under way (shipping): whether it leaves room for the file that will be
	// asked for. Without room the rest of the ask's files wait for their own
	// asks: a small queue must not be full of what nobody has asked for.
	Room func(ctx context.Context, shipping int) bool
	// ReadyRename renames the .ready of a file that was shipped ahead to .done
	// (PG_READY_RENAME): PostgreSQL will not ask for it.
	ReadyRename bool
	// Resident keeps what was shipped in memory and ships on between asks; for
	// a process that lives. Else it is kept in mark files, and everything ends
	// with the ask; for one process per ask.
	Resident bool
	// Timeout bounds, unless resident, an ask with all that is shipped on its
	// account; the asked file has the bounds of Push. 0 is 5 min.
	Timeout time.Duration
	Logger  *slog.Logger
}

// Ahead answers archive_command for files that it shipped before they were
// asked for: the archiver asks for one file at a time and waits, so without it
// the latency of one file bounds the throughput of all.
//
// An ask succeeds if the asked file was pushed in the state it is in now, by
// this ask or ahead of it, and for no other reason. A file shipped ahead that
// failed is logged and forgotten: it is pushed when it is asked for.
type Ahead struct {
	opt   AheadOptions
	marks marks
	live  context.Context // of what a resident Ahead ships
	stop  context.CancelFunc
	work  sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	tasks   map[string]*task // under way, and, resident, shipped and not asked for
	running int              // shipped ahead and under way
	ask     *ask             // the latest
}

// task is one push of one file.
type task struct {
	done    chan struct{}
	waiters int // asks that wait for it

	// Valid once done is closed.
	id    identity // what was pushed; with err == nil
	reply messages.ArchiveReply
	err   error
}

// ask is one ask and what is shipped on its account.
type ask struct {
	ctx    context.Context
	walDir string
	queue  *queue
	budget int
	over   bool
	work   sync.WaitGroup
}

// ErrClosed means that Push was called after Close.
var ErrClosed = errors.New("read-ahead is closed")

var (
	errChanged = errors.New("the file changed while it was pushed")
	errNoRoom  = errors.New("the queue has room for what is asked for only")
)

// NewAhead makes an Ahead; the caller closes it.
func NewAhead(opt AheadOptions) *Ahead {
	a := &Ahead{opt: opt, marks: marksOf(opt.Dir), tasks: map[string]*task{}}
	a.live, a.stop = context.WithCancel(context.Background())
	return a
}

// Close ends what a resident Ahead is shipping and waits for it.
func (a *Ahead) Close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.stop()
	a.work.Wait()
}

// Push answers an ask for the file at path. When it is not resident, it
// returns after what it ships ahead has ended too.
func (a *Ahead) Push(ctx context.Context, path string) (messages.ArchiveReply, error) {
	name := filepath.Base(path)
	inDir := a.inDir(path)
	for {
		a.mu.Lock()
		if a.closed {
			a.mu.Unlock()
			return messages.ArchiveReply{}, fmt.Errorf("archive %s: %w: %w", name, ErrNotArchived, ErrClosed)
		}
		t := a.tasks[name]
		if t == nil || !inDir {
			break // locked
		}
		t.waiters++
		a.mu.Unlock()
		select {
		case <-t.done:
		case <-ctx.Done():
		}
		a.mu.Lock()
		t.waiters--
		a.mu.Unlock()
		if ctx.Err() != nil {
			return messages.ArchiveReply{}, fmt.Errorf("archive %s: %w: %w", name, ErrNotArchived, context.Cause(ctx))
		}
		a.forget(name, t)
		if t.err != nil {
			continue
		}
		if id, err := identify(path); err == nil && id == t.id {
			if a.opt.Resident {
				a.open(a.live, path, name)
			}
			return t.reply, nil
		}
	}
	// Locked: from here on others wait for this ask's own push.
	t := &task{done: make(chan struct{})}
	if inDir {
		a.tasks[name] = t
	}
	a.mu.Unlock()
	if !inDir {
		return a.opt.Push(ctx, path)
	}
	return a.answer(ctx, path, name, t)
}

// answer takes a file's mark or pushes the file, and ships others meanwhile.
func (a *Ahead) answer(ctx context.Context, path, name string, t *task) (messages.ArchiveReply, error) {
	defer close(t.done)
	defer a.forget(name, t)
	id, err := identify(path)
	if err != nil {
		t.err = fmt.Errorf("archive %s: %w: %w", name, ErrNotArchived, err)
		return messages.ArchiveReply{}, t.err
	}
	reply, marked := a.marks.read(path)
	if a.marks.has(name) {
		// Taken or worth nothing: WAL-G would believe it in any case.
		if err := a.marks.remove(name); err != nil {
			a.opt.Logger.Warn("take a read-ahead mark", telemetry.KeySegment, name, telemetry.KeyError, err)
		}
	}
	var s *ask
	switch {
	case a.opt.Resident:
		a.open(a.live, path, name)
	case !marked:
		timeout := a.opt.Timeout
		if timeout == 0 {
			timeout = 5 * time.Minute
		}
		bounded, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not archived within %s", timeout))
		defer cancel()
		s = a.open(bounded, path, name)
	}
	if !marked {
		reply, err = a.opt.Push(ctx, path)
	}
	t.id, t.reply, t.err = id, reply, err
	if now, ierr := identify(path); ierr != nil || now != id {
		t.err = errChanged // for those who wait: they look for themselves
	}
	if s != nil {
		a.mu.Lock()
		s.over = true
		a.mu.Unlock()
		s.work.Wait()
	}
	return reply, err
}

// forget drops a task unless another has taken its place.
func (a *Ahead) forget(name string, t *task) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tasks[name] == t {
		delete(a.tasks, name)
	}
}

// inDir reports whether path is in the directory that Ahead works on. Where
// nothing is shipped ahead, its marks count all the same: WAL-G's, or those
// from before the setting was changed.
func (a *Ahead) inDir(path string) bool {
	here, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return false
	}
	there, err := os.Stat(a.opt.Dir)
	return err == nil && os.SameFile(here, there)
}

// open starts shipping on account of an ask.
func (a *Ahead) open(ctx context.Context, path, name string) *ask {
	if a.opt.Concurrency < 2 || a.opt.Limit < 2 {
		return nil
	}
	if !a.opt.Resident && !a.opt.ReadyRename {
		if err := a.marks.prepare(); err != nil {
			a.opt.Logger.Warn("nothing is shipped ahead", telemetry.KeyError, err)
			return nil
		}
		a.marks.tidy(filepath.Dir(path))
	}
	s := &ask{ctx: ctx, walDir: filepath.Dir(path), queue: newQueue(filepath.Dir(path), name, a.opt.SegmentSize), budget: a.opt.Limit - 1}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ask = s
	a.prune(s.walDir)
	a.fill()
	return s
}

// prune forgets shipped files that PostgreSQL will not ask for: somebody else
// has archived them, or they are gone. Locked.
func (a *Ahead) prune(walDir string) {
	for name, t := range a.tasks {
		select {
		case <-t.done:
			if !isReady(walDir, name) {
				delete(a.tasks, name)
			}
		default:
		}
	}
}

// fill ships as many files as there is room for. Locked.
func (a *Ahead) fill() {
	s := a.ask
	for s != nil && !s.over && !a.closed && s.budget > 0 && a.running < a.opt.Concurrency-1 && a.room() {
		name, err := s.queue.pop()
		if err != nil {
			a.opt.Logger.Warn("look for files to ship ahead", telemetry.KeyError, err)
		}
		if name == "" {
			s.over = true
			return
		}
		path := filepath.Join(s.walDir, name)
		if a.tasks[name] != nil {
			continue
		}
		if _, marked := a.marks.read(path); marked {
			continue
		}
		t := &task{done: make(chan struct{})}
		a.tasks[name] = t
		s.budget--
		a.running++
		s.work.Add(1)
		a.work.Go(func() {
			defer s.work.Done()
			a.ship(s, path, name, t)
		})
	}
}

// room reports whether one more file may be held. Locked.
func (a *Ahead) room() bool { return !a.opt.Resident || len(a.tasks) < a.opt.Limit }

// ship pushes one file ahead.
func (a *Ahead) ship(s *ask, path, name string, t *task) {
	keep, room := false, a.fits(s)
	if room {
		t.id, t.reply, t.err = a.push(s.ctx, path)
	} else {
		t.err = errNoRoom
	}
	switch {
	case !room:
	case t.err != nil:
		a.opt.Logger.Warn("a file shipped ahead was not archived; it will be when it is asked for", telemetry.KeySegment, name, telemetry.KeyError, t.err)
	case a.awaited(t):
		// PostgreSQL is being told; a mark would outlive its purpose.
	default:
		keep = a.remember(s.walDir, name, t)
	}
	a.mu.Lock()
	if !keep && a.tasks[name] == t {
		delete(a.tasks, name)
	}
	close(t.done)
	a.running--
	a.fill()
	a.mu.Unlock()
}

// fits asks for room, and ends the shipping on the ask's account without.
func (a *Ahead) fits(s *ask) bool {
	if a.opt.Room == nil {
		return true
	}
	a.mu.Lock()
	shipping := a.running - 1
	a.mu.Unlock()
	if a.opt.Room(s.ctx, shipping) {
		return true
	}
	a.mu.Lock()
	s.over = true
	a.mu.Unlock()
	return false
}

func (a *Ahead) push(ctx context.Context, path string) (identity, messages.ArchiveReply, error) {
	before, err := identify(path)
	if err != nil {
		return identity{}, messages.ArchiveReply{}, err
	}
	var reply messages.ArchiveReply
	// A panic must not take the asks of a resident process with it.
	if err := service.Catch(func() (err error) {
		reply, err = a.opt.Push(ctx, path)
		return err
	}); err != nil {
		return identity{}, reply, err
	}
	after, err := identify(path)
	if err != nil {
		return identity{}, reply, err
	}
	if after != before {
		return identity{}, reply, errChanged
	}
	return before, reply, nil
}

func (a *Ahead) awaited(t *task) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return t.waiters > 0
}

// remember notes a shipped file where the next ask finds it, and reports
// whether that is the task itself.
func (a *Ahead) remember(walDir, name string, t *task) (keep bool) {
	if a.opt.ReadyRename {
		err := setDone(walDir, name)
		if err == nil {
			return false
		}
		a.opt.Logger.Warn("tell PostgreSQL of a file shipped ahead", telemetry.KeySegment, name, telemetry.KeyError, err)
	}
	if a.opt.Resident {
		return true
	}
	err := a.marks.prepare()
	if err == nil {
		err = a.marks.write(name, t.id, t.reply)
	}
	if err != nil {
		a.opt.Logger.Warn("a file shipped ahead will be pushed again", telemetry.KeySegment, name, telemetry.KeyError, err)
	}
	return false
}
