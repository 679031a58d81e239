// Package s3 is a storage.Bucket on S3 and on the stores that speak its
// protocol. Keys are WAL-G's: the prefix, a slash, the object's name.
//
// Each request is tried again here, with growing and randomized pauses, since
// the parts of an upload cannot be produced a second time; a decorator above
// repeats whole operations. A body that breaks is continued from the same
// version of the object (If-Match), or fails; the checksum the store keeps is
// checked at the end of a whole read.
//
// Objects up to a part's size go in one request, larger ones in parts, with a
// checksum for each and for the whole. An upload that fails is aborted; one
// whose process was killed stays invisible in the bucket, costs money there,
// and is found with Unfinished.
//
// What a person must mend (access denied, a missing bucket, a wrong clock or
// region, a full store) fails with storage.ErrPermanent and names the setting.
// When the answer to the last step of a Put is lost, the object itself tells
// whether that step was ours: it carries a random mark in its metadata.
package s3

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/semaphore"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/pieces"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Bucket is a part of an S3 bucket. Make one with Open.
type Bucket struct {
	opt       Options
	root      string // "" or ends in a slash
	client    *awss3.Client
	transport *http.Transport
	parts     pieces.Plan
	ssec      ssec
	pool      *pieces.Pool
	budget    *semaphore.Weighted // bytes of parts beyond the first of each Put
	now       func() time.Time

	mu        sync.Mutex
	found     bool // the bucket was seen to exist
	versioned Versioning
}

var _ storage.Bucket = (*Bucket)(nil)

// Open makes a Bucket. It sends no request unless the region must be asked
// for or Options.Validate is set.
func Open(ctx context.Context, opt Options) (*Bucket, error) {
	o, err := opt.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open S3 bucket: %w: %w", err, storage.ErrPermanent)
	}
	b := &Bucket{
		opt: o, parts: partPlan(o.PartSize, o.MaxParts), ssec: o.ssec(), now: time.Now, versioned: o.Versioning,
		budget: semaphore.NewWeighted(int64(o.UploadConcurrency) * o.PartSize),
		pool:   pieces.NewPool(pieces.PoolOptions{Keep: int((int64(o.UploadConcurrency) + 1) * o.PartSize / pieces.MaxChunk)}),
	}
	if caps := o.Capabilities; caps != nil && !caps.DeleteMany {
		b.opt.DeleteBatch = 1
	}
	if o.Prefix != "" {
		b.root = o.Prefix + "/"
	}
	if b.client, b.transport, err = newClient(ctx, &b.opt); err != nil {
		return nil, fmt.Errorf("open S3 bucket %s: %w", o.Bucket, err)
	}
	if o.Validate {
		if err := b.seeBucket(ctx); err != nil {
			b.Close()
			return nil, fmt.Errorf("open S3 bucket %s: bad credentials or settings: %w", o.Bucket, err)
		}
	}
	return b, nil
}

// partPlan tells how long each part of an upload is. Stores with copy-on-write
// parts like sizes of whole megabytes.
func partPlan(base int64, count int) pieces.Plan {
	return pieces.NewPlan(pieces.PlanOptions{
		Base: base, Count: count, Largest: maxPart, Object: maxObject, Grain: 1 << 20, Name: "parts", Setting: "S3_MAX_PART_SIZE",
	})
}

// Close ends idle connections. Bodies that are open stay so.
func (b *Bucket) Close() error {
	b.transport.CloseIdleConnections()
	return nil
}

// Location is the bucket and prefix, as in WALG_S3_PREFIX.
func (b *Bucket) Location() string {
	return strings.TrimSuffix("s3://"+b.opt.Bucket+"/"+b.root, "/")
}

// key is the full key of an object's name, or storage.ErrName.
func (b *Bucket) key(name string) (string, error) {
	if err := storage.CheckName(name); err != nil {
		return "", err
	}
	key := b.root + name
	return key, checkKey(key)
}

func (b *Bucket) keys(names []string) ([]string, error) {
	keys := make([]string, len(names))
	for i, name := range names {
		key, err := b.key(name)
		if err != nil {
			return nil, err
		}
		keys[i] = key
	}
	return keys, nil
}

// checkKey refuses what S3 cannot hold, or cannot list: its listings are XML,
// which has no way to write a control character.
func checkKey(key string) error {
	if len(key) > 1024 {
		return fmt.Errorf("%w %q: it has %d bytes with the prefix, S3 takes 1024", storage.ErrName, key, len(key))
	}
	if !utf8.ValidString(key) {
		return fmt.Errorf("%w %q: it is no UTF-8", storage.ErrName, key)
	}
	for _, r := range key {
		if r < ' ' || r == 0x7f || r == 0xfffe || r == 0xffff {
			return fmt.Errorf("%w %q: it holds the control character %U", storage.ErrName, key, r)
		}
	}
	return nil
}

func (b *Bucket) explain(ctx context.Context, verb, key string, err error) error {
	return explain(ctx, verb, b.opt.Bucket, key, err)
}

// Stat implements storage.Bucket.
func (b *Bucket) Stat(ctx context.Context, name string) (storage.Info, error) {
	key, err := b.key(name)
	if err != nil {
		return storage.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return storage.Info{}, b.explain(ctx, "stat", key, err)
	}
	h, err := b.head(ctx, key)
	if err != nil {
		return storage.Info{}, b.missing(ctx, b.explain(ctx, "stat", key, err))
	}
	return infoOf(name, aws.ToInt64(h.ContentLength), h.LastModified), nil
}

func (b *Bucket) head(ctx context.Context, key string) (*awss3.HeadObjectOutput, error) {
	return b.client.HeadObject(ctx, &awss3.HeadObjectInput{
		Bucket: &b.opt.Bucket, Key: &key,
		SSECustomerAlgorithm: b.ssec.algorithm, SSECustomerKey: b.ssec.key, SSECustomerKeyMD5: b.ssec.sum,
	})
}

// missing gives a "does not exist" a second look, once in a Bucket's life: a
// HEAD of a missing bucket is answered like one of a missing object.
func (b *Bucket) missing(ctx context.Context, err error) error {
	if !errors.Is(err, storage.ErrNotExist) {
		return err
	}
	// Who may read but not list is no less right about the object.
	if see := b.seeBucket(ctx); see != nil && errors.Is(see, storage.ErrPermanent) && status(see) != http.StatusForbidden {
		return see
	}
	return err
}

// seeBucket lists one object to see that the bucket is there and ours to use.
func (b *Bucket) seeBucket(ctx context.Context) error {
	b.mu.Lock()
	found := b.found
	b.mu.Unlock()
	if found {
		return nil
	}
	if _, err := b.page(ctx, b.root, "", 1, pageFrom{}); err != nil {
		return b.explain(ctx, "list", b.root, err)
	}
	b.mu.Lock()
	b.found = true
	b.mu.Unlock()
	return nil
}

// infoOf is what S3 tells. Its headers know full seconds, its listings often
// more: an object must not differ by who is asked.
func infoOf(name string, size int64, modified *time.Time) storage.Info {
	return storage.Info{Name: name, Size: size, Modified: aws.ToTime(modified).Truncate(time.Second)}
}
