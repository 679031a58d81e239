package link_test

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/walherd/walherd/tools/faults/link"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo answers with what it gets.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func open(t *testing.T) *link.Link {
	t.Helper()
	k, err := link.New(t.Context(), echo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

func dial(t *testing.T, k *link.Link) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", k.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// said sends text and reads as much back.
func said(c net.Conn, text string) (string, error) {
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	buf := make([]byte, len(text))
	n, err := io.ReadFull(c, buf)
	return string(buf[:n]), err
}

func TestForwards(t *testing.T) {
	t.Parallel()
	k := open(t)
	c := dial(t, k)
	if got, err := said(c, "hello"); got != "hello" || err != nil {
		t.Fatalf("got %q, %v", got, err)
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() {
		_, _ = c.Write(big)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, big) {
		t.Fatalf("%d bytes came back of %d, %v", len(got), len(big), err)
	}
}

func TestCut(t *testing.T) {
	t.Parallel()
	k := open(t)
	c := dial(t, k)
	if _, err := said(c, "hello"); err != nil {
		t.Fatal(err)
	}
	k.Set(link.Fault{Cut: true})
	if got, err := said(c, "hello"); err == nil {
		t.Fatalf("a cut link said %q", got)
	}
	if c, err := net.Dial("tcp", k.Addr()); err == nil {
		if got, err := said(c, "hello"); err == nil {
			t.Fatalf("a cut link took a connection and said %q", got)
		}
		c.Close()
	}
	k.Set(link.Fault{})
	if got, err := said(dial(t, k), "hello"); got != "hello" || err != nil {
		t.Fatalf("mended, it said %q, %v", got, err)
	}
}

func TestSilentLosesNothing(t *testing.T) {
	t.Parallel()
	k := open(t)
	c := dial(t, k)
	k.Set(link.Fault{Silent: true})
	answer := make(chan string)
	go func() {
		got, _ := said(c, "hello")
		answer <- got
	}()
	select {
	case got := <-answer:
		t.Fatalf("a silent link said %q", got)
	case <-time.After(50 * time.Millisecond):
	}
	k.Set(link.Fault{})
	if got := <-answer; got != "hello" {
		t.Fatalf("got %q after the silence", got)
	}
}

func TestResetInTheMiddle(t *testing.T) {
	t.Parallel()
	k := open(t)
	c := dial(t, k)
	if _, err := said(c, "0123456789"); err != nil {
		t.Fatal(err)
	}
	k.Set(link.Fault{ResetAfter: 5})
	if got, err := said(c, "0123456789"); err == nil || len(got) > 5 {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	k := open(t)
	c := dial(t, k)
	k.Set(link.Fault{Answer: []byte("no")})
	if _, err := io.WriteString(c, "anything"); err != nil {
		t.Fatal(err)
	}
	// It may be reset before all of it is read; it never echoes.
	if got, _ := io.ReadAll(c); len(got) > 0 && string(got) != "no" {
		t.Fatalf("got %q", got)
	}
}

func TestDelayAndRate(t *testing.T) {
	t.Parallel()
	k := open(t)
	c := dial(t, k)
	k.Set(link.Fault{Delay: 30 * time.Millisecond, Rate: 1 << 20})
	start := time.Now()
	if got, err := said(c, "hello"); got != "hello" || err != nil {
		t.Fatalf("got %q, %v", got, err)
	}
	if took := time.Since(start); took < 60*time.Millisecond {
		t.Fatalf("both ways took %s, less than the delays", took)
	}
}
