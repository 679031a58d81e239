package basebackup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/walherd/walherd/engine/pack"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/messages/transit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testBundle is a run and what a worker of it has.
type testBundle struct {
	t       *testing.T
	bus     *bus.Bus
	carrier transit.Carrier
	run     *run
}

func setup(t *testing.T, carrier func(*bus.Bus) transit.Carrier) *testBundle {
	t.Helper()
	b := &testBundle{t: t, bus: bustest.New(t, topology.Config{})}
	b.carrier = carrier(b.bus)
	r, err := startRun(context.Background(), &run{
		bus: b.bus, carrier: b.carrier, cluster: "test", backup: "base_000000010000000000000002",
		log: slog.New(slog.DiscardHandler), track: noTracker{}, idle: 20 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	b.run = r
	t.Cleanup(r.close)
	return b
}

// carriers runs one promise for both.
func carriers(t *testing.T, promise func(t *testing.T, b *testBundle)) {
	t.Run("Local", func(t *testing.T) {
		t.Parallel()
		promise(t, setup(t, func(*bus.Bus) transit.Carrier { return transit.NewLocal(1 << 20) }))
	})
	t.Run("Queue", func(t *testing.T) {
		t.Parallel()
		promise(t, setup(t, func(b *bus.Bus) transit.Carrier {
			return transit.NewQueue(b, transit.QueueOptions{Window: 1 << 20})
		}))
	})
}

// say speaks as a worker.
func (b *testBundle) say(s messages.Say) messages.Answer {
	b.t.Helper()
	s.Version, s.Worker = messages.Version, "w"
	data, err := json.Marshal(s)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	reply, err := b.bus.Request(ctx, b.run.subject, data)
	if err != nil {
		b.t.Fatal(err)
	}
	var a messages.Answer
	if err := json.Unmarshal(reply, &a); err != nil {
		b.t.Fatal(err)
	}
	return a
}

func (b *testBundle) claim(part string) messages.Answer {
	b.t.Helper()
	return b.say(messages.Say{What: messages.WhatClaim, Part: part})
}

func (b *testBundle) open(a messages.Answer) transit.Receiver {
	b.t.Helper()
	if a.Verdict != messages.VerdictGo {
		b.t.Fatalf("verdict %s", a.Verdict)
	}
	r, err := b.carrier.Open(context.Background(), a.Bytes)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(r.Close)
	return r
}

func (b *testBundle) receive(a messages.Answer) []byte {
	b.t.Helper()
	var got bytes.Buffer
	if _, err := transit.Copy(context.Background(), &got, b.open(a)); err != nil {
		b.t.Fatal(err)
	}
	return got.Bytes()
}

type outcome struct {
	got stored
	err error
}

// store runs the producer's side; the job is published when it returns.
func (b *testBundle) store(o *object) <-chan outcome {
	done := make(chan outcome, 1)
	go func() {
		got, err := b.run.store(o)
		done <- outcome{got, err}
	}()
	d, err := b.bus.Next(context.Background(), topology.StreamWork, messages.WorkConsumer(messages.KindPart, "test"))
	if err != nil {
		b.t.Fatal(err)
	}
	if err := d.Settle(context.Background(), 5, nil); err != nil {
		b.t.Fatal(err)
	}
	return done
}

func reported(part string, attempt int) messages.Say {
	return messages.Say{What: messages.WhatStored, Part: part, Attempt: attempt, Object: part + ".lz4", StoredBytes: 7}
}

func TestPartIsStreamedToWhoeverClaimsIt(t *testing.T) {
	t.Parallel()
	carriers(t, func(t *testing.T, b *testBundle) {
		want := bytes.Repeat([]byte("walherd "), 300_000)
		done := b.store(&object{name: "p.tar", open: newMemory(want, 5)})
		a := b.claim("p.tar")
		if got := b.receive(a); !bytes.Equal(got, want) {
			t.Fatalf("received %d bytes of %d", len(got), len(want))
		}
		if v := b.say(reported("p.tar", a.Attempt)).Verdict; v != messages.VerdictGo {
			t.Fatalf("report: %s", v)
		}
		if o := <-done; o.err != nil || o.got.object != "p.tar.lz4" || o.got.size != 7 || o.got.EntryBytes != 5 {
			t.Fatalf("stored: %+v", o)
		}
		// Handed out again after all: nothing is sent.
		if v := b.claim("p.tar").Verdict; v != messages.VerdictDone {
			t.Fatalf("claim of a stored part: %s", v)
		}
		if v := b.say(reported("p.tar", a.Attempt)).Verdict; v != messages.VerdictDone {
			t.Fatalf("second report: %s", v)
		}
	})
}

// TestSecondClaimTakesOver: a worker is dead in the middle of a part. The next
// one gets all of it, and the dead one's transfer ends.
func TestSecondClaimTakesOver(t *testing.T) {
	t.Parallel()
	carriers(t, func(t *testing.T, b *testBundle) {
		want := bytes.Repeat([]byte("0123456789abcdef"), 1<<19) // 8 MiB, more than a window
		done := b.store(&object{name: "p.tar", open: newMemory(want, 0)})
		first := b.claim("p.tar")
		dead := b.open(first)
		if _, err := dead.Next(context.Background()); err != nil {
			t.Fatal(err)
		}
		second := b.claim("p.tar")
		if second.Attempt != 2 || second.Bytes.ID == first.Bytes.ID {
			t.Fatalf("second claim: %+v after %+v", second, first)
		}
		if got := b.receive(second); !bytes.Equal(got, want) {
			t.Fatalf("received %d bytes of %d", len(got), len(want))
		}
		if _, err := transit.Copy(context.Background(), io.Discard, dead); !errors.Is(err, transit.ErrAborted) {
			t.Fatalf("the first transfer: %v, want ErrAborted", err)
		}
		// The first worker was not dead after all, and claims to have it.
		if v := b.say(reported("p.tar", 1)).Verdict; v != messages.VerdictGone {
			t.Fatalf("report of an attempt that was not sent to its end: %s", v)
		}
		if v := b.say(reported("p.tar", 2)).Verdict; v != messages.VerdictGo {
			t.Fatalf("report: %s", v)
		}
		if o := <-done; o.err != nil {
			t.Fatal(o.err)
		}
	})
}

func TestFinalFailureFailsTheRun(t *testing.T) {
	t.Parallel()
	carriers(t, func(t *testing.T, b *testBundle) {
		done := b.store(&object{name: "p.tar", open: newMemory(nil, 0)})
		b.say(messages.Say{What: messages.WhatFailed, Part: "p.tar", Error: "not this time"})
		b.say(messages.Say{What: messages.WhatFailed, Part: "p.tar", Error: "disk full", Final: true})
		if o := <-done; !errors.Is(o.err, ErrWorker) || !bytes.Contains([]byte(o.err.Error()), []byte("disk full")) {
			t.Fatalf("got %v", o.err)
		}
	})
}

type unreadable struct{}

var errUnreadable = errors.New("input/output error")

func (unreadable) Fill(context.Context, []byte) (int, error) { return 0, errUnreadable }
func (unreadable) Report() pack.Report                       { return pack.Report{} }
func (unreadable) Close() error                              { return nil }

func TestUnreadableFileFailsTheRun(t *testing.T) {
	t.Parallel()
	carriers(t, func(t *testing.T, b *testBundle) {
		done := b.store(&object{name: "p.tar", open: func(func() error) (content, error) { return unreadable{}, nil }})
		r := b.open(b.claim("p.tar"))
		if _, err := r.Next(context.Background()); !errors.Is(err, transit.ErrAborted) {
			t.Fatalf("receive: %v, want ErrAborted", err)
		}
		if o := <-done; !errors.Is(o.err, errUnreadable) {
			t.Fatalf("got %v", o.err)
		}
	})
}

// sparse is content that takes long looks for what it gives.
type sparse struct {
	content
	alive func() error
	looks int
}

func (s sparse) Fill(ctx context.Context, buf []byte) (int, error) {
	for range s.looks {
		if err := s.alive(); err != nil {
			return 0, err
		}
	}
	return s.content.Fill(ctx, buf)
}

// TestLongLooks: a part whose files are read for long without a byte to store
// makes progress, its worker hears of it, and one that is gone ends the reading
// and not the run.
func TestLongLooks(t *testing.T) {
	t.Parallel()
	carriers(t, func(t *testing.T, b *testBundle) {
		b.run.quiet = time.Nanosecond
		want := bytes.Repeat([]byte("walherd "), 300_000)
		o := &object{name: "p.tar"}
		var moved bool
		o.open = func(alive func() error) (content, error) {
			b.run.mu.Lock()
			o.moved = time.Time{}
			b.run.mu.Unlock()
			if err := alive(); err != nil {
				return nil, err
			}
			b.run.mu.Lock()
			moved = !o.moved.IsZero()
			b.run.mu.Unlock()
			c, err := newMemory(want, 0)(alive)
			return sparse{c, alive, 100}, err
		}
		done := b.store(o)
		gone := b.open(b.claim("p.tar"))
		if chunk, err := gone.Next(context.Background()); err != nil || len(chunk) > 0 {
			t.Fatalf("first a sign of life: %d bytes, %v", len(chunk), err)
		}
		gone.Close()
		a := b.claim("p.tar")
		if got := b.receive(a); !bytes.Equal(got, want) {
			t.Fatalf("received %d bytes of %d", len(got), len(want))
		}
		if !moved {
			t.Error("a look was no progress")
		}
		if v := b.say(reported("p.tar", a.Attempt)).Verdict; v != messages.VerdictGo {
			t.Fatalf("report: %s", v)
		}
		if o := <-done; o.err != nil {
			t.Fatal(o.err)
		}
	})
}

func TestNobodyTakesThePart(t *testing.T) {
	t.Parallel()
	b := setup(t, func(*bus.Bus) transit.Carrier { return transit.NewLocal(1 << 20) })
	b.run.idle = 50 * time.Millisecond
	if _, err := b.run.store(&object{name: "p.tar", open: newMemory(nil, 0)}); !errors.Is(err, ErrNoProgress) {
		t.Fatalf("got %v, want ErrNoProgress", err)
	}
}

func TestUnknownPartAndUnknownVersionAreGone(t *testing.T) {
	t.Parallel()
	b := setup(t, func(*bus.Bus) transit.Carrier { return transit.NewLocal(1 << 20) })
	if v := b.claim("other.tar").Verdict; v != messages.VerdictGone {
		t.Fatalf("unknown part: %s", v)
	}
	reply, err := b.bus.Request(t.Context(), b.run.subject, []byte(`{"v":99,"what":"claim","part":"p"}`))
	if err != nil {
		t.Fatal(err)
	}
	var a messages.Answer
	if err := json.Unmarshal(reply, &a); err != nil || a.Verdict != messages.VerdictGone {
		t.Fatalf("unknown version: %s, %v", reply, err)
	}
}

// TestPartsWaitTheirTurn: a part that nobody has claimed is not given up while
// others move; one that was claimed is judged by itself.
func TestPartsWaitTheirTurn(t *testing.T) {
	t.Parallel()
	past := time.Now().Add(-time.Hour)
	r := &run{}
	waiting, claimed, moving := &object{moved: past}, &object{moved: past, attempt: 1}, &object{moved: past, attempt: 1}
	if got := r.lastMove(waiting); !got.Equal(past) {
		t.Errorf("nothing moves, but %s counts", got)
	}
	r.moved(moving)
	if got := r.lastMove(waiting); !got.After(past) {
		t.Error("the part waits in vain while another moves")
	}
	if got := r.lastMove(claimed); !got.Equal(past) {
		t.Error("a part whose worker does nothing counts as moving")
	}
}

// TestTooManyPartsAreRefusedAtOnce, and not when they are to be committed.
func TestTooManyPartsAreRefusedAtOnce(t *testing.T) {
	t.Parallel()
	carriers(t, func(t *testing.T, b *testBundle) {
		parts := make([]pack.Part, 1000)
		if err := b.run.fits(parts); err != nil {
			t.Fatal(err)
		}
		parts = make([]pack.Part, 1_000_000)
		if err := b.run.fits(parts); err == nil || !strings.Contains(err.Error(), "WALG_TAR_SIZE_THRESHOLD") {
			t.Fatalf("a million parts: %v", err)
		}
	})
}
