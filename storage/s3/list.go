package s3

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/walherd/walherd/storage"
)

// pageFrom is where a page of a listing starts: behind the last one (token,
// or marker for the older call), or behind a key.
type pageFrom struct{ token, after string }

type listPage struct {
	infos []storage.Info // by key; not yet relative to the root
	next  pageFrom
	more  bool // the listing goes on, at next
}

// errLost ends a listing that goes on at no place we can ask for. To stop there
// in silence would hide objects: a gateway that knows only the older call does
// so behind the first thousand, and what is not listed is taken for gone.
var errLost = fmt.Errorf("the store tells that the listing goes on, and not from where: change S3_USE_LIST_OBJECTS_V1, true is for a store that knows the older call only: %w", storage.ErrPermanent)

// goesOn reports whether next is a place to go on at.
func (from pageFrom) goesOn(next pageFrom) bool {
	if next.token != "" {
		return next.token != from.token
	}
	return next.after != "" && next.after != from.after
}

// List implements storage.Bucket, with a request for each thousand names.
func (b *Bucket) List(ctx context.Context, prefix string, opt storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		fail := func(err error) { yield(storage.Info{}, b.explain(ctx, "list", b.root+prefix, err)) }
		delimiter := ""
		if opt.Shallow {
			delimiter = "/"
		}
		var from pageFrom
		if opt.After != "" {
			from.after = b.root + opt.After
		}
		for {
			if err := ctx.Err(); err != nil {
				fail(err)
				return
			}
			page, err := b.page(ctx, b.root+prefix, delimiter, 0, from)
			if err != nil {
				fail(err)
				return
			}
			for _, info := range page.infos {
				info.Name = strings.TrimPrefix(info.Name, b.root)
				// A common prefix is told again when the listing starts
				// within it. Markers of folders, keys that end in a slash,
				// are no objects of ours.
				if info.Name <= opt.After || !info.Dir && storage.CheckName(info.Name) != nil {
					continue
				}
				if err := ctx.Err(); err != nil {
					fail(err)
					return
				}
				if !yield(info, nil) {
					return
				}
			}
			if !page.more {
				return
			}
			if !from.goesOn(page.next) {
				fail(errLost)
				return
			}
			from = page.next
		}
	}
}

// page lists up to limit names; 0 is the store's own limit.
func (b *Bucket) page(ctx context.Context, prefix, delimiter string, limit int32, from pageFrom) (listPage, error) {
	var max *int32
	if limit > 0 {
		max = &limit
	}
	if b.opt.ListV1 {
		out, err := b.client.ListObjects(ctx, &awss3.ListObjectsInput{
			Bucket: &b.opt.Bucket, Prefix: &prefix, Delimiter: optional(delimiter), Marker: optional(from.after), MaxKeys: max,
		})
		if err != nil {
			return listPage{}, err
		}
		p := newPage(out.Contents, out.CommonPrefixes)
		// Without a delimiter S3 tells no next marker: it is the last name.
		if p.more = aws.ToBool(out.IsTruncated); p.more {
			p.next.after = aws.ToString(out.NextMarker)
			if p.next.after == "" && len(p.infos) > 0 {
				p.next.after = p.infos[len(p.infos)-1].Name
			}
		}
		return p, nil
	}
	out, err := b.client.ListObjectsV2(ctx, &awss3.ListObjectsV2Input{
		Bucket: &b.opt.Bucket, Prefix: &prefix, Delimiter: optional(delimiter), MaxKeys: max,
		StartAfter: optional(from.after), ContinuationToken: optional(from.token),
	})
	if err != nil {
		return listPage{}, err
	}
	p := newPage(out.Contents, out.CommonPrefixes)
	p.next.token = aws.ToString(out.NextContinuationToken)
	p.more = aws.ToBool(out.IsTruncated)
	return p, nil
}

// newPage merges objects and common prefixes, which come apart, by name.
func newPage(objects []types.Object, dirs []types.CommonPrefix) listPage {
	p := listPage{infos: make([]storage.Info, 0, len(objects)+len(dirs))}
	for _, o := range objects {
		p.infos = append(p.infos, infoOf(aws.ToString(o.Key), aws.ToInt64(o.Size), o.LastModified))
	}
	for _, d := range dirs {
		p.infos = append(p.infos, storage.Info{Name: aws.ToString(d.Prefix), Dir: true})
	}
	slices.SortFunc(p.infos, func(x, y storage.Info) int { return cmp.Compare(x.Name, y.Name) })
	return p
}

// Upload is a multipart upload that was neither completed nor aborted: one
// under way, or what a killed process left. The bucket holds its parts, and
// its bill does, until it is aborted.
type Upload struct {
	// Name of the object it was to become.
	Name string
	// ID is the store's.
	ID string
	// Started is the store's time. A running upload looks the same: take
	// only what is older than the longest Put.
	Started time.Time
}

// Unfinished yields the multipart uploads whose names start with prefix. After
// an error it stops.
func (b *Bucket) Unfinished(ctx context.Context, prefix string) iter.Seq2[Upload, error] {
	return func(yield func(Upload, error) bool) {
		full := b.root + prefix
		in := &awss3.ListMultipartUploadsInput{Bucket: &b.opt.Bucket, Prefix: &full}
		for {
			out, err := b.client.ListMultipartUploads(ctx, in)
			if err != nil {
				yield(Upload{}, b.explain(ctx, "list the unfinished uploads of", full, err))
				return
			}
			for _, u := range out.Uploads {
				key := aws.ToString(u.Key)
				// Some stores do not look at the prefix.
				if !strings.HasPrefix(key, full) {
					continue
				}
				if !yield(Upload{Name: strings.TrimPrefix(key, b.root), ID: aws.ToString(u.UploadId), Started: aws.ToTime(u.Initiated)}, nil) {
					return
				}
			}
			if !aws.ToBool(out.IsTruncated) || aws.ToString(out.NextKeyMarker) == "" {
				return
			}
			in.KeyMarker, in.UploadIdMarker = out.NextKeyMarker, out.NextUploadIdMarker
		}
	}
}

// AbortUnfinished removes uploads and their parts. One that is gone is no
// error.
func (b *Bucket) AbortUnfinished(ctx context.Context, uploads ...Upload) error {
	for _, u := range uploads {
		key, err := b.key(u.Name)
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return b.explain(ctx, "abort the upload of", key, err)
		}
		if err := b.abort(ctx, key, u.ID); err != nil {
			return err
		}
	}
	return nil
}

// Leftovers implements storage.Sweeper.
func (b *Bucket) Leftovers(ctx context.Context, prefix string) iter.Seq2[storage.Leftover, error] {
	return func(yield func(storage.Leftover, error) bool) {
		for u, err := range b.Unfinished(ctx, prefix) {
			if !yield(storage.Leftover{Name: u.Name, ID: u.ID, Moved: u.Started}, err) {
				return
			}
		}
	}
}

// DropLeftovers implements storage.Sweeper.
func (b *Bucket) DropLeftovers(ctx context.Context, uploads ...storage.Leftover) error {
	for _, u := range uploads {
		if err := b.AbortUnfinished(ctx, Upload{Name: u.Name, ID: u.ID}); err != nil {
			return err
		}
	}
	return nil
}
