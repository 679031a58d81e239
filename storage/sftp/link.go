package sftp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// link is one connection with an SFTP session. It lives until it breaks, which
// ends every request under way with an error, or is closed.
type link struct {
	slot  *slot
	files *sftp.Client
	ssh   *ssh.Client
	conn  *heard
	lost  chan struct{} // closed at the end

	canSync   bool        // the server offers fsync@openssh.com
	noDirSync atomic.Bool // it does not open directories
}

func newLink(client *ssh.Client, files *sftp.Client, conn *heard, stall time.Duration) *link {
	l := &link{files: files, ssh: client, conn: conn, lost: make(chan struct{})}
	version, ok := files.HasExtension("fsync@openssh.com")
	l.canSync = ok && version == "1"
	go func() {
		files.Wait()
		client.Close()
		close(l.lost)
	}()
	go l.watch(stall)
	return l
}

func (l *link) alive() bool {
	select {
	case <-l.lost:
		return false
	default:
		return true
	}
}

// watch closes the connection when the other side has gone without a word: a
// lost packet filter's state, a dead machine. TCP alone takes a quarter of an
// hour to tell. The questions also keep an idle connection open.
func (l *link) watch(stall time.Duration) {
	var questions sync.WaitGroup
	defer questions.Wait()
	tick := time.NewTicker(stall / 4)
	defer tick.Stop()
	var pending atomic.Bool
	for {
		select {
		case <-l.lost:
			return
		case <-tick.C:
		}
		silence := l.conn.silence()
		if silence >= stall {
			l.conn.Close()
			continue
		}
		if silence >= stall/2 && pending.CompareAndSwap(false, true) {
			questions.Go(func() {
				// Its answer counts by being heard; it may be a refusal.
				l.ssh.SendRequest("keepalive@openssh.com", true, nil)
				pending.Store(false)
			})
		}
	}
}

// close ends the connection and waits until all knows.
func (l *link) close() {
	l.conn.Close()
	<-l.lost
}

// hold and release count who uses the link.
func (l *link) hold()    { l.slot.users.Add(1) }
func (l *link) release() { l.slot.users.Add(-1) }

// heard is a connection that remembers when something was last heard.
type heard struct {
	net.Conn
	began time.Time
	last  atomic.Int64 // nanoseconds since began, on the monotonic clock
}

func newHeard(c net.Conn) *heard { return &heard{Conn: c, began: time.Now()} }

func (h *heard) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	if n > 0 {
		h.last.Store(int64(time.Since(h.began)))
	}
	return n, err
}

func (h *heard) silence() time.Duration { return time.Since(h.began) - time.Duration(h.last.Load()) }

// slot is the place of one connection, made anew when it broke.
type slot struct {
	turn  chan struct{} // holds one value while somebody looks or dials
	link  *link         // belongs to who has the turn
	users atomic.Int64
}

func newSlots(n int) []*slot {
	slots := make([]*slot, n)
	for i := range slots {
		slots[i] = &slot{turn: make(chan struct{}, 1)}
	}
	return slots
}

// take waits for the turn.
func (s *slot) take(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *slot) give() { <-s.turn }

// errClosed is a call after Close.
var errClosed = errors.New("the bucket is closed")

// acquire gives a connection that was alive a moment ago, and counts its
// caller, who releases it.
func (b *Bucket) acquire(ctx context.Context) (*link, error) {
	s := b.leastBusy()
	l, err := b.connect(ctx, s)
	if err == nil {
		return l, nil
	}
	s.users.Add(-1)
	if ctx.Err() != nil || b.life.Err() != nil {
		return nil, err
	}
	// A server may allow fewer connections than we would like.
	for _, other := range b.slots {
		if other == s || other.users.Load() == 0 {
			continue
		}
		if other.take(ctx) != nil {
			break
		}
		l := other.link
		if l != nil && l.alive() {
			other.users.Add(1)
			other.give()
			return l, nil
		}
		other.give()
	}
	return nil, err
}

// leastBusy picks a slot and counts its caller. The first ones are preferred,
// so that no connection is made that is not needed.
func (b *Bucket) leastBusy() *slot {
	b.mu.Lock()
	defer b.mu.Unlock()
	best := b.slots[0]
	for _, s := range b.slots[1:] {
		if s.users.Load() < best.users.Load() {
			best = s
		}
	}
	best.users.Add(1)
	return best
}

func (b *Bucket) connect(ctx context.Context, s *slot) (*link, error) {
	if err := s.take(ctx); err != nil {
		return nil, err
	}
	defer s.give()
	if b.life.Err() != nil {
		return nil, errClosed
	}
	if s.link != nil && s.link.alive() {
		return s.link, nil
	}
	dialCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(b.life, cancel)()
	l, err := b.dial(dialCtx)
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, ctx.Err()
	case b.life.Err() != nil:
		if err == nil {
			l.close()
		}
		return nil, errClosed
	case err != nil:
		return nil, err
	}
	l.slot = s
	s.link = l
	return l, nil
}

// Close ends the connections and with them every call under way. Later calls
// fail.
func (b *Bucket) Close() error {
	b.end()
	for _, s := range b.slots {
		s.turn <- struct{}{} // a dial ends with b.life
		if s.link != nil {
			s.link.close()
		}
		s.give()
	}
	return nil
}

// do runs f with a connection. When ctx ends first, f goes on by itself until
// its answer comes or the connection ends (a request cannot be called back),
// and drop gets what it made; f must be harmless then.
func do[T any](ctx context.Context, b *Bucket, f func(l *link) (T, error), drop func(T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	l, err := b.acquire(ctx)
	if err != nil {
		return none, err
	}
	done := make(chan result, 1)
	go func() {
		defer l.release()
		value, err := f(l)
		if broken(err) {
			// It takes a moment until the link knows by itself, and so long
			// every other request would be given to it.
			l.close()
		}
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		if drop != nil {
			go func() {
				if r := <-done; r.err == nil {
					drop(r.value)
				}
			}()
		}
		return none, fmt.Errorf("wait for the server: %w", ctx.Err())
	}
}
