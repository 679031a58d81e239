package restore

import (
	"errors"
	"fmt"
	"math"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pack"
	"github.com/walherd/walherd/engine/page"
	"github.com/walherd/walherd/engine/pg"
)

// Why a chain cannot be restored, for errors.Is. All but ErrChain itself are
// ErrChain too.
var (
	// ErrChain: the backups do not follow from one another.
	ErrChain = errors.New("broken chain of backups")
	// ErrMissingBase: a backup that others build on is not there.
	ErrMissingBase = fmt.Errorf("%w: a base is missing", ErrChain)
	// ErrCycle: a backup builds on itself.
	ErrCycle = fmt.Errorf("%w: it runs in a circle", ErrChain)
	// ErrOtherSystem: the backups are of different clusters.
	ErrOtherSystem = fmt.Errorf("%w: the backups are of different clusters", ErrChain)
	// ErrFilesMetadata: files_metadata.json is missing, or contradicts that
	// of another backup of the chain. Nothing else tells an increment of a
	// file from a file, and which files were deleted since the base.
	ErrFilesMetadata = fmt.Errorf("%w: the list of files is missing or wrong", ErrChain)
)

// maxChain bounds a chain's length.
const maxChain = 1000

// Link is one backup of a chain.
type Link struct {
	Backup   pg.BackupName
	Sentinel *manifest.Sentinel
	// Parts are the objects of the backup's tar_partitions folder.
	Parts []Object
	// Files reads the backup's files_metadata.json; nil if there is none,
	// which only the full backup at the bottom may lack.
	Files func(manifest.FilesVisitor) error
}

// Chain finds the backups that target builds on, and returns them base first
// and target last, without Parts and Files. sentinel reads a backup's sentinel;
// an error of it that isMissing (nil: none is) becomes ErrMissingBase, unless it
// is the target's own. Names of parents are checked before they are asked for.
func Chain(target pg.BackupName, sentinel func(pg.BackupName) (*manifest.Sentinel, error), isMissing func(error) bool) ([]Link, error) {
	var links []Link
	for name := target; ; {
		s, err := sentinel(name)
		if err != nil {
			if len(links) > 0 && isMissing != nil && isMissing(err) {
				err = fmt.Errorf("%w: %s builds on it: %w", ErrMissingBase, links[len(links)-1].Backup, err)
			}
			return nil, fmt.Errorf("find the chain of %s: read sentinel of %s: %w", target, name, err)
		}
		links = append(links, Link{Backup: name, Sentinel: s})
		if s.Increment == nil {
			slices.Reverse(links)
			return links, nil
		}
		parent, err := pg.ParseBackupName(string(s.Parent))
		switch {
		case s.Parent == "":
			err = fmt.Errorf("%w: %s names no parent; a catch-up backup is restored by catchup-fetch", ErrChain, name)
		case err != nil:
			err = fmt.Errorf("%w: parent of %s: %w", ErrChain, name, err)
		case slices.ContainsFunc(links, func(l Link) bool { return l.Backup == parent }):
			err = fmt.Errorf("%w: %s builds on %s, which builds on it", ErrCycle, name, parent)
		case len(links) >= maxChain:
			err = fmt.Errorf("%w: more than %d backups", ErrChain, maxChain)
		}
		if err != nil {
			return nil, fmt.Errorf("find the chain of %s: %w", target, err)
		}
		name = parent
	}
}

// Step is a backup of a plan that the target builds on.
type Step struct {
	Backup pg.BackupName
	// Data are the objects to restore from, if Wanted is not 0.
	Data []Object
	// Wanted is how many files of the target are found here, or parts of
	// them.
	Wanted int
}

// chain is what becomes of each file of a chain's target. Steps are numbered
// from the base, 0, to the target.
type chain struct {
	files *index
	// whole is the step that holds the file whole: the base, or the newest
	// that does.
	whole []uint16
	// increments are the files that a step holds an increment of. Between
	// whole and the target, a step holds an increment of a file or nothing.
	increments []bitset
	// tars are the files wanted from each tar of a step that lists what is
	// in its tars. They are kept for redundant tars only.
	tars     []map[string][]uint32
	pageSize int
	last     int
	reverse  bool
	// layered tells that files are looked up in the lists at all.
	layered bool
}

// pending is chain.whole of a file that is still looked for.
const pending = math.MaxUint16

type holding uint8

const (
	nothing holding = iota
	wholeFile
	increment
)

// holds tells what step has of file i.
func (c *chain) holds(step, i int) holding {
	switch {
	case step == int(c.whole[i]):
		return wholeFile
	case step > int(c.whole[i]) && c.increments[step].has(i):
		return increment
	}
	return nothing
}

// newest reports whether no later step has anything of file i.
func (c *chain) newest(step, i int) bool {
	for s := step + 1; s <= c.last; s++ {
		if c.increments[s].has(i) {
			return false
		}
	}
	return true
}

// fileKey is the name under which a file is looked up: the path below the data
// directory, as JSON keeps it. The list of files has U+FFFD for each byte that
// is not UTF-8.
func fileKey(name string) string {
	if !utf8.ValidString(name) {
		name = string([]rune(name))
	}
	return path.Clean(strings.TrimPrefix(name, "/"))
}

// NewChainPlan plans the restore of the last of links, each of which builds on
// the one before. A chain of one is a full backup. Backup, Sentinel and Expected
// of the request are taken from the links.
//
// What the target's list of files does not name is not restored: it was deleted
// since. Tablespaces are placed by the target's sentinel.
func NewChainPlan(links []Link, r Request) (*Plan, error) {
	if len(links) == 0 {
		return nil, fmt.Errorf("plan restore: %w: no backup given", ErrChain)
	}
	target := links[len(links)-1]
	p, err := newChainPlan(links, target, r)
	if err != nil {
		return nil, fmt.Errorf("plan restore of %s: %w", target.Backup, err)
	}
	return p, nil
}

func newChainPlan(links []Link, target Link, r Request) (*Plan, error) {
	if err := checkChain(links); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(r.Destination) {
		return nil, fmt.Errorf("destination %q is not an absolute path", r.Destination)
	}
	p := &Plan{Backup: target.Backup, Destination: filepath.Clean(r.Destination), Keep: r.Keep, KeepText: r.KeepText, Recovery: r.Recovery}
	if err := p.checkRecovery(target.Sentinel); err != nil {
		return nil, err
	}
	c := &chain{files: newIndex(), last: len(links) - 1, reverse: r.Reverse, pageSize: r.PageSize}
	if c.pageSize == 0 {
		c.pageSize = page.DefaultSize
	}
	expected := make([][]string, len(links))
	// A list of one backup is needed only to tell which of its tars to leave
	// out. Without a tar of its own the label is in a part (streamed backups),
	// where lists are not looked at.
	c.layered = len(links) > 1 || r.SkipRedundant && r.Keep != nil && target.Files != nil && hasLabel(target.Parts)
	if c.layered {
		p.chain = c
		c.increments = make([]bitset, len(links))
		c.tars = make([]map[string][]uint32, len(links))
	}
	wanted := make([]int, len(links))
	for s := c.last; s >= 0; s-- {
		l := links[s]
		tars, err := c.read(s, l, r)
		if err != nil {
			return nil, fmt.Errorf("backup %s: %w", l.Backup, err)
		}
		expected[s] = tars
	}
	c.trim()
	for i := range c.whole {
		for s := int(c.whole[i]); s <= c.last; s++ {
			if c.holds(s, i) != nothing {
				wanted[s]++
			}
		}
	}
	for s, l := range links {
		if s < c.last && wanted[s] == 0 {
			p.Bases = append(p.Bases, Step{Backup: l.Backup})
			continue
		}
		g, err := sortObjects(l.Parts, expected[s])
		if err == nil && s == c.last {
			err = g.complete(l.Backup)
		}
		if err != nil {
			return nil, fmt.Errorf("backup %s: %w", l.Backup, err)
		}
		if s == c.last {
			p.Data, p.Label, p.Control = g.data, g.label, g.control
		} else {
			p.Bases = append(p.Bases, Step{Backup: l.Backup, Data: g.data, Wanted: wanted[s]})
		}
		p.Concurrency = max(p.Concurrency, concurrency(len(g.data), r.Concurrency))
	}
	if err := p.placeTablespaces(target.Sentinel.Spec, r.Spec); err != nil {
		return nil, err
	}
	return p, nil
}

// hasLabel reports whether backup_label has a tar of its own.
func hasLabel(parts []Object) bool {
	return slices.ContainsFunc(parts, func(o Object) bool { return isTar(o.Name, pack.LabelTarName) })
}

// checkChain refuses backups that do not follow from one another.
func checkChain(links []Link) error {
	for i, l := range links {
		s := l.Sentinel
		switch {
		case s == nil:
			return fmt.Errorf("backup %s: no sentinel", l.Backup)
		case i == 0 && s.Increment != nil:
			return fmt.Errorf("%w: the first backup, %s, is an increment of %q", ErrMissingBase, l.Backup, s.Parent)
		case i == 0:
			continue
		}
		if err := checkLink(links[0], links[i-1], l); err != nil {
			return err
		}
		for _, other := range links[:i] {
			if other.Backup == l.Backup {
				return fmt.Errorf("%w: %s is there twice", ErrCycle, l.Backup)
			}
			if a, b := other.Sentinel.SystemIdentifier, s.SystemIdentifier; a != nil && b != nil && *a != *b {
				return fmt.Errorf("%w: %s is of system %d, %s of %d", ErrOtherSystem, other.Backup, *a, l.Backup, *b)
			}
		}
	}
	return nil
}

func checkLink(root, parent, l Link) error {
	s, p := l.Sentinel, parent.Sentinel
	switch {
	case s.Increment == nil:
		return fmt.Errorf("%w: %s is a full backup and does not build on %s", ErrChain, l.Backup, parent.Backup)
	case s.Parent != parent.Backup:
		return fmt.Errorf("%w: %s builds on %q, not on %s", ErrChain, l.Backup, s.Parent, parent.Backup)
	case s.Root != root.Backup:
		return fmt.Errorf("%w: %s has %q for its full backup, not %s", ErrChain, l.Backup, s.Root, root.Backup)
	case p.LSN == nil || *p.LSN != s.ParentLSN:
		// The parent was replaced by another backup of the same name: two
		// that begin in the same segment have one.
		at := "nowhere"
		if p.LSN != nil {
			at = p.LSN.String()
		}
		return fmt.Errorf("%w: %s was made on a %s that started at %s, this one starts at %s", ErrChain, l.Backup, parent.Backup, s.ParentLSN, at)
	case s.LSN != nil && p.FinishLSN != nil && *s.LSN < *p.FinishLSN:
		return fmt.Errorf("%w: %s starts at %s, before the end of %s at %s", ErrChain, l.Backup, *s.LSN, parent.Backup, *p.FinishLSN)
	case s.PgVersion != 0 && p.PgVersion != 0 && s.PgVersion.Major() != p.PgVersion.Major():
		return fmt.Errorf("%w: %s is of PostgreSQL %d, %s of %d", ErrOtherSystem, l.Backup, s.PgVersion.Major(), parent.Backup, p.PgVersion.Major())
	}
	return nil
}

// read takes in what a step's list of files says, from the target down, and
// returns the tars that it names.
func (c *chain) read(step int, l Link, r Request) (tars []string, err error) {
	switch {
	case c.last == 0 && l.Files == nil:
		return nil, nil
	case step > 0 && l.Files == nil:
		return nil, fmt.Errorf("%w: it has no files_metadata.json, without which an increment of a file cannot be told from a file", ErrFilesMetadata)
	case l.Files == nil:
		for i := range c.whole {
			if c.whole[i] == pending {
				c.whole[i] = 0
			}
		}
		return nil, nil
	}
	var seen bitset
	entries := 0
	v := manifest.FilesVisitor{
		Tar: func(object string) error {
			tars = append(tars, object)
			return nil
		},
	}
	if c.layered {
		v.File = func(name string, f manifest.File) error {
			entries++
			return c.file(step, name, f, r.Keep, &seen)
		}
	}
	if c.layered && r.SkipRedundant && (step < c.last || c.last == 0) {
		c.tars[step] = map[string][]uint32{}
		v.TarEntry = func(object, name string) error {
			of := c.tars[step]
			if of[object] == nil {
				of[object] = []uint32{}
			}
			if i, ok := c.files.find(fileKey(name)); ok {
				of[object] = append(of[object], uint32(i))
			}
			return nil
		}
	}
	if c.last == 0 && v.TarEntry != nil {
		// The list may name what is in the tars before the files.
		if err := l.Files(manifest.FilesVisitor{File: v.File}); err != nil {
			return nil, err
		}
		v.File = nil
	}
	if err := l.Files(v); err != nil {
		return nil, err
	}
	if c.last > 0 && step > 0 && entries == 0 {
		return nil, fmt.Errorf("%w: files_metadata.json lists no file", ErrFilesMetadata)
	}
	for i, w := range c.whole {
		if w == pending && (step == 0 || !seen.has(i)) {
			return nil, fmt.Errorf("%w: a later backup takes %s from this one, which does not have it", ErrFilesMetadata, c.files.name(i))
		}
	}
	return tars, nil
}

// file takes in one entry of a step's list.
func (c *chain) file(step int, name string, f manifest.File, keep Filter, seen *bitset) error {
	key := fileKey(name)
	switch key {
	case controlPath, labelPath, tablespaceMapPath, MarkerName, scratchName, newName:
		return nil // these have ways of their own
	}
	i, ok := c.files.find(key)
	if step == c.last && !ok && keep.wants(key) {
		if _, err := c.files.add(key); err != nil {
			return err
		}
		c.whole = append(c.whole, pending)
		i, ok = c.files.len()-1, true
	}
	switch {
	case !ok:
		return nil
	case seen.has(i):
		return fmt.Errorf("%w: %s is listed twice", ErrFilesMetadata, key)
	}
	seen.add(i)
	switch {
	case c.whole[i] != pending:
		return nil
	case step == 0 && (f.IsSkipped || f.IsIncremented):
		return fmt.Errorf("%w: a full backup cannot take %s from another", ErrFilesMetadata, key)
	case f.IsIncremented:
		c.increments[step].add(i)
	case !f.IsSkipped:
		c.whole[i] = uint16(step)
	}
	return nil
}

// trim forgets the files that a step's tars list and nobody wants from there. It
// has to wait until all steps are read: before, a file is pending.
func (c *chain) trim() {
	for step, tars := range c.tars {
		for object, files := range tars {
			tars[object] = slices.Clip(slices.DeleteFunc(files, func(i uint32) bool {
				return c.holds(step, int(i)) == nothing
			}))
		}
	}
}
