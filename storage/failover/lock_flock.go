//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package failover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// openCache opens the status file. Without $HOME that is a known name in a
// directory where everyone may write: a link, a pipe or another user's file in
// its place is refused.
func openCache(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil {
		err = checkCache(st)
	}
	if err != nil {
		f.Close() // nothing was written
		return nil, err
	}
	return f, nil
}

func checkCache(st os.FileInfo) error {
	if !st.Mode().IsRegular() {
		return fmt.Errorf("it is no regular file (%v); remove it", st.Mode().Type())
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if me := os.Geteuid(); ok && me != 0 && sys.Uid != 0 && int(sys.Uid) != me {
		return fmt.Errorf("it belongs to user id %d; remove it, or set HOME to a directory of user id %d", sys.Uid, me)
	}
	return nil
}

// lockTimeout is how long to wait for another process to let go of the file. It
// takes microseconds, unless that process was stopped.
const lockTimeout = time.Second

// lock takes the lock on an open file, which ends when the file is closed.
func lock(ctx context.Context, f *os.File, exclusive bool) error {
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	err := flock(f, how|unix.LOCK_NB)
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return err
	}
	// To wait in the system is fair under a crowd, to try again and again is
	// not. But there is no way out of it: it is done on a duplicate, which
	// shares the lock, and which outlives a wait that took too long.
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicate the descriptor: %w", err)
	}
	locked := make(chan error, 1)
	go func() {
		duplicate := os.NewFile(uintptr(fd), f.Name())
		err := flock(duplicate, how)
		duplicate.Close() // nothing is written through it
		locked <- err
	}()
	t := time.NewTimer(lockTimeout)
	defer t.Stop()
	select {
	case err := <-locked:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return fmt.Errorf("another process has held it for %v", lockTimeout)
	}
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
