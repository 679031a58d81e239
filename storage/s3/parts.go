package s3

import (
	"fmt"

	"github.com/walherd/walherd/storage"
)

// partPlan tells how long each part of an upload of unknown length is. The
// first tenth of the parts has the base size, so that an ordinary object
// costs little memory; then they grow by the same step each, just enough for
// an object of maxObject bytes. Doubling instead would end with parts of many
// gigabytes.
type partPlan struct {
	base  int64
	count int
	step  int64
}

// partGrain is what sizes are rounded up to: stores with copy-on-write parts
// like it.
const partGrain = 1 << 20

func newPartPlan(base int64, count int) partPlan {
	p := partPlan{base: base, count: count}
	if base >= maxObject/int64(count)+1 {
		return p
	}
	// maxObject <= base*count + step*(1+2+...+growing)
	growing := int64(count - count/10)
	p.step = (maxObject-base*int64(count))/(growing*(growing+1)/2) + 1
	return p
}

// size of part n, counted from 1, in bytes.
func (p partPlan) size(n int) int64 {
	grown := int64(n - p.count/10)
	if grown <= 0 || p.step == 0 {
		return p.base
	}
	size := p.base + grown*p.step
	size = (size + partGrain - 1) / partGrain * partGrain
	return min(size, maxPart)
}

// check refuses the part behind the last one.
func (p partPlan) check(n int) error {
	if n <= p.count {
		return nil
	}
	return fmt.Errorf("%w: the object is larger than %d parts from %d bytes on hold: split it, or raise S3_MAX_PART_SIZE",
		storage.ErrPermanent, p.count, p.base)
}
