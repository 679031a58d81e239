//go:build !linux

package s3test

func launch(p *process) error {
	if err := p.cmd.Start(); err != nil {
		return err
	}
	go func() {
		defer close(p.done)
		p.cmd.Wait() // how it ended is of no matter: it is killed
	}()
	return nil
}
