// Package transit moves bulk bytes from a producer to a worker: a WAL file, a
// part of a backup. It is the one thing that has two carriers, because moving
// a gigabyte through a broker in the same process costs as much CPU as
// compressing it: Local hands buffers over inside a process, Queue sends
// chunks through JetStream. Jobs and events never travel here.
//
// Two kinds of transfer exist. A stream is produced while it is consumed, with
// a bounded window between the two ends, and nothing is kept: a part of a
// backup, which can be read again. A deposit is complete before anybody is
// told of it and stays until it is discarded: a WAL file.
//
// The broker is not trusted. A receiver of Queue checks the index, length and
// CRC32C of every chunk and the count, length and SHA-256 of the whole; what
// is missing or altered is ErrDamaged, and the remedy is to have it sent
// again.
package transit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/messages"
)

// ChunkSize is the payload of one chunk in bytes, at most. A broker with the
// default limit of 1 MiB for one message takes it, and larger chunks were
// measured to be slower.
const ChunkSize = 512 << 10

var (
	// ErrDamaged means that bytes were lost or altered between the ends.
	ErrDamaged = errors.New("transfer damaged on the way")
	// ErrAborted means that the other end gave the transfer up.
	ErrAborted = errors.New("transfer aborted")
	// ErrUnknownRef means that a Ref is of another carrier, or that its bytes are
	// no longer held.
	ErrUnknownRef = errors.New("transfer not available here")
	// ErrStalled means that the receiving end took nothing for too long.
	ErrStalled = errors.New("transfer stalled")
)

// StreamAddress names one attempt to send one part.
type StreamAddress struct {
	Cluster messages.Cluster
	Run     string
	Part    string
	Attempt int
}

// DepositAddress names where a WAL file belongs.
type DepositAddress struct {
	Cluster  messages.Cluster
	Timeline pg.Timeline
}

// Carrier is one way to move bytes. It is safe for concurrent use.
type Carrier interface {
	// Stream opens the sending end of a stream; Sender.Ref is for the
	// receiver. The context bounds the opening only.
	Stream(ctx context.Context, to StreamAddress) (Sender, error)

	// Deposit makes the bytes of open available under the returned Ref
	// until Discard. open may be called more than once and later, and each
	// call must yield the same bytes. When Deposit returns, the bytes are
	// as durable as the carrier makes them.
	Deposit(ctx context.Context, to DepositAddress, size int64, open func() (io.ReadCloser, error)) (messages.Ref, error)

	// Open opens the receiving end. A deposit can be opened any number of
	// times, a stream once.
	Open(ctx context.Context, ref messages.Ref) (Receiver, error)

	// Discard drops a deposit. Dropping it again is no error.
	Discard(ctx context.Context, ref messages.Ref) error
}

// Sender is the sending end of a stream, for one goroutine. Close or Abort
// must be called.
type Sender interface {
	Ref() messages.Ref
	// Buffer returns an empty buffer of ChunkSize to fill.
	Buffer() []byte
	// Send passes a buffer got from Buffer, cut to what is filled, on to the
	// receiver; the caller must not touch it again. It blocks while the
	// window is full, and fails with ErrAborted when the receiver closed,
	// ErrStalled when it took nothing for the carrier's limit.
	Send(ctx context.Context, buf []byte) error
	// Close ends the stream. It does not wait for the receiver.
	Close(ctx context.Context) error
	// Abort ends the stream in failure: the receiver gets ErrAborted. After
	// Close it does nothing. It is safe to call from another goroutine.
	Abort()
}

// Receiver is the receiving end, for one goroutine. The caller closes it.
type Receiver interface {
	// Next returns the next bytes, which stay valid until the next call. At the
	// end, when everything was checked, it returns io.EOF, and only then may
	// what was received be taken for whole.
	Next(ctx context.Context) ([]byte, error)
	// Close gives up what was not received; after io.EOF it only cleans up.
	Close()
}

// Copy writes everything a receiver yields to w and returns the count.
func Copy(ctx context.Context, w io.Writer, r Receiver) (int64, error) {
	var n int64
	for {
		chunk, err := r.Next(ctx)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		k, err := w.Write(chunk)
		n += int64(k)
		if err != nil {
			return n, err
		}
	}
}

// pool hands out chunk buffers.
type pool struct{ p sync.Pool }

func (p *pool) get() []byte {
	if b, ok := p.p.Get().(*[ChunkSize]byte); ok {
		return b[:]
	}
	return new([ChunkSize]byte)[:]
}

// put takes a buffer back; one that is not of the pool is dropped.
func (p *pool) put(b []byte) {
	if cap(b) == ChunkSize {
		p.p.Put((*[ChunkSize]byte)(b[:ChunkSize]))
	}
}

func unknown(ref messages.Ref) error {
	return fmt.Errorf("open transfer %s %q: %w", ref.Carrier, ref.ID, ErrUnknownRef)
}
