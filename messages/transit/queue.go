package transit

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
)

const queueCarrier = "jetstream"

// The headers of a chunk message. A message with headerEnd carries no bytes
// but the count of chunks, and the length and SHA-256 of the whole.
const (
	headerVersion  = "Walherd-V"
	headerTransfer = "Walherd-Transfer"
	headerIndex    = "Walherd-Index"
	headerOffset   = "Walherd-Offset"
	headerCRC      = "Walherd-Crc32c"
	headerEnd      = "Walherd-End"
	headerLength   = "Walherd-Length"
	headerSHA256   = "Walherd-Sha256"
	headerAbort    = "Walherd-Abort"
)

const chunkVersion = "1"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Queue carries chunks through JetStream: streams through the memory stream
// WALHERD_CHUNK, deposits through WALHERD_WAL.
type Queue struct {
	b     *bus.Bus
	opt   QueueOptions
	chunk int
	bufs  pool
}

// QueueOptions tune a Queue.
type QueueOptions struct {
	// Window is how many bytes of one stream may be on their way. 0 is 32 MiB;
	// more than 64 MiB makes the broker cut the connection.
	Window int
	// Stall is how long either end of a stream waits for the other before
	// it fails with ErrStalled. 0 is 2 minutes.
	Stall time.Duration
}

// publishAhead is how many bytes may await the broker's acknowledgement.
const publishAhead = 8 << 20

// NewQueue makes a carrier over b, whose broker has the declared topology.
func NewQueue(b *bus.Bus, opt QueueOptions) *Queue {
	if opt.Window == 0 {
		opt.Window = 32 << 20
	}
	opt.Window = min(opt.Window, 48<<20)
	if opt.Stall == 0 {
		opt.Stall = 2 * time.Minute
	}
	// Headers count towards the broker's limit too.
	return &Queue{b: b, opt: opt, chunk: min(ChunkSize, int(b.MaxPayload())-4096)}
}

func chunkHeader(transfer string, index int, offset int64, data []byte) bus.Header {
	return bus.Header{
		headerVersion:  {chunkVersion},
		headerTransfer: {transfer},
		headerIndex:    {strconv.Itoa(index)},
		headerOffset:   {strconv.FormatInt(offset, 10)},
		headerCRC:      {strconv.FormatUint(uint64(crc32.Checksum(data, castagnoli)), 16)},
	}
}

func first(h bus.Header, key string) string {
	if v := h[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// check compares a chunk with its header and with what the receiver expects.
func check(h bus.Header, data []byte, transfer string, index int, offset int64) error {
	if v := first(h, headerVersion); v != chunkVersion {
		return fmt.Errorf("%w: chunk format %q, this build reads %s", ErrDamaged, v, chunkVersion)
	}
	if t := first(h, headerTransfer); t != transfer {
		return fmt.Errorf("%w: chunk of transfer %q where %q was expected", ErrDamaged, t, transfer)
	}
	if first(h, headerIndex) != strconv.Itoa(index) || first(h, headerOffset) != strconv.FormatInt(offset, 10) {
		return fmt.Errorf("%w: chunk %s at %s where chunk %d at %d was expected", ErrDamaged, first(h, headerIndex), first(h, headerOffset), index, offset)
	}
	if got := strconv.FormatUint(uint64(crc32.Checksum(data, castagnoli)), 16); got != first(h, headerCRC) {
		return fmt.Errorf("%w: chunk %d has CRC32C %s, sent as %s", ErrDamaged, index, got, first(h, headerCRC))
	}
	return nil
}

// publisher keeps chunks whose acknowledgement is still to come.
type publisher struct {
	q       *Queue
	subject string
	pending []pendingChunk
	bytes   int
	// stored is told every acknowledged sequence number, in order.
	stored func(seq uint64)
}

type pendingChunk struct {
	ack bus.Pending
	buf []byte
}

// send publishes data and keeps buf until it is acknowledged.
func (p *publisher) send(ctx context.Context, h bus.Header, buf []byte) error {
	for p.bytes > 0 && p.bytes+len(buf) > publishAhead {
		if err := p.wait(ctx); err != nil {
			return err
		}
	}
	ack, err := p.q.b.PublishAsync(ctx, p.subject, h, buf)
	if err != nil {
		return err
	}
	p.pending = append(p.pending, pendingChunk{ack: ack, buf: buf})
	p.bytes += len(buf)
	return nil
}

func (p *publisher) wait(ctx context.Context) error {
	c := p.pending[0]
	seq, err := c.ack.Wait(ctx)
	if err != nil {
		if ctx.Err() == nil {
			p.pending = p.pending[1:] // the broker has refused it
		}
		return err
	}
	p.pending = p.pending[1:]
	p.bytes -= len(c.buf)
	p.q.bufs.put(c.buf)
	if p.stored != nil {
		p.stored(seq)
	}
	return nil
}

func (p *publisher) drain(ctx context.Context) error {
	for len(p.pending) > 0 {
		if err := p.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Deposit implements Carrier: the bytes are in the broker's stream, with the
// durability of that stream, when it returns.
func (q *Queue) Deposit(ctx context.Context, to DepositAddress, size int64, open func() (io.ReadCloser, error)) (ref messages.Ref, err error) {
	r, err := open()
	if err != nil {
		return messages.Ref{}, fmt.Errorf("open what is to be deposited: %w", err)
	}
	defer r.Close()
	ref = messages.Ref{Carrier: queueCarrier, ID: rand.Text()}
	p := &publisher{q: q, subject: messages.WALSubject(to.Cluster, to.Timeline), stored: func(seq uint64) {
		ref.Seqs = appendSeq(ref.Seqs, seq)
	}}
	defer func() {
		if err != nil {
			// Best effort, and not bound to the caller's expired context.
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			// One chunk was refused, but those behind it may have been taken:
			// what is not known cannot be discarded, and would fill the stream
			// until it is swept.
			for _, c := range p.pending {
				if seq, werr := c.ack.Wait(clean); werr == nil {
					p.stored(seq)
				}
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

// removeAtOnce is how many chunks are removed side by side: each removal is a
// write that the broker replicates and syncs, and a worker's slot waits for all.
const removeAtOnce = 8

// Discard implements Carrier.
func (q *Queue) Discard(ctx context.Context, ref messages.Ref) error {
	g, removing := errgroup.WithContext(ctx)
	g.SetLimit(removeAtOnce)
	for _, run := range ref.Seqs {
		for seq := run.First; seq <= run.Last && removing.Err() == nil; seq++ {
			g.Go(func() error { return q.b.Remove(removing, topology.StreamWAL, seq) })
		}
	}
	if err := cmp.Or(g.Wait(), context.Cause(ctx)); err != nil {
		return fmt.Errorf("discard transfer: %w", err)
	}
	return nil
}

// Open implements Carrier.
func (q *Queue) Open(ctx context.Context, ref messages.Ref) (Receiver, error) {
	switch {
	case ref.Carrier != queueCarrier:
		return nil, unknown(ref)
	case ref.SHA256 != "":
		// The reading ends with Close, whatever becomes of the caller's context.
		life, end := context.WithCancel(context.WithoutCancel(ctx))
		return &depositReceiver{q: q, ref: ref, sum: sha256.New(), life: life, end: end}, nil
	}
	tail, err := q.b.OpenTail(ctx, topology.StreamChunk, ref.ID, q.opt.Window)
	if err != nil {
		return nil, err
	}
	return &streamReceiver{q: q, tail: tail, subject: ref.ID, sum: sha256.New()}, nil
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
