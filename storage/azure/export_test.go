package azure

import (
	"context"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

// SetPageSize makes listings come in pages of n names.
func SetPageSize(o *Options, n int32) { o.pageSize = &n }

// Memory tells how many bytes of uploads are held now, and how many were at
// most.
func (b *Bucket) Memory() (now, peak int64) {
	b.pool.mu.Lock()
	defer b.pool.mu.Unlock()
	return b.pool.used, b.pool.peak
}

// BudgetFree tells whether all of the upload budget was given back.
func (b *Bucket) BudgetFree() bool {
	all := int64(b.opt.MaxBuffers-1) * b.opt.BufferSize
	if !b.budget.TryAcquire(all) {
		return false
	}
	b.budget.Release(all)
	return true
}

// Client is the client in use.
func (b *Bucket) Client() *container.Client { return b.client }

// URL is the container's address.
func (b *Bucket) URL() string { return b.opt.containerURL() }

// BlockSizes are the sizes of all blocks an upload may have.
func BlockSizes(base, largest int64) []int64 {
	p := newBlockPlan(base, largest)
	sizes := make([]int64, maxBlocks)
	for i := range sizes {
		sizes[i] = p.size(i + 1)
	}
	return sizes
}

// Explain turns an error of a request for key into the Bucket's.
func (b *Bucket) Explain(ctx context.Context, key string, err error) error {
	return b.explain(ctx, "get", key, err)
}

// NVMe is the polynomial of the checksum.
var NVMe = nvme

// SumOf sums a block of size bytes.
func SumOf(kind Checksum, size int64) func() {
	p := &pool{}
	p.init(size, 1)
	c := &content{pool: p, size: size}
	for int64(len(c.chunks))*p.chunk < size {
		c.chunks = append(c.chunks, p.get())
	}
	return func() { c.sum(kind) }
}
