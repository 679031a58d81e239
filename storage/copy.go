package storage

import (
	"context"
	"fmt"
)

// Copy makes the object to of the object from, as Put would, replacing what is
// there: it is read and put, which every store can. ErrNotExist when there is
// no from.
func Copy(ctx context.Context, b Bucket, from, to string) (Info, error) {
	body, err := b.Open(ctx, from, Range{})
	if err != nil {
		return Info{}, err
	}
	defer body.Close()
	info, err := b.Put(ctx, to, body, PutOptions{})
	if err != nil {
		return Info{}, fmt.Errorf("copy %s to %s: %w", from, to, err)
	}
	return info, nil
}
