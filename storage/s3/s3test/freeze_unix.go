//go:build unix

package s3test

import (
	"errors"
	"fmt"
	"syscall"
)

// Freeze stops the server's process where it is, as an overloaded machine or
// a suspended virtual one does: connections stay open and new ones are
// accepted by the kernel, but nothing is answered until Thaw. A frozen server
// can be stopped.
func (s *Server) Freeze() error { return s.signal(syscall.SIGSTOP) }

// Thaw lets a frozen server go on.
func (s *Server) Thaw() error { return s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return errors.New("the S3 server does not run")
	}
	if err := s.proc.Signal(sig); err != nil {
		return fmt.Errorf("send %v to the S3 server: %w", sig, err)
	}
	return nil
}
