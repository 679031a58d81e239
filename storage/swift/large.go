package swift

import (
	"bufio"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	ncw "github.com/ncw/swift/v2"

	"github.com/walherd/walherd/storage"
)

// segment is an entry of a manifest as it is put: Swift's static large
// objects. A manifest that is read names the same things name, hash and bytes.
type segment struct {
	Path string `json:"path"` // "container/object"
	ETag string `json:"etag"`
	Size int64  `json:"size_bytes"`
}

// large puts content in segments, one after the other, and the manifest last.
// When it fails the segments are removed, unless the store may yet show the
// manifest: then they stay, for an object without its segments would be worse
// than segments without an object.
func (p *put) large(ctx context.Context, r io.Reader) (err error) {
	info, err := p.b.cluster(ctx)
	if err != nil {
		return err
	}
	if info.SLO == nil {
		return fmt.Errorf("the cluster's /info tells of no static large objects, so that an object may have %d bytes at most: lower WALG_TAR_SIZE_THRESHOLD: %w",
			p.b.opt.MaxObject, storage.ErrPermanent)
	}
	if err := p.b.makeSegments(ctx); err != nil {
		if status(err) == http.StatusForbidden {
			return fmt.Errorf("make the container %s: create it, or %s: %w: %w", p.b.segmentsContainer(), wayOut(err), err, storage.ErrPermanent)
		}
		return err
	}
	most, size := info.SLO.MaxSegments, max(p.b.opt.SegmentSize, info.SLO.MinSize)
	if most <= 0 {
		most = 1000
	}
	if largest := info.Swift.MaxFileSize; largest > 0 {
		size = min(size, largest)
	}
	var list []segment
	keep := false
	defer func() {
		if err != nil && !keep {
			p.b.forget(ctx, list)
		}
	}()
	src, total := bufio.NewReaderSize(r, 64<<10), int64(0)
	for {
		if _, err := src.Peek(1); err == io.EOF {
			break
		} else if err != nil {
			return &readError{err}
		}
		if len(list) == most {
			return fmt.Errorf("the content has more than %d segments of %d bytes: lower WALG_TAR_SIZE_THRESHOLD: %w", most, size, storage.ErrPermanent)
		}
		name := segmentName(p.key, p.mark, len(list)+1)
		list = append(list, segment{Path: p.b.segmentsContainer() + "/" + name})
		if err := p.sendSegment(ctx, name, io.LimitReader(src, size)); err != nil {
			return err
		}
		last := &list[len(list)-1]
		last.ETag, last.Size = p.etag, p.size
		total += p.size
	}
	keep, err = p.manifest(ctx, list)
	p.size = total
	return err
}

// segmentName tells the object, so that what a killed process left can be
// found by it.
func segmentName(key, mark string, n int) string {
	tail := fmt.Sprintf("/%s/%08d", mark, n)
	if len(key) > maxName-len(tail) {
		key = strings.ToValidUTF8(key[:maxName-len(tail)], "")
	}
	return key + tail
}

func (p *put) sendSegment(ctx context.Context, name string, r io.Reader) error {
	one := &put{b: p.b, mark: p.mark}
	u := newUpload(ctx, nil, r)
	_, err := one.send(ctx, ncw.RequestOpts{
		Container: p.b.segmentsContainer(), ObjectName: name,
		Headers: ncw.Headers{"Content-Type": "application/octet-stream", markHeader: p.mark},
	}, u)
	p.size, p.etag = one.size, one.etag
	return err
}

// manifest makes the object out of its segments. It tells whether they must
// be kept although it fails: the object may be there.
func (p *put) manifest(ctx context.Context, list []segment) (keep bool, err error) {
	body, err := json.Marshal(list)
	if err != nil {
		return false, err
	}
	sum := md5.New()
	for _, s := range list {
		io.WriteString(sum, s.ETag)
	}
	h := ncw.Headers{
		"Content-Type": "application/octet-stream", markHeader: p.mark,
		"Content-Length": strconv.Itoa(len(body)), "Etag": hex.EncodeToString(sum.Sum(nil)),
	}
	if p.ifAbsent {
		h["If-None-Match"] = "*"
		if err := p.b.claim(ctx, p.key); err != nil {
			return false, err
		}
		defer p.b.unclaim(p.key)
	}
	return p.send(ctx, ncw.RequestOpts{
		Container: p.b.opt.Container, ObjectName: p.key, Headers: h,
		Parameters: url.Values{"multipart-manifest": {"put"}},
	}, newUpload(ctx, body, nil))
}

// oldSegments are those of the object that this Put replaces.
func (p *put) oldSegments(ctx context.Context) ([]segment, error) {
	if p.ifAbsent {
		return nil, nil
	}
	if have, err := p.b.haveSegments(ctx); err != nil || !have {
		return nil, err
	}
	o, err := p.b.head(ctx, p.key)
	if status(err) == http.StatusNotFound {
		return nil, nil
	}
	if err != nil || !o.static {
		return nil, err
	}
	list, err := p.b.segmentsOf(ctx, p.key)
	if status(err) == http.StatusNotFound {
		return nil, nil // removed since
	}
	return list, err
}

// segmentsOf reads the manifest of a static large object. Only what lies in
// our container of segments belongs to the object alone.
func (b *Bucket) segmentsOf(ctx context.Context, key string) ([]segment, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, _, err := b.call(ctx, ncw.RequestOpts{
		Container: b.opt.Container, ObjectName: key, Operation: http.MethodGet,
		Parameters: url.Values{"multipart-manifest": {"get"}},
	})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var told []struct {
		Name string `json:"name"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&told); err != nil {
		return nil, fmt.Errorf("read the manifest: %w", err)
	}
	var list []segment
	for _, t := range told {
		if path := strings.TrimPrefix(t.Name, "/"); strings.HasPrefix(path, b.segmentsContainer()+"/") {
			list = append(list, segment{Path: path})
		}
	}
	return list, nil
}

// forget removes segments that no object needs. What stays costs space and is
// nobody's: that is no failure of what was done.
func (b *Bucket) forget(ctx context.Context, list []segment) {
	if len(list) == 0 {
		return
	}
	ctx, cancel := cleanup(ctx)
	defer cancel()
	b.removeSegments(ctx, list)
}

func (b *Bucket) removeSegments(ctx context.Context, list []segment) error {
	var failed error
	for _, s := range list {
		name := strings.TrimPrefix(s.Path, b.segmentsContainer()+"/")
		_, err := b.do(ctx, ncw.RequestOpts{Container: b.segmentsContainer(), ObjectName: name, Operation: http.MethodDelete})
		if err != nil && status(err) != http.StatusNotFound {
			failed = err
		}
	}
	return failed
}
