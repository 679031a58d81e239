package repo

import (
	"context"
	"errors"
	"fmt"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/storage"
)

// SetPermanent sets whether a backup may be deleted; changed tells whether it
// had to be. storage.ErrNotExist is: there is no such backup, or it was deleted
// meanwhile.
//
// It is one write, of metadata.json, whose flag is the one that every command
// goes by, WAL-G's too. The sentinel keeps the flag it was made with, because
// the time of that object is the time of the backup: to write it again would
// make an old backup LATEST and move it past every limit of a deletion. A
// backup without metadata.json is given the one that its sentinel implies.
func (r *Repo) SetPermanent(ctx context.Context, backup pg.BackupName, permanent bool) (changed bool, err error) {
	if err := checkElement("backup", string(backup)); err != nil {
		return false, err
	}
	fail := func(err error) (bool, error) {
		return false, fmt.Errorf("mark backup %s in storage %s: %w", backup, r.name, err)
	}
	sentinel, _, err := r.Sentinel(ctx, backup)
	if err != nil {
		return fail(err)
	}
	doc, _, err := r.Metadata(ctx, backup)
	var m *manifest.Metadata
	switch {
	case errors.Is(err, storage.ErrNotExist):
		s, serr := manifest.ParseSentinel(sentinel)
		if serr != nil {
			return fail(serr)
		}
		m = s.Metadata()
		doc, err = m.Encode()
	case err == nil:
		m, err = manifest.ParseMetadata(doc)
	}
	if err != nil {
		return fail(err)
	}
	if m.IsPermanent == permanent {
		return false, nil
	}
	if doc, err = manifest.SetPermanent(doc, permanent); err != nil {
		return fail(err)
	}
	if _, err := r.PutMetadata(ctx, backup, doc); err != nil {
		return fail(err)
	}
	// A deletion that runs without a lease may have begun before it could see
	// the flag; who keeps a backup must hear that.
	if _, err := r.b.Stat(ctx, r.folder.SentinelKey(backup)); err != nil {
		return fail(fmt.Errorf("see whether it is still there: %w", err))
	}
	return true, nil
}
