// Package cluster knows a PostgreSQL data directory from the outside: which
// of its files a base backup holds, under which names, where its tablespaces
// lie, and what its control file says.
//
// Walk visits the directory in the order in which WAL-G stores it; Scan keeps
// the result in memory at about a hundred bytes per file. Neither opens a
// file. A server may run meanwhile: a file that vanishes is a warning, and so
// is everything that cannot be part of a backup (sockets, symbolic links).
// What makes a backup worthless is an error: a directory or a file that may
// not be read, a root that is no data directory.
//
// The package does not log; warnings go to the caller's function.
package cluster
