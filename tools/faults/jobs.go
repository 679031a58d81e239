package main

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
)

// jobTap hears every archive job that is published, so that some can be
// published again, late and out of order.
type jobTap struct {
	mu   sync.Mutex
	last [][]byte
}

const tapped = 64

func (t *jobTap) listen(ctx context.Context, b *bus.Bus) error {
	_, err := b.Listen(ctx, messages.WorkSubject(messages.KindArchive, cluster), func(m bus.Incoming) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if len(t.last) == tapped {
			t.last = t.last[1:]
		}
		t.last = append(t.last, bytes.Clone(m.Data))
	})
	return err
}

// some gives up to n of the last jobs in another order.
func (t *jobTap) some(r *rand.Rand, n int) [][]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := append([][]byte(nil), t.last...)
	r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out[:min(n, len(out))]
}
