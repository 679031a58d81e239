package gcs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/gcs"
	"github.com/walherd/walherd/storage/gcs/gcstest"
	"github.com/walherd/walherd/storage/storagetest"
)

// wantClean checks that nothing is left of uploads, in memory or in the store.
func wantClean(t testing.TB, b *gcs.Bucket, f *front) {
	t.Helper()
	wantFree(t, b)
	if n := f.open(); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}

// wantRefused checks that every operation fails for good with a hint.
func wantRefused(t *testing.T, opt gcs.Options, hint string) {
	t.Helper()
	for op, do := range map[string]func(b *gcs.Bucket) error{
		"Put": func(b *gcs.Bucket) error {
			_, err := b.Put(t.Context(), "x", strings.NewReader("x"), storage.PutOptions{})
			return err
		},
		"PutIfAbsent": func(b *gcs.Bucket) error {
			_, err := b.Put(t.Context(), "x", strings.NewReader("x"), storage.PutOptions{IfAbsent: true})
			return err
		},
		"PutLarge": func(b *gcs.Bucket) error {
			_, err := b.Put(t.Context(), "x", bytes.NewReader(make([]byte, 3<<20)), storage.PutOptions{})
			return err
		},
		"PutLargeIfAbsent": func(b *gcs.Bucket) error {
			_, err := b.Put(t.Context(), "x", bytes.NewReader(make([]byte, 3<<20)), storage.PutOptions{IfAbsent: true})
			return err
		},
		"Open":   func(b *gcs.Bucket) error { _, err := read(t.Context(), b, storage.Range{}); return err },
		"Stat":   func(b *gcs.Bucket) error { _, err := b.Stat(t.Context(), "x"); return err },
		"Delete": func(b *gcs.Bucket) error { return b.Delete(t.Context(), "x", "y") },
		"List": func(b *gcs.Bucket) error {
			for _, err := range b.List(t.Context(), "", storage.ListOptions{}) {
				return err
			}
			return nil
		},
	} {
		b := open(t, opt)
		if err := do(b); !errors.Is(err, storage.ErrPermanent) || !strings.Contains(err.Error(), hint) || errors.Is(err, storage.ErrNotExist) {
			t.Errorf("%s: %v; want a permanent error that speaks of %q", op, err, hint)
		}
		wantFree(t, b)
	}
}

func read(ctx context.Context, b storage.Bucket, rng storage.Range) ([]byte, error) {
	r, err := b.Open(ctx, "x", rng)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

// always spoils every request.
func always(f fault) script { return func(kind, int) fault { return f } }

// TestFaultsDenied: 401 and 403 name the way out, and are not tried again.
func TestFaultsDenied(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	for what, hint := range map[fault]string{denied: "roles/storage.objectUser", unknown: "GOOGLE_APPLICATION_CREDENTIALS"} {
		f := newFront(t, server.Host, false, always(what))
		opt := options(t, server)
		opt.EmulatorHost, opt.ChunkSize = f.URL, 256<<10
		wantRefused(t, opt, hint)
		if n := f.seen(list); n != 1 {
			t.Errorf("%s: listed %d times", what, n)
		}
	}
}

// TestFaultsAcknowledgedIsWhole puts objects through a link on which a third
// of the requests go wrong.
func TestFaultsAcknowledgedIsWhole(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(1, 2))
	faults := []fault{busy, reset, lose, shrink, limited}
	b, direct, f := pair(t, server, func(k kind, _ int) fault {
		mu.Lock()
		defer mu.Unlock()
		if random.IntN(3) > 0 || k == cancel {
			return pass
		}
		what := faults[random.IntN(len(faults))]
		if what == lose && k == begin {
			return reset // a session nobody knows of: see TestFaultsLostBegin
		}
		return what
	}, func(o *gcs.Options) { o.MaxRetries = 100 })
	sizes := []int{0, 1, 3000, 600_000, 1<<20 - 1, 1 << 20, 1<<20 + 1, 5<<20 + 5}
	var all sync.WaitGroup
	for i, size := range sizes {
		all.Go(func() {
			data := storagetest.Content(byte(i), size)
			name := fmt.Sprintf("objects/%d", size)
			info, err := b.Put(t.Context(), name, iotest.HalfReader(bytes.NewReader(data)), storage.PutOptions{IfAbsent: i%2 == 0})
			if err != nil {
				t.Errorf("Put of %d bytes: %v", size, err)
				return
			}
			if info.Size != int64(size) {
				t.Errorf("Put of %d bytes tells %d", size, info.Size)
			}
			if got := storagetest.MustGet(t, direct, name); !bytes.Equal(got, data) {
				t.Errorf("object of %d bytes holds %d others", size, len(got))
			}
			if got := storagetest.MustGet(t, b, name); !bytes.Equal(got, data) {
				t.Errorf("read %d bytes of %d", len(got), size)
			}
		})
	}
	all.Wait()
	wantClean(t, b, f)
}

// TestFaultsUpload breaks each step of an upload once: the object is whole.
func TestFaultsUpload(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	for _, k := range []kind{single, begin, chunk, last} {
		for _, what := range []fault{busy, limited, reset, lose, stall, shrink, expire} {
			// A session that expires after its first chunk cannot be mended.
			if what == expire && k != chunk || what == shrink && k == single || what == lose && k == begin {
				continue
			}
			for _, ifAbsent := range []bool{false, true} {
				t.Run(fmt.Sprint(k, "/", what, "/", ifAbsent), func(t *testing.T) {
					t.Parallel()
					b, direct, f := pair(t, server, first(1, k, what), func(o *gcs.Options) {
						if what == stall {
							o.StallTimeout = 300 * time.Millisecond
						}
					})
					size := 3<<20 + 5
					if k == single {
						size = 1 << 20
					}
					data := storagetest.Content(3, size)
					if _, err := b.Put(t.Context(), "x", bytes.NewReader(data), storage.PutOptions{IfAbsent: ifAbsent}); err != nil {
						t.Fatal(err)
					}
					if got := storagetest.MustGet(t, direct, "x"); !bytes.Equal(got, data) {
						t.Error("the object is another")
					}
					wantClean(t, b, f)
					if f.seen(k) == 0 {
						t.Errorf("no %s request came", k)
					}
					if what == lose && (k == chunk || k == last) && f.seen(ask) == 0 {
						t.Error("the session was not asked how far it is")
					}
					if _, err := b.Put(t.Context(), "x", bytes.NewReader(data), storage.PutOptions{IfAbsent: true}); !errors.Is(err, storage.ErrExist) {
						t.Errorf("another Put IfAbsent: %v", err)
					}
				})
			}
		}
	}
}

// TestFaultsLostLastAndSession: the object was made, the answer lost, and the
// session forgotten.
func TestFaultsLostLastAndSession(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	b, direct, _ := pair(t, server, func(k kind, _ int) fault {
		switch k {
		case last:
			return lose
		case ask:
			return expire
		}
		return pass
	}, nil)
	data := storagetest.Content(3, 3<<20)
	if _, err := b.Put(t.Context(), "x", bytes.NewReader(data), storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := storagetest.MustGet(t, direct, "x"); !bytes.Equal(got, data) {
		t.Error("the object is another")
	}
}

// TestFaultsExpiredSession: what is sent already is lost with a session.
func TestFaultsExpiredSession(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	for _, c := range []struct {
		k   kind
		nth int
	}{{chunk, 2}, {last, 1}} {
		b, direct, f := pair(t, server, func(k kind, nth int) fault {
			if k == c.k && nth == c.nth {
				return expire
			}
			return pass
		}, nil)
		old := storagetest.MustPut(t, direct, "x", []byte("old"))
		_, err := b.Put(t.Context(), "x", bytes.NewReader(make([]byte, 4<<20)), storage.PutOptions{})
		if err == nil || errors.Is(err, storage.ErrPermanent) || errors.Is(err, storage.ErrNotExist) || !strings.Contains(err.Error(), "session") {
			t.Errorf("Put whose session expires: %v", err)
		}
		if now, err := direct.Stat(t.Context(), "x"); err != nil || now != old {
			t.Errorf("the old object became %+v, %v", now, err)
		}
		wantClean(t, b, f)
	}
}

// TestFaultsLostBegin: a session nobody got to know is left for the store to
// forget.
func TestFaultsLostBegin(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	b, _, f := pair(t, server, first(1, begin, lose), nil)
	storagetest.MustPut(t, b, "x", make([]byte, 3<<20))
	wantFree(t, b)
	if n := f.open(); n != 1 {
		t.Errorf("%d sessions are left, want the lost one", n)
	}
}

// TestFaultsFailedPutLeavesNothing breaks each step of an upload for good.
func TestFaultsFailedPutLeavesNothing(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	for _, k := range []kind{single, begin, chunk, last} {
		for _, what := range []fault{busy, reset} {
			t.Run(fmt.Sprint(k, "/", what), func(t *testing.T) {
				t.Parallel()
				b, direct, f := pair(t, server, func(got kind, _ int) fault {
					if got == k || got == ask {
						return what
					}
					return pass
				}, func(o *gcs.Options) { o.MaxRetries = 2 })
				old := storagetest.Content(1, 100)
				storagetest.MustPut(t, direct, "x", old)
				size := 3 << 20
				if k == single {
					size = 1 << 20
				}
				_, err := b.Put(t.Context(), "x", bytes.NewReader(storagetest.Content(2, size)), storage.PutOptions{})
				if err == nil {
					t.Fatal("Put succeeded")
				}
				if errors.Is(err, storage.ErrPermanent) || !strings.Contains(err.Error(), "tried 3 times") {
					t.Errorf("Put: %v", err)
				}
				if strings.Contains(err.Error(), "upload_id") {
					t.Errorf("the error tells the session: %v", err)
				}
				if got := storagetest.MustGet(t, direct, "x"); !bytes.Equal(got, old) {
					t.Error("the old object is gone")
				}
				wantClean(t, b, f)
			})
		}
	}
}

// TestFaultsDamagedUpload: bytes that change on the way are refused by the
// store; a store that does not look is found out, and the object removed.
func TestFaultsDamagedUpload(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	for _, k := range []kind{single, chunk, last} {
		b, direct, f := pair(t, server, first(1, k, corrupt), nil)
		old := storagetest.Content(1, 100)
		storagetest.MustPut(t, direct, "x", old)
		size := 3 << 20
		if k == single {
			size = 1 << 20
		}
		_, err := b.Put(t.Context(), "x", bytes.NewReader(storagetest.Content(2, size)), storage.PutOptions{})
		if err == nil || errors.Is(err, storage.ErrPermanent) {
			t.Errorf("%s: Put of damaged bytes: %v", k, err)
		}
		if got := storagetest.MustGet(t, direct, "x"); !bytes.Equal(got, old) {
			t.Errorf("%s: the old object is gone", k)
		}
		wantClean(t, b, f)
	}
	for _, k := range []kind{single, last} {
		b, direct, f := pair(t, server, first(1, k, liar), nil)
		size := 3 << 20
		if k == single {
			size = 1 << 20
		}
		_, err := b.Put(t.Context(), "x", bytes.NewReader(storagetest.Content(2, size)), storage.PutOptions{})
		if err == nil || errors.Is(err, storage.ErrPermanent) || !strings.Contains(err.Error(), "CRC32C") {
			t.Errorf("%s: Put that the store keeps with another sum: %v", k, err)
		}
		if _, err := direct.Stat(t.Context(), "x"); !errors.Is(err, storage.ErrNotExist) {
			t.Errorf("%s: the damaged object is there: %v", k, err)
		}
		f.mu.Lock()
		if q := f.queries[len(f.queries)-1]; q.Get("generation") == "" {
			t.Errorf("%s: it was removed without naming its generation: %v", k, q)
		}
		f.mu.Unlock()
		wantClean(t, b, f)
	}
}

// TestFaultsReaderOrCallerGivesUp: also then nothing is left, though the
// context has ended.
func TestFaultsReaderOrCallerGivesUp(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	b, direct, f := pair(t, server, never, nil)
	boom := errors.New("boom")
	r := io.MultiReader(bytes.NewReader(storagetest.Content(1, 5<<20)), iotest.ErrReader(boom))
	if _, err := b.Put(t.Context(), "x", r, storage.PutOptions{}); !errors.Is(err, boom) {
		t.Errorf("Put of a reader that fails: %v", err)
	}
	wantClean(t, b, f)
	ctx, stop := context.WithCancel(t.Context())
	r = io.MultiReader(bytes.NewReader(storagetest.Content(1, 5<<20)), cancels{stop}, bytes.NewReader(storagetest.Content(1, 5<<20)))
	if _, err := b.Put(ctx, "x", r, storage.PutOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Put whose context ends: %v", err)
	}
	wantClean(t, b, f)
	f.mu.Lock()
	if f.cancels != 2 {
		t.Errorf("%d sessions were cancelled, want 2", f.cancels)
	}
	f.mu.Unlock()
	if names := storagetest.Names(t, direct, "", storage.ListOptions{}); len(names) != 0 {
		t.Errorf("objects: %q", names)
	}
}

type cancels struct{ cancel func() }

func (c cancels) Read([]byte) (int, error) { c.cancel(); return 0, io.EOF }

// TestFaultsRead reads through each fault.
func TestFaultsRead(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	data := storagetest.Content(1, 3<<20+7)
	for _, what := range []fault{busy, limited, reset, stall, cut, damage} {
		for _, rng := range []storage.Range{{}, {Offset: 100}, {Offset: 5, Length: 2 << 20}} {
			t.Run(fmt.Sprint(what, rng), func(t *testing.T) {
				t.Parallel()
				b, direct, _ := pair(t, server, first(3, media, what), func(o *gcs.Options) {
					if what == stall {
						o.StallTimeout = 300 * time.Millisecond
					}
				})
				storagetest.MustPut(t, direct, "x", data)
				want := data[rng.Offset:]
				if rng.Length > 0 {
					want = want[:rng.Length]
				}
				got, err := read(t.Context(), b, rng)
				if what == damage {
					// A part has no sum.
					if rng == (storage.Range{}) && !errors.Is(err, storage.ErrPermanent) {
						t.Errorf("read %d damaged bytes: %v", len(got), err)
					}
					return
				}
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("read %d bytes of %d: %v", len(got), len(want), err)
				}
			})
		}
	}
}

// TestFaultsReadGivesUp: what ends early is told.
func TestFaultsReadGivesUp(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	b, direct, _ := pair(t, server, first(1, media, cut), func(o *gcs.Options) { o.MaxRetries = -1 })
	data := storagetest.Content(1, 300_000)
	storagetest.MustPut(t, direct, "x", data)
	got, err := read(t.Context(), b, storage.Range{})
	if !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.HasPrefix(data, got) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestFaultsReplacedWhileRead: a continuation never mixes two generations.
func TestFaultsReplacedWhileRead(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	for name, change := range map[string]func(*gcs.Bucket){
		"replaced": func(b *gcs.Bucket) { storagetest.MustPut(t, b, "x", storagetest.Content(2, 2<<20)) },
		"deleted": func(b *gcs.Bucket) {
			if err := b.Delete(t.Context(), "x"); err != nil {
				t.Error(err)
			}
		},
	} {
		b, direct, _ := pair(t, server, first(1, media, cut), nil)
		old := storagetest.Content(1, 2<<20)
		storagetest.MustPut(t, direct, "x", old)
		r, err := b.Open(t.Context(), "x", storage.Range{})
		if err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 10)
		if _, err := io.ReadFull(r, head); err != nil {
			t.Fatal(err)
		}
		change(direct)
		rest, err := io.ReadAll(r)
		if got := append(head, rest...); !bytes.HasPrefix(old, got) || !errors.Is(err, storage.ErrPermanent) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		r.Close()
	}
}

// TestFaultsListAndDelete: a burst of refusals is outlasted.
func TestFaultsListAndDelete(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	b, direct, f := pair(t, server, func(k kind, nth int) fault {
		switch {
		case nth > 3:
			return pass
		case k == remove && nth == 2:
			return lose
		case k == remove || k == list || k == stat:
			return []fault{busy, reset, limited}[nth-1]
		}
		return pass
	}, nil)
	names := []string{"a", "b", "c", "d/e"}
	for _, name := range names {
		storagetest.MustPut(t, direct, name, []byte(name))
	}
	if _, err := b.Stat(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	if got := storagetest.Names(t, b, "", storage.ListOptions{}); len(got) != len(names) {
		t.Errorf("listed %q", got)
	}
	if err := b.Delete(t.Context(), names...); err != nil {
		t.Error(err)
	}
	if got := storagetest.Names(t, direct, "", storage.ListOptions{}); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
	if f.seen(remove) < len(names)+3 {
		t.Errorf("%d deletions for %d names", f.seen(remove), len(names))
	}
}

// TestRetryAfter: the store's wish outweighs our own pause.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	b, _, _ := pair(t, server, first(1, list, slow), func(o *gcs.Options) { o.Timeout = 500 * time.Millisecond })
	// The pause is longer than the operation may take: it ends at its limit.
	var err error
	for _, err = range b.List(t.Context(), "", storage.ListOptions{}) {
		break
	}
	if err == nil || !strings.Contains(err.Error(), "GCS_CONTEXT_TIMEOUT") || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, storage.ErrPermanent) {
		t.Errorf("List: %v; want one that speaks of the time limit", err)
	}
}

// TestMemoryIsBounded: many large uploads at once get along with little.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	const puts, limit = 8, 4 << 20
	b, direct, f := pair(t, server, never, func(o *gcs.Options) { o.ChunkSize, o.UploadMemory = 2<<20, limit })
	var all sync.WaitGroup
	for i := range puts {
		all.Go(func() {
			data := storagetest.Content(byte(i), 9<<20+i)
			name := fmt.Sprint("o", i)
			if _, err := b.Put(t.Context(), name, bytes.NewReader(data), storage.PutOptions{}); err != nil {
				t.Error(err)
			} else if got := storagetest.MustGet(t, direct, name); !bytes.Equal(got, data) {
				t.Errorf("%s holds other bytes", name)
			}
		})
	}
	all.Wait()
	if _, peak, _ := b.Memory(); peak > limit+puts*2*gcs.FreeBlocks*gcs.BlockSize || peak < limit {
		t.Errorf("held %d bytes at most", peak)
	}
	wantClean(t, b, f)
}

// TestEncryptionKey: every request for an object holds the key, no other does.
func TestEncryptionKey(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	f := newFront(t, server.Host, true, never)
	opt := options(t, server)
	opt.EmulatorHost, opt.Transport, opt.ChunkSize, opt.EncryptionKey = f.URL, f.Client().Transport, 1<<20, bytes.Repeat([]byte{7}, 32)
	t.Cleanup(f.Client().CloseIdleConnections)
	b := open(t, opt)
	storagetest.MustPut(t, b, "small", []byte("x"))
	storagetest.MustPut(t, b, "large", make([]byte, 3<<20))
	storagetest.MustGet(t, b, "large")
	if _, err := b.Stat(t.Context(), "small"); err != nil {
		t.Error(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.headers {
		if h.Get("X-Goog-Encryption-Algorithm") != "AES256" || h.Get("X-Goog-Encryption-Key") != "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=" ||
			h.Get("X-Goog-Encryption-Key-Sha256") != "S7Bvjk46dxXSAdVz0KpCN2LlXavWGiwCJ4+lbMbSlOA=" {
			t.Errorf("a request without the key: %v", h)
		}
	}
	if len(f.headers) < 7 {
		t.Errorf("only %d requests were seen", len(f.headers))
	}
}

// TestCertificate: an unknown authority is not tried again.
func TestCertificate(t *testing.T) {
	t.Parallel()
	server := gcstest.Start(t)
	f := newFront(t, server.Host, true, never)
	opt := options(t, server)
	opt.EmulatorHost, opt.ChunkSize = f.URL, 256<<10
	wantRefused(t, opt, "SSL_CERT_FILE")
	if n := f.seen(list); n != 0 {
		t.Errorf("%d requests came", n)
	}
}
