package gcs

import (
	"cmp"
	"context"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/walherd/walherd/storage"
)

// listQuery is one page of a listing.
type listQuery struct {
	prefix  string
	shallow bool
	from    string // names before it are left out
	token   string // of the page before; wins over from
	limit   int
}

type listPage struct {
	Items    []object `json:"items"`
	Prefixes []string `json:"prefixes"`
	Next     string   `json:"nextPageToken"`
}

// List implements storage.Bucket, with a request for each thousand names.
func (b *Bucket) List(ctx context.Context, prefix string, opt storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		fail := func(err error) { yield(storage.Info{}, b.explainList(ctx, b.root+prefix, err)) }
		q := listQuery{prefix: b.root + prefix, shallow: opt.Shallow, limit: b.page}
		if opt.After != "" {
			q.from = b.root + opt.After
		}
		lastDir := ""
		for {
			page, err := b.list(ctx, q)
			if err != nil {
				fail(err)
				return
			}
			b.seen.Store(true)
			for _, info := range page.infos(b.root) {
				// Markers of folders, keys that end in a slash, are no
				// objects of ours. A common prefix may come again on the
				// next page.
				if info.Name <= opt.After || info.Dir && info.Name <= lastDir || !info.Dir && storage.CheckName(info.Name) != nil {
					continue
				}
				if info.Dir {
					lastDir = info.Name
				}
				if err := ctx.Err(); err != nil {
					fail(err)
					return
				}
				if !yield(info, nil) {
					return
				}
			}
			if page.Next == "" {
				return
			}
			q.token = page.Next
		}
	}
}

// infos merges objects and common prefixes, which come apart, by name.
func (p *listPage) infos(root string) []storage.Info {
	infos := make([]storage.Info, 0, len(p.Items)+len(p.Prefixes))
	for i := range p.Items {
		infos = append(infos, p.Items[i].info(strings.TrimPrefix(p.Items[i].Name, root)))
	}
	for _, dir := range p.Prefixes {
		infos = append(infos, storage.Info{Name: strings.TrimPrefix(dir, root), Dir: true})
	}
	slices.SortFunc(infos, func(x, y storage.Info) int { return cmp.Compare(x.Name, y.Name) })
	return infos
}

func (b *Bucket) list(ctx context.Context, q listQuery) (*listPage, error) {
	query := url.Values{
		"fields":     {"nextPageToken,prefixes,items(name,size,timeCreated)"},
		"maxResults": {strconv.Itoa(q.limit)},
	}
	set := func(name, value string) {
		if value != "" {
			query.Set(name, value)
		}
	}
	set("prefix", q.prefix)
	set("startOffset", q.from)
	set("pageToken", q.token)
	if q.shallow {
		query.Set("delimiter", "/")
	}
	page := new(listPage)
	_, err := b.do(ctx, &request{
		method: http.MethodGet, into: page,
		url: b.endpoint + "/storage/v1/b/" + url.PathEscape(b.opt.Bucket) + "/o?" + query.Encode(),
	})
	return page, err
}
