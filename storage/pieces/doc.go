// Package pieces moves an object in pieces, for the stores that speak HTTP.
//
// Down: a Stream reads a part of one version of an object over as many
// connections as it takes, and a Body is what the caller of Open gets of it. Up:
// a Content holds one part in memory while requests send it, and may send it
// again; a Pool bounds that memory; a Plan says how long each part is; a Queue
// has several parts under way.
//
// What a store calls an object, how it asks for one and which of its errors
// another try can mend stays with the store, which hands it in as functions.
//
// It fails as follows. A Body ends with an error instead of io.EOF whenever not
// every byte came, or the store's checksum does not fit: storage.ErrPermanent if
// no continuation can mend that, io.ErrUnexpectedEOF if one may. A Queue ends
// with the first failure after all parts under way have ended, and gives all of
// their memory back. A reader's own error is told as a ReadError from the
// store's.
package pieces
