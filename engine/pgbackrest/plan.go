package pgbackrest

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/restore"
)

const (
	// maxGap is how many bytes of a bundle between two wanted files are read
	// and thrown away; with more, the bundle is asked for again.
	maxGap = 256 << 10
	// maxBatch bounds the stored bytes of one batch of a bundle, so that a
	// failure does not cost all of a large one.
	maxBatch = 32 << 20
	// emptyBatch is how many empty files are one batch.
	emptyBatch = 512
)

// Request is what a user wants restored.
type Request struct {
	// Stanza the manifest is of.
	Stanza string
	// Destination is the data directory to make: an absolute path.
	Destination string
	// Spec moves the tablespaces; see restore.NewFilesPlan.
	Spec *manifest.TablespaceSpec
	// Concurrency is how many objects may be read at once; 0 is a default.
	Concurrency int
}

// Plan is what Repository.Restore does.
type Plan struct {
	*restore.FilesPlan
	// Notes tell the user what is not as it was.
	Notes []string

	manifest *Manifest
	batches  []batch
}

// batch is where the files of one restore.Batch are.
type batch struct {
	object string
	// offset and length are the part of a bundle; length 0 is the whole
	// object.
	offset, length int64
	files          []*File
}

// NewPlan plans the restore of a backup. It refuses one with files stored in
// blocks (ErrUnsupported) and a manifest whose paths leave the data directory, as
// restore.NewFilesPlan does.
//
// What pgBackRest leaves out of a restore is left out: tablespace_map, as the
// links are made. Links into other directories become what they pointed to, a
// file or a directory at their place, as pgbackrest restore does without
// --link-all.
func NewPlan(m *Manifest, r Request) (*Plan, error) {
	if m.blocks {
		return nil, fmt.Errorf("plan restore of %s: %w", m.Label, errBlocks)
	}
	p := &Plan{manifest: m}
	if err := p.collect(r.Stanza); err != nil {
		return nil, fmt.Errorf("plan restore of %s: %w", m.Label, err)
	}
	req := restore.FilesRequest{
		Backup: string(m.Label), Destination: r.Destination, Spec: r.Spec, Offline: !m.Online, Concurrency: r.Concurrency,
		Original: &manifest.TablespaceSpec{BasePrefix: m.DataDir},
	}
	for _, t := range m.Tablespaces {
		req.Original.Tablespaces = append(req.Original.Tablespaces, manifest.NewTablespace(t.OID, t.Location))
	}
	for _, d := range m.Directories {
		path, err := m.place(d.Name)
		if err != nil {
			return nil, fmt.Errorf("plan restore of %s: %w", m.Label, err)
		}
		if path != "" {
			req.Directories = append(req.Directories, restore.Directory{Path: path, Mode: d.Mode})
		}
	}
	for _, b := range p.batches {
		rb := restore.Batch{Object: b.object, Stored: b.length}
		for _, f := range b.files {
			path, err := m.place(f.Name)
			if err != nil {
				return nil, fmt.Errorf("plan restore of %s: %w", m.Label, err)
			}
			rb.Files = append(rb.Files, restore.File{Path: path, Mode: f.Mode, Size: f.Size, Modified: time.Unix(f.Modified, 0)})
			if b.length == 0 && f.Size > 0 {
				rb.Stored += f.Stored
			}
		}
		req.Batches = append(req.Batches, rb)
	}
	for _, l := range m.Links {
		name := strings.TrimPrefix(l.Name, dataTarget+"/")
		p.Notes = append(p.Notes, fmt.Sprintf("%s was a link to %s and is restored at its place in the data directory", name, l.Destination))
	}
	var err error
	p.FilesPlan, err = restore.NewFilesPlan(req)
	return p, err
}

// place is the path of a name of the manifest in a restored data directory;
// empty for the folder of all tablespaces, which is none.
func (m *Manifest) place(name string) (string, error) {
	target, path, below := strings.Cut(name, "/")
	switch {
	case target == dataTarget && !below:
		return ".", nil
	case target == tablespaceTarget && !below:
		return "", nil
	case target == dataTarget:
		// Through the link there are other names for a tablespace's files.
		oid, ok := strings.CutPrefix(path, tablespaceTarget+"/")
		if oid, _, _ = strings.Cut(oid, "/"); ok && m.hasTablespace(oid) {
			return "", corrupt("%.200q lies in the link of a tablespace", name)
		}
		return path, nil
	case target == tablespaceTarget:
		if oid, _, _ := strings.Cut(path, "/"); m.hasTablespace(oid) {
			return name, nil
		}
	}
	return "", corrupt("%.200q is in no target of the backup", name)
}

// collect puts the files into batches: those of a bundle as they lie in it,
// all others alone, and the empty ones together since nothing is read of them.
func (p *Plan) collect(stanza string) error {
	m := p.manifest
	type bundleKey struct {
		label Label
		id    int64
	}
	bundles := map[bundleKey][]*File{}
	var empty []*File
	for i := range m.Files {
		f := &m.Files[i]
		switch label := m.has(f); {
		case f.Size == 0:
			empty = append(empty, f)
		case f.bundle > 0:
			bundles[bundleKey{label, f.bundle}] = append(bundles[bundleKey{label, f.bundle}], f)
		default:
			object := backupFolder(stanza, label) + f.Name
			if ext := m.method.Extension(); ext != "" {
				object += "." + ext
			}
			p.batches = append(p.batches, batch{object: object, files: []*File{f}})
		}
	}
	for key, files := range bundles {
		object := backupFolder(stanza, key.label) + "bundle/" + strconv.FormatInt(key.id, 10)
		if err := p.collectBundle(object, files); err != nil {
			return err
		}
	}
	// The order of a map is none; two plans of one manifest are alike.
	slices.SortFunc(p.batches, func(a, b batch) int {
		return cmp.Or(cmp.Compare(a.object, b.object), cmp.Compare(a.offset, b.offset))
	})
	for part := range slices.Chunk(empty, emptyBatch) {
		p.batches = append(p.batches, batch{files: part})
	}
	return nil
}

func (p *Plan) collectBundle(object string, files []*File) error {
	slices.SortFunc(files, func(a, b *File) int { return cmp.Compare(a.offset, b.offset) })
	var b batch
	end := int64(0)
	for _, f := range files {
		if f.Stored == 0 {
			return corrupt("file %.200q takes no room in its bundle", f.Name)
		}
		if f.offset < end {
			return corrupt("file %.200q overlaps another one in its bundle", f.Name)
		}
		if len(b.files) > 0 && (f.offset-end > maxGap || f.offset+f.Stored-b.offset > maxBatch) {
			p.batches = append(p.batches, b)
			b = batch{}
		}
		if len(b.files) == 0 {
			b = batch{object: object, offset: f.offset}
		}
		end = f.offset + f.Stored
		b.length = end - b.offset
		b.files = append(b.files, f)
	}
	p.batches = append(p.batches, b)
	return nil
}

func backupFolder(stanza string, label Label) string {
	return "backup/" + stanza + "/" + string(label) + "/"
}
