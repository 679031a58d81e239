package pgbackrest

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strings"
	"time"

	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/pg"
)

// WALObject is an archived file.
type WALObject struct {
	// Object is its name under the repository's root.
	Object string
	// Name of the file: a segment, SEG.partial, a history file.
	Name     string
	Modified time.Time

	method compress.Method
	// sum is the content's SHA-1 and known for segments, partial ones
	// included; other files are stored under their own names, uncompressed.
	sum    [sha1Len]byte
	proven bool
}

// walFolder is where the segments with the same first 16 digits are.
func walFolder(stanza string, d Database, name string) string {
	return "archive/" + stanza + "/" + d.Folder() + "/" + name[:16] + "/"
}

// parseWALObject reads the name of a stored segment; false for any other.
func parseWALObject(object string) (WALObject, bool) {
	file := object[strings.LastIndexByte(object, '/')+1:]
	name, rest, ok := strings.Cut(file, "-")
	kind, _ := pg.ClassifyWALFile(name)
	if !ok || kind != pg.SegmentFile && kind != pg.PartialFile {
		return WALObject{}, false
	}
	digits, ext, dotted := strings.Cut(rest, ".")
	sum, err := hex.DecodeString(digits)
	method, merr := compress.ByExtension(ext)
	if err != nil || len(sum) != sha1Len || merr != nil || dotted && ext == "" {
		return WALObject{}, false
	}
	return WALObject{Object: object, Name: name, method: method, sum: [sha1Len]byte(sum), proven: true}, true
}

// FindWAL looks for a file in the archive, in the folders of the databases
// with that system identifier or, if it is 0, of all, the newest first.
// fs.ErrNotExist when it is in none; ErrDuplicate when one folder has it with
// different contents, of which one would be wrong.
func (r *Repository) FindWAL(ctx context.Context, info *ArchiveInfo, id pg.SystemID, name string) (WALObject, error) {
	databases := info.Of(id)
	if len(databases) == 0 {
		return WALObject{}, fmt.Errorf("find WAL %s: stanza %s has no WAL of the cluster with the system identifier %d; it has that of %d", name, r.opt.Stanza, id, info.Databases[0].SystemID)
	}
	kind, _ := pg.ClassifyWALFile(name)
	for _, d := range databases {
		var o WALObject
		var err error
		switch kind {
		case pg.SegmentFile, pg.PartialFile:
			o, err = r.findSegment(ctx, walFolder(r.opt.Stanza, d, name), name)
		case pg.BackupFile:
			o, err = r.findFile(ctx, walFolder(r.opt.Stanza, d, name), name)
			if !errors.Is(err, fs.ErrNotExist) {
				break
			}
			fallthrough
		case pg.TimelineHist:
			o, err = r.findFile(ctx, "archive/"+r.opt.Stanza+"/"+d.Folder()+"/", name)
		default:
			return WALObject{}, fmt.Errorf("find WAL: %q is no name of a WAL file", name)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return o, err
		}
	}
	return WALObject{}, fmt.Errorf("find WAL %s in stanza %s: %w", name, r.opt.Stanza, fs.ErrNotExist)
}

func (r *Repository) findSegment(ctx context.Context, folder, name string) (found WALObject, err error) {
	for object, err := range r.store.List(ctx, folder+name+"-") {
		if err != nil {
			return found, fmt.Errorf("find WAL %s: %w", name, err)
		}
		o, ok := parseWALObject(object.Name)
		switch {
		case !ok || o.Name != name:
			continue
		case found.Object != "" && found.sum != o.sum:
			return found, fmt.Errorf("WAL %s is %w: %s and %s: are two clusters archiving to this stanza?", name, ErrDuplicate, found.Object, o.Object)
		}
		o.Modified = object.Modified
		found = o
	}
	if found.Object == "" {
		return found, fs.ErrNotExist
	}
	return found, nil
}

func (r *Repository) findFile(ctx context.Context, folder, name string) (WALObject, error) {
	for object, err := range r.store.List(ctx, folder+name) {
		if err != nil {
			return WALObject{}, fmt.Errorf("find WAL %s: %w", name, err)
		}
		if object.Name == folder+name {
			return WALObject{Object: object.Name, Name: name, Modified: object.Modified, method: compress.None}, nil
		}
	}
	return WALObject{}, fs.ErrNotExist
}

// OpenWAL reads an archived file. What it gives of a segment is proven only
// when it ends with io.EOF; damage is ErrCorrupt. The caller closes it.
func (r *Repository) OpenWAL(ctx context.Context, info *ArchiveInfo, o WALObject) (io.ReadCloser, error) {
	stored, err := r.store.Open(ctx, o.Object, 0, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", o.Object, err)
	}
	c, err := newContent(stored, info.passphrase, new(compress.Readers), o.method, -1, o.sum)
	if err != nil {
		return nil, errors.Join(err, stored.Close())
	}
	c.unproven = !o.proven
	c.closers = append(c.closers, stored)
	return c, nil
}

// WAL yields what a database's archive holds: segments and partial ones, and
// history files, in the order of their names within each folder. Backup
// history files are left out.
func (r *Repository) WAL(ctx context.Context, d Database) iter.Seq2[WALObject, error] {
	top := "archive/" + r.opt.Stanza + "/" + d.Folder() + "/"
	return func(yield func(WALObject, error) bool) {
		for o, err := range r.walk(ctx, top) {
			if err != nil {
				yield(WALObject{}, fmt.Errorf("list WAL of stanza %s: %w", r.opt.Stanza, err))
				return
			}
			w, ok := parseWALObject(o.Name)
			if file := strings.TrimPrefix(o.Name, top); !ok {
				kind, _ := pg.ClassifyWALFile(file)
				if ok = kind == pg.TimelineHist; ok {
					w = WALObject{Object: o.Name, Name: file, method: compress.None}
				}
			}
			if w.Modified = o.Modified; ok && !yield(w, nil) {
				return
			}
		}
	}
}

// walk lists two levels.
func (r *Repository) walk(ctx context.Context, top string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		for o, err := range r.store.List(ctx, top) {
			if err != nil || !strings.HasSuffix(o.Name, "/") {
				if !yield(o, err) || err != nil {
					return
				}
				continue
			}
			for o, err := range r.store.List(ctx, o.Name) {
				if !yield(o, err) || err != nil {
					return
				}
			}
		}
	}
}
