package s3

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/walherd/walherd/storage"
)

// Capabilities are what a store was seen to do. They are data: probe once,
// keep them as JSON, give them to Open.
type Capabilities struct {
	// Probed is when.
	Probed time.Time `json:"probed"`
	// ConditionalPut: If-None-Match is kept by PutObject.
	ConditionalPut bool `json:"conditional_put"`
	// ConditionalComplete: and by CompleteMultipartUpload.
	ConditionalComplete bool `json:"conditional_complete"`
	// Checksums: a CRC32C is taken, a wrong one is refused.
	Checksums bool `json:"checksums"`
	// FullObject: an upload in parts takes a CRC32C of the whole object,
	// and a wrong one is refused.
	FullObject bool `json:"full_object_checksums"`
	// Multipart: uploads in parts work.
	Multipart bool `json:"multipart"`
	// Metadata: an object keeps the mark by which a lost answer is made up
	// for.
	Metadata bool `json:"metadata"`
	// ListAfterPut: a listing shows what was just put.
	ListAfterPut bool `json:"list_after_put"`
	// DeleteMany: several objects go in one request.
	DeleteMany bool `json:"delete_many"`
	// Versioning is the bucket's answer: empty (never switched on), Enabled,
	// Suspended, or unknown.
	Versioning string `json:"versioning"`
}

func (c *Capabilities) conditionalPut() bool      { return c.ConditionalPut }
func (c *Capabilities) conditionalComplete() bool { return c.ConditionalComplete }
func (c *Capabilities) checksums() bool           { return c.Checksums }
func (c *Capabilities) fullObject() bool          { return c.FullObject }

// can asks the capabilities; what is not known is taken for granted.
func (b *Bucket) can(what func(*Capabilities) bool) bool {
	return b.opt.Capabilities == nil || what(b.opt.Capabilities)
}

// probeDir is where Probe puts its objects, below the Bucket's prefix.
const probeDir = "walherd_probe/"

// Probe tries what the store can do with a few small objects
// below "walherd_probe/", which it removes again. It fails only when the store
// cannot be used at all.
func (b *Bucket) Probe(ctx context.Context) (Capabilities, error) {
	// Everything is tried by itself, without what was known before.
	bare := &prober{b: b, dir: b.root + probeDir + strings.ToLower(rand.Text()) + "/"}
	caps, err := bare.run(ctx)
	if cleanErr := bare.clean(context.WithoutCancel(ctx)); cleanErr != nil {
		err = errors.Join(err, cleanErr)
	}
	if err != nil {
		return Capabilities{}, fmt.Errorf("probe %s: %w", b.Location(), err)
	}
	return caps, nil
}

type prober struct {
	b    *Bucket
	dir  string
	keys []string // made
	ids  [][2]string
}

func (p *prober) key(name string) *string {
	key := p.dir + name
	p.keys = append(p.keys, key)
	return &key
}

func (p *prober) run(ctx context.Context) (Capabilities, error) {
	caps := Capabilities{Probed: p.b.now().UTC().Truncate(time.Second)}
	// The plain way must work: its error is the probe's.
	plain := p.key("plain")
	body := []byte("walherd probe")
	if err := p.put(ctx, plain, body, func(in *awss3.PutObjectInput) { in.Metadata = map[string]string{markKey: "probe"} }); err != nil {
		return caps, p.b.explain(ctx, "put", *plain, err)
	}
	out, err := p.b.client.GetObject(ctx, &awss3.GetObjectInput{Bucket: &p.b.opt.Bucket, Key: plain,
		SSECustomerAlgorithm: p.b.ssec.algorithm, SSECustomerKey: p.b.ssec.key, SSECustomerKeyMD5: p.b.ssec.sum})
	if err != nil {
		return caps, p.b.explain(ctx, "get", *plain, err)
	}
	got, err := io.ReadAll(out.Body)
	out.Body.Close()
	if err != nil || !bytes.Equal(got, body) {
		return caps, fmt.Errorf("get s3://%s/%s: the store does not give back what was put: %d bytes, %w", p.b.opt.Bucket, *plain, len(got), err)
	}
	for k, v := range out.Metadata {
		caps.Metadata = caps.Metadata || strings.EqualFold(k, markKey) && v == "probe"
	}
	page, err := p.b.page(ctx, p.dir, "", 0, pageFrom{})
	if err != nil {
		return caps, p.b.explain(ctx, "list", p.dir, err)
	}
	for _, info := range page.infos {
		caps.ListAfterPut = caps.ListAfterPut || info.Name == *plain
	}
	none := func(in *awss3.PutObjectInput) { in.IfNoneMatch = aws.String("*") }
	caps.ConditionalPut = p.put(ctx, p.key("condition"), body, none) == nil &&
		status(p.put(ctx, plain, []byte("overwritten"), none)) == http.StatusPreconditionFailed
	sum := func(crc uint32) func(*awss3.PutObjectInput) {
		return func(in *awss3.PutObjectInput) { in.ChecksumCRC32C = encodeCRC(crc) }
	}
	crc := crc32.Checksum(body, castagnoli)
	caps.Checksums = p.put(ctx, p.key("sum"), body, sum(crc)) == nil && p.put(ctx, p.key("wrong"), body, sum(crc+1)) != nil
	caps.Multipart = p.parts(ctx, *p.key("parts"), body, "", nil) == nil
	if caps.Multipart {
		caps.ConditionalComplete = p.parts(ctx, *p.key("parts-condition"), body, "", aws.String("*")) == nil &&
			status(p.parts(ctx, *plain, body, "", aws.String("*"))) == http.StatusPreconditionFailed
		caps.FullObject = caps.Checksums && p.parts(ctx, *p.key("parts-sum"), body, *encodeCRC(crc), nil) == nil &&
			p.parts(ctx, *p.key("parts-wrong"), body, *encodeCRC(crc + 1), nil) != nil
	}
	caps.DeleteMany = p.b.deleteMany(ctx, []types.ObjectIdentifier{{Key: p.key("a")}, {Key: p.key("b")}}) == nil
	caps.Versioning = "unknown"
	if v, err := p.b.client.GetBucketVersioning(ctx, &awss3.GetBucketVersioningInput{Bucket: &p.b.opt.Bucket}); err == nil {
		caps.Versioning = string(v.Status)
	}
	if err := ctx.Err(); err != nil {
		return caps, err
	}
	return caps, nil
}

// impatient: a wrong sum is refused with an error that is retried otherwise.
func impatient(o *awss3.Options) { o.Retryer = aws.NopRetryer{} }

func (p *prober) put(ctx context.Context, key *string, body []byte, change func(*awss3.PutObjectInput)) error {
	b := p.b
	in := &awss3.PutObjectInput{Bucket: &b.opt.Bucket, Key: key, Body: bytes.NewReader(body),
		SSECustomerAlgorithm: b.ssec.algorithm, SSECustomerKey: b.ssec.key, SSECustomerKeyMD5: b.ssec.sum}
	var opts []func(*awss3.Options)
	change(in)
	if in.ChecksumCRC32C != nil {
		opts = append(opts, impatient)
	}
	_, err := b.client.PutObject(ctx, in, opts...)
	return err
}

// parts uploads body as the only part of key.
func (p *prober) parts(ctx context.Context, key string, body []byte, sum string, ifNone *string) error {
	b := p.b
	make := &awss3.CreateMultipartUploadInput{Bucket: &b.opt.Bucket, Key: &key,
		SSECustomerAlgorithm: b.ssec.algorithm, SSECustomerKey: b.ssec.key, SSECustomerKeyMD5: b.ssec.sum}
	end := &awss3.CompleteMultipartUploadInput{Bucket: &b.opt.Bucket, Key: &key, IfNoneMatch: ifNone,
		SSECustomerAlgorithm: b.ssec.algorithm, SSECustomerKey: b.ssec.key, SSECustomerKeyMD5: b.ssec.sum}
	part := &awss3.UploadPartInput{Bucket: &b.opt.Bucket, Key: &key, PartNumber: aws.Int32(1), Body: bytes.NewReader(body),
		SSECustomerAlgorithm: b.ssec.algorithm, SSECustomerKey: b.ssec.key, SSECustomerKeyMD5: b.ssec.sum}
	var opts []func(*awss3.Options)
	if sum != "" {
		make.ChecksumAlgorithm, make.ChecksumType = types.ChecksumAlgorithmCrc32c, types.ChecksumTypeFullObject
		end.ChecksumCRC32C, end.ChecksumType = &sum, types.ChecksumTypeFullObject
		part.ChecksumCRC32C = encodeCRC(crc32.Checksum(body, castagnoli))
		opts = append(opts, impatient)
	}
	made, err := b.client.CreateMultipartUpload(ctx, make)
	if err != nil {
		return err
	}
	p.ids = append(p.ids, [2]string{key, aws.ToString(made.UploadId)})
	part.UploadId, end.UploadId = made.UploadId, made.UploadId
	sent, err := b.client.UploadPart(ctx, part)
	if err != nil {
		return err
	}
	end.MultipartUpload = &types.CompletedMultipartUpload{Parts: []types.CompletedPart{{PartNumber: aws.Int32(1), ETag: sent.ETag, ChecksumCRC32C: part.ChecksumCRC32C}}}
	_, err = b.client.CompleteMultipartUpload(ctx, end, opts...)
	return err
}

func (p *prober) clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, abortLimit)
	defer cancel()
	var errs []error
	for _, id := range p.ids {
		errs = append(errs, p.b.abort(ctx, id[0], id[1]))
	}
	names := make([]string, len(p.keys))
	for i, key := range p.keys {
		names[i] = strings.TrimPrefix(key, p.b.root)
	}
	for _, name := range names {
		if err := p.b.Delete(ctx, name); err != nil && !errors.Is(err, storage.ErrPermanent) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
