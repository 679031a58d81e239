// Package pg holds PostgreSQL's own notions as value types: an LSN, a
// timeline, a WAL segment name, a backup name, a system identifier, a server
// version. Each type parses, prints, compares and validates itself, so that
// no other package cuts a name apart with string arithmetic.
//
// The package is the bottom of the tree: it imports the standard library
// only, does no I/O and never logs.
package pg
