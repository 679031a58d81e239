package pgconn

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrSessionLost is the cause of a context that AliveCheck has cancelled.
var ErrSessionLost = errors.New("the PostgreSQL session does not answer: a backup in it is lost")

// AliveCheck pings the session every interval for as long as the returned
// context lives, and cancels that context with a cause that wraps
// ErrSessionLost when the session is gone or takes longer than an interval to
// answer. An interval of 0 or less checks nothing.
//
// The reason: reading the files of a large database takes hours in which the
// session is silent. If the server restarts or a firewall forgets the
// connection, the backup is lost, and it is better to know now than at the
// stop call.
//
// A turn in which another call uses the session is left out. stop ends the
// check, waits until it no longer uses the session and releases the context;
// it must be called, and may be called twice.
func (c *Conn) AliveCheck(ctx context.Context, interval time.Duration) (checked context.Context, stop func()) {
	checked, cancel := context.WithCancelCause(ctx)
	if interval <= 0 {
		return checked, func() { cancel(nil) }
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-checked.Done():
				return
			case <-tick.C:
			}
			// The ping runs under the caller's context, which stop does not
			// cancel: pgx closes a session whose call is cancelled, and stop
			// must leave it whole for StopBackup.
			if err := c.ping(ctx, interval); err != nil && ctx.Err() == nil {
				cancel(err)
				return
			}
		}
	}()
	var once sync.Once
	return checked, func() {
		once.Do(func() { close(quit) })
		<-done
		cancel(nil)
	}
}

func (c *Conn) ping(ctx context.Context, limit time.Duration) error {
	release, ok := c.tryAcquire()
	if !ok {
		return nil
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := c.conn.Ping(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrSessionLost, err)
	}
	return nil
}
