package bus_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/topology"
)

func TestOneHoldsALease(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{})
	l, err := b.Acquire(t.Context(), "main.schedule", "one", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Acquire(t.Context(), "main.schedule", "two", 0); !errors.Is(err, bus.ErrHeld) {
		t.Fatalf("a second holder: %v, want ErrHeld", err)
	}
	if _, err := b.Acquire(t.Context(), "other.schedule", "two", 0); err != nil {
		t.Fatalf("another lease: %v", err)
	}
	if who, err := b.Holder(t.Context(), "main.schedule"); err != nil || who != "one" {
		t.Fatalf("held by %q, %v", who, err)
	}
	old := l.Revision
	if err := l.Renew(t.Context()); err != nil || l.Revision <= old {
		t.Fatalf("renewed to revision %d after %d: %v", l.Revision, old, err)
	}
	if err := l.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Renew(t.Context()); !errors.Is(err, bus.ErrLost) {
		t.Fatalf("renew after release: %v, want ErrLost", err)
	}
	next, err := b.Acquire(t.Context(), "main.schedule", "two", 0)
	if err != nil {
		t.Fatalf("after release: %v", err)
	}
	if next.Revision <= old {
		t.Fatalf("revision %d after %d: it must grow", next.Revision, old)
	}
}

// TestALeaseRunsOutThoughRenewed: a renewed lease is one that still ends by
// itself, and its holder hears that it lost it.
func TestALeaseRunsOutThoughRenewed(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{})
	l, err := b.Acquire(t.Context(), "main.x", "one", 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		_, err := b.Acquire(ctx, "main.x", "two", 0)
		if err == nil {
			break
		}
		if !errors.Is(err, bus.ErrHeld) {
			t.Fatal(err)
		}
	}
	if err := l.Renew(t.Context()); !errors.Is(err, bus.ErrLost) {
		t.Fatalf("renew: %v, want ErrLost", err)
	}
}

// steal has another process of the same name take a lease, as if it had run out.
func steal(ctx context.Context, b *bus.Bus, l *bus.Lease) error {
	if err := l.Release(ctx); err != nil {
		return err
	}
	_, err := b.Acquire(ctx, l.Key, "one", 0)
	return err
}

// TestRenewalWhoseAnswerWasLost: the broker has it, the holder does not know. It
// is still this holder's, and what is done under it goes on.
func TestRenewalWhoseAnswerWasLost(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{})
	l, err := b.Acquire(t.Context(), "main.x", "one", 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	unheard := *l
	if err := unheard.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Renew(t.Context()); err != nil || l.Revision <= unheard.Revision {
		t.Fatalf("renewed to revision %d after %d: %v", l.Revision, unheard.Revision, err)
	}
}

// TestHoldEndsTheWorkOfALostLease: what is done under a lease that somebody
// else took is told to stop.
func TestHoldEndsTheWorkOfALostLease(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{})
	l, err := b.Acquire(t.Context(), "main.x", "one", 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	gone := *l
	err = l.Hold(t.Context(), func(ctx context.Context) error {
		if err := steal(ctx, b, &gone); err != nil {
			return err
		}
		<-ctx.Done()
		return context.Cause(ctx)
	})
	if !errors.Is(err, bus.ErrLost) {
		t.Fatalf("got %v, want ErrLost", err)
	}
}

// TestKeepOutlivesALease: work that is better finished goes on when the lease ran
// out and nobody took it, and ends when somebody did.
func TestKeepOutlivesALease(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{})
	l, err := b.Acquire(t.Context(), "main.x", "one", 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	gone := *l
	err = l.Keep(t.Context(), func(ctx context.Context) error {
		// As if it had run out while the broker was away.
		if err := gone.Release(ctx); err != nil {
			return err
		}
		for {
			who, err := b.Holder(ctx, "main.x")
			if err != nil || who == "one" {
				return err
			}
		}
	})
	if err != nil {
		t.Fatalf("nobody else took it: %v", err)
	}
	l, err = b.Acquire(t.Context(), "main.x", "one", 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	gone = *l
	err = l.Keep(t.Context(), func(ctx context.Context) error {
		if err := steal(ctx, b, &gone); err != nil {
			return err
		}
		<-ctx.Done()
		return context.Cause(ctx)
	})
	if !errors.Is(err, bus.ErrLost) {
		t.Fatalf("somebody took it: %v, want ErrLost", err)
	}
}

// TestAtMostOneHolder plays random turns of several contenders.
func TestAtMostOneHolder(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{})
	ctx := t.Context()
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		round++
		key := "main.r" + string(rune('a'+round%26)) + time.Now().Format("150405.000000000")[7:]
		held := map[int]*bus.Lease{}
		last := uint64(0)
		for range rapid.IntRange(1, 12).Draw(t, "turns") {
			who := rapid.IntRange(0, 2).Draw(t, "who")
			switch l := held[who]; {
			case l == nil:
				l, err := b.Acquire(ctx, key, "x", time.Minute)
				if (err == nil) != (len(held) == 0) {
					t.Fatalf("%d holders, acquire: %v", len(held), err)
				}
				if err == nil {
					if l.Revision <= last {
						t.Fatalf("revision %d after %d", l.Revision, last)
					}
					held[who], last = l, l.Revision
				}
			case rapid.Bool().Draw(t, "release"):
				if err := l.Release(ctx); err != nil {
					t.Fatal(err)
				}
				delete(held, who)
			default:
				if err := l.Renew(ctx); err != nil {
					t.Fatal(err)
				}
				last = l.Revision
			}
		}
	})
}
