package pinned

import (
	"runtime"
	"syscall"
)

// launch starts the process so that the kernel ends it when ours dies in
// whatever way: a test that runs into its time limit cleans nothing up. The
// signal is bound to the thread that started the process, so that thread
// stays with it.
func launch(p *Process) error {
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		defer close(p.done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.cmd.Wait() // how it ended is of no matter: it is killed
		}
	}()
	return <-started
}
