// Package service is how the long-lived parts of the program start and stop,
// and how short-lived pools of goroutines are bounded.
//
// Service is the promise, Base an embeddable helper that keeps it, StartAll
// and StopAll handle several. Within runs a pool that cannot outlive the call.
//
// Stopping has two steps, because a worker killed in a segment costs a
// redelivery: first no new work is fetched while current work is finished
// (drain), then, when the limit is reached or somebody insists, current work
// is aborted too. A panic in a service or a pool is an error with its stack
// (PanicError), never the end of the process.
package service

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
)

// Service is something that runs in the background, once. All methods may be
// called from any goroutine, in any order, any number of times.
type Service interface {
	// Start returns when the service is running, or with the reason why it is
	// not; then Done is closed and Err says the same. It does its long work
	// in its own goroutines. A Start that Stop interrupts returns ErrStopped,
	// and Err is nil: the service ended as it was asked to.
	//
	// ctx lasts as long as the service: its end begins the drain, as Stop
	// does, with the context's cause for the stop cause.
	//
	// Only the first Start does anything: a second returns ErrStarted, one
	// after Stop ErrStopped.
	Start(ctx context.Context) error

	// Stop begins the drain and waits until the service has ended. When ctx
	// ends first, current work is aborted, and Stop waits for that; so ctx's
	// deadline is the limit of the drain, and cancelling ctx (a second
	// SIGTERM) is how to insist.
	//
	// It returns Err. Stopping what has ended or was never started returns at
	// once, and stopping twice is waiting twice; each caller's ctx counts.
	Stop(ctx context.Context) error

	// Done is closed when all of the service's goroutines have ended, or when
	// Stop came before Start.
	Done() <-chan struct{}

	// Err is nil until Done is closed. Then it is nil if the service ended
	// well: it was asked to and finished its current work, or had no more to
	// do. ErrAborted tells that current work was cut off.
	Err() error
}

// What a service says of itself, for errors.Is.
var (
	// ErrStopped is the cause (context.Cause) of a service's contexts after
	// Stop, and the answer of a Start that comes later.
	ErrStopped = errors.New("service is stopped")
	// ErrStarted answers a second Start.
	ErrStarted = errors.New("service was started before")
	// ErrAborted marks the end of a service whose drain was cut short, and is
	// the cause of its work context.
	ErrAborted = errors.New("service was aborted before its work was finished")
)

// StartAll starts the services in order. If one fails, those before it are
// stopped in reverse order, without a limit but ctx, and its error returned.
func StartAll(ctx context.Context, services ...Service) error {
	for i, s := range services {
		if err := s.Start(ctx); err != nil {
			return errors.Join(err, StopAll(ctx, services[:i]...))
		}
	}
	return nil
}

// StopAll stops the services one after the other in reverse order, so that
// each may use those started before it until it has ended. ctx is for all of
// them together: once it has ended, the rest are aborted. All errors are
// returned.
func StopAll(ctx context.Context, services ...Service) error {
	var errs []error
	for i := len(services) - 1; i >= 0; i-- {
		errs = append(errs, services[i].Stop(ctx))
	}
	return errors.Join(errs...)
}

// PanicError is a panic that was caught.
type PanicError struct {
	// Value is what panic was called with.
	Value any
	// Stack is that of the goroutine, as debug.Stack prints it.
	Stack []byte
}

// Error shows the stack too: it is a bug's only trace.
func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.Value, e.Stack) }

// Unwrap gives the value if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// Catch calls f and returns its error, or its panic as a *PanicError.
func Catch(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return f()
}

// Base keeps the promises of Service for a type that embeds it. The type adds
// Start, which calls Launch and does nothing else:
//
//	func (p *Pool) Start(ctx context.Context) error {
//		return p.Launch(ctx, p.open, p.run)
//	}
//
// The zero value is ready. A Base must not be copied.
type Base struct {
	mu       sync.Mutex
	phase    phase
	done     chan struct{}
	err      error
	stop     context.CancelCauseFunc // ends the fetch context
	abort    context.CancelCauseFunc // ends the work context
	isClosed bool
}

type phase int

const (
	idle phase = iota
	running
	ended // or stopped before the start
)

// Launch starts a service. setup, if not nil, is what Start has to wait for;
// it runs in the caller's goroutine, and its context is the fetch context, so
// that Stop ends a hanging setup. run is the service's life, in a goroutine.
//
// run gets two contexts, both with the values of ctx. fetch ends when no new
// work shall be taken: by Stop, or with ctx. work ends only when the drain is
// cut short. run returns soon after fetch has ended and current work is done,
// or after work has ended. Its error is the service's, except that after a
// stop an error that only says so (context.Canceled, or fetch's cause) is a
// good end.
func (b *Base) Launch(ctx context.Context, setup func(context.Context) error, run func(fetch, work context.Context) error) error {
	b.mu.Lock()
	switch {
	case b.phase == running, b.phase == ended && b.stop != nil:
		b.mu.Unlock()
		return ErrStarted
	case b.phase == ended:
		b.mu.Unlock()
		return ErrStopped
	}
	b.phase = running
	fetch, stop := context.WithCancelCause(ctx)
	work, abort := context.WithCancelCause(context.WithoutCancel(ctx))
	b.stop, b.abort = stop, abort
	b.mu.Unlock()

	if setup != nil {
		if err := Catch(func() error { return setup(fetch) }); err != nil {
			if context.Cause(fetch) == ErrStopped {
				b.end(nil)
				return ErrStopped
			}
			b.end(err)
			return err
		}
	}
	go func() {
		returned := false
		defer func() { // reached by runtime.Goexit too
			if !returned {
				b.end(errGoexit)
			}
		}()
		err := Catch(func() error { return run(fetch, work) })
		returned = true
		b.end(verdict(err, fetch, work))
	}()
	return nil
}

// verdict makes the service's error from run's.
func verdict(err error, fetch, work context.Context) error {
	switch {
	case err == nil:
		return nil
	case work.Err() != nil:
		if errors.Is(err, ErrAborted) {
			return err
		}
		return fmt.Errorf("%w: %w", context.Cause(work), err)
	case fetch.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(fetch))):
		return nil
	}
	return err
}

func (b *Base) end(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.phase, b.err = ended, err
	b.stop(err)
	b.abort(err)
	b.closeDone()
}

// closeDone is called with the lock held.
func (b *Base) closeDone() {
	if !b.isClosed {
		b.isClosed = true
		close(b.doneLocked())
	}
}

func (b *Base) doneLocked() chan struct{} {
	if b.done == nil {
		b.done = make(chan struct{})
	}
	return b.done
}

// Done implements Service.
func (b *Base) Done() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.doneLocked()
}

// Err implements Service.
func (b *Base) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// Stop implements Service.
func (b *Base) Stop(ctx context.Context) error {
	b.mu.Lock()
	if b.phase == idle {
		b.phase = ended
		b.closeDone()
	}
	done, stop, abort := b.doneLocked(), b.stop, b.abort
	b.mu.Unlock()

	if stop != nil {
		stop(ErrStopped)
		select {
		case <-done:
		case <-ctx.Done():
			abort(fmt.Errorf("%w: %w", ErrAborted, context.Cause(ctx)))
			<-done
		}
	}
	return b.Err()
}
