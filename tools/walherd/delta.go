package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/restore"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/producer/basebackup"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
)

// deltaRequest is which base an increment is wanted of.
type deltaRequest struct {
	Name, UserData, Origin string
	MaxSteps               int
	Permanent              bool
	// Copy asks for the full backup whose parts a new one is to copy: that of
	// the latest backup, whatever else is said here.
	Copy bool
}

// deltaBase is the base that was chosen, or why there is none.
type deltaBase struct {
	Name     pg.BackupName   `json:"name,omitempty"`
	Sentinel json.RawMessage `json:"sentinel,omitempty"`
	Count    int             `json:"count,omitempty"`
	// Checksums: its cluster had data checksums; nil is not known.
	Checksums *bool `json:"checksums,omitempty"`
	// Full is why a full backup is to be taken; Warn if a person should
	// know.
	Full string `json:"full,omitempty"`
	Warn bool   `json:"warn,omitempty"`
}

// full is no base, for a reason.
func full(warn bool, format string, args ...any) (deltaBase, error) {
	return deltaBase{Full: fmt.Sprintf(format, args...), Warn: warn}, nil
}

// chooseBase picks a base among the backups of one storage, by WAL-G's rules.
// A backup without a list of files is no base: nothing would tell what an
// increment of it leaves out.
func chooseBase(ctx context.Context, r *repo.Repo, req deltaRequest) (deltaBase, error) {
	c, err := readCatalog(ctx, []*repo.Repo{r}, req.UserData != "")
	if err != nil {
		return deltaBase{}, err
	}
	var b catalog.Backup
	switch {
	case req.Name != "":
		if b, err = c.Find(req.Name); err != nil {
			return deltaBase{}, fmt.Errorf("base of the increment: %w", err)
		}
	case req.UserData != "":
		want, perr := manifest.ParseUserData(req.UserData)
		if perr != nil {
			return deltaBase{}, fmt.Errorf("base of the increment: user data: %w", perr)
		}
		if b, err = c.FindByUserData(want); errors.Is(err, catalog.ErrNotFound) {
			return full(true, "no backup has the user data %s", req.UserData)
		} else if err != nil {
			return deltaBase{}, fmt.Errorf("base of the increment: %w", err)
		}
	default:
		if b, err = c.Latest(); err != nil {
			return full(false, "there is no backup to take an increment of")
		}
	}
	chosen, doc, err := readSentinel(ctx, r, b.Name)
	if err != nil {
		return deltaBase{}, err
	}
	base := deltaBase{Name: b.Name, Count: 1, Sentinel: doc}
	if chosen.Increment != nil {
		base.Count = chosen.Increment.Count + 1
	}
	if !req.Copy && base.Count > req.MaxSteps {
		return full(false, "%s is increment %d of its chain, and WALG_DELTA_MAX_STEPS is %d", b.Name, base.Count-1, req.MaxSteps)
	}
	parent := chosen
	if (req.Origin == "LATEST_FULL" || req.Copy) && chosen.Increment != nil {
		base.Name = chosen.Increment.Root
		if parent, base.Sentinel, err = readSentinel(ctx, r, base.Name); err != nil {
			return deltaBase{}, err
		}
	}
	if parent.LSN == nil {
		return full(true, "%s has no start position", base.Name)
	}
	doc, _, err = r.Metadata(ctx, base.Name)
	var meta *manifest.Metadata
	if err == nil {
		meta, err = manifest.ParseMetadata(doc)
	}
	switch {
	case err != nil:
		return full(true, "the metadata of %s cannot be read: %v", base.Name, err)
	case meta.IsPermanent && !req.Permanent && !req.Copy && req.Origin != "LATEST_FULL":
		return full(false, "%s is permanent, this backup is not", base.Name)
	case parent.FilesMetadataDisabled:
		return full(true, "%s was taken without a list of files", base.Name)
	}
	if _, err := r.Bucket().Stat(ctx, repo.FilesMetadataKey(base.Name)); errors.Is(err, storage.ErrNotExist) {
		return full(true, "the list of files of %s is missing", base.Name)
	} else if err != nil {
		return deltaBase{}, fmt.Errorf("list of files of %s: %w", base.Name, err)
	}
	return base, nil
}

func readSentinel(ctx context.Context, r *repo.Repo, name pg.BackupName) (*manifest.Sentinel, []byte, error) {
	doc, _, err := r.Sentinel(ctx, name)
	if err != nil {
		return nil, nil, fmt.Errorf("read the sentinel of %s: %w", name, err)
	}
	s, err := manifest.ParseSentinel(doc)
	if err != nil {
		return nil, nil, fmt.Errorf("backup %s: %w", name, err)
	}
	return s, doc, nil
}

// deltaParent finds the base of this backup; nil is a full backup. A host
// without a storage asks a worker. The bases of a permanent backup become
// permanent with it: the worker that commits it sees to that.
func (a *app) deltaParent(ctx context.Context, f *fleet, permanent, forced bool) (*basebackup.Parent, error) {
	p := &a.set.Postgres
	if p.DeltaMaxSteps == 0 || forced {
		return nil, nil
	}
	if p.WithoutFilesMetadata {
		// As WAL-G does: refusing would leave a host without backups.
		a.log.Warn("taking a full backup: an increment (WALG_DELTA_MAX_STEPS) needs the list of files that WALG_WITHOUT_FILES_METADATA leaves out")
		return nil, nil
	}
	req := deltaRequest{
		Name: p.DeltaFromName, UserData: p.DeltaFromUserData, Origin: p.DeltaOrigin, MaxSteps: p.DeltaMaxSteps, Permanent: permanent,
	}
	return a.findBase(ctx, f, req, "taking a full backup: ")
}

// copyParent finds the full backup whose parts are to be copied; nil if there
// is none.
func (a *app) copyParent(ctx context.Context, f *fleet) (*basebackup.Parent, error) {
	return a.findBase(ctx, f, deltaRequest{Origin: "LATEST_FULL", Copy: true}, "no parts are copied: ")
}

// findBase has the base chosen, here or by a worker. without begins the line
// that tells why there is none.
func (a *app) findBase(ctx context.Context, f *fleet, req deltaRequest, without string) (*basebackup.Parent, error) {
	var base deltaBase
	var list func(ctx context.Context, w io.Writer, name pg.BackupName) error
	if f.storages != nil {
		r, err := f.storages.writer(ctx)
		if err != nil {
			return nil, err
		}
		if base, err = chooseBase(ctx, r, req); err != nil {
			return nil, err
		}
		a.noteChecksums(ctx, r, &base)
		list = func(ctx context.Context, w io.Writer, name pg.BackupName) error { return copyFiles(ctx, r, name, w) }
	} else {
		var out bytes.Buffer
		if err := a.askInto(ctx, f, &out, req.words()...); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(out.Bytes(), &base); err != nil {
			return nil, fmt.Errorf("base of the increment: a worker's answer: %w", err)
		}
		list = func(ctx context.Context, w io.Writer, name pg.BackupName) error {
			return a.askInto(ctx, f, w, "delta-base", "--files", "--", string(name))
		}
	}
	if base.Full != "" {
		if base.Warn {
			a.log.Warn(without + base.Full)
		} else {
			a.log.Info(without + base.Full)
		}
		return nil, nil
	}
	s, err := manifest.ParseSentinel(base.Sentinel)
	if err != nil {
		return nil, fmt.Errorf("base of the increment: backup %s: %w", base.Name, err)
	}
	return &basebackup.Parent{Name: base.Name, Sentinel: s, Count: base.Count, DataChecksums: base.Checksums, Files: func(v manifest.FilesVisitor) error {
		r, w := io.Pipe()
		go func() { w.CloseWithError(list(ctx, w, base.Name)) }() // ends when r is closed
		err := manifest.ReadFiles(r, v)
		r.CloseWithError(err)
		return err
	}}, nil
}

// words are the request as a worker's command line.
func (r deltaRequest) words() []string {
	words := []string{"delta-base", fmt.Sprintf("--max-steps=%d", r.MaxSteps), "--origin=" + r.Origin, "--name=" + r.Name,
		"--user-data=" + r.UserData, fmt.Sprintf("--permanent=%t", r.Permanent)}
	if r.Copy {
		words = append(words, "--copy") // only then, as older workers do not know it
	}
	return words
}

// askInto has a worker run a command whose output goes to w.
func (a *app) askInto(ctx context.Context, f *fleet, w io.Writer, args ...string) error {
	data, err := json.Marshal(apiRequest{Version: messages.Version, Args: args})
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	return f.bus.Ask(ctx, messages.APISubject(f.cluster, verbRun), data, answerSilence, func(out string, data []byte) error {
		if out == "stderr" {
			_, err := a.screen.Write(data)
			return err
		}
		_, err := w.Write(data)
		return err
	})
}

// copyFiles writes a backup's list of files.
func copyFiles(ctx context.Context, r *repo.Repo, name pg.BackupName, w io.Writer) error {
	doc, err := r.OpenFilesMetadata(ctx, name)
	if err != nil {
		return fmt.Errorf("read the list of files of %s: %w", name, err)
	}
	defer doc.Close()
	if _, err := io.Copy(w, doc); err != nil {
		return fmt.Errorf("read the list of files of %s: %w", name, err)
	}
	return nil
}

// deltaBaseCommand is what a worker runs for a host that takes an increment
// and has no storage.
func (a *app) deltaBaseCommand() *cobra.Command {
	var req deltaRequest
	var files bool
	cmd := &cobra.Command{
		Use: "delta-base [backup_name]", Short: "Tell the base of the next increment, or print a backup's list of files",
		Hidden: true, Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if err := a.start(ctx, cmd); err != nil {
				return err
			}
			stores, err := a.openStorages(ctx, true, true)
			if err != nil {
				return err
			}
			defer stores.close()
			r, err := stores.writer(ctx)
			if err != nil {
				return err
			}
			if files {
				if len(args) != 1 {
					return errors.New("delta-base --files: name a backup")
				}
				name, err := pg.ParseBackupName(args[0])
				if err != nil {
					return err
				}
				return copyFiles(ctx, r, name, a.stdout)
			}
			base, err := chooseBase(ctx, r, req)
			if err != nil {
				return err
			}
			a.noteChecksums(ctx, r, &base)
			return json.NewEncoder(a.stdout).Encode(base)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&files, "files", false, "print the list of files of the named backup")
	f.StringVar(&req.Name, "name", "", "the base by its name")
	f.StringVar(&req.UserData, "user-data", "", "the base by its user data")
	f.StringVar(&req.Origin, "origin", "LATEST", "LATEST or LATEST_FULL")
	f.IntVar(&req.MaxSteps, "max-steps", 0, "increments between full backups")
	f.BoolVar(&req.Copy, "copy", false, "tell the full backup whose parts can be copied")
	f.BoolVar(&req.Permanent, "permanent", false, "the increment is to be permanent")
	return a.ask(cmd)
}

// chainOf reads what a restore needs of a backup and all that it builds on,
// base first, and the sources of their parts.
func chainOf(ctx context.Context, r *repo.Repo, backup pg.BackupName) (links []restore.Link, sources []restore.Source, err error) {
	links, err = restore.Chain(backup, func(name pg.BackupName) (*manifest.Sentinel, error) {
		s, _, err := readSentinel(ctx, r, name)
		return s, err
	}, func(err error) bool { return errors.Is(err, storage.ErrNotExist) })
	if err != nil {
		return nil, nil, err
	}
	for i := range links {
		l := &links[i]
		src := source{r: r, backup: l.Backup}
		if l.Parts, err = src.Parts(ctx); err != nil {
			return nil, nil, err
		}
		sources = append(sources, src)
		switch _, err := r.Bucket().Stat(ctx, repo.FilesMetadataKey(l.Backup)); {
		case errors.Is(err, storage.ErrNotExist):
			continue // a backup may have none
		case err != nil:
			return nil, nil, fmt.Errorf("list of files of %s: %w", l.Backup, err)
		}
		l.Files = func(v manifest.FilesVisitor) error {
			doc, err := r.OpenFilesMetadata(ctx, l.Backup)
			if err != nil {
				return fmt.Errorf("read the list of files of %s: %w", l.Backup, err)
			}
			defer doc.Close()
			return manifest.ReadFiles(doc, v)
		}
	}
	return links, sources, nil
}
