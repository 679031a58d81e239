package s3

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/walherd/walherd/storage/pieces"
)

// ahead reads an object in ranges, several at once, and gives their bytes in
// order. The first range is what the stream has open already; its connection
// is cut when that range is read. Memory is at most a range for each of
// parallel-1 readers, from the Bucket's chunks.
type ahead struct {
	cancel context.CancelFunc
	pieces chan *piece
	free   chan struct{} // one for each piece that may be under way or waiting
	all    sync.WaitGroup

	mu     sync.Mutex     // held by Read
	first  *pieces.Stream //  until its part of the object is read
	cur    *pieces.Reader
	has    *piece
	closed bool
}

// piece is one range: its content is complete, or err is set, when done is
// closed.
type piece struct {
	content *pieces.Content
	err     error
	done    chan struct{}
}

// newAhead reads left bytes of v from offset at on; conn stands at the first.
func newAhead(ctx context.Context, v version, conn *conn, at, left int64) *ahead {
	size, parallel := v.b.opt.ReadRange, v.b.opt.ReadParallel
	conn.whole = false
	first := v.stream(ctx, at, size, conn)
	ctx, cancel := context.WithCancel(ctx)
	a := &ahead{cancel: cancel, first: first, pieces: make(chan *piece, parallel), free: make(chan struct{}, parallel-1)}
	from, end := at+size, at+left
	a.all.Go(func() {
		defer close(a.pieces)
		for at := from; at < end; at += size {
			select {
			case a.free <- struct{}{}:
			case <-ctx.Done():
				return
			}
			p := &piece{content: pieces.NewContent(v.b.pool), done: make(chan struct{})}
			part := v.stream(ctx, at, min(size, end-at), nil)
			a.all.Go(func() {
				defer close(p.done)
				p.err = readInto(ctx, p.content, part)
			})
			a.pieces <- p
		}
	})
	return a
}

// readInto reads the stream to its end, which it must reach.
func readInto(ctx context.Context, c *pieces.Content, s *pieces.Stream) error {
	defer s.Close()
	more, err := c.Fill(ctx, pieces.NewSource(s, nil), s.Left())
	var read *pieces.ReadError
	if errors.As(err, &read) {
		return read.Err
	}
	if err == nil && (more || s.Left() != 0) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (a *ahead) Read(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for {
		switch {
		case a.closed:
			return 0, pieces.ErrClosed
		case a.first != nil:
			n, err := a.first.Read(p)
			if err != io.EOF {
				return n, err
			}
			a.first.Close()
			a.first = nil
		case a.cur != nil:
			n, err := a.cur.Read(p)
			if err != io.EOF {
				return n, err
			}
			a.cur = nil
			a.has.content.Release()
			a.has = nil
			<-a.free
		default:
			next, ok := <-a.pieces
			if !ok {
				return 0, io.EOF
			}
			<-next.done
			if next.err != nil {
				next.content.Release()
				return 0, next.err
			}
			a.has, a.cur = next, next.content.Reader(0, nil)
		}
	}
}

// Close ends the readers and waits for them. A Read that waits returns, as
// the stream's context has ended before.
func (a *ahead) Close() error {
	a.cancel()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	if a.first != nil {
		a.first.Close()
	}
	for p := range a.pieces {
		<-p.done
		p.content.Release()
	}
	if a.has != nil {
		a.has.content.Release()
	}
	a.all.Wait()
	return nil
}
