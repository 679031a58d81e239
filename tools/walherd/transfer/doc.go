// Package transfer copies and moves sets of objects between two storages: the
// work of the commands copy, st copy and st transfer. It plans from listings
// first (what goes, in which order, what stays) and then acts.
//
// The order of effects is the point. An object appears in the target whole or
// not at all. A backup's sentinel appears after everything it speaks for, and a
// child's after its parent's; where a backup is moved its sentinel leaves the
// source before the rest does, and nothing leaves the source before the target
// holds the whole backup. So a crash at any moment leaves at least one complete
// backup, and beside it objects that no listing of backups shows.
//
// How it fails: a plan that cannot be carried out is an error before anything
// is written. While copying, each failed object is counted (Result); nothing
// that builds on it is done. Running the same command again goes on.
package transfer
