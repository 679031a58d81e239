//go:build !linux

package pgtest

import "os/exec"

// dieWithParent needs Linux: elsewhere a killed test leaves its server.
func dieWithParent(*exec.Cmd) {}

// children needs /proc. Without it a server process notices by itself that
// its postmaster is gone, a moment later.
func children(int) []int { return nil }
