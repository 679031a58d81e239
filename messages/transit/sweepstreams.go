package transit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
)

// SweepStreams removes the chunks of a cluster's backups whose producer is gone:
// the receiver of a stream removes them at its end, unless it dies as well or
// the broker does not hear it. They would expire, and fill the stream until then.
//
// Only streams whose newest chunk was stored longer than age ago go, by the
// broker's clock: a producer that was cut off for a moment comes back. What goes
// of one that comes back later is sent again, like every stream that broke.
func (q *Queue) SweepStreams(ctx context.Context, c messages.Cluster, age time.Duration) (Swept, error) {
	var out Swept
	now, err := q.b.StreamState(ctx, topology.StreamChunk)
	if err != nil {
		return out, fmt.Errorf("sweep streams: %w", err)
	}
	subjects, err := q.b.Subjects(ctx, topology.StreamChunk, messages.ChunkSubjects(c))
	if err != nil {
		return out, fmt.Errorf("sweep streams: %w", err)
	}
	alive := map[string]bool{}
	for subject, chunks := range subjects {
		run, ok := messages.RunOfChunks(subject)
		if !ok {
			continue // not of this program
		}
		if _, asked := alive[run]; !asked {
			if alive[run], err = q.answers(ctx, run); err != nil {
				return out, fmt.Errorf("sweep streams: %w", err)
			}
		}
		if alive[run] {
			continue
		}
		last, err := q.b.Last(ctx, topology.StreamChunk, subject)
		if errors.Is(err, bus.ErrNoMessage) || err == nil && !last.Time.Before(now.At.Add(-age)) {
			continue
		}
		if err == nil {
			err = q.b.Purge(ctx, topology.StreamChunk, subject)
		}
		if err != nil {
			return out, fmt.Errorf("sweep streams: %w", err)
		}
		out.Transfers++
		out.Chunks += int(chunks)
	}
	return out, nil
}

// answerWait is how long a producer may take to answer.
const answerWait = 5 * time.Second

// answers reports whether the producer of a backup is there, by asking about no
// part of it.
func (q *Queue) answers(ctx context.Context, run string) (bool, error) {
	data, err := json.Marshal(messages.Say{Version: messages.Version, What: messages.WhatCopying})
	if err != nil {
		return false, err
	}
	wait, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	_, err = q.b.Request(wait, run, data)
	switch {
	case errors.Is(err, bus.ErrNobody):
		return false, nil
	case ctx.Err() != nil:
		return false, context.Cause(ctx)
	case errors.Is(err, bus.ErrDenied):
		return false, err
	}
	return true, nil // also one that is slow
}
