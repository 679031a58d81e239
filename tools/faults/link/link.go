// Package link is a TCP connection between two processes that can be spoilt
// while it is in use: cut, silenced, slowed down, broken in the middle of a
// body, or answered by somebody else. It forwards bytes and knows nothing of
// what they mean.
package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Fault is what is wrong with a link; the zero value is nothing. It holds for
// open connections and for new ones.
type Fault struct {
	// Cut closes what is open and refuses what comes.
	Cut bool
	// Silent forwards nothing either way and closes nothing: lost packets.
	Silent bool
	// Delay of each direction.
	Delay time.Duration
	// Rate bounds each direction of each connection, in bytes a second; 0 is
	// no bound.
	Rate int64
	// ResetAfter resets a connection once that many bytes went one way,
	// counted from when the fault began; 0 is never.
	ResetAfter int64
	// Answer is written to whoever sends anything, in place of forwarding it;
	// then the connection is closed.
	Answer []byte
}

// Link forwards connections made to Addr to a target.
type Link struct {
	l      net.Listener
	target string
	done   chan struct{}

	mu      sync.Mutex
	fault   Fault
	changed chan struct{} // closed when fault changes
	conns   map[*conn]bool
	running sync.WaitGroup
	moved   atomic.Int64
}

// New listens on a loopback port and forwards to target (host:port).
func New(ctx context.Context, target string) (*Link, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for %s: %w", target, err)
	}
	k := &Link{l: l, target: target, done: make(chan struct{}), changed: make(chan struct{}), conns: map[*conn]bool{}}
	k.running.Go(k.accept)
	return k, nil
}

// Addr is host:port to connect to.
func (k *Link) Addr() string { return k.l.Addr().String() }

// Moved is how many bytes went through, both ways.
func (k *Link) Moved() int64 { return k.moved.Load() }

// Set changes what is wrong.
func (k *Link) Set(f Fault) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fault = f
	close(k.changed)
	k.changed = make(chan struct{})
	for c := range k.conns {
		c.sent[0].Store(0)
		c.sent[1].Store(0)
		if f.Cut {
			c.reset()
		}
	}
}

// Close ends all connections and waits for them.
func (k *Link) Close() {
	k.mu.Lock()
	select {
	case <-k.done:
	default:
		close(k.done)
	}
	k.l.Close()
	for c := range k.conns {
		c.reset()
	}
	k.mu.Unlock()
	k.running.Wait()
}

func (k *Link) now() (Fault, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fault, k.changed
}

func (k *Link) accept() {
	for {
		in, err := k.l.Accept()
		if err != nil {
			return
		}
		k.running.Go(func() { k.serve(in) })
	}
}

// conn is one forwarded connection.
type conn struct {
	in, out net.Conn
	sent    [2]atomic.Int64 // since the fault began, by direction
	over    sync.Once
}

// reset closes both ends without a farewell, and drops what is on its way.
func (c *conn) reset() { c.end(true) }

func (c *conn) end(rudely bool) {
	c.over.Do(func() {
		for _, e := range []net.Conn{c.in, c.out} {
			if e == nil {
				continue
			}
			if t, ok := e.(*net.TCPConn); ok && rudely {
				_ = t.SetLinger(0)
			}
			e.Close()
		}
	})
}

func (k *Link) serve(in net.Conn) {
	c := &conn{in: in}
	if f, _ := k.now(); f.Cut {
		c.reset()
		return
	}
	out, err := (&net.Dialer{Timeout: 5 * time.Second}).Dial("tcp", k.target)
	if err != nil {
		// Somebody who answers for the target needs none.
		if f, _ := k.now(); f.Answer == nil {
			c.reset()
			return
		}
	} else {
		c.out = out
	}
	k.mu.Lock()
	select {
	case <-k.done:
		k.mu.Unlock()
		c.reset()
		return
	default:
	}
	k.conns[c] = true
	k.mu.Unlock()
	defer func() {
		c.end(false)
		k.mu.Lock()
		delete(k.conns, c)
		k.mu.Unlock()
	}()
	var back sync.WaitGroup
	if c.out != nil {
		back.Go(func() { k.pump(c, c.out, c.in, 1) })
	}
	k.pump(c, c.in, c.out, 0)
	back.Wait()
}

var errReset = errors.New("reset")

// piece is what one read gave, and when.
type piece struct {
	data []byte
	at   time.Time
	err  error
}

// inFlight is how many pieces a link holds: it goes on to read while the bytes
// before are on their way, and a timer that fires late costs no bandwidth.
const inFlight = 32

// pump moves bytes one way until either end closes or the fault says so.
func (k *Link) pump(c *conn, from, to net.Conn, way int) {
	pieces, used, over := make(chan piece, inFlight), make(chan []byte, inFlight+2), make(chan struct{})
	var reading sync.WaitGroup
	defer reading.Wait()
	defer close(over)
	reading.Go(func() {
		for made := 0; ; {
			var buf []byte
			select {
			case buf = <-used:
			default:
				if made < cap(used) {
					made, buf = made+1, make([]byte, 32<<10)
					break
				}
				select {
				case buf = <-used:
				case <-over:
					return
				}
			}
			n, err := from.Read(buf)
			select {
			case pieces <- piece{buf[:n], time.Now(), err}:
			case <-over:
				return
			}
			if err != nil {
				return
			}
		}
	})
	var p pace
	for {
		got := <-pieces
		if len(got.data) > 0 {
			if err := k.forward(c, to, got, way, &p); err != nil {
				c.reset()
				return
			}
		}
		if got.err == io.EOF && to != nil {
			// Half closed: the other way may still have something to say. But
			// what is silent tells nobody that it ended.
			if k.speak() == nil {
				if t, ok := to.(*net.TCPConn); ok {
					_ = t.CloseWrite()
				}
			}
			return
		}
		if got.err != nil {
			c.reset()
			return
		}
		used <- got.data[:cap(got.data)]
	}
}

// speak waits until the link is not silent.
func (k *Link) speak() error {
	for {
		f, changed := k.now()
		switch {
		case f.Cut:
			return errReset
		case !f.Silent:
			return nil
		}
		if err := k.pause(changed, nil); err != nil {
			return err
		}
	}
}

func (k *Link) pause(changed <-chan struct{}, after <-chan time.Time) error {
	select {
	case <-changed:
	case <-after:
	case <-k.done:
		return errReset
	}
	return nil
}

// pace is when the last bytes of one direction of a connection arrive.
type pace struct{ last time.Time }

// due is when n bytes that were sent at that moment arrive: the delay later, and
// no faster than the rate behind those before them.
func (p *pace) due(f Fault, n int, at time.Time) time.Time {
	due := at.Add(f.Delay)
	if f.Rate > 0 {
		if due.Before(p.last) {
			due = p.last
		}
		due = due.Add(time.Duration(int64(n) * int64(time.Second) / f.Rate))
	}
	p.last = due
	return due
}

func (k *Link) forward(c *conn, to net.Conn, got piece, way int, p *pace) error {
	data := got.data
	if err := k.speak(); err != nil {
		return err
	}
	f, changed := k.now()
	if f.Answer != nil || to == nil {
		if way == 0 {
			_, _ = c.in.Write(f.Answer)
			c.end(false)
		}
		return errReset
	}
	if f.ResetAfter > 0 {
		left := f.ResetAfter - c.sent[way].Load()
		if left <= int64(len(data)) {
			_, _ = to.Write(data[:max(left, 0)])
			return errReset
		}
	}
	if wait := time.Until(p.due(f, len(data), got.at)); wait > 0 {
		t := time.NewTimer(wait)
		err := k.pause(changed, t.C)
		t.Stop()
		if err != nil {
			return err
		}
	}
	n, err := to.Write(data)
	c.sent[way].Add(int64(n))
	k.moved.Add(int64(n))
	return err
}
