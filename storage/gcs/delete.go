package gcs

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"golang.org/x/sync/errgroup"
)

// Delete implements storage.Bucket. The first name goes alone, so that what
// makes the others visible (a sentinel) is surely gone before they are; the
// rest goes Options.DeleteParallel at a time: after an error no further group
// is begun. The API's batches of a hundred save nothing: each
// object in them counts and fails as a request of its own, without order.
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
	groups := slices.Concat([][]string{keys[:1]}, slices.Collect(slices.Chunk(keys[1:], b.opt.DeleteParallel)))
	for _, group := range groups {
		var all errgroup.Group
		for _, key := range group {
			all.Go(func() error { return b.delete(ctx, key, 0) })
		}
		if err := all.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// delete removes an object, or one generation of it. What is gone is no error,
// unless its bucket is too.
func (b *Bucket) delete(ctx context.Context, key string, generation int64) error {
	var query url.Values
	if generation != 0 {
		query = url.Values{"generation": {fmt.Sprint(generation)}}
	}
	_, err := b.do(ctx, &request{method: http.MethodDelete, url: b.objectURL(key, query), secret: true})
	if status(err) == http.StatusNotFound && ctx.Err() == nil {
		if err := b.missing(ctx, b.explain(ctx, "delete", key, err)); isPermanent(err) {
			return err
		}
		return nil
	}
	if err != nil {
		return b.explain(ctx, "delete", key, err)
	}
	return nil
}
