package pieces

import "sync"

// MaxChunk is what memory for uploads is taken in: a small object holds one
// chunk, a part as many as it has bytes.
const MaxChunk = 512 << 10

// PoolOptions bound a Pool.
type PoolOptions struct {
	// Chunk is the bytes of one chunk; 0 is MaxChunk.
	Chunk int64
	// Keep is how many chunks that came back are held on to.
	Keep int
	// Limit is how many bytes all Contents may hold beyond the first Free
	// chunks of each; 0 is no limit.
	Limit int64
	// Free chunks are each Content's without asking, so that each running
	// Put can go on, however little memory is left.
	Free int
}

// Pool hands out chunks of memory and knows how much is out. It is safe for
// concurrent use.
type Pool struct {
	opt PoolOptions

	mu    sync.Mutex
	spare [][]byte
	used  int64 // bytes out
	peak  int64 // most bytes out so far
	taken int64 // of Limit
}

// NewPool makes an empty pool.
func NewPool(o PoolOptions) *Pool {
	if o.Chunk == 0 {
		o.Chunk = MaxChunk
	}
	return &Pool{opt: o}
}

// Chunk is the bytes of one chunk.
func (p *Pool) Chunk() int64 { return p.opt.Chunk }

// Used tells how many bytes are out now, how many were at most, and how many of
// the limit are taken now.
func (p *Pool) Used() (now, peak, taken int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used, p.peak, p.taken
}

// take gives chunk i of a Content; nil when there is no room.
func (p *Pool) take(i int) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opt.Limit > 0 && i >= p.opt.Free {
		if p.taken+p.opt.Chunk > p.opt.Limit {
			return nil
		}
		p.taken += p.opt.Chunk
	}
	p.used += p.opt.Chunk
	p.peak = max(p.peak, p.used)
	if n := len(p.spare); n > 0 {
		chunk := p.spare[n-1]
		p.spare = p.spare[:n-1]
		return chunk
	}
	return make([]byte, p.opt.Chunk)
}

// give takes all chunks of a Content back.
func (p *Pool) give(chunks [][]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used -= int64(len(chunks)) * p.opt.Chunk
	if p.opt.Limit > 0 {
		p.taken -= int64(max(len(chunks)-p.opt.Free, 0)) * p.opt.Chunk
	}
	for _, chunk := range chunks {
		if len(p.spare) < p.opt.Keep {
			p.spare = append(p.spare, chunk)
		}
	}
}
