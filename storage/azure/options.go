package azure

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/walherd/walherd/storage"
)

// Options describe a container and how to talk to it. Account and Container
// are the fields that have no default. The names in brackets are the settings
// that the hints in errors speak of.
type Options struct {
	// Container and the Prefix below which all objects lie, without slashes
	// around it; see ParsePrefix [WALG_AZ_PREFIX].
	Container string
	Prefix    string

	// Account is the storage account's name [AZURE_STORAGE_ACCOUNT].
	Account string
	// AccessKey is one of the account's keys, base64
	// [AZURE_STORAGE_ACCESS_KEY].
	AccessKey string
	// SASToken is a shared access signature, used when there is no
	// AccessKey; a leading question mark is taken off
	// [AZURE_STORAGE_SAS_TOKEN]. It must allow to read, add, create, write,
	// delete and list.
	SASToken string
	// Without both the default chain of Azure is asked: environment,
	// workload identity, managed identity, command line tools.

	// Environment is the cloud: AzurePublicCloud (or empty),
	// AzureUSGovernmentCloud, AzureChinaCloud or AzureGermanCloud
	// [AZURE_ENVIRONMENT_NAME].
	Environment string
	// EndpointSuffix replaces the cloud's own, such as core.windows.net, in
	// https://ACCOUNT.blob.SUFFIX [AZURE_ENDPOINT_SUFFIX].
	EndpointSuffix string
	// Endpoint is the URL of the account's blob service, in place of the one
	// made of Account and suffix: for emulators
	// (http://127.0.0.1:10000/devstoreaccount1) and gateways.
	Endpoint string
	// APIVersion of the requests, such as 2021-12-02; empty is the SDK's. An
	// older store or gateway may want one of its own
	// [AZURE_BLOB_STORE_API_VERSION].
	APIVersion string

	// BufferSize in bytes of an upload's first blocks, and the size up to
	// which an object goes in one request; 1 KiB to 4000 MiB, 0 is 8 MiB
	// [AZURE_BUFFER_SIZE]. After a tenth of the 50,000 blocks of a blob they
	// grow, so that 5 TiB fit.
	BufferSize int64
	// MaxBuffers x BufferSize is what an upload holds in memory; 0 is 4
	// [AZURE_MAX_BUFFERS]. Uploads at the same time share all of these
	// buffers but one for each. Memory grows as content arrives, so small
	// objects hold little; a block that has grown beyond this is held alone.
	MaxBuffers int

	// TryTimeout ends a try of a request, and a download in which no byte
	// comes for so long; 0 is 5 minutes [AZURE_TRY_TIMEOUT, in minutes].
	TryTimeout time.Duration
	// MaxRetries of one request; 0 is 15, -1 is none. A block of an upload
	// can be sent again only here: what produced it has moved on.
	MaxRetries int
	// RetryDelay is the first pause before them, which about double each
	// time and are randomized, up to MaxRetryDelay; 0 is 200 ms and 1 min.
	// A store that names a pause (Retry-After) gets it; one longer than
	// MaxRetryDelay ends the retries.
	RetryDelay    time.Duration
	MaxRetryDelay time.Duration
	// Resumes is how often a broken body is continued, counted anew after
	// each MiB of progress, and only from the very same blob; 0 is 10, -1 is
	// never.
	Resumes int

	// Checksum that proves each request's content to the store; empty is
	// CRC64, or MD5 where APIVersion is older than CRC64 or Endpoint is set:
	// Azurite refuses CRC64.
	Checksum Checksum

	pageSize *int32 // names in a page of a listing; nil is the store's own
}

// Checksum names how the store is told what it must receive.
type Checksum string

const (
	// ChecksumCRC64 is that of NVMe, which stores know since the API version
	// 2019-02-02.
	ChecksumCRC64 Checksum = "crc64"
	// ChecksumMD5 is known by all, and slower.
	ChecksumMD5 Checksum = "md5"
)

const (
	firstCRC64     = "2019-02-02" // API version
	firstLarge     = "2019-12-12" // API version with blocks above 100 MiB
	minBuffer      = 1 << 10
	maxBlock       = 4000 << 20
	maxBlockBefore = 100 << 20
	maxBlocks      = 50_000
	// maxObject is what blocks grow to hold.
	maxObject = 5 << 40
)

// ParsePrefix takes "azure://container/path" apart. path may be empty and
// comes back without slashes around it.
func ParsePrefix(s string) (container, prefix string, err error) {
	rest, ok := strings.CutPrefix(s, "azure://")
	if !ok {
		return "", "", fmt.Errorf("parse Azure prefix %q: want azure://container/path", s)
	}
	container, prefix, _ = strings.Cut(rest, "/")
	prefix = strings.Trim(prefix, "/")
	if err := checkLocation(container, prefix); err != nil {
		return "", "", fmt.Errorf("parse Azure prefix %q: %w", s, err)
	}
	return container, prefix, nil
}

func checkLocation(container, prefix string) error {
	if container == "" {
		return errors.New("it names no container; want azure://container/path")
	}
	// $root and $web are names that Azure itself gives.
	for i, r := range container {
		if !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '$' && i == 0) {
			return fmt.Errorf("container name %q holds %q; want lower-case letters, digits and hyphens", container, r)
		}
	}
	if len(container) < 3 || len(container) > 63 {
		return fmt.Errorf("container name %q has %d characters; want 3 to 63", container, len(container))
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
	for _, s := range []*string{&o.Account, &o.AccessKey, &o.SASToken, &o.Environment, &o.EndpointSuffix, &o.Endpoint, &o.APIVersion} {
		*s = strings.TrimSpace(*s)
	}
	o.SASToken = strings.TrimPrefix(o.SASToken, "?")
	o.EndpointSuffix = strings.Trim(o.EndpointSuffix, ".")
	o.Endpoint = strings.TrimRight(o.Endpoint, "/")
	setDefault(&o.Environment, "AzurePublicCloud")
	setDefault(&o.BufferSize, 8<<20)
	setDefault(&o.MaxBuffers, 4)
	setDefault(&o.TryTimeout, 5*time.Minute)
	setDefault(&o.MaxRetries, 15)
	setDefault(&o.RetryDelay, 200*time.Millisecond)
	setDefault(&o.MaxRetryDelay, time.Minute)
	setDefault(&o.Resumes, 10)
	// API versions are dates, which sort as they follow one another.
	if o.Checksum == "" && (o.Endpoint != "" || o.APIVersion != "" && o.APIVersion < firstCRC64) {
		o.Checksum = ChecksumMD5
	}
	setDefault(&o.Checksum, ChecksumCRC64)
	return o, o.check()
}

func setDefault[T comparable](field *T, def T) {
	var zero T
	if *field == zero {
		*field = def
	}
}

func (o *Options) check() error {
	if err := checkLocation(o.Container, o.Prefix); err != nil {
		return fmt.Errorf("WALG_AZ_PREFIX: %w", err)
	}
	if o.Account == "" {
		return errors.New("AZURE_STORAGE_ACCOUNT is not set; set it to the storage account's name")
	}
	for _, r := range o.Account {
		if !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-') {
			return fmt.Errorf("AZURE_STORAGE_ACCOUNT %q holds %q; want the account's name alone: lower-case letters and digits", o.Account, r)
		}
	}
	if _, ok := clouds[o.Environment]; !ok {
		return fmt.Errorf("AZURE_ENVIRONMENT_NAME %q is not known; want AzurePublicCloud, AzureUSGovernmentCloud, AzureChinaCloud or AzureGermanCloud, and AZURE_ENDPOINT_SUFFIX for another", o.Environment)
	}
	if strings.ContainsAny(o.EndpointSuffix, "/:?# ") {
		return fmt.Errorf("AZURE_ENDPOINT_SUFFIX %q is no domain; want one such as core.windows.net", o.EndpointSuffix)
	}
	if o.Endpoint != "" {
		u, err := url.Parse(o.Endpoint)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" {
			return fmt.Errorf("endpoint %q is no URL of a blob service; want https://host or https://host/account", o.Endpoint)
		}
	}
	if _, err := url.ParseQuery(o.SASToken); err != nil {
		return errors.New("AZURE_STORAGE_SAS_TOKEN is no shared access signature; want sv=...&sig=...")
	}
	if o.APIVersion != "" {
		if _, err := time.Parse(time.DateOnly, o.APIVersion); err != nil {
			return fmt.Errorf("AZURE_BLOB_STORE_API_VERSION %q is no version; want a date such as 2021-12-02", o.APIVersion)
		}
	}
	switch {
	case o.BufferSize < minBuffer || o.BufferSize > o.largestBlock():
		return fmt.Errorf("AZURE_BUFFER_SIZE is %d; want %d to %d bytes", o.BufferSize, minBuffer, o.largestBlock())
	case o.MaxBuffers < 1 || int64(o.MaxBuffers) > maxObject/o.BufferSize:
		return fmt.Errorf("AZURE_MAX_BUFFERS is %d; want 1 or more, as memory allows", o.MaxBuffers)
	case o.TryTimeout < 0:
		return fmt.Errorf("AZURE_TRY_TIMEOUT is %s; want more than nothing", o.TryTimeout)
	case o.Checksum != ChecksumCRC64 && o.Checksum != ChecksumMD5:
		return fmt.Errorf("checksum %q is not known; want %s or %s", o.Checksum, ChecksumCRC64, ChecksumMD5)
	}
	return nil
}

// largestBlock is the most bytes the API version takes in a block.
func (o *Options) largestBlock() int64 {
	if o.APIVersion != "" && o.APIVersion < firstLarge {
		return maxBlockBefore
	}
	return maxBlock
}

// containerURL is the container's, without a token.
func (o *Options) containerURL() string {
	if o.Endpoint != "" {
		return o.Endpoint + "/" + o.Container
	}
	suffix := o.EndpointSuffix
	if suffix == "" {
		suffix = clouds[o.Environment].suffix
	}
	return "https://" + o.Account + ".blob." + suffix + "/" + o.Container
}
