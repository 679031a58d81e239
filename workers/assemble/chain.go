package assemble

import (
	"context"
	"errors"
	"fmt"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
)

// ErrBaseGone marks an increment whose base was deleted, or taken over by
// another backup of its name, while the increment was taken: it would be
// listed and could not be restored.
var ErrBaseGone = errors.New("what this backup is built on is not there any more; take a full backup")

// secureChain makes sure that an increment can be restored when its sentinel
// appears: all that it is built on is there. If the increment is to be
// permanent, that is made permanent first, from the full backup on, so that
// cut anywhere no permanent backup stands on one that may be deleted.
func (h *CommitHandler) secureChain(ctx context.Context, document []byte) error {
	s, err := manifest.ParseSentinel(document)
	if err != nil {
		return fmt.Errorf("%w: %w", messages.ErrMalformed, err)
	}
	chain, err := h.chain(ctx, s)
	if err != nil || !s.IsPermanent {
		return err
	}
	for i := len(chain) - 1; i >= 0; i-- {
		changed, err := h.Repo.SetPermanent(ctx, chain[i], true)
		switch {
		case errors.Is(err, storage.ErrNotExist):
			return fmt.Errorf("%w: %w", ErrBaseGone, err)
		case err != nil:
			return err
		case changed:
			h.Logger.Info("made permanent, as a permanent backup is built on it", telemetry.KeyBackup, chain[i])
		}
	}
	// One that was being deleted at that moment has lost its sentinel first.
	_, err = h.chain(ctx, s)
	return err
}

// confirmChain looks again when the sentinel is written, and takes it back if
// what it is built on is gone: a delete that did not see the sentinel has taken
// the base before, and one that comes after sees it.
func (h *CommitHandler) confirmChain(ctx context.Context, cj messages.CommitJob) error {
	s, err := manifest.ParseSentinel(cj.Sentinel)
	if err != nil {
		return fmt.Errorf("%w: %w", messages.ErrMalformed, err)
	}
	_, err = h.chain(ctx, s)
	if !errors.Is(err, ErrBaseGone) {
		return err
	}
	if derr := h.Repo.Bucket().Delete(ctx, repo.SentinelKey(cj.Backup)); derr != nil {
		// Tried again: the backup must not stay listed.
		return fmt.Errorf("take back %s: %w (%v)", cj.Backup, derr, err)
	}
	return err
}

// chain names what an increment is built on, nearest first.
func (h *CommitHandler) chain(ctx context.Context, s *manifest.Sentinel) ([]pg.BackupName, error) {
	var chain []pg.BackupName
	for inc := s.Increment; inc != nil && inc.Parent != ""; {
		// A chain is as long as its newest link says, or it is a circle.
		if len(chain) >= s.Increment.Count {
			return nil, fmt.Errorf("%w: %s is more than %d steps from a full backup", messages.ErrMalformed, inc.Parent, s.Increment.Count)
		}
		doc, _, err := h.Repo.Sentinel(ctx, inc.Parent)
		if errors.Is(err, storage.ErrNotExist) {
			return nil, fmt.Errorf("%w: %s", ErrBaseGone, inc.Parent)
		}
		if err != nil {
			return nil, err
		}
		p, err := manifest.ParseSentinel(doc)
		if err != nil {
			return nil, fmt.Errorf("backup %s: %w", inc.Parent, err)
		}
		if p.LSN == nil || *p.LSN != inc.ParentLSN {
			return nil, fmt.Errorf("%w: %s is another backup of that name now", ErrBaseGone, inc.Parent)
		}
		chain = append(chain, inc.Parent)
		inc = p.Increment
	}
	return chain, nil
}
