package observe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"runtime/trace"
)

// Profile is one profile being taken.
type Profile struct {
	// Path of the file it is written to.
	Path string
	file *os.File
	end  func() error
}

// StartProfile begins a profile of the process in a new file in dir; "" is a new
// temporary directory. mode is cpu, mem, mutex, block, threadcreation, trace or
// goroutine; all but cpu and trace are written when the profile stops. Only one
// cpu or trace profile can be taken at a time.
func StartProfile(mode, dir string) (p *Profile, err error) {
	if dir == "" {
		dir, err = os.MkdirTemp("", "profile")
	} else {
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		return nil, fmt.Errorf("make directory for the profile: %w (PROFILE_PATH)", err)
	}
	p = new(Profile)
	// Commands of one moment do not overwrite one another's.
	ending := ".pprof"
	if mode == "trace" {
		ending = ".out"
	}
	if p.file, err = os.CreateTemp(dir, mode+"-*"+ending); err != nil {
		return nil, fmt.Errorf("make profile: %w (PROFILE_PATH)", err)
	}
	p.Path, _ = filepath.Abs(p.file.Name())
	lookup := func(name string) func() error {
		return func() error { return pprof.Lookup(name).WriteTo(p.file, 0) }
	}
	switch mode {
	case "cpu":
		err = pprof.StartCPUProfile(p.file)
		p.end = func() error { pprof.StopCPUProfile(); return nil }
	case "trace":
		err = trace.Start(p.file)
		p.end = func() error { trace.Stop(); return nil }
	case "mem":
		runtime.MemProfileRate = 4096 // as fine as a short command needs
		p.end = lookup("heap")
	case "mutex":
		runtime.SetMutexProfileFraction(1)
		p.end = lookup("mutex")
	case "block":
		runtime.SetBlockProfileRate(1)
		p.end = lookup("block")
	case "threadcreation":
		p.end = lookup("threadcreate")
	case "goroutine":
		p.end = lookup("goroutine")
	default:
		err = fmt.Errorf("mode %q is none of cpu, mem, mutex, block, threadcreation, trace, goroutine", mode)
	}
	if err != nil {
		p.file.Close()
		return nil, fmt.Errorf("start profile: %w", errors.Join(err, os.Remove(p.file.Name())))
	}
	return p, nil
}

// Stop ends the profile and writes its file.
func (p *Profile) Stop() error {
	err := p.end()
	if cerr := p.file.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write profile %s: %w", p.Path, err)
	}
	return nil
}
