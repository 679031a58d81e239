package swift

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	ncw "github.com/ncw/swift/v2"

	"github.com/walherd/walherd/storage"
)

// entry is one of a listing: an object or a common prefix.
type entry struct {
	Name         string `json:"name"`
	Bytes        int64  `json:"bytes"`
	LastModified string `json:"last_modified"`
	Subdir       string `json:"subdir"`
}

// List implements storage.Bucket, with a request for each page of the
// cluster's size (10,000 names), and one for the empty page at the end: a full
// page does not tell whether it is. The size of a dynamic large object is not
// in a listing (it says 0), so empty objects are asked for one by one.
func (b *Bucket) List(ctx context.Context, prefix string, opt storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		fail := func(err error) { yield(storage.Info{}, b.listError(ctx, prefix, err)) }
		marker := ""
		if opt.After != "" {
			marker = askable(b.root + opt.After)
		}
		for {
			if err := ctx.Err(); err != nil {
				fail(err)
				return
			}
			if askable(prefix) != prefix {
				return // no name can start with it
			}
			page, err := b.page(ctx, b.root+prefix, marker, opt.Shallow)
			if err != nil {
				fail(err)
				return
			}
			if len(page) == 0 {
				return
			}
			for _, e := range page {
				next := e.Name
				if e.Subdir != "" {
					next = e.Subdir
				}
				if next <= marker && marker != "" && !strings.HasPrefix(marker, next) {
					fail(fmt.Errorf("the store lists %q behind %q", next, marker))
					return
				}
				info, err := b.infoOf(ctx, e)
				if err != nil {
					fail(err)
					return
				}
				// Markers of folders, which end in a slash, are no objects
				// of ours.
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
			last := page[len(page)-1]
			next := max(last.Name, last.Subdir)
			if next <= marker {
				return
			}
			marker = next
		}
	}
}

// askable is the start of s that may be in a query: Swift refuses what is no
// UTF-8.
func askable(s string) string {
	for i, r := range s {
		if r == 0 {
			return s[:i]
		}
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(s[i:]); size == 1 {
				return s[:i]
			}
		}
	}
	return s
}

func (b *Bucket) listError(ctx context.Context, prefix string, err error) error {
	if status(err) == http.StatusNotFound && ctx.Err() == nil {
		return b.noContainer("list", err)
	}
	return b.explain(ctx, "list", b.root+prefix, err)
}

// infoOf describes an entry; its name becomes relative to the root.
func (b *Bucket) infoOf(ctx context.Context, e entry) (storage.Info, error) {
	if e.Subdir != "" {
		return storage.Info{Name: strings.TrimPrefix(e.Subdir, b.root), Dir: true}, nil
	}
	info := storage.Info{Name: strings.TrimPrefix(e.Name, b.root), Size: e.Bytes}
	// Seconds, as in headers; the zone is UTC, said or not.
	at, err := time.Parse("2006-01-02T15:04:05", strings.TrimSuffix(e.LastModified, "Z"))
	if err != nil {
		return info, fmt.Errorf("the store tells the time %q of %s", e.LastModified, e.Name)
	}
	info.Modified = at.Truncate(time.Second)
	if e.Bytes == 0 && storage.CheckName(info.Name) == nil {
		o, err := b.head(ctx, e.Name)
		switch {
		case err == nil && o.dynamic:
			info.Size = o.size
		case err != nil && status(err) != http.StatusNotFound:
			return info, err
		}
	}
	return info, nil
}

// page lists what lies behind marker.
func (b *Bucket) page(ctx context.Context, prefix, marker string, shallow bool) ([]entry, error) {
	q := url.Values{"format": {"json"}}
	if prefix != "" {
		q.Set("prefix", prefix)
	}
	if marker != "" {
		q.Set("marker", marker)
	}
	if shallow {
		q.Set("delimiter", "/")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, h, err := b.call(ctx, ncw.RequestOpts{Container: b.opt.Container, Operation: http.MethodGet, Parameters: q})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNoContent {
		return nil, nil
	}
	if kind := h["Content-Type"]; !strings.Contains(kind, "json") {
		return nil, fmt.Errorf("the store answers a listing with %q, not JSON", kind)
	}
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	var page []entry
	if err := json.Unmarshal(raw, &page); err != nil {
		return nil, fmt.Errorf("read the listing: %w", err)
	}
	return page, nil
}
