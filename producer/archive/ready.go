package archive

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/walherd/walherd/engine/durable"
	"github.com/walherd/walherd/engine/pg"
)

// statusDir is where PostgreSQL says what is to be archived (NAME.ready) and
// what is (NAME.done).
func statusDir(walDir string) string { return filepath.Join(walDir, "archive_status") }

func readyPath(walDir, name string) string {
	return filepath.Join(statusDir(walDir), name+".ready")
}

func donePath(walDir, name string) string {
	return filepath.Join(statusDir(walDir), name+".done")
}

func isReady(walDir, name string) bool {
	_, err := os.Lstat(readyPath(walDir, name))
	return err == nil
}

// listReady returns the names of the files to be archived, in the order in
// which PostgreSQL asks for them.
func listReady(walDir string) ([]string, error) {
	entries, err := os.ReadDir(statusDir(walDir))
	if err != nil {
		return nil, fmt.Errorf("list what is to be archived: %w", err)
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".ready")
		if !ok {
			continue
		}
		if kind, _ := pg.ClassifyWALFile(name); kind != pg.OtherFile {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, archiveOrder)
	return names, nil
}

// archiveOrder is ready_file_comparator of PostgreSQL's pgarch.c: timeline
// history files first, since whoever follows a timeline needs them early,
// then by name, which is by age.
func archiveOrder(a, b string) int {
	rank := func(name string) int {
		if strings.HasSuffix(name, ".history") {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a, b))
}

// queue yields the files to ship ahead of an ask, each at most once: first the
// segments that follow the asked one without a gap, then the rest of what is
// ready. The first kind costs one look each; the directory, which can hold
// many thousands of files, is listed once and only if there is room for more.
type queue struct {
	walDir string
	size   pg.SegmentSize
	asked  string

	next   pg.SegmentName // the next consecutive one; zero when the run is over
	rest   []string
	listed bool
	given  map[string]bool
}

func newQueue(walDir, asked string, size pg.SegmentSize) *queue {
	q := &queue{walDir: walDir, size: size, asked: asked, given: map[string]bool{asked: true}}
	if kind, seg := pg.ClassifyWALFile(asked); kind == pg.SegmentFile && size.Validate() == nil {
		q.next = seg.Next(size)
	}
	return q
}

// pop returns the next name; "" is the end.
func (q *queue) pop() (string, error) {
	if !q.next.IsZero() {
		name := q.next.String()
		if isReady(q.walDir, name) {
			q.next = q.next.Next(q.size)
			q.given[name] = true
			return name, nil
		}
		q.next = pg.SegmentName{}
	}
	if !q.listed {
		q.listed = true
		var err error
		if q.rest, err = listReady(q.walDir); err != nil {
			return "", err
		}
	}
	for len(q.rest) > 0 {
		name := q.rest[0]
		q.rest = q.rest[1:]
		if !q.given[name] {
			q.given[name] = true
			return name, nil
		}
	}
	return "", nil
}

// setDone tells PostgreSQL that a file is archived, in its own way: it will
// never ask for it. Durable when it returns.
func setDone(walDir, name string) error {
	err := os.Rename(readyPath(walDir, name), donePath(walDir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // PostgreSQL was faster
	}
	if err != nil {
		return fmt.Errorf("mark %s as done: %w", name, err)
	}
	return durable.SyncDir(statusDir(walDir))
}
