package delta

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/walherd/walherd/engine/cluster"
	"github.com/walherd/walherd/engine/pack"
	"github.com/walherd/walherd/engine/page"
	"github.com/walherd/walherd/engine/pg"
)

// Options is how increments are made.
type Options struct {
	// Root is the data directory.
	Root string
	// Actions is what Plan gave for the entries. Entries to skip are best
	// left out of the parts beforehand; here they are pack.ErrSkip.
	Actions []Action
	// Since is the start LSN of the parent backup: pages with this LSN or a
	// later one have changed.
	Since pg.LSN
	// Changes, if not nil, says which pages have changed; only those are
	// read. Without it every page is read for its LSN.
	Changes ChangeMap
	// PageSize in bytes. FileBlocks is how many pages a file of a relation
	// holds at most; 0 is page.PagesPerFile.
	PageSize, FileBlocks int
	// HintsLogged: the cluster has data checksums, so that no page changes
	// without its LSN. Else pages that were marked all visible are looked for
	// by the visibility map. What wal_log_hints says now does not tell what it
	// said before.
	HintsLogged bool
	// Look, if not nil, is called before n bytes of a file are read that may
	// not be given out: an increment of megabytes can take the reading of
	// terabytes, in which its reader gets nothing. An error ends Open.
	Look func(n int) error
}

// Opener gives a part of an increment backup its content. Like every Opener it
// belongs to one Stream; each attempt at a part takes a new one, and its
// increments may differ from those of another attempt, since the server goes on
// writing. What goes into files_metadata.json is that of the attempt which was
// stored.
type Opener struct {
	opt   Options
	whole *pack.Files
	buf   []byte
	// incremented are the indexes of the entries given as increments.
	incremented []int32
	pages       int64
}

// NewOpener makes an Opener. Its buffer of 256 KiB is its own.
func NewOpener(opt Options) (*Opener, error) {
	if !validPageSize(opt.PageSize) {
		return nil, fmt.Errorf("make increments: page size %d is not a power of two from 1024 to 32768", opt.PageSize)
	}
	if opt.FileBlocks == 0 {
		opt.FileBlocks = int(page.PagesPerFile(opt.PageSize))
	}
	return &Opener{opt: opt, whole: pack.NewFiles(opt.Root)}, nil
}

// Incremented are the indexes of the entries that went out as increments, in
// order: those files are IsIncremented. A file of which no increment can be
// made, or one that is no smaller than the file, goes out whole.
func (o *Opener) Incremented() []int32 { return o.incremented }

// Pages is how many pages went out in increments.
func (o *Opener) Pages() int64 { return o.pages }

// Open implements pack.Opener.
func (o *Opener) Open(index int32, e *cluster.Entry) (pack.Body, error) {
	switch o.opt.Actions[index] {
	case Skip:
		return nil, pack.ErrSkip
	case Increment:
		body, err := o.increment(e)
		if err == nil {
			o.incremented = append(o.incremented, index)
			return body, nil
		}
		if !errors.Is(err, errWhole) {
			return nil, err
		}
	}
	return o.whole.Open(index, e)
}

func (o *Opener) increment(e *cluster.Entry) (_ pack.Body, err error) {
	// As in pack: what was a file may be a link or a FIFO by now.
	f, err := os.OpenFile(e.Path(o.opt.Root), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOTDIR) {
		err = fmt.Errorf("%w: %w", os.ErrNotExist, err)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if o.buf == nil {
		o.buf = make([]byte, bufferSize)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errWhole
	}
	pageSize := int64(o.opt.PageSize)
	// A file that was cut since the walk is recorded as short as it is; one
	// that grew is cut to what the walk saw.
	size := min(e.Size, info.Size()/pageSize*pageSize)
	chosen, size, err := o.choose(f, e.Name, size)
	if err != nil {
		return nil, err
	}
	n := chosen.count()
	if size == e.Size && Size(n, o.opt.PageSize) >= e.Size {
		return nil, errWhole
	}
	o.pages += n
	body := newIncrement(f, f.Close, size, pageSize, chosen)
	if o.opt.Changes != nil {
		// Without a map all of it has just been read.
		body.need = func(off, n int64) { adviseNeed(f.Fd(), off, n) }
	}
	return body, nil
}
