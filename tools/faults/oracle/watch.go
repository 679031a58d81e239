package oracle

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Watch remembers every object of a bucket from the first look at it.
type Watch struct {
	b Bucket

	mu       sync.Mutex
	objects  map[string]*object
	findings []Finding
}

type object struct {
	sum   string
	first time.Time
	// What changes with every replacement.
	ino   uint64
	mtime time.Time
	size  int64
	gone  bool
	// named is when its name was given to it, later than mtime.
	named time.Time
}

// NewWatch watches b.
func NewWatch(b Bucket) *Watch { return &Watch{b: b, objects: map[string]*object{}} }

// Objects is how many were ever seen.
func (w *Watch) Objects() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.objects)
}

// Findings are the changes that were seen.
func (w *Watch) Findings() []Finding {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Finding(nil), w.findings...)
}

// Look looks at every object; with deep set it reads each again, else only
// those that were replaced.
func (w *Watch) Look(deep bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	root := filepath.Join(w.b.Dir, w.b.Prefix)
	seen := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		seen[rel] = true
		return w.one(path, rel, deep)
	})
	if err != nil {
		return fmt.Errorf("look at the bucket: %w", err)
	}
	for rel, o := range w.objects {
		if !seen[rel] && !o.gone {
			o.gone = true
			// What belongs to no backup may be cleared away; nothing else
			// was told to go in a run.
			if !w.unlisted(rel) {
				w.findings = append(w.findings, Finding{Unchanged, rel + " is gone"})
			}
		}
	}
	return nil
}

// unlisted reports whether an object belongs to a backup without a sentinel,
// or to one whose sentinel came only after it went (a part that the commit
// removes).
func (w *Watch) unlisted(rel string) bool {
	rest, ok := strings.CutPrefix(rel, backups+"/")
	if !ok {
		return false
	}
	name, _, _ := strings.Cut(rest, "/")
	s := w.objects[backups+"/"+name+sentinel]
	return s == nil || s.gone
}

// beforeListing reports whether a part was written before its backup's
// sentinel, both since the last look.
func (w *Watch) beforeListing(rel string, named time.Time) bool {
	rest, ok := strings.CutPrefix(rel, backups+"/")
	if !ok {
		return false
	}
	name, _, _ := strings.Cut(rest, "/")
	s := w.objects[backups+"/"+name+sentinel]
	return s != nil && named.Before(s.named)
}

func (w *Watch) one(path, rel string, deep bool) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	now := object{mtime: info.ModTime(), size: info.Size()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		now.ino, now.named = st.Ino, time.Unix(st.Ctim.Unix())
	}
	old := w.objects[rel]
	if old != nil && !deep && old.ino == now.ino && old.mtime.Equal(now.mtime) && old.size == now.size {
		return nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	now.sum = hex.EncodeToString(h.Sum(nil))
	if old == nil {
		now.first = time.Now()
		w.objects[rel] = &now
		return nil
	}
	if old.sum != now.sum && !w.unlisted(rel) && !w.beforeListing(rel, now.named) {
		w.findings = append(w.findings, Finding{Unchanged, fmt.Sprintf("%s had SHA-256 %.12s (%d bytes, seen %s), has %.12s (%d bytes, written %s)",
			rel, old.sum, old.size, old.first.Format(time.TimeOnly), now.sum, now.size, now.mtime.Format(time.TimeOnly))})
	}
	now.first = old.first
	w.objects[rel] = &now
	return nil
}
