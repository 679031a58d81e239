package compress

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/pierrec/lz4/v4"
)

// lz4Writer frames blocks that the library's block encoder has compressed.
//
// The library's own frame writer is not used: it starts a goroutine for every
// block, gives no way to end one that is abandoned, and takes every byte
// through one more buffer. An own block encoder is not used either: a port of
// the reference's fast loop, with its 32 KiB table and all of Go's bounds
// checks, came out at 0.96 (cluster) to 0.89 (WAL) of the library's speed.
type lz4Writer struct {
	w       io.Writer
	workers int
	state

	cur  *block // being filled: raw[lz4SizePrefix:fill]
	fill int

	// compress serves the caller's goroutine while there is no pool: with
	// one worker always, else until the first block is full, so that a small
	// object starts no goroutine.
	compress func(*block)
	pool     *pool
	emitted  chan error // the emitter's end

	// Of the emitter, or of the caller while there is no pool.
	begun   bool
	content xxh32
}

func newLZ4Writer(w io.Writer, o Options) (Writer, error) {
	z := &lz4Writer{w: w, workers: o.Workers}
	z.content.reset()
	return z, nil
}

// lz4Compress returns a function that compresses b.plain, one block, into
// b.stored with its size word in front. It owns a hash table of 136 KiB.
func lz4Compress() func(*block) {
	var c lz4.Compressor
	return func(b *block) {
		b.packed = grow(b.packed, lz4SizePrefix+lz4BlockSize)
		// No room for a block that would not shrink: the encoder gives up.
		n, err := c.CompressBlock(b.plain, b.packed[lz4SizePrefix:lz4SizePrefix+len(b.plain)])
		word := uint32(n)
		if n > 0 && n < len(b.plain) && err == nil {
			b.stored = b.packed[:lz4SizePrefix+n]
		} else {
			// The plain bytes have room in front for the size word.
			b.stored = b.raw[:lz4SizePrefix+len(b.plain)]
			word = uint32(len(b.plain)) | lz4Stored
		}
		binary.LittleEndian.PutUint32(b.stored, word)
	}
}

// put writes one compressed block. The checksum is computed here and not
// beside the compression, because it runs over the whole stream in order.
func (z *lz4Writer) put(b *block) error {
	if b.err != nil {
		return fmt.Errorf("compress lz4: %w", b.err)
	}
	if err := z.begin(); err != nil {
		return err
	}
	z.content.write(b.plain)
	return z.send(b.stored)
}

func (z *lz4Writer) begin() error {
	if z.begun {
		return nil
	}
	z.begun = true
	return z.send(lz4WriterHeader())
}

func (z *lz4Writer) send(p []byte) error {
	if _, err := z.w.Write(p); err != nil {
		return fmt.Errorf("write lz4 stream: %w", err)
	}
	return nil
}

func (z *lz4Writer) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 {
		room, err := z.room()
		if err != nil {
			return n, err
		}
		k := copy(room, p)
		z.fill += k
		n += k
		p = p[k:]
	}
	return n, z.writable()
}

// ReadFrom reads r to its end straight into the blocks, which saves the copy
// that Write makes; io.Copy finds it. An error of r is returned as it is and
// leaves the writer usable.
func (z *lz4Writer) ReadFrom(r io.Reader) (int64, error) {
	var n int64
	for empty := 0; ; {
		room, err := z.room()
		if err != nil {
			return n, err
		}
		k, err := r.Read(room)
		z.fill += k
		n += int64(k)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		if empty++; k > 0 {
			empty = 0
		} else if empty == 100 {
			return n, io.ErrNoProgress
		}
	}
}

// room returns the unfilled part of the current block, never empty; a full
// block is handed on first.
func (z *lz4Writer) room() ([]byte, error) {
	if err := z.writable(); err != nil {
		return nil, err
	}
	if z.cur != nil && z.fill == lz4BlockSize {
		if err := z.flush(); err != nil {
			return nil, err
		}
	}
	if z.cur == nil {
		z.cur = z.take()
		if z.cur == nil {
			return nil, z.collapse(nil)
		}
		z.cur.raw = grow(z.cur.raw, lz4SizePrefix+lz4BlockSize)
		z.fill = 0
	}
	return z.cur.raw[lz4SizePrefix+z.fill:], nil
}

func (z *lz4Writer) take() *block {
	if z.pool == nil {
		return newBlock()
	}
	return z.pool.take()
}

// flush hands the current block on: to the pool, or through the encoder.
func (z *lz4Writer) flush() error {
	b := z.cur
	b.plain = b.raw[lz4SizePrefix : lz4SizePrefix+z.fill]
	b.err = nil
	if z.workers > 1 && z.pool == nil && z.fill == lz4BlockSize {
		z.start()
	}
	if z.pool != nil {
		z.cur = nil
		z.pool.submit(b)
		return nil
	}
	if z.compress == nil {
		z.compress = lz4Compress()
	}
	guard(z.compress, b)
	z.err = z.put(b)
	z.fill = 0
	return z.err
}

// start makes the pool: a block for each worker, one being filled and one
// being written. The block at hand takes the place of one of them.
func (z *lz4Writer) start() {
	z.pool = newPool(z.workers, z.workers+2, lz4Compress)
	<-z.pool.free
	z.emitted = make(chan error, 1)
	go z.emit()
}

// emit writes the blocks in order until the pool is closed or a write fails,
// which stops everybody without the caller's help.
func (z *lz4Writer) emit() {
	for {
		b := z.pool.next()
		if b == nil {
			z.emitted <- nil
			return
		}
		if err := z.put(b); err != nil {
			z.pool.abort()
			z.emitted <- err
			return
		}
		z.pool.give(b)
	}
}

// collapse ends the pool and keeps the first error: the emitter's, else err.
func (z *lz4Writer) collapse(err error) error {
	z.pool.abort()
	if first := <-z.emitted; first != nil {
		err = first
	}
	z.pool.wait()
	z.pool, z.cur = nil, nil
	z.err = err
	return err
}

func (z *lz4Writer) Close() error {
	if z.ended || z.err != nil {
		z.ended = true
		return z.err
	}
	z.ended = true
	if z.cur != nil && z.fill > 0 {
		if err := z.flush(); err != nil {
			return err
		}
	}
	if z.pool != nil {
		z.pool.close()
		err := <-z.emitted
		z.pool.wait()
		z.pool, z.cur = nil, nil
		if err != nil {
			z.err = err
			return err
		}
	}
	if z.err = z.begin(); z.err != nil {
		return z.err
	}
	var end [8]byte // a block of size 0, then the content's checksum
	binary.LittleEndian.PutUint32(end[4:], z.content.sum())
	z.err = z.send(end[:])
	return z.err
}

func (z *lz4Writer) Abort() {
	if z.abort() && z.pool != nil {
		z.collapse(errAborted)
	}
}
