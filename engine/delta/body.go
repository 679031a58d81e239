package delta

import (
	"encoding/binary"
	"fmt"
	"io"
)

// increment is the content of an increment: a pack.Body. Pages are read from
// the file in runs, straight into the caller's buffer. Those that are not there
// any more are zeros, as the end of a file that shrank is in a full backup: WAL
// replay cuts it again.
type increment struct {
	f        io.ReaderAt
	close    func() error
	pageSize int64
	size     int64
	pages    *set

	head    []byte // not given out yet
	numbers int64  // where to go on with the numbers
	at, end int64  // of the run under way, in bytes of the file
	done    int64  // pages below it are given out or in the run
	short   bool

	// need, if not nil, is told what will be read, aheadPages before it is:
	// scattered pages, each awaited before the next is asked for, leave a disk
	// idle most of the time.
	need  func(off, n int64)
	told  int64 // pages below it were told
	ahead int64 // pages told and not begun
}

// aheadPages is how many pages a disk may be asked for at once.
const aheadPages = 64

func newIncrement(f io.ReaderAt, closer func() error, fileSize, pageSize int64, pages *set) *increment {
	head := make([]byte, 0, 4<<10)
	head = append(head, magic...)
	head = binary.LittleEndian.AppendUint64(head, uint64(fileSize))
	head = binary.LittleEndian.AppendUint32(head, uint32(pages.count()))
	return &increment{
		f: f, close: closer, pageSize: pageSize, pages: pages, head: head,
		size: Size(pages.count(), int(pageSize)), numbers: pages.next(0),
	}
}

// Size implements pack.Body.
func (b *increment) Size() int64 { return b.size }

// Read implements pack.Body.
func (b *increment) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(b.head) == 0 {
		b.refill()
	}
	if len(b.head) > 0 {
		n := copy(p, b.head)
		b.head = b.head[n:]
		return n, nil
	}
	if b.at == b.end {
		first := b.pages.next(b.done)
		if first == b.pages.limit {
			return 0, io.EOF
		}
		b.done = min(b.pages.gap(first), first+aheadPages)
		b.at, b.end = first*b.pageSize, b.done*b.pageSize
		b.tell()
	}
	p = p[:min(int64(len(p)), b.end-b.at)]
	n := 0
	if !b.short {
		var err error
		n, err = b.f.ReadAt(p, b.at)
		if err != nil && err != io.EOF {
			return 0, err
		}
		b.short = n < len(p)
	}
	clear(p[n:])
	b.at += int64(len(p))
	return len(p), nil
}

// tell asks for what comes after the run that begins.
func (b *increment) tell() {
	if b.need == nil {
		return
	}
	if b.told < b.done {
		b.told, b.ahead = b.done, 0
	} else {
		b.ahead -= (b.end - b.at) / b.pageSize
	}
	for b.ahead < aheadPages {
		first := b.pages.next(b.told)
		if first == b.pages.limit {
			return
		}
		b.told = min(b.pages.gap(first), first+aheadPages)
		b.ahead += b.told - first
		b.need(first*b.pageSize, (b.told-first)*b.pageSize)
	}
}

// refill renders more of the numbers.
func (b *increment) refill() {
	b.head = b.head[:0:cap(b.head)]
	if cap(b.head) < numberSize {
		b.head = make([]byte, 0, 4<<10)
	}
	for b.numbers < b.pages.limit && len(b.head)+numberSize <= cap(b.head) {
		b.head = binary.LittleEndian.AppendUint32(b.head, uint32(b.numbers))
		b.numbers = b.pages.next(b.numbers + 1)
	}
}

// Close implements pack.Body.
func (b *increment) Close() error {
	if err := b.close(); err != nil {
		return fmt.Errorf("close increment: %w", err)
	}
	return nil
}
