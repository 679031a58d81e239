// Package restore turns the stored parts of a full backup into a data
// directory that PostgreSQL can start from. NewPlan decides what goes where
// and is pure; Run does it over a Source.
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
// Increments are not restored by this version. The place for them is the
// writing of one file (attempt.file) and a chain of plans; NewPlan refuses
// an increment before anything is written.
package restore
