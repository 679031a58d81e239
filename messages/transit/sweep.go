package transit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
)

// ErrUnread marks a listing without the jobs that this build does not
// understand: what they need is unknown.
var ErrUnread = errors.New("a queued job cannot be read")

// PendingArchives calls fn for every archive job of a cluster that is in the
// work queue, also one that a worker is at, with the time it was queued. Jobs
// that come or go meanwhile may be missed or seen. ErrUnread comes after all
// others were told.
func PendingArchives(ctx context.Context, b *bus.Bus, c messages.Cluster, fn func(messages.ArchiveJob, time.Time)) error {
	var unread error
	for from := uint64(1); ; {
		m, err := b.GetNext(ctx, topology.StreamWork, messages.WorkSubject(messages.KindArchive, c), from)
		if errors.Is(err, bus.ErrNoMessage) {
			return unread
		}
		if err != nil {
			return fmt.Errorf("list archive jobs: %w", err)
		}
		from = m.Seq + 1
		env, err := messages.Decode(m.Data)
		var job messages.ArchiveJob
		if err == nil {
			job, err = messages.Unpack[messages.ArchiveJob](env)
		}
		if err != nil {
			unread = cmp.Or(unread, fmt.Errorf("list archive jobs: %w: sequence %d: %w", ErrUnread, m.Seq, err))
			continue
		}
		fn(job, m.Time)
	}
}

// Swept is what a Sweep removed.
type Swept struct {
	Transfers int
	Chunks    int
}

// Sweep removes deposited chunks of a cluster that no job will ever ask for: a
// producer died between its first chunk and its job, or was not let to discard
// what it gave up, or a job was given up. held are further transfers (Ref.ID) to
// keep: those of dead letters, which can be tried again.
//
// Only transfers whose newest chunk was stored before the given time go, so
// that time must be further back than any Deposit and the publishing of its
// job can take. No chunk without a job is ever used again: who has to send a
// file again deposits it anew.
//
// Chunks are listed before jobs: a job published after its chunks were listed
// is seen, and one that was done meanwhile has discarded them itself. When
// anything cannot be read, nothing is removed.
func (q *Queue) Sweep(ctx context.Context, c messages.Cluster, before time.Time, held ...string) (Swept, error) {
	transfers, err := q.transfers(ctx, c)
	if err != nil {
		return Swept{}, fmt.Errorf("sweep queued WAL: %w", err)
	}
	for id, t := range transfers {
		if !t.newest.Before(before) || slices.Contains(held, id) {
			delete(transfers, id)
		}
	}
	if len(transfers) == 0 {
		return Swept{}, nil
	}
	if err := PendingArchives(ctx, q.b, c, func(job messages.ArchiveJob, _ time.Time) {
		delete(transfers, job.Bytes.ID)
	}); err != nil {
		return Swept{}, fmt.Errorf("sweep queued WAL: %w", err)
	}
	var out Swept
	for id, t := range transfers {
		if err := q.Discard(ctx, messages.Ref{Carrier: queueCarrier, ID: id, Seqs: t.seqs}); err != nil {
			return out, fmt.Errorf("sweep queued WAL: %w", err)
		}
		out.Transfers++
		out.Chunks += t.chunks
	}
	return out, nil
}

// transfer is what the stream holds of one deposit.
type transfer struct {
	seqs   []messages.SeqRange
	chunks int
	newest time.Time
}

func (q *Queue) transfers(ctx context.Context, c messages.Cluster) (map[string]*transfer, error) {
	l, err := q.b.OpenLog(ctx, topology.StreamWAL, messages.WALSubjects(c), bus.LogOptions{HeadersOnly: true})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	out := map[string]*transfer{}
	for {
		m, ok, err := l.ReadOn(ctx)
		if err != nil || !ok {
			return out, err
		}
		id := first(m.Header, headerTransfer)
		if id == "" {
			continue // not of this program
		}
		t := out[id]
		if t == nil {
			t = &transfer{}
			out[id] = t
		}
		t.seqs = appendSeq(t.seqs, m.Seq)
		t.chunks++
		if m.Time.After(t.newest) {
			t.newest = m.Time
		}
	}
}

// appendSeq adds a sequence number higher than those in runs.
func appendSeq(runs []messages.SeqRange, seq uint64) []messages.SeqRange {
	if n := len(runs); n > 0 && runs[n-1].Last+1 == seq {
		runs[n-1].Last = seq
		return runs
	}
	return append(runs, messages.SeqRange{First: seq, Last: seq})
}
