// Package wal reads what PostgreSQL archives: the header of a WAL segment, the
// records of consecutive segments, timeline history files and backup labels.
//
// CheckSegment refuses a file before it is shipped: one of another cluster,
// of another position or of the wrong size would be stored under a good name
// and found out only by the restore that needs it.
//
// A Reader gives every record of PostgreSQL 13 to 18 with its block references
// and its main data, checks each checksum, and names the position of whatever
// it does not believe. It decodes no further: what a record means for a
// relation's files is package changes' affair.
//
// Every refusal is one of the package's errors. Nothing here opens a file,
// logs or keeps state between calls, and no input makes it panic.
package wal
