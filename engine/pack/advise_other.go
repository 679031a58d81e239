//go:build !linux

package pack

// adviseSequential does nothing where there is no such advice.
func adviseSequential(int) {}
