package transit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
)

// Credit messages: "<index>" is the highest chunk index consumed, creditClosed
// says that the receiver is gone.
const creditClosed = "closed"

// Stream implements Carrier.
func (q *Queue) Stream(ctx context.Context, to StreamAddress) (Sender, error) {
	subject := messages.ChunkSubject(to.Cluster, to.Run, to.Part, to.Attempt)
	s := &streamSender{
		q: q, subject: subject, sum: sha256.New(),
		window: max(q.opt.Window/q.chunk, 2), taken: -1,
		moved: make(chan struct{}, 1), gone: make(chan struct{}),
	}
	s.pub = publisher{q: q, subject: subject}
	stop, err := q.b.Listen(ctx, messages.CreditSubject(subject), s.credit)
	if err != nil {
		return nil, err
	}
	s.unlisten = stop
	return s, nil
}

type streamSender struct {
	q       *Queue
	subject string
	pub     publisher
	sum     hash.Hash
	window  int // chunks
	index   int
	off     int64

	mu       sync.Mutex
	taken    int // highest index the receiver consumed
	over     bool
	goneOnce sync.Once
	moved    chan struct{} // a credit came
	gone     chan struct{} // the receiver closed, or Abort
	unlisten func()
}

func (s *streamSender) Ref() messages.Ref {
	return messages.Ref{Carrier: queueCarrier, ID: s.subject}
}

func (s *streamSender) Buffer() []byte { return s.q.bufs.get()[:s.q.chunk] }

func (s *streamSender) credit(m bus.Incoming) {
	if string(m.Data) == creditClosed {
		s.goneOnce.Do(func() { close(s.gone) })
		return
	}
	n, err := strconv.Atoi(string(m.Data))
	if err != nil {
		return // not ours; the stall limit catches a receiver that never says more
	}
	s.mu.Lock()
	s.taken = max(s.taken, n)
	s.mu.Unlock()
	select {
	case s.moved <- struct{}{}:
	default:
	}
}

func (s *streamSender) outstanding() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index - 1 - s.taken
}

func (s *streamSender) Send(ctx context.Context, buf []byte) error {
	stall := time.NewTimer(s.q.opt.Stall)
	defer stall.Stop()
	for s.outstanding() >= s.window {
		select {
		case <-s.moved:
			stall.Reset(s.q.opt.Stall)
		case <-s.gone:
			return fmt.Errorf("send %s: %w", s.subject, ErrAborted)
		case <-stall.C:
			return fmt.Errorf("send %s: %w for %s", s.subject, ErrStalled, s.q.opt.Stall)
		case <-ctx.Done():
			return fmt.Errorf("send %s: %w", s.subject, context.Cause(ctx))
		}
	}
	select {
	case <-s.gone:
		return fmt.Errorf("send %s: %w", s.subject, ErrAborted)
	default:
	}
	s.sum.Write(buf)
	if err := s.pub.send(ctx, chunkHeader(s.subject, s.index, s.off, buf), buf); err != nil {
		return err
	}
	s.index++
	s.off += int64(len(buf))
	return nil
}

func (s *streamSender) Close(ctx context.Context) error {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return fmt.Errorf("close %s: %w", s.subject, ErrAborted)
	}
	s.over = true
	s.mu.Unlock()
	defer s.unlisten()
	h := bus.Header{
		headerVersion:  {chunkVersion},
		headerTransfer: {s.subject},
		headerEnd:      {strconv.Itoa(s.index)},
		headerLength:   {strconv.FormatInt(s.off, 10)},
		headerSHA256:   {hex.EncodeToString(s.sum.Sum(nil))},
	}
	if err := s.pub.send(ctx, h, nil); err != nil {
		return err
	}
	return s.pub.drain(ctx)
}

func (s *streamSender) Abort() {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return
	}
	s.over = true
	s.mu.Unlock()
	s.unlisten()
	s.goneOnce.Do(func() { close(s.gone) })
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	// Best effort: without these the receiver stalls and the chunks expire.
	_ = s.q.b.Purge(ctx, topology.StreamChunk, s.subject)
	_, _ = s.q.b.Publish(ctx, s.subject, bus.Header{headerVersion: {chunkVersion}, headerTransfer: {s.subject}, headerAbort: {"1"}}, nil)
}

type streamReceiver struct {
	q       *Queue
	tail    *bus.Tail
	subject string
	sum     hash.Hash
	index   int
	off     int64
	eof     bool
	closed  bool
}

func (r *streamReceiver) Next(ctx context.Context) ([]byte, error) {
	if r.eof {
		return nil, io.EOF
	}
	if r.index > 0 {
		// The previous chunk is consumed now that the caller wants another.
		_ = r.q.b.Notify(ctx, messages.CreditSubject(r.subject), nil, []byte(strconv.Itoa(r.index-1)))
	}
	wait, cancel := context.WithTimeoutCause(ctx, r.q.opt.Stall, ErrStalled)
	defer cancel()
	for {
		h, data, ack, err := r.tail.Next(wait)
		if err != nil {
			return nil, err
		}
		if err := ack(); err != nil {
			return nil, fmt.Errorf("take chunk %d of %s: %w", r.index, r.subject, err)
		}
		switch {
		case first(h, headerAbort) != "":
			return nil, fmt.Errorf("receive %s: %w", r.subject, ErrAborted)
		case first(h, headerEnd) != "":
			return nil, r.end(h)
		}
		if i, err := strconv.Atoi(first(h, headerIndex)); err == nil && i < r.index {
			continue // published twice
		}
		if err := check(h, data, r.subject, r.index, r.off); err != nil {
			return nil, err
		}
		r.index++
		r.off += int64(len(data))
		r.sum.Write(data)
		return data, nil
	}
}

// end compares the end message with what came; io.EOF is that all is well.
func (r *streamReceiver) end(h bus.Header) error {
	got := []string{strconv.Itoa(r.index), strconv.FormatInt(r.off, 10), hex.EncodeToString(r.sum.Sum(nil))}
	want := []string{first(h, headerEnd), first(h, headerLength), first(h, headerSHA256)}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Errorf("%w: got chunks, bytes, SHA-256 %v, sent %v", ErrDamaged, got, want)
		}
	}
	r.eof = true
	return io.EOF
}

func (r *streamReceiver) Close() {
	if r.closed {
		return
	}
	r.closed = true
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if !r.eof {
		_ = r.q.b.Notify(ctx, messages.CreditSubject(r.subject), nil, []byte(creditClosed))
	}
	r.tail.Close(ctx)
	// What is left is of no use to anybody: an attempt is never resumed.
	_ = r.q.b.Purge(ctx, topology.StreamChunk, r.subject)
}
