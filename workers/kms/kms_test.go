package kms_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/walherd/walherd/engine/seal"
	"github.com/walherd/walherd/workers/kms"
)

// A key service that speaks AWS KMS's protocol (JSON 1.1), before the real SDK.
func fakeAWS(t *testing.T) *httptest.Server {
	// A blob is its own random name, of AWS's length.
	var keys sync.Map
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct{ KeyId, Plaintext, CiphertextBlob string }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || !strings.Contains(r.Header.Get("Authorization"), "/eu-north-1/kms/") {
			http.Error(w, "{}", http.StatusForbidden)
			return
		}
		fail := func(kind string) {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"__type":%q,"message":"no"}`, kind)
		}
		switch r.Header.Get("X-Amz-Target") {
		case "TrentService.Encrypt":
			plain, err := base64.StdEncoding.DecodeString(in.Plaintext)
			if err != nil || len(plain) != 32 || in.KeyId != "alias/walherd" {
				fail("NotFoundException")
				return
			}
			blob := make([]byte, 184)
			_, _ = rand.Read(blob)
			keys.Store(string(blob), plain)
			_ = json.NewEncoder(w).Encode(map[string]any{"CiphertextBlob": blob, "KeyId": in.KeyId})
		case "TrentService.Decrypt":
			blob, err := base64.StdEncoding.DecodeString(in.CiphertextBlob)
			key, ok := keys.Load(string(blob))
			if err != nil || !ok {
				fail("InvalidCiphertextException")
				return
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"Plaintext": key})
		default:
			fail("UnknownOperationException")
		}
	}))
	t.Cleanup(server.Close)
	return server
}

func TestAWS(t *testing.T) {
	t.Parallel()
	server := fakeAWS(t)
	client := awshttp.NewBuildableClient().WithTransportOptions(func(tr *http.Transport) { tr.DisableKeepAlives = true })
	service := func(key string) seal.KeyService {
		s, err := kms.NewAWS(context.Background(), seal.AWSKeyOptions{Key: key, Region: "eu-north-1"},
			config.WithBaseEndpoint(server.URL),
			config.WithHTTPClient(client),
			config.WithCredentialsProvider(aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{AccessKeyID: "id", SecretAccessKey: "secret"}, nil
			})))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := seal.NewAWSKMS(service("alias/walherd"))
	data := bytes.Repeat([]byte("walherd "), 25_000)
	var object bytes.Buffer
	w, err := s.Seal(context.Background(), &object)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	open := func() ([]byte, error) {
		r, err := s.Open(context.Background(), bytes.NewReader(object.Bytes()))
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	if got, err := open(); err != nil || !bytes.Equal(got, data) {
		t.Fatal(len(got), err)
	}
	object.Bytes()[20] ^= 1
	if _, err := open(); !errors.Is(err, seal.ErrWrongKey) {
		t.Fatalf("another blob: %v, want ErrWrongKey", err)
	}
	if _, err := seal.NewAWSKMS(service("alias/none")).Seal(context.Background(), io.Discard); err == nil || !strings.Contains(err.Error(), "alias/none") {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Seal(ctx, io.Discard); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := kms.NewAWS(context.Background(), seal.AWSKeyOptions{}); err == nil {
		t.Fatal("no key was taken")
	}
}
