package pieces

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"
)

// ErrStalled is the cause by which a Conn cancels its request.
var ErrStalled = errors.New("stalled")

// Conn is the body of one answer. A Read in which nothing comes for the stall
// limit cancels the request, and so ends.
type Conn struct {
	rc     io.ReadCloser
	cancel context.CancelCauseFunc
	stall  time.Duration
	watch  *time.Timer
	stale  atomic.Bool
	why    func(error) error
}

// NewConn watches rc, the body of a request that cancel ends. why names the
// stall behind an error, which otherwise looks like the caller's wish.
func NewConn(rc io.ReadCloser, cancel context.CancelCauseFunc, stall time.Duration, why func(error) error) *Conn {
	c := &Conn{rc: rc, cancel: cancel, stall: stall, why: why}
	c.watch = time.AfterFunc(stall, func() {
		c.stale.Store(true)
		cancel(ErrStalled)
	})
	c.watch.Stop()
	return c
}

// Read implements io.Reader.
func (c *Conn) Read(p []byte) (int, error) {
	c.watch.Reset(c.stall)
	n, err := c.rc.Read(p)
	c.watch.Stop()
	if err != nil && err != io.EOF && c.stale.Load() {
		err = c.why(err)
	}
	return n, err
}

// Close ends the request, also while a Read waits.
func (c *Conn) Close() error {
	c.watch.Stop()
	c.cancel(nil)
	return c.rc.Close()
}
