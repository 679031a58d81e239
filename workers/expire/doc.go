// Package expire carries out delete commands: it takes stock of the storages,
// has engine/retain make the plan, and removes the plan's objects in the plan's
// order. The same code makes the dry run.
//
// A plan is made by the process that carries it out, of what it has just read,
// and never comes over the wire. One process of a cluster deletes at a time,
// under a lease; the lease is looked at before every batch, so that a process
// that was asleep when it lost it removes at most the batch under way.
//
// # Why it may be cut anywhere
//
// Stages are done one after the other: sentinels, increments before what they
// are built on; then parts; then documents; then WAL; then history files. A
// process that dies leaves backups that are either listed and whole or not
// listed, and WAL that nobody needs. What is left over is found by the next
// run of the same command as far as the policy speaks of it, and by delete
// garbage in any case; it also takes what killed uploads have left, which no
// listing shows. A job is handed to another worker, which plans anew.
//
// # Why what begins meanwhile is safe
//
//   - WAL archived after the listing is in no plan: steps are objects that
//     were listed. WAL is listed before backups, so a backup whose end is in
//     the listed WAL is known.
//   - A backup that begins meanwhile starts at or after the newest backup's
//     start, and WAL from the oldest kept backup's start on is kept. Where no
//     backup is kept (everything, garbage --without-backup-check), and where
//     the newest one may go (target), the command is refused while the lease
//     of backups is held.
//   - A backup that comes from elsewhere meanwhile (copy, st transfer) may be
//     older: sentinels are listed again before the first WAL goes.
//   - An increment that appears while its base is going: sentinels are listed
//     again before every stage of sentinels and before the first part goes,
//     and one that is new stops the work, which is then planned anew. The
//     worker that makes an increment visible looks for its base's sentinel
//     before and after (workers/assemble). What remains is an increment
//     committed, base seen, all between the listing and the removal of one
//     batch of sentinels.
//   - A backup that is marked permanent meanwhile: its metadata is then newer
//     than the listing, which is looked at for all before the first sentinel
//     goes, and again before each later batch of them.
//   - A backup that takes over the name of one that is going (a standby backed
//     up twice at one restart point) shows as a sentinel that is new or as a
//     leftover with newer objects, and stops the work as well; its commit
//     compares every object with what was stored.
//
// Two commands without a broker have no lease. Each removes only what its own
// plan allows, in an order that may be cut anywhere, and what is gone already
// is no error, so the two end as if one had run after the other.
//
// It fails with the refusals of engine/retain; with ErrUnreachable when a
// storage that may hold what needs the WAL cannot be read; with ErrChanged when
// the storage changes faster than plans are made; and with the storage's error,
// after which the rest of the plan is undone work and nothing else.
package expire
