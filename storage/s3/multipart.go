package s3

import (
	"cmp"
	"context"
	"fmt"
	"hash"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/walherd/walherd/storage/pieces"
)

// abortLimit bounds the cleaning up of a failed upload, which also happens
// when the caller's context has ended.
const abortLimit = 30 * time.Second

// upload is a multipart upload.
type upload struct {
	*put
	id string

	mu    sync.Mutex
	parts []types.CompletedPart
}

// parts uploads first and the rest of src.
func (p *put) parts(ctx context.Context, first *pieces.Content, src *pieces.Source, whole hash.Hash32) (stored, error) {
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
	u := &upload{put: p, id: aws.ToString(made.UploadId)}
	q := pieces.Queue{Pool: b.pool, Budget: b.budget, Plan: b.parts, Most: b.opt.UploadConcurrency + 1, Send: u.part, Fail: p.fails}
	err = q.Run(ctx, first, src)
	var done stored
	if err == nil {
		p.size = src.Size()
		if done, err = u.complete(ctx, whole.Sum32()); err == nil {
			return done, nil
		}
	}
	if abortErr := b.abort(ctx, p.key, u.id); abortErr != nil {
		err = fmt.Errorf("%w (its parts stay in the bucket until the unfinished upload %s is removed: %w)", err, u.id, abortErr)
	}
	return stored{}, err
}

func (u *upload) part(ctx context.Context, n int, c *pieces.Content) error {
	b, number := u.b, int32(n)
	crc, sum := b.sums(c)
	out, err := b.client.UploadPart((&call{body: c, lasting: true}).with(ctx), &awss3.UploadPartInput{
		Bucket: &b.opt.Bucket, Key: &u.key, UploadId: &u.id, PartNumber: &number,
		Body: c.Reader(0, nil), ContentLength: aws.Int64(c.Size()), ChecksumCRC32C: crc, ContentMD5: sum,
		SSECustomerAlgorithm: b.ssec.algorithm, SSECustomerKey: b.ssec.key, SSECustomerKeyMD5: b.ssec.sum,
	})
	if err != nil {
		return b.explain(ctx, fmt.Sprintf("upload part %d of", n), u.key, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.parts = append(u.parts, types.CompletedPart{PartNumber: &number, ETag: out.ETag, ChecksumCRC32C: crc})
	return nil
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
		if err := pieces.Sleep(ctx, pieces.Pause(n, b.opt.MinRetryDelay, b.opt.MaxRetryDelay)); err != nil {
			return b.explain(ctx, "abort the upload of", key, err)
		}
	}
}

// certain tells an answer that another try would not change.
func certain(err error) bool {
	return code(err) == "NoSuchUpload" || notFound(err) || wayOut(err) != ""
}
