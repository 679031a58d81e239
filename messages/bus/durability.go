package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/walherd/walherd/messages/topology"
)

// Durability is what an ordinary client can learn of how a stream keeps its
// messages. Whether its servers sync them to disk is not among it: SyncModes.
type Durability struct {
	Storage  topology.Storage
	Replicas int
	// DropOld: a full stream drops acknowledged messages without a word.
	DropOld bool
	// MaxAge after which messages go; 0 is never.
	MaxAge time.Duration
	// AsyncPersist: the broker acknowledges before it has written.
	AsyncPersist bool
	// Servers that hold the stream and are there, by name: those that can be
	// among the majority which acknowledges. Down are the others.
	Servers, Down []string
}

// downAfter is after how long without a word from it a server is down. They
// speak every second; the broker itself takes a minute to call it offline.
const downAfter = 5 * time.Second

// Durability describes a stream; ok is false if it does not exist.
func (b *Bus) Durability(ctx context.Context, stream string) (d Durability, ok bool, err error) {
	watched, stop := b.denials.watch(ctx, apiInfo+stream)
	defer stop()
	s, err := b.js.Stream(watched, stream)
	switch err := ended(watched, err); {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return Durability{}, false, nil
	case err != nil:
		return Durability{}, false, fmt.Errorf("describe stream %s: %w", stream, adminError(err))
	}
	info := s.CachedInfo()
	d = Durability{
		Storage: topology.File, Replicas: max(info.Config.Replicas, 1), MaxAge: info.Config.MaxAge,
		DropOld:      info.Config.Discard == jetstream.DiscardOld,
		AsyncPersist: info.Config.PersistMode == jetstream.AsyncPersistMode,
	}
	if info.Config.Storage == jetstream.MemoryStorage {
		d.Storage = topology.Memory
	}
	if info.Cluster != nil {
		if info.Cluster.Leader != "" {
			d.Servers = append(d.Servers, info.Cluster.Leader)
		}
		for _, p := range info.Cluster.Replicas {
			// A leader that has not heard from a server says nothing of the time.
			if p.Offline || p.Active > downAfter || p.Active == 0 && !p.Current {
				d.Down = append(d.Down, p.Name)
				continue
			}
			d.Servers = append(d.Servers, p.Name)
		}
	}
	if len(d.Servers) == 0 {
		d.Servers = []string{b.nc.ConnectedServerName()}
	}
	return d, true, nil
}

// ServerSync is what one server says of itself.
type ServerSync struct {
	Name    string
	Version string
	// SyncAlways: it syncs every write to disk before it acknowledges.
	SyncAlways bool
	// Off: it keeps no streams. A server whose disk fails ends so, and takes
	// part in no acknowledgement until it is started anew.
	Off bool
}

// SyncSubject is the system request that tells of SyncModes. A server answers
// it in the system account only; an operator passes it on to another account
// by an export there and an import here.
const SyncSubject = "$SYS.REQ.SERVER.PING.JSZ"

// SyncModes asks the broker's servers whether they sync every write, until
// those named have answered or limit has passed. Others may be among the
// answers. ErrNobody means that this connection's account is not let to ask.
func (b *Bus) SyncModes(ctx context.Context, names []string, limit time.Duration) ([]ServerSync, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ctx, stop := b.denials.watch(ctx, SyncSubject)
	defer stop()
	inbox := b.nc.NewInbox()
	sub, err := b.nc.SubscribeSync(inbox)
	if err != nil {
		return nil, fmt.Errorf("request %s: %w", SyncSubject, err)
	}
	defer func() { _ = sub.Unsubscribe() }() // the connection's end ends it too
	if err := b.nc.PublishRequest(SyncSubject, inbox, nil); err != nil {
		return nil, fmt.Errorf("request %s: %w", SyncSubject, err)
	}
	var out []ServerSync
	missing := map[string]bool{}
	for _, n := range names {
		missing[n] = true
	}
	for len(missing) > 0 {
		m, err := sub.NextMsgWithContext(ctx)
		switch {
		case errors.Is(err, nats.ErrNoResponders), errors.Is(context.Cause(ctx), ErrDenied):
			return out, fmt.Errorf("request %s: %w", SyncSubject, ErrNobody)
		case errors.Is(err, context.DeadlineExceeded):
			return out, nil
		case err != nil:
			return out, fmt.Errorf("request %s: %w", SyncSubject, err)
		}
		var answer struct {
			Server struct {
				Name string `json:"name"`
				Ver  string `json:"ver"`
			} `json:"server"`
			Data struct {
				Disabled bool `json:"disabled"`
				Config   struct {
					SyncAlways bool `json:"sync_always"`
				} `json:"config"`
			} `json:"data"`
		}
		if err := json.Unmarshal(m.Data, &answer); err != nil {
			return out, fmt.Errorf("request %s: unreadable answer: %w", SyncSubject, err)
		}
		delete(missing, answer.Server.Name)
		out = append(out, ServerSync{Name: answer.Server.Name, Version: answer.Server.Ver, SyncAlways: answer.Data.Config.SyncAlways, Off: answer.Data.Disabled})
	}
	return out, nil
}
