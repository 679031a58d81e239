package azure_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"pgregory.net/rapid"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/azure"
	"github.com/walherd/walherd/storage/storagetest"
)

// TestOddNames adds to the suite's: names that this store refuses.
func TestOddNames(t *testing.T) {
	t.Parallel()
	b := open(t, options(t))
	names := []string{
		"...", "..a", "a..", ".hidden", "d/..x/y", "with space", "d/plus+percent%41&=?#", "ünï/cödé", "d/%2F%5C",
		"000000010000000000000003.", "a.tmp", "-dash", "*", "q'\"uote", "<&>", "a:b|c", "\U0001F418",
	}
	for i, name := range names {
		storagetest.MustPut(t, b, name, storagetest.Content(byte(i), i))
	}
	for i, name := range names {
		if got := storagetest.MustGet(t, b, name); !bytes.Equal(got, storagetest.Content(byte(i), i)) {
			t.Errorf("%q holds %d bytes", name, len(got))
		}
	}
	slices.Sort(names)
	if got := storagetest.Names(t, b, "", storage.ListOptions{}); !slices.Equal(got, names) {
		t.Errorf("listed %q, want %q", got, names)
	}
	if err := b.Delete(t.Context(), names...); err != nil {
		t.Error(err)
	}
	if got := storagetest.Names(t, b, "", storage.ListOptions{}); len(got) != 0 {
		t.Errorf("still there: %q", got)
	}
	for _, name := range []string{`back\slash`, "a\nb", "a\x7f", "\xff", "x\ufffe", strings.Repeat("ü", 1024)} {
		if _, err := b.Stat(t.Context(), name); !errors.Is(err, storage.ErrName) {
			t.Errorf("Stat(%q): %v", name, err)
		}
	}
}

// TestListPages: a listing that takes many pages has each name once, in order,
// also the common prefixes that lie across pages, and shows no uncommitted
// blocks.
func TestListPages(t *testing.T) {
	t.Parallel()
	opt := options(t)
	azure.SetPageSize(&opt, 2)
	b := open(t, opt)
	names := []string{"a-", "a.b", "a/1", "a/2", "a/3", "a/4/5", "a0", "b/1", "b/2", "b/3", "c"}
	for _, name := range names {
		storagetest.MustPut(t, b, name, nil)
	}
	if _, err := b.Client().NewBlockBlobClient("some/path/b/21").StageBlock(t.Context(), "QUFB", body("x"), nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		prefix string
		opt    storage.ListOptions
		want   []string
	}{
		{"", storage.ListOptions{}, names},
		{"", storage.ListOptions{After: "a/2"}, names[4:]},
		{"a", storage.ListOptions{}, names[:7]},
		{"", storage.ListOptions{Shallow: true}, []string{"a-", "a.b", "a/", "a0", "b/", "c"}},
		{"a/", storage.ListOptions{Shallow: true}, []string{"a/1", "a/2", "a/3", "a/4/"}},
		{"", storage.ListOptions{Shallow: true, After: "a/"}, []string{"a0", "b/", "c"}},
	} {
		if got := storagetest.Names(t, b, c.prefix, c.opt); !slices.Equal(got, c.want) {
			t.Errorf("List(%q, %+v): %q, want %q", c.prefix, c.opt, got, c.want)
		}
	}
}

func body(s string) io.ReadSeekCloser { return nopCloser{strings.NewReader(s)} }

type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }

// TestListOutOfOrder: the order of accounts with a hierarchical namespace is
// told, not passed on; their directories are no objects.
func TestListOutOfOrder(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		io.WriteString(w, `<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>`)
		for _, name := range []string{"a", "a/x", "a-b"} {
			kind := "file"
			if name == "a" {
				kind = "directory"
			}
			fmt.Fprintf(w, `<Blob><Name>%s</Name><Properties><Last-Modified>Mon, 02 Jan 2006 15:04:05 GMT</Last-Modified><Etag>1</Etag><Content-Length>3</Content-Length><ResourceType>%s</ResourceType></Properties></Blob>`, name, kind)
		}
		io.WriteString(w, `</Blobs><NextMarker/></EnumerationResults>`)
	}))
	defer srv.Close()
	b := open(t, azure.Options{Container: "abc", Account: "acc", AccessKey: "a2V5", Endpoint: srv.URL})
	var names []string
	var last error
	for info, err := range b.List(t.Context(), "", storage.ListOptions{}) {
		if last = err; err == nil {
			names = append(names, info.Name)
		}
	}
	if !slices.Equal(names, []string{"a/x"}) || !errors.Is(last, storage.ErrPermanent) {
		t.Errorf("listed %q, %v", names, last)
	}
}

// TestIfAbsentRaceOfBlocks: of large objects put at once exactly one wins,
// though each ends the others' blocks.
func TestIfAbsentRaceOfBlocks(t *testing.T) {
	t.Parallel()
	opt := options(t)
	opt.BufferSize = 64 << 10
	b := open(t, opt)
	const racers = 6
	var atEnd, all sync.WaitGroup
	atEnd.Add(racers)
	errs := make([]error, racers)
	for i := range racers {
		all.Go(func() {
			// All wait for one another at their end.
			r := io.MultiReader(bytes.NewReader(storagetest.Content(byte(i), 300_000+i)), calls{func() { atEnd.Done(); atEnd.Wait() }})
			_, errs[i] = b.Put(t.Context(), "x", r, storage.PutOptions{IfAbsent: true})
		})
	}
	all.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner < 0:
			winner = i
		case err == nil:
			t.Errorf("both %d and %d won", winner, i)
		case !errors.Is(err, storage.ErrExist):
			t.Errorf("racer %d: %v", i, err)
		}
	}
	if winner < 0 {
		t.Fatal("nobody won")
	}
	if got := storagetest.MustGet(t, b, "x"); !bytes.Equal(got, storagetest.Content(byte(winner), 300_000+winner)) {
		t.Errorf("%d won, and another's content is there: %d bytes", winner, len(got))
	}
	wantClean(t, b)
}

// TestBlocksGone: another Put of the name ends an upload's blocks. The other
// one's object stays; a deletion in between cannot be made up for, and is
// told.
func TestBlocksGone(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		also  func(t *testing.T, b *azure.Bucket)
		wants func(err error) bool
	}{
		{"Put", func(*testing.T, *azure.Bucket) {}, func(err error) bool { return err == nil }},
		{"PutAndDelete", func(t *testing.T, b *azure.Bucket) {
			if err := b.Delete(t.Context(), "x"); err != nil {
				t.Error(err)
			}
		}, func(err error) bool { return err != nil && !errors.Is(err, storage.ErrPermanent) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			opt := options(t)
			opt.BufferSize, opt.MaxBuffers = 64<<10, 1
			b := open(t, opt)
			// In blocks: Azurite keeps the others' when a blob is put at once.
			other := storagetest.Content(2, 100_000)
			r := io.MultiReader(bytes.NewReader(storagetest.Content(1, 300_000)), calls{func() {
				storagetest.MustPut(t, b, "x", other)
				c.also(t, b)
			}}, bytes.NewReader(storagetest.Content(3, 100_000)))
			info, err := b.Put(t.Context(), "x", r, storage.PutOptions{})
			if !c.wants(err) {
				t.Fatalf("Put: %v", err)
			}
			if err != nil {
				return
			}
			if info.Size != 400_000 || info.Modified.IsZero() {
				t.Errorf("Put tells %+v", info)
			}
			if got := storagetest.MustGet(t, b, "x"); !bytes.Equal(got, other) {
				t.Errorf("the other's object is %d bytes", len(got))
			}
		})
	}
}

// TestMemory: what uploads hold is bounded, whatever they send.
func TestMemory(t *testing.T) {
	t.Parallel()
	opt := options(t)
	opt.BufferSize, opt.MaxBuffers = 256<<10, 4
	for puts, want := range map[int]int64{1: 4 * 256 << 10, 4: (4 + 3) * 256 << 10} {
		b := open(t, opt)
		var all sync.WaitGroup
		for i := range puts {
			all.Go(func() {
				data := storagetest.Content(byte(i), 2<<20+i)
				name := fmt.Sprint(puts, "-", i)
				if _, err := b.Put(t.Context(), name, bytes.NewReader(data), storage.PutOptions{}); err != nil {
					t.Error(err)
				} else if got := storagetest.MustGet(t, b, name); !bytes.Equal(got, data) {
					t.Errorf("%s holds %d bytes", name, len(got))
				}
			})
		}
		all.Wait()
		if _, peak := b.Memory(); peak > want || peak < 512<<10 {
			t.Errorf("%d uploads held %d bytes, want up to %d", puts, peak, want)
		}
		wantClean(t, b)
	}
	// A small object does not take a block's memory.
	opt.BufferSize = 64 << 20
	b := open(t, opt)
	storagetest.MustPut(t, b, "small", []byte("x"))
	if _, peak := b.Memory(); peak > 1<<20 {
		t.Errorf("a byte held %d", peak)
	}
}

// wantClean checks that nothing of an upload is held.
func wantClean(t testing.TB, b *azure.Bucket) {
	t.Helper()
	if now, _ := b.Memory(); now != 0 {
		t.Errorf("%d bytes are still held", now)
	}
	if !b.BudgetFree() {
		t.Error("some of the upload budget was not given back")
	}
}

// TestErrors: what a person must mend is permanent and names the setting; no
// error shows a secret.
func TestErrors(t *testing.T) {
	t.Parallel()
	s := server(t)
	const secret = "c2VjcmV0LXNlY3JldA=="
	for name, c := range map[string]struct {
		tune func(*azure.Options)
		want string
	}{
		"MissingContainer": {func(o *azure.Options) { o.Container = "missing" }, "create the container"},
		"WrongKey":         {func(o *azure.Options) { o.AccessKey = secret }, "AZURE_STORAGE_ACCESS_KEY"},
		"BadSAS": {func(o *azure.Options) {
			o.AccessKey, o.SASToken = "", "?sv=2021-12-02&sr=c&sp=racwdl&se=2099-01-01T00%3A00%3A00Z&sig="+secret
		}, "AZURE_STORAGE_SAS_TOKEN"},
		"EndedSAS": {func(o *azure.Options) {
			o.AccessKey, o.SASToken = "", token(t, *o, time.Now().Add(-time.Hour), "racwdl")
		}, "AZURE_STORAGE_SAS_TOKEN"},
		"ReadOnlySAS": {func(o *azure.Options) { o.AccessKey, o.SASToken = "", token(t, *o, time.Now().Add(time.Hour), "rl") }, "AZURE_STORAGE_SAS_TOKEN"},
		"UnknownHost": {func(o *azure.Options) { o.Endpoint = "http://no-such-account.invalid" }, "AZURE_STORAGE_ACCOUNT"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opt := options(t)
			opt.MaxRetries, opt.BufferSize = 1, 1<<20
			c.tune(&opt)
			b := open(t, opt)
			large := bytes.NewReader(make([]byte, 2<<20))
			_, small := b.Put(t.Context(), "x", strings.NewReader("x"), storage.PutOptions{})
			_, big := b.Put(t.Context(), "x", large, storage.PutOptions{IfAbsent: true})
			errs := []error{small, big, b.Delete(t.Context(), "x")}
			if name != "ReadOnlySAS" {
				_, stat := b.Stat(t.Context(), "x")
				_, get := b.Open(t.Context(), "x", storage.Range{})
				errs = append(errs, stat, get)
				for _, err := range b.List(t.Context(), "", storage.ListOptions{}) {
					errs = append(errs, err)
				}
			}
			for i, err := range errs {
				if !errors.Is(err, storage.ErrPermanent) || !strings.Contains(fmt.Sprint(err), c.want) {
					t.Errorf("%d: %v", i, err)
				}
				if text := fmt.Sprint(err); strings.Contains(text, "sig=") || strings.Contains(text, secret) || strings.Contains(text, s.AccessKey) || strings.Contains(text, "\n") {
					t.Errorf("%d: a secret, or many lines: %v", i, err)
				}
			}
		})
	}
}

// token is a container's shared access signature.
func token(t testing.TB, o azure.Options, until time.Time, permissions string) string {
	t.Helper()
	s := server(t)
	cred, err := credential(s.Account, s.AccessKey)
	if err != nil {
		t.Fatal(err)
	}
	q, err := sas.BlobSignatureValues{Version: "2021-12-02", ContainerName: o.Container, Permissions: permissions, ExpiryTime: until.UTC()}.SignWithSharedKey(cred)
	if err != nil {
		t.Fatal(err)
	}
	return "?" + q.Encode()
}

// TestSAS uses a token in place of a key.
func TestSAS(t *testing.T) {
	t.Parallel()
	opt := options(t)
	opt.AccessKey, opt.SASToken, opt.BufferSize = "", token(t, opt, time.Now().Add(time.Hour), "racwdl"), 64<<10
	b := open(t, opt)
	data := storagetest.Content(1, 200_000)
	if _, err := b.Put(t.Context(), "x", bytes.NewReader(data), storage.PutOptions{IfAbsent: true}); err != nil {
		t.Fatal(err)
	}
	if got := storagetest.MustGet(t, b, "x"); !bytes.Equal(got, data) {
		t.Errorf("read %d bytes", len(got))
	}
	if got := storagetest.Names(t, b, "", storage.ListOptions{}); !slices.Equal(got, []string{"x"}) {
		t.Errorf("listed %q", got)
	}
	if err := b.Delete(t.Context(), "x", "y"); err != nil {
		t.Error(err)
	}
}

// TestChainWithoutIdentity: the default chain that finds nobody names what can
// be set.
func TestChainWithoutIdentity(t *testing.T) {
	t.Parallel()
	srv := httptest.NewTLSServer(http.NotFoundHandler())
	defer srv.Close()
	b := open(t, azure.Options{Container: "abc", Account: "acc", Endpoint: srv.URL})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Stat(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	// Plain http would show the identity's token to the network.
	b = open(t, azure.Options{Container: "abc", Account: "acc", Endpoint: strings.Replace(srv.URL, "https", "http", 1)})
	if _, err := b.Stat(t.Context(), "x"); !errors.Is(err, storage.ErrPermanent) || !strings.Contains(err.Error(), "AZURE_STORAGE_ACCESS_KEY") {
		t.Error(err)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	good := azure.Options{Container: "abc", Account: "acc", AccessKey: "a2V5"}
	for want, tune := range map[string]func(*azure.Options){
		"AZURE_STORAGE_ACCOUNT":        func(o *azure.Options) { o.Account = "" },
		`"acc.blob"`:                   func(o *azure.Options) { o.Account = "acc.blob" },
		"AZURE_STORAGE_ACCESS_KEY":     func(o *azure.Options) { o.AccessKey = "?" },
		"AZURE_ENVIRONMENT_NAME":       func(o *azure.Options) { o.Environment = "Moon" },
		"AZURE_ENDPOINT_SUFFIX":        func(o *azure.Options) { o.EndpointSuffix = "https://x" },
		"AZURE_BUFFER_SIZE":            func(o *azure.Options) { o.BufferSize = 1023 },
		"AZURE_BUFFER_SIZE is 10485":   func(o *azure.Options) { o.BufferSize, o.APIVersion = 100<<20+1, "2018-11-09" },
		"AZURE_MAX_BUFFERS":            func(o *azure.Options) { o.MaxBuffers = -1 },
		"AZURE_TRY_TIMEOUT":            func(o *azure.Options) { o.TryTimeout = -time.Minute },
		"AZURE_BLOB_STORE_API_VERSION": func(o *azure.Options) { o.APIVersion = "latest" },
		"WALG_AZ_PREFIX":               func(o *azure.Options) { o.Container = "A" },
		"no URL of a blob service":     func(o *azure.Options) { o.Endpoint = "localhost:10000" },
	} {
		opt := good
		tune(&opt)
		if _, err := azure.Open(t.Context(), opt); !errors.Is(err, storage.ErrPermanent) || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error on %s: %v", want, err)
		}
	}
	for want, tune := range map[string]func(*azure.Options){
		"https://acc.blob.core.windows.net/abc":       func(o *azure.Options) {},
		"https://acc.blob.core.usgovcloudapi.net/abc": func(o *azure.Options) { o.Environment = "AzureUSGovernmentCloud" },
		"https://acc.blob.core.chinacloudapi.cn/abc":  func(o *azure.Options) { o.Environment = "AzureChinaCloud" },
		"https://acc.blob.core.cloudapi.de/abc":       func(o *azure.Options) { o.Environment = "AzureGermanCloud" },
		"https://acc.blob.stack.example.org/abc":      func(o *azure.Options) { o.Environment, o.EndpointSuffix = "AzureChinaCloud", "stack.example.org" },
		"http://127.0.0.1:10000/acc/abc":              func(o *azure.Options) { o.Endpoint = "http://127.0.0.1:10000/acc/" },
	} {
		opt := good
		tune(&opt)
		b := open(t, opt)
		if b.URL() != want {
			t.Errorf("the container is at %s, want %s", b.URL(), want)
		}
		if b.Location() != "azure://abc" {
			t.Errorf("location %s", b.Location())
		}
	}
}

func TestParsePrefix(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][2]string{
		"azure://abc":          {"abc", ""},
		"azure://abc/":         {"abc", ""},
		"azure://a-1/b/c/":     {"a-1", "b/c"},
		"azure://$root/b":      {"$root", "b"},
		"azure://abc//some/p/": {"abc", "some/p"},
	} {
		container, prefix, err := azure.ParsePrefix(in)
		if err != nil || [2]string{container, prefix} != want {
			t.Errorf("%q: %q, %q, %v", in, container, prefix, err)
		}
	}
	for _, in := range []string{"", "abc", "s3://abc", "azure://", "azure:///x", "azure://ab", "azure://Abc", "azure://a_b", "azure://abc/a//b", "azure://abc/../x", `azure://abc/a\b`} {
		if c, p, err := azure.ParsePrefix(in); err == nil {
			t.Errorf("%q: %q, %q", in, c, p)
		}
	}
}

func FuzzParsePrefix(f *testing.F) {
	for _, s := range []string{"azure://abc/d/e", "azure://abc", "azure://-$-//"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		container, prefix, err := azure.ParsePrefix(s)
		if err != nil {
			return
		}
		b, err := azure.Open(t.Context(), azure.Options{Container: container, Prefix: prefix, Account: "acc", AccessKey: "a2V5"})
		if err != nil {
			t.Fatalf("%q is parsed and not opened: %v", s, err)
		}
		again, prefixAgain, err := azure.ParsePrefix(b.Location())
		if err != nil || again != container || prefixAgain != prefix {
			t.Fatalf("%q: %q and %q become %q, %q, %v", s, container, prefix, again, prefixAgain, err)
		}
	})
}

// TestBlockPlan: whatever the first blocks' size, 50,000 hold 5 TiB, none is
// larger than the store takes, and no later one is smaller.
func TestBlockPlan(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		base := rapid.Int64Range(1024, 4000<<20).Draw(t, "base")
		sizes := azure.BlockSizes(base, 4000<<20)
		var sum int64
		for i, n := range sizes {
			if n < base || n > 4000<<20 || i > 0 && n < sizes[i-1] {
				t.Fatalf("block %d has %d bytes", i+1, n)
			}
			sum += n
		}
		if sum < 5<<40 {
			t.Fatalf("all blocks hold %d bytes", sum)
		}
		if sizes[4999] != base {
			t.Fatalf("block 5000 has grown to %d", sizes[4999])
		}
	})
}

// TestCRC64 uses the check value of CRC-64/NVME: Azurite does not know this
// checksum, Azure refuses a wrong one.
func TestCRC64(t *testing.T) {
	t.Parallel()
	if got := crc64.Checksum([]byte("123456789"), azure.NVMe); got != 0xae8b14860a799888 {
		t.Errorf("CRC64 of 123456789 is %x", got)
	}
	var sent sync.Map
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent.Store(r.Method, r.Header.Get("x-ms-content-crc64"))
		io.Copy(io.Discard, r.Body)
		w.Header().Set("ETag", `"1"`)
		w.WriteHeader(http.StatusCreated)
	}))
	defer srv.Close()
	b := open(t, azure.Options{Container: "abc", Account: "acc", AccessKey: "a2V5", Endpoint: srv.URL, Checksum: azure.ChecksumCRC64})
	storagetest.MustPut(t, b, "x", []byte("123456789"))
	// The sum's bytes from the lowest, in base64.
	if got, _ := sent.Load(http.MethodPut); got != "iJh5CoYUi64=" {
		t.Errorf("sent the CRC64 %v", got)
	}
}

type calls struct{ f func() }

func (c calls) Read([]byte) (int, error) { c.f(); return 0, io.EOF }
