package failover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// CachePath is the path of the status file that WAL-G uses in dir, which is
// $HOME, or /tmp without that: one file for commands that write and one for
// those that only read.
func CachePath(dir string, write bool) string {
	if write {
		return filepath.Join(dir, ".walg_storage_rw_status_cache")
	}
	return filepath.Join(dir, ".walg_storage_ro_status_cache")
}

const (
	// forgetAfter bounds the file: the entry of a storage that nobody asked
	// for so long, or whose settings changed, is removed.
	forgetAfter = 7 * 24 * time.Hour
	// maxCacheSize is more than thousands of storages need.
	maxCacheSize = 1 << 20
)

var errCorrupt = errors.New("it is corrupt; it will be written anew")

// document is the content of the status file: JSON of a status by key. Entries
// of other storages are kept as they are.
type document map[string]json.RawMessage

func (d document) status(key string) status {
	st, _ := decodeStatus(d[key]) // an unreadable one is as good as none
	return st
}

func (d document) set(key string, st status) error {
	raw, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encode status of storage %s: %w", key, err)
	}
	d[key] = raw
	return nil
}

func decodeStatus(raw json.RawMessage) (status, error) {
	var st status
	if raw == nil {
		return st, nil
	}
	if err := json.Unmarshal(raw, &st); err != nil {
		return status{}, fmt.Errorf("%w (%v)", errCorrupt, err)
	}
	return st, nil
}

// parse reads a document; an empty file is one without entries. With
// errCorrupt comes what could be read.
func parse(data []byte) (document, error) {
	doc := document{}
	if len(data) == 0 {
		return doc, nil
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return document{}, fmt.Errorf("%w (%v)", errCorrupt, err)
	}
	if doc == nil { // JSON null
		doc = document{}
	}
	return doc, nil
}

// cache is the status file. It is changed in place under a lock, never
// replaced: the lock, which WAL-G takes too, belongs to the file and not to
// its name. A crash in mid-write leaves a corrupt file, which costs a check.
type cache struct {
	path   string
	forget time.Duration
	now    func() time.Time
}

// load reads the file; that there is none yet is no error. With errCorrupt
// comes what could be read.
func (c cache) load(ctx context.Context) (map[string]status, error) {
	known := map[string]status{}
	if c.path == "" {
		return known, nil
	}
	f, err := openCache(c.path, os.O_RDONLY)
	if errors.Is(err, os.ErrNotExist) {
		return known, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open status file: %w", err)
	}
	defer f.Close() // and with it the lock
	doc, err := c.read(ctx, f, false)
	if doc == nil {
		return nil, err
	}
	for key, raw := range doc {
		st, bad := decodeStatus(raw)
		if bad != nil {
			err = bad
			continue
		}
		known[key] = st
	}
	return known, err
}

// read locks the file and parses it. The document is nil if that failed but
// for errCorrupt.
func (c cache) read(ctx context.Context, f *os.File, exclusive bool) (document, error) {
	if err := lock(ctx, f, exclusive); err != nil {
		return nil, fmt.Errorf("lock status file: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxCacheSize+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read status file: %w", err)
	case len(data) > maxCacheSize:
		return document{}, fmt.Errorf("%w (more than %d bytes)", errCorrupt, maxCacheSize)
	}
	return parse(data)
}

// update changes the file, which it makes if there is none.
func (c cache) update(ctx context.Context, change func(document) error) (err error) {
	f, err := openCache(c.path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return fmt.Errorf("open status file: %w", err)
	}
	defer func() {
		if closeErr := f.Close(); err == nil && closeErr != nil {
			err = fmt.Errorf("write status file: %w", closeErr)
		}
	}()
	doc, err := c.read(ctx, f, true)
	if doc == nil {
		return err
	}
	now := c.now()
	for key, raw := range doc {
		if st, err := decodeStatus(raw); err != nil || now.Sub(st.Updated) > c.forget {
			delete(doc, key)
		}
	}
	if err := change(doc); err != nil {
		return err
	}
	data, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("encode status file: %w", err)
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		return fmt.Errorf("write status file: %w", err)
	}
	if err := f.Truncate(int64(len(data))); err != nil {
		return fmt.Errorf("write status file: %w", err)
	}
	return nil
}
