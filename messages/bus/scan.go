package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
)

// scanAtOnce is how many reads of a scan are under way.
const scanAtOnce = 32

// Scan calls fn for every message of a subject (wildcards allowed) that a
// stream holds, in no order and one at a time. It reads work queues too,
// without taking anything from their consumers, and several messages side by
// side: one after the other, a far broker's queue takes its latency for each.
//
// Messages that come or go meanwhile may be missed. But one that is put in the
// place of another, before that is removed, is told, or the other is: what has
// come since the scan began is read at the end and in order.
func (b *Bus) Scan(ctx context.Context, stream, subject string, fn func(Stored)) error {
	s, err := b.stream(ctx, stream)
	if err != nil {
		return err
	}
	watched, stop := b.denials.watch(ctx, apiInfo+stream)
	info, err := s.Info(watched)
	stop()
	if err != nil {
		return fmt.Errorf("describe stream %s: %w", stream, adminError(ended(watched, err)))
	}
	var one sync.Mutex
	g, reading := errgroup.WithContext(ctx)
	g.SetLimit(scanAtOnce)
	// Whoever finds another free hands it half of what is left: sequence
	// numbers are shared by all subjects and have gaps of any size.
	var read func(from, to uint64) error
	read = func(from, to uint64) error {
		for from <= to {
			m, err := b.getNext(reading, stream, subject, from)
			if errors.Is(err, ErrNoMessage) || err == nil && m.Seq > to {
				return nil
			}
			if err != nil {
				return err
			}
			one.Lock()
			fn(m)
			one.Unlock()
			from = m.Seq + 1
			if from >= to {
				continue
			}
			half, end := from+(to-from)/2, to
			if g.TryGo(func() error { return read(half+1, end) }) {
				to = half
			}
		}
		return nil
	}
	last := info.State.LastSeq
	g.Go(func() error { return read(info.State.FirstSeq, last) })
	if err := g.Wait(); err != nil {
		return err
	}
	for from := last + 1; ; {
		m, err := b.getNext(ctx, stream, subject, from)
		if errors.Is(err, ErrNoMessage) {
			return nil
		}
		if err != nil {
			return err
		}
		fn(m)
		from = m.Seq + 1
	}
}

// getNext is GetNext that does not wait as long as the context lasts for an
// answer that was lost with a stream's leader.
func (b *Bus) getNext(ctx context.Context, stream, subject string, from uint64) (Stored, error) {
	ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
	defer cancel()
	return b.GetNext(ctx, stream, subject, from)
}
