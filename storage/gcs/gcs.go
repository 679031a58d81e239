// Package gcs is a storage.Bucket on Google Cloud Storage. Object names are
// WAL-G's: the prefix, a slash, the name.
//
// It speaks the documented JSON API over net/http by itself. Google's library
// brings gRPC and some fifty modules into a binary that PostgreSQL starts for
// each WAL segment; what a Bucket needs of the API is seven requests. Credentials are
// golang.org/x/oauth2/google's: a key file, the default credentials of gcloud,
// the metadata server, workload identity federation.
//
// Each request is tried again here, with growing and randomized pauses, since
// the chunks of an upload cannot be produced a second time; a decorator above
// repeats whole operations. A body that breaks is continued from the same
// generation of the object, or fails; a whole read is checked against the
// CRC32C the store keeps.
//
// What fits in one chunk goes in one request, larger objects by a resumable
// session, chunk by chunk. The store is given the CRC32C of the whole and
// refuses other bytes. When an answer is lost, the session is asked how far it
// came. An upload that fails is cancelled; one whose process was killed is
// invisible, and the store forgets it after a week.
//
// What a person must mend (access denied, a missing bucket, a wrong key) fails
// with storage.ErrPermanent and names the setting. In a bucket that keeps
// versions, or deletes softly, Delete leaves what the bucket's own policy says.
package gcs

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/oauth2"

	"github.com/walherd/walherd/storage"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Bucket is a part of a bucket of Google Cloud Storage. Make one with Open.
type Bucket struct {
	opt      Options
	root     string // "" or ends in a slash
	endpoint string // scheme and host
	client   *http.Client
	tokens   oauth2.TokenSource // nil sends no Authorization
	mem      *memory
	page     int // names asked for in one listing request

	seen atomic.Bool // the bucket was seen to exist
}

var _ storage.Bucket = (*Bucket)(nil)

// Open makes a Bucket. It reads the credentials; when none are configured it
// asks whether this machine has a metadata server. It sends nothing to the
// store.
func Open(ctx context.Context, opt Options) (*Bucket, error) {
	o, err := opt.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open GCS bucket: %w: %w", err, storage.ErrPermanent)
	}
	b := &Bucket{opt: o, root: o.root(), page: 1000, mem: newMemory(o.UploadMemory, o.ChunkSize)}
	transport := o.Transport
	if transport == nil {
		transport = newTransport()
	}
	// Redirects are not followed: the API has none, and 308 is its word for
	// "go on with the upload".
	b.client = &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	creds, err := findCredentials(ctx, &o, transport)
	if err != nil {
		return nil, fmt.Errorf("open GCS bucket %s: %w: %w", o.Bucket, err, storage.ErrPermanent)
	}
	b.tokens, b.endpoint = creds.tokens, o.service(creds.universe)
	return b, nil
}

// Close ends idle connections. Bodies that are open stay so.
func (b *Bucket) Close() error {
	b.client.CloseIdleConnections()
	return nil
}

// Location is the bucket and prefix, as in WALG_GS_PREFIX.
func (b *Bucket) Location() string {
	return strings.TrimSuffix("gs://"+b.opt.Bucket+"/"+b.root, "/")
}

// key is the full name of an object, or storage.ErrName.
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

// checkKey refuses what the store cannot hold: see "Object naming" in its
// manual.
func checkKey(key string) error {
	switch {
	case len(key) > 1024:
		return fmt.Errorf("%w %q: it has %d bytes with the prefix, GCS takes 1024", storage.ErrName, key, len(key))
	case !utf8.ValidString(key):
		return fmt.Errorf("%w %q: it is no UTF-8", storage.ErrName, key)
	case strings.ContainsAny(key, "\r\n"):
		return fmt.Errorf("%w %q: it holds a line break", storage.ErrName, key)
	case strings.HasPrefix(key, ".well-known/acme-challenge/"):
		return fmt.Errorf("%w %q: GCS refuses names that start with .well-known/acme-challenge/", storage.ErrName, key)
	}
	return nil
}

// objectURL addresses an object, by query.
func (b *Bucket) objectURL(key string, query url.Values) string {
	u := b.endpoint + "/storage/v1/b/" + url.PathEscape(b.opt.Bucket) + "/o/" + url.PathEscape(key)
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	return u
}

// object is the part of the API's object resource that is used.
type object struct {
	Name       string            `json:"name"`
	Size       int64             `json:"size,string"`
	Generation int64             `json:"generation,string"`
	CRC32C     string            `json:"crc32c"`
	Created    time.Time         `json:"timeCreated"`
	Metadata   map[string]string `json:"metadata"`
}

const objectFields = "name,size,generation,crc32c,timeCreated,metadata"

// info describes the object. The time is that of its last Put ("updated"
// also moves when a lifecycle rule changes the storage class), in full
// seconds: the headers of a download know no more, and an object must not
// differ by who is asked.
func (o *object) info(name string) storage.Info {
	return storage.Info{Name: name, Size: o.Size, Modified: o.Created.Truncate(time.Second)}
}

// Stat implements storage.Bucket.
func (b *Bucket) Stat(ctx context.Context, name string) (storage.Info, error) {
	key, err := b.key(name)
	if err != nil {
		return storage.Info{}, err
	}
	o, err := b.stat(ctx, key, 0)
	if err != nil {
		return storage.Info{}, b.missing(ctx, b.explain(ctx, "stat", key, err))
	}
	return o.info(name), nil
}

// stat asks for an object; generation 0 is the live one.
func (b *Bucket) stat(ctx context.Context, key string, generation int64) (*object, error) {
	query := url.Values{"fields": {objectFields}}
	if generation != 0 {
		query.Set("generation", fmt.Sprint(generation))
	}
	o := new(object)
	_, err := b.do(ctx, &request{method: http.MethodGet, url: b.objectURL(key, query), secret: true, into: o})
	return o, err
}

// missing gives a "does not exist" a second look, once in a Bucket's life: a
// missing bucket is answered like a missing object.
func (b *Bucket) missing(ctx context.Context, err error) error {
	if !errors.Is(err, storage.ErrNotExist) || b.seen.Load() {
		return err
	}
	_, see := b.list(ctx, listQuery{prefix: b.root, limit: 1})
	if see == nil {
		b.seen.Store(true)
		return err
	}
	// Who may read but not list is no less right about the object.
	if status(see) == http.StatusNotFound {
		return b.explainList(ctx, b.root, see)
	}
	return err
}
