package azure

import (
	"bytes"
	"context"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"github.com/walherd/walherd/storage/pieces"
)

// SetPageSize makes listings come in pages of n names.
func SetPageSize(o *Options, n int32) { o.pageSize = &n }

// Memory tells how many bytes of uploads are held now, and how many were at
// most.
func (b *Bucket) Memory() (now, peak int64) {
	now, peak, _ = b.pool.Used()
	return now, peak
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
	p := blockPlan(base, largest)
	sizes := make([]int64, maxBlocks)
	for i := range sizes {
		sizes[i] = p.Size(i + 1)
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
	c := pieces.NewContent(newPool(size, 1))
	src := pieces.NewSource(bytes.NewReader(make([]byte, size)), nil)
	if _, err := c.Fill(context.Background(), src, size); err != nil {
		panic(err)
	}
	return func() { sumOf(c, kind) }
}
