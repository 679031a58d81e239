// Package prefetch keeps WAL segments that recovery is about to ask for, in
// the directory where WAL-G keeps them:
//
//	<base>/.wal-g/prefetch/NAME           complete
//	<base>/.wal-g/prefetch/running/NAME   being fetched; its creation is the lock
//
// Nothing here is ever trusted: a segment is checked (length, header, page
// address, system identifier) before it is handed out, and what fails is
// removed and fetched anew. A prefetch that cannot be done is no failure of
// the recovery.
package prefetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/service"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/engine/wal"
)

// Store is one prefetch directory. All fields are required but Expect's.
type Store struct {
	// Base is where .wal-g is: WALG_PREFETCH_DIR, or the directory of
	// wal-fetch's destination.
	Base   string
	Expect wal.Expect
	// Fetch writes the archived segment to w.
	Fetch  func(ctx context.Context, name string, w io.Writer) error
	Logger *slog.Logger
}

// poll is how often a segment that another process is fetching is looked at,
// and stalled after how long without growth that process is taken for dead.
const (
	poll    = 5 * time.Millisecond
	stalled = 2 * time.Second
)

func (s Store) dir() string                { return filepath.Join(s.Base, ".wal-g", "prefetch") }
func (s Store) path(name string) string    { return filepath.Join(s.dir(), name) }
func (s Store) running(name string) string { return filepath.Join(s.dir(), "running", name) }

// Take moves a prefetched segment to destination, which must not exist. false
// without an error: there is none, or a bad one that is gone now. One that is
// being fetched is waited for as long as it grows.
func (s Store) Take(ctx context.Context, name, destination string) (bool, error) {
	seg, err := pg.ParseSegmentName(name)
	if err != nil {
		return false, nil // only segments are prefetched
	}
	for {
		err := s.check(s.path(name), seg)
		switch {
		case err == nil:
			return true, move(s.path(name), destination)
		case !errors.Is(err, fs.ErrNotExist):
			s.Logger.Warn("a prefetched segment is no good, fetching it again", telemetry.KeySegment, name, telemetry.KeyError, err)
			return false, os.Remove(s.path(name))
		}
		if !s.awaitGrowth(ctx, name) {
			if ctx.Err() != nil {
				return false, context.Cause(ctx)
			}
			// Complete by now, or given up.
			if s.check(s.path(name), seg) == nil {
				continue
			}
			return false, nil
		}
	}
}

// awaitGrowth waits while a segment is being fetched: true when that ended, by
// a rename or a removal; false when there is no such fetch, or it stands still
// and was cleared away.
func (s Store) awaitGrowth(ctx context.Context, name string) bool {
	var (
		size  int64
		since time.Time // it grew last
	)
	for n := 0; ; n++ {
		info, err := os.Stat(s.running(name))
		if err != nil {
			return n > 0
		}
		switch {
		case n == 0:
			// One that died long ago is not given any more time; a clock that
			// was set back gives none either.
			size, since = info.Size(), earlier(info.ModTime(), time.Now())
		case info.Size() != size:
			size, since = info.Size(), time.Now()
		case time.Since(since) > stalled:
			s.Logger.Warn("a prefetch stands still, fetching here", telemetry.KeySegment, name)
			_ = os.Remove(s.running(name))
			return false
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return false
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// check judges a file that is meant to be a segment.
func (s Store) check(path string, seg pg.SegmentName) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	header := make([]byte, wal.LongHeaderSize)
	if _, err := io.ReadFull(f, header); err != nil {
		return fmt.Errorf("read the header of %s: %w", path, err)
	}
	if info.Size() != int64(s.Expect.SegmentSize) {
		return fmt.Errorf("%s has %d bytes, a segment has %d", path, info.Size(), s.Expect.SegmentSize)
	}
	_, err = wal.CheckSegment(header, seg, info.Size(), s.Expect)
	return err
}

// move renames in effect, and copies where the two are on different file systems. It
// replaces nothing.
func move(from, to string) error {
	err := os.Link(from, to) // fails where a rename would replace
	switch {
	case err == nil:
		return os.Remove(from)
	case errors.Is(err, fs.ErrExist):
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	// PostgreSQL makes a restored file durable itself before it relies on it.
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(to)
		return fmt.Errorf("move prefetched segment to %s: %w", to, err)
	}
	return os.Remove(from)
}

// Ahead fetches the count segments that follow name, several at a time, and
// clears away what recovery has passed. Its error is that of the first segment
// in order that could not be had.
func (s Store) Ahead(ctx context.Context, name string, count int) error {
	seg, err := pg.ParseSegmentName(name)
	if err != nil {
		return fmt.Errorf("prefetch after %q: %w", name, err)
	}
	// The base itself is not made: it may be a typing mistake.
	for _, below := range []string{".wal-g", ".wal-g/prefetch", ".wal-g/prefetch/running"} {
		if err := os.Mkdir(filepath.Join(s.Base, below), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("prefetch after %s: %w (WALG_PREFETCH_DIR names another place)", name, err)
		}
	}
	s.clear(seg)
	// A segment that the archive does not have yet must not end the fetching
	// of those before it, so their errors are gathered, not acted on.
	errs := make([]error, count)
	err = service.Within(ctx, count, func(ctx context.Context, scope *service.Scope) error {
		for i := range count {
			next := seg.Next(s.Expect.SegmentSize)
			scope.Go(func(ctx context.Context) error {
				errs[i] = s.one(ctx, next)
				return nil
			})
			seg = next
		}
		return nil
	})
	return cmp.Or(err, cmp.Or(errs...))
}

// one fetches one segment, unless it is there or somebody is at it.
func (s Store) one(ctx context.Context, seg pg.SegmentName) (err error) {
	name := seg.String()
	if _, err := os.Stat(s.path(name)); err == nil {
		return nil
	}
	f, err := os.OpenFile(s.running(name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("prefetch %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(s.running(name))
		}
	}()
	err = s.Fetch(ctx, name, f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = s.check(s.running(name), seg)
	}
	if err != nil {
		return fmt.Errorf("prefetch %s: %w", name, err)
	}
	return os.Rename(s.running(name), s.path(name))
}

// clear removes segments of older timelines, and those before seg: recovery does
// not come back to them.
func (s Store) clear(seg pg.SegmentName) {
	for _, dir := range []string{s.dir(), filepath.Join(s.dir(), "running")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // it says so when it is written to
		}
		for _, e := range entries {
			old, err := pg.ParseSegmentName(e.Name())
			if err == nil && old.Compare(seg) < 0 {
				_ = os.Remove(filepath.Join(dir, e.Name()))
			}
		}
	}
}
