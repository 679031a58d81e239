package transit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
)

// ErrUnread marks a listing without the jobs that this build does not
// understand: what they need is unknown.
var ErrUnread = errors.New("a queued job cannot be read")

// Queued is an archive job as it lies in the work queue.
type Queued struct {
	messages.ArchiveJob
	// Seq grows with the time that the job was queued, At, by the broker's clock.
	Seq uint64
	At  time.Time
}

// PendingArchives calls fn for every archive job of a cluster that is in the
// work queue, also one that a worker is at, in no order and one at a time. Jobs
// that come or go meanwhile may be missed or seen; one that is queued anew, by
// a worker that cannot do it now, is seen. ErrUnread comes after all others
// were told.
func PendingArchives(ctx context.Context, b *bus.Bus, c messages.Cluster, fn func(Queued)) error {
	var unread error
	err := b.Scan(ctx, topology.StreamWork, messages.WorkSubject(messages.KindArchive, c), func(m bus.Stored) {
		env, err := messages.Decode(m.Data)
		var job messages.ArchiveJob
		if err == nil {
			job, err = messages.Unpack[messages.ArchiveJob](env)
		}
		if err != nil {
			unread = cmp.Or(unread, fmt.Errorf("list archive jobs: %w: sequence %d: %w", ErrUnread, m.Seq, err))
			return
		}
		fn(Queued{ArchiveJob: job, Seq: m.Seq, At: m.Time})
	})
	if err != nil {
		return fmt.Errorf("list archive jobs: %w", err)
	}
	return unread
}

// Swept is what a Sweep removed.
type Swept struct {
	Transfers int
	Chunks    int
}

// Sweep removes deposited chunks of a cluster that no job will ever ask for: a
// producer died between its first chunk and its job, or was not let to discard
// what it gave up, or a job was given up. held, unless nil, tells of further
// transfers (Ref.ID) to keep: those of dead letters, which can be tried again.
//
// Only transfers whose newest chunk was stored longer than age ago go, by the
// broker's clock, so age must be more than any Deposit and the publishing of
// its job can take. No chunk without a job is ever used again: who has to send
// a file again deposits it anew.
//
// Chunks are listed before jobs: a job published after its chunks were listed
// is seen, and one that was done meanwhile has discarded them itself. Dead
// letters are listed before jobs and after them: a job that became one
// meanwhile, or one that became a job, is seen. When anything cannot be read,
// nothing is removed.
func (q *Queue) Sweep(ctx context.Context, c messages.Cluster, age time.Duration, held func(context.Context) ([]string, error)) (Swept, error) {
	now, err := q.b.StreamState(ctx, topology.StreamWAL)
	if err != nil {
		return Swept{}, fmt.Errorf("sweep queued WAL: %w", err)
	}
	transfers, err := q.b.Subjects(ctx, topology.StreamWAL, messages.WALSubjects(c))
	if err != nil {
		return Swept{}, fmt.Errorf("sweep queued WAL: %w", err)
	}
	if len(transfers) == 0 {
		return Swept{}, nil
	}
	spare := func() error {
		if held == nil {
			return nil
		}
		ids, err := held(ctx)
		for _, id := range ids {
			delete(transfers, id)
		}
		return err
	}
	for _, look := range []func() error{spare, func() error {
		return PendingArchives(ctx, q.b, c, func(job Queued) { delete(transfers, job.Bytes.ID) })
	}, spare} {
		if err := look(); err != nil {
			return Swept{}, fmt.Errorf("sweep queued WAL: %w", err)
		}
	}
	var out Swept
	for id, chunks := range transfers {
		newest, err := q.b.Last(ctx, topology.StreamWAL, id)
		if errors.Is(err, bus.ErrNoMessage) || err == nil && !newest.Time.Before(now.At.Add(-age)) {
			continue
		}
		if err == nil {
			err = q.Discard(ctx, messages.Ref{Carrier: queueCarrier, ID: id})
		}
		if err != nil {
			return out, fmt.Errorf("sweep queued WAL: %w", err)
		}
		out.Transfers++
		out.Chunks += int(chunks)
	}
	return out, nil
}

// appendSeq adds a sequence number higher than those in runs.
func appendSeq(runs []messages.SeqRange, seq uint64) []messages.SeqRange {
	if n := len(runs); n > 0 && runs[n-1].Last+1 == seq {
		runs[n-1].Last = seq
		return runs
	}
	return append(runs, messages.SeqRange{First: seq, Last: seq})
}
