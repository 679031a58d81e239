package deadletter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/deadletter"
	"github.com/walherd/walherd/messages/topology"
)

const segment = "000000010000000000000007"

// queue publishes an archive job and returns its message.
func queue(t *testing.T, b *bus.Bus) []byte {
	t.Helper()
	data, err := messages.Encode(messages.KindArchive, bustest.Cluster, time.Now(), messages.ArchiveJob{Name: segment})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Publish(t.Context(), messages.WorkSubject(messages.KindArchive, bustest.Cluster), nil, data); err != nil {
		t.Fatal(err)
	}
	return data
}

func take(t *testing.T, b *bus.Bus) *bus.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	d, err := b.Next(ctx, topology.StreamWork, messages.WorkConsumer(messages.KindArchive, bustest.Cluster))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// only awaits the one letter there is.
func only(t *testing.T, b *bus.Bus) deadletter.Letter {
	t.Helper()
	for {
		all, err := deadletter.List(t.Context(), b, bustest.Cluster)
		if err != nil {
			t.Fatal(err)
		}
		if len(all) > 1 {
			t.Fatalf("%d letters: %+v", len(all), all)
		}
		if len(all) == 1 {
			return all[0]
		}
		if t.Context().Err() != nil {
			t.Fatal("no letter")
		}
	}
}

// ways a job dies.
var ways = map[string]func(t *testing.T, b *bus.Bus){
	"given up": func(t *testing.T, b *bus.Bus) {
		d := take(t, b)
		why := errors.New("no room\nat all")
		if err := deadletter.Post(t.Context(), b, bustest.Cluster, messages.KindArchive, d, "w1", why); err != nil {
			t.Fatal(err)
		}
		if err := d.Settle(t.Context(), 2, bus.Reject(why)); err != nil {
			t.Fatal(err)
		}
	},
	"out of deliveries": func(t *testing.T, b *bus.Bus) {
		for range 2 {
			if err := take(t, b).GiveBack(); err != nil {
				t.Fatal(err)
			}
		}
		// The broker notices when the next is asked for.
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, err := b.Next(ctx, topology.StreamWork, messages.WorkConsumer(messages.KindArchive, bustest.Cluster)); err == nil {
			t.Fatal("a third delivery")
		}
	},
}

func TestRetryDoesTheJobAgain(t *testing.T) {
	t.Parallel()
	for name, die := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := bustest.New(t, topology.Config{MaxDeliver: 2})
			want := queue(t, b)
			die(t, b)
			l := only(t, b)
			if l.Object != segment || l.Kind != messages.KindArchive || l.Reason == "" || l.Attempts == 0 || !bytes.Equal(l.Data, want) {
				t.Fatalf("letter %+v", l)
			}
			if err := deadletter.Retry(t.Context(), b, l); err != nil {
				t.Fatal(err)
			}
			d := take(t, b)
			if !bytes.Equal(d.Data(), want) || d.Attempt != 1 {
				t.Fatalf("attempt %d of %s", d.Attempt, d.Data())
			}
			if err := d.Settle(t.Context(), 2, nil); err != nil {
				t.Fatal(err)
			}
			nothingLeft(t, b)
		})
	}
}

func TestDropLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, die := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := bustest.New(t, topology.Config{MaxDeliver: 2})
			queue(t, b)
			die(t, b)
			l := only(t, b)
			if _, err := deadletter.Get(t.Context(), b, "another", l.ID); !errors.Is(err, deadletter.ErrUnknown) {
				t.Fatalf("another cluster's: %v, want ErrUnknown", err)
			}
			same, err := deadletter.Get(t.Context(), b, bustest.Cluster, l.ID)
			if err != nil || same.Object != l.Object || same.Reason != l.Reason {
				t.Fatalf("got %+v, %v", same, err)
			}
			if err := deadletter.Drop(t.Context(), b, same); err != nil {
				t.Fatal(err)
			}
			if _, err := deadletter.Get(t.Context(), b, bustest.Cluster, l.ID); !errors.Is(err, deadletter.ErrUnknown) {
				t.Fatalf("after drop: %v, want ErrUnknown", err)
			}
			nothingLeft(t, b)
		})
	}
}

// TestRelieveMovesAStuckJob from the work queue to the letters, whole, or to
// the queue's end.
func TestRelieveMovesAStuckJob(t *testing.T) {
	t.Parallel()
	for _, keep := range []bool{false, true} {
		t.Run(fmt.Sprint("keep ", keep), func(t *testing.T) {
			t.Parallel()
			b := bustest.New(t, topology.Config{MaxDeliver: 2})
			want := queue(t, b)
			ways["out of deliveries"](t, b)
			stuck := only(t, b)
			if !stuck.Stuck {
				t.Fatalf("the letter is %+v", stuck)
			}
			if err := deadletter.Relieve(t.Context(), b, stuck, "w2", keep); err != nil {
				t.Fatal(err)
			}
			if keep {
				d := take(t, b)
				if !bytes.Equal(d.Data(), want) || d.Attempt != 1 {
					t.Fatalf("attempt %d of %s", d.Attempt, d.Data())
				}
				if err := d.Settle(t.Context(), 2, nil); err != nil {
					t.Fatal(err)
				}
				nothingLeft(t, b)
				return
			}
			if n, err := b.Depth(t.Context(), topology.StreamWork); err != nil || n > 0 {
				t.Fatalf("%d jobs are left, %v", n, err)
			}
			l := only(t, b)
			if l.Stuck || l.Object != segment || l.Reason != stuck.Reason || l.Attempts != 2 || l.Worker != "w2" || !bytes.Equal(l.Data, want) {
				t.Fatalf("the letter is %+v", l)
			}
			if err := deadletter.Retry(t.Context(), b, l); err != nil {
				t.Fatal(err)
			}
			if d := take(t, b); !bytes.Equal(d.Data(), want) {
				t.Fatalf("tried again: %s", d.Data())
			}
		})
	}
}

func nothingLeft(t *testing.T, b *bus.Bus) {
	t.Helper()
	all, err := deadletter.List(t.Context(), b, bustest.Cluster)
	if err != nil || len(all) > 0 {
		t.Fatalf("letters left: %+v, %v", all, err)
	}
	if n, err := b.Depth(t.Context(), topology.StreamWork); err != nil || n > 0 {
		t.Fatalf("%d jobs left, %v", n, err)
	}
}

// TestAnAdvisoryIsNotAboutALaterJob: the work queue was made anew since, and the
// advisory's number is that of a job which is alive.
func TestAnAdvisoryIsNotAboutALaterJob(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{})
	consumer := messages.WorkConsumer(messages.KindArchive, bustest.Cluster)
	advisory := fmt.Sprintf(`{"stream":%q,"consumer":%q,"stream_seq":1,"deliveries":5}`, topology.StreamWork, consumer)
	subject := strings.TrimSuffix(topology.Exhausted, ">") + consumer
	if _, err := b.Publish(t.Context(), subject, nil, []byte(advisory)); err != nil {
		t.Fatal(err)
	}
	queue(t, b)
	if all, err := deadletter.List(t.Context(), b, bustest.Cluster); err != nil || len(all) > 0 {
		t.Fatalf("letters: %+v, %v", all, err)
	}
}

// TestTransferOfALetter: only what nobody will send again is kept for a letter.
func TestTransferOfALetter(t *testing.T) {
	t.Parallel()
	encode := func(acknowledged bool) []byte {
		data, err := messages.Encode(messages.KindArchive, bustest.Cluster, time.Now(), messages.ArchiveJob{
			Name: segment, Bytes: messages.Ref{ID: "bytes"}, Acknowledged: acknowledged,
		})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for _, c := range []struct {
		data []byte
		want string
	}{
		{encode(true), "bytes"},
		{encode(false), ""},
		{bytes.Replace(encode(true), []byte(`"v":1`), []byte(`"v":2`), 1), "bytes"},
		{[]byte("no job"), ""},
	} {
		if got := (deadletter.Letter{Kind: messages.KindArchive, Data: c.data}).Transfer(); got != c.want {
			t.Errorf("%s: keeps %q, want %q", c.data, got, c.want)
		}
	}
}
