// Package pack turns files into tars and tars into files' contents.
//
// Planning comes first and is pure: a Composer distributes the entries of a
// backup over Parts. A Stream then produces one part's tar straight into the
// caller's buffers; producing it again, for another attempt, gives the same
// names and sizes. Reader takes a tar apart that nobody vouches for.
//
// The tars are WAL-G's: POSIX ustar, PAX records only where ustar has no room,
// permission bits, owner with names, whole seconds rounded, 1024 zero bytes at
// the end and no padding behind them. A file's content is exactly as long as
// the walk saw it; WAL replay mends what was torn meanwhile.
//
// A file that vanished is left out and reported, since a running server drops
// tables; every other trouble is an error that names the file. The package
// does not log, and it needs a Unix-like system.
package pack
