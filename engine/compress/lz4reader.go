package compress

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/pierrec/lz4/v4"
)

// lz4ReadBuffer holds the size words and small blocks; a block larger than it
// is read past it, without a copy.
const lz4ReadBuffer = 64 << 10

// lz4Reader reads any LZ4 frame but the legacy kind and those that need a
// dictionary. Blocks that stand alone are decoded by the workers; linked ones
// (lz4 -BD) by the caller, one after the other.
type lz4Reader struct {
	src   *source
	r     *bufio.Reader
	frame *lz4Frame // of the fetcher: the frame being read, nil between two

	workers int
	pool    *pool  // with two or more workers, from the first Read on
	single  *block // else the one block
	fetcher sync.WaitGroup

	// Of the caller.
	held    *block // the block rest lies in
	rest    []byte // decoded and not yet taken
	current *lz4Frame
	content xxh32
	size    int64
	history []byte // the last 64 KiB, in a linked frame
	err     error
}

func newLZ4Reader(r io.Reader, workers int) (io.ReadCloser, error) {
	src := &source{r: r}
	return &lz4Reader{src: src, r: bufio.NewReaderSize(src, lz4ReadBuffer), workers: workers}, nil
}

// fetch reads the next block, or end of a frame, into b. io.EOF is the good
// end of the whole stream.
func (z *lz4Reader) fetch(b *block) error {
	if z.frame == nil {
		f, err := readLZ4Header(z.r)
		if err == io.EOF && z.src.read == 0 {
			// Nothing at all is not an empty stream: that is a frame too.
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		z.frame = f
	}
	if err := z.frame.readBlock(z.r, b); err != nil {
		return err
	}
	if b.end {
		z.frame = nil
	}
	return nil
}

// lz4Decode fills b.plain, unless that takes the blocks before it.
func lz4Decode(b *block) {
	if b.end {
		return
	}
	if b.frame.blockSum {
		if got := xxh32Sum(b.stored); got != b.sum {
			b.err = fmt.Errorf("block checksum is %08x, the frame says %08x", got, b.sum)
			return
		}
	}
	if b.asIs {
		b.plain = b.stored
	} else if !b.frame.linked {
		b.decode(nil)
	}
}

func (b *block) decode(history []byte) {
	// A small object in a frame of 4 MiB blocks shall not take 4 MiB.
	b.raw = grow(b.raw, min(b.frame.blockMax, len(b.stored)*lz4MaxRatio))
	n, err := lz4.UncompressBlockWithDict(b.stored, b.raw, history)
	if err != nil {
		b.err = fmt.Errorf("decode a block of %d bytes: %w", len(b.stored), err)
		return
	}
	b.plain = b.raw[:n]
}

// check takes a block in its turn: it decodes a linked one, keeps the sums of
// the frame and compares them at its end.
func (z *lz4Reader) check(b *block) error {
	if b.err != nil {
		return b.err
	}
	if z.current != b.frame {
		z.current, z.size, z.history = b.frame, 0, z.history[:0]
		z.content.reset()
	}
	if b.end {
		z.current = nil
		if got := z.content.sum(); b.frame.contentSum && got != b.sum {
			return fmt.Errorf("content checksum is %08x, the frame says %08x", got, b.sum)
		}
		if b.frame.size >= 0 && b.frame.size != z.size {
			return fmt.Errorf("frame has %d bytes, its header says %d", z.size, b.frame.size)
		}
		b.plain = nil
		return nil
	}
	if b.frame.linked {
		if !b.asIs {
			b.decode(z.history)
		}
		if b.err != nil {
			return b.err
		}
		z.remember(b.plain)
	}
	z.size += int64(len(b.plain))
	if b.frame.size >= 0 && z.size > b.frame.size {
		return fmt.Errorf("frame has more than the %d bytes its header says", b.frame.size)
	}
	if b.frame.contentSum {
		z.content.write(b.plain)
	}
	return nil
}

func (z *lz4Reader) remember(p []byte) {
	if len(p) >= lz4History {
		z.history = append(z.history[:0], p[len(p)-lz4History:]...)
		return
	}
	if drop := len(z.history) + len(p) - lz4History; drop > 0 {
		z.history = z.history[:copy(z.history, z.history[drop:])]
	}
	z.history = append(z.history, p...)
}

// next makes rest the next decoded bytes, which may be none.
func (z *lz4Reader) next() error {
	if z.err != nil {
		return z.err
	}
	var b *block
	if z.workers == 1 {
		b = z.nextHere()
	} else {
		b = z.nextAhead()
	}
	if z.err = b.err; z.err == nil {
		z.err = z.check(b)
	}
	if z.err != nil {
		if z.err != io.EOF {
			z.err = z.src.explain(LZ4, z.err)
		}
		z.shutdown()
		return z.err
	}
	z.held, z.rest = b, b.plain
	return nil
}

func (z *lz4Reader) nextHere() *block {
	if z.single == nil {
		z.single = newBlock()
	}
	b := z.single
	if b.err = z.fetch(b); b.err == nil {
		guard(lz4Decode, b)
	}
	return b
}

func (z *lz4Reader) nextAhead() *block {
	if z.pool == nil {
		// A block for each worker, one being read and one being taken.
		z.pool = newPool(z.workers, z.workers+2, func() func(*block) { return lz4Decode })
		z.fetcher.Go(z.fetchAhead)
	}
	if z.held != nil {
		z.pool.give(z.held)
		z.held = nil
	}
	return z.pool.next()
}

// fetchAhead reads blocks until the stream ends, well or not; the last block
// carries how.
func (z *lz4Reader) fetchAhead() {
	defer z.pool.close()
	for {
		b := z.pool.take()
		if b == nil {
			return
		}
		err := z.fetch(b)
		b.err = err
		z.pool.submit(b)
		if err != nil {
			return
		}
	}
}

// shutdown ends the goroutines. At the end of the stream they are ending by
// themselves, so waiting is short; else see NewReader.
func (z *lz4Reader) shutdown() {
	if z.pool != nil {
		z.pool.abort()
		z.fetcher.Wait()
		z.pool.wait()
		z.pool, z.held = nil, nil
	}
	z.rest = nil
}

func (z *lz4Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(z.rest) == 0 {
		if err := z.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, z.rest)
	z.rest = z.rest[n:]
	return n, nil
}

// WriteTo hands the decoded blocks to w without a copy; io.Copy finds it.
func (z *lz4Reader) WriteTo(w io.Writer) (int64, error) {
	var n int64
	for {
		for len(z.rest) > 0 {
			k, err := w.Write(z.rest)
			n += int64(k)
			z.rest = z.rest[k:]
			if err != nil {
				return n, err
			}
		}
		if err := z.next(); err == io.EOF {
			return n, nil
		} else if err != nil {
			return n, err
		}
	}
}

var errReaderClosed = errors.New("read from a closed decompressor")

// Close ends the reader; see NewReader.
func (z *lz4Reader) Close() error {
	if z.err == nil {
		z.err = errReaderClosed
	}
	z.shutdown()
	return nil
}
