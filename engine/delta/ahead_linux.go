package delta

import "golang.org/x/sys/unix"

// adviseNeed has the kernel read n bytes at off before they are asked for. It is
// advice: a file system that knows none is no error.
func adviseNeed(fd uintptr, off, n int64) { _ = unix.Fadvise(int(fd), off, n, unix.FADV_WILLNEED) }
