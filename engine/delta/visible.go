package delta

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/walherd/walherd/engine/page"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
)

// marks tells which pages of a heap's file may have been marked all visible
// since the parent without a change of their LSN.
//
// Where neither data_checksums nor wal_log_hints is on, VACUUM sets
// PD_ALL_VISIBLE in a heap page and the bit in the visibility map under one WAL
// record, and gives its LSN to the page of the map alone (visibilitymap_set in
// src/backend/access/heap/visibilitymap.c). An increment that had the map's bit
// and not the heap's mark would restore to a server that does not clear the bit
// when a row changes: index-only scans then return deleted rows. So the marked
// pages are changed where the map's page is.
//
// A nil *marks is of a file without such pages.
type marks struct {
	first   int64  // number of the file's first page in the relation
	per     int64  // heap pages to a page of the map
	changed []bool // by page of the map, from that of first on
}

// may reports whether page n of the file can have been marked.
func (m *marks) may(n int64) bool {
	return m != nil && m.changed[(m.first+n)/m.per-m.first/m.per]
}

// readMarks looks at the visibility map of the relation that file name, of size
// bytes, belongs to.
func (o *Opener) readMarks(name string, size int64) (*marks, error) {
	f, err := wal.ParseFile(name)
	if err != nil || size == 0 {
		return nil, nil // no heap
	}
	pageSize, fileBlocks := int64(o.opt.PageSize), int64(o.opt.FileBlocks)
	m := &marks{first: int64(f.Segment) * fileBlocks, per: (pageSize - page.HeaderSize) * 4} // two bits for each
	head, last := m.first/m.per, (m.first+size/pageSize-1)/m.per
	m.changed = make([]bool, last-head+1)
	heap := strings.TrimSuffix(o.opt.Root+"/"+strings.TrimPrefix(name, "/"), fmt.Sprintf(".%d", f.Segment))
	found := false
	for at := head; at <= last; {
		end := min(last+1, (at/fileBlocks+1)*fileBlocks)
		path := heap + "_vm"
		if n := at / fileBlocks; n > 0 {
			path += fmt.Sprintf(".%d", n)
		}
		err := changedPages(path, at%fileBlocks*pageSize, pageSize, o.opt.Since, m.changed[at-head:end-head])
		if err != nil {
			return nil, fmt.Errorf("look at the visibility map: %w", err)
		}
		at = end
	}
	for _, c := range m.changed {
		found = found || c
	}
	if !found {
		return nil, nil
	}
	return m, nil
}

// changedPages notes which pages of a visibility map, from the one at offset at
// on, were written to at or after since. A map or a page that is not there has no
// bits set: one that comes after this look comes with WAL that is replayed.
func changedPages(path string, at, pageSize int64, since pg.LSN, changed []bool) (err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var head [page.HeaderSize]byte
	for i := range changed {
		_, err := f.ReadAt(head[:], at+int64(i)*pageSize)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		// One without an LSN was written without WAL, nobody knows when.
		h := page.ParseHeader(head[:])
		changed[i] = !h.IsNew() && (h.LSN >= since || h.LSN == 0)
	}
	return nil
}
