package s3

import (
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/walherd/walherd/storage"
)

// Options describe a bucket and how to talk to it. Bucket is the one field
// that has no default. The names in brackets are the settings that the hints
// in errors speak of.
type Options struct {
	// Bucket and the Prefix below which all objects lie, without slashes
	// around it; see ParsePrefix [WALG_S3_PREFIX].
	Bucket string
	Prefix string

	// Endpoint is the service's URL; empty is AWS [AWS_ENDPOINT].
	Endpoint string
	// PathStyle puts the bucket into the path instead of the host name,
	// which most other stores want [AWS_S3_FORCE_PATH_STYLE].
	PathStyle bool
	// DualStack uses AWS's addresses for IPv4 and IPv6 [AWS_DUAL_STACK].
	DualStack bool
	// Region of the bucket. Empty is the one the SDK finds in its
	// environment, else that of the bucket as AWS tells it, else
	// (with an Endpoint of its own) us-east-1 [AWS_REGION].
	Region string
	// EndpointSource is a URL that answers with the host to connect to. It
	// is asked for each new connection; name, signature and certificate stay
	// the Endpoint's [S3_ENDPOINT_SOURCE]. EndpointPort is that host's port,
	// 0 is 443 [S3_ENDPOINT_PORT]; EndpointProtocol, http or https, replaces
	// the Endpoint's scheme [S3_ENDPOINT_PROTOCOL].
	EndpointSource   string
	EndpointPort     int
	EndpointProtocol string

	// AccessKeyID and SecretAccessKey; when one is empty the SDK's chain is
	// asked: environment, profile, web identity, instance
	// [AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN].
	AccessKeyID     string
	SecretAccessKey string
	SessionToken    string
	// RoleARN is assumed with these credentials [AWS_ROLE_ARN]. Leave it
	// empty where the chain assumes a role itself, by web identity.
	// RoleSessionName may be empty [AWS_ROLE_SESSION_NAME].
	RoleARN         string
	RoleSessionName string

	// YandexToken identifies each request by the IAM token of the service
	// account linked to this machine, in the header X-YaCloud-SubjectToken,
	// instead of by a signature; all credentials above are left aside. It
	// wants an https Endpoint [S3_USE_YC_SESSION_TOKEN]. YandexMetadata is
	// the URL that tells the token; empty is yciam.MetadataURL.
	YandexToken    bool
	YandexMetadata string

	// CAFile holds further certificate authorities, PEM
	// [S3_CA_CERT_FILE].
	CAFile string
	// Headers are added to every request and signed
	// [S3_REQUEST_ADDITIONAL_HEADERS].
	Headers map[string]string
	// NoExpectContinue sends bodies without asking first
	// [S3_DISABLE_100_CONTINUE].
	NoExpectContinue bool

	// StorageClass of new objects; empty or STANDARD sends none
	// [S3_STORAGE_CLASS].
	StorageClass string
	// SSE is the server's encryption: empty, AES256, aws:kms or
	// aws:kms:dsse [S3_SSE]. The kms ones need SSEKMSKeyID, AES256 forbids
	// it [S3_SSE_KMS_ID].
	SSE         string
	SSEKMSKeyID string
	// SSECKey is our own key of 32 bytes for encryption by the server,
	// sent with every request for an object, over https only [S3_SSE_C].
	SSECKey []byte
	// RetentionPeriod locks new objects for that long; 0 or less is no lock
	// [S3_RETENTION_PERIOD]. RetentionMode is GOVERNANCE (or empty) or
	// COMPLIANCE [S3_RETENTION_MODE].
	RetentionPeriod time.Duration
	RetentionMode   string

	// PartSize in bytes of an upload's first parts, and the size up to which
	// an object goes in one request; 5 MiB to 5 GiB, 0 is 20 MiB
	// [S3_MAX_PART_SIZE].
	PartSize int64
	// MaxParts is how many parts the store allows in an upload; 0 is 10,000.
	// Some allow 1,000. After a tenth of them the parts grow, so that 5 TiB
	// fit (or as much as parts of 5 GiB hold).
	MaxParts int
	// UploadConcurrency x PartSize is what all uploads of the Bucket
	// together hold in memory beyond one part for each running Put; 0 is 16
	// [WALG_UPLOAD_CONCURRENCY]. Memory grows as content arrives, so small
	// objects hold little.
	UploadConcurrency int

	// ReadParallel is how many ranges of one object are read at once; 0 or
	// 1 is a single stream. Each open body then holds up to ReadParallel x
	// ReadRange bytes. It helps where the store limits each connection. An
	// object of more than two ranges that is replaced while it is read then
	// ends with storage.ErrPermanent, where a single stream goes on with the
	// old one.
	ReadParallel int
	// ReadRange is the size of such a range; 0 is 8 MiB.
	ReadRange int64
	// Resumes is how often a broken body is continued, counted anew after
	// each MiB of progress, and only from the very same object; 0 is 10, -1
	// is never [S3_RANGE_MAX_RETRIES].
	Resumes int

	// MaxRetries of one request; 0 is 15, -1 is none [S3_MAX_RETRIES]. A
	// part of an upload can be sent again only here: what produced it has
	// moved on.
	MaxRetries int
	// MinRetryDelay and MaxRetryDelay bound the pauses before them, which
	// double each time and are randomized; 0 is 100 ms and 20 s.
	MinRetryDelay time.Duration
	MaxRetryDelay time.Duration
	// MinThrottleDelay and MaxThrottleDelay do so for a store that asks to
	// slow down; 0 is 500 ms and 5 min
	// [S3_MIN_THROTTLING_RETRY_DELAY, S3_MAX_THROTTLING_RETRY_DELAY].
	MinThrottleDelay time.Duration
	MaxThrottleDelay time.Duration
	// StallTimeout ends a try in which no byte moved for that long; 0 is a
	// minute. Completing an upload may take ten times as long.
	StallTimeout time.Duration

	// Waiting hears of a request that has failed several times and is tried
	// again: with the bounds above that can take minutes. nil is nobody. It
	// is called from the goroutine that waits, of any number at once.
	Waiting func(failed error)

	// Log gets a record at Debug for each try of each request, with its
	// headers and those of the answer, secrets hidden; nil is silence
	// [S3_LOG_LEVEL=DEVEL].
	Log *slog.Logger

	// Checksum the store is given with each upload; empty is CRC32C. It is
	// also what decides whether a whole read is checked.
	Checksum Checksum
	// ListV1 lists by the older call [S3_USE_LIST_OBJECTS_V1].
	ListV1 bool
	// DeleteBatch is how many objects a request deletes, 1 to 1000; 0 is
	// 1000. 1 uses the call for single objects [S3_DELETE_BATCH_SIZE].
	DeleteBatch int
	// Versioning tells whether the bucket keeps versions, which Delete then
	// removes all [S3_ENABLE_VERSIONING].
	Versioning Versioning
	// Validate lists once in Open, so that bad credentials show there
	// [S3_SKIP_VALIDATION=false].
	Validate bool
	// Capabilities of the store, as an earlier Probe found them. nil is not
	// known: then everything is used, and IfAbsent also looks for the object
	// first, in case the store ignores the condition.
	Capabilities *Capabilities
}

// Checksum names how the store is told what it must receive.
type Checksum string

const (
	// ChecksumCRC32C lets the store prove each part and the whole object,
	// keep the sum, and give it back for reads.
	ChecksumCRC32C Checksum = "crc32c"
	// ChecksumMD5 sends Content-MD5, which also old gateways know that fail
	// on the newer headers.
	ChecksumMD5 Checksum = "md5"
	// ChecksumNone sends none where the protocol does not demand one.
	ChecksumNone Checksum = "none"
)

// Versioning tells whether a bucket keeps versions.
type Versioning string

const (
	// VersioningAsk asks the bucket before the first Delete.
	VersioningAsk      Versioning = ""
	VersioningEnabled  Versioning = "enabled"
	VersioningDisabled Versioning = "disabled"
)

const (
	minPart = 5 << 20
	maxPart = 5 << 30
	// maxObject is the largest object of S3.
	maxObject = 5 << 40
)

// ParsePrefix takes "s3://bucket/path" apart. path may be empty and comes
// back without slashes around it.
func ParsePrefix(s string) (bucket, prefix string, err error) {
	rest, ok := strings.CutPrefix(s, "s3://")
	if !ok {
		return "", "", fmt.Errorf("parse S3 prefix %q: want s3://bucket/path", s)
	}
	bucket, prefix, _ = strings.Cut(rest, "/")
	prefix = strings.Trim(prefix, "/")
	if err := checkLocation(bucket, prefix); err != nil {
		return "", "", fmt.Errorf("parse S3 prefix %q: %w", s, err)
	}
	return bucket, prefix, nil
}

func checkLocation(bucket, prefix string) error {
	if bucket == "" {
		return errors.New("it names no bucket; want s3://bucket/path")
	}
	for _, r := range bucket {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_') {
			return fmt.Errorf("bucket name %q holds %q; want letters, digits, dots and hyphens", bucket, r)
		}
	}
	if len(bucket) < 3 || len(bucket) > 255 {
		return fmt.Errorf("bucket name %q has %d characters; want 3 to 63", bucket, len(bucket))
	}
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
	o.Prefix = strings.Trim(o.Prefix, "/")
	o.Headers = maps.Clone(o.Headers)
	for _, d := range []struct {
		field *int
		def   int
	}{
		{&o.MaxParts, 10_000}, {&o.UploadConcurrency, 16}, {&o.ReadParallel, 1}, {&o.Resumes, 10},
		{&o.MaxRetries, 15}, {&o.DeleteBatch, 1000}, {&o.EndpointPort, 443},
	} {
		if *d.field == 0 {
			*d.field = d.def
		}
	}
	for _, d := range []struct {
		field *time.Duration
		def   time.Duration
	}{
		{&o.MinRetryDelay, 100 * time.Millisecond}, {&o.MaxRetryDelay, 20 * time.Second},
		{&o.MinThrottleDelay, 500 * time.Millisecond}, {&o.MaxThrottleDelay, 5 * time.Minute},
		{&o.StallTimeout, time.Minute},
	} {
		if *d.field <= 0 {
			*d.field = d.def
		}
	}
	if o.PartSize == 0 {
		o.PartSize = 20 << 20
	}
	if o.ReadRange == 0 {
		o.ReadRange = 8 << 20
	}
	if o.Checksum == "" {
		o.Checksum = ChecksumCRC32C
	}
	if o.RetentionMode == "" {
		o.RetentionMode = "GOVERNANCE"
	}
	o.RetentionMode = strings.ToUpper(o.RetentionMode)
	if o.StorageClass == "STANDARD" {
		o.StorageClass = ""
	}
	if o.EndpointProtocol != "" && o.Endpoint != "" {
		if u, err := url.Parse(o.Endpoint); err == nil {
			u.Scheme = o.EndpointProtocol
			o.Endpoint = u.String()
		}
	}
	return o, o.check()
}

func (o *Options) check() error {
	if err := checkLocation(o.Bucket, o.Prefix); err != nil {
		return fmt.Errorf("%w; check WALG_S3_PREFIX", err)
	}
	if o.Endpoint != "" {
		u, err := url.Parse(o.Endpoint)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return fmt.Errorf("endpoint %q is no URL; set AWS_ENDPOINT to https://host[:port]", o.Endpoint)
		}
	}
	if o.EndpointSource != "" && o.Endpoint == "" {
		return errors.New("S3_ENDPOINT_SOURCE needs AWS_ENDPOINT, for the name and the certificate")
	}
	switch {
	case o.PartSize < minPart || o.PartSize > maxPart:
		return fmt.Errorf("part size %d: set S3_MAX_PART_SIZE to %d to %d bytes", o.PartSize, minPart, int64(maxPart))
	case o.MaxParts < 10 || o.MaxParts > 10_000:
		return fmt.Errorf("%d parts per upload: want 10 to 10000", o.MaxParts)
	case o.UploadConcurrency < 0:
		return fmt.Errorf("%d parts under way: set WALG_UPLOAD_CONCURRENCY to 1 or more", o.UploadConcurrency)
	case o.ReadRange < 1<<10 || o.ReadParallel < 0:
		return fmt.Errorf("%d ranges of %d bytes read at once: want no negative number, and 1 KiB or more", o.ReadParallel, o.ReadRange)
	case o.DeleteBatch < 1 || o.DeleteBatch > 1000:
		return fmt.Errorf("%d objects per delete request: set S3_DELETE_BATCH_SIZE to 1 to 1000", o.DeleteBatch)
	case o.MinRetryDelay > o.MaxRetryDelay:
		return fmt.Errorf("shortest retry delay %s is longer than the longest, %s", o.MinRetryDelay, o.MaxRetryDelay)
	case o.MinThrottleDelay > o.MaxThrottleDelay:
		return fmt.Errorf("S3_MIN_THROTTLING_RETRY_DELAY %s is longer than S3_MAX_THROTTLING_RETRY_DELAY %s", o.MinThrottleDelay, o.MaxThrottleDelay)
	}
	if !slices.Contains([]Checksum{ChecksumCRC32C, ChecksumMD5, ChecksumNone}, o.Checksum) {
		return fmt.Errorf("checksum %q: want crc32c, md5 or none", o.Checksum)
	}
	if !slices.Contains([]Versioning{VersioningAsk, VersioningEnabled, VersioningDisabled}, o.Versioning) {
		return fmt.Errorf("versioning %q: set S3_ENABLE_VERSIONING to enabled or disabled, or leave it out", o.Versioning)
	}
	if o.RetentionMode != "GOVERNANCE" && o.RetentionMode != "COMPLIANCE" {
		return fmt.Errorf("retention mode %q: set S3_RETENTION_MODE to GOVERNANCE or COMPLIANCE", o.RetentionMode)
	}
	if err := o.checkYandex(); err != nil {
		return err
	}
	return o.checkSSE()
}

// overTLS tells whether what is sent there is secret.
func overTLS(endpoint string) bool {
	u, err := url.Parse(endpoint)
	return err == nil && u.Scheme == "https"
}

func (o *Options) checkSSE() error {
	switch o.SSE {
	case "aws:kms", "aws:kms:dsse":
		if o.SSEKMSKeyID == "" {
			return fmt.Errorf("S3_SSE is %s: set S3_SSE_KMS_ID to the key", o.SSE)
		}
	case "", "AES256":
		if o.SSEKMSKeyID != "" {
			return fmt.Errorf("S3_SSE_KMS_ID is set: set S3_SSE to aws:kms too, not %q", o.SSE)
		}
	default:
		return fmt.Errorf("server-side encryption %q: set S3_SSE to AES256, aws:kms or aws:kms:dsse", o.SSE)
	}
	if o.SSECKey == nil {
		return nil
	}
	switch {
	case len(o.SSECKey) != 32:
		return fmt.Errorf("the key in S3_SSE_C has %d bytes, want 32", len(o.SSECKey))
	case o.SSE != "":
		return errors.New("S3_SSE and S3_SSE_C exclude one another: set one of them")
	case strings.HasPrefix(o.Endpoint, "http://"):
		return errors.New("S3_SSE_C sends the key with each request: set AWS_ENDPOINT to https")
	}
	return nil
}

// ssec are the three headers of SSE-C, or nil pointers.
type ssec struct{ algorithm, key, sum *string }

func (o *Options) ssec() ssec {
	if o.SSECKey == nil {
		return ssec{}
	}
	sum := md5.Sum(o.SSECKey)
	algorithm, key, digest := "AES256", base64.StdEncoding.EncodeToString(o.SSECKey), base64.StdEncoding.EncodeToString(sum[:])
	return ssec{&algorithm, &key, &digest}
}
