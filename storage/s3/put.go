package s3

import (
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/pieces"
)

// markKey is the metadata in which a Put leaves its random mark, where it may
// have to tell its own object from another's.
const markKey = "walherd-put"

// put is one Put.
type put struct {
	b           *Bucket
	name        string
	key         string
	ifAbsent    bool
	conditional bool   // the store refuses to overwrite by itself
	mark        string // empty when nothing will ask for it
	size        int64
}

// Put implements storage.Bucket. It holds a part of the content in memory,
// and more of them in parallel as Options.UploadConcurrency allows. A content
// of exactly one part's size takes one request.
//
// After storing it asks the store for the object's time. A store that does
// not answer that makes no failed Put: Modified is then the time in its answer
// to the upload.
//
// Where the store has no conditional put, IfAbsent looks for the object first:
// of two such Puts at the same moment the later one wins, unseen.
func (b *Bucket) Put(ctx context.Context, name string, r io.Reader, opt storage.PutOptions) (storage.Info, error) {
	key, err := b.key(name)
	if err != nil {
		return storage.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return storage.Info{}, b.explain(ctx, "put", key, err)
	}
	p := &put{b: b, name: name, key: key, ifAbsent: opt.IfAbsent, conditional: opt.IfAbsent && b.can((*Capabilities).conditionalPut)}
	first := pieces.NewContent(b.pool)
	defer first.Release()
	whole := crc32.New(castagnoli)
	src := pieces.NewSource(r, whole)
	more, err := first.Fill(ctx, src, b.parts.Size(1))
	if err != nil {
		return storage.Info{}, p.fails(ctx, err)
	}
	// A large object is looked for before gigabytes are sent; a small one
	// when the store may not know conditions.
	if opt.IfAbsent && (more || b.opt.Capabilities == nil || !p.conditional) {
		if err := p.absent(ctx); err != nil {
			return storage.Info{}, err
		}
	}
	var done stored
	if more {
		p.mark = rand.Text()
		done, err = p.parts(ctx, first, src, whole)
	} else {
		if p.conditional {
			p.mark = rand.Text()
		}
		p.size = first.Size()
		done, err = p.single(ctx, first)
	}
	if err != nil {
		return storage.Info{}, b.missing(ctx, err)
	}
	return p.describe(ctx, done)
}

// fails words what ends a Put beside the store.
func (p *put) fails(ctx context.Context, err error) error {
	var read *pieces.ReadError
	if ctx.Err() != nil && !errors.As(err, &read) {
		return p.b.explain(ctx, "put", p.key, ctx.Err())
	}
	return fmt.Errorf("put s3://%s/%s: %w", p.b.opt.Bucket, p.key, err)
}

func (p *put) exists() error {
	return fmt.Errorf("put s3://%s/%s: %w", p.b.opt.Bucket, p.key, storage.ErrExist)
}

// absent is storage.ErrExist when the object is there.
func (p *put) absent(ctx context.Context) error {
	_, err := p.b.head(ctx, p.key)
	switch {
	case err == nil:
		return p.exists()
	case notFound(err):
		return nil
	}
	return p.b.explain(ctx, "look for", p.key, err)
}

// stored is what the answer to an upload told.
type stored struct {
	etag string
	at   time.Time
}

func storedBy(etag *string, metadata middleware.Metadata) stored {
	at, _ := awsmiddleware.GetServerTime(metadata)
	return stored{etag: aws.ToString(etag), at: at}
}

func (p *put) single(ctx context.Context, c *pieces.Content) (stored, error) {
	b := p.b
	in := &awss3.PutObjectInput{
		Bucket: &b.opt.Bucket, Key: &p.key,
		Body: c.Reader(0, nil), ContentLength: aws.Int64(c.Size()),
		Metadata:             p.metadata(),
		StorageClass:         types.StorageClass(b.opt.StorageClass),
		ServerSideEncryption: types.ServerSideEncryption(b.opt.SSE), SSEKMSKeyId: optional(b.opt.SSEKMSKeyID),
		SSECustomerAlgorithm: b.ssec.algorithm, SSECustomerKey: b.ssec.key, SSECustomerKeyMD5: b.ssec.sum,
	}
	in.ObjectLockMode, in.ObjectLockRetainUntilDate = b.lock()
	in.ChecksumCRC32C, in.ContentMD5 = b.sums(c)
	if p.conditional {
		in.IfNoneMatch = aws.String("*")
	}
	sent := &call{body: c}
	out, err := b.client.PutObject(sent.with(ctx), in)
	if err == nil {
		return storedBy(out.ETag, out.ResultMetadata), nil
	}
	return p.refused(ctx, sent, err)
}

// refused finds out what an error of the last step of an upload means.
func (p *put) refused(ctx context.Context, sent *call, err error) (stored, error) {
	exists := p.conditional && (status(err) == http.StatusPreconditionFailed || code(err) == "PreconditionFailed")
	if exists && sent.tries == 1 {
		return stored{}, p.exists()
	}
	// An earlier try may have done it and its answer was lost: then the
	// store says that the object exists, or that the upload does not.
	if exists || code(err) == "NoSuchUpload" || p.conditional && status(err) == http.StatusConflict {
		h, headErr := p.b.head(ctx, p.key)
		if headErr == nil && p.marked(h.Metadata) && aws.ToInt64(h.ContentLength) == p.size {
			return stored{etag: aws.ToString(h.ETag), at: aws.ToTime(h.LastModified)}, nil
		}
		if exists || p.conditional && headErr == nil {
			return stored{}, p.exists()
		}
	}
	return stored{}, p.b.explain(ctx, "put", p.key, err)
}

func (p *put) metadata() map[string]string {
	if p.mark == "" {
		return nil
	}
	return map[string]string{markKey: p.mark}
}

func (p *put) marked(metadata map[string]string) bool {
	for k, v := range metadata {
		if strings.EqualFold(k, markKey) {
			return p.mark != "" && v == p.mark
		}
	}
	return false
}

// describe asks for what Stat would tell, and holds the stored size against
// what was sent.
func (p *put) describe(ctx context.Context, done stored) (storage.Info, error) {
	info := infoOf(p.name, p.size, &done.at)
	if done.at.IsZero() {
		info.Modified = p.b.now().Truncate(time.Second)
	}
	h, err := p.b.head(ctx, p.key)
	if err != nil || aws.ToString(h.ETag) != done.etag {
		// The object is stored. Another Put may have replaced it since, or
		// the access key may not read.
		return info, nil
	}
	if size := aws.ToInt64(h.ContentLength); size != p.size {
		return storage.Info{}, fmt.Errorf("put s3://%s/%s: the store holds %d bytes of %d", p.b.opt.Bucket, p.key, size, p.size)
	}
	return infoOf(p.name, p.size, h.LastModified), nil
}

// lock is the object lock of what is stored now.
func (b *Bucket) lock() (types.ObjectLockMode, *time.Time) {
	if b.opt.RetentionPeriod <= 0 {
		return "", nil
	}
	until := b.now().Add(b.opt.RetentionPeriod).UTC()
	return types.ObjectLockMode(b.opt.RetentionMode), &until
}

// checksum is the one in use: the one asked for, unless the store was found
// not to know it.
func (b *Bucket) checksum() Checksum {
	switch sum := b.opt.Checksum; {
	case sum == ChecksumCRC32C && !b.can((*Capabilities).checksums):
		return ChecksumMD5
	case sum == ChecksumNone && b.opt.RetentionPeriod > 0:
		return ChecksumMD5 // object lock demands one
	default:
		return sum
	}
}

func (b *Bucket) sums(c *pieces.Content) (crc, sum *string) {
	switch b.checksum() {
	case ChecksumCRC32C:
		h := crc32.New(castagnoli)
		c.WriteTo(h) // a hash takes all
		return encodeCRC(h.Sum32()), nil
	case ChecksumMD5:
		h := md5.New()
		c.WriteTo(h) // a hash takes all
		return nil, aws.String(base64.StdEncoding.EncodeToString(h.Sum(nil)))
	}
	return nil, nil
}

// encodeCRC writes a sum as S3 does: base64 of big-endian bytes.
func encodeCRC(crc uint32) *string {
	return aws.String(base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc)))
}

func decodeCRC(s string) (uint32, error) {
	raw, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(raw) != 4 {
		return 0, errors.New("no CRC32C")
	}
	return binary.BigEndian.Uint32(raw), nil
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
