// Package deadletter is the place of jobs that were given up: a worker puts a
// copy there, with the reason, before it ends the job at the broker. Where the
// broker bounds deliveries, a job that ran out of them without a word (its
// workers died) is found by the broker's advisory, and is still in the work
// queue, where no worker gets it, until Relieve moves it.
//
// A letter can be read, tried again and dropped. Nothing else removes one but
// the stream's own limit.
package deadletter

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
)

// The headers of a letter.
const (
	headerReason  = "Walherd-Reason"
	headerWorker  = "Walherd-Worker"
	headerAttempt = "Walherd-Attempt"
	headerSubject = "Walherd-Subject"
)

// Letter is one job that was given up.
type Letter struct {
	// ID is its number in the dead-letter stream.
	ID      uint64
	Cluster messages.Cluster
	Kind    messages.Kind
	// Object is what the job is about: a WAL file, a part, a backup. Empty for a
	// message that cannot be read.
	Object   string
	Reason   string
	Worker   string
	Attempts int
	At       time.Time
	// Stuck: the job is still in the work queue under the number Queued, out
	// of deliveries.
	Stuck  bool
	Queued uint64
	// Data is the job's message. Empty for a stuck one that somebody removed.
	Data []byte

	subject string
}

// Post keeps a job that is about to be given up.
func Post(ctx context.Context, b *bus.Bus, c messages.Cluster, k messages.Kind, d *bus.Delivery, worker string, reason error) error {
	h := bus.Header{
		headerReason: {clean(reason.Error())}, headerWorker: {worker},
		headerAttempt: {strconv.Itoa(d.Attempt)}, headerSubject: {messages.WorkSubject(k, c)},
	}
	if _, err := b.Publish(ctx, messages.DeadSubject(c, k), h, d.Data()); err != nil {
		return fmt.Errorf("keep a dead letter: %w", err)
	}
	return nil
}

// Relieve takes a stuck letter's job out of the work queue: it becomes a letter
// like any other, or, where it must not be given up (keep), is queued anew.
// Killed on its way it leaves the letter, the job, or both twice, and doing a
// job twice is harmless.
func Relieve(ctx context.Context, b *bus.Bus, l Letter, worker string, keep bool) error {
	if !l.Stuck {
		return nil
	}
	if keep {
		return Retry(ctx, b, l)
	}
	h := bus.Header{
		headerReason: {clean(l.Reason)}, headerWorker: {worker},
		headerAttempt: {strconv.Itoa(l.Attempts)}, headerSubject: {l.subject},
	}
	if _, err := b.Publish(ctx, messages.DeadSubject(l.Cluster, l.Kind), h, l.Data); err != nil {
		return fmt.Errorf("keep a dead letter: %w", err)
	}
	return Drop(ctx, b, l)
}

// clean makes text fit for a header.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\r' || r == '\n' {
			return ' '
		}
		return r
	}, s)
}

// List returns the letters of a cluster, oldest first.
func List(ctx context.Context, b *bus.Bus, c messages.Cluster) ([]Letter, error) {
	var out []Letter
	for _, subject := range []string{messages.DeadSubjects(c), topology.Exhausted} {
		var found []bus.Stored
		if err := b.Scan(ctx, topology.StreamDead, subject, func(m bus.Stored) { found = append(found, m) }); err != nil {
			return nil, fmt.Errorf("list dead letters: %w", err)
		}
		slices.SortFunc(found, func(a, b bus.Stored) int { return cmp.Compare(a.Seq, b.Seq) })
		for _, m := range found {
			l, ok, err := read(ctx, b, m, c)
			if err != nil {
				return nil, fmt.Errorf("list dead letters: %w", err)
			}
			if ok {
				out = append(out, l)
			}
		}
	}
	return out, nil
}

// ErrUnknown means that there is no letter with that number for the cluster.
var ErrUnknown = errors.New("no such dead letter")

// Get returns one letter.
func Get(ctx context.Context, b *bus.Bus, c messages.Cluster, id uint64) (Letter, error) {
	m, err := b.GetNext(ctx, topology.StreamDead, ">", id)
	if errors.Is(err, bus.ErrNoMessage) || err == nil && m.Seq != id {
		return Letter{}, fmt.Errorf("dead letter %d of cluster %s: %w", id, c, ErrUnknown)
	}
	if err != nil {
		return Letter{}, fmt.Errorf("dead letter %d: %w", id, err)
	}
	l, ok, err := read(ctx, b, m, c)
	switch {
	case err != nil:
		return Letter{}, fmt.Errorf("dead letter %d: %w", id, err)
	case !ok:
		return Letter{}, fmt.Errorf("dead letter %d of cluster %s: %w", id, c, ErrUnknown)
	}
	return l, nil
}

// read makes a letter of a stored message; ok is false for another cluster's,
// and for an advisory of a job that is no longer in the queue.
func read(ctx context.Context, b *bus.Bus, m bus.Stored, c messages.Cluster) (l Letter, ok bool, err error) {
	l = Letter{ID: m.Seq, Cluster: c, At: m.Time, Data: m.Data, subject: first(m.Header, headerSubject)}
	if rest, found := strings.CutPrefix(m.Subject, strings.TrimSuffix(messages.DeadSubjects(c), "*")); found {
		l.Kind = messages.Kind(rest)
		l.Reason, l.Worker = first(m.Header, headerReason), first(m.Header, headerWorker)
		l.Attempts, _ = strconv.Atoi(first(m.Header, headerAttempt))
		l.Object = object(l.Data)
		return l, true, nil
	}
	var advisory struct {
		Consumer   string `json:"consumer"`
		Seq        uint64 `json:"stream_seq"`
		Deliveries int    `json:"deliveries"`
	}
	if !strings.HasPrefix(m.Subject, strings.TrimSuffix(topology.Exhausted, ">")) || json.Unmarshal(m.Data, &advisory) != nil {
		return Letter{}, false, nil
	}
	kind, found := kindOf(advisory.Consumer, c)
	if !found {
		return Letter{}, false, nil
	}
	l.Kind, l.Stuck, l.Queued, l.Attempts, l.Data = kind, true, advisory.Seq, advisory.Deliveries, nil
	l.Reason = "its deliveries ran out: no worker that took it lived to say why"
	l.subject = messages.WorkSubject(kind, c)
	job, err := b.GetNext(ctx, topology.StreamWork, l.subject, advisory.Seq)
	switch {
	case errors.Is(err, bus.ErrNoMessage):
		return Letter{}, false, nil // done or retried since
	case err != nil:
		return Letter{}, false, err
	case job.Seq != advisory.Seq, !job.Time.Before(m.Time):
		// Done, too; or the work queue was made anew, and the number is that of a
		// job which is alive.
		return Letter{}, false, nil
	}
	l.Data, l.Object = job.Data, object(job.Data)
	return l, true, nil
}

// kindOf reads a consumer's name back.
func kindOf(consumer string, c messages.Cluster) (messages.Kind, bool) {
	for _, k := range messages.Kinds() {
		if consumer == messages.WorkConsumer(k, c) {
			return k, true
		}
	}
	return "", false
}

// object names what a job is about, if it can be read.
func object(data []byte) string {
	env, err := messages.Decode(data)
	if err != nil {
		return ""
	}
	body, err := messages.Unpack[struct {
		Name   string `json:"name"`
		Backup string `json:"backup"`
		Part   string `json:"part"`
	}](env)
	switch {
	case err != nil:
		return ""
	case body.Part != "":
		return body.Backup + "/" + body.Part
	case body.Backup != "":
		return body.Backup
	}
	return body.Name
}

// Acknowledged reports whether the letter is about a WAL file that PostgreSQL
// was told is archived.
func (l Letter) Acknowledged() bool {
	_, ok := l.Archive()
	return ok
}

// Transfer is where the queued bytes are that another try at the letter's job
// needs; empty if it needs none. A WAL file that PostgreSQL was not told is
// archived needs none: PostgreSQL has it, and sends it anew at every ask, so
// that kept bytes of each refused ask would fill the queue.
func (l Letter) Transfer() string {
	if _, err := messages.Decode(l.Data); l.Kind == messages.KindArchive && errors.Is(err, messages.ErrVersion) {
		// Another build's to try.
		var job struct {
			Body struct {
				Bytes struct {
					ID string `json:"id"`
				} `json:"bytes"`
			} `json:"body"`
		}
		_ = json.Unmarshal(l.Data, &job) // what has no ID there has no bytes that could be found
		return job.Body.Bytes.ID
	}
	if job, ok := l.Archive(); ok {
		return job.Bytes.ID
	}
	return ""
}

// Archive is the job of a letter about a WAL file that PostgreSQL was told is
// archived, whose bytes the queue still holds for another try.
func (l Letter) Archive() (job messages.ArchiveJob, ok bool) {
	job, ok = l.archive()
	return job, ok && job.Acknowledged
}

func (l Letter) archive() (job messages.ArchiveJob, ok bool) {
	env, err := messages.Decode(l.Data)
	if err != nil || l.Kind != messages.KindArchive {
		return messages.ArchiveJob{}, false
	}
	job, err = messages.Unpack[messages.ArchiveJob](env)
	return job, err == nil
}

// Retry queues a letter's job anew and drops the letter. Killed between the
// two it leaves both, and doing a job twice is harmless.
func Retry(ctx context.Context, b *bus.Bus, l Letter) error {
	if l.subject == "" {
		return fmt.Errorf("retry dead letter %d: it does not say where it came from; drop it", l.ID)
	}
	if _, err := b.Publish(ctx, l.subject, nil, l.Data); err != nil {
		return fmt.Errorf("retry dead letter %d: %w", l.ID, err)
	}
	return Drop(ctx, b, l)
}

// Drop removes a letter, and a stuck one's job with it.
func Drop(ctx context.Context, b *bus.Bus, l Letter) error {
	if l.Stuck {
		if err := b.Remove(ctx, topology.StreamWork, l.Queued); err != nil {
			return fmt.Errorf("drop dead letter %d: %w", l.ID, err)
		}
	}
	if err := b.Remove(ctx, topology.StreamDead, l.ID); err != nil {
		return fmt.Errorf("drop dead letter %d: %w", l.ID, err)
	}
	return nil
}

func first(h bus.Header, key string) string {
	if v := h[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}
