package storagetest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/storagetest"
)

func TestFaultyWithoutFaults(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(*testing.T) storage.Bucket { return storagetest.NewFaulty(mem.New()) })
}

func put(t *testing.T, b storage.Bucket, name string, n int) error {
	t.Helper()
	_, err := b.Put(t.Context(), name, bytes.NewReader(storagetest.Content(1, n)), storage.PutOptions{})
	return err
}

func TestFaultHitsTheNthCallOnTheName(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	f := storagetest.NewFaulty(mem.New(), storagetest.Fault{Op: storagetest.Put, Name: "x", Nth: 2, Err: boom})
	for i, step := range []struct {
		name string
		want error
	}{{"x", nil}, {"y", nil}, {"x", boom}, {"x", nil}} {
		if err := put(t, f, step.name, 1); !errors.Is(err, step.want) {
			t.Errorf("call %d: %v, want %v", i, err, step.want)
		}
	}
	if calls := f.Calls(); len(calls) != 4 || calls[1].Op != storagetest.Put || calls[1].Name != "y" {
		t.Errorf("recorded %+v", calls)
	}
}

func TestFaultInTheMiddleOfAPut(t *testing.T) {
	t.Parallel()
	below := mem.New()
	f := storagetest.NewFaulty(below, storagetest.Fault{Op: storagetest.Put, Bytes: 10})
	if err := put(t, f, "x", 100); !errors.Is(err, storagetest.ErrInjected) {
		t.Errorf("Put: %v", err)
	}
	if _, err := below.Stat(t.Context(), "x"); !errors.Is(err, storage.ErrNotExist) {
		t.Errorf("something was stored: %v", err)
	}
}

func TestLateFaultDoesTheWork(t *testing.T) {
	t.Parallel()
	below := mem.New()
	f := storagetest.NewFaulty(below, storagetest.Fault{Op: storagetest.Put, Late: true}, storagetest.Fault{Op: storagetest.Delete, Late: true})
	if err := put(t, f, "x", 100); !errors.Is(err, storagetest.ErrInjected) {
		t.Errorf("Put: %v", err)
	}
	storagetest.MustGet(t, below, "x")
	if err := f.Delete(t.Context(), "x"); !errors.Is(err, storagetest.ErrInjected) {
		t.Errorf("Delete: %v", err)
	}
	if _, err := below.Stat(t.Context(), "x"); !errors.Is(err, storage.ErrNotExist) {
		t.Errorf("it was not deleted: %v", err)
	}
}

func TestShortBodies(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		fault storagetest.Fault
		n     int64
		want  error
	}{
		{storagetest.Fault{Bytes: 10}, 10, storagetest.ErrInjected},
		{storagetest.Fault{Bytes: 10, Err: io.ErrUnexpectedEOF}, 10, io.ErrUnexpectedEOF},
		{storagetest.Fault{Bytes: -1}, 0, storagetest.ErrInjected},
		{storagetest.Fault{Bytes: 10, Silent: true}, 10, nil},
		{storagetest.Fault{Silent: true}, 0, nil},
		{storagetest.Fault{Bytes: 1000}, 100, nil},
	} {
		c.fault.Op = storagetest.Open
		f := storagetest.NewFaulty(mem.New(), c.fault)
		storagetest.MustPut(t, f, "x", storagetest.Content(1, 100))
		r, err := f.Open(t.Context(), "x", storage.Range{})
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, r); n != c.n || !errors.Is(err, c.want) {
			t.Errorf("%+v: %d bytes, %v; want %d, %v", c.fault, n, err, c.n, c.want)
		}
		r.Close()
	}
}

func TestGateDelays(t *testing.T) {
	t.Parallel()
	below := mem.New()
	gate := make(chan struct{})
	f := storagetest.NewFaulty(below, storagetest.Fault{Op: storagetest.Put, Gate: gate})
	done := make(chan error)
	go func() {
		_, err := f.Put(context.Background(), "x", bytes.NewReader(nil), storage.PutOptions{})
		done <- err
	}()
	gate <- struct{}{} // received only when the Put waits
	if err := <-done; err != nil {
		t.Errorf("Put behind the gate: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go cancel()
	if _, err := f.Put(ctx, "y", bytes.NewReader(nil), storage.PutOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Put before a closed gate: %v, want Canceled", err)
	}
	f.Clear()
	if err := put(t, f, "y", 1); err != nil {
		t.Errorf("Put after Clear: %v", err)
	}
}

func TestListBreaks(t *testing.T) {
	t.Parallel()
	f := storagetest.NewFaulty(mem.New(), storagetest.Fault{Op: storagetest.List, Name: "a", Bytes: 2})
	for _, name := range []string{"a1", "a2", "a3"} {
		storagetest.MustPut(t, f, name, nil)
	}
	n := 0
	var last error
	for _, err := range f.List(t.Context(), "a", storage.ListOptions{}) {
		if last = err; err == nil {
			n++
		}
	}
	if n != 2 || !errors.Is(last, storagetest.ErrInjected) {
		t.Errorf("yielded %d, %v", n, last)
	}
	if got := storagetest.Names(t, f, "", storage.ListOptions{}); len(got) != 3 {
		t.Errorf("another prefix yields %q", got)
	}
}
