// Package verify checks the pages of a backup on their way into a tar: it
// wraps a pack.Opener, sees each page once as it is read for the tar, and
// reports the pages whose checksum is wrong. The bytes pass unchanged, and
// what is found is no error: damaged pages are backed up with the rest, since
// the rest is wanted.
//
// A page is read again before it is called corrupt, as the server may have
// been writing it. A page that carries a position of the WAL behind the
// backup's start is not judged: replay writes it anew.
package verify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/walherd/walherd/engine/cluster"
	"github.com/walherd/walherd/engine/pack"
	"github.com/walherd/walherd/engine/page"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
)

// SomeBlocks is how many numbers of corrupt blocks are kept of a file, unless
// all are wanted.
const SomeBlocks = 10

// rereads is how often a bad page is read again before it is believed.
const rereads = 3

// maxAhead bounds, in bytes of WAL, how far behind the backup's start the
// position in a page may lie: a page from further on is damaged just there.
const maxAhead = 1 << 42

// Options is what is checked against.
type Options struct {
	// Root is the data directory.
	Root string
	// Start is where the backup's replay begins.
	Start pg.LSN
	// PageSize in bytes.
	PageSize int
	// All keeps the number of every corrupt block, not only SomeBlocks.
	All bool
}

// Opener checks what another Opener gives. Like it, it belongs to one Stream.
type Opener struct {
	inner  pack.Opener
	opt    Options
	body   body
	damage []pack.Damage
}

// New wraps inner, whose increments, if it makes any (pack.Incrementer), are
// checked page by page as well.
func New(inner pack.Opener, opt Options) (*Opener, error) {
	if n := opt.PageSize; n < 1<<10 || n > 32<<10 || n&(n-1) != 0 {
		return nil, fmt.Errorf("verify pages: page size %d is not a power of two from 1024 to 32768", n)
	}
	return &Opener{inner: inner, opt: opt}, nil
}

// Damage implements pack.Checker: the files with something wrong, in the order
// of the tar.
func (o *Opener) Damage() []pack.Damage { return o.damage }

// Incremented implements pack.Incrementer.
func (o *Opener) Incremented() []int32 {
	if i, ok := o.inner.(pack.Incrementer); ok {
		return i.Incremented()
	}
	return nil
}

// Open implements pack.Opener.
func (o *Opener) Open(index int32, e *cluster.Entry) (pack.Body, error) {
	before := len(o.Incremented())
	inner, err := o.inner.Open(index, e)
	if err != nil {
		return nil, err
	}
	f, err := wal.ParseFile(e.Name)
	if err != nil || f.Fork != wal.MainFork || e.Size == 0 {
		return inner, nil // no pages, or such as carry no checksum to rely on
	}
	if e.Size%int64(o.opt.PageSize) != 0 {
		o.damage = append(o.damage, pack.Damage{Index: index, Ragged: true})
		return inner, nil
	}
	o.body = body{
		Body: inner, o: o, path: e.Path(o.opt.Root), found: pack.Damage{Index: index},
		first: f.Segment * page.PagesPerFile(o.opt.PageSize), page: o.body.page, blocks: o.body.blocks[:0],
		increment: len(o.Incremented()) > before,
	}
	if o.body.page == nil {
		o.body.page = make([]byte, 0, o.opt.PageSize)
	}
	o.body.page = o.body.page[:0]
	return &o.body, nil
}

// headSize is what an increment begins with: magic, the file's size, and the
// number of its pages; the pages' numbers of four bytes follow.
const (
	headSize = 16
	countAt  = 12
)

// body looks at the pages that are read through it.
type body struct {
	pack.Body
	o     *Opener
	path  string
	first uint32 // number of the file's first page in the relation
	found pack.Damage
	page  []byte // the bytes of a page, or of the increment's head, so far

	increment bool     // there is a head to come
	numbers   int64    // bytes of page numbers to come
	blocks    []uint32 // of the increment
	listed    bool     // blocks are valid
	at        int      // pages seen

	again *os.File // for reading pages again
	gone  bool
}

// Read implements pack.Body.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.Body.Read(p)
	b.see(p[:n])
	return n, err
}

// Close implements pack.Body.
func (b *body) Close() error {
	err := b.Body.Close()
	if b.again != nil {
		err = errors.Join(err, b.again.Close())
		b.again = nil
	}
	if b.found.Corrupt > 0 || b.found.Implausible > 0 {
		b.o.damage = append(b.o.damage, b.found)
		b.found = pack.Damage{}
	}
	return err
}

func (b *body) see(p []byte) {
	for len(p) > 0 {
		want := b.o.opt.PageSize
		switch {
		case b.increment:
			want = headSize
		case b.numbers > 0:
			want = 4
		}
		if len(b.page) == 0 && len(p) >= want {
			b.unit(p[:want])
			p = p[want:]
			continue
		}
		n := min(want-len(b.page), len(p))
		b.page = append(b.page, p[:n]...)
		p = p[n:]
		if len(b.page) == want {
			b.unit(b.page)
			b.page = b.page[:0]
		}
	}
}

// unit takes the head, a number, or a page.
func (b *body) unit(p []byte) {
	switch {
	case b.increment:
		b.increment, b.listed = false, true
		b.numbers = int64(binary.LittleEndian.Uint32(p[countAt:]))
	case b.numbers > 0:
		b.numbers--
		b.blocks = append(b.blocks, binary.LittleEndian.Uint32(p))
	default:
		block := uint32(b.at)
		if b.listed {
			block = b.blocks[b.at]
		}
		b.at++
		b.judge(p, block)
	}
}

// judge notes a page that is damaged.
func (b *body) judge(p []byte, block uint32) {
	v := b.verdict(p, block)
	if v == page.Good {
		return
	}
	again := slices.Clone(p) // a failure to read leaves it as it was seen
	for range rereads {
		if !b.reread(again, block) {
			return // cut off meanwhile, which replay repeats
		}
		if v = b.verdict(again, block); v == page.Good {
			return
		}
	}
	if v == page.Implausible {
		b.found.Implausible++
		return
	}
	b.found.Corrupt++
	if b.o.opt.All || len(b.found.Blocks) < SomeBlocks {
		b.found.Blocks = append(b.found.Blocks, block)
	}
}

// verdict is Good for all that there is nothing to say about.
func (b *body) verdict(p []byte, block uint32) page.Verdict {
	h := page.ParseHeader(p)
	if h.IsNew() {
		if page.IsZero(p) {
			return page.Good
		}
		return page.Implausible // no server leaves such a page
	}
	v := page.Verify(p, b.first+block)
	switch {
	case v == page.Good || v == page.Unchecked:
		return page.Good
	case h.LSN >= b.o.opt.Start && h.LSN-b.o.opt.Start < maxAhead:
		return page.Good
	case v == page.Implausible && h.LSN == 0 && h.Checksum == page.Checksum(p, b.first+block):
		return page.Good // of an unlogged relation
	}
	return v
}

// reread reads one page of the file again. It is false when the page is not
// there any more.
func (b *body) reread(p []byte, block uint32) bool {
	if b.again == nil && !b.gone {
		f, err := os.OpenFile(b.path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			b.gone = true
			return false
		}
		b.again = f
	}
	if b.gone {
		return false
	}
	n, err := b.again.ReadAt(p, int64(block)*int64(len(p)))
	return n == len(p) || err != nil && !errors.Is(err, io.EOF)
}
