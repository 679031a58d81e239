package azure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/pieces"
)

// Open implements storage.Bucket. The body is a storage.Describer. A blob that
// is replaced while its body breaks ends the body with storage.ErrPermanent.
func (b *Bucket) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	key, err := b.key(name)
	if err != nil {
		return nil, err
	}
	if err := rng.Check(); err != nil {
		return nil, fmt.Errorf("open %s: %w", b.where(key), err)
	}
	outer := ctx
	if err := outer.Err(); err != nil {
		return nil, b.explain(outer, "open", key, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	v := version{b: b, key: key}
	got, err := v.get(ctx, rng.Offset, rng.Length)
	if err == nil {
		var left int64
		if left, err = rng.Cut(got.size); err == nil {
			v.etag, v.size = got.etag, got.size
			return pieces.NewBody(pieces.BodyOptions{
				Ctx: outer, Cancel: cancel, Where: b.where(key), Info: infoOf(name, got.size, got.modified), Known: true, Left: left,
				Source: pieces.NewStream(ctx, pieces.StreamOptions{
					At: rng.Offset, Left: left, Conn: got.conn, Open: v.resume,
					Pace: plainly{pieces.NewTries(b.opt.Resumes, b.opt.RetryDelay, b.opt.MaxRetryDelay)},
				}),
			}), nil
		}
		got.conn.Close()
	}
	cancel()
	if errors.Is(err, storage.ErrRange) {
		return nil, fmt.Errorf("open %s: %w", b.where(key), err)
	}
	return nil, b.explain(outer, "open", key, err)
}

// plainly leaves away what the SDK tells beside the error itself.
type plainly struct{ *pieces.Tries }

func (p plainly) Again(ctx context.Context, cause error) error {
	err := p.Tries.Again(ctx, cause)
	if err == cause && ctx.Err() == nil {
		return errors.New(plain(cause))
	}
	return err
}

// version is one version of a blob.
type version struct {
	b    *Bucket
	key  string
	etag azcore.ETag
	size int64 // of the whole blob
}

// answer is what a request for a blob told.
type answer struct {
	conn     io.ReadCloser
	size     int64 // of the whole blob
	modified *time.Time
	etag     azcore.ETag
}

// get asks for length bytes from at on; 0 is to the end.
func (v version) get(ctx context.Context, at, length int64) (answer, error) {
	opt := &blob.DownloadStreamOptions{}
	if length > math.MaxInt64-at {
		length = 0
	}
	opt.Range = blob.HTTPRange{Offset: at, Count: length}
	if v.etag != "" {
		opt.AccessConditions = &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: &v.etag}}
	}
	out, err := v.b.client.NewBlobClient(v.key).DownloadStream((&call{streams: true}).with(ctx, v.b), opt)
	if status(err) == http.StatusRequestedRangeNotSatisfiable {
		return v.behind(ctx, at, err)
	}
	if err != nil {
		return answer{}, err
	}
	a := answer{conn: out.Body, modified: out.LastModified, etag: value(out.ETag)}
	if err := a.measure(out.ContentLength, out.ContentRange, at, at > 0 || length > 0); err != nil {
		a.conn.Close()
		return answer{}, err
	}
	return a, nil
}

// measure holds the answer's numbers against one another and the request.
func (a *answer) measure(told *int64, span *string, at int64, part bool) error {
	switch {
	case a.etag == "":
		return errors.New("the store does not tell the blob's ETag")
	case told == nil || *told < 0:
		return errors.New("the store does not tell the blob's length")
	case !part:
		a.size = *told
		return nil
	case span == nil:
		return fmt.Errorf("%w: the store ignores that only a range was asked for: is there a proxy that drops the Range header?", storage.ErrPermanent)
	}
	var from, to int64
	if _, err := fmt.Sscanf(*span, "bytes %d-%d/%d", &from, &to, &a.size); err != nil {
		return fmt.Errorf("the store answers with the content range %q", *span)
	}
	// A range that starts at the end is refused by Azure, and empty for
	// Azurite.
	if from != at || *told != to-from+1 || to >= a.size || to < from && from != a.size {
		return fmt.Errorf("asked for the bytes from %d on, the store answers with range %q and %d bytes", at, *span, *told)
	}
	return nil
}

// behind answers a range that starts at the blob's end, which Azure refuses,
// or behind it.
func (v version) behind(ctx context.Context, at int64, cause error) (answer, error) {
	h, err := v.b.client.NewBlobClient(v.key).GetProperties(ctx, nil)
	if err != nil {
		return answer{}, err
	}
	if v.etag != "" && v.etag != value(h.ETag) {
		return answer{}, errReplaced
	}
	size := value(h.ContentLength)
	if at < size {
		return answer{}, fmt.Errorf("the blob grew while it was opened (%s)", plain(cause))
	}
	return answer{conn: http.NoBody, size: size, modified: h.LastModified, etag: value(h.ETag)}, nil
}

var errReplaced = fmt.Errorf("the blob was replaced while it was read: %w", storage.ErrPermanent)

// resume opens another connection to the same version.
func (v version) resume(ctx context.Context, at, left int64) (io.ReadCloser, error) {
	got, err := v.get(ctx, at, left)
	switch {
	case status(err) == http.StatusPreconditionFailed || notFound(err):
		return nil, pieces.Stop(errReplaced)
	case err != nil && (v.b.wayOut(err) != "" || errors.Is(err, storage.ErrPermanent)):
		return nil, pieces.Stop(v.b.explain(ctx, "read", v.key, err))
	case err != nil:
		return nil, err
	case got.size != v.size:
		got.conn.Close()
		return nil, pieces.Stop(fmt.Errorf("the store told %d bytes and now tells %d of the same blob: %w", v.size, got.size, storage.ErrPermanent))
	}
	return got.conn, nil
}
