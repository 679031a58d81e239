// Package retain decides what may be deleted from the storages of a cluster.
// NewPlan is a pure function of an inventory, a policy and the time; it reads
// nothing and deletes nothing. The plan has a reason for every backup and
// every stretch of WAL, kept or not, and yields the objects to delete in an
// order that can be cut anywhere.
//
// What always holds, whatever the policy:
//   - permanent backups with their chains and the WAL that makes them
//     consistent survive everything but Everything with Force; the same name
//     in another storage is another backup;
//   - the chain of a kept increment is kept, and the WAL that makes a kept
//     backup consistent;
//   - what is in use or may be in the making is kept, with all WAL after it;
//   - objects of unknown names are not touched.
//
// WAL is judged by what can use it, in all storages together, since a fetch
// looks into all: a segment goes when no kept backup leads to it. So timelines
// are followed through their histories; one whose history is not known is
// taken to have branched off anywhere.
//
// It fails by refusing: a named error (ErrPermanent, ErrIncrement, ...) that
// tells the way out, and no plan. A policy that finds nothing to do is no
// error: Plan.Note tells why.
package retain
