// Package manifest reads and writes the JSON documents stored beside a
// backup: the sentinel whose existence is the backup, metadata.json,
// files_metadata.json and the tablespace spec. FORMAT.md in this folder
// specifies them for a reader who has nothing else.
//
// What is written equals, byte for byte, what WAL-G writes for the same
// values, so both programs can share a bucket. Reading is lenient where WAL-G
// is (case of member names, unknown members, legacy sentinels) and strict
// where a wrong guess would restore wrong data: contradicting increment
// members or an unusable tablespace spec are errors, never a panic and never
// a default.
//
// The small documents are values in memory. files_metadata.json, one member
// per file of the cluster, is streamed in both directions.
package manifest
