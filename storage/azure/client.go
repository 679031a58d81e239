package azure

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"github.com/walherd/walherd/storage/pieces"
)

// auth is how requests prove who sends them; hints depend on it.
type auth int

const (
	authKey auth = iota
	authSAS
	authChain
)

// place is one of Azure's clouds.
type place struct {
	suffix string // of endpoints
	login  cloud.Configuration
}

// clouds are by the names that AZURE_ENVIRONMENT_NAME takes, from Azure's
// older SDKs. The German one was closed in 2021; a name that was always
// accepted stays so.
var clouds = map[string]place{
	"AzurePublicCloud":       {"core.windows.net", cloud.AzurePublic},
	"AzureUSGovernmentCloud": {"core.usgovcloudapi.net", cloud.AzureGovernment},
	"AzureChinaCloud":        {"core.chinacloudapi.cn", cloud.AzureChina},
	"AzureGermanCloud":       {"core.cloudapi.de", cloud.Configuration{ActiveDirectoryAuthorityHost: "https://login.microsoftonline.de/"}},
}

func newClient(o *Options) (*container.Client, *http.Transport, auth, error) {
	transport := newTransport(o)
	common := azcore.ClientOptions{
		Cloud: clouds[o.Environment].login,
		Retry: o.retries(),
		// No redirects: the store sends none, and whoever answers with one
		// would be given the token.
		Transport: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		Telemetry: policy.TelemetryOptions{ApplicationID: "walherd"},
	}
	opt := &container.ClientOptions{ClientOptions: common}
	if o.APIVersion != "" {
		// Before the signature, which covers it.
		opt.PerCallPolicies = append(opt.PerCallPolicies, apiVersion(o.APIVersion))
	}
	opt.PerRetryPolicies = append(opt.PerRetryPolicies, attempt{stall: o.TryTimeout})
	at := o.containerURL()
	switch {
	case o.AccessKey != "":
		key, err := container.NewSharedKeyCredential(o.Account, o.AccessKey)
		if err != nil {
			return nil, nil, authKey, errors.New("AZURE_STORAGE_ACCESS_KEY is no base64; copy one of the account's keys whole")
		}
		c, err := container.NewClientWithSharedKeyCredential(at, key, opt)
		return c, transport, authKey, err
	case o.SASToken != "":
		c, err := container.NewClientWithNoCredential(at+"?"+o.SASToken, opt)
		return c, transport, authSAS, err
	}
	chain, err := azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: common})
	if err != nil {
		return nil, nil, authChain, fmt.Errorf("set AZURE_STORAGE_ACCESS_KEY or AZURE_STORAGE_SAS_TOKEN, or the variables of Azure's default chain: %w", err)
	}
	c, err := container.NewClient(at, chain, opt)
	return c, transport, authChain, err
}

func newTransport(o *Options) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	// Blobs come as they are stored.
	t.DisableCompression = true
	t.MaxIdleConnsPerHost = max(2*deleteParallel, 2*o.MaxBuffers)
	t.MaxIdleConns = 2 * t.MaxIdleConnsPerHost
	t.WriteBufferSize = 64 << 10
	t.ReadBufferSize = 64 << 10
	return t
}

func (o *Options) retries() policy.RetryOptions {
	return policy.RetryOptions{
		MaxRetries: int32(max(o.MaxRetries, -1)), TryTimeout: o.TryTimeout,
		RetryDelay: o.RetryDelay, MaxRetryDelay: o.MaxRetryDelay,
		ShouldRetry: again,
	}
}

// again tells what to retry: an answer that may differ next time, or none,
// unless a person must act first.
func again(res *http.Response, err error) bool {
	if err != nil {
		return broken(err) == ""
	}
	switch res.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	switch bloberror.Code(res.Header.Get("x-ms-error-code")) {
	case bloberror.MD5Mismatch, bloberror.CRC64Mismatch:
		// The bytes were damaged under way; ours do not change.
		return true
	}
	return false
}

// apiVersion is a policy that sets the version of the protocol: the client
// itself takes none.
type apiVersion string

func (v apiVersion) Do(req *policy.Request) (*http.Response, error) {
	req.Raw().Header["x-ms-version"] = []string{string(v)} // as the SDK spells it
	return req.Next()
}

// call is one operation on its way through the SDK's retries.
type call struct {
	// body is what each try sends; nil is none of ours.
	body *pieces.Content
	// streams: the answer's body is read after the operation returned.
	streams bool
}

type callKey struct{}

// with gives an operation's context its call.
func (c *call) with(ctx context.Context, b *Bucket) context.Context {
	if c.streams {
		// The SDK's limit of a try covers its body too, however long that
		// is: ours is of a pause in it.
		o := b.opt.retries()
		o.TryTimeout = 0
		ctx = policy.WithRetryOptions(ctx, o)
	}
	return context.WithValue(ctx, callKey{}, c)
}

// attempt is the policy around each single try: it gives the try a body of
// its own, and ends a download in which nothing moves.
type attempt struct{ stall time.Duration }

func (a attempt) Do(req *policy.Request) (*http.Response, error) {
	c, _ := req.Raw().Context().Value(callKey{}).(*call)
	if c == nil {
		return req.Next()
	}
	if c.body != nil && req.Raw().Body != nil {
		body := c.body.Reader(0, nil)
		defer body.Close()
		req.Raw().Body, req.Raw().GetBody = body, nil
	}
	if !c.streams {
		return req.Next()
	}
	ctx, cancel := context.WithCancelCause(req.Raw().Context())
	stale := func(err error) error {
		if context.Cause(ctx) == pieces.ErrStalled {
			return fmt.Errorf("%w for %s (%s)", errStalled, a.stall, plain(err))
		}
		return err
	}
	watch := time.AfterFunc(a.stall, func() { cancel(pieces.ErrStalled) })
	res, err := req.WithContext(ctx).Next()
	watch.Stop()
	if err != nil {
		err = stale(err)
		cancel(nil)
		return nil, err
	}
	res.Body = pieces.NewConn(res.Body, cancel, a.stall, stale)
	return res, nil
}

var errStalled = errors.New("no byte moved")
