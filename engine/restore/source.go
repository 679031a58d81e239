package restore

import (
	"context"
	"io"
)

// Source yields the stored parts of one backup. It is safe for concurrent
// use.
type Source interface {
	// Parts lists the objects of the backup's tar_partitions folder, in any
	// order. Names are relative to that folder.
	Parts(ctx context.Context) ([]Object, error)

	// Open reads an object: its bytes before decompression, which the
	// restore closes. The reader ends with an error, not with io.EOF, when
	// the object ends before its stored length or fails its
	// authentication, and soon after ctx is done. Open is called again for
	// another attempt.
	Open(ctx context.Context, name string) (io.ReadCloser, error)
}

// Object is one stored part.
type Object struct {
	// Name is the object's name in the folder: part_001.tar.lz4.
	Name string
	// Size in bytes, as stored.
	Size int64
}
