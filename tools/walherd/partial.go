package main

import (
	"errors"
	"fmt"

	"github.com/walherd/walherd/engine/restore"
)

// limitRestore makes the request one for the files that are wanted.
func (a *app) limitRestore(req *restore.Request, target restore.Link, opt fetchOptions) (err error) {
	if opt.mask != "" {
		if len(opt.only) > 0 {
			return errors.New("--mask and --restore-only exclude each other")
		}
		req.Keep, err = restore.MaskFilter(opt.mask)
		req.KeepText = "--mask " + opt.mask
		return err
	}
	if len(opt.only) == 0 {
		if opt.allowMissing {
			return errors.New("--allow-missing goes with --restore-only")
		}
		return nil
	}
	only, err := restore.ParseOnly(opt.only)
	if err != nil {
		return fmt.Errorf("--restore-only: %w", err)
	}
	noNames := fmt.Errorf("--restore-only: backup %s: %w", target.Backup, restore.ErrNoNames)
	if target.Files == nil {
		return fmt.Errorf("%w: it has no files_metadata.json (--without-files-metadata leaves it out); restore all of it", noNames)
	}
	var notes []string
	req.Keep, notes, err = only.Resolve(target.Files, opt.allowMissing)
	switch {
	case errors.Is(err, restore.ErrNoNames):
		return fmt.Errorf("%w: it was streamed (backup-push without a directory) or taken with WALG_DISABLE_PARTIAL_RESTORE; restore all of it", noNames)
	case errors.Is(err, restore.ErrNoSuchRelation):
		return fmt.Errorf("--restore-only: backup %s: %w; --allow-missing goes on without", target.Backup, err)
	case err != nil:
		return fmt.Errorf("--restore-only: backup %s: %w", target.Backup, err)
	}
	for _, n := range notes {
		a.log.Warn("--restore-only: " + n)
	}
	req.KeepText = "--restore-only " + only.String()
	req.Reverse, req.SkipRedundant = true, true
	a.log.Info("--restore-only: the newest backup is unpacked first, and tars in which nothing is wanted are left out")
	a.log.Warn("only a part of the cluster is restored: the catalogs still name the rest; drop those databases and tables after recovery")
	return nil
}
