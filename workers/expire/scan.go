package expire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/engine/wal"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
)

// Scanner takes stock of storages.
type Scanner struct {
	// Stores are the storages of one cluster.
	Stores []*repo.Repo
	// Size of the cluster's WAL segments.
	Size pg.SegmentSize
	// Open decodes a stored object of that extension ("lz4"), for history
	// files.
	Open func(ctx context.Context, stored io.Reader, ext string) (io.ReadCloser, error)
	// Readers is how many documents are read at a time; 0 is 16.
	Readers int
	Logger  *slog.Logger
}

// maxHistory bounds what is read of a history file; a real one has a line for
// each promotion.
const maxHistory = 1 << 20

// Scan lists the folders of backups and WAL in each storage, WAL first, and
// reads the backups' documents and the history files. A document that exists
// and makes no sense marks its backup as unreadable; a history file that
// cannot be decoded is warned of and left out. What the storage refuses to list
// or read is an error: a plan of half a storage would delete what the other
// half needs.
func (s *Scanner) Scan(ctx context.Context) (*catalog.Inventory, error) {
	inv, err := catalog.NewInventory(s.Size)
	if err != nil {
		return nil, err
	}
	for _, folder := range []catalog.Folder{catalog.WALFolder, catalog.BaseBackups, catalog.Catchups} {
		for _, r := range s.Stores {
			for info, err := range r.Bucket().List(ctx, string(folder), storage.ListOptions{}) {
				if err != nil {
					return nil, fmt.Errorf("list %s in storage %s: %w", folder, r.Name(), err)
				}
				inv.Add(r.Name(), info.Name, info.Modified)
			}
		}
	}
	for _, r := range s.Stores {
		info, err := r.Bucket().Stat(ctx, catalog.ProbeName)
		switch {
		case err == nil:
			inv.Add(r.Name(), catalog.ProbeName, info.Modified)
		case !errors.Is(err, storage.ErrNotExist):
			return nil, fmt.Errorf("look for %s in storage %s: %w", catalog.ProbeName, r.Name(), err)
		}
	}
	if err := s.describe(ctx, inv); err != nil {
		return nil, err
	}
	return inv, s.histories(ctx, inv)
}

// describe reads the documents of all backups. The requests are most of a
// scan's time, so they go side by side, and a full backup's sentinel is not
// read: its metadata tells the same.
func (s *Scanner) describe(ctx context.Context, inv *catalog.Inventory) error {
	stores := map[string]*repo.Repo{}
	for _, r := range s.Stores {
		stores[r.Name()] = r
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(s.readers())
	for _, b := range inv.Backups() {
		if !b.Listed {
			continue
		}
		g.Go(func() error {
			d, err := s.details(ctx, stores[b.ID.Storage].In(repo.Folder(b.ID.Folder)), b)
			if err != nil {
				return err
			}
			// Each goroutine writes to a backup of its own; Describe would
			// look it up in a map, which is read only by now.
			b.Details = d
			return nil
		})
	}
	return g.Wait()
}

func (s *Scanner) readers() int {
	if s.Readers > 0 {
		return s.Readers
	}
	return 16
}

func (s *Scanner) details(ctx context.Context, r *repo.Repo, b *catalog.Stored) (catalog.Details, error) {
	unreadable := func(what string, err error) (catalog.Details, error) {
		s.Logger.Warn("a document of a backup cannot be read", telemetry.KeyBackup, b.ID.String(), "document", what, telemetry.KeyError, err)
		return catalog.Details{Unreadable: true}, nil
	}
	var meta *manifest.Metadata
	if b.Metadata {
		data, _, err := r.Metadata(ctx, b.ID.Name)
		switch {
		case err == nil:
			if meta, err = manifest.ParseMetadata(data); err != nil {
				return unreadable("metadata.json", err)
			}
		case errors.Is(err, storage.ErrNotExist):
			// It was there a moment ago: somebody else is at work.
			return unreadable("metadata.json", err)
		default:
			return catalog.Details{}, fmt.Errorf("read the metadata of %s: %w", b.ID, err)
		}
	}
	if meta != nil && !b.ID.Name.IsIncrement() && b.ID.Folder == catalog.BaseBackups {
		return catalog.DetailsOf(nil, meta), nil
	}
	data, _, err := r.Sentinel(ctx, b.ID.Name)
	switch {
	case errors.Is(err, storage.ErrNotExist):
		return unreadable("sentinel", err)
	case err != nil:
		return catalog.Details{}, fmt.Errorf("read the sentinel of %s: %w", b.ID, err)
	}
	sentinel, err := manifest.ParseSentinel(data)
	if err != nil {
		return unreadable("sentinel", err)
	}
	return catalog.DetailsOf(sentinel, meta), nil
}

// histories reads one stored copy of each history file, the first that makes
// sense.
func (s *Scanner) histories(ctx context.Context, inv *catalog.Inventory) error {
	stores := map[string]*repo.Repo{}
	for _, r := range s.Stores {
		stores[r.Name()] = r
	}
	for _, f := range inv.HistoryFiles() {
		if _, known := inv.History(f.Timeline); known || strings.HasSuffix(f.Suffix, ".json") {
			continue
		}
		h, err := s.history(ctx, stores[f.Storage], f)
		var bad *historyError
		switch {
		case err == nil:
			inv.AddHistory(h)
		case errors.As(err, &bad) || errors.Is(err, storage.ErrNotExist):
			s.Logger.Warn("a history file cannot be read: its timeline is taken to have branched off anywhere", "file", f.Key(), "storage", f.Storage, telemetry.KeyError, err)
		default:
			return fmt.Errorf("read %s in storage %s: %w", f.Key(), f.Storage, err)
		}
	}
	return nil
}

// historyError is an object that was read and is no history.
type historyError struct{ err error }

func (e *historyError) Error() string { return e.err.Error() }
func (e *historyError) Unwrap() error { return e.err }

func (s *Scanner) history(ctx context.Context, r *repo.Repo, f catalog.HistoryFile) (wal.History, error) {
	stored, err := r.OpenObject(ctx, f.Key(), storage.Range{})
	if err != nil {
		return wal.History{}, err
	}
	defer stored.Close()
	// Whole first: what fails later is the content's fault.
	raw, err := io.ReadAll(io.LimitReader(stored, maxHistory+1))
	if err != nil {
		return wal.History{}, err
	}
	if len(raw) > maxHistory {
		return wal.History{}, &historyError{fmt.Errorf("it has more than %d bytes", maxHistory)}
	}
	ext := strings.TrimPrefix(strings.TrimPrefix(f.Suffix, ".history"), ".")
	plain, err := s.Open(ctx, strings.NewReader(string(raw)), ext)
	if err != nil {
		return wal.History{}, &historyError{err}
	}
	defer plain.Close()
	text, err := io.ReadAll(io.LimitReader(plain, maxHistory+1))
	if err != nil {
		return wal.History{}, &historyError{err}
	}
	h, err := wal.ParseHistory(f.Timeline, text)
	if err != nil {
		return wal.History{}, &historyError{err}
	}
	return h, nil
}
