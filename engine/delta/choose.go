package delta

import (
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/walherd/walherd/engine/page"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
)

// ChangeMap knows from the WAL which pages changed between the start of the
// parent backup and that of this one, all of which it covers. It is safe for
// concurrent use. A *changes.Map is one.
type ChangeMap interface {
	// Changed tells what an increment needs of file f, which is now blocks
	// pages long: all of it (whole), or the pages of list, numbered within
	// the file. A page that was cut off and came back since the parent is
	// one of them, also if no record names it: the parent holds what was
	// there before. Pages beyond the file in list are ignored.
	Changed(f wal.File, blocks uint32) (list iter.Seq[uint32], whole bool)
}

// rereads is how often an implausible page is read again before it is believed:
// the server may have been writing it.
const rereads = 3

// errWhole tells that the file is to be stored whole.
var errWhole = errors.New("no increment can be made of the file")

// scan chooses the pages of f by their LSN: those that changed at or after
// since, and new ones, which have none. It looks at the first size bytes, or at
// what is there, and returns how long that is in whole pages. A page that is
// neither plausible nor new is errWhole: nothing can be told of this file, be
// it unlogged, of another kind, or damaged.
//
// A page that is torn is judged by its LSN all the same, and rightly: if it
// changed before the backup began, old and new version on disk both tell so,
// and what changed later is in the WAL as an image of the whole page.
//
// Pages that m names are chosen as well if they are marked all visible. look is
// as in Options.
func scan(f io.ReaderAt, size, pageSize int64, since pg.LSN, m *marks, buf []byte, look func(n int) error) (*set, int64, error) {
	chosen := newSet(size / pageSize)
	buf = buf[:int64(len(buf))/pageSize*pageSize]
	var at int64
	for at < size {
		b := buf[:min(size-at, int64(len(buf)))]
		if look != nil {
			if err := look(len(b)); err != nil {
				return nil, 0, err
			}
		}
		n, err := f.ReadAt(b, at)
		if err != nil && err != io.EOF {
			return nil, 0, err
		}
		whole := int64(n) / pageSize * pageSize
		for o := int64(0); o < whole; o += pageSize {
			p := b[o : o+pageSize]
			changed, ok := judge(p, since, m.may((at+o)/pageSize))
			for i := 0; !ok && i < rereads; i++ {
				if _, err := f.ReadAt(p, at+o); err != nil && err != io.EOF {
					return nil, 0, err
				}
				changed, ok = judge(p, since, m.may((at+o)/pageSize))
			}
			if !ok {
				return nil, 0, errWhole
			}
			if changed {
				chosen.add((at + o) / pageSize)
			}
		}
		at += whole
		if int64(n) < int64(len(b)) {
			break // cut since the walk
		}
	}
	return chosen, at, nil
}

// judge tells whether a page belongs in an increment; ok is false when there is
// no telling. marked: if the page is all visible, it may have become so lately.
func judge(p []byte, since pg.LSN, marked bool) (changed, ok bool) {
	h := page.ParseHeader(p)
	switch {
	case h.Plausible(len(p)):
		return h.LSN >= since || marked && h.Flags&page.AllVisible != 0, true
	case h.IsNew():
		return true, true
	}
	return false, false
}

// lookup chooses the pages of a file by the map, without reading them.
func lookup(m ChangeMap, name string, size, pageSize int64) (*set, error) {
	f, err := wal.ParseFile(name)
	if err != nil {
		return nil, err
	}
	chosen := newSet(size / pageSize)
	list, whole := m.Changed(f, uint32(chosen.limit))
	if whole {
		return nil, errWhole
	}
	for n := range list {
		if int64(n) < chosen.limit {
			chosen.add(int64(n))
		}
	}
	return chosen, nil
}

// choose picks the pages for an increment of the file called name, and the
// length to record.
func (o *Opener) choose(f io.ReaderAt, name string, size int64) (*set, int64, error) {
	pageSize := int64(o.opt.PageSize)
	if m := o.opt.Changes; m != nil {
		chosen, err := lookup(m, name, size, pageSize)
		if err == nil || errors.Is(err, errWhole) {
			return chosen, size, err
		}
		if !errors.Is(err, wal.ErrNotRelation) {
			return nil, 0, fmt.Errorf("look up changed pages: %w", err)
		}
	}
	var m *marks
	if !o.opt.HintsLogged {
		var err error
		if m, err = o.readMarks(name, size); err != nil {
			return nil, 0, err
		}
	}
	return scan(f, size, pageSize, o.opt.Since, m, o.buf, o.opt.Look)
}
