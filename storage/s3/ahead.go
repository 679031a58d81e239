package s3

import (
	"context"
	"io"
	"sync"
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

	mu     sync.Mutex // held by Read
	first  *stream    // until its part of the object is read
	cur    *contentReader
	has    *piece
	closed bool
}

// piece is one range: its content is complete, or err is set, when done is
// closed.
type piece struct {
	content *content
	err     error
	done    chan struct{}
}

// newAhead takes over s, which stands at its first byte.
func newAhead(s *stream, size int64, parallel int) *ahead {
	ctx, cancel := context.WithCancel(s.ctx)
	a := &ahead{cancel: cancel, first: s, pieces: make(chan *piece, parallel), free: make(chan struct{}, parallel-1)}
	from, end := s.at+size, s.at+s.left
	s.left = size
	s.conn.whole = false
	a.all.Go(func() {
		defer close(a.pieces)
		for at := from; at < end; at += size {
			select {
			case a.free <- struct{}{}:
			case <-ctx.Done():
				return
			}
			p := &piece{content: &content{pool: &s.b.pool}, done: make(chan struct{})}
			part := &stream{b: s.b, ctx: ctx, key: s.key, etag: s.etag, size: s.size, at: at, left: min(size, end-at), resumes: s.b.opt.Resumes}
			a.all.Go(func() {
				defer close(p.done)
				p.err = part.readInto(p.content)
			})
			a.pieces <- p
		}
	})
	return a
}

// readInto reads the stream to its end, which it must reach.
func (s *stream) readInto(c *content) error {
	defer s.Close()
	got, err := s.get(s.ctx, s.left)
	if err != nil {
		// As if a connection had broken before its first byte.
		if err := s.resume(err); err != nil {
			return err
		}
	} else {
		s.replace(got.conn)
	}
	more, err := c.fill(&source{r: s}, s.left)
	if err == nil && (more || s.left != 0) {
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
			return 0, errClosed
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
			a.has.content.release()
			a.has = nil
			<-a.free
		default:
			next, ok := <-a.pieces
			if !ok {
				return 0, io.EOF
			}
			<-next.done
			if next.err != nil {
				next.content.release()
				return 0, next.err
			}
			a.has, a.cur = next, next.content.reader(func() {})
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
		p.content.release()
	}
	if a.has != nil {
		a.has.content.release()
	}
	a.all.Wait()
	return nil
}
