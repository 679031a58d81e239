package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/pieces"
	"github.com/walherd/walherd/storage/yciam"
)

// newClient makes the client of a bucket, asking for the bucket's region when
// nothing tells it.
func newClient(ctx context.Context, o *Options) (*awss3.Client, *http.Transport, error) {
	load := []func(*config.LoadOptions) error{
		config.WithRetryer(func() aws.Retryer { return newRetryer(o) }),
		config.WithLogger(logging.Nop{}),
	}
	if o.Region != "" {
		load = append(load, config.WithRegion(o.Region))
	}
	switch {
	case o.YandexToken:
		load = append(load, config.WithCredentialsProvider(aws.AnonymousCredentials{}))
	case o.AccessKeyID != "" && o.SecretAccessKey != "":
		load = append(load, config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(
			strings.TrimSpace(o.AccessKeyID), strings.TrimSpace(o.SecretAccessKey), strings.TrimSpace(o.SessionToken))))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, nil, fmt.Errorf("read the AWS settings (AWS_PROFILE, AWS_CONFIG_FILE, AWS_CA_BUNDLE ...): %w: %w", storage.ErrPermanent, err)
	}
	if o.RoleARN != "" {
		c := cfg.Copy()
		if c.Region == "" {
			c.Region = defaultRegion
		}
		cfg.Credentials = aws.NewCredentialsCache(stscreds.NewAssumeRoleProvider(sts.NewFromConfig(c), o.RoleARN,
			func(r *stscreds.AssumeRoleOptions) { r.RoleSessionName = o.RoleSessionName }))
	}
	transport, err := newTransport(cfg.HTTPClient, o)
	if err != nil {
		return nil, nil, err
	}
	// No redirects: S3's mean another region or address, and following one
	// would send the signature there. They become errors with a hint.
	cfg.HTTPClient = &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if cfg.Region == "" {
		cfg.Region = defaultRegion
		if o.Endpoint == "" || strings.Contains(o.Endpoint, ".amazonaws.com") {
			if cfg.Region, err = bucketRegion(ctx, awss3.NewFromConfig(cfg, o.tune), o.Bucket); err != nil {
				return nil, nil, err
			}
		}
	}
	return awss3.NewFromConfig(cfg, o.tune), transport, nil
}

const defaultRegion = "us-east-1"

// tune sets what is S3's own in a client.
func (o *Options) tune(s *awss3.Options) {
	if o.Endpoint != "" {
		s.BaseEndpoint = aws.String(o.Endpoint)
	}
	s.UsePathStyle = o.PathStyle
	if o.DualStack {
		s.EndpointOptions.UseDualStackEndpoint = aws.DualStackEndpointStateEnabled
	}
	// We give the sums ourselves, as headers: the SDK's own way is trailers
	// in an encoding that many gateways refuse. And we check bodies
	// ourselves, as they may come in several pieces.
	s.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
	s.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	s.DisableLogOutputChecksumValidationSkipped = true
	if o.NoExpectContinue {
		s.ContinueHeaderThresholdBytes = -1
	}
	if o.YandexToken {
		tokens := yciam.Metadata(yciam.Options{URL: o.YandexMetadata})
		s.APIOptions = append(s.APIOptions, func(stack *middleware.Stack) error {
			return stack.Finalize.Insert(subjectToken{tokens}, "Retry", middleware.After)
		})
	}
	if o.Log != nil {
		s.APIOptions = append(s.APIOptions, func(stack *middleware.Stack) error {
			return stack.Deserialize.Add(requestLog{o.Log}, middleware.After)
		})
	}
	for name, value := range o.Headers {
		s.APIOptions = append(s.APIOptions, smithyhttp.SetHeaderValue(name, value))
	}
	s.APIOptions = append(s.APIOptions, func(stack *middleware.Stack) error {
		return stack.Finalize.Insert(attempt{stall: o.StallTimeout}, "Retry", middleware.After)
	})
}

// bucketRegion asks AWS: also a refusal names the region in a header.
func bucketRegion(ctx context.Context, c *awss3.Client, bucket string) (string, error) {
	out, err := c.HeadBucket(ctx, &awss3.HeadBucketInput{Bucket: &bucket})
	if err == nil {
		if r := aws.ToString(out.BucketRegion); r != "" {
			return r, nil
		}
		return defaultRegion, nil
	}
	var res *smithyhttp.ResponseError
	if errors.As(err, &res) {
		if r := res.Response.Header.Get("X-Amz-Bucket-Region"); r != "" {
			return r, nil
		}
	}
	return "", fmt.Errorf("%w; or set AWS_REGION", explain(ctx, "find the region of bucket", bucket, "", err))
}

// newTransport is the SDK's (which may hold a CA bundle of AWS's settings)
// with ours.
func newTransport(base aws.HTTPClient, o *Options) (*http.Transport, error) {
	var t *http.Transport
	if b, ok := base.(*awshttp.BuildableClient); ok {
		t = b.GetTransport()
	} else {
		t = awshttp.NewBuildableClient().GetTransport()
	}
	// One connection for each part and range under way, kept: a new one
	// starts slowly.
	t.MaxIdleConnsPerHost = max(16, 2*(o.UploadConcurrency+o.ReadParallel))
	t.MaxIdleConns = 2 * t.MaxIdleConnsPerHost
	t.WriteBufferSize = 64 << 10
	t.ReadBufferSize = 64 << 10
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the certificate authorities of S3_CA_CERT_FILE: %w: %w", storage.ErrPermanent, err)
		}
		if t.TLSClientConfig == nil {
			t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		roots := t.TLSClientConfig.RootCAs
		if roots == nil {
			if roots, err = x509.SystemCertPool(); err != nil {
				roots = x509.NewCertPool()
			}
		} else {
			roots = roots.Clone()
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read the certificate authorities of S3_CA_CERT_FILE: no PEM certificate in %s: %w", o.CAFile, storage.ErrPermanent)
		}
		t.TLSClientConfig.RootCAs = roots
	}
	if o.EndpointSource != "" {
		dial := t.DialContext
		if dial == nil {
			dial = (&net.Dialer{}).DialContext
		}
		t.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			host, err := askEndpoint(ctx, o.EndpointSource)
			if err != nil {
				return nil, err
			}
			return dial(ctx, network, net.JoinHostPort(host, strconv.Itoa(o.EndpointPort)))
		}
	}
	return t, nil
}

// askEndpoint asks S3_ENDPOINT_SOURCE for the host to connect to.
func askEndpoint(ctx context.Context, source string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, source, nil)
	if err != nil {
		return "", fmt.Errorf("ask S3_ENDPOINT_SOURCE: %w", err)
	}
	// A connection of its own: this is asked once per connection, and the
	// default client's would stay.
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("ask S3_ENDPOINT_SOURCE: %w", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<10))
	if err != nil {
		return "", fmt.Errorf("ask S3_ENDPOINT_SOURCE: %w", err)
	}
	host := strings.TrimSpace(string(body))
	if res.StatusCode != http.StatusOK || host == "" || strings.ContainsAny(host, " /\n") {
		return "", fmt.Errorf("ask S3_ENDPOINT_SOURCE %s: it answers %q (HTTP %d), want a host name", source, host, res.StatusCode)
	}
	return host, nil
}

// waitingAfter is the failed try after which Options.Waiting is called: a
// second or two after the first.
const waitingAfter = 4

// newRetryer tries requests again. It has no quota across requests, as the
// SDK's has by default: a store that is away for a while must not fail a
// backup before its own limits do.
func newRetryer(o *Options) aws.Retryer {
	if o.MaxRetries < 0 {
		return aws.NopRetryer{}
	}
	throttle := retry.IsErrorThrottles(append([]retry.IsErrorThrottle{throttled{}}, retry.DefaultThrottles...))
	return retry.NewStandard(func(s *retry.StandardOptions) {
		s.MaxAttempts = o.MaxRetries + 1
		s.RateLimiter = ratelimit.None
		s.Retryables = append([]retry.IsErrorRetryable{again{}}, s.Retryables...)
		s.Backoff = retry.BackoffDelayerFunc(func(n int, err error) (time.Duration, error) {
			if n == waitingAfter && o.Waiting != nil {
				o.Waiting(err)
			}
			if throttle.IsErrorThrottle(err) == aws.TrueTernary {
				return pieces.Pause(n, o.MinThrottleDelay, o.MaxThrottleDelay), nil
			}
			return pieces.Pause(n, o.MinRetryDelay, o.MaxRetryDelay), nil
		})
	})
}

type throttled struct{}

func (throttled) IsErrorThrottle(err error) aws.Ternary {
	if s := status(err); s == http.StatusTooManyRequests || s == http.StatusServiceUnavailable {
		return aws.TrueTernary
	}
	return aws.UnknownTernary
}

// again tells what to retry beyond the SDK's own list.
type again struct{}

func (again) IsErrorRetryable(err error) aws.Ternary {
	var stalled *stalledError
	if errors.As(err, &stalled) {
		return aws.TrueTernary
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		// A connection closed instead of an answer.
		return aws.TrueTernary
	}
	switch status(err) {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests, 499:
		// 409 is two writers at once, one of whom S3 asks to try again;
		// 499 is a gateway whose own client went away.
		return aws.TrueTernary
	}
	switch code(err) {
	case "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "InternalError":
		// The bytes were damaged under way; ours do not change.
		return aws.TrueTernary
	}
	return aws.UnknownTernary
}

func status(err error) int {
	var h interface{ HTTPStatusCode() int }
	if errors.As(err, &h) {
		return h.HTTPStatusCode()
	}
	return 0
}

func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// call is one operation on its way through the SDK's retries.
type call struct {
	// body is what each try sends; nil is none of ours.
	body *pieces.Content
	// patience multiplies the stall limit; 0 is 1.
	patience time.Duration
	// streams: the answer's body is read after the operation returned.
	streams bool
	// lasting: when the caller gives up, a try that the store may already
	// be carrying out is waited for, up to graceLimit. Cut off, it would make
	// its part or upload after we have cleaned up.
	lasting bool

	// tries so far.
	tries int
}

const graceLimit = 5 * time.Second

type callKey struct{}

// with gives an operation's context its call.
func (c *call) with(ctx context.Context) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

// attempt is the middleware around each single try: it counts, gives the try
// a body of its own, and ends it when nothing moves.
type attempt struct{ stall time.Duration }

func (attempt) ID() string { return "walherd:Attempt" }

func (a attempt) HandleFinalize(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (
	middleware.FinalizeOutput, middleware.Metadata, error,
) {
	c, _ := ctx.Value(callKey{}).(*call)
	if c == nil {
		c = new(call)
	}
	c.tries++
	limit := a.stall * max(c.patience, 1)
	outer := ctx
	if c.lasting {
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	watch := time.AfterFunc(limit, func() { cancel(pieces.ErrStalled) })
	defer watch.Stop()

	var body *pieces.Reader
	if c.body != nil {
		req, ok := in.Request.(*smithyhttp.Request)
		if !ok {
			cancel(nil)
			return middleware.FinalizeOutput{}, middleware.Metadata{}, fmt.Errorf("unknown request type %T", in.Request)
		}
		body = c.body.Reader(0, func() { watch.Reset(limit) })
		defer body.Close()
		req, err := req.SetStream(body)
		if err != nil {
			cancel(nil)
			return middleware.FinalizeOutput{}, middleware.Metadata{}, err
		}
		in.Request = req
	}
	if c.lasting {
		defer context.AfterFunc(outer, func() {
			if body != nil && !body.Stop() {
				cancel(outer.Err())
				return
			}
			watch.Stop()
			watch.Reset(min(limit, graceLimit))
		})()
	}
	out, metadata, err := next.HandleFinalize(ctx, in)
	if err != nil && context.Cause(ctx) == pieces.ErrStalled {
		// Not wrapped: the SDK takes a cancelled request for the caller's
		// wish.
		err = &stalledError{after: limit, err: err}
	}
	if err != nil || !c.streams {
		cancel(nil)
	}
	return out, metadata, err
}

type stalledError struct {
	after time.Duration
	err   error
}

func (e *stalledError) Error() string {
	return fmt.Sprintf("no byte moved for %s (%s)", e.after, e.err)
}
