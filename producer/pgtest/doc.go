// Package pgtest runs real PostgreSQL clusters for tests, the demo and
// benchmarks: initdb, start, stop, crash, standby, and starting a data
// directory that was just restored. It imports the standard library only, so
// that every other package may use it in its tests.
//
// A cluster is reached over a unix socket in a directory of its own, never
// over TCP, so that any number of clusters run side by side with one port
// number. The server refuses to run as root: there it runs as the operating
// system's user postgres, and every file it needs lies in a directory that
// user owns. Under any other user it runs as that user.
//
// Nothing is skipped: when PostgreSQL is missing the test fails and names the
// command that installs it. Every failure ends the calling test through
// Fatalf; the server's log is shown with it. On Linux a server dies with the
// process that started it, also when that process is killed.
//
// The binaries are those of $WALHERD_PG_BIN, else of the newest supported
// version below /usr/lib/postgresql.
package pgtest
