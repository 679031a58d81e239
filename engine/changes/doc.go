// Package changes tells which blocks of which relations changed between two
// positions of the WAL, so that an increment reads those blocks instead of the
// whole database.
//
// A Map is made out of WAL (Scan), or out of the server's own WAL summaries
// (package pgconn). Maps of consecutive ranges are merged, and a Map knows
// which ranges it covers: an increment from one base backup to the next needs
// one that Covers from the start LSN of the first to that of the second, on the
// way the second's timeline took. Without cover there is no answer, and the
// caller reads everything: a map with a gap would make a backup that restores
// to a damaged database.
//
// # What makes a block changed
//
// Every record that changes a page refers to it, with these exceptions, for
// which the block summaries of PostgreSQL 17 are the model
// (src/backend/postmaster/walsummarizer.c, src/common/blkreftable.c):
//
//   - A fork that is created, dropped or truncated gets a limit: all blocks
//     from there on count as changed. What was there is gone, and pages that
//     took its place may be zeros that no record tells of (since 16 relations
//     are extended by many pages at once). Created: XLOG_SMGR_CREATE, limit 0.
//     Truncated: XLOG_SMGR_TRUNCATE, the limit it names. Dropped: the relations
//     listed in commit and abort records, also of prepared transactions, limit
//     0 for all forks: the number may come back.
//   - CREATE DATABASE with the strategy FILE_COPY (the only one before 15), and
//     ALTER DATABASE SET TABLESPACE, copy a directory and log nothing of its
//     content: all relations of that database in that tablespace count as
//     changed. So they do after WAL_LOG and DROP DATABASE, which would not
//     need it: a database moved away and back has files of the same names.
//   - A page of the visibility map loses bits when a heap page changes, and the
//     heap's record does not refer to it (nor does the page's LSN tell). So a
//     page of a visibility map counts as changed when one of the heap pages it
//     stands for has, and it is cut where the heap is. The server's own
//     summaries were found to miss this in March 2026, see
//     https://www.postgresql.org/message-id/CAAKRu_YAvPWTuEotqN_yHnM0To3igVK_eWh_mRn12odr_20azg@mail.gmail.com
//     and until January 2026 took the heap's limit for that of its map.
//   - The free space map is not logged: its files always count as changed.
//   - WAL of wal_level=minimal lacks what went into new files only. A record
//     that tells of that level is an error, ErrMinimal. A range that begins
//     with a base backup begins at a higher level.
//
// Harmless to miss are: hint bits set without a record (data_checksums and
// wal_log_hints off), since a page without them is as good and gets them again
// when it is read; relations UNLOGGED, which the end of every recovery empties;
// temporary relations; orphans of a crash; the first page of an SP-GiST
// index, where it remembers pages with room as a hint; pages of zeros beyond the end that a
// file had, which the file's length tells. Not files of blocks, and therefore
// not here, are the commit log and its kind (pg_xact, pg_multixact, ...),
// pg_filenode.map and pg_control: they are small and stored in full.
// Tablespaces are dropped when no relation is left in them, so their records
// add nothing.
//
// # Positions
//
// A Map of the range [start, end) stands for all records that start in it. A
// backup's start LSN is the redo point of its checkpoint: what records before it
// changed is on disk, what later ones change is replayed. So increments need
// just that range.
//
// A record that lies on both sides of a range's end is not known until the next
// range is merged: each Map carries the pieces at its borders. So workers scan
// single segments, in any order, each for itself.
package changes
