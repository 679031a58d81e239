package transit_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/messages/transit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// carriers runs one promise for every carrier.
func carriers(t *testing.T, promise func(t *testing.T, c transit.Carrier)) {
	t.Run("Local", func(t *testing.T) {
		t.Parallel()
		promise(t, transit.NewLocal(4<<20))
	})
	t.Run("Queue", func(t *testing.T) {
		t.Parallel()
		promise(t, transit.NewQueue(bustest.New(t, topology.Config{}), transit.QueueOptions{Window: 4 << 20}))
	})
}

func random(n int) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), 7})
	_, _ = src.Read(b)
	return b
}

func sizes() []int {
	const c = transit.ChunkSize
	return []int{0, 1, c - 1, c, c + 1, 3*c + 17, 20*c + 1}
}

func address(part string) transit.StreamAddress {
	return transit.StreamAddress{Cluster: "test", Run: "run", Part: part, Attempt: 1}
}

// send writes data through a sender.
func send(ctx context.Context, s transit.Sender, data []byte) error {
	for len(data) > 0 {
		buf := s.Buffer()
		n := copy(buf, data)
		if err := s.Send(ctx, buf[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return s.Close(ctx)
}

func TestStreamDeliversEveryByte(t *testing.T) {
	t.Parallel()
	carriers(t, func(t *testing.T, c transit.Carrier) {
		for _, size := range sizes() {
			t.Run(fmt.Sprint(size), func(t *testing.T) {
				t.Parallel()
				want := random(size)
				s, err := c.Stream(t.Context(), address(fmt.Sprint("part", size)))
				if err != nil {
					t.Fatal(err)
				}
				sent := make(chan error, 1)
				go func() { sent <- send(t.Context(), s, want) }()
				r, err := c.Open(t.Context(), s.Ref())
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				var got bytes.Buffer
				if _, err := transit.Copy(t.Context(), &got, r); err != nil {
					t.Fatal(err)
				}
				if err := <-sent; err != nil {
					t.Fatalf("send: %v", err)
				}
				if !bytes.Equal(got.Bytes(), want) {
					t.Fatalf("got %d bytes, sent %d", got.Len(), len(want))
				}
				if _, err := r.Next(t.Context()); err != io.EOF {
					t.Fatalf("after the end: %v, want io.EOF", err)
				}
			})
		}
	})
}

func TestStreamWindowHoldsTheSender(t *testing.T) {
	t.Parallel()
	carriers(t, func(t *testing.T, c transit.Carrier) {
		s, err := c.Stream(t.Context(), address("window"))
		if err != nil {
			t.Fatal(err)
		}
		// Nobody receives: a window's worth goes out, then Send blocks until its
		// context ends.
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		sent := 0
		for ; ; sent++ {
			if err = s.Send(ctx, s.Buffer()); err != nil {
				break
			}
			if sent > 64 {
				t.Fatal("the window of 4 MiB does not hold the sender")
			}
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("send: %v", err)
		}
		if sent < 2 {
			t.Fatalf("only %d chunks went out", sent)
		}
		s.Abort()
	})
}

func TestAbortReachesTheReceiver(t *testing.T) {
	t.Parallel()
	carriers(t, func(t *testing.T, c transit.Carrier) {
		s, err := c.Stream(t.Context(), address("abort"))
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.Open(t.Context(), s.Ref())
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		buf := s.Buffer()
		if err := s.Send(t.Context(), buf[:copy(buf, "half")]); err != nil {
			t.Fatal(err)
		}
		s.Abort()
		if _, err := transit.Copy(t.Context(), io.Discard, r); !errors.Is(err, transit.ErrAborted) {
			t.Fatalf("receive: %v, want ErrAborted", err)
		}
		if err := s.Close(t.Context()); !errors.Is(err, transit.ErrAborted) {
			t.Fatalf("close after abort: %v, want ErrAborted", err)
		}
	})
}

func TestReceiverThatClosesReachesTheSender(t *testing.T) {
	t.Parallel()
	carriers(t, func(t *testing.T, c transit.Carrier) {
		s, err := c.Stream(t.Context(), address("closed"))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Abort()
		r, err := c.Open(t.Context(), s.Ref())
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		for range 1000 {
			if err = s.Send(t.Context(), s.Buffer()); err != nil {
				break
			}
		}
		if !errors.Is(err, transit.ErrAborted) {
			t.Fatalf("send: %v, want ErrAborted", err)
		}
	})
}

func TestDepositCanBeOpenedAgain(t *testing.T) {
	t.Parallel()
	carriers(t, func(t *testing.T, c transit.Carrier) {
		for _, size := range sizes() {
			t.Run(fmt.Sprint(size), func(t *testing.T) {
				t.Parallel()
				want := random(size)
				ref, err := c.Deposit(t.Context(), transit.DepositAddress{Cluster: "test", Timeline: 1}, int64(size),
					func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(want)), nil })
				if err != nil {
					t.Fatal(err)
				}
				for range 2 {
					r, err := c.Open(t.Context(), ref)
					if err != nil {
						t.Fatal(err)
					}
					sum := sha256.New()
					n, err := transit.Copy(t.Context(), sum, r)
					r.Close()
					if err != nil || n != int64(size) {
						t.Fatalf("received %d: %v", n, err)
					}
					if w := sha256.Sum256(want); !bytes.Equal(sum.Sum(nil), w[:]) {
						t.Fatal("content differs")
					}
				}
				if err := c.Discard(t.Context(), ref); err != nil {
					t.Fatal(err)
				}
				if err := c.Discard(t.Context(), ref); err != nil {
					t.Fatalf("second discard: %v", err)
				}
				r, err := c.Open(t.Context(), ref)
				if err == nil {
					_, err = transit.Copy(t.Context(), io.Discard, r)
					r.Close()
				}
				if size > 0 && err == nil {
					t.Fatal("a discarded deposit could be read")
				}
			})
		}
	})
}

func TestDepositOfAFileThatIsNotItsSize(t *testing.T) {
	t.Parallel()
	carriers(t, func(t *testing.T, c transit.Carrier) {
		for _, promised := range []int64{3, 5} {
			ref, err := c.Deposit(t.Context(), transit.DepositAddress{Cluster: "test", Timeline: 1}, promised,
				func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader([]byte("four"))), nil })
			if err == nil {
				var r transit.Receiver
				if r, err = c.Open(t.Context(), ref); err != nil {
					t.Fatal(err)
				}
				_, err = transit.Copy(t.Context(), io.Discard, r)
				r.Close()
			}
			if !errors.Is(err, transit.ErrDamaged) {
				t.Fatalf("4 bytes promised as %d: %v, want ErrDamaged", promised, err)
			}
		}
	})
}

func TestRefOfAnotherCarrierIsRefused(t *testing.T) {
	t.Parallel()
	carriers(t, func(t *testing.T, c transit.Carrier) {
		if _, err := c.Open(t.Context(), messages.Ref{Carrier: "pigeon", ID: "x"}); !errors.Is(err, transit.ErrUnknownRef) {
			t.Fatalf("got %v, want ErrUnknownRef", err)
		}
	})
}

// TestQueueNoticesWhatTheBrokerLost removes and swaps stored chunks behind the
// carrier's back, as a broker does that skips a damaged record in silence.
func TestQueueNoticesWhatTheBrokerLost(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{})
	q := transit.NewQueue(b, transit.QueueOptions{})
	deposit := func(t *testing.T) messages.Ref {
		data := random(5 * transit.ChunkSize)
		ref, err := q.Deposit(t.Context(), transit.DepositAddress{Cluster: "test", Timeline: 1}, int64(len(data)),
			func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		if err != nil {
			t.Fatal(err)
		}
		return ref
	}
	// seqs are the sequence numbers of a deposit; other transfers may run
	// in between.
	seqs := func(ref messages.Ref) (all []uint64) {
		for _, r := range ref.Seqs {
			for s := r.First; s <= r.Last; s++ {
				all = append(all, s)
			}
		}
		return all
	}
	one := func(s uint64) messages.SeqRange { return messages.SeqRange{First: s, Last: s} }
	for name, damage := range map[string]func(t *testing.T, ref *messages.Ref){
		"missing chunk": func(t *testing.T, ref *messages.Ref) {
			if err := b.Remove(t.Context(), topology.StreamWAL, seqs(*ref)[2]); err != nil {
				t.Fatal(err)
			}
		},
		"last chunk not listed": func(_ *testing.T, ref *messages.Ref) {
			s := seqs(*ref)
			ref.Seqs = nil
			for _, seq := range s[:len(s)-1] {
				ref.Seqs = append(ref.Seqs, one(seq))
			}
		},
		"chunks in another order": func(_ *testing.T, ref *messages.Ref) {
			s := seqs(*ref)
			ref.Seqs = []messages.SeqRange{one(s[0]), one(s[2]), one(s[1]), one(s[3]), one(s[4])}
		},
		"chunk of another transfer": func(t *testing.T, ref *messages.Ref) {
			s := seqs(*ref)
			other := seqs(deposit(t))
			ref.Seqs = []messages.SeqRange{one(s[0]), one(other[1]), one(s[2]), one(s[3]), one(s[4])}
		},
		"bytes altered, header too": func(t *testing.T, ref *messages.Ref) {
			s := seqs(*ref)
			m, err := b.Get(t.Context(), topology.StreamWAL, s[4])
			if err != nil {
				t.Fatal(err)
			}
			m.Data[100] ^= 1
			seq, err := b.Publish(t.Context(), ref.ID, m.Header, m.Data)
			if err != nil {
				t.Fatal(err)
			}
			ref.Seqs = []messages.SeqRange{one(s[0]), one(s[1]), one(s[2]), one(s[3]), one(seq)}
		},
		"whole digest differs": func(_ *testing.T, ref *messages.Ref) {
			ref.SHA256 = fmt.Sprintf("%x", sha256.Sum256(nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ref := deposit(t)
			damage(t, &ref)
			r, err := q.Open(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if _, err := transit.Copy(t.Context(), io.Discard, r); !errors.Is(err, transit.ErrDamaged) {
				t.Fatalf("got %v, want ErrDamaged", err)
			}
		})
	}
}

func TestQueueStreamNoticesAForeignChunk(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{})
	q := transit.NewQueue(b, transit.QueueOptions{})
	s, err := q.Stream(t.Context(), address("foreign"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Abort()
	if _, err := b.Publish(t.Context(), s.Ref().ID, bus.Header{"Walherd-V": {"1"}, "Walherd-Index": {"0"}}, []byte("x")); err != nil {
		t.Fatal(err)
	}
	r, err := q.Open(t.Context(), s.Ref())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Next(t.Context()); !errors.Is(err, transit.ErrDamaged) {
		t.Fatalf("got %v, want ErrDamaged", err)
	}
}

func TestQueueStallsInsteadOfHanging(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{})
	q := transit.NewQueue(b, transit.QueueOptions{Window: 1 << 20, Stall: 200 * time.Millisecond})
	s, err := q.Stream(t.Context(), address("stall"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := q.Open(t.Context(), s.Ref())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Next(t.Context()); !errors.Is(err, transit.ErrStalled) {
		t.Fatalf("receive from a silent sender: %v, want ErrStalled", err)
	}
	for range 10 {
		if err = s.Send(t.Context(), s.Buffer()); err != nil {
			break
		}
	}
	s.Abort()
	if !errors.Is(err, transit.ErrStalled) {
		t.Fatalf("send to a silent receiver: %v, want ErrStalled", err)
	}
}

func BenchmarkStream(b *testing.B) {
	for name, make := range map[string]func(b *testing.B) transit.Carrier{
		"Local": func(*testing.B) transit.Carrier { return transit.NewLocal(8 << 20) },
		"Queue": func(b *testing.B) transit.Carrier {
			return transit.NewQueue(bustest.New(b, topology.Config{}), transit.QueueOptions{})
		},
	} {
		b.Run(name, func(b *testing.B) {
			c := make(b)
			const chunks = 128
			b.SetBytes(chunks * transit.ChunkSize)
			for i := range b.N {
				s, err := c.Stream(b.Context(), address(fmt.Sprint("bench", i)))
				if err != nil {
					b.Fatal(err)
				}
				r, err := c.Open(b.Context(), s.Ref())
				if err != nil {
					b.Fatal(err)
				}
				go func() {
					for range chunks {
						if err := s.Send(b.Context(), s.Buffer()); err != nil {
							b.Error(err)
							return
						}
					}
					if err := s.Close(b.Context()); err != nil {
						b.Error(err)
					}
				}()
				if _, err := transit.Copy(b.Context(), io.Discard, r); err != nil {
					b.Fatal(err)
				}
				r.Close()
			}
		})
	}
}
