package s3

import (
	"context"
	"time"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
)

// Memory tells how many bytes of uploads and read-ahead are held now, and how
// many were at most.
func (b *Bucket) Memory() (now, peak int64) {
	b.pool.mu.Lock()
	defer b.pool.mu.Unlock()
	return b.pool.used, b.pool.peak
}

// BudgetFree tells whether all of the upload budget was given back.
func (b *Bucket) BudgetFree() bool {
	all := int64(b.opt.UploadConcurrency) * b.opt.PartSize
	if !b.budget.TryAcquire(all) {
		return false
	}
	b.budget.Release(all)
	return true
}

// SetNow replaces the clock that retention goes by.
func (b *Bucket) SetNow(now func() time.Time) { b.now = now }

// BucketRegion asks endpoint, as if it were AWS's, for a bucket's region.
func BucketRegion(ctx context.Context, opt Options) (string, error) {
	o, err := opt.withDefaults()
	if err != nil {
		return "", err
	}
	c, t, err := newClient(ctx, &o)
	if err != nil {
		return "", err
	}
	defer t.CloseIdleConnections()
	return bucketRegion(ctx, c, o.Bucket)
}

// Client is the client in use, to prepare what a test needs.
func (b *Bucket) Client() *awss3.Client { return b.client }

// PartSizes are the sizes of all parts an upload may have.
func PartSizes(base int64, count int) []int64 {
	p := newPartPlan(base, count)
	sizes := make([]int64, count)
	for i := range sizes {
		sizes[i] = p.size(i + 1)
	}
	return sizes
}

// Pause is the pause before try n+1.
func Pause(n int, shortest, longest time.Duration) time.Duration { return pause(n, shortest, longest) }
