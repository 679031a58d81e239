package failover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/walherd/walherd/storage"
)

// checkObject is what a check writes, in WAL-G's name.
const checkObject = "wal-g_storage_check"

// cleanupTimeout is how long a check that was broken off may take to delete
// what it wrote.
const cleanupTimeout = time.Second

// probe is a check under way.
type probe struct {
	done chan struct{}
	err  error // why the storage is dead, or errClosed; after done
}

// check starts a check, or joins the one that runs. It outlives the wait of
// whoever started it: the answer is worth having.
func (s *Set) check(ctx context.Context, m *member, limit time.Duration) *probe {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.running[m]; p != nil {
		return p
	}
	p := &probe{done: make(chan struct{})}
	if s.closed {
		p.err = errClosed
		close(p.done)
		return p
	}
	s.running[m] = p
	s.work.Add(2)
	go s.run(context.WithoutCancel(ctx), m, p, limit)
	return p
}

func (s *Set) run(ctx context.Context, m *member, p *probe, limit time.Duration) {
	defer s.work.Done()
	since := s.opt.Now().Round(0)
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()

	// The verdict does not wait for a store that ignores its context, as a
	// file system of a lost server does.
	outcome := make(chan error, 1)
	go func() {
		defer s.work.Done()
		outcome <- s.try(limited, m)
	}()
	var err error
	select {
	case err = <-outcome:
	case <-limited.Done():
		err = limited.Err()
	}
	switch {
	case err == nil:
	case s.life.Err() != nil:
		err = errClosed
	case limited.Err() != nil:
		err = fmt.Errorf("no answer within %v: %w", limit, err)
	}
	if !errors.Is(err, errClosed) {
		s.learn(ctx, m, err, since)
	}
	s.mu.Lock()
	delete(s.running, m)
	s.mu.Unlock()
	p.err = err
	close(p.done)
}

// try is the check itself.
func (s *Set) try(ctx context.Context, m *member) error {
	for _, err := range m.probe.List(ctx, "", storage.ListOptions{Shallow: true}) {
		if err != nil {
			return fmt.Errorf("read check: %w", err)
		}
		break
	}
	if !s.opt.Write || s.opt.CheckSize <= 0 {
		return nil
	}
	content := io.NewSectionReader(s.content(), 0, s.opt.CheckSize)
	if _, err := m.probe.Put(ctx, checkObject, content, storage.PutOptions{}); err != nil {
		return fmt.Errorf("write check: %w", err)
	}
	err := m.probe.Delete(ctx, checkObject)
	if err != nil && ctx.Err() != nil {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		if cleanupErr := m.probe.Delete(last, checkObject); cleanupErr != nil {
			err = errors.Join(err, cleanupErr)
		}
	}
	if errors.Is(err, storage.ErrPermanent) && ctx.Err() == nil {
		// Stores that keep backups from being deleted do so on purpose,
		// and take WAL. The next check overwrites the object.
		s.opt.Log.LogAttrs(ctx, slog.LevelWarn, "storage does not let the object of the write check be deleted, it stays",
			slog.String(keyStorage, m.Name), slog.Any(keyErr, err))
		return nil
	}
	if err != nil {
		return fmt.Errorf("write check: %w", err)
	}
	return nil
}

// block is the content of the object that checks write: pseudo-random bytes,
// so that no store saves itself the work, the same over and over, so that a
// check of any size takes little memory.
type block []byte

func newBlock() block {
	b := make(block, 64<<10)
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(rand.Uint32())
	}
	_, _ = rand.NewChaCha8(seed).Read(b) // never fails
	return b
}

// ReadAt implements io.ReaderAt; there is no end.
func (b block) ReadAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		n += copy(p[n:], b[(off+int64(n))%int64(len(b)):])
	}
	return len(p), nil
}
