//go:build !linux

package broker

import "runtime/debug"

// limitMemory makes the collector stay within the bound; a hard limit is known
// on Linux only.
func limitMemory(streams int64) error {
	if streams == 0 {
		streams = 256 << 20
	}
	debug.SetMemoryLimit(streams + overhead/2)
	return nil
}
