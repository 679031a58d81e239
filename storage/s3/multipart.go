package s3

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// abortLimit bounds the cleaning up of a failed upload, which also happens
// when the caller's context has ended.
const abortLimit = 30 * time.Second

// upload is a multipart upload: a queue of parts under way and the buffers
// they use. One goroutine drives it.
//
// The first buffer is the Put's own. More are taken while the Bucket's budget
// has room, never waited for: whoever waits for the budget waits for others,
// whose readers may wait for him. Without room the upload goes on with the
// buffers it has, as they come back.
type upload struct {
	*put
	id     string
	done   chan sent // a part that was sent, or failed
	flying int       // parts under way
	parts  []types.CompletedPart
}

type sent struct {
	part    types.CompletedPart
	content *content
	err     error
}

// parts uploads first and the rest of src.
func (p *put) parts(ctx context.Context, first *content, src *source) (stored, error) {
	b := p.b
	in := &awss3.CreateMultipartUploadInput{
		Bucket: &b.opt.Bucket, Key: &p.key,
		Metadata:             p.metadata(),
		StorageClass:         types.StorageClass(b.opt.StorageClass),
		ServerSideEncryption: types.ServerSideEncryption(b.opt.SSE), SSEKMSKeyId: optional(b.opt.SSEKMSKeyID),
		SSECustomerAlgorithm: b.ssec.algorithm, SSECustomerKey: b.ssec.key, SSECustomerKeyMD5: b.ssec.sum,
	}
	in.ObjectLockMode, in.ObjectLockRetainUntilDate = b.lock()
	if b.checksum() == ChecksumCRC32C {
		in.ChecksumAlgorithm = types.ChecksumAlgorithmCrc32c
		if b.can((*Capabilities).fullObject) {
			in.ChecksumType = types.ChecksumTypeFullObject
		}
	}
	made, err := b.client.CreateMultipartUpload((&call{lasting: true}).with(ctx), in)
	if err != nil {
		return stored{}, b.explain(ctx, "start the upload of", p.key, err)
	}
	u := &upload{put: p, id: aws.ToString(made.UploadId), done: make(chan sent, b.opt.UploadConcurrency+1)}
	partsCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	err = u.send(partsCtx, first, src)
	for u.flying > 0 {
		if err != nil {
			cancel()
		}
		c, failed := u.land(first)
		if failed == nil {
			u.drop(c, first)
		} else if err == nil {
			err = failed
		}
	}
	var done stored
	if err == nil {
		p.size = src.size
		if done, err = u.complete(ctx, src.whole); err == nil {
			return done, nil
		}
	}
	if abortErr := b.abort(ctx, p.key, u.id); abortErr != nil {
		err = fmt.Errorf("%w (its parts stay in the bucket until the unfinished upload %s is removed: %w)", err, u.id, abortErr)
	}
	return stored{}, err
}

// send cuts src into parts and starts their uploads; it returns with some
// under way.
func (u *upload) send(ctx context.Context, first *content, src *source) error {
	c, more := first, true
	for n := 1; ; n++ {
		if n > 1 {
			var err error
			if c, err = u.buffer(n, first); err != nil {
				return err
			}
			if more, err = c.fill(src, u.b.parts.size(n)); err != nil {
				u.drop(c, first)
				return u.readError(err)
			}
			if ctx.Err() != nil {
				u.drop(c, first)
				return u.b.explain(ctx, "put", u.key, ctx.Err())
			}
		}
		u.flying++
		go func(c *content) { u.done <- u.part(ctx, int32(n), c) }(c)
		if !more {
			return nil
		}
	}
}

// buffer is an empty content for part n.
func (u *upload) buffer(n int, first *content) (*content, error) {
	if err := u.b.parts.check(n); err != nil {
		return nil, fmt.Errorf("put s3://%s/%s: %w", u.b.opt.Bucket, u.key, err)
	}
	size := u.b.parts.size(n)
	for {
		// What has come back is used before more is taken, unless nothing
		// has.
		if len(u.done) == 0 && u.flying <= u.b.opt.UploadConcurrency && u.b.budget.TryAcquire(size) {
			return &content{pool: &u.b.pool, credit: size}, nil
		}
		c, err := u.land(first)
		if err != nil {
			return nil, err
		}
		// Later parts are larger: a buffer on credit grows if there is more.
		if c == first || c.credit >= size || u.grow(c, size) {
			return c, nil
		}
		u.drop(c, first)
	}
}

func (u *upload) grow(c *content, size int64) bool {
	if !u.b.budget.TryAcquire(size - c.credit) {
		return false
	}
	c.credit = size
	return true
}

// land waits for a part under way and takes its buffer back, empty. After a
// failure, or at the end, the buffer is given up.
func (u *upload) land(first *content) (*content, error) {
	s := <-u.done
	u.flying--
	if s.err != nil {
		u.drop(s.content, first)
		return nil, s.err
	}
	u.parts = append(u.parts, s.part)
	s.content.reset()
	return s.content, nil
}

// drop gives a buffer back. The first one stays the Put's.
func (u *upload) drop(c, first *content) {
	if c == first {
		return
	}
	c.release()
	u.b.budget.Release(c.credit)
}

func (u *upload) part(ctx context.Context, n int32, c *content) sent {
	b := u.b
	crc, sum := b.sums(c)
	out, err := b.client.UploadPart((&call{body: c, lasting: true}).with(ctx), &awss3.UploadPartInput{
		Bucket: &b.opt.Bucket, Key: &u.key, UploadId: &u.id, PartNumber: &n,
		Body: c.reader(func() {}), ContentLength: &c.size, ChecksumCRC32C: crc, ContentMD5: sum,
		SSECustomerAlgorithm: b.ssec.algorithm, SSECustomerKey: b.ssec.key, SSECustomerKeyMD5: b.ssec.sum,
	})
	if err != nil {
		return sent{content: c, err: b.explain(ctx, fmt.Sprintf("upload part %d of", n), u.key, err)}
	}
	return sent{content: c, part: types.CompletedPart{PartNumber: &n, ETag: out.ETag, ChecksumCRC32C: crc}}
}

func (u *upload) complete(ctx context.Context, whole uint32) (stored, error) {
	b := u.b
	slices.SortFunc(u.parts, func(x, y types.CompletedPart) int { return cmp.Compare(*x.PartNumber, *y.PartNumber) })
	in := &awss3.CompleteMultipartUploadInput{
		Bucket: &b.opt.Bucket, Key: &u.key, UploadId: &u.id,
		MultipartUpload:      &types.CompletedMultipartUpload{Parts: u.parts},
		SSECustomerAlgorithm: b.ssec.algorithm, SSECustomerKey: b.ssec.key, SSECustomerKeyMD5: b.ssec.sum,
	}
	if b.checksum() == ChecksumCRC32C && b.can((*Capabilities).fullObject) {
		in.ChecksumCRC32C, in.ChecksumType, in.MpuObjectSize = encodeCRC(whole), types.ChecksumTypeFullObject, &u.size
	}
	if u.conditional && b.can((*Capabilities).conditionalComplete) {
		in.IfNoneMatch = aws.String("*")
	} else if u.ifAbsent {
		// As close to the end as can be: see Put for the race that is left.
		if err := u.absent(ctx); err != nil {
			return stored{}, err
		}
	}
	sent := &call{patience: 10}
	out, err := b.client.CompleteMultipartUpload(sent.with(ctx), in)
	if err == nil {
		return storedBy(out.ETag, out.ResultMetadata), nil
	}
	return u.refused(ctx, sent, err)
}

// abort removes an upload and its parts, and looks whether it is gone: a part
// that comes into the store after the abort stays there. S3's manual asks for
// the same. See also call.lasting.
func (b *Bucket) abort(ctx context.Context, key, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortLimit)
	defer cancel()
	for n := 1; ; n++ {
		_, err := b.client.AbortMultipartUpload(ctx, &awss3.AbortMultipartUploadInput{Bucket: &b.opt.Bucket, Key: &key, UploadId: &id})
		if err != nil && code(err) != "NoSuchUpload" {
			return b.explain(ctx, "abort the upload of", key, err)
		}
		_, err = b.client.ListParts(ctx, &awss3.ListPartsInput{Bucket: &b.opt.Bucket, Key: &key, UploadId: &id, MaxParts: aws.Int32(1),
			SSECustomerAlgorithm: b.ssec.algorithm, SSECustomerKey: b.ssec.key, SSECustomerKeyMD5: b.ssec.sum})
		if err != nil && certain(err) {
			return nil // gone; or we may not look, and trust the answer
		}
		if err := sleep(ctx, pause(n, b.opt.MinRetryDelay, b.opt.MaxRetryDelay)); err != nil {
			return b.explain(ctx, "abort the upload of", key, err)
		}
	}
}

// certain tells an answer that another try would not change.
func certain(err error) bool {
	return code(err) == "NoSuchUpload" || notFound(err) || wayOut(err) != ""
}
