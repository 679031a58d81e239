package pieces

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// Queue is an upload: the parts under way and the buffers they use. One
// goroutine drives it.
//
// The first buffer is the Put's own. More are taken while Budget has room, never
// waited for: whoever waits for the budget waits for others, whose readers may
// wait for him. Without room the upload goes on with the buffers it has, as they
// come back.
type Queue struct {
	Pool   *Pool
	Budget *semaphore.Weighted // bytes of parts beyond the first of each Put
	Plan   Plan
	Most   int // parts under way
	// Send uploads part n, counted from 1; its calls run side by side, and
	// its error ends the upload as it is.
	Send func(ctx context.Context, n int, c *Content) error
	// Fail words any other error: a ReadError, the context's, the plan's.
	Fail func(ctx context.Context, err error) error

	done   chan sent // a part that was sent, or failed
	flying int
}

type sent struct {
	content *Content
	err     error
}

// Run uploads first, which stays the caller's, and the rest of src. It waits for
// every part; after a failure it cancels those that are under way.
func (q *Queue) Run(ctx context.Context, first *Content, src *Source) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	q.done = make(chan sent, q.Most)
	err := q.send(ctx, first, src)
	for q.flying > 0 {
		if err != nil {
			cancel()
		}
		c, failed := q.land(first)
		if failed == nil {
			q.drop(c, first)
		} else if err == nil {
			err = failed
		}
	}
	return err
}

// send cuts src into parts and starts their uploads; it returns with some under
// way.
func (q *Queue) send(ctx context.Context, first *Content, src *Source) error {
	c, more := first, true
	for n := 1; ; n++ {
		if n > 1 {
			var err error
			if c, err = q.buffer(ctx, n, first); err != nil {
				return err
			}
			if more, err = c.Fill(ctx, src, q.Plan.Size(n)); err == nil {
				err = ctx.Err()
			}
			if err != nil {
				q.drop(c, first)
				return q.Fail(ctx, err)
			}
		}
		q.flying++
		go func(c *Content) { q.done <- sent{c, q.Send(ctx, n, c)} }(c)
		if !more {
			return nil
		}
	}
}

// buffer is an empty content for part n.
func (q *Queue) buffer(ctx context.Context, n int, first *Content) (*Content, error) {
	if err := q.Plan.Check(n); err != nil {
		return nil, q.Fail(ctx, err)
	}
	size := q.Plan.Size(n)
	for {
		// What has come back is used before more is taken, unless nothing
		// has.
		if len(q.done) == 0 && q.flying < q.Most && q.Budget.TryAcquire(size) {
			return &Content{pool: q.Pool, credit: size}, nil
		}
		c, err := q.land(first)
		if err != nil {
			return nil, err
		}
		// Later parts are larger: a buffer on credit grows if there is more.
		if c == first || c.credit >= size || q.grow(c, size) {
			return c, nil
		}
		q.drop(c, first)
	}
}

func (q *Queue) grow(c *Content, size int64) bool {
	if !q.Budget.TryAcquire(size - c.credit) {
		return false
	}
	c.credit = size
	return true
}

// land waits for a part under way and takes its buffer back, empty. After a
// failure the buffer is given up.
func (q *Queue) land(first *Content) (*Content, error) {
	s := <-q.done
	q.flying--
	if s.err != nil {
		q.drop(s.content, first)
		return nil, s.err
	}
	s.content.size = 0
	return s.content, nil
}

// drop gives a buffer back. The first one stays the Put's.
func (q *Queue) drop(c, first *Content) {
	if c == first {
		return
	}
	c.Release()
	q.Budget.Release(c.credit)
}
