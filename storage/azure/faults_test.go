package azure_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/azure"
	"github.com/walherd/walherd/storage/storagetest"
)

// pair is a Bucket behind a proxy and the same one without.
func pair(t testing.TB, script func(*http.Request) fault, tune func(*azure.Options)) (spoiled, direct *azure.Bucket, p *proxy) {
	t.Helper()
	p = newProxy(t, server(t).Endpoint, script)
	opt := options(t)
	opt.BufferSize, opt.MaxBuffers = 256<<10, 3
	direct = open(t, opt)
	opt.Endpoint = p.URL + "/" + opt.Account
	if tune != nil {
		tune(&opt)
	}
	return open(t, opt), direct, p
}

// TestFaultsAcknowledgedIsWhole puts objects through a link on which a third
// of the requests go wrong.
func TestFaultsAcknowledgedIsWhole(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(1, 2))
	faults := []fault{fail, busy, reset, lose, damage, stall, busy}
	script := func(r *http.Request) fault {
		mu.Lock()
		defer mu.Unlock()
		if random.IntN(3) > 0 {
			return pass
		}
		f := faults[random.IntN(len(faults))]
		if f == damage && !isBlock(r) && !isPut(r) {
			f = reset // nothing but these have a checksum
		}
		return f
	}
	b, direct, _ := pair(t, script, func(o *azure.Options) { o.TryTimeout, o.MaxRetries = 2*time.Second, 50 })
	var all sync.WaitGroup
	for i, size := range []int{0, 1, 3000, 256<<10 - 1, 256 << 10, 256<<10 + 1, 1<<20 + 5} {
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
		})
	}
	all.Wait()
	wantClean(t, b)
}

// TestFaultsBurst: a store that is busy for a while is waited for, as long as
// it asks; the block is sent again, not lost.
func TestFaultsBurst(t *testing.T) {
	t.Parallel()
	for name, is := range map[string]func(*http.Request) bool{"Put": isPut, "Block": isBlock, "Commit": isCommit, "Get": isGet} {
		for _, f := range []fault{busy, fail, reset} {
			t.Run(fmt.Sprint(name, f), func(t *testing.T) {
				t.Parallel()
				b, direct, p := pair(t, times(6, f, is), nil)
				data := storagetest.Content(1, 600_000)
				if name == "Put" {
					data = data[:200_000]
				}
				if _, err := b.Put(t.Context(), "x", bytes.NewReader(data), storage.PutOptions{IfAbsent: true}); err != nil {
					t.Fatal(err)
				}
				if got := storagetest.MustGet(t, b, "x"); !bytes.Equal(got, data) {
					t.Errorf("read %d bytes", len(got))
				}
				if got := storagetest.MustGet(t, direct, "x"); !bytes.Equal(got, data) {
					t.Errorf("the object has %d bytes", len(got))
				}
				if n := p.requests.Load(); n < 8 {
					t.Errorf("only %d requests: the fault did not happen", n)
				}
				wantClean(t, b)
			})
		}
	}
}

// TestFaultsFailedPutLeavesNothing breaks each step of an upload for good.
func TestFaultsFailedPutLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, is := range map[string]func(*http.Request) bool{"Put": isPut, "Block": isBlock, "Commit": isCommit} {
		for _, f := range []fault{fail, reset} {
			t.Run(fmt.Sprint(name, f), func(t *testing.T) {
				t.Parallel()
				b, direct, _ := pair(t, times(always, f, is), func(o *azure.Options) { o.MaxRetries = 2 })
				old := storagetest.Content(1, 100)
				storagetest.MustPut(t, direct, "x", old)
				size := 600_000
				if name == "Put" {
					size = 1000
				}
				for _, key := range []string{"x", "y"} {
					_, err := b.Put(t.Context(), key, bytes.NewReader(storagetest.Content(2, size)), storage.PutOptions{})
					if err == nil || errors.Is(err, storage.ErrPermanent) {
						t.Errorf("Put: %v", err)
					}
				}
				if got := storagetest.MustGet(t, direct, "x"); !bytes.Equal(got, old) {
					t.Error("the old object is gone")
				}
				if names := storagetest.Names(t, direct, "", storage.ListOptions{}); len(names) != 1 {
					t.Errorf("objects: %q", names)
				}
				wantClean(t, b)
			})
		}
	}
}

// TestFaultsReaderOrCallerGivesUp: also then nothing is visible or held.
func TestFaultsReaderOrCallerGivesUp(t *testing.T) {
	t.Parallel()
	b, _, _ := pair(t, never, nil)
	boom := errors.New("boom")
	r := io.MultiReader(bytes.NewReader(storagetest.Content(1, 900_000)), iotest.ErrReader(boom))
	if _, err := b.Put(t.Context(), "x", r, storage.PutOptions{}); !errors.Is(err, boom) {
		t.Errorf("Put of a reader that fails: %v", err)
	}
	wantClean(t, b)
	ctx, cancel := context.WithCancel(t.Context())
	r = io.MultiReader(bytes.NewReader(storagetest.Content(1, 900_000)), calls{cancel}, bytes.NewReader(storagetest.Content(1, 900_000)))
	if _, err := b.Put(ctx, "x", r, storage.PutOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Put whose context ends: %v", err)
	}
	wantClean(t, b)
	if names := storagetest.Names(t, b, "", storage.ListOptions{}); len(names) != 0 {
		t.Errorf("objects: %q", names)
	}
}

// TestFaultsLostAnswer: the store has done a step, and its answer is lost.
func TestFaultsLostAnswer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		is   func(*http.Request) bool
		size int
	}{{"Put", isPut, 1000}, {"Commit", isCommit, 600_000}, {"Block", isBlock, 600_000}} {
		for _, ifAbsent := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, ifAbsent), func(t *testing.T) {
				t.Parallel()
				b, direct, p := pair(t, times(1, lose, c.is), nil)
				data := storagetest.Content(3, c.size)
				info, err := b.Put(t.Context(), "x", bytes.NewReader(data), storage.PutOptions{IfAbsent: ifAbsent})
				if err != nil {
					t.Fatal(err)
				}
				if st, err := direct.Stat(t.Context(), "x"); err != nil || !st.Modified.Equal(info.Modified) || st.Size != info.Size {
					t.Errorf("Put tells %+v, Stat %+v, %v", info, st, err)
				}
				if got := storagetest.MustGet(t, direct, "x"); !bytes.Equal(got, data) {
					t.Error("the object is another")
				}
				if p.requests.Load() < 2 {
					t.Error("nothing was tried again")
				}
				wantClean(t, b)
				if _, err := b.Put(t.Context(), "x", bytes.NewReader(data), storage.PutOptions{IfAbsent: true}); !errors.Is(err, storage.ErrExist) {
					t.Errorf("another Put IfAbsent: %v", err)
				}
			})
		}
	}
}

// TestFaultsRead reads through each fault.
func TestFaultsRead(t *testing.T) {
	t.Parallel()
	data := storagetest.Content(1, 1<<20+7)
	for _, f := range []fault{pass, fail, busy, reset, lose, stall, cut, freeze} {
		t.Run(fmt.Sprint(int(f)), func(t *testing.T) {
			t.Parallel()
			b, direct, _ := pair(t, times(3, f, isGet), func(o *azure.Options) {
				if f == stall || f == freeze {
					o.TryTimeout = 500 * time.Millisecond
				}
			})
			storagetest.MustPut(t, direct, "x", data)
			for _, rng := range []storage.Range{{}, {Offset: 10, Length: 1<<20 - 100}} {
				end := int64(len(data))
				if rng.Length > 0 {
					end = min(end, rng.Offset+rng.Length)
				}
				got, err := read(t.Context(), b, rng)
				if err != nil || !bytes.Equal(got, data[rng.Offset:end]) {
					t.Errorf("range %+v: read %d bytes: %v", rng, len(got), err)
				}
			}
		})
	}
}

// TestFaultsReadWithoutResuming: what ends early is told.
func TestFaultsReadWithoutResuming(t *testing.T) {
	t.Parallel()
	data := storagetest.Content(1, 300_000)
	for _, f := range []fault{cut, freeze} {
		b, direct, _ := pair(t, times(always, f, isGet), func(o *azure.Options) {
			o.Resumes = -1
			if f == freeze {
				o.TryTimeout = 500 * time.Millisecond
			}
		})
		storagetest.MustPut(t, direct, "x", data)
		got, err := read(t.Context(), b, storage.Range{})
		if !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, storage.ErrPermanent) || !bytes.HasPrefix(data, got) {
			t.Errorf("fault %d: %d bytes, %v", f, len(got), err)
		}
	}
}

// TestFaultsReplacedWhileRead: a continuation never mixes two versions.
func TestFaultsReplacedWhileRead(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(b *azure.Bucket) error{
		"Put": func(b *azure.Bucket) error {
			_, err := b.Put(t.Context(), "x", bytes.NewReader(storagetest.Content(2, 1<<20)), storage.PutOptions{})
			return err
		},
		"Delete": func(b *azure.Bucket) error { return b.Delete(t.Context(), "x") },
	} {
		b, direct, _ := pair(t, times(1, cut, isGet), nil)
		old := storagetest.Content(1, 1<<20)
		storagetest.MustPut(t, direct, "x", old)
		r, err := b.Open(t.Context(), "x", storage.Range{})
		if err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 10)
		if _, err := io.ReadFull(r, head); err != nil {
			t.Fatal(err)
		}
		if err := change(direct); err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(r)
		if got := append(head, rest...); !bytes.HasPrefix(old, got) || !errors.Is(err, storage.ErrPermanent) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		r.Close()
	}
}

// TestFaultsRetryAfterTooLong: a pause longer than we wait ends the tries.
func TestFaultsRetryAfterTooLong(t *testing.T) {
	t.Parallel()
	b, _, p := pair(t, times(always, busy, isPut), func(o *azure.Options) { o.MaxRetryDelay = time.Millisecond })
	_, err := b.Put(t.Context(), "x", bytes.NewReader(nil), storage.PutOptions{})
	if err == nil || errors.Is(err, storage.ErrPermanent) || p.requests.Load() != 1 {
		t.Errorf("after %d requests: %v", p.requests.Load(), err)
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
