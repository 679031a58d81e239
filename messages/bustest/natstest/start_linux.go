package natstest

import (
	"os/exec"
	"runtime"
	"syscall"
)

// start starts a process that the kernel ends when ours dies in whatever way:
// a test that runs into its time limit cleans nothing up. The signal is bound
// to the thread that started the process, so that thread stays with it.
func start(cmd *exec.Cmd, done chan<- struct{}) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in its log
		}
	}()
	return <-started
}
