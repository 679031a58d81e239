package transit_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/messages/transit"
)

// sweepBench is a queue with deposits of two clusters.
type sweepBench struct {
	t *testing.T
	b *bus.Bus
	q *transit.Queue
}

func newSweepBench(t *testing.T) *sweepBench {
	b := bustest.New(t, topology.Config{})
	return &sweepBench{t: t, b: b, q: transit.NewQueue(b, transit.QueueOptions{})}
}

func (s *sweepBench) deposit(c messages.Cluster, n int) messages.Ref {
	s.t.Helper()
	data := random(n)
	ref, err := s.q.Deposit(s.t.Context(), transit.DepositAddress{Cluster: c, Timeline: 1}, int64(n),
		func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
	if err != nil {
		s.t.Fatal(err)
	}
	return ref
}

func (s *sweepBench) job(c messages.Cluster, ref messages.Ref) {
	s.t.Helper()
	data, err := messages.Encode(messages.KindArchive, c, time.Now(), messages.ArchiveJob{Name: "000000010000000000000001", Bytes: ref})
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.b.Publish(s.t.Context(), messages.WorkSubject(messages.KindArchive, c), nil, data); err != nil {
		s.t.Fatal(err)
	}
}

// whole reports whether a deposit can be read to its end.
func (s *sweepBench) whole(ref messages.Ref) bool {
	s.t.Helper()
	r, err := s.q.Open(s.t.Context(), ref)
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Close()
	_, err = transit.Copy(s.t.Context(), io.Discard, r)
	return err == nil
}

func (s *sweepBench) sweep(age time.Duration) transit.Swept {
	s.t.Helper()
	got, err := s.q.Sweep(s.t.Context(), bustest.Cluster, age, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return got
}

// ofAnyAge sweeps what was stored a moment ago, too.
const ofAnyAge = -time.Hour

const twoChunks = transit.ChunkSize + 1

func TestSweepTakesWhatNoJobRefersTo(t *testing.T) {
	t.Parallel()
	s := newSweepBench(t)
	before := s.deposit(bustest.Cluster, twoChunks)
	s.job(bustest.Cluster, before)
	orphan := s.deposit(bustest.Cluster, 3*twoChunks)
	foreign := s.deposit("other", twoChunks)
	after := s.deposit(bustest.Cluster, twoChunks)
	s.job(bustest.Cluster, after)

	if got := s.sweep(time.Hour); got != (transit.Swept{}) {
		t.Fatalf("swept %+v of what is younger than an hour", got)
	}
	if !s.whole(orphan) {
		t.Fatal("a young transfer was touched")
	}
	if got, want := s.sweep(ofAnyAge), (transit.Swept{Transfers: 1, Chunks: len(chunksOf(orphan))}); got != want {
		t.Fatalf("swept %+v, want %+v", got, want)
	}
	if s.whole(orphan) {
		t.Fatal("the transfer without a job is still there")
	}
	for name, ref := range map[string]messages.Ref{"with a job before": before, "with a job after": after, "of another cluster": foreign} {
		if !s.whole(ref) {
			t.Errorf("the transfer %s was damaged", name)
		}
	}
	if got := s.sweep(ofAnyAge); got != (transit.Swept{}) {
		t.Fatalf("the second sweep took %+v", got)
	}
}

func chunksOf(ref messages.Ref) (seqs []uint64) {
	for _, r := range ref.Seqs {
		for seq := r.First; seq <= r.Last; seq++ {
			seqs = append(seqs, seq)
		}
	}
	return seqs
}

// TestSweepLeavesAJobThatIsBeingWorkedOn: a job handed to a worker is in the
// stream until it is acknowledged.
func TestSweepLeavesAJobThatIsBeingWorkedOn(t *testing.T) {
	t.Parallel()
	s := newSweepBench(t)
	ref := s.deposit(bustest.Cluster, twoChunks)
	s.job(bustest.Cluster, ref)
	d, err := s.b.Next(t.Context(), topology.StreamWork, messages.WorkConsumer(messages.KindArchive, bustest.Cluster))
	if err != nil {
		t.Fatal(err)
	}
	if got := s.sweep(ofAnyAge); got != (transit.Swept{}) || !s.whole(ref) {
		t.Fatalf("swept %+v under a worker's hands", got)
	}
	if err := d.Settle(t.Context(), 5, nil); err != nil {
		t.Fatal(err)
	}
	if got := s.sweep(ofAnyAge); got.Transfers != 1 {
		t.Fatalf("swept %+v after the job was done, want its transfer", got)
	}
}

// TestSweepFinishesAHalfDiscardedTransfer and one whose first chunk is lost.
func TestSweepFinishesAHalfDiscardedTransfer(t *testing.T) {
	t.Parallel()
	s := newSweepBench(t)
	ref := s.deposit(bustest.Cluster, 4*twoChunks)
	seqs := chunksOf(ref)
	for _, seq := range []uint64{seqs[0], seqs[2]} {
		if err := s.b.Remove(t.Context(), topology.StreamWAL, seq); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := s.sweep(ofAnyAge), (transit.Swept{Transfers: 1, Chunks: len(seqs) - 2}); got != want {
		t.Fatalf("swept %+v, want %+v", got, want)
	}
	if n, err := s.b.Depth(t.Context(), topology.StreamWAL); n != 0 || err != nil {
		t.Fatalf("%d messages left, %v", n, err)
	}
}

// TestSweepKeepsEverythingWhenAJobIsNotUnderstood: a job of a newer version
// refers to bytes in a way that this build does not know.
func TestSweepKeepsEverythingWhenAJobIsNotUnderstood(t *testing.T) {
	t.Parallel()
	s := newSweepBench(t)
	ref := s.deposit(bustest.Cluster, twoChunks)
	if _, err := s.b.Publish(t.Context(), messages.WorkSubject(messages.KindArchive, bustest.Cluster), nil, []byte(`{"v":99}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.q.Sweep(t.Context(), bustest.Cluster, ofAnyAge, nil); err == nil {
		t.Fatal("swept around a job that was not understood")
	}
	if !s.whole(ref) {
		t.Fatal("a transfer was removed all the same")
	}
}

func TestPendingArchivesTellsEveryJob(t *testing.T) {
	t.Parallel()
	s := newSweepBench(t)
	want := map[string]bool{}
	for i := range 5 {
		if i == 2 { // also behind one that is not understood
			if _, err := s.b.Publish(t.Context(), messages.WorkSubject(messages.KindArchive, bustest.Cluster), nil, []byte(`{"v":99}`)); err != nil {
				t.Fatal(err)
			}
		}
		ref := messages.Ref{Carrier: "jetstream", ID: string(rune('a' + len(want)))}
		want[ref.ID] = true
		s.job(bustest.Cluster, ref)
		s.job("other", messages.Ref{ID: "foreign"})
	}
	start := time.Now().Add(-time.Minute)
	err := transit.PendingArchives(context.Background(), s.b, bustest.Cluster, func(j transit.Queued) {
		if !want[j.Bytes.ID] || j.At.Before(start) || j.Seq == 0 {
			t.Errorf("job %q of %s", j.Bytes.ID, j.At)
		}
		delete(want, j.Bytes.ID)
	})
	if !errors.Is(err, transit.ErrUnread) || len(want) > 0 {
		t.Fatalf("%v; not told: %v", err, want)
	}
}

// TestSweepStreams: what the dead producer of a backup has left goes, and nothing
// else.
func TestSweepStreams(t *testing.T) {
	t.Parallel()
	s := newSweepBench(t)
	stream := func(c messages.Cluster, run string) string {
		sender, err := s.q.Stream(t.Context(), transit.StreamAddress{Cluster: c, Run: run, Part: "part_001.tar", Attempt: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := sender.Send(t.Context(), sender.Buffer()); err != nil {
			t.Fatal(err)
		}
		if err := sender.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		return sender.Ref().ID
	}
	dead, alive, foreign := stream(bustest.Cluster, "dead"), stream(bustest.Cluster, "alive"), stream("other", "dead")
	stop, err := s.b.Listen(t.Context(), messages.RunSubject(bustest.Cluster, "alive"), func(m bus.Incoming) {
		if err := m.Respond(nil); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	sweep := func(age time.Duration) transit.Swept {
		got, err := s.q.SweepStreams(t.Context(), bustest.Cluster, age)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := sweep(time.Hour); got != (transit.Swept{}) {
		t.Fatalf("swept %+v of what is younger than an hour", got)
	}
	// One chunk, and the message that ends the stream.
	if got, want := sweep(ofAnyAge), (transit.Swept{Transfers: 1, Chunks: 2}); got != want {
		t.Fatalf("swept %+v, want %+v", got, want)
	}
	left, err := s.b.Subjects(t.Context(), topology.StreamChunk, "walherd.chunk.>")
	if err != nil || left[dead] != 0 || left[alive] != 2 || left[foreign] != 2 {
		t.Fatalf("left are %v, %v", left, err)
	}
}

// TestSweepSeesAJobThatIsGivenUpMeanwhile: it was no dead letter when they were
// listed first, and is no job when jobs are.
func TestSweepSeesAJobThatIsGivenUpMeanwhile(t *testing.T) {
	t.Parallel()
	s := newSweepBench(t)
	ref := s.deposit(bustest.Cluster, twoChunks)
	s.job(bustest.Cluster, ref)
	var letters []string
	got, err := s.q.Sweep(t.Context(), bustest.Cluster, ofAnyAge, func(context.Context) ([]string, error) {
		if letters != nil {
			return letters, nil
		}
		letters = []string{ref.ID}
		d, err := s.b.Next(t.Context(), topology.StreamWork, messages.WorkConsumer(messages.KindArchive, bustest.Cluster))
		if err != nil {
			return nil, err
		}
		return nil, d.Settle(t.Context(), 5, nil)
	})
	if err != nil || got != (transit.Swept{}) || !s.whole(ref) {
		t.Fatalf("swept %+v, %v", got, err)
	}
}
