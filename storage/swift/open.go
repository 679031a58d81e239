package swift

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"

	ncw "github.com/ncw/swift/v2"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/pieces"
)

// Open implements storage.Bucket. The body is a storage.Describer.
//
// A body whose MD5 is not the one kept by the store ends with
// storage.ErrPermanent instead of io.EOF: its bytes are delivered already, so
// no continuation can mend them. The store keeps none of an object in
// segments.
func (b *Bucket) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	key, err := b.key(name)
	if err != nil {
		return nil, err
	}
	if err := rng.Check(); err != nil {
		return nil, fmt.Errorf("open swift://%s/%s: %w", b.opt.Container, key, err)
	}
	outer := ctx
	if err := outer.Err(); err != nil {
		return nil, b.explain(outer, "open", key, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	v := version{b: b, key: key}
	o, conn, err := v.get(ctx, rng.Offset, rng.Length)
	if err == nil {
		var left int64
		if left, err = rng.Cut(o.size); err == nil {
			v.object = o
			body := pieces.BodyOptions{
				Ctx: outer, Cancel: cancel, Where: "swift://" + b.opt.Container + "/" + key,
				Info: storage.Info{Name: name, Size: o.size, Modified: o.modified}, Known: true, Left: left,
				Source: pieces.NewStream(ctx, pieces.StreamOptions{
					At: rng.Offset, Left: left, Conn: conn, Open: v.resume,
					Pace: pieces.NewTries(b.opt.Retries, b.opt.RetryDelay, longestPause),
				}),
			}
			if left == o.size && !o.static && !o.dynamic {
				if want, err := hex.DecodeString(o.etag); err == nil && len(want) == md5.Size {
					body.Sum = &pieces.Sum{Name: "MD5", Hash: md5.New(), Want: want}
				}
			}
			return pieces.NewBody(body), nil
		}
		conn.Close()
	}
	cancel()
	if errors.Is(err, storage.ErrRange) {
		return nil, fmt.Errorf("open swift://%s/%s: %w", b.opt.Container, key, err)
	}
	return nil, b.missing(outer, b.explain(outer, "open", key, err))
}

// version is one version of an object.
type version struct {
	b      *Bucket
	key    string
	object object // pinned
}

var errReplaced = fmt.Errorf("the object was replaced while it was read: %w", storage.ErrPermanent)

// get asks for length bytes from at on; 0 is to the end.
func (v version) get(ctx context.Context, at, length int64) (object, io.ReadCloser, error) {
	h := ncw.Headers{}
	if v.object.etag != "" {
		h["If-Match"] = `"` + v.object.etag + `"`
	}
	part := at > 0 || length > 0
	switch {
	case length > 0 && length <= math.MaxInt64-at:
		h["Range"] = fmt.Sprintf("bytes=%d-%d", at, at+length-1)
	case part:
		h["Range"] = fmt.Sprintf("bytes=%d-", at)
	}
	resp, headers, err := v.b.call(ctx, ncw.RequestOpts{
		Container: v.b.opt.Container, ObjectName: v.key, Operation: http.MethodGet, Headers: h,
	})
	if status(err) == http.StatusRequestedRangeNotSatisfiable {
		return v.behind(ctx, at, err)
	}
	if err != nil {
		return object{}, nil, err
	}
	o := objectOf(headers)
	if o.size, err = measure(resp, at, part); err != nil {
		resp.Body.Close()
		return object{}, nil, err
	}
	return o, resp.Body, nil
}

// measure is the size of the whole object: it holds the answer's numbers
// against one another and the request.
func measure(resp *http.Response, at int64, part bool) (int64, error) {
	length := resp.ContentLength
	told := resp.Header.Get("Content-Range")
	if told == "" {
		if length < 0 {
			return 0, errors.New("the store does not tell the object's length")
		}
		if part && length > 0 {
			return 0, fmt.Errorf("%w: the store ignores that only a range was asked for: is there a proxy that drops the Range header?", storage.ErrPermanent)
		}
		return length, nil
	}
	var from, to, size int64
	if _, err := fmt.Sscanf(told, "bytes %d-%d/%d", &from, &to, &size); err != nil {
		return 0, fmt.Errorf("the store answers with the content range %q", told)
	}
	if from != at || to < from || to >= size || length >= 0 && length != to-from+1 {
		return 0, fmt.Errorf("asked for the bytes from %d on, the store answers with range %q and %d bytes", at, told, length)
	}
	return size, nil
}

// behind answers a range that starts at the object's end, which Swift
// refuses, or behind it.
func (v version) behind(ctx context.Context, at int64, cause error) (object, io.ReadCloser, error) {
	o, err := v.b.head(ctx, v.key)
	if err != nil {
		return object{}, nil, err
	}
	if at < o.size {
		return object{}, nil, fmt.Errorf("the object grew while it was opened: %w", &failure{plain(cause), nil})
	}
	return o, http.NoBody, nil
}

// resume opens another connection to the same version.
func (v version) resume(ctx context.Context, at, left int64) (io.ReadCloser, error) {
	o, c, err := v.get(ctx, at, left)
	switch {
	case status(err) == http.StatusPreconditionFailed || status(err) == http.StatusNotFound:
		return nil, pieces.Stop(errReplaced)
	case err != nil && !passing(err):
		return nil, pieces.Stop(v.b.explain(ctx, "read", v.key, err))
	case err != nil:
		return nil, err
	case o.size != v.object.size || o.etag != v.object.etag || !o.modified.Equal(v.object.modified):
		c.Close()
		return nil, pieces.Stop(errReplaced)
	}
	return c, nil
}
