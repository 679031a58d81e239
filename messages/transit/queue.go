package transit

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"strconv"
	"time"

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
