package azure

import (
	"context"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"golang.org/x/sync/errgroup"
)

// deleteParallel is how many blobs are deleted at once. Azure's batches are
// not used: they are carried out in any order too, and need permissions and
// versions of their own.
const deleteParallel = 16

// Delete implements storage.Bucket. The first name goes alone, so that what
// makes the others visible (a sentinel) is surely gone before they are. The
// rest is begun in the order given, with up to 16 under way at once: an error
// leaves in place what was not begun.
//
// The snapshots of a blob go with it. What the account keeps of deleted blobs
// (soft delete, versions) is kept.
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
	if err := b.delete(ctx, ctx, keys[0]); err != nil {
		return err
	}
	group, inner := errgroup.WithContext(ctx)
	group.SetLimit(deleteParallel)
	for _, key := range keys[1:] {
		if inner.Err() != nil {
			break
		}
		group.Go(func() error { return b.delete(ctx, inner, key) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return b.explain(ctx, "delete from", b.root, err)
	}
	return nil
}

// delete removes one blob with the context inner, which another's failure may
// end before the caller's does.
func (b *Bucket) delete(ctx, inner context.Context, key string) error {
	all := blob.DeleteSnapshotsOptionTypeInclude
	_, err := b.client.NewBlobClient(key).Delete(inner, &blob.DeleteOptions{DeleteSnapshots: &all})
	if err == nil || notFound(err) {
		return nil
	}
	return b.explain(ctx, "delete", key, err)
}
