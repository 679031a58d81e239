package azure

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"github.com/walherd/walherd/storage"
)

// where is an object for messages.
func (b *Bucket) where(key string) string {
	return "azure://" + b.opt.Container + "/" + key
}

// explain turns the SDK's error into one that says what was done to which
// object, whether another try can help, and what a person can do.
func (b *Bucket) explain(ctx context.Context, verb, key string, err error) error {
	at := verb + " " + b.where(key)
	if ctxErr := ctx.Err(); ctxErr != nil {
		return fmt.Errorf("%s: %w", at, ctxErr)
	}
	switch {
	case notFound(err):
		return fmt.Errorf("%s: %w", at, storage.ErrNotExist)
	case status(err) == http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%s: %w", at, storage.ErrRange)
	}
	short := &failure{text: plain(err), err: err}
	if way := b.wayOut(err); way != "" {
		return fmt.Errorf("%s: %w: %s: %w", at, short, way, storage.ErrPermanent)
	}
	return fmt.Errorf("%s: %w", at, short)
}

// notFound tells a missing blob, not a missing container. The answer to a HEAD
// has its code in a header.
func notFound(err error) bool {
	if status(err) != http.StatusNotFound {
		return false
	}
	switch bloberror.Code(code(err)) {
	case bloberror.BlobNotFound, bloberror.ResourceNotFound, "PathNotFound":
		return true
	}
	return false
}

func status(err error) int {
	var res *azcore.ResponseError
	if errors.As(err, &res) {
		return res.StatusCode
	}
	return 0
}

func code(err error) string {
	var res *azcore.ResponseError
	if errors.As(err, &res) {
		return res.ErrorCode
	}
	return ""
}

// failure is an SDK error in fewer words, and without the URL, which may hold
// a token.
type failure struct {
	text string
	err  error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.err }

func plain(err error) string {
	var res *azcore.ResponseError
	if errors.As(err, &res) {
		text := res.ErrorCode
		if text == "" {
			text = http.StatusText(res.StatusCode)
		}
		if m := message(res); m != "" {
			text += ": " + m
		}
		text += fmt.Sprintf(" (HTTP %d", res.StatusCode)
		if res.RawResponse != nil {
			if id := res.RawResponse.Header.Get("x-ms-request-id"); id != "" {
				text += ", request " + id
			}
		}
		return text + ")"
	}
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err.Error()
	}
	return err.Error()
}

// message is the first line of what the store says, and its detail, which is
// what tells a wrong signature from an ended token.
func message(res *azcore.ResponseError) string {
	if res.RawResponse == nil || res.RawResponse.Body == nil {
		return ""
	}
	// The SDK has read the body and put it back.
	body, err := io.ReadAll(io.LimitReader(res.RawResponse.Body, 16<<10))
	if err != nil {
		return ""
	}
	res.RawResponse.Body = io.NopCloser(bytes.NewReader(body))
	var told struct {
		Message string
		Detail  string `xml:"AuthenticationErrorDetail"`
	}
	if xml.Unmarshal(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")), &told) != nil {
		return ""
	}
	text, _, _ := strings.Cut(strings.TrimSpace(told.Message), "\n")
	// The detail of a wrong signature is what was to be signed, in many
	// lines.
	detail, rest, _ := strings.Cut(strings.TrimSpace(told.Detail), "\n")
	if detail != "" && rest == "" && len(detail) < 300 {
		text += " " + detail
	}
	return strings.TrimSpace(text)
}

// wayOut is what a person can do about err; empty when another try may do.
func (b *Bucket) wayOut(err error) string {
	if way := broken(err); way != "" {
		return way
	}
	if way, ok := waysOut[bloberror.Code(code(err))]; ok {
		return way
	}
	switch status(err) {
	case http.StatusForbidden, http.StatusUnauthorized:
		switch b.auth {
		case authKey:
			return "check that AZURE_STORAGE_ACCESS_KEY belongs to AZURE_STORAGE_ACCOUNT, that the account allows keys and this network, and this machine's clock"
		case authSAS:
			return "renew AZURE_STORAGE_SAS_TOKEN; it must allow read, add, create, write, delete and list (racwdl) on the container, and this network"
		}
		return fixChain
	case http.StatusNotFound:
		return "this is no blob service, or not this account's: check AZURE_STORAGE_ACCOUNT, AZURE_ENVIRONMENT_NAME and AZURE_ENDPOINT_SUFFIX"
	case http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return "a blob service does not redirect: check AZURE_ENDPOINT_SUFFIX, and proxies"
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		switch bloberror.Code(code(err)) {
		case bloberror.MD5Mismatch, bloberror.CRC64Mismatch, bloberror.InvalidBlockList:
			return "" // damaged under way, or another's doing
		}
		return "the store refuses the request itself: check AZURE_BLOB_STORE_API_VERSION, AZURE_ENDPOINT_SUFFIX and WALG_AZ_PREFIX"
	case http.StatusInsufficientStorage:
		return "the account is full: free space or raise its limit"
	}
	return ""
}

// broken is what a person can do about an error that came instead of an
// answer.
func broken(err error) string {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var dns *net.DNSError
	var refused *azidentity.AuthenticationFailedError
	var final interface{ NonRetriable() }
	switch {
	case errors.As(err, &unknown):
		return "the server's certificate is signed by an authority this machine does not know: install its certificate (SSL_CERT_FILE names a file)"
	case errors.As(err, &host):
		return "the server's certificate is for another name: check AZURE_STORAGE_ACCOUNT and AZURE_ENDPOINT_SUFFIX"
	case errors.As(err, &invalid):
		return "the server's certificate is not valid: renew it, or set this machine's clock"
	case errors.As(err, &dns) && dns.IsNotFound:
		return "there is no such account: check AZURE_STORAGE_ACCOUNT, AZURE_ENVIRONMENT_NAME, AZURE_ENDPOINT_SUFFIX and this machine's name servers"
	case errors.As(err, &refused), errors.As(err, &final) && status(err) == 0:
		return fixChain
	}
	return ""
}

const (
	fixChain = "set AZURE_STORAGE_ACCESS_KEY or AZURE_STORAGE_SAS_TOKEN, or let Azure's default chain " +
		"(AZURE_CLIENT_ID ..., workload or managed identity, az login) give an identity with the role Storage Blob Data Contributor on the container"
	fixLease     = "something holds a lease on it: break it there (az storage blob lease break)"
	fixImmutable = "a policy of the container or a legal hold keeps it: wait for its end, or have it removed there"
	fixArchive   = "the blob is in the archive tier: bring it back there first (az storage blob set-tier)"
)

// waysOut is by error code. What is not here may pass, or depends on the
// status.
var waysOut = map[bloberror.Code]string{
	bloberror.ContainerNotFound:                   "create the container, or correct WALG_AZ_PREFIX and AZURE_STORAGE_ACCOUNT",
	bloberror.ContainerBeingDeleted:               "the container is being deleted: create it when that is done, or correct WALG_AZ_PREFIX",
	bloberror.ContainerDisabled:                   "the container was disabled: ask its owner",
	bloberror.AccountIsDisabled:                   "the account was disabled: ask its owner",
	bloberror.InvalidResourceName:                 "correct the names in WALG_AZ_PREFIX",
	bloberror.InvalidBlobType:                     "a blob of another type has this name: delete it there, or choose another path in WALG_AZ_PREFIX",
	bloberror.BlobArchived:                        fixArchive,
	bloberror.BlobBeingRehydrated:                 "the blob is on its way back from the archive tier: wait for it",
	bloberror.LeaseIDMissing:                      fixLease,
	bloberror.BlobImmutableDueToPolicy:            fixImmutable,
	"BlobImmutableDueToLegalHold":                 fixImmutable,
	bloberror.InvalidBlobOrBlock:                  "another program's unfinished upload lies under this name: it goes after a week, or when that program ends it",
	bloberror.UnsupportedHeader:                   "the store does not know a header of this version: set AZURE_BLOB_STORE_API_VERSION to one it knows",
	bloberror.BlobUsesCustomerSpecifiedEncryption: "the blob is encrypted with a key of another program's: only that can read it",
}
