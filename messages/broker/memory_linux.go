package broker

import (
	"fmt"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// limitMemory makes this process fail rather than take the machine's memory:
// its streams, the server's own needs, and nothing more.
func limitMemory(streams int64) error {
	if streams == 0 {
		streams = 256 << 20
	}
	debug.SetMemoryLimit(streams + overhead/2)
	// Data, not address space: the runtime reserves far more than it uses.
	most := uint64(streams + overhead)
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: most, Max: most}); err != nil {
		return fmt.Errorf("limit the broker's memory to %d bytes: %w", most, err)
	}
	return nil
}
