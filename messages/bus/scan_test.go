package bus_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/walherd/walherd/messages/broker"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/topology"
)

const scanned = "walherd.work.archive.test"

func TestScanTellsEveryMessageOnce(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{})
	scan := func() (seqs []uint64) {
		t.Helper()
		if err := b.Scan(t.Context(), topology.StreamWork, scanned, func(m bus.Stored) {
			if string(m.Data) != m.Header["K"][0] || m.Subject != scanned || m.Time.IsZero() {
				t.Errorf("told %+v", m)
			}
			seqs = append(seqs, m.Seq)
		}); err != nil {
			t.Fatal(err)
		}
		slices.Sort(seqs)
		return seqs
	}
	if got := scan(); len(got) > 0 {
		t.Fatalf("an empty stream holds %v", got)
	}
	var want []uint64
	for i := range 300 {
		// Runs of others' messages, and gaps, of every length.
		for range rand.N(4) * rand.N(4) {
			publish(t, b, "walherd.work.part.test", "other")
		}
		seq := publish(t, b, scanned, fmt.Sprint(i))
		if rand.N(3) == 0 {
			if err := b.Remove(t.Context(), topology.StreamWork, seq); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want = append(want, seq)
	}
	if got := scan(); !slices.Equal(got, want) {
		t.Fatalf("told %v, want %v", got, want)
	}
}

// TestScanSeesWhatIsReplaced: a worker queues a job anew, then ends the old
// one. Who takes the job for gone removes its bytes.
func TestScanSeesWhatIsReplaced(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{})
	const jobs = 40
	at := make([]uint64, jobs)
	for i := range at {
		at[i] = publish(t, b, scanned, fmt.Sprint(i))
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := range 10 * jobs {
			// Backwards now and then: from what is read last to what was read first.
			i := n % jobs
			if n/jobs%2 == 1 {
				i = jobs - 1 - i
			}
			seq, err := b.Publish(t.Context(), scanned, bus.Header{"K": {fmt.Sprint(i)}}, []byte(fmt.Sprint(i)))
			if err == nil {
				err = b.Remove(t.Context(), topology.StreamWork, at[i])
			}
			if err != nil {
				t.Error(err)
				return
			}
			at[i] = seq
		}
	}()
	for replacing := true; replacing; {
		seen := map[string]bool{}
		if err := b.Scan(t.Context(), topology.StreamWork, scanned, func(m bus.Stored) { seen[string(m.Data)] = true }); err != nil {
			t.Fatal(err)
		}
		if len(seen) != jobs {
			t.Fatalf("told %d of %d", len(seen), jobs)
		}
		select {
		case <-done:
			replacing = false
		default:
		}
	}
}

// far is a connection to a broker that is one way away.
func far(t testing.TB, one time.Duration) *bus.Bus {
	t.Helper()
	b := bustest.Broker(t, broker.Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			away, err := b.InProcessConn()
			if err != nil {
				return
			}
			go delay(near, away, one)
			go delay(away, near, one)
		}
	}()
	conn, err := bus.Connect(t.Context(), bus.Options{URL: "nats://" + l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	if _, err := topology.Ensure(t.Context(), conn, topology.Config{InMemory: true, Cluster: bustest.Cluster}); err != nil {
		t.Fatal(err)
	}
	return conn
}

// delay passes bytes on after a time, however many are on their way.
func delay(to io.WriteCloser, from io.Reader, one time.Duration) {
	type piece struct {
		at   time.Time
		data []byte
	}
	way := make(chan piece, 1<<16)
	go func() {
		defer close(way)
		for {
			buf := make([]byte, 64<<10)
			n, err := from.Read(buf)
			if n > 0 {
				way <- piece{time.Now().Add(one), buf[:n]}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range way {
		<-time.After(time.Until(p.at))
		if _, err := to.Write(p.data); err != nil {
			break
		}
	}
	_ = to.Close()
}

// BenchmarkScan reads a work queue of 3,000 and 10,000 jobs, a millisecond away.
func BenchmarkScan(b *testing.B) {
	for _, jobs := range []int{3000, 10000} {
		b.Run(fmt.Sprint(jobs), func(b *testing.B) {
			conn := far(b, time.Millisecond/2)
			body := make([]byte, 600)
			var pending []bus.Pending
			for range jobs {
				p, err := conn.PublishAsync(b.Context(), scanned, nil, body)
				if err != nil {
					b.Fatal(err)
				}
				pending = append(pending, p)
			}
			for _, p := range pending {
				if _, err := p.Wait(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				n := 0
				if err := conn.Scan(b.Context(), topology.StreamWork, scanned, func(bus.Stored) { n++ }); err != nil || n != jobs {
					b.Fatal(n, err)
				}
			}
		})
	}
}
