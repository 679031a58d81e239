package azure_test

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"go.uber.org/goleak"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/azure"
	"github.com/walherd/walherd/storage/azure/azuretest"
	"github.com/walherd/walherd/storage/storagetest"
)

// shared is the one server of this test binary, started by the first test that
// wants it: it takes a second.
var shared struct {
	sync.Mutex
	server *azuretest.Server
	err    error
}

func server(t testing.TB) *azuretest.Server {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil && shared.err == nil {
		shared.server, shared.err = azuretest.Run(context.Background())
	}
	if shared.err != nil {
		t.Fatalf("start an Azure server: %v", shared.err)
	}
	return shared.server
}

type stopping struct{ m *testing.M }

func (s stopping) Run() int {
	defer func() {
		if shared.server != nil {
			shared.server.Stop()
		}
	}()
	return s.m.Run()
}

// No test may leave a goroutine: of an upload, of a watch, of the server.
func TestMain(m *testing.M) {
	// The settings under test are those in the options.
	for _, setting := range os.Environ() {
		if name, _, _ := strings.Cut(setting, "="); strings.HasPrefix(name, "AZURE_") {
			os.Unsetenv(name)
		}
	}
	goleak.VerifyTestMain(stopping{m})
}

// options are those of a fresh container on the server, with short pauses.
func options(t testing.TB) azure.Options {
	t.Helper()
	s := server(t)
	return azure.Options{
		Container: s.NewContainer(t), Prefix: "some/path",
		Endpoint: s.Endpoint, Account: s.Account, AccessKey: s.AccessKey,
		RetryDelay: time.Millisecond, MaxRetryDelay: 50 * time.Millisecond,
	}
}

func open(t testing.TB, opt azure.Options) *azure.Bucket {
	t.Helper()
	b, err := azure.Open(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// TestBucket runs the promise in each manner of speaking to a store.
func TestBucket(t *testing.T) {
	t.Parallel()
	for name, tune := range map[string]func(*azure.Options){
		"Default": func(*azure.Options) {},
		// Small blocks make the suite's objects uploads in blocks.
		"BlocksOfAnOldVersion": func(o *azure.Options) {
			o.Prefix, o.APIVersion, o.BufferSize, o.MaxBuffers = "", "2018-11-09", 64<<10, 3
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storagetest.Run(t, func(t *testing.T) storage.Bucket {
				if name != "Default" && strings.Contains(t.Name(), "/List/") {
					t.Skip("listings know nothing of blocks")
				}
				opt := options(t)
				tune(&opt)
				return open(t, opt)
			})
		})
	}
}

func credential(account, key string) (*container.SharedKeyCredential, error) {
	return container.NewSharedKeyCredential(account, key)
}
