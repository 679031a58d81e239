// Package changemap keeps a change map beside every archived segment, and puts
// those of a range together: so an increment learns which blocks changed without
// any work on the database host.
//
// A map is an object of its own, wal_005/SEGMENT_changes.EXT in the form of
// package changes, compressed and sealed as the segment is. It is made of one
// segment's bytes alone, as they pass on their way to the storage: so it does
// not matter which worker gets which segment, in what order, or how often; the
// same segment gives the same map. A record that lies in two segments is in
// two pieces, one in each map, and is put together when they are merged.
//
// # Why not WAL-G's delta files
//
// WAL-G keeps one SEGMENT_delta for 16 segments. To make one, all 16 have to
// come together in one place, or many workers have to change one object. It has
// no room for what was truncated or copied, so an increment made by it can be
// wrong; WAL-G's own lack all WAL with full-page images since PostgreSQL 15.
// And nobody reads them: WAL-G wants, besides, the segment that is being written
// to be archived already, which it never is on a primary. So they are neither
// written nor read here. WAL-G passes over our objects when it looks for
// segments, takes them along when it copies, and deletes them with their
// segment, because the name begins with its 24 digits.
//
// # What makes a map wrong
//
// Only a segment that was stored anew with other content (by a server whose
// directory was set back to an older state) makes the map beside it wrong. The
// map is always stored after its segment. So one that is older than its segment,
// by the storage's own clock, is not believed: it is made anew from the segment.
//
// # How it fails
//
// WAL comes first: the map is stored after PostgreSQL was told that the segment
// is archived, and a failure of any kind is a warning and costs the map. A map
// that is missing is made from the archived segment when it is wanted, of a few
// segments; of more, the range is not covered, and whoever wanted it reads
// everything instead. In memory are, for each segment under way, a few
// chunks and its map: some hundred kilobytes, and of a record in two pieces at
// most 4 MiB. A map is merged as far as the archive goes without a hole.
package changemap
