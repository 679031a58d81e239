package gcs

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
)

// scope is the least that reads, writes and deletes objects.
const scope = "https://www.googleapis.com/auth/devstorage.read_write"

const defaultUniverse = "googleapis.com"

// tokenLimit bounds a request for a token, which no context reaches.
const tokenLimit = time.Minute

type credentials struct {
	tokens   oauth2.TokenSource // nil is none
	universe string
}

func findCredentials(ctx context.Context, o *Options, transport http.RoundTripper) (credentials, error) {
	if o.EmulatorHost != "" || o.TokenSource != nil {
		c := credentials{universe: defaultUniverse}
		if o.EmulatorHost == "" {
			c.tokens = oauth2.ReuseTokenSource(nil, o.TokenSource)
		}
		return c, nil
	}
	// The token source keeps this context for its whole life.
	ctx = context.WithValue(context.WithoutCancel(ctx), oauth2.HTTPClient, &http.Client{Transport: transport, Timeout: tokenLimit})
	var found *google.Credentials
	var err error
	if o.CredentialsFile != "" {
		found, err = readCredentials(ctx, o.CredentialsFile)
	} else {
		found, err = google.FindDefaultCredentials(ctx, scope)
	}
	if err != nil {
		return credentials{}, fmt.Errorf("find credentials: %w: %s", err, fixCredentials)
	}
	c := credentials{tokens: found.TokenSource, universe: defaultUniverse}
	// Only a file names a universe: the metadata server would have to be
	// asked, which costs each start a request.
	if len(found.JSON) > 0 {
		if c.universe, err = found.GetUniverseDomain(); err != nil {
			return credentials{}, fmt.Errorf("read the universe domain of the credentials: %w", err)
		}
	}
	return c, nil
}

// readCredentials takes every type that Google's libraries take. The file is
// the operator's own, so its type needs no restriction.
func readCredentials(ctx context.Context, path string) (*google.Credentials, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var kind struct {
		Type google.CredentialsType `json:"type"`
	}
	if err := json.Unmarshal(data, &kind); err != nil {
		return nil, fmt.Errorf("%s is no credentials file: %w", path, err)
	}
	c, err := google.CredentialsFromJSONWithType(ctx, data, kind.Type, scope)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return c, nil
}
