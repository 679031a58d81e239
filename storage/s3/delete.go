package s3

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/walherd/walherd/storage"
)

// Delete implements storage.Bucket. The first name goes alone, so that what
// makes the others visible (a sentinel) is surely gone before they are; the
// rest goes in requests of Options.DeleteBatch names, in the order given,
// except that S3 promises no order within one request. Options.DeleteBatch 1
// keeps the order throughout.
//
// In a bucket with versions all versions of the objects are removed.
func (b *Bucket) Delete(ctx context.Context, names ...string) error {
	keys, err := b.keys(names)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return b.explain(ctx, "delete from", b.root, err)
	}
	if len(keys) == 0 {
		return nil
	}
	versions, err := b.keepsVersions(ctx)
	if err != nil {
		return err
	}
	batches := slices.Concat([][]string{keys[:1]}, slices.Collect(slices.Chunk(keys[1:], b.opt.DeleteBatch)))
	for _, batch := range batches {
		if err := ctx.Err(); err != nil {
			return b.explain(ctx, "delete", batch[0], err)
		}
		if versions {
			err = b.deleteVersions(ctx, batch)
		} else {
			err = b.deleteKeys(ctx, batch)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *Bucket) deleteKeys(ctx context.Context, keys []string) error {
	if len(keys) == 1 {
		_, err := b.client.DeleteObject(ctx, &awss3.DeleteObjectInput{Bucket: &b.opt.Bucket, Key: &keys[0]})
		if err == nil || notFound(err) {
			return nil
		}
		return b.explain(ctx, "delete", keys[0], err)
	}
	ids := make([]types.ObjectIdentifier, len(keys))
	for i := range keys {
		ids[i].Key = &keys[i]
	}
	return b.deleteMany(ctx, ids)
}

func (b *Bucket) deleteMany(ctx context.Context, ids []types.ObjectIdentifier) error {
	in := &awss3.DeleteObjectsInput{Bucket: &b.opt.Bucket, Delete: &types.Delete{Objects: ids, Quiet: aws.Bool(true)}}
	var opts []func(*awss3.Options)
	if b.checksum() == ChecksumCRC32C {
		in.ChecksumAlgorithm = types.ChecksumAlgorithmCrc32c
	} else {
		opts = append(opts, md5Instead)
	}
	out, err := b.client.DeleteObjects(ctx, in, opts...)
	if err != nil {
		return b.explain(ctx, fmt.Sprintf("delete %d objects from", len(ids)), aws.ToString(ids[0].Key), err)
	}
	for _, e := range out.Errors {
		failed := aws.ToString(e.Code)
		if failed == "NoSuchKey" || failed == "NoSuchVersion" {
			continue
		}
		err := fmt.Errorf("delete s3://%s/%s: %s: %s", b.opt.Bucket, aws.ToString(e.Key), failed, aws.ToString(e.Message))
		if way, ok := waysOut[failed]; ok {
			err = fmt.Errorf("%w: %s: %w", err, way, storage.ErrPermanent)
		}
		return err
	}
	return nil
}

// md5Instead gives a request the checksum that gateways without the newer
// headers want here, since the protocol demands one.
func md5Instead(o *awss3.Options) {
	o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
		return stack.Build.Add(middleware.BuildMiddlewareFunc("walherd:ContentMD5", func(ctx context.Context, in middleware.BuildInput, next middleware.BuildHandler) (
			middleware.BuildOutput, middleware.Metadata, error,
		) {
			req, ok := in.Request.(*smithyhttp.Request)
			if !ok {
				return middleware.BuildOutput{}, middleware.Metadata{}, fmt.Errorf("unknown request type %T", in.Request)
			}
			h := md5.New()
			if _, err := io.Copy(h, req.GetStream()); err != nil {
				return middleware.BuildOutput{}, middleware.Metadata{}, err
			}
			if err := req.RewindStream(); err != nil {
				return middleware.BuildOutput{}, middleware.Metadata{}, err
			}
			req.Header.Set("Content-MD5", base64.StdEncoding.EncodeToString(h.Sum(nil)))
			return next.HandleBuild(ctx, in)
		}), middleware.After)
	}, func(stack *middleware.Stack) error {
		_, err := stack.Finalize.Remove("AWSChecksum:ComputeInputPayloadChecksum")
		return err
	})
}

// keepsVersions tells whether Delete must look for versions; it asks once.
func (b *Bucket) keepsVersions(ctx context.Context) (bool, error) {
	b.mu.Lock()
	known := b.versioned
	b.mu.Unlock()
	if known != VersioningAsk {
		return known == VersioningEnabled, nil
	}
	out, err := b.client.GetBucketVersioning(ctx, &awss3.GetBucketVersioningInput{Bucket: &b.opt.Bucket})
	known = VersioningDisabled
	switch {
	case err == nil:
		// A suspended bucket still has its older versions.
		if out.Status != "" {
			known = VersioningEnabled
		}
	case code(err) == "NoSuchBucket" || ctx.Err() != nil || !errors.Is(b.explain(ctx, "", "", err), storage.ErrPermanent):
		return false, b.explain(ctx, "ask for the versioning of", "", err)
	default:
		// The store does not know the question, or does not let us ask it.
	}
	b.mu.Lock()
	b.versioned = known
	b.mu.Unlock()
	return known == VersioningEnabled, nil
}

// deleteVersions removes every version and delete marker of keys.
func (b *Bucket) deleteVersions(ctx context.Context, keys []string) error {
	var ids []types.ObjectIdentifier
	for _, key := range keys {
		in := &awss3.ListObjectVersionsInput{Bucket: &b.opt.Bucket, Prefix: &key}
		for more := true; more; {
			out, err := b.client.ListObjectVersions(ctx, in)
			if err != nil {
				return b.explain(ctx, "list the versions of", key, err)
			}
			last := key
			for _, v := range out.Versions {
				if last = aws.ToString(v.Key); last == key {
					ids = append(ids, types.ObjectIdentifier{Key: v.Key, VersionId: v.VersionId})
				}
			}
			for _, m := range out.DeleteMarkers {
				if k := aws.ToString(m.Key); k == key {
					ids = append(ids, types.ObjectIdentifier{Key: m.Key, VersionId: m.VersionId})
				} else if k > last {
					last = k
				}
			}
			// The key itself is the first of its prefix.
			more = aws.ToBool(out.IsTruncated) && last == key
			in.KeyMarker, in.VersionIdMarker = out.NextKeyMarker, out.NextVersionIdMarker
		}
		for len(ids) >= b.opt.DeleteBatch {
			if err := b.deleteMany(ctx, ids[:b.opt.DeleteBatch]); err != nil {
				return err
			}
			ids = ids[b.opt.DeleteBatch:]
		}
	}
	if len(ids) == 0 {
		return nil
	}
	return b.deleteMany(ctx, ids)
}
