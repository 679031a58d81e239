package swift

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	ncw "github.com/ncw/swift/v2"

	"github.com/walherd/walherd/storage"
)

// Options describe a container and how to talk to it. Container and Settings
// have no default.
type Options struct {
	// Container, which must exist, and the Prefix below which all objects
	// lie, without slashes around it; see ParsePrefix [WALG_SWIFT_PREFIX].
	Container string
	Prefix    string

	// Settings are the OpenStack variables by name: OS_AUTH_URL,
	// OS_USERNAME, OS_PASSWORD and the others of SettingNames. What is
	// empty or not among them has no effect.
	Settings map[string]string

	// BufferSize in bytes is what one Put holds in memory: content up to
	// it is proven by the store before it is visible, and sent again when
	// the store fails. 0 is 1 MiB.
	BufferSize int
	// MaxObject in bytes is how much content goes in one PUT, 1 byte to
	// 5 GiB; 0 is 5 GiB.
	MaxObject int64
	// SegmentSize in bytes of what is larger; 0 is 4 GiB (or MaxObject if
	// that is less). Segments are streamed. A cluster takes 1,000 of them
	// in an object by default.
	SegmentSize int64
	// Segments puts content that does not fit BufferSize and whose length
	// cannot be known (see Bucket.Put) in segments at once. Without it such
	// content is taken for no larger than MaxObject. Set it where objects
	// may be larger, that is where tars may [WALG_TAR_SIZE_THRESHOLD].
	Segments bool

	// Retries is how often a request is sent again that failed for the
	// moment; 0 is GOSWIFT_RETRIES of Settings or else 5, negative is never.
	Retries int
	// RetryDelay is the pause before the first of them; it doubles, up to
	// 10 s, and is randomized. 0 is 200 ms.
	RetryDelay time.Duration
	// StallTimeout ends a request in which no byte moves for that long,
	// the time that the caller's reader or a Put's content takes not
	// counted; 0 is GOSWIFT_TIMEOUT of Settings or else 60 s.
	StallTimeout time.Duration
	// ConnectTimeout limits the making of a connection; 0 is
	// GOSWIFT_CONNECT_TIMEOUT of Settings or else 10 s.
	ConnectTimeout time.Duration
	// DeleteBatch is how many names go in one request where the cluster
	// deletes in bulk; 0 is 1,000, 1 is never in bulk.
	DeleteBatch int
}

// ParsePrefix splits swift://container/path, as WALG_SWIFT_PREFIX has it.
func ParsePrefix(s string) (container, prefix string, err error) {
	rest, ok := strings.CutPrefix(s, "swift://")
	if !ok {
		return "", "", fmt.Errorf("parse Swift prefix %q: want swift://container/path", s)
	}
	container, prefix, _ = strings.Cut(rest, "/")
	prefix = strings.Trim(prefix, "/")
	if err := checkLocation(container, prefix); err != nil {
		return "", "", fmt.Errorf("parse Swift prefix %q: %w", s, err)
	}
	return container, prefix, nil
}

func checkLocation(container, prefix string) error {
	switch {
	case container == "":
		return errors.New("it names no container; want swift://container/path")
	case strings.ContainsAny(container, "/\x00") || container == "." || container == "..":
		return fmt.Errorf("container name %q: want no slash, no zero byte, no %q or %q", container, ".", "..")
	case !utf8.ValidString(container + prefix):
		return errors.New("it is no UTF-8")
	case len(container) > 256-len(segmentsSuffix):
		return fmt.Errorf("container name of %d bytes; want at most %d", len(container), 256-len(segmentsSuffix))
	}
	if prefix == "" {
		return nil
	}
	return storage.CheckName(prefix)
}

// SettingNames are the variables that Options.Settings may hold: those that
// the library's rc files know, in its order of precedence, and OS_CACERT
// (a PEM file of further certificate authorities) and OS_IDENTITY_API_VERSION
// (1, 2 or 3, where OS_AUTH_URL does not tell) of OpenStack's own clients.
func SettingNames() []string {
	var s settings
	names := []string{caFile, "GOSWIFT_RETRIES", "GOSWIFT_TIMEOUT", "GOSWIFT_CONNECT_TIMEOUT"}
	for _, field := range s.fields(&ncw.Connection{}) {
		names = append(names, field.name)
	}
	return names
}

const caFile = "OS_CACERT"

type settings map[string]string

type settingField struct {
	name string
	set  func(value string) error
}

// fields ties variables to the library's fields. It is its ApplyEnvironment,
// but for the process environment, which is not ours to read.
func (s settings) fields(c *ncw.Connection) []settingField {
	text := func(name string, to *string) settingField {
		return settingField{name, func(v string) error {
			if *to == "" { // of two names for a field the first one wins
				*to = v
			}
			return nil
		}}
	}
	version := func(name string) settingField {
		return settingField{name, func(v string) error {
			if c.AuthVersion != 0 {
				return nil
			}
			n, err := strconv.Atoi(strings.TrimSuffix(v, ".0"))
			if err != nil || n < 1 || n > 3 {
				return fmt.Errorf("%s is %q: set it to 1, 2 or 3", name, v)
			}
			c.AuthVersion = n
			return nil
		}}
	}
	return []settingField{
		text("OS_USER_DOMAIN_NAME", &c.Domain),
		text("OS_USER_DOMAIN_ID", &c.DomainId),
		text("OS_USERNAME", &c.UserName),
		text("OS_USER_ID", &c.UserId),
		text("OS_PASSWORD", &c.ApiKey),
		text("OS_APPLICATION_CREDENTIAL_ID", &c.ApplicationCredentialId),
		text("OS_APPLICATION_CREDENTIAL_NAME", &c.ApplicationCredentialName),
		text("OS_APPLICATION_CREDENTIAL_SECRET", &c.ApplicationCredentialSecret),
		text("OS_AUTH_URL", &c.AuthUrl),
		text("GOSWIFT_USER_AGENT", &c.UserAgent),
		text("OS_REGION_NAME", &c.Region),
		version("ST_AUTH_VERSION"),
		version("OS_IDENTITY_API_VERSION"),
		{"GOSWIFT_INTERNAL", func(v string) (err error) {
			if c.Internal, err = strconv.ParseBool(v); err != nil {
				return fmt.Errorf("GOSWIFT_INTERNAL is %q: set it to true or false", v)
			}
			return nil
		}},
		text("OS_TENANT_NAME", &c.Tenant),
		text("OS_PROJECT_NAME", &c.Tenant),
		text("OS_TENANT_ID", &c.TenantId),
		text("OS_PROJECT_ID", &c.TenantId),
		{"OS_ENDPOINT_TYPE", func(v string) error {
			// rc files also write publicURL.
			switch kind := ncw.EndpointType(strings.TrimSuffix(v, "URL")); kind {
			case ncw.EndpointTypePublic, ncw.EndpointTypeInternal, ncw.EndpointTypeAdmin:
				c.EndpointType = kind
				return nil
			}
			return fmt.Errorf("OS_ENDPOINT_TYPE is %q: set it to public, internal or admin", v)
		}},
		text("OS_PROJECT_DOMAIN_NAME", &c.TenantDomain),
		text("OS_PROJECT_DOMAIN_ID", &c.TenantDomainId),
		text("OS_TRUST_ID", &c.TrustId),
		text("OS_STORAGE_URL", &c.StorageUrl),
		text("OS_AUTH_TOKEN", &c.AuthToken),
		text("ST_KEY", &c.ApiKey),
		text("ST_USER", &c.UserName),
		text("ST_AUTH", &c.AuthUrl),
	}
}

// apply fills c, and tells early what could never work.
func (s settings) apply(c *ncw.Connection) error {
	for _, field := range s.fields(c) {
		if v := s[field.name]; v != "" {
			if err := field.set(v); err != nil {
				return err
			}
		}
	}
	if c.StorageUrl != "" && c.AuthToken != "" {
		return nil
	}
	if c.AuthUrl == "" {
		return errors.New("no address of the identity service: set OS_AUTH_URL (or OS_STORAGE_URL and OS_AUTH_TOKEN)")
	}
	if !strings.HasPrefix(c.AuthUrl, "http://") && !strings.HasPrefix(c.AuthUrl, "https://") {
		return fmt.Errorf("OS_AUTH_URL is %q: want a URL that starts with https://", c.AuthUrl)
	}
	// The library looks for the version in the URL.
	known := strings.Contains(c.AuthUrl, "v1") || strings.Contains(c.AuthUrl, "v2") || strings.Contains(c.AuthUrl, "v3")
	if c.AuthVersion == 0 && !known {
		return fmt.Errorf("OS_AUTH_URL %s tells no version: add /v3 to it, or set ST_AUTH_VERSION to 1, 2 or 3", c.AuthUrl)
	}
	if c.UserName == "" && c.UserId == "" && c.ApplicationCredentialId == "" && c.ApplicationCredentialName == "" && c.ApiKey == "" {
		return errors.New("no user: set OS_USERNAME and OS_PASSWORD (or OS_APPLICATION_CREDENTIAL_ID and OS_APPLICATION_CREDENTIAL_SECRET)")
	}
	return nil
}

func (s settings) duration(name string, to *time.Duration, otherwise time.Duration) error {
	if *to == 0 && s[name] != "" {
		d, err := time.ParseDuration(s[name])
		if err != nil || d <= 0 {
			return fmt.Errorf("%s is %q: want a duration like 60s", name, s[name])
		}
		*to = d
	}
	if *to == 0 {
		*to = otherwise
	}
	return nil
}

func (o Options) withDefaults() (Options, error) {
	o.Prefix = strings.Trim(o.Prefix, "/")
	if err := checkLocation(o.Container, o.Prefix); err != nil {
		return o, err
	}
	const largest = 5 << 30
	if o.MaxObject == 0 {
		o.MaxObject = largest
	}
	if o.MaxObject < 1 || o.MaxObject > largest {
		return o, fmt.Errorf("largest object in one request of %d bytes; want 1 to %d", o.MaxObject, int64(largest))
	}
	if o.SegmentSize == 0 {
		o.SegmentSize = min(4<<30, o.MaxObject)
	}
	if o.SegmentSize < 1 || o.SegmentSize > largest {
		return o, fmt.Errorf("segment size of %d bytes; want 1 to %d", o.SegmentSize, int64(largest))
	}
	if o.BufferSize == 0 {
		o.BufferSize = int(min(1<<20, o.MaxObject))
	}
	if o.BufferSize < 1 || int64(o.BufferSize) > o.MaxObject {
		return o, fmt.Errorf("buffer of %d bytes; want 1 to %d", o.BufferSize, o.MaxObject)
	}
	if o.DeleteBatch == 0 {
		o.DeleteBatch = 1000
	}
	if o.DeleteBatch < 1 || o.RetryDelay < 0 || o.StallTimeout < 0 || o.ConnectTimeout < 0 {
		return o, errors.New("a batch, pause or timeout is negative")
	}
	if o.RetryDelay == 0 {
		o.RetryDelay = 200 * time.Millisecond
	}
	s := settings(o.Settings)
	if v := s["GOSWIFT_RETRIES"]; o.Retries == 0 && v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 {
			return o, fmt.Errorf("GOSWIFT_RETRIES is %q: want a number", v)
		}
		if o.Retries = n; n == 0 {
			o.Retries = -1
		}
	}
	if o.Retries == 0 {
		o.Retries = 5
	}
	return o, errors.Join(
		s.duration("GOSWIFT_TIMEOUT", &o.StallTimeout, time.Minute),
		s.duration("GOSWIFT_CONNECT_TIMEOUT", &o.ConnectTimeout, 10*time.Second),
	)
}

func readCAs(path string) ([]byte, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the certificate authorities: correct OS_CACERT: %w", err)
	}
	return pem, nil
}
