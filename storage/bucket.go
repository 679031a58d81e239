// Package storage is the promise every object store keeps: Bucket, its
// errors, and nothing else. The stores themselves live in the packages below
// it (fs, mem); retry, rate limit and metering are decorators around any
// Bucket; storagetest is the promise as a test suite that every Bucket runs;
// repo lays WAL-G's names over a Bucket.
package storage

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"
)

// Bucket stores whole objects under slash-separated names relative to its
// root ("wal_005/000000010000000000000001.lz4"). It is safe for concurrent
// use. A Bucket does not retry: that is a decorator's work, and it may retry
// every call but a Put whose reader was touched.
//
// A name is never empty, never starts or ends with a slash, has no empty, "."
// or ".." element and no zero byte: anything else is ErrName, before anything
// is done (CheckName). A store may refuse further names it cannot hold, also
// with ErrName. A caller does not use a name as an object and as the parent of
// another ("a" and "a/b"): a directory tree cannot hold both.
//
// Every call fails with the context's error when its context has ended.
type Bucket interface {
	// Put stores everything r yields under name. The object appears whole
	// or not at all: when r or the store fails, a reader sees what it saw
	// before. When Put returns nil the object is durable. Put reads r to
	// the end, unless it fails, and does not close it. A reader that got
	// the old object keeps reading the old object, or fails; it never gets
	// bytes of both.
	//
	// An error of r is wrapped, so that errors.Is finds it. When the
	// store's answer to the very last step is lost or bad, Put fails and
	// the new object may be there all the same, whole.
	Put(ctx context.Context, name string, r io.Reader, opt PutOptions) (Info, error)

	// Open reads an object, or the part of it that rng names. The caller
	// closes the reader, at any point. ErrNotExist when there is no such
	// object. A body that ends early is io.ErrUnexpectedEOF, never a silent
	// io.EOF. ctx covers the body too: when it ends, Read fails. The body
	// may tell the object it belongs to: see InfoOf.
	Open(ctx context.Context, name string, rng Range) (io.ReadCloser, error)

	// Stat describes an object. ErrNotExist when there is no such object.
	Stat(ctx context.Context, name string) (Info, error)

	// List yields the objects whose names start with prefix, in the order
	// of their names. prefix may end anywhere in a name; "" is everything.
	// A prefix that nothing matches yields nothing. Listing makes nothing
	// (no directory, no object) and does not show unfinished uploads. After
	// an error it stops. What is put or deleted while a listing runs may be
	// in it or not; all else is in it exactly once.
	List(ctx context.Context, prefix string, opt ListOptions) iter.Seq2[Info, error]

	// Delete removes objects. A name that does not exist is no error. They
	// go in any order, in batches where the store has them, so who needs an
	// order deletes twice; after an error some are gone and some are not. One
	// invalid name among them is ErrName, and none is removed.
	Delete(ctx context.Context, names ...string) error
}

// PutOptions tunes one Put. The zero value overwrites.
type PutOptions struct {
	// IfAbsent refuses with ErrExist when the object exists; of two
	// concurrent such Puts exactly one succeeds.
	IfAbsent bool
}

// Range is a part of an object in bytes. The zero value is the whole object.
// A range that reaches behind the end is cut there; one that starts at the end
// is empty; one that starts behind it, or has a negative number, is ErrRange.
type Range struct {
	Offset int64
	// Length 0 is: to the end.
	Length int64
}

// ListOptions tunes one List. The zero value walks everything below prefix.
type ListOptions struct {
	// Shallow stops at the first slash behind prefix and yields what is
	// deeper once, as an Info with Dir set and a Name that ends in a slash.
	// There is at least one object below such a name.
	Shallow bool
	// After skips what would be yielded under a name up to and including
	// it, so that a listing goes on behind the last Name it yielded.
	After string
}

// Info describes one object.
type Info struct {
	Name string
	// Size in bytes, as stored.
	Size int64
	// Modified is the store's own time of the last Put. LATEST and the age
	// of a backup go by it, as in WAL-G.
	Modified time.Time
	// Dir marks a common prefix of a shallow listing.
	Dir bool
}

// What can go wrong, for errors.Is. Every other error is the store's own and
// may be worth another try.
var (
	ErrNotExist = errors.New("object does not exist")
	ErrExist    = errors.New("object already exists")
	ErrName     = errors.New("invalid object name")
	ErrRange    = errors.New("invalid range")
	// ErrPermanent marks what no retry will mend: access denied, a
	// read-only or full store, a missing root.
	ErrPermanent = errors.New("permanent storage error")
)
