package storage

import (
	"context"
	"errors"
	"fmt"
)

// Copier is a Bucket that can copy an object inside the store, without its
// bytes passing through here.
type Copier interface {
	// Copy makes the object to of the object from, as Put would, replacing
	// what is there. ErrNotExist when there is no from. An error that matches
	// errors.ErrUnsupported leaves nothing behind, and means that the object
	// has to be read and put.
	Copy(ctx context.Context, from, to string) (Info, error)
}

// Copy copies an object inside b: by b itself if it is a Copier and can, else
// by reading and putting it.
func Copy(ctx context.Context, b Bucket, from, to string) (Info, error) {
	if c, ok := b.(Copier); ok {
		info, err := c.Copy(ctx, from, to)
		if !errors.Is(err, errors.ErrUnsupported) {
			return info, err
		}
	}
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
