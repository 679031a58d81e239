// Package wal reads what PostgreSQL archives: the header of a WAL segment,
// timeline history files and backup labels.
//
// CheckSegment refuses a file before it is shipped: one of another cluster,
// of another position or of the wrong size would be stored under a good name
// and found out only by the restore that needs it. Every refusal is one of
// the package's errors. Nothing here reads a file, logs or keeps state.
package wal
