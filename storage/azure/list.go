package azure

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"github.com/walherd/walherd/storage"
)

type listPage struct {
	infos []storage.Info // by key; not yet relative to the root
	next  string         // marker of the next page; empty is the end
}

// List implements storage.Bucket, with a request for each 5000 names. Azure
// cannot start behind a name: ListOptions.After is skipped here, so that a
// listing that goes on reads all pages before it again.
func (b *Bucket) List(ctx context.Context, prefix string, opt storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		fail := func(err error) { yield(storage.Info{}, b.explain(ctx, "list", b.root+prefix, err)) }
		marker, last := "", ""
		for {
			if err := ctx.Err(); err != nil {
				fail(err)
				return
			}
			page, err := b.page(ctx, b.root+prefix, marker, opt.Shallow)
			if err != nil {
				fail(err)
				return
			}
			for _, info := range page.infos {
				info.Name = strings.TrimPrefix(info.Name, b.root)
				if info.Name == last {
					continue // a common prefix that goes on behind a page
				}
				if info.Name < last {
					yield(storage.Info{}, fmt.Errorf("list %s: %q comes behind %q: the account sorts by path (it has a hierarchical namespace), "+
						"which keeps no order of names; use an account without: %w", b.where(b.root+prefix), info.Name, last, storage.ErrPermanent))
					return
				}
				last = info.Name
				// Markers of folders, names that end in a slash, are no
				// objects of ours.
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
			if page.next == "" {
				return
			}
			marker = page.next
		}
	}
}

func (b *Bucket) page(ctx context.Context, prefix, marker string, shallow bool) (listPage, error) {
	from := &marker
	if marker == "" {
		from = nil
	}
	if !shallow {
		out, err := b.client.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix, Marker: from, MaxResults: b.opt.pageSize}).NextPage(ctx)
		if err != nil {
			return listPage{}, err
		}
		p := listPage{next: value(out.NextMarker)}
		if out.Segment != nil {
			p.add(out.Segment.BlobItems)
		}
		return p, nil
	}
	out, err := b.client.NewListBlobsHierarchyPager("/", &container.ListBlobsHierarchyOptions{Prefix: &prefix, Marker: from, MaxResults: b.opt.pageSize}).NextPage(ctx)
	if err != nil {
		return listPage{}, err
	}
	p := listPage{next: value(out.NextMarker)}
	if out.Segment != nil {
		p.add(out.Segment.BlobItems)
		for _, d := range out.Segment.BlobPrefixes {
			p.infos = append(p.infos, storage.Info{Name: value(d.Name), Dir: true})
		}
		// Blobs and common prefixes come apart.
		slices.SortFunc(p.infos, func(x, y storage.Info) int { return cmp.Compare(x.Name, y.Name) })
	}
	return p, nil
}

func (p *listPage) add(items []*container.BlobItem) {
	for _, item := range items {
		if item == nil || item.Properties == nil || value(item.Properties.ResourceType) == "directory" {
			continue // directories of a hierarchical namespace
		}
		p.infos = append(p.infos, infoOf(value(item.Name), value(item.Properties.ContentLength), item.Properties.LastModified))
	}
}
