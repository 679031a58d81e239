// Package catalog is a pure view of the backups in storage: which there are,
// in which order, and which one a user means. It is built from a listing that
// somebody else made; it reads nothing, and it renders nothing.
//
// A question that has no answer, or more than one, is an error that tells how
// to go on: ErrNotFound or ErrAmbiguous.
package catalog

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
)

// SentinelSuffix ends the name of the object whose existence is a backup.
const SentinelSuffix = "_backup_stop_sentinel.json"

// LatestName is the word that stands for the backup with the newest sentinel.
const LatestName = "LATEST"

// Entry is one object out of a listing of the backup folder.
type Entry struct {
	// Object is the object's name in the folder, without the folder.
	Object string
	// Modified is the store's time of the object, which is the backup's
	// time: no document holds it.
	Modified time.Time
	// Storage is the name of the storage listed.
	Storage string
	// Metadata is nil when it was not read or cannot be read.
	Metadata *manifest.Metadata
}

// Backup is one backup in one storage.
type Backup struct {
	Name pg.BackupName
	// Segment is the segment the backup starts in.
	Segment pg.SegmentName
	// Modified is when the sentinel was stored.
	Modified time.Time
	Storage  string
	// Metadata is nil when the catalogue was built without it.
	Metadata *manifest.Metadata
}

// Catalog holds the backups of one or more storages. The same name can be in
// several storages; each is a backup of its own.
type Catalog struct {
	// backups are in the order of the listing.
	backups []Backup
}

// What a question can end in, for errors.Is.
var (
	ErrNotFound  = errors.New("no such backup")
	ErrAmbiguous = errors.New("more than one backup matches")
)

// Build makes a catalogue of a listing. The order of the entries settles ties:
// the storages in the order in which they are preferred, the objects of a
// storage in the order of their names. Entries that are no sentinel of a
// PostgreSQL backup are passed over: folders, and sentinels of the other
// databases WAL-G serves.
func Build(entries []Entry) *Catalog {
	c := new(Catalog)
	for _, e := range entries {
		stem, ok := strings.CutSuffix(e.Object, SentinelSuffix)
		if !ok {
			continue
		}
		name, err := pg.ParseBackupName(stem)
		if err != nil {
			continue
		}
		segment, _ := name.Segment()
		c.backups = append(c.backups, Backup{
			Name: name, Segment: segment, Modified: e.Modified, Storage: e.Storage, Metadata: e.Metadata,
		})
	}
	return c
}

// Len is the number of backups.
func (c *Catalog) Len() int { return len(c.backups) }

// ByModified returns the backups, oldest first, by the time of the sentinel;
// of equal times the one listed first comes first.
func (c *Catalog) ByModified() []Backup {
	sorted := slices.Clone(c.backups)
	slices.SortStableFunc(sorted, func(a, b Backup) int { return a.Modified.Compare(b.Modified) })
	return sorted
}

// ByStart returns the backups by their start time, oldest first; by
// modification if any backup has no start time.
func (c *Catalog) ByStart() []Backup {
	sorted := c.ByModified()
	if slices.ContainsFunc(sorted, func(b Backup) bool { return b.Metadata == nil || b.Metadata.StartTime.IsZero() }) {
		return sorted
	}
	slices.SortStableFunc(sorted, func(a, b Backup) int { return a.Metadata.StartTime.Compare(b.Metadata.StartTime) })
	return sorted
}

// Latest returns the backup with the newest sentinel; of equally new ones the
// last listed. ErrNotFound when there is no backup.
func (c *Catalog) Latest() (Backup, error) {
	if len(c.backups) == 0 {
		return Backup{}, fmt.Errorf("find the latest backup: %w: the storage holds none; see backup-list, and backup-push to make one", ErrNotFound)
	}
	sorted := c.ByModified()
	return sorted[len(sorted)-1], nil
}

// Find returns the backup of that name in the first storage that has it, or
// the latest for LatestName. ErrNotFound when there is none.
func (c *Catalog) Find(name string) (Backup, error) {
	if name == LatestName {
		return c.Latest()
	}
	for _, b := range c.backups {
		if string(b.Name) == name {
			return b, nil
		}
	}
	return Backup{}, fmt.Errorf("find backup %q: %w: backup-list shows those there are", name, ErrNotFound)
}

// FindByUserData returns the backup whose metadata holds the same user data.
// Backups whose metadata is unknown do not match. ErrNotFound when none
// matches, ErrAmbiguous, naming them, when backups of several names do; one
// name in several storages is one backup, and the first storage's is
// returned.
func (c *Catalog) FindByUserData(data manifest.UserData) (Backup, error) {
	var found []Backup
	unknown := 0
	for _, b := range c.backups {
		switch {
		case b.Metadata == nil:
			unknown++
		case len(b.Metadata.UserData) == 0 || !b.Metadata.UserData.Equal(data):
		case !slices.ContainsFunc(found, func(f Backup) bool { return f.Name == b.Name }):
			found = append(found, b)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		names := make([]string, len(found))
		for i, b := range found {
			names[i] = string(b.Name)
		}
		return Backup{}, fmt.Errorf("find backup with user data %s: %w: %s; give one of these names instead",
			data, ErrAmbiguous, strings.Join(names, ", "))
	}
	hint := "backup-list --detail --json shows the user data of each"
	if unknown > 0 {
		hint += fmt.Sprintf("; %d without readable metadata were passed over", unknown)
	}
	return Backup{}, fmt.Errorf("find backup with user data %s: %w: %s", data, ErrNotFound, hint)
}
