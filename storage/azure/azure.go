// Package azure is a storage.Bucket on Azure Blob storage. Names are WAL-G's:
// the prefix, a slash, the object's name. Objects are block blobs.
//
// Each request is tried again here, with growing and randomized pauses or the
// one the store asks for (Retry-After), since the blocks of an upload cannot be
// produced a second time; a decorator above repeats whole operations. A body
// that breaks is continued from the same version of the blob (If-Match), or
// fails.
//
// Objects up to a block's size go in one request, larger ones in blocks that a
// last request makes a blob, all or nothing. Each carries a checksum that the
// store proves. There is no way to abort: the blocks of an upload that failed
// are invisible, and the store drops them after a week, or when something else
// is stored under the name.
//
// What a person must mend (a missing container or account, a wrong key, an
// ended token, a lease) fails with storage.ErrPermanent and names the setting.
// When the answer to the last step of a Put is lost, the blob itself tells
// whether that step was ours: it carries a random mark in its metadata.
//
// Accounts with a hierarchical namespace list in another order than that of
// names. A listing in which this shows fails; it is never out of order.
package azure

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"golang.org/x/sync/semaphore"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/pieces"
)

// Bucket is a part of a container. Make one with Open.
type Bucket struct {
	opt       Options
	root      string // "" or ends in a slash
	client    *container.Client
	transport *http.Transport
	auth      auth
	blocks    pieces.Plan
	pool      *pieces.Pool
	budget    *semaphore.Weighted // bytes of blocks beyond the first of each Put
	now       func() time.Time
}

var _ storage.Bucket = (*Bucket)(nil)

// Open makes a Bucket. It sends no request: a missing container or a wrong key
// shows with the first use. ctx is for what may ask later.
func Open(ctx context.Context, opt Options) (*Bucket, error) {
	o, err := opt.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open Azure container: %w: %w", err, storage.ErrPermanent)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open Azure container %s: %w", o.Container, err)
	}
	b := &Bucket{
		opt: o, blocks: blockPlan(o.BufferSize, o.largestBlock()), now: time.Now,
		// A Put alone holds MaxBuffers blocks, of which one is its own.
		budget: semaphore.NewWeighted(int64(o.MaxBuffers-1) * o.BufferSize),
	}
	b.pool = newPool(o.BufferSize, o.MaxBuffers)
	if o.Prefix != "" {
		b.root = o.Prefix + "/"
	}
	if b.client, b.transport, b.auth, err = newClient(&b.opt); err != nil {
		return nil, fmt.Errorf("open Azure container %s: %w: %w", o.Container, err, storage.ErrPermanent)
	}
	return b, nil
}

// Close ends idle connections. Bodies that are open stay so.
func (b *Bucket) Close() error {
	b.transport.CloseIdleConnections()
	return nil
}

// Location is the container and prefix, as in WALG_AZ_PREFIX.
func (b *Bucket) Location() string {
	return strings.TrimSuffix("azure://"+b.opt.Container+"/"+b.root, "/")
}

// key is the full name of an object's blob, or storage.ErrName.
func (b *Bucket) key(name string) (string, error) {
	if err := storage.CheckName(name); err != nil {
		return "", err
	}
	key := b.root + name
	return key, checkKey(key)
}

func (b *Bucket) keys(names []string) ([]string, error) {
	keys := make([]string, len(names))
	for i, name := range names {
		key, err := b.key(name)
		if err != nil {
			return nil, err
		}
		keys[i] = key
	}
	return keys, nil
}

// checkKey refuses what Azure cannot hold, or cannot list: its listings are
// XML, which has no way to write a control character, and it takes a backslash
// for a slash.
func checkKey(key string) error {
	if !utf8.ValidString(key) {
		return fmt.Errorf("%w %q: it is no UTF-8", storage.ErrName, key)
	}
	if n := utf8.RuneCountInString(key); n > 1024 {
		return fmt.Errorf("%w %q: it has %d characters with the prefix, Azure takes 1024", storage.ErrName, key, n)
	}
	for _, r := range key {
		if r == '\\' {
			return fmt.Errorf("%w %q: Azure takes its backslash for a slash", storage.ErrName, key)
		}
		if r < ' ' || r == 0x7f || r == 0xfffe || r == 0xffff {
			return fmt.Errorf("%w %q: it holds the control character %U", storage.ErrName, key, r)
		}
	}
	return nil
}

// Stat implements storage.Bucket.
func (b *Bucket) Stat(ctx context.Context, name string) (storage.Info, error) {
	key, err := b.key(name)
	if err != nil {
		return storage.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return storage.Info{}, b.explain(ctx, "stat", key, err)
	}
	h, err := b.client.NewBlobClient(key).GetProperties(ctx, nil)
	if err != nil {
		return storage.Info{}, b.explain(ctx, "stat", key, err)
	}
	return infoOf(name, value(h.ContentLength), h.LastModified), nil
}

// infoOf is what Azure tells. Its times are full seconds everywhere.
func infoOf(name string, size int64, modified *time.Time) storage.Info {
	return storage.Info{Name: name, Size: size, Modified: value(modified)}
}

// value is what p points to, or the zero value: the SDK's way to tell that
// the store did not tell.
func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
