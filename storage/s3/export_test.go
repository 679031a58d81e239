package s3

import (
	"context"
	"time"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
)

// Memory tells how many bytes of uploads and read-ahead are held now, and how
// many were at most.
func (b *Bucket) Memory() (now, peak int64) {
	now, peak, _ = b.pool.Used()
	return now, peak
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
	p := partPlan(base, count)
	sizes := make([]int64, count)
	for i := range sizes {
		sizes[i] = p.Size(i + 1)
	}
	return sizes
}
