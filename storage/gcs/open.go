package gcs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/pieces"
)

// Open implements storage.Bucket. The body is a storage.Describer.
//
// A body that does not have the CRC32C kept by the store ends with
// storage.ErrPermanent instead of io.EOF: its bytes are delivered already, so
// no continuation can mend them. So does a continuation of an object that was
// replaced or deleted meanwhile.
func (b *Bucket) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	key, err := b.key(name)
	if err != nil {
		return nil, err
	}
	if err := rng.Check(); err != nil {
		return nil, fmt.Errorf("open %s: %w", b.where(key), err)
	}
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	v := version{b: b, key: key, tries: b.newTries()}
	got, err := v.open(ctx, rng.Offset, rng.Length)
	if err == nil {
		var left int64
		if left, err = rng.Cut(got.size); err == nil {
			v.generation, v.size = got.generation, got.size
			body := pieces.BodyOptions{
				Ctx: outer, Cancel: cancel, Where: b.where(key), Left: left,
				Info:   storage.Info{Name: name, Size: got.size, Modified: got.modified.Truncate(time.Second)},
				Known:  got.dated,
				Source: pieces.NewStream(ctx, pieces.StreamOptions{At: rng.Offset, Left: left, Conn: got.conn, Open: v.resume, Pace: v.tries}),
			}
			if got.whole && got.summed {
				body.Sum = &pieces.Sum{Name: "CRC32C", Hash: crc32.New(castagnoli), Want: binary.BigEndian.AppendUint32(nil, got.crc)}
			}
			return pieces.NewBody(body), nil
		}
		got.conn.Close()
	}
	cancel()
	if errors.Is(err, storage.ErrRange) {
		return nil, fmt.Errorf("open %s: %w", b.where(key), err)
	}
	return nil, b.missing(outer, b.explain(outer, "open", key, err))
}

// version is one generation of an object.
type version struct {
	b          *Bucket
	key        string
	generation int64 // 0 before it is known
	size       int64 // of the whole object
	tries      *tries
}

// media is what a download told at its start.
type media struct {
	conn       *conn
	size       int64 // of the whole object
	generation int64
	whole      bool // all of it was asked for
	crc        uint32
	summed     bool // crc is known
	modified   time.Time
	dated      bool // modified is known
}

// open gets length bytes from at on, with retries; 0 is to the end.
func (v version) open(ctx context.Context, at, length int64) (media, error) {
	limited, cancel := v.b.limited(ctx)
	defer cancel()
	for {
		m, err := v.get(ctx, at, length)
		if err == nil {
			return m, nil
		}
		if err := v.tries.Again(limited, err); err != nil {
			return media{}, err
		}
	}
}

func (v version) get(ctx context.Context, at, length int64) (media, error) {
	query := url.Values{"alt": {"media"}}
	if v.generation != 0 {
		query.Set("generation", strconv.FormatInt(v.generation, 10))
	}
	// Else the store would unpack an object that somebody labelled as gzip,
	// and net/http would too.
	header := http.Header{"Accept-Encoding": {"gzip"}}
	part := at > 0 || length > 0
	switch {
	case length > 0 && length <= math.MaxInt64-at:
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", at, at+length-1))
	case part:
		header.Set("Range", fmt.Sprintf("bytes=%d-", at))
	}
	res, c, err := v.b.send(ctx, &request{method: http.MethodGet, url: v.b.objectURL(v.key, query), header: header, secret: true})
	if err != nil {
		return media{}, err
	}
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusPartialContent {
		text, _ := io.ReadAll(io.LimitReader(c, 4<<10)) // a reason that breaks off is still one
		c.Close()
		if res.StatusCode == http.StatusRequestedRangeNotSatisfiable {
			return v.behind(ctx, at)
		}
		return media{}, newAPIError(res, text)
	}
	m := media{conn: c, whole: !part}
	if err := m.read(res, at); err != nil {
		c.Close()
		return media{}, err
	}
	return m, nil
}

// read takes what the headers tell and holds it against what was asked for.
func (m *media) read(res *http.Response, at int64) error {
	m.crc, m.summed = hashCRC(res.Header.Values("X-Goog-Hash"))
	var err error
	if m.generation, err = strconv.ParseInt(res.Header.Get("X-Goog-Generation"), 10, 64); err != nil {
		return fmt.Errorf("the store tells no generation of the object: %w: is there a proxy that drops headers?", storage.ErrPermanent)
	}
	// Last-Modified is that of the metadata: after a change of it, it is not
	// the time of the Put any more.
	if res.Header.Get("X-Goog-Metageneration") == "1" {
		m.modified, err = http.ParseTime(res.Header.Get("Last-Modified"))
		m.dated = err == nil
	}
	if m.whole {
		if m.size = res.ContentLength; m.size < 0 {
			return errors.New("the store does not tell the object's length")
		}
		return nil
	}
	var from, to int64
	told := res.Header.Get("Content-Range")
	if told == "" {
		return fmt.Errorf("the store ignores that only a range was asked for: %w: is there a proxy that drops the Range header?", storage.ErrPermanent)
	}
	if _, err := fmt.Sscanf(told, "bytes %d-%d/%d", &from, &to, &m.size); err != nil {
		return fmt.Errorf("the store answers with the content range %q", told)
	}
	if from != at || to < from || to >= m.size || res.ContentLength >= 0 && res.ContentLength != to-from+1 {
		return fmt.Errorf("asked for the bytes from %d on, the store answers with range %q and %d bytes", at, told, res.ContentLength)
	}
	return nil
}

// behind answers a range that starts at the object's end, which the store
// refuses, or behind it.
func (v version) behind(ctx context.Context, at int64) (media, error) {
	o, err := v.b.stat(ctx, v.key, v.generation)
	if err != nil {
		return media{}, err
	}
	if at < o.Size {
		return media{}, errors.New("the object grew while it was opened")
	}
	c := newConn(func(error) {}, v.b.opt.StallTimeout)
	c.watch.Stop()
	c.rc = http.NoBody
	return media{conn: c, size: o.Size, generation: o.Generation, modified: o.Created, dated: true}, nil
}

var errReplaced = fmt.Errorf("the object was replaced or deleted while it was read: %w", storage.ErrPermanent)

// resume opens another connection to the same generation.
func (v version) resume(ctx context.Context, at, left int64) (io.ReadCloser, error) {
	m, err := v.open(ctx, at, left)
	if status(err) == http.StatusNotFound {
		return nil, pieces.Stop(errReplaced)
	}
	if err != nil {
		// open has tried often enough.
		if way := wayOut(err); way != "" {
			err = fmt.Errorf("%w: %s: %w", err, way, storage.ErrPermanent)
		}
		return nil, pieces.Stop(err)
	}
	if m.generation != v.generation || m.size != v.size {
		m.conn.Close()
		return nil, pieces.Stop(errReplaced)
	}
	return m.conn, nil
}
