package compress

import (
	"fmt"
	"runtime/debug"
	"sync"
)

// block is one unit of work in flight: an LZ4 block, packed and plain.
// Buffers stay with the block and are used again.
type block struct {
	raw    []byte // buffer of the plain side
	packed []byte // buffer of the compressed side
	plain  []byte // the plain bytes, wherever they lie
	stored []byte // the bytes of the frame, wherever they lie

	frame *lz4Frame // reading: the frame the block belongs to
	asIs  bool      // stored uncompressed
	end   bool      // reading: the frame's end, no data
	sum   uint32    // reading: the checksum the frame tells for the block or, at its end, the content

	err  error
	done chan struct{} // has room for one, so a worker never waits
}

// pool runs work over blocks on several goroutines and hands the blocks out
// again in the order they were submitted. One goroutine submits (take, submit,
// close), one receives (next, give); abort may come from anywhere.
//
// Every channel has room for all blocks there are, so only take (no block
// free) and next (nothing finished) ever wait, and abort ends both.
type pool struct {
	free, jobs, order chan *block
	stop              chan struct{}
	stopped           sync.Once
	running           sync.WaitGroup
}

// newPool starts the workers; work is called once for each, so that it can
// own its tables. blocks bounds what is in flight.
func newPool(workers, blocks int, work func() func(*block)) *pool {
	p := &pool{
		free:  make(chan *block, blocks),
		jobs:  make(chan *block, blocks),
		order: make(chan *block, blocks),
		stop:  make(chan struct{}),
	}
	for range blocks {
		p.free <- newBlock()
	}
	for range workers {
		p.running.Go(func() { p.worker(work()) })
	}
	return p
}

func newBlock() *block { return &block{done: make(chan struct{}, 1)} }

func (p *pool) worker(work func(*block)) {
	for {
		select {
		case <-p.stop:
			return
		case b, ok := <-p.jobs:
			if !ok {
				return
			}
			guard(work, b)
			b.done <- struct{}{}
		}
	}
}

// guard keeps a bug in a codec, met in a goroutine nobody can recover, from
// ending the whole process.
func guard(work func(*block), b *block) {
	defer func() {
		if r := recover(); r != nil {
			b.err = fmt.Errorf("panic in a codec: %v\n%s", r, debug.Stack())
		}
	}()
	if b.err == nil {
		work(b)
	}
}

// take waits for a free block; nil after abort.
func (p *pool) take() *block {
	select {
	case <-p.stop:
		return nil
	case b := <-p.free:
		return b
	}
}

func (p *pool) submit(b *block) {
	p.order <- b
	p.jobs <- b
}

// close tells that no more is submitted.
func (p *pool) close() {
	close(p.jobs)
	close(p.order)
}

// next waits for the oldest block to be done; nil when all are handed out
// after close, or after abort.
func (p *pool) next() *block {
	select {
	case <-p.stop:
		return nil
	case b, ok := <-p.order:
		if !ok {
			return nil
		}
		select {
		case <-p.stop:
			return nil
		case <-b.done:
			return b
		}
	}
}

func (p *pool) give(b *block) { p.free <- b }

// abort makes everybody stop; what is in flight is dropped.
func (p *pool) abort() { p.stopped.Do(func() { close(p.stop) }) }

// wait returns when the workers have ended, after close or abort.
func (p *pool) wait() { p.running.Wait() }
