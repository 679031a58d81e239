package s3_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/s3"
	"github.com/walherd/walherd/storage/s3/s3test"
	"github.com/walherd/walherd/storage/storagetest"
)

// TestYandexToken goes through a proxy that, like Yandex Object Storage, wants
// an IAM token and no signature. (There is no emulator of it.) Behind it is the
// real server, for which the proxy signs.
func TestYandexToken(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{})
	var asked, took atomic.Int64
	var status atomic.Int64
	status.Store(http.StatusServiceUnavailable) // the first time
	metadata := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if s := status.Swap(0); s != 0 || r.Header.Get("Metadata-Flavor") != "Google" {
			http.Error(w, "no", max(int(s), http.StatusForbidden))
			return
		}
		fmt.Fprint(w, `{"access_token":"t1.subject","expires_in":43000,"token_type":"Bearer"}`)
	}))
	t.Cleanup(metadata.Close)

	p := newTLSProxy(t, server.Endpoint, never)
	signed := p.Config.Handler
	p.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-YaCloud-SubjectToken") != "t1.subject" || r.Header.Get("Authorization") != "" {
			refuse(w, http.StatusForbidden, "AccessDenied")
			return
		}
		took.Add(1)
		r.Header.Del("X-YaCloud-SubjectToken")
		sum := r.Header.Get("X-Amz-Content-Sha256")
		if sum == "" {
			sum = "UNSIGNED-PAYLOAD"
			r.Header.Set("X-Amz-Content-Sha256", sum)
		}
		r.URL.Host, r.URL.Scheme = r.Host, "http"
		sign := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
		if err := sign.SignHTTP(r.Context(), aws.Credentials{AccessKeyID: server.AccessKeyID, SecretAccessKey: server.SecretAccessKey},
			r, sum, "s3", server.Region, time.Now()); err != nil {
			t.Error(err)
		}
		signed.ServeHTTP(w, r)
	})
	opt := options(t, server)
	opt.Endpoint, opt.PartSize, opt.CAFile = p.URL, 5<<20, filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(opt.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	opt.YandexToken, opt.YandexMetadata = true, metadata.URL
	b := open(t, opt)
	for name, size := range map[string]int{"small": 1000, "parts": 12 << 20} {
		data := storagetest.Content(1, size)
		storagetest.MustPut(t, b, name, data)
		if got := storagetest.MustGet(t, b, name); !bytes.Equal(got, data) {
			t.Errorf("%s is not what was put", name)
		}
	}
	if names := storagetest.Names(t, b, "", storage.ListOptions{}); len(names) != 2 {
		t.Errorf("listed: %q", names)
	}
	if err := b.Delete(t.Context(), "small", "parts"); err != nil {
		t.Error(err)
	}
	if asked.Load() != 2 || took.Load() < 10 {
		t.Errorf("the metadata service was asked %d times for %d requests, want 2 times", asked.Load(), took.Load())
	}

	// No service account: an error for good that says so, after one question.
	asked.Store(0)
	none := open(t, opt)
	status.Store(http.StatusNotFound)
	_, err := none.Put(t.Context(), "x", bytes.NewReader(nil), storage.PutOptions{})
	if !errors.Is(err, storage.ErrPermanent) || !strings.Contains(err.Error(), "link a service account") || asked.Load() != 1 {
		t.Errorf("without a service account: %v (asked %d times)", err, asked.Load())
	}

	for hint, spoil := range map[string]func(*s3.Options){
		"to https":     func(o *s3.Options) { o.Endpoint = server.Endpoint },
		"AWS_ENDPOINT": func(o *s3.Options) { o.Endpoint = "" },
		"AWS_ROLE_ARN": func(o *s3.Options) { o.RoleARN = "arn" },
	} {
		bad := opt
		spoil(&bad)
		if b, err := s3.Open(t.Context(), bad); err == nil {
			b.Close()
			t.Errorf("Open took what should speak of %q", hint)
		} else if !errors.Is(err, storage.ErrPermanent) || !strings.Contains(err.Error(), hint) {
			t.Errorf("Open: %v; want a hint about %q", err, hint)
		}
	}
}
