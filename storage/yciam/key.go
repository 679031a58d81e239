package yciam

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/walherd/walherd/storage"
)

const (
	// jwtLife is how long the signed request for a token is valid; the
	// service takes up to an hour.
	jwtLife = 10 * time.Minute
	// keyLimit bounds a key file against a path that names something else.
	keyLimit = 64 << 10
)

// Key is the authorized key of a service account. It prints as its ids.
type Key struct {
	id      string
	account string
	private *rsa.PrivateKey
}

// ReadKey reads the JSON file that "yc iam key create --output FILE" writes.
// Its error holds neither the path nor the contents: secrets are put into the
// wrong setting.
func ReadKey(path string) (Key, error) {
	f, err := os.Open(path)
	if err != nil {
		var p *fs.PathError
		if errors.As(err, &p) {
			err = p.Err
		}
		return Key{}, fmt.Errorf("read the service account's key file: %w: %w", err, storage.ErrPermanent)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, keyLimit))
	if err != nil {
		return Key{}, fmt.Errorf("read the service account's key file: %w", err)
	}
	k, err := ParseKey(text)
	if err != nil {
		return Key{}, fmt.Errorf("read the service account's key file: %w", err)
	}
	return k, nil
}

// ParseKey reads the JSON of such a file. Its errors are storage.ErrPermanent.
func ParseKey(text []byte) (Key, error) {
	var file struct {
		ID      string `json:"id"`
		Account string `json:"service_account_id"`
		Private string `json:"private_key"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return Key{}, fmt.Errorf("it is not the JSON that yc iam key create writes: %w", storage.ErrPermanent)
	}
	switch {
	case file.Private == "":
		return Key{}, fmt.Errorf("it has no private_key: make an authorized key with yc iam key create: %w", storage.ErrPermanent)
	case file.ID == "":
		return Key{}, fmt.Errorf("it has no id, that of the key: %w", storage.ErrPermanent)
	case file.Account == "":
		return Key{}, fmt.Errorf("it has no service_account_id (that of a user has none): %w", storage.ErrPermanent)
	}
	// What stands before the PEM block, a line of warning, is passed over.
	private, err := jwt.ParseRSAPrivateKeyFromPEM([]byte(file.Private))
	if err != nil {
		return Key{}, fmt.Errorf("its private_key is no RSA key in PEM: %w", storage.ErrPermanent)
	}
	return Key{id: file.ID, account: file.Account, private: private}, nil
}

// String names the key without its secret.
func (k Key) String() string { return fmt.Sprintf("key %s of service account %s", k.id, k.account) }

// GoString is String: a Key that is printed whole tells nothing either.
func (k Key) GoString() string { return k.String() }

// ServiceAccount is the source of a service account's authorized key: a JWT
// signed by it (PS256, as the service demands) is exchanged for a token.
func ServiceAccount(k Key, o Options) *Tokens {
	if o.URL == "" {
		o.URL = TokensURL
	}
	if o.Client == nil {
		o.Client = plainClient(http.ProxyFromEnvironment)
	}
	return newTokens("the IAM service for "+k.String(), o, func(ctx context.Context, client *http.Client, now func() time.Time) (token, error) {
		signed, err := k.sign(now())
		if err != nil {
			return token{}, fmt.Errorf("%w: %w", err, storage.ErrPermanent)
		}
		body, err := jsonBody(map[string]string{"jwt": signed})
		if err != nil {
			return token{}, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.URL, body)
		if err != nil {
			return token{}, fmt.Errorf("%w: %w", err, storage.ErrPermanent)
		}
		req.Header.Set("Content-Type", "application/json")
		var answer struct {
			Token string    `json:"iamToken"`
			Ends  time.Time `json:"expiresAt"`
		}
		if err := exchange(client, req, &answer); err != nil {
			if errors.Is(err, storage.ErrPermanent) {
				return token{}, fmt.Errorf("%w: check that the key was not deleted, and this machine's clock", err)
			}
			return token{}, err
		}
		return token{answer.Token, answer.Ends}, nil
	})
}

// sign makes the JWT. Its audience is the service's public address, also when
// another one is asked.
func (k Key) sign(now time.Time) (string, error) {
	t := jwt.NewWithClaims(jwt.SigningMethodPS256, jwt.MapClaims{
		"iss": k.account, "aud": TokensURL, "iat": now.Unix(), "exp": now.Add(jwtLife).Unix(),
	})
	t.Header["kid"] = k.id
	signed, err := t.SignedString(k.private)
	if err != nil {
		return "", fmt.Errorf("sign the request for a token: %w", err)
	}
	return signed, nil
}
