package gcs

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/pieces"
)

const (
	// markKey is the metadata in which a Put leaves its random mark, where it
	// may have to tell its own object from another's.
	markKey = "walherd-put"
	// cleanLimit bounds the cleaning up of a failed upload, which also
	// happens when the caller's context has ended.
	cleanLimit = 30 * time.Second

	contentType = "application/octet-stream"
)

// put is one Put.
type put struct {
	b        *Bucket
	key      string
	ifAbsent bool
	mark     string // empty when nothing will ask for it
	size     int64  // of the whole; known at the end
	crc      uint32
}

// Put implements storage.Bucket. It holds up to two chunks of the content in
// memory, one that is sent and one that is read; see Options.UploadMemory.
//
// An object of more than one chunk that the store holds with another CRC32C
// than was sent is removed again, and Put fails.
func (b *Bucket) Put(ctx context.Context, name string, r io.Reader, opt storage.PutOptions) (storage.Info, error) {
	key, err := b.key(name)
	if err != nil {
		return storage.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return storage.Info{}, b.explain(ctx, "put", key, err)
	}
	b.mem.begin()
	defer b.mem.end()
	p := &put{b: b, key: key, ifAbsent: opt.IfAbsent}
	first := pieces.NewContent(b.mem.pool)
	defer first.Release()
	whole := crc32.New(castagnoli)
	src := pieces.NewSource(r, whole)
	more, err := first.Fill(ctx, src, b.mem.share())
	if err != nil {
		return storage.Info{}, p.fails(ctx, err)
	}
	var done *object
	if more {
		done, err = p.large(ctx, first, src, whole)
	} else {
		p.size, p.crc = src.Size(), whole.Sum32()
		done, err = p.single(ctx, first)
	}
	if err == nil {
		err = p.check(ctx, done)
	}
	if err != nil {
		return storage.Info{}, p.fails(ctx, err)
	}
	b.seen.Store(true)
	return done.info(name), nil
}

// fails explains an error of a Put.
func (p *put) fails(ctx context.Context, err error) error {
	var read *pieces.ReadError
	if errors.As(err, &read) || errors.Is(err, storage.ErrExist) {
		return fmt.Errorf("put %s: %w", p.b.where(p.key), err)
	}
	// There is nothing else to be missing.
	return p.b.explainBucket(ctx, "put", p.key, err)
}

// check holds what the store tells of the object against what was sent.
func (p *put) check(ctx context.Context, o *object) error {
	crc, told := decodeCRC(o.CRC32C)
	// It may leave the sum away for an object under our own key; it was
	// given ours, so it has looked.
	if o.Size == p.size && (!told || crc == p.crc) {
		return nil
	}
	err := fmt.Errorf("the store holds %d bytes with the CRC32C %q, sent were %d with %q", o.Size, o.CRC32C, p.size, encodeCRC(p.crc))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
	defer cancel()
	if cleanErr := p.b.delete(ctx, p.key, o.Generation); cleanErr != nil {
		return fmt.Errorf("%w; remove the object by hand: %w", err, cleanErr)
	}
	return err
}

// resource is what the store is told of the object.
func (p *put) resource(crc string) []byte {
	var meta struct {
		Name        string            `json:"name"`
		ContentType string            `json:"contentType"`
		CRC32C      string            `json:"crc32c,omitempty"`
		Metadata    map[string]string `json:"metadata,omitempty"`
	}
	meta.Name, meta.ContentType, meta.CRC32C = p.key, contentType, crc
	if p.mark != "" {
		meta.Metadata = map[string]string{markKey: p.mark}
	}
	// Strings alone: it cannot fail.
	data, _ := json.Marshal(meta)
	return data
}

func (p *put) uploadURL(kind string) string {
	query := url.Values{"uploadType": {kind}, "fields": {objectFields}}
	if p.ifAbsent {
		query.Set("ifGenerationMatch", "0")
	}
	return p.b.endpoint + "/upload/storage/v1/b/" + url.PathEscape(p.b.opt.Bucket) + "/o?" + query.Encode()
}

// single stores an object by one request, which holds its description, with the
// sum, and its bytes:
// https://cloud.google.com/storage/docs/uploading-objects#uploading-an-object
func (p *put) single(ctx context.Context, c *pieces.Content) (*object, error) {
	if p.ifAbsent {
		p.mark = rand.Text()
	}
	boundary := rand.Text() + rand.Text()
	var head bytes.Buffer
	fmt.Fprintf(&head, "--%s\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n%s\r\n", boundary, p.resource(encodeCRC(p.crc)))
	fmt.Fprintf(&head, "--%s\r\nContent-Type: %s\r\n\r\n", boundary, contentType)
	tail := "\r\n--" + boundary + "--\r\n"
	done := new(object)
	a, err := p.b.do(ctx, &request{
		method: http.MethodPost, url: p.uploadURL("multipart"), secret: true, into: done,
		header: http.Header{"Content-Type": {"multipart/related; boundary=" + boundary}},
		size:   int64(head.Len()) + c.Size() + int64(len(tail)),
		body: func(touch func()) io.ReadCloser {
			r := c.Reader(0, touch)
			return struct {
				io.Reader
				io.Closer
			}{io.MultiReader(bytes.NewReader(head.Bytes()), r, bytes.NewReader([]byte(tail))), r}
		},
	})
	if err != nil {
		return p.refused(ctx, a.tries, err)
	}
	return done, nil
}

// refused finds out what a failed precondition of an upload means. When it took
// several tries, an earlier one may have made the object and its answer was
// lost.
func (p *put) refused(ctx context.Context, tries int, err error) (*object, error) {
	if !p.ifAbsent || status(err) != http.StatusPreconditionFailed {
		return nil, err
	}
	if tries > 1 {
		if o, made := p.made(ctx); made {
			return o, nil
		}
	}
	return nil, storage.ErrExist
}

// made looks whether the object is there and ours.
func (p *put) made(ctx context.Context) (*object, bool) {
	o, err := p.b.stat(ctx, p.key, 0)
	return o, err == nil && p.mark != "" && o.Metadata[markKey] == p.mark
}
