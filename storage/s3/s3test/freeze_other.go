//go:build !unix

package s3test

import "errors"

// Freeze is not possible on this system.
func (s *Server) Freeze() error {
	return errors.New("freeze the S3 server: this system cannot stop a process")
}

// Thaw is not possible on this system.
func (s *Server) Thaw() error {
	return errors.New("thaw the S3 server: this system cannot stop a process")
}
