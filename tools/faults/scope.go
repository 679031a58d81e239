package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/walherd/walherd/messages/bustest/natstest"
	"github.com/walherd/walherd/tools/faults/link"
)

// scope undoes what was set up, last first.
type scope struct {
	mu   sync.Mutex
	undo []func()
}

func (t *scope) defers(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.undo = append(t.undo, f)
}

func (t *scope) close() {
	for {
		t.mu.Lock()
		if len(t.undo) == 0 {
			t.mu.Unlock()
			return
		}
		f := t.undo[len(t.undo)-1]
		t.undo = t.undo[:len(t.undo)-1]
		t.mu.Unlock()
		f()
	}
}

func (t *scope) link(ctx context.Context, target string) (*link.Link, error) {
	l, err := link.New(ctx, target)
	if err == nil {
		t.defers(l.Close)
	}
	return l, err
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// programs are the binaries under test and around it, built from this tree.
type programs struct{ walherd, client, nats, lossyfs string }

// build makes them in dir; lossyfs if it is asked for.
func build(ctx context.Context, dir string, lossyfs bool) (p programs, err error) {
	root, err := sourceRoot()
	if err != nil {
		return p, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return p, err
	}
	p = programs{walherd: filepath.Join(dir, "walherd"), client: filepath.Join(dir, "walg-daemon-client")}
	if p.nats, err = natstest.Build(ctx); err != nil {
		return p, err
	}
	if lossyfs {
		p.lossyfs = filepath.Join(dir, "lossyfs")
	}
	for _, b := range []struct{ in, pkg, out string }{
		{root, "./tools/walherd", p.walherd},
		{root, "./tools/daemonclient", p.client},
		{filepath.Join(root, "tools", "faults", "lossyfs"), ".", p.lossyfs},
	} {
		if b.out == "" {
			continue
		}
		cmd := exec.CommandContext(ctx, "go", "build", "-ldflags=-s -w", "-o", b.out, b.pkg)
		cmd.Dir = b.in
		cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return p, fmt.Errorf("build %s: %w: %s", b.pkg, err, out)
		}
	}
	return p, nil
}

// mountable tells whether file systems can be mounted here.
func mountable() bool {
	_, err := os.Stat("/dev/fuse")
	return err == nil && os.Geteuid() == 0
}
