package expire

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/retain"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
)

// What a command can end in, for errors.Is, beside engine/retain's refusals.
var (
	// ErrUnreachable: a configured storage cannot be read.
	ErrUnreachable = errors.New("a storage cannot be read")
	// ErrChanged: backups came or went while the plan was carried out.
	ErrChanged = errors.New("the storage has changed since the plan was made")
	// ErrBackup: a backup is being taken that the command could harm.
	ErrBackup = errors.New("a backup is being taken")
)

// Command is a delete command as it was given.
type Command struct {
	Verb  string
	Words []string
	Flags retain.Flags
	// UseStartTime orders backups by the start time in their documents.
	UseStartTime bool
}

// String is the command line behind "delete", without flags.
func (c Command) String() string { return strings.TrimSpace(c.Verb + " " + strings.Join(c.Words, " ")) }

// Policy reads the command.
func (c Command) Policy() (retain.Policy, error) { return retain.Parse(c.Verb, c.Words, c.Flags) }

// Refusal is an answer to a command: nothing was deleted, and asking again
// changes nothing.
type Refusal struct{ Err error }

func (r *Refusal) Error() string { return r.Err.Error() }
func (r *Refusal) Unwrap() error { return r.Err }

// Work carries out one command.
type Work struct {
	Scanner
	// Unreachable names storages that are configured and not among Stores.
	Unreachable []string
	// SafetyAge is retain.Options.SafetyAge.
	SafetyAge time.Duration
	// Backing tells who holds the lease of backups; "" nobody. nil is: it
	// cannot be known.
	Backing func(ctx context.Context) (string, error)
	// Fence is asked before every batch whether this process still has the
	// right to delete; nil is: nobody else can have it.
	Fence func(ctx context.Context) error
	// Batch is how many objects are deleted by one call; 0 is 1000.
	Batch int
	// Rate bounds how many objects are deleted per second; 0 is unbounded.
	Rate float64
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

const defaultBatch = 1000

// plans is how often a command is planned anew because the storage changed.
const plans = 5

func (w *Work) now() time.Time {
	if w.Now == nil {
		return time.Now()
	}
	return w.Now()
}

// Plan takes stock and plans. A *Refusal is the command's answer.
func (w *Work) Plan(ctx context.Context, c Command) (*catalog.Inventory, *retain.Plan, error) {
	policy, err := c.Policy()
	if err != nil {
		return nil, nil, &Refusal{err}
	}
	var warnings []string
	if len(w.Unreachable) > 0 {
		names := strings.Join(w.Unreachable, ", ")
		target, force := false, false
		switch p := policy.(type) {
		case retain.Target:
			target = true
		case retain.Everything:
			force = p.Force
		}
		if !target && !force {
			return nil, nil, &Refusal{fmt.Errorf("delete %s: %w: %s: what it holds may need WAL that would go; make it reachable, or take it out of WALG_FAILOVER_STORAGES",
				c, ErrUnreachable, names)}
		}
		warnings = append(warnings, "storage "+names+" cannot be read: what it holds stays")
	}
	if w.Backing != nil && endangers(policy) {
		who, err := w.Backing(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("see whether a backup is being taken: %w", err)
		}
		if who != "" {
			return nil, nil, &Refusal{fmt.Errorf("delete %s: %w by %s, which may need what would go; wait for its end", c, ErrBackup, who)}
		}
	}
	inv, err := w.Scan(ctx)
	if err != nil {
		return nil, nil, err
	}
	pl, err := retain.NewPlan(inv, policy, retain.Options{UseStartTime: c.UseStartTime, SafetyAge: w.SafetyAge}, w.now())
	if err != nil {
		return nil, nil, &Refusal{err}
	}
	pl.Warnings = append(warnings, pl.Warnings...)
	if g, ok := policy.(retain.Garbage); ok {
		if err := w.addUploads(ctx, g, pl); err != nil {
			return nil, nil, err
		}
	}
	return inv, pl, nil
}

// endangers tells of commands that can take what a backup in the making
// stands on: the newest backup, or WAL that no listed backup needs.
func endangers(p retain.Policy) bool {
	switch p := p.(type) {
	case retain.Target:
		return true
	case retain.Everything:
		return !p.Force
	case retain.Garbage:
		return p.WithoutBackupCheck
	}
	return false
}

// Do plans and deletes, and tells each plan to report before anything of it
// goes. It returns how many objects were deleted, also with an error.
func (w *Work) Do(ctx context.Context, c Command, report func(*retain.Plan) error) (deleted uint64, err error) {
	for try := 1; ; try++ {
		inv, pl, err := w.Plan(ctx, c)
		if err != nil {
			return deleted, err
		}
		if err := report(pl); err != nil {
			return deleted, fmt.Errorf("tell the plan: %w", err)
		}
		n, err := w.execute(ctx, inv, pl)
		deleted += n
		if !errors.Is(err, ErrChanged) || try == plans {
			return deleted, err
		}
		w.Logger.Warn("planning anew", telemetry.KeyReason, err)
	}
}

// execution is one plan being carried out.
type execution struct {
	*Work
	inv     *catalog.Inventory
	buckets map[string]storage.Bucket
	limiter *rate.Limiter
	deleted uint64
	// bySentinel is the backups that are to go, by the place of the sentinel.
	bySentinel map[object]*catalog.Stored
}

type object struct{ store, key string }

// execute removes the plan's objects: stage by stage, each storage's objects
// of a stage in batches.
func (w *Work) execute(ctx context.Context, inv *catalog.Inventory, pl *retain.Plan) (uint64, error) {
	x := &execution{Work: w, inv: inv, buckets: map[string]storage.Bucket{}, bySentinel: map[object]*catalog.Stored{}}
	for _, r := range w.Stores {
		x.buckets[r.Name()] = r.Bucket()
	}
	size := w.Batch
	if size <= 0 {
		size = defaultBatch
	}
	if w.Rate > 0 {
		// No more at a time than in a second: a limit is to be even.
		size = max(min(size, int(w.Rate)), 1)
		x.limiter = rate.NewLimiter(rate.Limit(w.Rate), size)
	}
	doomed := map[catalog.BackupID]*catalog.Stored{}
	for _, d := range pl.Backups {
		if d.Delete {
			doomed[d.Backup.ID] = d.Backup
			if d.Backup.Listed {
				x.bySentinel[object{d.Backup.ID.Storage, d.Backup.ID.Key(catalog.SentinelObject, "")}] = d.Backup
			}
		}
	}
	pending := map[string][]string{}
	stage, phase := -1, retain.Phase(-1)
	flush := func(name string) error {
		keys := pending[name]
		pending[name] = keys[:0]
		return x.remove(ctx, name, phase, keys)
	}
	flushAll := func() error {
		for _, r := range w.Stores {
			if err := flush(r.Name()); err != nil {
				return err
			}
		}
		return nil
	}
	for s := range pl.Steps() {
		if s.Stage != stage {
			if err := flushAll(); err != nil {
				return x.deleted, err
			}
			if s.Phase <= retain.WALObjects {
				err := x.unchanged(ctx, doomed)
				if err == nil && stage < 0 {
					err = x.unmarked(ctx, doomed)
				}
				if err != nil {
					return x.deleted, err
				}
			}
			stage, phase = s.Stage, s.Phase
		}
		pending[s.Storage] = append(pending[s.Storage], s.Key)
		if len(pending[s.Storage]) == size {
			if err := flush(s.Storage); err != nil {
				return x.deleted, err
			}
		}
	}
	if err := flushAll(); err != nil {
		return x.deleted, err
	}
	return x.deleted, x.dropUploads(ctx, pl)
}

// remove deletes one batch.
func (x *execution) remove(ctx context.Context, store string, phase retain.Phase, keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	if x.limiter != nil {
		if err := x.limiter.WaitN(ctx, len(keys)); err != nil {
			return fmt.Errorf("wait to delete: %w", err)
		}
	}
	if phase == retain.Sentinels && x.deleted > 0 {
		// The look at all of them is some batches ago.
		batch := make(map[catalog.BackupID]*catalog.Stored, len(keys))
		for _, key := range keys {
			if b := x.bySentinel[object{store, key}]; b != nil {
				batch[b.ID] = b
			}
		}
		if err := x.unmarked(ctx, batch); err != nil {
			return err
		}
	}
	if x.Fence != nil {
		if err := x.Fence(ctx); err != nil {
			return err
		}
	}
	if err := x.buckets[store].Delete(ctx, keys...); err != nil {
		return fmt.Errorf("delete %d %s from %s on in storage %s: %w; what was left can be deleted by the same command", len(keys), phase, keys[0], store, err)
	}
	x.deleted += uint64(len(keys))
	x.Logger.Debug("deleted a batch", telemetry.KeyStorage, store, "phase", phase.String(), telemetry.KeyCount, len(keys))
	return nil
}

// unchanged lists the sentinels of all storages again, and the leftovers that
// are to go, and returns ErrChanged when there is anything that the plan does
// not know.
func (x *execution) unchanged(ctx context.Context, doomed map[catalog.BackupID]*catalog.Stored) error {
	// Base backups always: the WAL may be that of one which came from
	// elsewhere, and is older than those that are kept.
	folders := map[catalog.Folder]bool{catalog.BaseBackups: true}
	for id := range doomed {
		folders[id.Folder] = true
	}
	known := map[catalog.BackupID]time.Time{}
	for _, b := range x.inv.Backups() {
		if b.Listed {
			known[b.ID] = b.Modified
		}
	}
	for _, r := range x.Stores {
		for folder := range folders {
			for s, err := range r.In(repo.Folder(folder)).Sentinels(ctx) {
				if err != nil {
					return fmt.Errorf("look for new backups: %w", err)
				}
				id := catalog.BackupID{Storage: r.Name(), Folder: folder, Name: s.Name}
				if catalog.Classify(id.Key(catalog.SentinelObject, "")).Kind != catalog.SentinelObject {
					continue // another database's
				}
				// A store may list for a while what is gone, but with its
				// old time.
				if at, ok := known[id]; !ok || !at.Equal(s.Modified) {
					return fmt.Errorf("%w: %s is new", ErrChanged, id)
				}
			}
		}
	}
	for id, b := range doomed {
		if b.Listed {
			continue
		}
		i := slices.IndexFunc(x.Stores, func(r *repo.Repo) bool { return r.Name() == id.Storage })
		for info, err := range x.Stores[i].Bucket().List(ctx, string(id.Folder)+string(id.Name)+"/", storage.ListOptions{}) {
			if err != nil {
				return fmt.Errorf("look at %s again: %w", id, err)
			}
			if info.Modified.After(b.Newest) {
				return fmt.Errorf("%w: %s was added to", ErrChanged, info.Name)
			}
		}
	}
	return nil
}

// unmarked looks whether a backup that is to go was marked permanent since its
// documents were read: that rewrites its metadata.
func (x *execution) unmarked(ctx context.Context, doomed map[catalog.BackupID]*catalog.Stored) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(x.readers())
	for id, b := range doomed {
		if !b.Listed || !b.Metadata {
			continue
		}
		g.Go(func() error {
			info, err := x.buckets[id.Storage].Stat(ctx, id.Key(catalog.MetadataObject, ""))
			switch {
			case errors.Is(err, storage.ErrNotExist):
				return nil
			case err != nil:
				return fmt.Errorf("look at the metadata of %s again: %w", id, err)
			case info.Modified.After(b.Newest):
				return fmt.Errorf("%w: the metadata of %s was written", ErrChanged, id)
			}
			return nil
		})
	}
	return g.Wait()
}
