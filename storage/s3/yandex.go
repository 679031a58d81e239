package s3

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/yciam"
)

// subjectToken gives each try of a request the IAM token that Yandex Object
// Storage takes instead of a signature. A token ends while a request is being
// retried for long, so it is asked for anew each time.
type subjectToken struct{ tokens *yciam.Tokens }

const subjectTokenHeader = "X-YaCloud-SubjectToken"

func (subjectToken) ID() string { return "walherd:SubjectToken" }

func (s subjectToken) HandleFinalize(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (
	middleware.FinalizeOutput, middleware.Metadata, error,
) {
	req, ok := in.Request.(*smithyhttp.Request)
	if !ok {
		return middleware.FinalizeOutput{}, middleware.Metadata{}, fmt.Errorf("unknown request type %T", in.Request)
	}
	value, err := s.tokens.Token(ctx)
	if err != nil {
		return middleware.FinalizeOutput{}, middleware.Metadata{}, &tokenError{err}
	}
	req.Header.Set(subjectTokenHeader, value)
	return next.HandleFinalize(ctx, in)
}

// tokenError tells the SDK whether to try again.
type tokenError struct{ error }

func (e *tokenError) Unwrap() error { return e.error }

// RetryableError is asked by the SDK's retryer.
func (e *tokenError) RetryableError() bool { return !errors.Is(e.error, storage.ErrPermanent) }

// checkYandex refuses what cannot go together with a token.
func (o *Options) checkYandex() error {
	switch {
	case !o.YandexToken:
		return nil
	case o.RoleARN != "":
		return errors.New("S3_USE_YC_SESSION_TOKEN and AWS_ROLE_ARN exclude one another: remove one of them")
	case o.Endpoint == "":
		return errors.New("S3_USE_YC_SESSION_TOKEN is for Yandex Cloud: set AWS_ENDPOINT to https://storage.yandexcloud.net")
	case !overTLS(o.Endpoint):
		return errors.New("S3_USE_YC_SESSION_TOKEN sends a secret with each request: set AWS_ENDPOINT to https")
	}
	return nil
}
