package s3

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go"

	"github.com/walherd/walherd/storage"
)

// explain turns the SDK's error into one that says what was done to which
// object, whether another try can help, and what a person can do.
func explain(ctx context.Context, verb, bucket, key string, err error) error {
	at := verb + " s3://" + bucket
	if key != "" {
		at += "/" + key
	}
	if ctxErr := ctx.Err(); ctxErr != nil {
		return fmt.Errorf("%s: %w", at, ctxErr)
	}
	short := &failure{text: plain(err), err: err}
	switch {
	case notFound(err):
		return fmt.Errorf("%s: %w", at, storage.ErrNotExist)
	case status(err) == http.StatusRequestedRangeNotSatisfiable || code(err) == "InvalidRange":
		return fmt.Errorf("%s: %w", at, storage.ErrRange)
	}
	if way := wayOut(err); way != "" {
		return fmt.Errorf("%s: %w: %s: %w", at, short, way, storage.ErrPermanent)
	}
	return fmt.Errorf("%s: %w", at, short)
}

// notFound tells a missing object. An answer to a HEAD has no body and so no
// code but NotFound, also where the bucket is missing: see Bucket.missing.
func notFound(err error) bool {
	switch code(err) {
	case "NoSuchKey", "NotFound", "NoSuchVersion":
		return true
	}
	return false
}

// failure is an SDK error in fewer words.
type failure struct {
	text string
	err  error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.err }

func plain(err error) string {
	var text strings.Builder
	var api smithy.APIError
	if errors.As(err, &api) {
		text.WriteString(api.ErrorCode())
		if m := api.ErrorMessage(); m != "" && m != api.ErrorCode() {
			text.WriteString(": " + m)
		}
		if s := status(err); s != 0 {
			fmt.Fprintf(&text, " (HTTP %d", s)
			var id interface{ ServiceRequestID() string }
			if errors.As(err, &id) && id.ServiceRequestID() != "" {
				text.WriteString(", request " + id.ServiceRequestID())
			}
			text.WriteByte(')')
		}
	} else {
		inner := err
		var op *smithy.OperationError
		if errors.As(err, &op) {
			inner = op.Err
		}
		text.WriteString(inner.Error())
	}
	var tries *retry.MaxAttemptsError
	if errors.As(err, &tries) && api != nil {
		fmt.Fprintf(&text, ", tried %d times", tries.Attempt)
	}
	return text.String()
}

// wayOut is what a person can do about err; empty when another try may do.
func wayOut(err error) string {
	if way, ok := waysOut[code(err)]; ok {
		return way
	}
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return "the server's certificate is signed by an authority this machine does not know: set S3_CA_CERT_FILE to its certificate"
	case errors.As(err, &host):
		return "the server's certificate is for another name: correct AWS_ENDPOINT, or set AWS_S3_FORCE_PATH_STYLE=true if the bucket's name is in the host name"
	case errors.As(err, &invalid):
		return "the server's certificate is not valid: renew it, or set this machine's clock"
	}
	switch status(err) {
	case http.StatusForbidden:
		return waysOut["AccessDenied"]
	case http.StatusUnauthorized:
		return waysOut["InvalidAccessKeyId"]
	case http.StatusMovedPermanently, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return waysOut["PermanentRedirect"]
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		if code(err) == "RequestTimeout" || (again{}).IsErrorRetryable(err) == aws.TrueTernary {
			return "" // bytes were lost or damaged under way
		}
		return "the store refuses the request itself: check AWS_REGION, AWS_ENDPOINT, S3_SSE, S3_SSE_C and S3_STORAGE_CLASS; " +
			"a store that does not know checksum headers or conditional puts is found out by a probe"
	case http.StatusInsufficientStorage:
		return "the store is full: free space or raise the quota"
	}
	return ""
}

const (
	fixKeys   = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (without them the default chain of AWS is asked: profile, role, instance)"
	fixRegion = "the bucket is in another region: set AWS_REGION to it, and AWS_ENDPOINT to its address or to nothing"
	fixClock  = "this machine's clock differs from the store's: set the clock, and keep it with NTP"
	fixToken  = "the temporary credentials have ended: renew AWS_SESSION_TOKEN with its keys"
	fixFull   = "the store is full: free space or raise the quota"
)

// waysOut is by error code. What is not here may pass.
var waysOut = map[string]string{
	"NoSuchBucket": "create the bucket, or correct WALG_S3_PREFIX, AWS_ENDPOINT and AWS_REGION",
	"AccessDenied": "give the access key s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket and s3:AbortMultipartUpload on the prefix " +
		"(without s3:ListBucket a missing object looks like this too, and so does one locked by S3_RETENTION_PERIOD when it is deleted)",
	"AllAccessDisabled":                  "the store has closed this bucket: ask its owner",
	"AccountProblem":                     "the store has closed this account: ask its owner",
	"InvalidAccessKeyId":                 fixKeys,
	"XAdminUserNotFound":                 fixKeys, // versitygw, with HTTP 404
	"SignatureDoesNotMatch":              "the secret key does not belong to the access key: " + fixKeys,
	"InvalidToken":                       fixToken,
	"ExpiredToken":                       fixToken,
	"ExpiredTokenException":              fixToken,
	"TokenRefreshRequired":               fixToken,
	"RequestTimeTooSkewed":               fixClock,
	"RequestExpired":                     fixClock,
	"PermanentRedirect":                  fixRegion,
	"AuthorizationHeaderMalformed":       fixRegion,
	"IllegalLocationConstraintException": fixRegion,
	"InvalidBucketName":                  "correct the bucket's name in WALG_S3_PREFIX",
	"InvalidObjectState":                 "the object is in an archive class: restore it there first (aws s3api restore-object)",
	"InvalidStorageClass":                "correct S3_STORAGE_CLASS",
	"KMS.NotFoundException":              "correct S3_SSE_KMS_ID",
	"KMS.DisabledException":              "enable the key of S3_SSE_KMS_ID",
	"KeyTooLongError":                    "shorten the path in WALG_S3_PREFIX",
	"EntityTooLarge":                     "lower S3_MAX_PART_SIZE",
	"QuotaExceeded":                      fixFull,
	"XMinioStorageFull":                  fixFull,
	"XMinioAdminBucketQuotaExceeded":     fixFull,
	"NotImplemented":                     "the store does not know this call or header: probe it, and see S3_USE_LIST_OBJECTS_V1 and S3_DELETE_BATCH_SIZE=1",
}
