package azure

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/pieces"
)

// markKey is the metadata in which a Put leaves its random mark, where it may
// have to tell its own blob from another's. Azure takes only letters, digits
// and underscores.
const markKey = "walherdput"

// put is one Put.
type put struct {
	b        *Bucket
	name     string
	key      string
	client   *blockblob.Client
	ifAbsent bool
	mark     string // empty when nothing will ask for it
	size     int64
}

// Put implements storage.Bucket. It holds a block of the content in memory,
// and more of them in parallel as Options.MaxBuffers allows. A content of
// exactly one block's size takes one request.
//
// When another Put of the same name ends while this one sends its blocks, the
// store throws the blocks away. Without IfAbsent that counts as this Put's
// success: it is as if the other one had overwritten it at once. The Info then
// tells the other's time.
func (b *Bucket) Put(ctx context.Context, name string, r io.Reader, opt storage.PutOptions) (storage.Info, error) {
	key, err := b.key(name)
	if err != nil {
		return storage.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return storage.Info{}, b.explain(ctx, "put", key, err)
	}
	p := &put{b: b, name: name, key: key, client: b.client.NewBlockBlobClient(key), ifAbsent: opt.IfAbsent}
	first := pieces.NewContent(b.pool)
	defer first.Release()
	src := pieces.NewSource(r, nil)
	more, err := first.Fill(ctx, src, b.blocks.Size(1))
	if err != nil {
		return storage.Info{}, p.fails(ctx, err)
	}
	if more || p.ifAbsent {
		p.mark = rand.Text()
	}
	var at time.Time
	if more {
		at, err = p.large(ctx, first, src)
	} else {
		at, err = p.single(ctx, first)
	}
	if err != nil {
		return storage.Info{}, err
	}
	if at.IsZero() {
		at = b.now().Truncate(time.Second)
	}
	return infoOf(name, p.size, &at), nil
}

// fails words what ends a Put beside the store.
func (p *put) fails(ctx context.Context, err error) error {
	var read *pieces.ReadError
	if ctx.Err() != nil && !errors.As(err, &read) {
		return p.b.explain(ctx, "put", p.key, ctx.Err())
	}
	return fmt.Errorf("put %s: %w", p.b.where(p.key), err)
}

func (p *put) exists() error {
	return fmt.Errorf("put %s: %w", p.b.where(p.key), storage.ErrExist)
}

// conditions make the store itself refuse to overwrite.
func (p *put) conditions() *blob.AccessConditions {
	if !p.ifAbsent {
		return nil
	}
	any := azcore.ETagAny
	return &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: &any}}
}

func (p *put) metadata() map[string]*string {
	if p.mark == "" {
		return nil
	}
	return map[string]*string{markKey: &p.mark}
}

// single stores c in one request; it returns the store's time.
func (p *put) single(ctx context.Context, c *pieces.Content) (time.Time, error) {
	p.size = c.Size()
	body := c.Reader(0, nil)
	defer body.Close()
	out, err := p.client.Upload((&call{body: c}).with(ctx, p.b), body, &blockblob.UploadOptions{
		Metadata: p.metadata(), AccessConditions: p.conditions(), TransactionalValidation: sumOf(c, p.b.opt.Checksum),
	})
	if err != nil {
		return p.refused(ctx, err, found{})
	}
	return value(out.LastModified), nil
}

// large stores first and the rest of src in blocks.
func (p *put) large(ctx context.Context, first *pieces.Content, src *pieces.Source) (time.Time, error) {
	// An existing blob is refused before gigabytes are sent; and what is
	// there now tells later who threw our blocks away.
	before, err := p.look(ctx)
	if err != nil {
		return time.Time{}, p.b.explain(ctx, "look for", p.key, err)
	}
	if p.ifAbsent && before.exists {
		return time.Time{}, p.exists()
	}
	u := newUpload(p)
	if err := u.run(ctx, first, src); err != nil {
		return time.Time{}, err
	}
	p.size = src.Size()
	if err := ctx.Err(); err != nil {
		return time.Time{}, p.b.explain(ctx, "put", p.key, err)
	}
	out, err := p.client.CommitBlockList(ctx, u.ids(), &blockblob.CommitBlockListOptions{
		Metadata: p.metadata(), AccessConditions: p.conditions(),
	})
	if err != nil {
		return p.refused(ctx, err, before)
	}
	return value(out.LastModified), nil
}

// found is what lies under a name.
type found struct {
	known  bool // we were allowed to look
	exists bool
	etag   azcore.ETag
	mark   string
	size   int64
	at     time.Time
}

// look asks for the blob. Who may write but not read gets no error for it.
func (p *put) look(ctx context.Context) (found, error) {
	h, err := p.client.GetProperties(ctx, nil)
	switch {
	case err == nil:
	case notFound(err):
		return found{known: true}, nil
	case status(err) == http.StatusForbidden && ctx.Err() == nil:
		return found{}, nil
	default:
		return found{}, err
	}
	f := found{known: true, exists: true, etag: value(h.ETag), size: value(h.ContentLength), at: value(h.LastModified)}
	for k, v := range h.Metadata {
		if strings.EqualFold(k, markKey) {
			f.mark = value(v)
		}
	}
	return f, nil
}

// refused finds out what an error of the last step of a Put means: an earlier
// try may have done it and its answer was lost; then the store says that the
// blob exists, or that the blocks do not.
func (p *put) refused(ctx context.Context, err error, before found) (time.Time, error) {
	exists := p.ifAbsent && bloberror.HasCode(err, bloberror.BlobAlreadyExists, bloberror.ConditionNotMet, bloberror.TargetConditionNotMet)
	gone := bloberror.HasCode(err, bloberror.InvalidBlockList)
	if !exists && !gone || ctx.Err() != nil {
		return time.Time{}, p.b.explain(ctx, "put", p.key, err)
	}
	now, lookErr := p.look(ctx)
	switch {
	case lookErr != nil:
		return time.Time{}, p.b.explain(ctx, "look for", p.key, lookErr)
	case now.exists && now.mark == p.mark && now.size == p.size:
		return now.at, nil
	case exists || p.ifAbsent && now.exists:
		return time.Time{}, p.exists()
	case !p.ifAbsent && before.known && now.exists && (!before.exists || before.etag != now.etag):
		return now.at, nil // see Put
	}
	return time.Time{}, fmt.Errorf("put %s: %w: %w", p.b.where(p.key), errBlocksGone, &failure{text: plain(err), err: err})
}

var errBlocksGone = errors.New("the store no longer has the upload's blocks, since the name was put or deleted meanwhile")
