//go:build !linux

package pinned

func launch(p *Process) error {
	if err := p.cmd.Start(); err != nil {
		return err
	}
	go func() {
		defer close(p.done)
		p.cmd.Wait() // how it ended is of no matter: it is killed
	}()
	return nil
}
