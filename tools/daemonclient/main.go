// Command daemonclient (installed as walg-daemon-client) asks a running daemon
// to archive or to fetch one WAL file. It reads no settings and links nothing
// but the protocol, so that archive_command starts fast.
//
//	archive_command = 'walg-daemon-client SOCKET wal-push %f'
//	restore_command = 'walg-daemon-client SOCKET wal-fetch %f %p'
//
// Flags come last: -timeout 60s, -connection-timeout 5s. The exit code is 0,
// 74 when the archive has no such file, and 1 for every other failure; the
// reason of one on the daemon's side is in the daemon's log. PostgreSQL takes 74
// and 1 alike for the end of the archive; for recovery to stop at a failure, end
// restore_command in || exit $(($? == 74 ? 74 : 255)).
package main

import (
	"context"
	"os"

	"github.com/walherd/walherd/producer/daemon/client"
)

// version is set by the build.
var version = "devel"

func main() {
	// Signals keep their default: PostgreSQL wants a restore_command that it
	// interrupts to die of the signal.
	os.Exit(client.Main(context.Background(), os.Args[1:], "walg-daemon-client version "+version, os.Stdout, os.Stderr))
}
