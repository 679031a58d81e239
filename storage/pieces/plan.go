package pieces

import (
	"fmt"

	"github.com/walherd/walherd/storage"
)

// PlanOptions are what a store allows.
type PlanOptions struct {
	Base    int64  // bytes of an ordinary part
	Count   int    // most parts
	Largest int64  // most bytes of a part
	Object  int64  // most bytes of an object
	Grain   int64  // grown sizes are rounded up to it; 0 is none
	Name    string // of parts, in messages: parts, blocks
	Setting string // that raises Base
}

// Plan tells how long each part of an upload of unknown length is. The first
// tenth of the parts has the base size, so that an ordinary object costs little
// memory; then they grow by the same step each, just enough for the largest
// object. Doubling instead would end with parts of many gigabytes.
type Plan struct {
	opt  PlanOptions
	step int64
}

// NewPlan makes the plan for uploads that start with parts of o.Base bytes.
func NewPlan(o PlanOptions) Plan {
	p := Plan{opt: o}
	count := int64(o.Count)
	if o.Base >= o.Object/count+1 {
		return p
	}
	// Object <= Base*Count + step*(1+2+...+growing)
	growing := count - count/10
	p.step = (o.Object-o.Base*count)/(growing*(growing+1)/2) + 1
	return p
}

// Size of part n, counted from 1, in bytes.
func (p Plan) Size(n int) int64 {
	grown := int64(n - p.opt.Count/10)
	if grown <= 0 || p.step == 0 {
		return p.opt.Base
	}
	size := p.opt.Base + grown*p.step
	if g := p.opt.Grain; g > 0 {
		size = (size + g - 1) / g * g
	}
	return min(size, p.opt.Largest)
}

// Check refuses the part behind the last one, with storage.ErrPermanent.
func (p Plan) Check(n int) error {
	if n <= p.opt.Count {
		return nil
	}
	return fmt.Errorf("%w: the object is larger than %d %s from %d bytes on hold: split it, or raise %s",
		storage.ErrPermanent, p.opt.Count, p.opt.Name, p.opt.Base, p.opt.Setting)
}
