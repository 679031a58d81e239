package transfer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
)

// FilesOptions say which files a move takes.
type FilesOptions struct {
	// Prefix that the names start with; it may end anywhere in a name.
	Prefix string
	// Preserve leaves the files in the source.
	Preserve bool
	// MaxFiles bounds how many are taken; 0 is all.
	MaxFiles int
}

// MoveFiles copies each file and then removes it from the source. Files that
// the target has are skipped, and stay in the source, unless c.Overwrite.
func (c *Copier) MoveFiles(ctx context.Context, opt FilesOptions) (Result, error) {
	if err := c.distinct(ctx); err != nil {
		return Result{}, err
	}
	source, err := list(ctx, c.From, opt.Prefix)
	if err != nil {
		return Result{}, fmt.Errorf("list the source: %w", err)
	}
	var there map[string]int64
	if !c.Overwrite {
		if there, err = sizes(ctx, c.To, opt.Prefix); err != nil {
			return Result{}, fmt.Errorf("list the target: %w", err)
		}
	}
	var todo []Object
	skipped := 0
	for _, o := range source {
		if _, ok := there[o.Name]; ok {
			skipped++
			continue
		}
		todo = append(todo, o)
	}
	if opt.MaxFiles > 0 && len(todo) > opt.MaxFiles {
		todo = todo[:opt.MaxFiles]
	}
	var then func(context.Context, Object) error
	if !opt.Preserve {
		then = func(ctx context.Context, o Object) error {
			if err := c.From.Delete(ctx, o.Name); err != nil {
				return fmt.Errorf("in the target now, remove from the source: %w", err)
			}
			return nil
		}
	}
	res := c.Copy(ctx, todo, then)
	res.Skipped = skipped
	return res, nil
}

// ErrSameStorage marks a source and a target that are one place.
var ErrSameStorage = errors.New("source and target are the same storage under two names")

// distinct makes sure of two places. Without Overwrite everything is found in
// the target and left alone; with it a move would remove what it has just put,
// and that is all there is. Configurations cannot tell: a path may be a link, an
// endpoint have two names. So an object is put on one side and looked for on the
// other.
func (c *Copier) distinct(ctx context.Context) error {
	if !c.Overwrite {
		return nil
	}
	name := "walherd_check_" + rand.Text()
	_, err := c.To.Put(ctx, name, strings.NewReader(name), storage.PutOptions{IfAbsent: true})
	if err == nil {
		_, err = c.From.Stat(ctx, name)
		switch {
		case err == nil:
			err = ErrSameStorage
		case errors.Is(err, storage.ErrNotExist):
			err = nil
		}
	}
	if err = errors.Join(err, c.To.Delete(context.WithoutCancel(ctx), name)); err != nil {
		return fmt.Errorf("tell source and target apart: %w", err)
	}
	return nil
}

// CopyPrefix copies every object whose name starts with prefix; sentinels go
// last, after the metadata of backups. It replaces what the target has. No such
// object is no error.
func (c *Copier) CopyPrefix(ctx context.Context, prefix string) (Result, error) {
	objects, err := list(ctx, c.From, prefix)
	if err != nil {
		return Result{}, fmt.Errorf("list the source: %w", err)
	}
	var stages [3][]Object
	for _, o := range objects {
		n := 0
		switch {
		case IsSentinel(o.Name):
			n = 2
		case strings.HasSuffix(o.Name, "/metadata.json"):
			n = 1
		}
		stages[n] = append(stages[n], o)
	}
	return c.stages(ctx, stages[:]), nil
}

// stages copies one set after the other; a failure ends it after its set.
func (c *Copier) stages(ctx context.Context, stages [][]Object) Result {
	var all Result
	for _, s := range stages {
		all.add(c.Copy(ctx, s, nil))
		if all.Failed > 0 {
			break
		}
	}
	return all
}

// IsSentinel tells the objects that make a backup exist.
func IsSentinel(name string) bool { return strings.HasSuffix(name, repo.SentinelSuffix) }

// IsDocument tells the objects that WAL-G's layout keeps neither compressed nor
// sealed, whatever is configured: every reader expects them so.
func IsDocument(name string) bool {
	if !strings.HasSuffix(name, ".json") {
		return false
	}
	for _, folder := range []string{string(repo.BaseBackups), string(repo.Catchups), repo.WALFolder} {
		if strings.HasPrefix(name, folder) {
			return true
		}
	}
	return false
}

// removeBatch is how many names go to one Delete.
const removeBatch = 1000

// Remove deletes objects, sentinels before all else: what is left of a backup
// after a crash must not be taken for one. A call of Delete has no order within
// it, so no sentinel shares one with what it speaks for.
func Remove(ctx context.Context, b storage.Bucket, names []string) error {
	var sentinels, rest []string
	for _, name := range names {
		if IsSentinel(name) {
			sentinels = append(sentinels, name)
		} else {
			rest = append(rest, name)
		}
	}
	for _, some := range [][]string{sentinels, rest} {
		for batch := range slices.Chunk(some, removeBatch) {
			if err := b.Delete(ctx, batch...); err != nil {
				return err
			}
		}
	}
	return nil
}

func list(ctx context.Context, b storage.Bucket, prefix string) ([]Object, error) {
	var out []Object
	for info, err := range b.List(ctx, prefix, storage.ListOptions{}) {
		if err != nil {
			return nil, err
		}
		out = append(out, Object{Name: info.Name, Size: info.Size})
	}
	return out, nil
}

func sizes(ctx context.Context, b storage.Bucket, prefix string) (map[string]int64, error) {
	objects, err := list(ctx, b, prefix)
	if err != nil {
		return nil, err
	}
	out := make(map[string]int64, len(objects))
	for _, o := range objects {
		out[o.Name] = o.Size
	}
	return out, nil
}
