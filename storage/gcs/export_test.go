package gcs

import "github.com/walherd/walherd/storage/pieces"

// Memory tells how many bytes of uploads are held now, how many were at most,
// and whether all of the limit was given back.
func (b *Bucket) Memory() (now, peak int64, free bool) {
	now, peak, taken := b.mem.pool.Used()
	b.mem.mu.Lock()
	defer b.mem.mu.Unlock()
	return now, peak, taken == 0 && b.mem.puts == 0
}

// SetPage sets how many names a listing request asks for.
func (b *Bucket) SetPage(n int) { b.page = n }

// Service is the scheme and host that requests go to.
func (b *Bucket) Service() string { return b.endpoint }

// Root is what all names start with.
func (b *Bucket) Root() string { return b.root }

// BlockSize and FreeBlocks bound what a Put holds beyond its share.
const (
	BlockSize  = pieces.MaxChunk
	FreeBlocks = freeBlocks
)
