package swift

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	ncw "github.com/ncw/swift/v2"
)

// cluster is what /info tells of a cluster. One that does not answer it has
// nothing but the basics.
type cluster struct {
	Swift struct {
		MaxFileSize int64 `json:"max_file_size"`
	} `json:"swift"`
	SLO *struct {
		MaxSegments int   `json:"max_manifest_segments"`
		MinSize     int64 `json:"min_segment_size"`
	} `json:"slo"`
	BulkDelete *struct {
		MaxDeletes int `json:"max_deletes_per_request"`
	} `json:"bulk_delete"`
}

// cluster asks once.
func (b *Bucket) cluster(ctx context.Context) (*cluster, error) {
	b.mu.Lock()
	known := b.info
	b.mu.Unlock()
	if known != nil {
		return known, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// The library's answer for "not 200" has no status; it is not worth
	// failing over, since what uses it has another way.
	told, err := b.conn.QueryInfo(ctx)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	known = &cluster{}
	if err == nil {
		if raw, err := json.Marshal(told); err == nil && json.Unmarshal(raw, known) != nil {
			known = &cluster{}
		}
	}
	if err != nil {
		return known, nil // asked again next time
	}
	b.mu.Lock()
	b.info = known
	b.mu.Unlock()
	return known, nil
}

// segmentsSuffix makes the container of segments out of the objects', as
// Swift's own client does.
const segmentsSuffix = "_segments"

func (b *Bucket) segmentsContainer() string { return b.opt.Container + segmentsSuffix }

// segmentsKnown is whether the container of segments exists. That it does not
// is believed for a minute: another process may make it.
type segmentsKnown struct {
	exist   bool
	checked time.Time
}

// haveSegments tells whether an object may have segments of its own. Where
// there is no container for them nobody needs to look.
func (b *Bucket) haveSegments(ctx context.Context) (bool, error) {
	b.mu.Lock()
	known := b.segments
	b.mu.Unlock()
	if known.exist || time.Since(known.checked) < time.Minute {
		return known.exist, nil
	}
	_, err := b.do(ctx, ncw.RequestOpts{Container: b.segmentsContainer(), Operation: http.MethodHead})
	switch {
	case err == nil:
		known.exist = true
	case status(err) == http.StatusNotFound || status(err) == http.StatusForbidden:
		known.checked = time.Now()
	default:
		return false, err
	}
	b.mu.Lock()
	b.segments.exist = b.segments.exist || known.exist
	b.segments.checked = known.checked
	b.mu.Unlock()
	return known.exist, nil
}

// makeSegments makes the container of segments. One that exists is no error.
func (b *Bucket) makeSegments(ctx context.Context) error {
	b.mu.Lock()
	exist := b.segments.exist
	b.mu.Unlock()
	if exist {
		return nil
	}
	_, err := b.do(ctx, ncw.RequestOpts{
		Container: b.segmentsContainer(), Operation: http.MethodPut, Headers: ncw.Headers{"Content-Length": "0"},
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.segments.exist = true
	b.mu.Unlock()
	return nil
}
