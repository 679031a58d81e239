package s3_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/s3"
	"github.com/walherd/walherd/storage/s3/s3test"
)

// lockedBuffer may be written to by several at once.
type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

// TestRequestLog: every try is told, and no secret.
func TestRequestLog(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.Options{})
	p := newTLSProxy(t, server.Endpoint, once(slowDown, isPut))
	p.remember = true
	// The server knows no SSE-C: what is tested is what is sent.
	forward := p.Config.Handler
	p.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Secret-Answer", "secret-answer")
		forward.ServeHTTP(w, r)
	})
	key := []byte("secret-sse-c-key-of-32-bytes!!!!")
	opt := options(t, server)
	opt.Endpoint, opt.SessionToken, opt.SSECKey = p.URL, "secret-session", key
	opt.Headers = map[string]string{"X-Proxy-Password": "secret-header"}
	opt.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	opt.MaxRetries = 1
	if err := os.WriteFile(opt.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, level := range []slog.Level{slog.LevelInfo, slog.LevelDebug} {
		var text lockedBuffer
		opt.Log = slog.New(slog.NewJSONHandler(&text, &slog.HandlerOptions{Level: level}))
		b, err := s3.Open(t.Context(), opt)
		if err != nil {
			t.Fatal(err)
		}
		// Whether the store takes it is of no matter here.
		_, _ = b.Put(t.Context(), "a b/ü", strings.NewReader("secret-content"), storage.PutOptions{})
		_, _ = b.Stat(t.Context(), "x")
		b.Close()
		if level == slog.LevelInfo {
			if text.Len() != 0 {
				t.Errorf("not at Debug, and yet: %s", text.String())
			}
			continue
		}
		checkLog(t, text.String(), server, key)
	}
	// What goes over the wire holds the secrets, so there was something to hide.
	sent := fmt.Sprint(p.headers(http.MethodPut)[0].Header)
	for _, secret := range []string{"secret-session", "secret-header", base64.StdEncoding.EncodeToString(key), "Signature="} {
		if !strings.Contains(sent, secret) {
			t.Errorf("%s was not sent: %s", secret, sent)
		}
	}
	// A store that cannot be reached is told too.
	var text lockedBuffer
	opt.Log = slog.New(slog.NewJSONHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug}))
	opt.Endpoint = "https://127.0.0.1:1"
	_, _ = open(t, opt).Stat(t.Context(), "x")
	if !strings.Contains(text.String(), `dial tcp 127.0.0.1:1`) {
		t.Errorf("the log: %s", text.String())
	}
}

func checkLog(t *testing.T, text string, server *s3test.Server, key []byte) {
	t.Helper()
	for _, secret := range []string{"secret", "Signature", "Credential", server.SecretAccessKey, server.AccessKeyID, base64.StdEncoding.EncodeToString(key)} {
		// The name of the header that the fake answers with may be told.
		if strings.Contains(strings.ReplaceAll(text, "X-Secret-Answer", ""), secret) {
			t.Errorf("the log tells %q: %s", secret, text)
		}
	}
	tries := 0
	for line := range strings.Lines(text) {
		var record struct {
			Msg, Method, URL  string
			Status            int
			Request, Response []string
		}
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatal(err)
		}
		if record.Method == http.MethodPut {
			tries++
			if record.Msg != "S3 request" || !strings.Contains(record.URL, "/a%20b/%C3%BC") || record.Status < 200 {
				t.Errorf("told: %s", line)
			}
			all := strings.Join(append(record.Request, record.Response...), "\n")
			for _, want := range []string{"Authorization: (hidden)", "X-Proxy-Password: (hidden)", "X-Amz-Checksum-Crc32c: ", "X-Secret-Answer: (hidden)", fmt.Sprintf("Amz-Sdk-Request: attempt=%d", tries)} {
				if !strings.Contains(all, want) {
					t.Errorf("%q is not told: %s", want, all)
				}
			}
		}
	}
	if tries < 1 {
		t.Errorf("the Put is not in the log: %s", text)
	}
}
