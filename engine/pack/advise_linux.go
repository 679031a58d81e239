package pack

import "golang.org/x/sys/unix"

// adviseSequential doubles the kernel's read-ahead. It is advice: a file
// system that knows none is no error.
func adviseSequential(fd int) { _ = unix.Fadvise(fd, 0, 0, unix.FADV_SEQUENTIAL) }
