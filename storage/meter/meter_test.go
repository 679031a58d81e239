package meter_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/meter"
	"github.com/walherd/walherd/storage/storagetest"
)

func TestBucket(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(*testing.T) storage.Bucket { return meter.New(mem.New()) })
}

func TestCounts(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	faulty := storagetest.NewFaulty(mem.New())
	b := meter.New(faulty)
	boom := errors.New("boom")

	storagetest.MustPut(t, b, "a", make([]byte, 1000))
	storagetest.MustPut(t, b, "b", make([]byte, 100))
	b.Put(ctx, "a", strings.NewReader("x"), storage.PutOptions{IfAbsent: true}) // an answer; mem reads before it looks
	b.Put(ctx, "c", io.MultiReader(bytes.NewReader(make([]byte, 10)), iotest.ErrReader(boom)), storage.PutOptions{})

	storagetest.MustGet(t, b, "a")
	b.Open(ctx, "missing", storage.Range{}) // an answer
	faulty.Add(storagetest.Fault{Op: storagetest.Open, Nth: 1, Bytes: 50})
	r, err := b.Open(ctx, "b", storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // one failure, however often it is told
		io.Copy(io.Discard, r)
	}
	r.Close()

	b.Stat(ctx, "a")
	b.Stat(ctx, "missing")
	b.Stat(ctx, "/bad")

	storagetest.Names(t, b, "", storage.ListOptions{})
	faulty.Add(storagetest.Fault{Op: storagetest.List, Nth: 1, Bytes: 1})
	for range b.List(ctx, "", storage.ListOptions{}) {
	}

	if err := b.Delete(ctx, "a", "b", "missing"); err != nil {
		t.Fatal(err)
	}
	faulty.Add(storagetest.Fault{Op: storagetest.Delete})
	b.Delete(ctx, "a")

	want := meter.Snapshot{
		Put:    meter.Counts{Requests: 4, Errors: 1, Bytes: 1111},
		Open:   meter.Counts{Requests: 3, Errors: 1, Bytes: 1050},
		Stat:   meter.Counts{Requests: 3, Errors: 1},
		List:   meter.Counts{Requests: 2, Errors: 1, Objects: 3},
		Delete: meter.Counts{Requests: 2, Errors: 1, Objects: 4},
	}
	if got := b.Snapshot(); got != want {
		t.Errorf("counted\n%+v, want\n%+v", got, want)
	}
}

func TestCountsOfManyAtOnce(t *testing.T) {
	t.Parallel()
	b := meter.New(mem.New())
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				storagetest.MustPut(t, b, "x", make([]byte, 10))
				b.Snapshot()
			}
		})
	}
	all.Wait()
	if got, want := b.Snapshot().Put, (meter.Counts{Requests: 800, Bytes: 8000}); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}
