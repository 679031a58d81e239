// Package repo is WAL-G's layout of names over a storage.Bucket, as typed
// operations: backups in basebackups_005/ (or catchup_005/), archived files in
// wal_005/. It knows names, and the order in which objects appear; what is in
// them it passes through as bytes.
//
// It adds no errors of its own beyond UnknownExtensionError and refused names:
// a missing object is storage.ErrNotExist, and all else comes from the Bucket.
package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/storage"
)

// documentMax bounds what Sentinel and Metadata read into memory. Real ones
// have less than a kilobyte plus the user's data.
const documentMax = 16 << 20

// Repo is one storage with WAL-G's layout. It is safe for concurrent use.
type Repo struct {
	b      storage.Bucket
	name   string
	folder Folder
}

// New makes a Repo of base backups over b. name is the storage's name in
// listings and settings, "default" for the primary one.
func New(b storage.Bucket, name string) *Repo {
	return &Repo{b: b, name: name, folder: BaseBackups}
}

// In is the same storage with the backups of another folder.
func (r *Repo) In(f Folder) *Repo {
	return &Repo{b: r.b, name: r.name, folder: f}
}

// Name is the storage's name.
func (r *Repo) Name() string { return r.name }

// Folder is where the backups are.
func (r *Repo) Folder() Folder { return r.folder }

// Bucket is the storage itself, for what the layout does not cover.
func (r *Repo) Bucket() storage.Bucket { return r.b }

// SentinelObject is a backup as a listing shows it.
type SentinelObject struct {
	// Name of the backup: what stands before the sentinel's suffix. A
	// foreign object may make it a name that pg.ParseBackupName refuses.
	Name pg.BackupName
	// Modified is the store's time of the sentinel. WAL-G calls it the
	// backup's time, and LATEST goes by it.
	Modified time.Time
	// Size of the sentinel in bytes.
	Size int64
}

// Sentinels yields the backups that exist, in the order of their names. It
// lists one level and never walks the parts, so it costs the same whatever
// the size of the backups. What has no sentinel is not there.
func (r *Repo) Sentinels(ctx context.Context) iter.Seq2[SentinelObject, error] {
	return func(yield func(SentinelObject, error) bool) {
		for info, err := range r.b.List(ctx, string(r.folder), storage.ListOptions{Shallow: true}) {
			if err != nil {
				yield(SentinelObject{}, fmt.Errorf("list backups in storage %s: %w", r.name, err))
				return
			}
			name, ok := strings.CutSuffix(strings.TrimPrefix(info.Name, string(r.folder)), SentinelSuffix)
			if info.Dir || !ok || name == "" {
				continue
			}
			if !yield(SentinelObject{Name: pg.BackupName(name), Modified: info.Modified, Size: info.Size}, nil) {
				return
			}
		}
	}
}

// Sentinel reads a backup's sentinel. storage.ErrNotExist is: there is no
// such backup.
func (r *Repo) Sentinel(ctx context.Context, backup pg.BackupName) ([]byte, storage.Info, error) {
	return r.document(ctx, r.folder.SentinelKey(backup))
}

// Metadata reads a backup's metadata.json.
func (r *Repo) Metadata(ctx context.Context, backup pg.BackupName) ([]byte, storage.Info, error) {
	return r.document(ctx, r.folder.MetadataKey(backup))
}

// document reads a small object and describes it, in one request where the
// store tells with the body what it belongs to.
func (r *Repo) document(ctx context.Context, key string) ([]byte, storage.Info, error) {
	body, err := r.b.Open(ctx, key, storage.Range{})
	if err != nil {
		return nil, storage.Info{}, err
	}
	defer body.Close()
	info, ok := storage.InfoOf(body)
	if !ok {
		if info, err = r.b.Stat(ctx, key); err != nil {
			return nil, storage.Info{}, err
		}
	}
	data, err := io.ReadAll(io.LimitReader(body, documentMax+1))
	if err != nil {
		return nil, storage.Info{}, fmt.Errorf("read %s: %w", key, err)
	}
	if len(data) > documentMax {
		return nil, storage.Info{}, fmt.Errorf("read %s: it has more than %d bytes, which no such document needs", key, documentMax)
	}
	return data, info, nil
}

// OpenFilesMetadata opens a backup's files_metadata.json, which can have
// hundreds of megabytes and is to be read as a stream. A backup may have none
// (storage.ErrNotExist). The caller closes it.
func (r *Repo) OpenFilesMetadata(ctx context.Context, backup pg.BackupName) (io.ReadCloser, error) {
	return r.b.Open(ctx, r.folder.FilesMetadataKey(backup), storage.Range{})
}

// PartObject is a part of a backup as a listing shows it.
type PartObject struct {
	// Name with its extension ("part_001.tar.lz4"); for PartKey.
	Name string
	// Key is the object's full name; for OpenObject.
	Key string
	// Size in bytes, compressed and sealed as stored.
	Size     int64
	Modified time.Time
}

// Parts yields the objects among a backup's parts, in the order of their
// names. Numbers can have gaps.
func (r *Repo) Parts(ctx context.Context, backup pg.BackupName) iter.Seq2[PartObject, error] {
	prefix := r.folder.partsPrefix(backup)
	return func(yield func(PartObject, error) bool) {
		if err := checkElement("backup", string(backup)); err != nil {
			yield(PartObject{}, err)
			return
		}
		for info, err := range r.b.List(ctx, prefix, storage.ListOptions{}) {
			if err != nil {
				yield(PartObject{}, fmt.Errorf("list parts of %s in storage %s: %w", backup, r.name, err))
				return
			}
			if !yield(PartObject{Name: strings.TrimPrefix(info.Name, prefix), Key: info.Name, Size: info.Size, Modified: info.Modified}, nil) {
				return
			}
		}
	}
}

// OpenObject opens any object of the storage by its key. The caller closes it.
func (r *Repo) OpenObject(ctx context.Context, key string, rng storage.Range) (io.ReadCloser, error) {
	return r.b.Open(ctx, key, rng)
}

// PutPart stores a part; key is PartKey's. It is the first of the effects that
// make a backup: see PutSentinel.
func (r *Repo) PutPart(ctx context.Context, key string, content io.Reader) (storage.Info, error) {
	if err := checkPartKey(key); err != nil {
		return storage.Info{}, err
	}
	return r.b.Put(ctx, key, content, storage.PutOptions{})
}

// CopyPart makes the part to of the part from, both keys of PartKey, with its
// stored bytes as they are.
func (r *Repo) CopyPart(ctx context.Context, from, to string) (storage.Info, error) {
	for _, key := range []string{from, to} {
		if err := checkPartKey(key); err != nil {
			return storage.Info{}, err
		}
	}
	return storage.Copy(ctx, r.b, from, to)
}

// PutFilesMetadata stores files_metadata.json: after the parts, before
// PutMetadata.
func (r *Repo) PutFilesMetadata(ctx context.Context, backup pg.BackupName, content io.Reader) (storage.Info, error) {
	return r.put(ctx, backup, r.folder.FilesMetadataKey(backup), content)
}

// PutMetadata stores metadata.json: after PutFilesMetadata, before
// PutSentinel. It is also how a backup is marked permanent later.
func (r *Repo) PutMetadata(ctx context.Context, backup pg.BackupName, document []byte) (storage.Info, error) {
	return r.put(ctx, backup, r.folder.MetadataKey(backup), bytes.NewReader(document))
}

// PutSentinel stores the sentinel, last of all. A backup exists when its
// sentinel does: no reader looks further, and WAL-G restores a backup whose
// file list is missing without a word. So whatever the sentinel speaks for
// must be durable before it appears; a crash before leaves objects that no
// listing of backups shows and that delete garbage removes, a crash after
// leaves a complete backup. Deletion goes the other way round, sentinel first.
func (r *Repo) PutSentinel(ctx context.Context, backup pg.BackupName, document []byte) (storage.Info, error) {
	return r.put(ctx, backup, r.folder.SentinelKey(backup), bytes.NewReader(document))
}

func (r *Repo) put(ctx context.Context, backup pg.BackupName, key string, content io.Reader) (storage.Info, error) {
	if err := checkElement("backup", string(backup)); err != nil {
		return storage.Info{}, err
	}
	return r.b.Put(ctx, key, content, storage.PutOptions{})
}

// PutWAL stores an archived file under name, which includes the extension of
// its compression.
func (r *Repo) PutWAL(ctx context.Context, name string, content io.Reader, opt storage.PutOptions) (storage.Info, error) {
	if err := checkElement("WAL", name); err != nil {
		return storage.Info{}, err
	}
	return r.b.Put(ctx, WALKey(name), content, opt)
}

// UnknownExtensionError is a WAL file that is there, but only in a form the
// program cannot read.
type UnknownExtensionError struct {
	// Key of the object.
	Key string
	// Ext is its extension, without the dot.
	Ext string
}

// Error implements error.
func (e *UnknownExtensionError) Error() string {
	return fmt.Sprintf("find WAL: %s is stored with the compression %q, which this program cannot read", e.Key, e.Ext)
}

// walEndings are what WAL-G appends to the name of an archived file, in the
// order in which it tries them. The lone dot is what its method "none" asks
// for; the bare name is what it writes with it.
var walEndings = [...]string{".lz4", ".lzma", ".gz", ".", ".br", ".lzo", ".zst", ""}

// FindWAL finds the archived file name (without extension) in whatever
// compression it is stored: key is the object, ext its extension without dot,
// "" for an uncompressed one. It asks for preferred (an extension, "" for none)
// first, then takes one listing of the names that start with name and picks
// the first in WAL-G's order, of those in known (extensions the caller can
// read; uncompressed always counts). storage.ErrNotExist when there is none,
// *UnknownExtensionError when there are only others.
func (r *Repo) FindWAL(ctx context.Context, name, preferred string, known []string) (key, ext string, err error) {
	if err := checkElement("WAL", name); err != nil {
		return "", "", err
	}
	readable := func(ext string) bool { return ext == "" || slices.Contains(known, ext) }
	if readable(preferred) {
		key := WALKey(name)
		if preferred != "" {
			key += "." + preferred
		}
		_, err := r.b.Stat(ctx, key)
		if err == nil {
			return key, preferred, nil
		}
		if !errors.Is(err, storage.ErrNotExist) {
			return "", "", fmt.Errorf("find WAL %s in storage %s: %w", name, r.name, err)
		}
	}
	stored, err := r.walEndings(ctx, name)
	if err != nil {
		return "", "", fmt.Errorf("find WAL %s in storage %s: %w", name, r.name, err)
	}
	var unknown *UnknownExtensionError
	for i, ending := range walEndings {
		if !stored[i] {
			continue
		}
		key, ext := WALKey(name)+ending, strings.TrimPrefix(ending, ".")
		if readable(ext) {
			return key, ext, nil
		}
		if unknown == nil {
			unknown = &UnknownExtensionError{Key: key, Ext: ext}
		}
	}
	if unknown != nil {
		return "", "", unknown
	}
	return "", "", fmt.Errorf("find WAL %s in storage %s: %w", name, r.name, storage.ErrNotExist)
}

// walEndings tells which of the endings name is stored with.
func (r *Repo) walEndings(ctx context.Context, name string) ([len(walEndings)]bool, error) {
	var stored [len(walEndings)]bool
	for info, err := range r.b.List(ctx, WALKey(name), storage.ListOptions{Shallow: true}) {
		if err != nil {
			return stored, err
		}
		if i := slices.Index(walEndings[:], strings.TrimPrefix(info.Name, WALKey(name))); i >= 0 && !info.Dir {
			stored[i] = true
		}
	}
	return stored, nil
}
