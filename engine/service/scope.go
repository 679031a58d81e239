package service

import (
	"context"
	"errors"
	"sync"
)

// Scope is a bounded pool of goroutines that lives as long as one call of
// Within.
type Scope struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	slots  chan struct{} // nil: no bound
	wg     sync.WaitGroup

	once  sync.Once
	first error
}

var errGoexit = errors.New("goroutine ended without returning (runtime.Goexit)")

// Within calls body with a pool of at most limit goroutines (0 or less: no
// bound) and returns when body and all goroutines have. It returns their first
// error; a panic in either is a *PanicError. That first error cancels the
// context which all of them see, and is its cause.
//
// When ctx ends before the work is done, the error is at least ctx's cause.
func Within(ctx context.Context, limit int, body func(context.Context, *Scope) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &Scope{ctx: ctx, cancel: cancel}
	if limit > 0 {
		s.slots = make(chan struct{}, limit)
	}
	if err := Catch(func() error { return body(ctx, s) }); err != nil {
		s.fail(err)
	}
	s.wg.Wait()
	return s.first
}

func (s *Scope) fail(err error) {
	s.once.Do(func() {
		s.first = err
		s.cancel(err)
	})
}

// Go runs f in the pool, waiting for room first. Once something has failed or
// the context has ended, f is not called and Within returns an error. A
// goroutine of a bounded pool must not call Go: all of them could come to wait
// for room that only they can make.
func (s *Scope) Go(f func(context.Context) error) {
	if s.ctx.Err() != nil {
		s.fail(context.Cause(s.ctx))
		return
	}
	if s.slots != nil {
		select {
		case s.slots <- struct{}{}:
		case <-s.ctx.Done():
			s.fail(context.Cause(s.ctx))
			return
		}
	}
	s.wg.Go(func() {
		returned := false
		defer func() {
			if !returned {
				s.fail(errGoexit)
			}
			if s.slots != nil {
				<-s.slots
			}
		}()
		if err := Catch(func() error { return f(s.ctx) }); err != nil {
			s.fail(err)
		}
		returned = true
	})
}
