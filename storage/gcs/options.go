package gcs

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/walherd/walherd/storage"
)

// Options describe a bucket and how to talk to it. Bucket is the one field
// that has no default. The names in brackets are the settings that the hints
// in errors speak of.
type Options struct {
	// Bucket and the Prefix below which all objects lie; see ParsePrefix
	// [WALG_GS_PREFIX].
	Bucket string
	Prefix string
	// KeepSlashes leaves the Prefix as it is. By default slashes around it
	// are removed and repeated ones become one; a prefix with double slashes
	// that an old WAL-G wrote is only found with KeepSlashes
	// [GCS_NORMALIZE_PREFIX=false].
	KeepSlashes bool

	// CredentialsFile is a service account's key, or what gcloud or workload
	// identity federation wrote; empty looks where Google's libraries do:
	// the environment variable of that name, gcloud's default credentials,
	// the metadata server [GOOGLE_APPLICATION_CREDENTIALS].
	CredentialsFile string
	// TokenSource replaces all of that if not nil.
	TokenSource oauth2.TokenSource
	// EmulatorHost is a server without authentication, as host:port (for
	// http) or URL, read as Google's libraries do: a path is ignored
	// [STORAGE_EMULATOR_HOST].
	EmulatorHost string
	// Endpoint is the service's URL, for private access to it; empty is
	// https://storage.googleapis.com, or the host of the credentials' own
	// universe.
	Endpoint string
	// Transport carries the requests, also those for tokens; nil is one of
	// our own.
	Transport http.RoundTripper

	// EncryptionKey is our own AES-256 key of 32 bytes, which the store uses
	// and forgets; it is sent with each request for an object, over https
	// only [GCS_ENCRYPTION_KEY].
	EncryptionKey []byte

	// ChunkSize in bytes is the most that one upload request carries, and
	// the size up to which an object goes in one request; at least 256 KiB,
	// rounded up to a multiple of it; 0 is 50 MiB [GCS_MAX_CHUNK_SIZE].
	ChunkSize int64
	// UploadMemory is what all uploads of the Bucket together hold in memory
	// beyond 2 MiB for each running Put; 0 is four chunks. With many
	// uploads at once the chunks become smaller, down to 1 MiB.
	UploadMemory int64
	// DeleteParallel is how many objects are deleted at once; 0 is 16. 1
	// keeps the order of Delete's names throughout.
	DeleteParallel int

	// Timeout ends a request with all its retries, from the first try on: a
	// chunk of an upload, a page of a listing, the opening or continuing of
	// a body; 0 is an hour [GCS_CONTEXT_TIMEOUT].
	Timeout time.Duration
	// StallTimeout ends a try in which no byte moved for that long; 0 is a
	// minute.
	StallTimeout time.Duration
	// MaxRetries of one request, counted anew when an upload or a body got
	// further; 0 is 16, -1 is none [GCS_MAX_RETRIES].
	MaxRetries int
	// MinRetryDelay and MaxRetryDelay bound the pauses before them, which
	// double each time and are randomized by half; 0 is 200 ms and 30 s. A
	// Retry-After of the store makes a pause longer.
	MinRetryDelay time.Duration
	MaxRetryDelay time.Duration
}

const (
	// quantum is what all chunks but the last are multiples of.
	quantum      = 256 << 10
	maxChunk     = 1 << 30
	defaultChunk = 50 << 20
)

// ParsePrefix takes "gs://bucket/path" apart. path may be empty; its slashes
// stay for Options.KeepSlashes to judge.
func ParsePrefix(s string) (bucket, prefix string, err error) {
	rest, ok := strings.CutPrefix(s, "gs://")
	if !ok {
		return "", "", fmt.Errorf("parse GCS prefix %q: want gs://bucket/path", s)
	}
	bucket, prefix, _ = strings.Cut(rest, "/")
	if err := checkBucket(bucket); err != nil {
		return "", "", fmt.Errorf("parse GCS prefix %q: %w", s, err)
	}
	if err := checkPrefix(normalize(prefix)); err != nil {
		return "", "", fmt.Errorf("parse GCS prefix %q: %w", s, err)
	}
	return bucket, prefix, nil
}

func normalize(prefix string) string {
	return strings.Join(strings.FieldsFunc(prefix, func(r rune) bool { return r == '/' }), "/")
}

func checkBucket(bucket string) error {
	if bucket == "" {
		return errors.New("it names no bucket; want gs://bucket/path")
	}
	for _, r := range bucket {
		if !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_') {
			return fmt.Errorf("bucket name %q holds %q; want small letters, digits, dots, hyphens and underscores", bucket, r)
		}
	}
	if len(bucket) < 3 || len(bucket) > 222 {
		return fmt.Errorf("bucket name %q has %d characters; want 3 to 63, or 222 with dots", bucket, len(bucket))
	}
	return nil
}

func checkPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	if err := storage.CheckName(prefix); err != nil {
		return err
	}
	return checkKey(prefix)
}

// withDefaults is o with its zero values replaced, or the reason it cannot be
// used.
func (o Options) withDefaults() (Options, error) {
	for _, d := range []struct {
		field *time.Duration
		def   time.Duration
	}{
		{&o.Timeout, time.Hour}, {&o.StallTimeout, time.Minute},
		{&o.MinRetryDelay, 200 * time.Millisecond}, {&o.MaxRetryDelay, 30 * time.Second},
	} {
		if *d.field == 0 {
			*d.field = d.def
		}
	}
	if o.ChunkSize == 0 {
		o.ChunkSize = defaultChunk
	}
	if o.MaxRetries == 0 {
		o.MaxRetries = 16
	}
	if o.DeleteParallel == 0 {
		o.DeleteParallel = 16
	}
	if err := o.check(); err != nil {
		return o, err
	}
	o.ChunkSize = (o.ChunkSize + quantum - 1) / quantum * quantum
	if o.UploadMemory == 0 {
		o.UploadMemory = 4 * o.ChunkSize
	}
	return o, nil
}

func (o *Options) check() error {
	if err := checkBucket(o.Bucket); err != nil {
		return fmt.Errorf("%w; check WALG_GS_PREFIX", err)
	}
	prefix := o.Prefix
	if o.KeepSlashes {
		if err := checkKey(prefix); err != nil {
			return fmt.Errorf("%w; check WALG_GS_PREFIX", err)
		}
	} else if err := checkPrefix(normalize(prefix)); err != nil {
		return fmt.Errorf("%w; check WALG_GS_PREFIX", err)
	}
	for name, address := range map[string]string{"STORAGE_EMULATOR_HOST to host:port or": o.emulator(), "the endpoint to": o.Endpoint} {
		if address == "" {
			continue
		}
		u, err := url.Parse(address)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return fmt.Errorf("endpoint %q is no URL; set %s https://host[:port]", address, name)
		}
		if o.EncryptionKey != nil && u.Scheme == "http" {
			return fmt.Errorf("GCS_ENCRYPTION_KEY is sent with each request: set %s https://host[:port], not %s", name, address)
		}
	}
	switch {
	case o.ChunkSize < quantum || o.ChunkSize > maxChunk:
		return fmt.Errorf("chunk size %d: set GCS_MAX_CHUNK_SIZE to %d to %d bytes", o.ChunkSize, quantum, maxChunk)
	case o.UploadMemory < 0:
		return fmt.Errorf("%d bytes of memory for uploads: want no negative number", o.UploadMemory)
	case o.EncryptionKey != nil && len(o.EncryptionKey) != 32:
		return fmt.Errorf("the key in GCS_ENCRYPTION_KEY has %d bytes, want 32 (in base64)", len(o.EncryptionKey))
	case o.Timeout < 0 || o.StallTimeout < 0:
		return fmt.Errorf("timeout %s: set GCS_CONTEXT_TIMEOUT to 1 or more seconds", min(o.Timeout, o.StallTimeout))
	case o.MinRetryDelay < 0 || o.MinRetryDelay > o.MaxRetryDelay:
		return fmt.Errorf("shortest retry delay %s, longest %s: want the first to be shorter", o.MinRetryDelay, o.MaxRetryDelay)
	case o.DeleteParallel < 0:
		return fmt.Errorf("%d objects deleted at once: want 1 or more", o.DeleteParallel)
	}
	return nil
}

// root is what the names of all objects start with.
func (o *Options) root() string {
	root := o.Prefix
	if !o.KeepSlashes {
		root = normalize(root)
	}
	if root != "" && !strings.HasSuffix(root, "/") {
		root += "/"
	}
	return root
}

// emulator is the URL of EmulatorHost.
func (o *Options) emulator() string {
	if o.EmulatorHost == "" || strings.Contains(o.EmulatorHost, "://") {
		return o.EmulatorHost
	}
	return "http://" + o.EmulatorHost
}

// service is the scheme and host that requests go to.
func (o *Options) service(universe string) string {
	for _, address := range []string{o.emulator(), o.Endpoint} {
		if u, err := url.Parse(address); err == nil && u.Host != "" {
			return u.Scheme + "://" + u.Host
		}
	}
	return "https://storage." + universe
}
