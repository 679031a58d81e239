// Package topology is the broker's furniture as data: the streams and
// consumers that walherd works with, what each must promise, and the two
// operations on them: Ensure creates what is missing and Drift tells where
// what exists differs from what is declared. It talks to a broker through the
// small Admin interface only.
//
// Ensure never changes a stream that exists: an operator may have sized it,
// and a silent edit of retention or discard policy can drop acknowledged
// data. What matters for safety and differs is an error instead (see Drift).
package topology

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/walherd/walherd/messages"
)

// Retention says when a message leaves its stream.
type Retention string

// Limits keeps until a limit or a delete; WorkQueue until acknowledged.
const (
	Limits    Retention = "limits"
	WorkQueue Retention = "workqueue"
)

// Storage is where the broker keeps a stream.
type Storage string

// The two storages of JetStream.
const (
	File   Storage = "file"
	Memory Storage = "memory"
)

// Stream is one declared stream. Every stream discards new messages when it
// is full: a refused publish is an error that somebody sees, while the broker's
// default (discard old) drops acknowledged messages in silence.
type Stream struct {
	Name      string
	Subjects  []string
	Retention Retention
	Storage   Storage
	Replicas  int
	// MaxBytes bounds the stream; 0 is unbounded.
	MaxBytes int64
	// MaxAge expires messages; 0 never.
	MaxAge time.Duration
	// MaxPerSubject bounds one subject's messages, refusing more; 0 is
	// unbounded.
	MaxPerSubject int64
	// DropOld lets a full stream drop its oldest messages: for facts and
	// dead letters only, where the newest matter most.
	DropOld bool
	// Direct lets every replica answer who asks for a message by its number,
	// with the message itself. Else only the leader does, in base64 within JSON,
	// which costs it and the asker more than the message.
	Direct bool
}

// Consumer is one durable pull consumer.
type Consumer struct {
	Stream, Name, Filter string
	// AckWait is how long a silent worker keeps a message before another
	// gets it.
	AckWait time.Duration
	// MaxDeliver is how often a message is handed out at most; -1 is without
	// end.
	MaxDeliver int
	// MaxAckPending bounds messages being worked on, over all workers.
	MaxAckPending int
}

// Names of the streams.
const (
	StreamWork  = "WALHERD_WORK"
	StreamWAL   = "WALHERD_WAL"
	StreamChunk = "WALHERD_CHUNK"
	StreamEvent = "WALHERD_EVENT"
	StreamDead  = "WALHERD_DEAD"
)

// Exhausted are the broker's advisories on jobs whose deliveries ran out.
const Exhausted = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES." + StreamWork + ".>"

// Config sizes the declared topology.
type Config struct {
	// Cluster whose job consumers are declared.
	Cluster messages.Cluster
	// Replicas of file streams: 1, 3 or 5. 0 is 1.
	Replicas int
	// InMemory keeps every stream in memory.
	InMemory bool
	// Embedded is the broker inside a command, which dies with it: in
	// memory, and without what nobody could ever read. Bulk bytes do not pass
	// through it, and the command reports failures itself. Each stream costs
	// a millisecond, and archive_command pays for all of them every time.
	Embedded bool
	// Kinds of job to declare consumers for; nil is all.
	Kinds []messages.Kind
	// AckWait and MaxDeliver of job consumers. 0: 30 s and without end. It is
	// the workers that count: a broker that stops handing a message out keeps
	// it in the work queue unseen, with an advisory that may be lost.
	AckWait    time.Duration
	MaxDeliver int
	// MaxWALBytes and MaxChunkBytes bound the bulk streams, and a broker
	// reserves them. 0: 16 GiB and 1 GiB; in memory 64 and 128 MiB.
	MaxWALBytes, MaxChunkBytes int64
}

func (c Config) withDefaults() Config {
	if c.Replicas == 0 {
		c.Replicas = 1
	}
	if c.AckWait == 0 {
		c.AckWait = 30 * time.Second
	}
	if c.MaxDeliver == 0 {
		c.MaxDeliver = -1
	}
	if c.MaxWALBytes == 0 {
		c.MaxWALBytes = 16 << 30
		if c.InMemory {
			c.MaxWALBytes = 64 << 20
		}
	}
	if c.MaxChunkBytes == 0 {
		c.MaxChunkBytes = 1 << 30
		if c.InMemory {
			c.MaxChunkBytes = 128 << 20
		}
	}
	return c
}

// Streams declares the streams.
func (c Config) Streams() []Stream {
	c = c.withDefaults()
	store, small := File, int64(256<<20)
	if c.InMemory || c.Embedded {
		store, small = Memory, 8<<20
	}
	// WALHERD_WORK is the last: who finds it knows that the others are there.
	all := []Stream{
		{Name: StreamWAL, Subjects: []string{"walherd.wal.>"}, Retention: Limits, Storage: store, Replicas: c.Replicas, MaxBytes: c.MaxWALBytes, Direct: true},
		// Chunks can be produced again, so they are worth no disk and no replica.
		{Name: StreamChunk, Subjects: []string{"walherd.chunk.>"}, Retention: WorkQueue, Storage: Memory, Replicas: 1, MaxBytes: c.MaxChunkBytes, MaxAge: time.Hour, MaxPerSubject: 4096},
		{Name: StreamEvent, Subjects: []string{"walherd.event.>"}, Retention: Limits, Storage: store, Replicas: c.Replicas, MaxBytes: small, MaxAge: 7 * 24 * time.Hour, DropOld: true},
		// A worker leaves a copy of what it gives up. Where a consumer has a
		// bound of deliveries (an operator's, or an earlier version's), a message
		// that reaches it stays in the work queue unseen; only the advisory
		// tells, and a plain subscriber would miss it while away.
		{Name: StreamDead, Subjects: []string{"walherd.dead.>", Exhausted},
			Retention: Limits, Storage: store, Replicas: c.Replicas, MaxBytes: small, DropOld: true},
		{Name: StreamWork, Subjects: []string{"walherd.work.>"}, Retention: WorkQueue, Storage: store, Replicas: c.Replicas, MaxBytes: 4 * small},
	}
	if !c.Embedded {
		return all
	}
	return slices.DeleteFunc(all, func(s Stream) bool { return s.Name != StreamWork && s.Name != StreamEvent })
}

// Consumers declares one durable consumer per kind of job of the cluster.
func (c Config) Consumers() []Consumer {
	c = c.withDefaults()
	var out []Consumer
	kinds := c.Kinds
	if kinds == nil {
		kinds = messages.Kinds()
	}
	for _, k := range kinds {
		out = append(out, Consumer{
			Stream: StreamWork, Name: messages.WorkConsumer(k, c.Cluster), Filter: messages.WorkSubject(k, c.Cluster),
			AckWait: c.AckWait, MaxDeliver: c.MaxDeliver, MaxAckPending: 1000,
		})
	}
	return out
}

// Admin is what Ensure needs of a broker. Lookups of what does not exist
// return ok false and no error.
type Admin interface {
	Stream(ctx context.Context, name string) (s Stream, ok bool, err error)
	CreateStream(ctx context.Context, s Stream) error
	Consumer(ctx context.Context, stream, name string) (c Consumer, ok bool, err error)
	CreateConsumer(ctx context.Context, c Consumer) error
	// CreateLeases makes the bucket of leases unless it is there.
	CreateLeases(ctx context.Context, replicas int, inMemory bool) error
}

// ErrDrift marks a stream or consumer that exists with settings under which
// walherd would break a promise.
var ErrDrift = errors.New("broker object differs from what is declared")

// Difference is one setting of an existing object that is not as declared.
type Difference struct {
	Object, Setting string
	Got, Want       string
	// Unsafe differences break a promise; the others are an operator's
	// choice.
	Unsafe bool
}

// String prints one line.
func (d Difference) String() string {
	return fmt.Sprintf("%s: %s is %s, declared %s", d.Object, d.Setting, d.Got, d.Want)
}

// Ensure creates the streams and consumers that are missing and returns the
// differences of those that exist. An unsafe difference is an error (ErrDrift)
// as well.
func Ensure(ctx context.Context, admin Admin, cfg Config) ([]Difference, error) {
	_, diffs, err := build(ctx, admin, cfg)
	if err != nil {
		return nil, err
	}
	for _, d := range diffs {
		if d.Unsafe {
			return diffs, fmt.Errorf("%w: %s; remove it while it is empty and walherd will make it anew", ErrDrift, d)
		}
	}
	return diffs, nil
}

// Repair creates what a broker has lost since Ensure, and names the streams that
// it made, with an error too. A broker of one node forgets streams in memory
// whenever it is started, and one whose store is gone has nothing at all.
func Repair(ctx context.Context, admin Admin, cfg Config) (made []string, err error) {
	made, _, err = build(ctx, admin, cfg)
	return made, err
}

// build creates what is missing; made are the streams among it.
func build(ctx context.Context, admin Admin, cfg Config) (made []string, diffs []Difference, err error) {
	if _, err := messages.ParseCluster(string(cfg.Cluster)); err != nil {
		return nil, nil, err
	}
	cfg = cfg.withDefaults()
	// A command of its own has nobody to share a right with.
	if !cfg.Embedded {
		if err := admin.CreateLeases(ctx, cfg.Replicas, cfg.InMemory); err != nil {
			return nil, nil, fmt.Errorf("create the bucket of leases: %w", err)
		}
	}
	for _, want := range cfg.Streams() {
		// A broker that this process has just started has nothing to look up.
		var got Stream
		ok, err := false, error(nil)
		if !cfg.Embedded {
			got, ok, err = admin.Stream(ctx, want.Name)
		}
		switch {
		case err != nil:
			return made, nil, fmt.Errorf("look up stream %s: %w", want.Name, err)
		case ok:
			diffs = append(diffs, streamDrift(got, want)...)
			continue
		}
		if err := admin.CreateStream(ctx, want); err != nil {
			return made, nil, fmt.Errorf("create stream %s: %w", want.Name, err)
		}
		made = append(made, want.Name)
	}
	for _, want := range cfg.Consumers() {
		var got Consumer
		ok, err := false, error(nil)
		if !cfg.Embedded {
			got, ok, err = admin.Consumer(ctx, want.Stream, want.Name)
		}
		switch {
		case err != nil:
			return made, nil, fmt.Errorf("look up consumer %s of %s: %w", want.Name, want.Stream, err)
		case ok:
			diffs = append(diffs, consumerDrift(got, want)...)
			continue
		}
		if err := admin.CreateConsumer(ctx, want); err != nil {
			return made, nil, fmt.Errorf("create consumer %s of %s: %w", want.Name, want.Stream, err)
		}
	}
	return made, diffs, nil
}

func streamDrift(got, want Stream) []Difference {
	var out []Difference
	add := func(setting string, g, w any, unsafe bool) {
		if g != w {
			out = append(out, Difference{Object: "stream " + want.Name, Setting: setting,
				Got: fmt.Sprint(g), Want: fmt.Sprint(w), Unsafe: unsafe})
		}
	}
	add("retention", got.Retention, want.Retention, true)
	add("discard-old", got.DropOld, want.DropOld, !want.DropOld)
	add("subjects", fmt.Sprint(got.Subjects), fmt.Sprint(want.Subjects), true)
	add("storage", got.Storage, want.Storage, want.Storage == File)
	add("replicas", got.Replicas, want.Replicas, false)
	add("direct reads", got.Direct, want.Direct, false)
	add("max bytes", got.MaxBytes, want.MaxBytes, false)
	add("max age", got.MaxAge, want.MaxAge, false)
	add("max messages per subject", got.MaxPerSubject, want.MaxPerSubject, false)
	return out
}

func consumerDrift(got, want Consumer) []Difference {
	var out []Difference
	add := func(setting string, g, w any, unsafe bool) {
		if g != w {
			out = append(out, Difference{Object: "consumer " + want.Stream + "/" + want.Name, Setting: setting,
				Got: fmt.Sprint(g), Want: fmt.Sprint(w), Unsafe: unsafe})
		}
	}
	add("filter", got.Filter, want.Filter, true)
	add("ack wait", got.AckWait, want.AckWait, false)
	add("max deliver", got.MaxDeliver, want.MaxDeliver, false)
	add("max ack pending", got.MaxAckPending, want.MaxAckPending, false)
	return out
}
