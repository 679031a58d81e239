package transit

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"sync"

	"github.com/walherd/walherd/messages"
)

const localCarrier = "local"

// Local hands buffers from one goroutine to another of the same process. The
// two ends share memory, so there is nothing on the way to check: only the
// length of a deposit, whose file may have changed, is compared.
type Local struct {
	window int // chunks
	bufs   pool

	mu       sync.Mutex
	streams  map[string]*localStream
	deposits map[string]localDeposit
}

type localDeposit struct {
	size int64
	open func() (io.ReadCloser, error)
}

// NewLocal makes a carrier with the given window per stream in bytes.
func NewLocal(window int) *Local {
	return &Local{
		window:   max(window/ChunkSize, 2),
		streams:  map[string]*localStream{},
		deposits: map[string]localDeposit{},
	}
}

// Stream implements Carrier.
func (l *Local) Stream(_ context.Context, to StreamAddress) (Sender, error) {
	s := &localStream{
		l:       l,
		id:      messages.ChunkSubject(to.Cluster, to.Run, to.Part, to.Attempt),
		chunks:  make(chan []byte, l.window),
		closed:  make(chan struct{}),
		aborted: make(chan struct{}),
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.streams[s.id]; ok {
		return nil, fmt.Errorf("open stream %s: it is open already", s.id)
	}
	l.streams[s.id] = s
	return s, nil
}

// Deposit implements Carrier. Nothing is read until the deposit is opened.
func (l *Local) Deposit(_ context.Context, _ DepositAddress, size int64, open func() (io.ReadCloser, error)) (messages.Ref, error) {
	id := rand.Text()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deposits[id] = localDeposit{size: size, open: open}
	return messages.Ref{Carrier: localCarrier, ID: id, Size: size}, nil
}

// Open implements Carrier.
func (l *Local) Open(_ context.Context, ref messages.Ref) (Receiver, error) {
	if ref.Carrier != localCarrier {
		return nil, unknown(ref)
	}
	l.mu.Lock()
	s, isStream := l.streams[ref.ID]
	d, isDeposit := l.deposits[ref.ID]
	delete(l.streams, ref.ID)
	l.mu.Unlock()
	switch {
	case isStream:
		return &localReceiver{s: s}, nil
	case isDeposit:
		r, err := d.open()
		if err != nil {
			return nil, fmt.Errorf("open deposit: %w", err)
		}
		return &localFile{l: l, r: r, left: d.size, buf: l.bufs.get()}, nil
	}
	return nil, unknown(ref)
}

// Discard implements Carrier.
func (l *Local) Discard(_ context.Context, ref messages.Ref) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.deposits, ref.ID)
	return nil
}

// localStream is both ends' shared state. closed is closed by the sender's
// Close or the receiver's Close, aborted by the sender's Abort.
type localStream struct {
	l       *Local
	id      string
	chunks  chan []byte
	closed  chan struct{} // the receiver is gone
	aborted chan struct{} // the sender gave up

	closeOnce sync.Once
	mu        sync.Mutex
	over      bool // Close or Abort was called
}

func (s *localStream) Ref() messages.Ref { return messages.Ref{Carrier: localCarrier, ID: s.id} }
func (s *localStream) Buffer() []byte    { return s.l.bufs.get() }

func (s *localStream) Send(ctx context.Context, buf []byte) error {
	// A receiver that is gone wins over room in the window.
	select {
	case <-s.closed:
		return fmt.Errorf("send %s: %w", s.id, ErrAborted)
	case <-s.aborted:
		return fmt.Errorf("send %s: %w", s.id, ErrAborted)
	default:
	}
	select {
	case s.chunks <- buf:
		return nil
	case <-s.closed:
	case <-s.aborted:
	case <-ctx.Done():
		return fmt.Errorf("send %s: %w", s.id, context.Cause(ctx))
	}
	return fmt.Errorf("send %s: %w", s.id, ErrAborted)
}

func (s *localStream) Close(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return fmt.Errorf("close %s: %w", s.id, ErrAborted)
	}
	s.over = true
	close(s.chunks)
	return nil
}

func (s *localStream) Abort() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.over = true
	// The entry stays: a receiver that opens the stream only now must hear
	// that it was aborted, not that it never was.
	close(s.aborted)
}

// localReceiver reads a localStream.
type localReceiver struct {
	s    *localStream
	held []byte
	eof  bool
}

func (r *localReceiver) Next(ctx context.Context) ([]byte, error) {
	if r.eof {
		return nil, io.EOF
	}
	if r.held != nil {
		r.s.l.bufs.put(r.held)
		r.held = nil
	}
	select {
	case b, ok := <-r.s.chunks:
		if !ok {
			r.eof = true
			return nil, io.EOF
		}
		r.held = b
		return b, nil
	case <-r.s.aborted:
		return nil, fmt.Errorf("receive %s: %w", r.s.id, ErrAborted)
	case <-ctx.Done():
		return nil, fmt.Errorf("receive %s: %w", r.s.id, context.Cause(ctx))
	}
}

func (r *localReceiver) Close() {
	r.s.closeOnce.Do(func() { close(r.s.closed) })
	if r.held != nil {
		r.s.l.bufs.put(r.held)
		r.held = nil
	}
}

// localFile reads a deposit.
type localFile struct {
	l    *Local
	r    io.ReadCloser
	left int64
	buf  []byte
}

func (f *localFile) Next(ctx context.Context) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if f.left == 0 {
		var one [1]byte
		if n, err := f.r.Read(one[:]); n > 0 {
			return nil, fmt.Errorf("%w: the file grew while it was read", ErrDamaged)
		} else if err != nil && err != io.EOF {
			return nil, fmt.Errorf("read deposit: %w", err)
		}
		return nil, io.EOF
	}
	want := min(int64(len(f.buf)), f.left)
	n, err := io.ReadFull(f.r, f.buf[:want])
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil, fmt.Errorf("%w: the file ended %d bytes early", ErrDamaged, f.left-int64(n))
	}
	if err != nil {
		return nil, fmt.Errorf("read deposit: %w", err)
	}
	f.left -= int64(n)
	return f.buf[:n], nil
}

func (f *localFile) Close() {
	_ = f.r.Close() // opened for reading
	if f.buf != nil {
		f.l.bufs.put(f.buf)
		f.buf = nil
	}
}
