package swift

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	ncw "github.com/ncw/swift/v2"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/pieces"
)

// status is the HTTP status behind err, 0 when there was no answer.
func status(err error) int {
	var e *ncw.Error
	if errors.As(err, &e) {
		return e.StatusCode
	}
	return 0
}

// explain turns an error into one that says what was done to which object,
// whether another try can help, and what a person can do. An empty key is the
// container.
func (b *Bucket) explain(ctx context.Context, verb, key string, err error) error {
	at := verb + " swift://" + b.opt.Container
	if key != "" {
		at += "/" + key
	}
	if ctxErr := ctx.Err(); ctxErr != nil {
		return fmt.Errorf("%s: %w", at, ctxErr)
	}
	switch status(err) {
	case http.StatusNotFound:
		return fmt.Errorf("%s: %w", at, storage.ErrNotExist)
	case http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%s: %w", at, storage.ErrRange)
	}
	if errors.Is(err, storage.ErrPermanent) {
		return fmt.Errorf("%s: %w", at, err)
	}
	short := &failure{text: plain(err), err: err}
	if way := wayOut(err); way != "" {
		return fmt.Errorf("%s: %w: %s: %w", at, short, way, storage.ErrPermanent)
	}
	return fmt.Errorf("%s: %w", at, short)
}

func (b *Bucket) noContainer(verb string, err error) error {
	return fmt.Errorf("%s swift://%s: %w: create the container, or correct WALG_SWIFT_PREFIX and OS_PROJECT_NAME (OS_TENANT_NAME): %w",
		verb, b.opt.Container, &failure{text: plain(err), err: err}, storage.ErrPermanent)
}

// failure is an error in fewer words: Swift explains itself in HTML.
type failure struct {
	text string
	err  error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.err }

func plain(err error) string {
	text := err.Error()
	if i := strings.Index(text, ": <html"); i >= 0 {
		text = text[:i]
	}
	text = strings.Join(strings.Fields(text), " ")
	if s := status(err); s != 0 && !strings.Contains(text, fmt.Sprint(s)) {
		text = fmt.Sprintf("%s (HTTP %d)", text, s)
	}
	return text
}

// wayOut is what a person can do about err; empty when another try may do.
func wayOut(err error) string {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return "the server's certificate is signed by an authority this machine does not know: set OS_CACERT to its certificate"
	case errors.As(err, &host):
		return "the server's certificate is for another name: correct OS_AUTH_URL"
	case errors.As(err, &invalid):
		return "the server's certificate is not valid: renew it, or set this machine's clock"
	}
	switch status(err) {
	case http.StatusUnauthorized:
		return "check OS_AUTH_URL, OS_USERNAME and OS_PASSWORD, and for version 3 OS_PROJECT_NAME, OS_USER_DOMAIN_NAME and OS_PROJECT_DOMAIN_NAME " +
			"(or the application credential; an OS_AUTH_TOKEN ends and cannot be renewed)"
	case http.StatusForbidden:
		return "give OS_USERNAME a role on the project that may read and write its containers (member, swiftoperator), or an access list on this one; " +
			"check OS_PROJECT_NAME (OS_TENANT_NAME)"
	case http.StatusRequestEntityTooLarge:
		return "the quota of the account or container is used up, or the cluster takes smaller objects: raise the quota or lower WALG_TAR_SIZE_THRESHOLD"
	case http.StatusInsufficientStorage:
		return "the store is full: free space or add devices"
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return "the store refuses the request itself: is OS_AUTH_URL or OS_STORAGE_URL that of a Swift?"
	}
	// Without a status it is the library's own: it was let in and got no URL.
	var e *ncw.Error
	if errors.As(err, &e) && e.StatusCode == 0 {
		return "the service catalog has no object store for us: correct OS_REGION_NAME and OS_ENDPOINT_TYPE"
	}
	return ""
}

// passing tells a failure that may be gone at the next try.
func passing(err error) bool {
	switch s := status(err); s {
	case http.StatusNotFound, http.StatusPreconditionFailed, http.StatusRequestedRangeNotSatisfiable:
		return false
	}
	return wayOut(err) == "" && !errors.Is(err, storage.ErrPermanent)
}

const longestPause = 10 * time.Second

// pause waits before another try, the nth.
func (b *Bucket) pause(ctx context.Context, n int) error {
	return pieces.Sleep(ctx, pieces.Pause(n, b.opt.RetryDelay, longestPause))
}
