package s3

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Keys of the request log's attributes.
const (
	keyMethod   = "method"
	keyURL      = "url"
	keyBytes    = "bytes" // of the request's body; -1 is not known
	keyStatus   = "status"
	keyDuration = "duration"
	keyRequest  = "request"
	keyResponse = "response"
	keyErr      = "err"
)

// requestLog tells each try of each request, as it goes over the wire, and its
// answer, without their bodies. Headers are told with their names; their values
// only where they are known to hold no secret. The SDK's own log, which is the
// raw text, would tell signatures, session tokens, SSE-C keys and whatever
// S3_REQUEST_ADDITIONAL_HEADERS brings.
type requestLog struct{ log *slog.Logger }

func (requestLog) ID() string { return "walherd:RequestLog" }

func (l requestLog) HandleDeserialize(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (
	middleware.DeserializeOutput, middleware.Metadata, error,
) {
	if !l.log.Enabled(ctx, slog.LevelDebug) {
		return next.HandleDeserialize(ctx, in)
	}
	var attrs []slog.Attr
	if req, ok := in.Request.(*smithyhttp.Request); ok {
		// What the SDK has put into a URL's query is no secret: only signed
		// links would have a signature there.
		attrs = append(attrs, slog.String(keyMethod, req.Method), slog.String(keyURL, req.URL.Redacted()),
			slog.Int64(keyBytes, req.ContentLength), slog.Any(keyRequest, tellable(req.Header)))
	}
	start := time.Now()
	out, metadata, err := next.HandleDeserialize(ctx, in)
	attrs = append(attrs, slog.Duration(keyDuration, time.Since(start)))
	var send *smithyhttp.RequestSendError
	if errors.As(err, &send) {
		attrs = append(attrs, slog.Any(keyErr, send.Err))
	} else if res, ok := out.RawResponse.(*smithyhttp.Response); ok && res != nil && res.Response != nil {
		attrs = append(attrs, slog.Int(keyStatus, res.StatusCode), slog.Any(keyResponse, tellable(res.Header)))
	}
	l.log.LogAttrs(ctx, slog.LevelDebug, "S3 request", attrs...)
	return out, metadata, err
}

// tellable is a header as "Name: value" lines in the order of the names.
func tellable(h http.Header) []string {
	lines := make([]string, 0, len(h))
	for name, values := range h {
		value := "(hidden)"
		if secretless[strings.ToLower(name)] || strings.HasPrefix(strings.ToLower(name), "x-amz-checksum-") {
			value = strings.Join(values, ", ")
		}
		lines = append(lines, name+": "+value)
	}
	slices.Sort(lines)
	return lines
}

// secretless are the headers whose values hold no secret.
var secretless = map[string]bool{
	"accept-encoding": true, "accept-ranges": true, "amz-sdk-invocation-id": true, "amz-sdk-request": true, "connection": true, "content-encoding": true,
	"content-length": true, "content-md5": true, "content-range": true, "content-type": true, "date": true, "etag": true,
	"expect": true, "if-match": true, "if-none-match": true, "last-modified": true, "location": true, "range": true,
	"retry-after": true, "server": true, "transfer-encoding": true, "user-agent": true,
	"x-amz-bucket-region": true, "x-amz-content-sha256": true, "x-amz-date": true, "x-amz-decoded-content-length": true,
	"x-amz-delete-marker": true, "x-amz-id-2": true, "x-amz-mp-object-size": true, "x-amz-object-lock-mode": true,
	"x-amz-object-lock-retain-until-date": true, "x-amz-request-id": true, "x-amz-sdk-checksum-algorithm": true,
	"x-amz-server-side-encryption": true, "x-amz-storage-class": true, "x-amz-version-id": true,
}
