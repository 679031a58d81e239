package gcs

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/walherd/walherd/storage"
)

// apiError is a refusal of the store:
// https://cloud.google.com/storage/docs/json_api/v1/status-codes
type apiError struct {
	status  int
	reason  string // the API's word for it; may be empty
	message string
	after   time.Duration // the pause the store asks for
}

func newAPIError(res *http.Response, body []byte) *apiError {
	e := &apiError{status: res.StatusCode, after: retryAfter(res)}
	var parsed struct {
		Error struct {
			Message string `json:"message"`
			Errors  []struct {
				Reason string `json:"reason"`
			} `json:"errors"`
		} `json:"error"`
	}
	if json.Unmarshal(body, &parsed) == nil {
		e.message = parsed.Error.Message
		if len(parsed.Error.Errors) > 0 {
			e.reason = parsed.Error.Errors[0].Reason
		}
	}
	if e.message == "" {
		// Downloads and proxies answer in plain text or HTML.
		e.message = strings.TrimSpace(strings.ToValidUTF8(string(body[:min(len(body), 200)]), "?"))
	}
	return e
}

func (e *apiError) Error() string {
	text := e.reason
	if e.message != "" && e.message != e.reason {
		if text != "" {
			text += ": "
		}
		text += e.message
	}
	if text == "" {
		text = http.StatusText(e.status)
	}
	return fmt.Sprintf("%s (HTTP %d)", text, e.status)
}

func status(err error) int {
	var api *apiError
	if errors.As(err, &api) {
		return api.status
	}
	return 0
}

func reason(err error) string {
	var api *apiError
	if errors.As(err, &api) {
		return api.reason
	}
	return ""
}

// tokenError is a failure to get a token.
type tokenError struct{ err error }

func (e *tokenError) Error() string { return "get a token: " + e.err.Error() }
func (e *tokenError) Unwrap() error { return e.err }

// passes tells whether another try may succeed.
func passes(err error) bool {
	var api *apiError
	if errors.As(err, &api) {
		switch api.reason {
		case "rateLimitExceeded", "userRateLimitExceeded": // also with 403
			return true
		}
		return api.status == http.StatusRequestTimeout || api.status == http.StatusTooManyRequests || api.status >= 500
	}
	var retrieve *oauth2.RetrieveError
	if errors.As(err, &retrieve) && retrieve.Response != nil {
		s := retrieve.Response.StatusCode
		return s == http.StatusRequestTimeout || s == http.StatusTooManyRequests || s >= 500
	}
	if certificate(err) != "" || errors.Is(err, storage.ErrPermanent) {
		return false
	}
	var token *tokenError
	if errors.As(err, &token) {
		var network *url.Error
		return errors.As(err, &network)
	}
	// What is left is the network's.
	return true
}

// shorten leaves away the URL, which the caller says better, and which holds
// the id of an upload session: who knows it may write.
func shorten(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

const (
	fixCredentials = "set GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account, or attach one to this machine"
	fixBucket      = "create the bucket, or correct WALG_GS_PREFIX"
	fixAccess      = "give the service account the role roles/storage.objectUser on the bucket (storage.objects.create, get, list, delete)"
	fixKey         = "set GCS_ENCRYPTION_KEY to the key the object was written with, or to nothing if it was written without"
	fixRetention   = "the bucket's retention policy or a hold forbids to replace or delete the object: wait, or ask who set it"
	fixBilling     = "the project's billing or the API is switched off: ask its owner"
)

// waysOut is by the API's reason. What is not here goes by its status.
var waysOut = map[string]string{
	"retentionPolicyNotMet":                            fixRetention,
	"objectUnderActiveHold":                            fixRetention,
	"accountDisabled":                                  fixBilling,
	"accessNotConfigured":                              fixBilling,
	"billingNotEnabled":                                fixBilling,
	"userProjectMissing":                               "the bucket wants its readers to pay, which is not supported",
	"UserProjectMissing":                               "the bucket wants its readers to pay, which is not supported",
	"resourceIsEncryptedWithCustomerEncryptionKey":     fixKey,
	"resourceNotEncryptedWithCustomerEncryptionKey":    fixKey,
	"customerEncryptionKeyIsIncorrect":                 fixKey,
	"customerEncryptionKeySha256IsInvalid":             fixKey,
	"customerEncryptionKeyFormatIsInvalid":             fixKey,
	"customerEncryptionAlgorithmIsInvalid":             fixKey,
	"customerEncryptionKeyDoesNotMatchEncryptedObject": fixKey,
}

// wayOut is what a person can do about err; empty when another try may do.
func wayOut(err error) string {
	if passes(err) {
		return ""
	}
	if way, ok := waysOut[reason(err)]; ok {
		return way
	}
	if way := certificate(err); way != "" {
		return way
	}
	var token *tokenError
	if errors.As(err, &token) {
		return fixCredentials
	}
	switch status(err) {
	case http.StatusUnauthorized:
		return "the store does not know these credentials: " + fixCredentials
	case http.StatusForbidden:
		return fixAccess
	case http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect:
		return "this is no address of the store: correct STORAGE_EMULATOR_HOST or the endpoint"
	}
	return ""
}

func certificate(err error) string {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return "the server's certificate is signed by an authority this machine does not know: add it to the system's, or name its file in SSL_CERT_FILE"
	case errors.As(err, &host):
		return "the server's certificate is for another name: correct the endpoint"
	case errors.As(err, &invalid):
		return "the server's certificate is not valid: renew it, or set this machine's clock"
	}
	return ""
}

// explain turns an error into one that says what was done to which object,
// whether another try can help, and what a person can do.
func (b *Bucket) explain(ctx context.Context, verb, key string, err error) error {
	at := verb + " " + b.where(key)
	if ctxErr := ctx.Err(); ctxErr != nil {
		return fmt.Errorf("%s: %w", at, ctxErr)
	}
	switch status(err) {
	case http.StatusNotFound:
		return fmt.Errorf("%s: %w", at, storage.ErrNotExist)
	case http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%s: %w", at, storage.ErrRange)
	}
	if way := wayOut(err); way != "" {
		return fmt.Errorf("%s: %w: %s: %w", at, err, way, storage.ErrPermanent)
	}
	return fmt.Errorf("%s: %w", at, err)
}

// explainList is explain for what has no object: then what does not exist is
// the bucket.
func (b *Bucket) explainList(ctx context.Context, prefix string, err error) error {
	return b.explainBucket(ctx, "list", prefix, err)
}

func (b *Bucket) explainBucket(ctx context.Context, verb, key string, err error) error {
	if status(err) == http.StatusNotFound && ctx.Err() == nil {
		return fmt.Errorf("%s %s: the bucket %s does not exist: %s: %w", verb, b.where(key), b.opt.Bucket, fixBucket, storage.ErrPermanent)
	}
	return b.explain(ctx, verb, key, err)
}

func (b *Bucket) where(key string) string {
	if key == "" {
		return "gs://" + b.opt.Bucket
	}
	return "gs://" + b.opt.Bucket + "/" + key
}

func isPermanent(err error) bool { return errors.Is(err, storage.ErrPermanent) }
