package archive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/walherd/walherd/engine/durable"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/messages/transit"
)

// ErrSpoolFull means that more is acknowledged and not stored than the spool
// may hold; PostgreSQL keeps the file until workers have caught up.
var ErrSpoolFull = errors.New("the spool is full")

// SpoolOptions of OpenSpool. Dir, MaxBytes, Cluster and Logger are required.
type SpoolOptions struct {
	// Dir holds a directory per cluster (WALHERD_SPOOL_DIR): on a disk, not in
	// memory, and best on the file system of pg_wal, where one that can share
	// blocks (XFS, btrfs) makes a copy cost nothing.
	Dir string
	// MaxBytes bounds the copies of one cluster (WALHERD_SPOOL_MAX_BYTES).
	// Processes that put at the same time may exceed it by a file each.
	MaxBytes int64
	Cluster  messages.Cluster
	// ResendAfter is how long a file may stay without word that it is stored
	// before the spool looks for its job, and queues it again if there is
	// none. 0 is 15 min.
	ResendAfter time.Duration
	Logger      *slog.Logger
}

// Spool keeps a copy of every file that PostgreSQL was told is archived and
// that no worker has stored yet: a broker's replicas do not mend a chunk that
// has gone bad on a disk, and the copy is what is sent again. It is a copy or
// a reflink and never a hard link, because PostgreSQL overwrites segments in
// place when it recycles them.
//
// All of its state is in its directory, and every step may be taken twice and
// by two processes at once: a file's name there says what it is
// (<name>.<SHA-256>), its modification time when it was sent last. A file goes
// when a worker says that this name with this content is stored.
type Spool struct {
	opt SpoolOptions
	dir string

	// mu orders looking for room and taking it.
	mu sync.Mutex
	// told are the conflicts that were logged.
	told map[entry]bool
}

// entry is one file of the spool.
type entry struct {
	name   string
	sha256 string // lower-case hex
	size   int64
}

// OpenSpool makes the directory if need be.
func OpenSpool(opt SpoolOptions) (*Spool, error) {
	if opt.ResendAfter == 0 {
		opt.ResendAfter = 15 * time.Minute
	}
	if opt.MaxBytes <= 0 {
		return nil, fmt.Errorf("open spool: a bound of %d bytes is none (set WALHERD_SPOOL_MAX_BYTES)", opt.MaxBytes)
	}
	if _, err := messages.ParseCluster(string(opt.Cluster)); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	s := &Spool{opt: opt, dir: filepath.Join(opt.Dir, string(opt.Cluster)), told: map[entry]bool{}}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("open spool: %w (WALHERD_SPOOL_DIR)", err)
	}
	if err := durable.SyncDir(opt.Dir); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	tidy(s.dir, entries)
	return s, nil
}

func (s *Spool) path(e entry) string { return filepath.Join(s.dir, e.name+"."+e.sha256) }

// parseEntry reads a file name of the spool.
func parseEntry(file string) (entry, bool) {
	i := strings.LastIndexByte(file, '.')
	if i <= 0 {
		return entry{}, false
	}
	e := entry{name: file[:i], sha256: file[i+1:]}
	raw, err := hex.DecodeString(e.sha256)
	return e, err == nil && len(raw) == sha256.Size && strings.ToLower(e.sha256) == e.sha256
}

// kept is an entry and when it was sent last.
type kept struct {
	entry
	sent time.Time
}

// list reads the directory.
func (s *Spool) list() ([]kept, error) {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("read spool: %w", err)
	}
	var out []kept
	for _, f := range files {
		e, ok := parseEntry(f.Name())
		if !ok {
			continue
		}
		info, err := f.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // stored meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("read spool: %w", err)
		}
		e.size = info.Size()
		out = append(out, kept{e, info.ModTime()})
	}
	return out, nil
}

// SpoolState is what a spool holds.
type SpoolState struct {
	Files int
	Bytes int64
	// Oldest is when the file that waits the longest was sent last; zero if
	// there is none.
	Oldest time.Time
}

// State looks at the spool.
func (s *Spool) State() (SpoolState, error) {
	all, err := s.list()
	var out SpoolState
	for _, k := range all {
		out.Files++
		out.Bytes += k.size
		if out.Oldest.IsZero() || k.sent.Before(out.Oldest) {
			out.Oldest = k.sent
		}
	}
	return out, err
}

// put copies the file at path into the spool. The copy is durable when put
// returns. A copy that is there already is used, and its time starts anew; one
// that has gone bad is replaced, for PostgreSQL has the file still, and would
// be refused it for ever.
func (s *Spool) put(ctx context.Context, path, name string) (entry, error) {
	e, err := digest(path, name)
	if err != nil {
		return entry{}, fmt.Errorf("copy %s to the spool: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return entry{}, context.Cause(ctx)
	}
	old, err := digest(s.path(e), name)
	if err == nil && old == e {
		if err := s.touch(e); err != nil {
			return entry{}, err
		}
		// Whoever made it may have died before it synced the directory.
		return e, durable.SyncDir(s.dir)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		s.opt.Logger.Warn("a copy in the spool has gone bad, making it anew", telemetry.KeyPath, s.path(e), telemetry.KeyError, err)
	}
	state, err := s.State()
	if err != nil {
		return entry{}, err
	}
	if state.Bytes-old.size+e.size > s.opt.MaxBytes {
		return entry{}, fmt.Errorf("copy %s to the spool: %w: %d files, %d of %d bytes wait to be stored (are workers running? WALHERD_SPOOL_MAX_BYTES)",
			name, ErrSpoolFull, state.Files, state.Bytes, s.opt.MaxBytes)
	}
	err = durable.WriteFile(s.path(e), 0o600, func(w io.Writer) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		// From file to file the kernel copies, and shares blocks where the
		// file system can.
		_, err = io.Copy(w, f)
		return err
	}, durable.Options{})
	if err != nil {
		return entry{}, fmt.Errorf("copy %s to the spool: %w", name, err)
	}
	return e, nil
}

// digest reads a file.
func digest(path, name string) (entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return entry{}, err
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	if err != nil {
		return entry{}, err
	}
	return entry{name: name, sha256: hex.EncodeToString(sum.Sum(nil)), size: n}, nil
}

// touch notes that an entry was sent now.
func (s *Spool) touch(e entry) error {
	now := time.Now()
	if err := os.Chtimes(s.path(e), now, now); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("note a file of the spool as sent: %w", err)
	}
	return nil
}

// Settle brings the spool up to date once, for a process that does not live:
// it reads the events since the last time, drops what is stored, and sends
// again what a worker found damaged or nobody has. p pushes to the broker
// whose acknowledgements the spool covers. One Settle or Run at a time.
func (s *Spool) Settle(ctx context.Context, p *Pusher) error {
	if all, err := s.list(); err != nil || len(all) == 0 {
		return err
	}
	l, err := s.events(ctx, p)
	if err != nil {
		return err
	}
	defer l.Close()
	urgent := map[entry]bool{}
	for {
		m, ok, err := l.ReadOn(ctx)
		if err != nil {
			return fmt.Errorf("settle spool: %w", err)
		}
		if !ok {
			break
		}
		s.apply(m, urgent)
	}
	return s.resend(ctx, p, urgent)
}

// Run keeps the spool up to date until ctx ends, for a process that lives. It
// returns nil then; all trouble is logged and tried again.
func (s *Spool) Run(ctx context.Context, p *Pusher) error {
	for fails := 1; ; fails++ {
		err := s.follow(ctx, p, func() { fails = 0 })
		if ctx.Err() != nil {
			return nil
		}
		s.opt.Logger.Warn("the spool is not up to date, trying again", telemetry.KeyError, err)
		select {
		case <-time.After(bus.Backoff(fails)):
		case <-ctx.Done():
			return nil
		}
	}
}

// follow is one connected stretch of Run.
func (s *Spool) follow(ctx context.Context, p *Pusher, well func()) error {
	l, err := s.events(ctx, p)
	if err != nil {
		return err
	}
	defer l.Close()
	urgent := map[entry]bool{}
	every := min(s.opt.ResendAfter/2, time.Minute)
	next := time.Now().Add(every)
	for {
		if len(urgent) > 0 || !time.Now().Before(next) {
			if err := s.resend(ctx, p, urgent); err != nil {
				return err
			}
			next = time.Now().Add(every)
		}
		well()
		wait, cancel := context.WithDeadline(ctx, next)
		m, err := l.Next(wait)
		cancel()
		switch {
		case err == nil:
			s.apply(m, urgent)
		case ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded):
			return err
		}
	}
}

// The event that was seen last, so that a process that does not live need not
// read a week of them. Losing it is harmless.
const cursorFile = "events.seen"

// events reads on from the last event that was applied. That is enough: a
// file's copy is here before its job is queued, so the event that concerns it
// comes later than all that were applied before the copy was made.
func (s *Spool) events(ctx context.Context, p *Pusher) (*bus.Log, error) {
	var from uint64
	if data, err := os.ReadFile(filepath.Join(s.dir, cursorFile)); err == nil {
		if seen, err := strconv.ParseUint(string(data), 10, 64); err == nil {
			from = seen + 1
		}
	}
	l, err := p.Bus.OpenLog(ctx, topology.StreamEvent, messages.WALEvents(s.opt.Cluster), bus.LogOptions{From: from})
	if err != nil {
		return nil, fmt.Errorf("follow what workers store: %w", err)
	}
	return l, nil
}

// apply acts on one event. urgent gets what is to be sent again at once.
func (s *Spool) apply(m bus.Stored, urgent map[entry]bool) {
	var e messages.Event
	if err := json.Unmarshal(m.Data, &e); err != nil || e.Version != messages.Version {
		s.opt.Logger.Warn("unreadable event", telemetry.KeySequence, m.Seq, telemetry.KeyError, err)
	} else if name, ok := parseEntry(e.File + "." + e.SHA256); ok && filepath.Base(e.File) == e.File {
		s.event(e, name, urgent)
	}
	err := durable.WriteFile(filepath.Join(s.dir, cursorFile), 0o600, func(w io.Writer) error {
		_, err := io.WriteString(w, strconv.FormatUint(m.Seq, 10))
		return err
	}, durable.Options{NoSync: true})
	if err != nil {
		s.opt.Logger.Warn("note the last event seen", telemetry.KeyError, err)
	}
}

func (s *Spool) event(e messages.Event, name entry, urgent map[entry]bool) {
	path := s.path(name)
	info, err := os.Stat(path)
	if err != nil {
		return // not of this host, or gone already
	}
	name.size = info.Size()
	switch {
	case e.What == messages.WALStored:
		delete(urgent, name)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.opt.Logger.Warn("drop a stored file from the spool", telemetry.KeyPath, path, telemetry.KeyError, err)
		}
	case e.What != messages.WALFailed:
	case e.Reason == messages.ReasonDamaged:
		s.opt.Logger.Warn("the queue lost a WAL file, sending it again", telemetry.KeySegment, e.File, telemetry.KeyError, e.Error)
		urgent[name] = true
		// Should this process die before it has sent it, the next one finds it
		// overdue.
		_ = os.Chtimes(path, time.Unix(0, 0), time.Unix(0, 0))
	case e.Reason == messages.ReasonConflict && !s.told[name]:
		s.told[name] = true
		s.opt.Logger.Error("an acknowledged WAL file is not archived: another content has its name there; its copy stays in the spool",
			telemetry.KeySegment, e.File, telemetry.KeyPath, path, telemetry.KeyError, e.Error)
	}
}

// staleJob is after how many ResendAfter a job that is still queued is no
// longer taken to be of use: one that exhausted its deliveries stays in the
// queue for ever, unseen by workers. A worker that cannot store an acknowledged
// file queues it anew every few minutes, so what works is not so old.
const staleJob = 24

// resend sends what is urgent, and what has no word for too long and no job.
func (s *Spool) resend(ctx context.Context, p *Pusher, urgent map[entry]bool) error {
	all, err := s.list()
	if err != nil {
		return err
	}
	now := time.Now()
	var due []entry
	for _, k := range all {
		if urgent[k.entry] || now.Sub(k.sent) >= s.opt.ResendAfter && !s.told[k.entry] {
			due = append(due, k.entry)
		}
	}
	if len(due) == 0 {
		return nil
	}
	queued := map[entry]bool{}
	err = transit.PendingArchives(ctx, p.Bus, s.opt.Cluster, func(j transit.Queued) {
		if now.Sub(j.At) < staleJob*s.opt.ResendAfter {
			queued[entry{name: j.Name, sha256: j.Bytes.SHA256, size: j.Bytes.Size}] = true
		}
	})
	if errors.Is(err, transit.ErrUnread) {
		// A file that is sent twice is stored once.
		s.opt.Logger.Warn("settle spool", telemetry.KeyError, err)
	} else if err != nil {
		return fmt.Errorf("settle spool: %w", err)
	}
	var failed error
	for _, e := range due {
		// The job that a worker found damaged may be in the queue still.
		if !queued[e] || urgent[e] {
			s.opt.Logger.Warn("sending a WAL file of the spool again", telemetry.KeySegment, e.name)
			err := p.send(ctx, e)
			if errors.Is(err, fs.ErrNotExist) {
				continue // stored meanwhile
			}
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("send %s of the spool again: %w", e.name, err))
				if ctx.Err() != nil || errors.Is(err, bus.ErrUnavailable) {
					return failed
				}
				continue // one bad copy does not hold the others
			}
		}
		delete(urgent, e)
		if err := s.touch(e); err != nil {
			return err
		}
	}
	return failed
}
