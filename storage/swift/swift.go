// Package swift is a storage.Bucket on OpenStack Swift and on the stores that
// speak its protocol. Objects are WAL-G's: the prefix, a slash, the name.
//
// An object goes in one streamed PUT; what is larger than the cluster takes in
// one (5 GiB) goes in segments in the container <container>_segments, and a
// manifest that is put last makes it visible. Reading follows manifests of
// either kind, whoever wrote them. The MD5 that Swift keeps proves each upload
// and each whole read of an object without segments.
//
// What can be sent again, since it is held in memory or was not begun, is
// tried again here; a decorator above repeats whole operations. A body that
// breaks is continued from the same version of the object, or fails.
//
// What a person must mend (a wrong password, a missing container, no right, a
// quota) fails with storage.ErrPermanent and names the setting.
//
// Swift itself is eventually consistent: right after a fault of a server a
// listing may lack a new object or show a removed one. Its "If-None-Match: *"
// is looked at when a PUT starts, not when it ends, so of two processes that
// put the same name with IfAbsent at the very same moment both may succeed, and
// the later one stays; within a process exactly one does.
package swift

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	ncw "github.com/ncw/swift/v2"

	"github.com/walherd/walherd/storage"
)

// maxName is Swift's limit of an object's name in bytes.
const maxName = 1024

// Bucket is a part of a Swift container. Make one with Open.
type Bucket struct {
	opt       Options
	root      string // "" or ends in a slash
	conn      *ncw.Connection
	transport *transport

	mu       sync.Mutex
	found    bool                     // the container was seen to exist
	info     *cluster                 // what the cluster told, nil is not asked
	segments segmentsKnown            // whether there may be segments
	claims   map[string]chan struct{} // names being put IfAbsent
}

var _ storage.Bucket = (*Bucket)(nil)

// Open makes a Bucket. It sends no request: a wrong password shows with the
// first use.
func Open(_ context.Context, opt Options) (*Bucket, error) {
	o, err := opt.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open Swift container: %w: %w", err, storage.ErrPermanent)
	}
	b := &Bucket{opt: o, claims: map[string]chan struct{}{}}
	if o.Prefix != "" {
		b.root = o.Prefix + "/"
	}
	if b.conn, b.transport, err = newConnection(&o); err != nil {
		return nil, fmt.Errorf("open Swift container %s: %w: %w", o.Container, err, storage.ErrPermanent)
	}
	return b, nil
}

// Close ends idle connections. Bodies that are open stay so.
func (b *Bucket) Close() error {
	b.transport.CloseIdleConnections()
	return nil
}

// Location is the container and prefix, as in WALG_SWIFT_PREFIX.
func (b *Bucket) Location() string {
	return strings.TrimSuffix("swift://"+b.opt.Container+"/"+b.root, "/")
}

// key is the full name of an object, or storage.ErrName.
func (b *Bucket) key(name string) (string, error) {
	if err := storage.CheckName(name); err != nil {
		return "", err
	}
	key := b.root + name
	if len(key) > maxName {
		return "", fmt.Errorf("%w %q: it has %d bytes with the prefix, Swift takes %d", storage.ErrName, key, len(key), maxName)
	}
	if !utf8.ValidString(key) {
		return "", fmt.Errorf("%w %q: it is no UTF-8", storage.ErrName, key)
	}
	return key, nil
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

// call sends one request to the account. The library gets a fresh token when
// the one in use has ended, if the body can be sent again.
func (b *Bucket) call(ctx context.Context, opts ncw.RequestOpts) (*http.Response, ncw.Headers, error) {
	url, err := b.conn.GetStorageUrl(ctx)
	if err != nil {
		return nil, nil, err
	}
	// Called with the connection's lock held.
	opts.OnReAuth = func() (string, error) { return b.conn.StorageUrl, nil }
	return b.conn.Call(ctx, url, opts)
}

// do is call without the answer's body.
func (b *Bucket) do(ctx context.Context, opts ncw.RequestOpts) (ncw.Headers, error) {
	// The library may return while its request runs on.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	opts.NoResponse = true
	_, h, err := b.call(ctx, opts)
	return h, err
}

// object is what the headers of an answer tell of an object.
type object struct {
	size     int64
	modified time.Time
	etag     string
	static   bool // a static large object
	dynamic  bool
	mark     string
}

func (b *Bucket) head(ctx context.Context, key string) (object, error) {
	return b.headIn(ctx, b.opt.Container, key)
}

func (b *Bucket) headIn(ctx context.Context, container, key string) (object, error) {
	h, err := b.do(ctx, ncw.RequestOpts{Container: container, ObjectName: key, Operation: http.MethodHead})
	if err != nil {
		return object{}, err
	}
	o := objectOf(h)
	if o.size, err = strconv.ParseInt(h["Content-Length"], 10, 64); err != nil || o.size < 0 {
		return object{}, fmt.Errorf("the store does not tell the object's length but %q", h["Content-Length"])
	}
	return o, nil
}

// objectOf reads all but the size.
func objectOf(h ncw.Headers) object {
	return object{
		modified: modified(h), etag: strings.Trim(h["Etag"], `"`), mark: h[markHeader],
		static: strings.EqualFold(h["X-Static-Large-Object"], "true"), dynamic: h["X-Object-Manifest"] != "",
	}
}

// modified is the time of the last PUT in full seconds. X-Timestamp is it;
// Last-Modified is rounded up by Swift, while listings are not, and an object
// must not differ by who is asked.
func modified(h ncw.Headers) time.Time {
	if at, err := strconv.ParseFloat(h["X-Timestamp"], 64); err == nil && at > 0 && at < math.MaxInt32*100 {
		return time.Unix(int64(at), 0).UTC()
	}
	at, err := http.ParseTime(h["Last-Modified"])
	if err != nil {
		return time.Time{}
	}
	return at.UTC()
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
	o, err := b.head(ctx, key)
	if err != nil {
		return storage.Info{}, b.missing(ctx, b.explain(ctx, "stat", key, err))
	}
	return storage.Info{Name: name, Size: o.size, Modified: o.modified}, nil
}

// missing gives a "does not exist" a second look, once in a Bucket's life: a
// missing container is answered like a missing object.
func (b *Bucket) missing(ctx context.Context, err error) error {
	if !errors.Is(err, storage.ErrNotExist) {
		return err
	}
	b.mu.Lock()
	found := b.found
	b.mu.Unlock()
	if found {
		return err
	}
	_, see := b.do(ctx, ncw.RequestOpts{Container: b.opt.Container, Operation: http.MethodHead})
	switch status(see) {
	case http.StatusNotFound:
		return b.noContainer("look for", see)
	case http.StatusForbidden, http.StatusUnauthorized:
		return err // who may read but not list is no less right about the object
	}
	if see != nil {
		return b.explain(ctx, "look for", "", see)
	}
	b.mu.Lock()
	b.found = true
	b.mu.Unlock()
	return err
}
