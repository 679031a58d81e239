package swift

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	ncw "github.com/ncw/swift/v2"

	"github.com/walherd/walherd/storage"
)

// Delete implements storage.Bucket. The first name goes alone, so that what
// makes the others visible (a sentinel) is surely gone before they are. Where
// the cluster deletes in bulk the rest goes in requests of
// Options.DeleteBatch names, in the order given, except that Swift promises no
// order within one request. Options.DeleteBatch 1 keeps the order throughout.
//
// The segments of a static large object go after it, those in
// <container>_segments. Those of a dynamic one stay: its manifest tells but a
// prefix, which others may have too.
func (b *Bucket) Delete(ctx context.Context, names ...string) error {
	keys, err := b.keys(names)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return b.explain(ctx, "delete from", b.root, err)
	}
	if len(keys) == 0 {
		return nil
	}
	have, err := b.haveSegments(ctx)
	if err != nil {
		return b.explain(ctx, "delete", keys[0], err)
	}
	batch := 1
	if len(keys) > 2 && b.opt.DeleteBatch > 1 {
		info, err := b.cluster(ctx)
		if err != nil {
			return b.explain(ctx, "delete", keys[0], err)
		}
		if bulk := info.BulkDelete; bulk != nil {
			batch = b.opt.DeleteBatch
			if bulk.MaxDeletes > 0 {
				batch = min(batch, bulk.MaxDeletes)
			}
		}
	}
	var pending []string
	flush := func() error {
		list := pending
		pending = nil
		return b.deleteMany(ctx, list)
	}
	for i, key := range keys {
		if err := ctx.Err(); err != nil {
			return b.explain(ctx, "delete", key, err)
		}
		var segments []segment
		if have {
			o, err := b.head(ctx, key)
			if status(err) == http.StatusNotFound {
				continue
			}
			if err == nil && o.static {
				segments, err = b.segmentsOf(ctx, key)
			}
			if err != nil && status(err) != http.StatusNotFound {
				return b.explain(ctx, "delete", key, err)
			}
		}
		pending = append(pending, key)
		if i > 0 && len(segments) == 0 && len(pending) < batch {
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		if err := b.removeSegments(ctx, segments); err != nil {
			return b.explain(ctx, "delete the segments of", key, err)
		}
	}
	return flush()
}

func (b *Bucket) deleteMany(ctx context.Context, keys []string) error {
	switch len(keys) {
	case 0:
		return nil
	case 1:
		_, err := b.do(ctx, ncw.RequestOpts{Container: b.opt.Container, ObjectName: keys[0], Operation: http.MethodDelete})
		if err == nil {
			return nil
		}
		if status(err) == http.StatusNotFound {
			if err := b.missing(ctx, storage.ErrNotExist); err != storage.ErrNotExist {
				return err
			}
			return nil
		}
		return b.explain(ctx, "delete", keys[0], err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	result, err := b.conn.BulkDelete(ctx, b.opt.Container, keys)
	if status(err) == http.StatusUnauthorized && len(result.Errors) == 0 {
		// The library cannot send this body again after a new token.
		result, err = b.conn.BulkDelete(ctx, b.opt.Container, keys)
	}
	for path, failed := range result.Errors {
		if status(failed) == http.StatusNotFound {
			continue
		}
		key, unquoted := url.PathUnescape(path)
		if unquoted != nil {
			key = path
		}
		return b.explain(ctx, "delete", strings.TrimPrefix(key, "/"+b.opt.Container+"/"), failed)
	}
	// "404" is the answer where none of them existed.
	if err != nil && (status(err) != http.StatusNotFound || result.Headers == nil) {
		return b.explain(ctx, fmt.Sprintf("delete %d objects from", len(keys)), keys[0], err)
	}
	return nil
}
