package transit

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
)

// Deposit implements Carrier: the bytes are in the broker's stream, with the
// durability of that stream, when it returns.
func (q *Queue) Deposit(ctx context.Context, to DepositAddress, size int64, open func() (io.ReadCloser, error)) (ref messages.Ref, err error) {
	r, err := open()
	if err != nil {
		return messages.Ref{}, fmt.Errorf("open what is to be deposited: %w", err)
	}
	defer r.Close()
	ref = messages.Ref{Carrier: queueCarrier, ID: messages.WALSubject(to.Cluster, to.Timeline, rand.Text())}
	p := &publisher{q: q, subject: ref.ID, stored: func(seq uint64) {
		ref.Seqs = appendSeq(ref.Seqs, seq)
	}}
	defer func() {
		if err != nil {
			// Best effort, and not bound to the caller's expired context.
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			// One chunk was refused, but those behind it may be on their way.
			for _, c := range p.pending {
				_, _ = c.ack.Wait(clean)
			}
			_ = q.Discard(clean, ref)
		}
	}()
	sum := sha256.New()
	for index := 0; ; index++ {
		buf := q.bufs.get()[:q.chunk]
		n, err := io.ReadFull(r, buf)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return ref, fmt.Errorf("read what is to be deposited: %w", err)
		}
		if n > 0 {
			sum.Write(buf[:n])
			if err := p.send(ctx, chunkHeader(ref.ID, index, ref.Size, buf[:n]), buf[:n]); err != nil {
				return ref, err
			}
			ref.Size += int64(n)
		}
		if n < len(buf) {
			break
		}
	}
	if err := p.drain(ctx); err != nil {
		return ref, err
	}
	if ref.Size != size {
		return ref, fmt.Errorf("%w: read %d bytes of a file of %d", ErrDamaged, ref.Size, size)
	}
	ref.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return ref, nil
}

// discardFor is how long a removal that fails is tried again: long enough for
// nodes to elect a leader, which is when most fail. What is left fills the
// queue until it is swept.
const discardFor = 20 * time.Second

// Discard implements Carrier. One call removes all chunks: each is a write that
// the broker's nodes agree on and sync, and a worker's slot waits for it.
func (q *Queue) Discard(ctx context.Context, ref messages.Ref) error {
	if !messages.IsWALSubject(ref.ID) {
		return fmt.Errorf("discard transfer: %w", unknown(ref))
	}
	ctx, cancel := context.WithTimeout(ctx, discardFor)
	defer cancel()
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := q.b.Purge(ctx, topology.StreamWAL, ref.ID)
		if err != nil && !errors.Is(err, bus.ErrUnavailable) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	})
	if err != nil {
		return fmt.Errorf("discard transfer: %w", err)
	}
	return nil
}

// readAhead is how many chunks of a deposit are asked for before they are
// wanted: the store takes one meanwhile, and a far broker's answers overlap.
const readAhead = 4

// depositReceiver reads chunks by their sequence numbers.
type depositReceiver struct {
	q     *Queue
	ref   messages.Ref
	run   int    // index into ref.Seqs
	step  uint64 // offset into that run
	ahead []chan fetched
	index int
	off   int64
	sum   hash.Hash

	life    context.Context
	end     context.CancelFunc
	reading sync.WaitGroup
}

// fetched is a chunk, or why there is none.
type fetched struct {
	seq uint64
	m   bus.Message
	err error
}

// ask begins to read the next chunk; false if there is none.
func (r *depositReceiver) ask() bool {
	for r.run < len(r.ref.Seqs) {
		run := r.ref.Seqs[r.run]
		seq := run.First + r.step
		if seq > run.Last {
			r.run, r.step = r.run+1, 0
			continue
		}
		r.step++
		got := make(chan fetched, 1)
		r.ahead = append(r.ahead, got)
		r.reading.Go(func() {
			m, err := r.q.b.Get(r.life, topology.StreamWAL, seq)
			got <- fetched{seq, m, err}
		})
		return true
	}
	return false
}

func (r *depositReceiver) Next(ctx context.Context) ([]byte, error) {
	for len(r.ahead) < readAhead && r.ask() {
	}
	if len(r.ahead) == 0 {
		return nil, r.whole()
	}
	var got fetched
	select {
	case got = <-r.ahead[0]:
		r.ahead = r.ahead[1:]
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if errors.Is(got.err, bus.ErrNoMessage) {
		return nil, fmt.Errorf("%w: chunk %d is missing: %w", ErrDamaged, r.index, got.err)
	}
	if got.err != nil {
		return nil, got.err
	}
	m := got.m
	if err := check(m.Header, m.Data, r.ref.ID, r.index, r.off); err != nil {
		// One replica's disk may have spoilt what another still has.
		m, got.err = r.q.b.GetFromLeader(ctx, topology.StreamWAL, got.seq)
		if got.err != nil || check(m.Header, m.Data, r.ref.ID, r.index, r.off) != nil {
			return nil, err
		}
	}
	r.index++
	r.off += int64(len(m.Data))
	r.sum.Write(m.Data)
	return m.Data, nil
}

// whole compares what came with what was sent; io.EOF is that all is well.
func (r *depositReceiver) whole() error {
	if r.off != r.ref.Size {
		return fmt.Errorf("%w: %d bytes of %d", ErrDamaged, r.off, r.ref.Size)
	}
	if got := hex.EncodeToString(r.sum.Sum(nil)); got != r.ref.SHA256 {
		return fmt.Errorf("%w: SHA-256 is %s, sent as %s", ErrDamaged, got, r.ref.SHA256)
	}
	return io.EOF
}

func (r *depositReceiver) Close() {
	r.end()
	r.reading.Wait()
}
