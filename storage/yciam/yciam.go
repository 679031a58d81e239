// Package yciam gets IAM tokens of Yandex Cloud, from a virtual machine's
// metadata service or with the authorized key of a service account, and keeps
// each until it is time for the next. Object Storage and the key management
// service both want one with every request.
//
// It does not retry: an error that is storage.ErrPermanent (no service account,
// a key that was revoked) another try cannot change, all others it may. While
// a token is still valid, a failure to get the next one is no error.
package yciam

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/walherd/walherd/storage"
)

const (
	// MetadataURL is where a virtual machine asks for the token of the
	// service account that is linked to it.
	MetadataURL = "http://169.254.169.254/computeMetadata/v1/instance/service-accounts/default/token"
	// TokensURL is where a signed JWT is exchanged for a token.
	TokensURL = "https://iam.api.cloud.yandex.net/iam/v1/tokens"

	// renewAfter is the age at which a token is replaced. One lives for up to
	// 12 hours; the service's manual asks for a new one each hour.
	renewAfter = time.Hour
	// margin is what a token must still have to live to be handed out:
	// clocks differ, and the request is yet to be made.
	margin = 10 * time.Second
	// failureRest is how long a valid token is used on after the next one
	// could not be had.
	failureRest = time.Minute
	answerLimit = 64 << 10
)

// Options tune a source of tokens. The zero value is ready for use.
type Options struct {
	// URL asked instead of the service's own; see MetadataURL and TokensURL.
	URL string
	// Client makes the requests; nil is one of its own, without proxies for
	// the metadata service, that keeps no connection.
	Client *http.Client
	// Limit bounds one request; 0 is 10 s. The metadata service answers at
	// once or, outside of the cloud, never.
	Limit time.Duration
	// Now is the clock; nil is the real one.
	Now func() time.Time
}

// Tokens is a source of tokens, safe for concurrent use. Make one with
// Metadata or ServiceAccount.
type Tokens struct {
	ask   func(context.Context) (token, error)
	where string
	now   func() time.Time

	// lock is a mutex that gives up with a context; it is held while the
	// service is asked, so that many who need a token ask once.
	lock chan struct{}
	have token
	due  time.Time // when to ask for the next
}

// token is valid until its end.
type token struct {
	value string
	end   time.Time
}

func newTokens(where string, o Options, ask func(context.Context, *http.Client, func() time.Time) (token, error)) *Tokens {
	now, limit := o.Now, o.Limit
	if now == nil {
		now = time.Now
	}
	if limit <= 0 {
		limit = 10 * time.Second
	}
	return &Tokens{
		where: where, now: now, lock: make(chan struct{}, 1),
		ask: func(outer context.Context) (token, error) {
			ctx, cancel := context.WithTimeout(outer, limit)
			defer cancel()
			next, err := ask(ctx, o.Client, now)
			if err != nil && ctx.Err() != nil && outer.Err() == nil {
				// Not wrapped: this is no end of the caller's context.
				err = fmt.Errorf("no answer within %s", limit)
			}
			return next, err
		},
	}
}

// Metadata is the source of a virtual machine, a function or a container: the
// token of the service account linked to it.
func Metadata(o Options) *Tokens {
	if o.URL == "" {
		o.URL = MetadataURL
	}
	if o.Client == nil {
		o.Client = plainClient(nil)
	}
	return newTokens("the metadata service", o, func(ctx context.Context, client *http.Client, now func() time.Time) (token, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, o.URL, nil)
		if err != nil {
			return token{}, fmt.Errorf("%w: %w", err, storage.ErrPermanent)
		}
		// Without it the service refuses: a page that a browser was lured
		// to, or a proxy, cannot set it.
		req.Header.Set("Metadata-Flavor", "Google")
		var answer struct {
			Token     string `json:"access_token"`
			ExpiresIn int64  `json:"expires_in"` // seconds
		}
		asked := now()
		if err := exchange(client, req, &answer); err != nil {
			if s := statusOf(err); s == http.StatusNotFound || s == http.StatusForbidden {
				return token{}, fmt.Errorf("%w: link a service account to this machine", err)
			}
			return token{}, err
		}
		return token{answer.Token, asked.Add(time.Duration(answer.ExpiresIn) * time.Second)}, nil
	})
}

// plainClient keeps no connections: a token is asked for once an hour.
func plainClient(proxy func(*http.Request) (*url.URL, error)) *http.Client {
	return &http.Client{Transport: &http.Transport{Proxy: proxy, DisableKeepAlives: true, ForceAttemptHTTP2: true}}
}

// Token is a token that is valid now.
func (t *Tokens) Token(ctx context.Context) (string, error) {
	select {
	case t.lock <- struct{}{}:
	case <-ctx.Done():
		return "", fmt.Errorf("get an IAM token from %s: %w", t.where, ctx.Err())
	}
	defer func() { <-t.lock }()
	now := t.now()
	valid := t.have.value != "" && now.Add(margin).Before(t.have.end)
	if valid && now.Before(t.due) {
		return t.have.value, nil
	}
	next, err := t.ask(ctx)
	if err == nil {
		err = next.check(now)
	}
	if err != nil {
		if valid && ctx.Err() == nil {
			t.due = now.Add(failureRest)
			return t.have.value, nil
		}
		return "", fmt.Errorf("get an IAM token from %s: %w", t.where, err)
	}
	t.have = next
	t.due = now.Add(min(renewAfter, next.end.Sub(now)*3/4))
	return next.value, nil
}

// Drop forgets a token that a service has refused, unless there is another one
// by now.
func (t *Tokens) Drop(refused string) {
	t.lock <- struct{}{}
	defer func() { <-t.lock }()
	if t.have.value == refused {
		t.have = token{}
	}
}

func (k token) check(now time.Time) error {
	switch {
	case k.value == "" || strings.ContainsFunc(k.value, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return errors.New("the answer holds no token")
	case !now.Add(margin).Before(k.end):
		return fmt.Errorf("it gives a token that ends at %s, and here it is %s: set the clock", k.end.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// refusal is an answer that is no token.
type refusal struct {
	status  int
	message string
}

func (r *refusal) Error() string {
	if r.message == "" {
		return fmt.Sprintf("it answers with HTTP %d", r.status)
	}
	return fmt.Sprintf("it answers with HTTP %d: %s", r.status, r.message)
}

func statusOf(err error) int {
	var r *refusal
	if errors.As(err, &r) {
		return r.status
	}
	return 0
}

// exchange sends a request and reads the JSON answered. Errors hold neither the
// request's body nor a token.
func exchange(client *http.Client, req *http.Request, answer any) error {
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, answerLimit))
	if err != nil {
		return fmt.Errorf("read its answer: %w", err)
	}
	if res.StatusCode == http.StatusOK {
		if err := json.Unmarshal(body, answer); err != nil {
			return errors.New("its answer is not the JSON of a token")
		}
		return nil
	}
	refused := &refusal{status: res.StatusCode}
	var told struct{ Message string }
	if json.Unmarshal(body, &told) == nil {
		refused.message = told.Message
	}
	switch {
	case res.StatusCode == http.StatusTooManyRequests || res.StatusCode == http.StatusRequestTimeout || res.StatusCode >= 500:
		return refused
	}
	return fmt.Errorf("%w: %w", refused, storage.ErrPermanent)
}

func jsonBody(v any) (io.Reader, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return bytes.NewReader(body), nil
}
