// Package restore turns the stored parts of a backup into a data directory that
// PostgreSQL can start from. NewPlan decides what goes where and is pure; Run
// does it over a Source.
//
// Nothing an archive says is trusted: names stay inside the directory they
// were planned for, links are never made from it, an archive that ends early
// or goes on behind its end is an error. Names of entries may begin with a
// slash (local backups) or not (streamed ones); both are paths below the data
// directory.
//
// A restore that fails leaves a directory that PostgreSQL cannot start from:
// global/pg_control, without which it does not, is written when all else is
// on disk, and until then the file MarkerName says what is incomplete. Run
// never cleans up: what is there may be what is left of a disaster.
//
// An increment is restored with the backups it builds on: Chain finds them,
// NewChainPlan decides, out of their lists of files, where each file of the
// target and each part of it comes from, and RunChain does it, in the order of
// the backups or from the target back. Both orders give the same tree: what the
// target does not list is not restored, and a page that is zero in the target
// stays zero. A list that is missing or contradicts another is refused, since
// nothing else tells an increment of a file from a file.
//
// Memory goes with the number of files, some 40 bytes and the name for each, and
// not with their size.
package restore
