package gcs_test

import (
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/gcs"
	"github.com/walherd/walherd/storage/gcs/gcstest"
	"github.com/walherd/walherd/storage/storagetest"
)

// No test may leave a goroutine: of an upload, of a watch.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// options are those of a fresh bucket, with short pauses.
func options(t testing.TB, s *gcstest.Server) gcs.Options {
	t.Helper()
	return gcs.Options{
		Bucket: s.NewBucket(t), Prefix: "some/path", EmulatorHost: s.Host,
		MinRetryDelay: time.Millisecond, MaxRetryDelay: 20 * time.Millisecond,
	}
}

func open(t testing.TB, opt gcs.Options) *gcs.Bucket {
	t.Helper()
	b, err := gcs.Open(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// pair is a Bucket behind a front, and the same one straight.
func pair(t testing.TB, s *gcstest.Server, sc script, tune func(*gcs.Options)) (b, direct *gcs.Bucket, f *front) {
	t.Helper()
	f = newFront(t, s.Host, false, sc)
	opt := options(t, s)
	direct = open(t, opt)
	opt.EmulatorHost = f.URL
	opt.ChunkSize = 1 << 20
	if tune != nil {
		tune(&opt)
	}
	return open(t, opt), direct, f
}

// TestBucket runs the promise against the emulator alone and behind the front,
// whose sessions are like the real store's.
func TestBucket(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	for name, tune := range map[string]func(*gcs.Options){
		"Default": func(*gcs.Options) {},
		// Small chunks make the suite's large objects resumable uploads.
		"Chunks": func(o *gcs.Options) { o.Prefix, o.ChunkSize, o.DeleteParallel = "", 256<<10, 1 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storagetest.Run(t, func(t *testing.T) storage.Bucket {
				opt := options(t, server)
				tune(&opt)
				return open(t, opt)
			})
		})
	}
	t.Run("Front", func(t *testing.T) {
		t.Parallel()
		storagetest.Run(t, func(t *testing.T) storage.Bucket {
			b, _, f := pair(t, server, never, func(o *gcs.Options) { o.ChunkSize = 512 << 10 })
			t.Cleanup(func() {
				if n := f.open(); n != 0 {
					t.Errorf("%d sessions are left", n)
				}
				wantFree(t, b)
			})
			return b
		})
	})
}

func wantFree(t testing.TB, b *gcs.Bucket) {
	t.Helper()
	if now, _, free := b.Memory(); now != 0 || !free {
		t.Errorf("%d bytes are still held, all given back: %t", now, free)
	}
}

// TestListPages: a page's end is no end.
func TestListPages(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	b, direct, f := pair(t, server, never, nil)
	var want []string
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		storagetest.MustPut(t, direct, name, []byte(name))
		want = append(want, name)
	}
	b.SetPage(2)
	got := storagetest.Names(t, b, "", storage.ListOptions{})
	if len(got) != len(want) || f.seen(list) != 4 {
		t.Errorf("listed %q in %d requests", got, f.seen(list))
	}
	if got := storagetest.Names(t, b, "", storage.ListOptions{After: "c"}); len(got) != 4 || got[0] != "d" {
		t.Errorf("listed %q after c", got)
	}
}

// TestMissingBucket: every operation says so, for good, and names the setting.
func TestMissingBucket(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	f := newFront(t, server.Host, false, never)
	for _, host := range []string{server.Host, f.URL} {
		opt := options(t, server)
		opt.Bucket, opt.EmulatorHost, opt.ChunkSize = "no-such-bucket", host, 256<<10
		wantRefused(t, opt, "WALG_GS_PREFIX")
	}
}

// TestStatMissing: a missing object in a bucket that is there.
func TestStatMissing(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	b, _, f := pair(t, server, first(1<<30, list, denied), nil)
	for range 2 {
		if _, err := b.Stat(t.Context(), "x"); !errors.Is(err, storage.ErrNotExist) || errors.Is(err, storage.ErrPermanent) {
			t.Errorf("Stat where listing is forbidden: %v", err)
		}
	}
	if f.seen(list) == 0 {
		t.Error("the bucket was not looked for")
	}
}
