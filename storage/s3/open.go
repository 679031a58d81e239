package s3

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/pieces"
)

// Open implements storage.Bucket. The body is a storage.Describer.
//
// A body that damages the checksum kept by the store ends with
// storage.ErrPermanent instead of io.EOF: its bytes are delivered already, so
// no continuation can mend them.
func (b *Bucket) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	key, err := b.key(name)
	if err != nil {
		return nil, err
	}
	if err := rng.Check(); err != nil {
		return nil, fmt.Errorf("open s3://%s/%s: %w", b.opt.Bucket, key, err)
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
			body := pieces.BodyOptions{
				Ctx: outer, Cancel: cancel, Where: "s3://" + b.opt.Bucket + "/" + key,
				Info: infoOf(name, got.size, got.modified), Known: true, Left: left,
			}
			if got.sum != nil {
				body.Sum = &pieces.Sum{Name: "CRC32C", Hash: crc32.New(castagnoli), Want: binary.BigEndian.AppendUint32(nil, *got.sum)}
			}
			if n := b.opt.ReadRange; b.opt.ReadParallel > 1 && left > 2*n {
				body.Source = newAhead(ctx, v, got.conn, rng.Offset, left)
			} else {
				body.Source = v.stream(ctx, rng.Offset, left, got.conn)
			}
			return pieces.NewBody(body), nil
		}
		got.conn.Close()
	}
	cancel()
	if errors.Is(err, storage.ErrRange) {
		return nil, fmt.Errorf("open s3://%s/%s: %w", b.opt.Bucket, key, err)
	}
	return nil, b.explain(outer, "open", key, err)
}

// version is one version of an object.
type version struct {
	b    *Bucket
	key  string
	etag string
	size int64 // of the whole object; 0 is not known
}

// stream reads left bytes of v from offset at on; conn, unless nil, gives the
// first of them.
func (v version) stream(ctx context.Context, at, left int64, conn *conn) *pieces.Stream {
	o := &v.b.opt
	s := pieces.StreamOptions{
		At: at, Left: left, Open: v.resume, AtEnd: atEnd,
		Pace: pieces.NewTries(o.Resumes, o.MinRetryDelay, o.MaxRetryDelay),
	}
	if conn != nil {
		s.Conn = conn
	}
	return pieces.NewStream(ctx, s)
}

// answer is what a GetObject told.
type answer struct {
	conn     *conn
	size     int64 // of the whole object
	modified *time.Time
	etag     string
	sum      *uint32
}

// get asks for length bytes from at on; 0 is to the end.
func (v version) get(ctx context.Context, at, length int64) (answer, error) {
	b := v.b
	in := &awss3.GetObjectInput{
		Bucket: &b.opt.Bucket, Key: &v.key, IfMatch: optional(v.etag),
		SSECustomerAlgorithm: b.ssec.algorithm, SSECustomerKey: b.ssec.key, SSECustomerKeyMD5: b.ssec.sum,
	}
	var opts []func(*awss3.Options)
	part := at > 0 || length > 0
	switch {
	case length > 0 && length <= math.MaxInt64-at:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", at, at+length-1))
	case part:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", at))
	case b.checksum() == ChecksumCRC32C:
		opts = append(opts, askSum)
	}
	asking, cancel := context.WithCancelCause(ctx)
	out, err := b.client.GetObject((&call{streams: true}).with(asking), in, opts...)
	if err != nil {
		cancel(nil)
		if status(err) == http.StatusRequestedRangeNotSatisfiable || code(err) == "InvalidRange" {
			return v.behind(ctx, at, err)
		}
		return answer{}, err
	}
	a := answer{modified: out.LastModified, etag: aws.ToString(out.ETag)}
	a.conn = newConn(out.Body, cancel, b.opt.StallTimeout)
	if out.ChecksumType == types.ChecksumTypeFullObject && out.ChecksumCRC32C != nil && !part {
		if sum, err := decodeCRC(*out.ChecksumCRC32C); err == nil {
			a.sum = &sum
		}
	}
	if err := a.measure(out, at, part); err != nil {
		a.conn.Close()
		return answer{}, err
	}
	return a, nil
}

// measure holds the answer's numbers against one another and the request.
func (a *answer) measure(out *awss3.GetObjectOutput, at int64, part bool) error {
	length := int64(-1)
	if out.ContentLength != nil {
		length = *out.ContentLength
	}
	if !part {
		if length < 0 {
			return errors.New("the store does not tell the object's length")
		}
		a.size = length
		return nil
	}
	var from, to int64
	if out.ContentRange == nil {
		return fmt.Errorf("%w: the store ignores that only a range was asked for: is there a proxy that drops the Range header?", storage.ErrPermanent)
	}
	if _, err := fmt.Sscanf(*out.ContentRange, "bytes %d-%d/%d", &from, &to, &a.size); err != nil {
		return fmt.Errorf("the store answers with the content range %q", *out.ContentRange)
	}
	if from != at || to < from || to >= a.size || length >= 0 && length != to-from+1 {
		return fmt.Errorf("asked for the bytes from %d on, the store answers with range %q and %d bytes", at, *out.ContentRange, length)
	}
	return nil
}

// behind answers a range that starts at the object's end, which S3 refuses,
// or behind it.
func (v version) behind(ctx context.Context, at int64, cause error) (answer, error) {
	h, err := v.b.head(ctx, v.key)
	if err != nil {
		return answer{}, err
	}
	if v.etag != "" && v.etag != aws.ToString(h.ETag) {
		return answer{}, errReplaced
	}
	size := aws.ToInt64(h.ContentLength)
	if at < size {
		return answer{}, fmt.Errorf("the object grew while it was opened: %w", cause)
	}
	return answer{conn: newConn(http.NoBody, func(error) {}, v.b.opt.StallTimeout), size: size, modified: h.LastModified, etag: aws.ToString(h.ETag)}, nil
}

var errReplaced = fmt.Errorf("the object was replaced while it was read: %w", storage.ErrPermanent)

// askSum asks for the checksum without having the SDK check it: a body may
// come in pieces.
func askSum(o *awss3.Options) {
	o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
		return smithyhttp.SetHeaderValue("X-Amz-Checksum-Mode", "ENABLED")(stack)
	})
}

// atEnd refuses a store that sends more than it promised.
func atEnd(r io.Reader) error {
	if c, ok := r.(*conn); !ok || !c.whole {
		return nil
	}
	var one [1]byte
	if n, _ := r.Read(one[:]); n > 0 {
		return fmt.Errorf("%w: the store sends more bytes than it told", storage.ErrPermanent)
	}
	return nil
}

// resume opens another connection to the same version.
func (v version) resume(ctx context.Context, at, left int64) (io.ReadCloser, error) {
	got, err := v.get(ctx, at, left)
	switch {
	case status(err) == http.StatusPreconditionFailed || notFound(err):
		return nil, pieces.Stop(errReplaced)
	case err != nil && (wayOut(err) != "" || errors.Is(err, storage.ErrPermanent)):
		return nil, pieces.Stop(explain(ctx, "read", v.b.opt.Bucket, v.key, err))
	case err != nil:
		return nil, err
	case v.size > 0 && got.size != v.size:
		got.conn.Close()
		return nil, pieces.Stop(fmt.Errorf("the store told %d bytes and now tells %d of the same object: %w", v.size, got.size, storage.ErrPermanent))
	}
	return got.conn, nil
}

// conn is the body of one answer.
type conn struct {
	*pieces.Conn
	whole bool // the answer's own end is the end of what was asked for
}

func newConn(rc io.ReadCloser, cancel context.CancelCauseFunc, stall time.Duration) *conn {
	return &conn{whole: true, Conn: pieces.NewConn(rc, cancel, stall, func(err error) error { return &stalledError{after: stall, err: err} })}
}
