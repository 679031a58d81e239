// Package delta makes and applies increments: of a file that has changed since
// a parent backup, the pages that changed.
//
// Plan decides for each entry of a backup whether the parent still has it
// right, whether an increment will do, or whether the file is stored whole; an
// Opener then gives package pack the content, choosing pages by their LSN or by
// a map of changes. A Reader takes an increment apart that nobody vouches for;
// Apply puts it on the older file, and Partial builds the newest file first and
// fills it up with the pages of ever older ones.
//
// In doubt a file is stored whole or a page is stored again: that costs space,
// the other mistake costs data. Names decide, and never the path of the data
// directory: they are relative to it.
//
// What is read is refused with ErrFormat when it is no increment. Errors of
// files and readers are passed on wrapped. The package does not log.
//
// The format is WAL-G's, version 1; all numbers are little-endian:
//
//	offset   size
//	0        4      77 69 31 55
//	4        8      length of the file in bytes, a multiple of the page size
//	12       4      N, how many pages follow
//	16       4N     their numbers within this file, ascending
//	16+4N    8192N  the pages, in that order
//
// N may be 0: only the length has changed. WAL-G lists pages beyond the length
// when the file grew while it was read. They are passed over here, as a full
// backup cuts such a file; WAL replay extends it again.
package delta
