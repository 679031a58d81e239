package pgtest

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
)

// TB is the part of testing.TB a cluster needs. *testing.T and *testing.B
// are TBs; Do makes one for a program that is no test.
//
// Fatalf must not return to its caller.
type TB interface {
	Helper()
	Name() string
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(func())
	Failed() bool
}

// Do runs f with a TB outside of go test, for the demo and for commands that
// need a throw-away cluster. Whatever was registered with Cleanup has run
// when Do returns. The error is that of f, or what f gave to Fatalf. logf may
// be nil.
func Do(name string, logf func(format string, args ...any), f func(TB) error) error {
	if logf == nil {
		logf = func(string, ...any) {}
	}
	s := &scope{name: name, logf: logf}
	done := make(chan struct{})
	go func() {
		// Fatalf ends this goroutine through runtime.Goexit, which runs
		// the deferred calls: the cleanups, then the close.
		defer close(done)
		defer s.cleanup()
		if err := f(s); err != nil {
			s.fail(err)
		}
	}()
	<-done
	return s.failure()
}

type scope struct {
	name string
	logf func(string, ...any)

	mu       sync.Mutex
	cleanups []func()
	err      error
}

func (s *scope) Helper()                      {}
func (s *scope) Name() string                 { return s.name }
func (s *scope) Logf(format string, a ...any) { s.logf(format, a...) }

func (s *scope) Fatalf(format string, a ...any) {
	s.fail(fmt.Errorf(format, a...))
	runtime.Goexit()
}

func (s *scope) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

func (s *scope) Failed() bool { return s.failure() != nil }

func (s *scope) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *scope) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

func (s *scope) cleanup() {
	s.mu.Lock()
	todo := slices.Clone(s.cleanups)
	s.mu.Unlock()
	for _, f := range slices.Backward(todo) {
		f()
	}
}
