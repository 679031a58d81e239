package kms

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/walherd/walherd/engine/seal"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/yciam"
)

const (
	yandexURL = "https://kms.yandex"
	// yandexTries of a call in all, with pauses from 200 ms up to 5 s.
	yandexTries = 8
	// yandexLimit bounds one try, which carries a few hundred bytes.
	yandexLimit  = 15 * time.Second
	yandexAnswer = 256 << 10
)

// YandexOptions tune NewYandex; all of it is for tests and unusual networks.
// The zero value is ready for use.
type YandexOptions struct {
	// Client makes the requests; nil is one of its own.
	Client *http.Client
	// URL of the service; empty is https://kms.yandex, or what the API's
	// Endpoint tells.
	URL string
	// TokensURL and MetadataURL are where IAM tokens come from; empty are
	// yciam's, or what the API's Endpoint tells.
	TokensURL   string
	MetadataURL string
	// Now is the clock; nil is the real one.
	Now func() time.Time
	// FirstPause before the second try of a call; 0 is 200 ms.
	FirstPause time.Duration
}

// yandexKey is the seal.KeyService of NewYandex.
type yandexKey struct {
	key     string
	client  *http.Client
	pause   time.Duration
	account *yciam.Key // nil is the machine's own
	opt     YandexOptions
	api     string // the API's URL; empty is known without asking it

	// lock is a mutex that gives up with a context.
	lock   chan struct{}
	places *places // nil until known
}

// places are where a key's requests go and tokens come from.
type places struct {
	key    string // URL of the key, up to the colon before the verb
	tokens *yciam.Tokens
}

// NewYandex returns the KeyService of a symmetric key in Yandex Cloud KMS, over
// its REST API. (The official client brings a gRPC stack into every process.)
// It identifies itself with the authorized key in ServiceAccountFile or, without
// one, as the service account linked to this machine. Endpoint is the address
// of another API than api.cloud.yandex.net (host[:port] or https URL); it is
// asked where its services are.
//
// It reads the file and sends nothing: a missing permission is an error of the
// first Wrap or Unwrap. Those try again what may pass: a lost connection, HTTP
// 429 and 5xx, and once, with a new token, 401.
func NewYandex(o seal.YandexKeyOptions, t YandexOptions) (seal.KeyService, error) {
	if o.Key == "" || len(o.Key) > 50 || strings.ContainsFunc(o.Key, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	}) {
		return nil, errors.New("configure Yandex KMS: want the id of a symmetric key, letters and digits (yc kms symmetric-key list tells it)")
	}
	k := &yandexKey{key: o.Key, client: t.Client, pause: t.FirstPause, opt: t, lock: make(chan struct{}, 1)}
	if k.client == nil {
		k.client = &http.Client{Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute, TLSHandshakeTimeout: yandexLimit,
		}}
	}
	if k.pause <= 0 {
		k.pause = 200 * time.Millisecond
	}
	if o.Endpoint != "" {
		var err error
		if k.api, err = yandexAPI(o.Endpoint); err != nil {
			return nil, fmt.Errorf("configure Yandex KMS: %w", err)
		}
	}
	if o.ServiceAccountFile != "" {
		account, err := yciam.ReadKey(o.ServiceAccountFile)
		if err != nil {
			return nil, fmt.Errorf("configure Yandex KMS: %w", err)
		}
		k.account = &account
	}
	return k, nil
}

// yandexAPI is the URL of an API, without a slash at its end. It is https but
// on this machine: a signed request for a token goes where it tells.
func yandexAPI(endpoint string) (string, error) {
	if !strings.Contains(endpoint, "://") {
		endpoint = "https://" + endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "https" && !(u.Scheme == "http" && u.Hostname() == "127.0.0.1") {
		return "", fmt.Errorf("endpoint %q: want host[:port], as api.cloud.yandex.net:443", endpoint)
	}
	return u.Scheme + "://" + u.Host, nil
}

// where tells the places, asking the API once if need be.
func (k *yandexKey) where(ctx context.Context) (*places, error) {
	select {
	case k.lock <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-k.lock }()
	if k.places != nil {
		return k.places, nil
	}
	base, tokens := cmp.Or(k.opt.URL, yandexURL), k.opt.TokensURL
	if k.api != "" {
		hosts, err := k.discover(ctx)
		if err != nil {
			return nil, fmt.Errorf("ask %s for its services: %w", k.api, err)
		}
		scheme, _, _ := strings.Cut(k.api, "://")
		base = cmp.Or(k.opt.URL, scheme+"://"+hosts["kms-crypto"])
		tokens = cmp.Or(tokens, scheme+"://"+hosts["iam"]+"/iam/v1/tokens")
	}
	p := &places{key: base + "/kms/v1/keys/" + k.key}
	if k.account == nil {
		p.tokens = yciam.Metadata(yciam.Options{URL: k.opt.MetadataURL, Client: k.opt.Client, Now: k.opt.Now})
	} else {
		p.tokens = yciam.ServiceAccount(*k.account, yciam.Options{URL: tokens, Client: k.opt.Client, Now: k.opt.Now})
	}
	k.places = p
	return p, nil
}

// discover asks the API for the addresses of its services.
func (k *yandexKey) discover(ctx context.Context) (map[string]string, error) {
	var out struct {
		Endpoints []struct{ ID, Address string }
	}
	if err := k.send(ctx, http.MethodGet, k.api+"/endpoints", "", nil, &out); err != nil {
		return nil, err
	}
	hosts := map[string]string{}
	for _, e := range out.Endpoints {
		hosts[e.ID] = e.Address
	}
	for _, id := range []string{"kms-crypto", "iam"} {
		if u, err := url.Parse("https://" + hosts[id]); err != nil || u.Host == "" || u.Host != hosts[id] {
			return nil, fmt.Errorf("it tells no address of %s: check the endpoint: %w", id, storage.ErrPermanent)
		}
	}
	return hosts, nil
}

func (k *yandexKey) Describe() string { return "key " + k.key }

func (k *yandexKey) Wrap(ctx context.Context, key []byte) ([]byte, error) {
	var out struct {
		Ciphertext []byte `json:"ciphertext"`
	}
	err := k.call(ctx, "encrypt", map[string][]byte{"plaintext": key}, &out)
	if err == nil && len(out.Ciphertext) == 0 {
		err = errors.New("the answer holds no ciphertext")
	}
	if err != nil {
		return nil, fmt.Errorf("encrypt with %s of Yandex KMS: %w", k.Describe(), err)
	}
	return out.Ciphertext, nil
}

func (k *yandexKey) Unwrap(ctx context.Context, wrapped []byte) ([]byte, error) {
	var out struct {
		Plaintext []byte `json:"plaintext"`
	}
	err := k.call(ctx, "decrypt", map[string][]byte{"ciphertext": wrapped}, &out)
	var refused *refusal
	switch {
	case errors.As(err, &refused) && refused.status == http.StatusBadRequest:
		return nil, fmt.Errorf("decrypt with %s of Yandex KMS: %w, or it is damaged (%w): %w", k.Describe(), seal.ErrWrongKey, seal.ErrCorrupt, err)
	case err == nil && len(out.Plaintext) == 0:
		err = errors.New("the answer holds no plaintext")
	}
	if err != nil {
		return nil, fmt.Errorf("decrypt with %s of Yandex KMS: %w", k.Describe(), err)
	}
	return out.Plaintext, nil
}

// call makes a call, as often as it is worth it. Byte fields are base64 on the
// wire, as encoding/json has them.
func (k *yandexKey) call(ctx context.Context, verb string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	pauses := backoff.NewExponentialBackOff()
	pauses.InitialInterval, pauses.MaxInterval, pauses.Multiplier = k.pause, 25*k.pause, 2
	renewed := false
	_, err = backoff.Retry(ctx, func() (struct{}, error) {
		err := k.try(ctx, verb, body, out, &renewed)
		if err != nil && (ctx.Err() != nil || !passing(err)) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(pauses), backoff.WithMaxTries(yandexTries))
	return err
}

// passing tells an error that another try may not meet.
func passing(err error) bool {
	var refused *refusal
	if errors.As(err, &refused) {
		return refused.status == http.StatusTooManyRequests || refused.status == http.StatusRequestTimeout || refused.status >= 500
	}
	return !errors.Is(err, storage.ErrPermanent)
}

func (k *yandexKey) try(ctx context.Context, verb string, body []byte, out any, renewed *bool) error {
	p, err := k.where(ctx)
	if err != nil {
		return err
	}
	for {
		token, err := p.tokens.Token(ctx)
		if err != nil {
			return err
		}
		err = k.send(ctx, http.MethodPost, p.key+":"+verb, token, body, out)
		var refused *refusal
		if !errors.As(err, &refused) || refused.status != http.StatusUnauthorized || *renewed {
			return err
		}
		// A token may be revoked before its end: once, another one may do.
		*renewed = true
		p.tokens.Drop(token)
	}
}

// send makes one request; token may be empty.
func (k *yandexKey) send(outer context.Context, method, to, token string, body []byte, out any) error {
	ctx, cancel := context.WithTimeout(outer, yandexLimit)
	defer cancel()
	err := k.exchange(ctx, method, to, token, body, out)
	if err != nil && ctx.Err() != nil && outer.Err() == nil {
		// Not wrapped: this is no end of the caller's context.
		return fmt.Errorf("no answer within %s", yandexLimit)
	}
	return err
}

func (k *yandexKey) exchange(ctx context.Context, method, to, token string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, to, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := k.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, yandexAnswer))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	defer clear(answer)
	if res.StatusCode != http.StatusOK {
		r := &refusal{status: res.StatusCode}
		var told struct{ Message string }
		if json.Unmarshal(answer, &told) == nil {
			r.message = told.Message
		}
		return r
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return errors.New("the answer is not the JSON that was asked for: check the endpoint")
	}
	return nil
}

// refusal is the service's answer that it will not.
type refusal struct {
	status  int
	message string
}

func (r *refusal) Error() string {
	text := fmt.Sprintf("HTTP %d", r.status)
	if r.message != "" {
		text += ": " + r.message
	}
	switch r.status {
	case http.StatusUnauthorized:
		text += " (the IAM token is refused: check the service account's key, and this machine's clock)"
	case http.StatusForbidden:
		text += " (give the service account the role kms.keys.encrypterDecrypter on the key)"
	case http.StatusNotFound:
		text += " (there is no such key: check its id)"
	}
	return text
}
