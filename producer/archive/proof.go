package archive

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
)

// The words of WALHERD_WAL_ACK.
const (
	// AckStored: the object is durable in storage.
	AckStored = "stored"
	// AckQueued: the broker has acknowledged every chunk and the job.
	AckQueued = "queued"
)

// Ack is when PostgreSQL is told that a file is archived. The zero value is
// AckStored. AckQueued is had from ProveQueued only, so that no Pusher can be
// made to acknowledge what an unproven broker holds.
type Ack struct{ spool *Spool }

// Queued reports whether the queue's word is enough.
func (a Ack) Queued() bool { return a.spool != nil }

// String is the setting's word.
func (a Ack) String() string {
	if a.Queued() {
		return AckQueued
	}
	return AckStored
}

// ErrDurability means that the broker must not be trusted with WAL that
// PostgreSQL was told is archived.
var ErrDurability = errors.New("the broker does not keep acknowledged WAL safe")

// Risk is a shortcoming of a broker that an operator may accept by name.
type Risk string

const (
	// RiskReplicas: fewer than three servers hold a stream; one lost disk
	// loses what it holds.
	RiskReplicas Risk = "replicas"
	// RiskSync: it is not shown that the servers sync every write. Without
	// that a power cut loses up to two minutes of acknowledged messages, and
	// young streams as a whole.
	RiskSync Risk = "sync"
)

// ParseRisks reads WALHERD_WAL_ACK_ACCEPT: risks separated by commas, or
// nothing.
func ParseRisks(s string) ([]Risk, error) {
	var out []Risk
	for _, word := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' }) {
		switch r := Risk(word); r {
		case RiskReplicas, RiskSync:
			out = append(out, r)
		default:
			return nil, fmt.Errorf("setting WALHERD_WAL_ACK_ACCEPT: %q is no risk that can be accepted: want %s, %s or both", word, RiskReplicas, RiskSync)
		}
	}
	return out, nil
}

// Broker is what ProveQueued asks of a broker: a bus.Bus.
type Broker interface {
	Durability(ctx context.Context, stream string) (d bus.Durability, ok bool, err error)
	SyncModes(ctx context.Context, names []string, limit time.Duration) ([]bus.ServerSync, error)
}

const (
	minReplicas = 3
	// attestLimit is how long servers may take to tell how they sync.
	attestLimit = 3 * time.Second
)

// minServer is the first nats-server whose sync_always holds: before it, the
// compaction of a stream's files was not synced.
var minServer = [3]int{2, 14, 6}

// ProveQueued checks the streams that acknowledged WAL would live in, and
// returns the policy AckQueued with the host's spool. What it finds wrong is
// one ErrDurability that names every fault and what to do about it. accept
// passes over the named risks. Not to be accepted are streams in memory,
// streams that drop or expire messages, and such as acknowledge before they
// write: each of them loses acknowledged WAL in ordinary operation.
//
// A server that is down, or has turned JetStream off because its disk failed, is
// none that could acknowledge: the others must sync, and be a majority. One node
// that fails does not end archiving.
//
// A stream's settings can change later; the proof holds for the time it is
// made, so a process makes it when it starts.
func ProveQueued(ctx context.Context, b Broker, spool *Spool, accept []Risk) (Ack, error) {
	if spool == nil {
		return Ack{}, fmt.Errorf("WALHERD_WAL_ACK=queued: %w: it needs a spool on this host, because replicas do not mend damaged chunks (set WALHERD_SPOOL_DIR)", ErrDurability)
	}
	var faults []string
	servers := map[string]bool{}
	for _, name := range []string{topology.StreamWAL, topology.StreamWork} {
		d, ok, err := b.Durability(ctx, name)
		if err != nil {
			return Ack{}, fmt.Errorf("WALHERD_WAL_ACK=queued: %w", err)
		}
		if !ok {
			faults = append(faults, fmt.Sprintf("there is no stream %s, as with the broker inside a command (set WALHERD_NATS_URL to a JetStream cluster)", name))
			continue
		}
		faults = append(faults, streamFaults(name, d, accept)...)
		for _, s := range d.Servers {
			servers[s] = true
		}
	}
	if len(servers) > 0 && !slices.Contains(accept, RiskSync) {
		fault, err := syncFault(ctx, b, servers)
		if err != nil {
			return Ack{}, fmt.Errorf("WALHERD_WAL_ACK=queued: %w", err)
		}
		if fault != "" {
			faults = append(faults, fault)
		}
	}
	if len(faults) > 0 {
		return Ack{}, fmt.Errorf("WALHERD_WAL_ACK=queued: %w: %s; or use WALHERD_WAL_ACK=stored", ErrDurability, strings.Join(faults, "; "))
	}
	return Ack{spool: spool}, nil
}

func streamFaults(name string, d bus.Durability, accept []Risk) []string {
	var out []string
	add := func(format string, args ...any) {
		out = append(out, "stream "+name+" "+fmt.Sprintf(format, args...))
	}
	if d.Storage != topology.File {
		add("is kept in %s (make it anew with file storage)", d.Storage)
	}
	if d.DropOld {
		add("drops its oldest messages when it is full (set its discard policy to new)")
	}
	if d.MaxAge != 0 {
		add("drops messages after %s (set its max age to 0)", d.MaxAge)
	}
	if d.AsyncPersist {
		add("acknowledges before it has written (make it anew without persist mode async)")
	}
	if len(d.Servers) <= d.Replicas/2 {
		add("has %d of its %d servers, no majority (down: %s)", len(d.Servers), d.Replicas, strings.Join(d.Down, ", "))
	}
	if d.Replicas < minReplicas && !slices.Contains(accept, RiskReplicas) {
		add("is held by %d of %d servers (make it with WALHERD_REPLICAS=%d, or accept to lose WAL with a disk: WALHERD_WAL_ACK_ACCEPT=%s)", d.Replicas, minReplicas, minReplicas, RiskReplicas)
	}
	return out
}

// syncFault asks the servers that hold the streams whether they sync every
// write; "" is that all of them do. An ordinary account is told by no stream,
// consumer or server information, only by the system request.
func syncFault(ctx context.Context, b Broker, servers map[string]bool) (string, error) {
	wayOut := fmt.Sprintf("accept that a power cut can lose WAL: WALHERD_WAL_ACK_ACCEPT=%s", RiskSync)
	answers, err := b.SyncModes(ctx, slices.Collect(maps.Keys(servers)), attestLimit)
	if errors.Is(err, bus.ErrNobody) {
		return fmt.Sprintf("it cannot be shown that the servers sync every write, since this account may not ask them (export the service %s from the system account and import it, or %s)", bus.SyncSubject, wayOut), nil
	}
	if err != nil {
		return "", err
	}
	said := map[string]bus.ServerSync{}
	for _, s := range answers {
		said[s.Name] = s
	}
	var faults []string
	off := 0
	for name := range servers {
		s, ok := said[name]
		switch {
		case !ok:
			faults = append(faults, fmt.Sprintf("server %s does not say whether it syncs every write", name))
		case s.Off:
			off++
		case !s.SyncAlways:
			faults = append(faults, fmt.Sprintf("server %s does not sync every write (set jetstream { sync_interval: always })", name))
		case !atLeast(s.Version, minServer):
			faults = append(faults, fmt.Sprintf("server %s is nats-server %s, which does not sync all it rewrites (%d.%d.%d is the first)", name, s.Version, minServer[0], minServer[1], minServer[2]))
		}
	}
	if len(faults) == 0 && off == len(servers) {
		faults = append(faults, "JetStream is off on every server")
	}
	if len(faults) == 0 {
		return "", nil
	}
	slices.Sort(faults)
	return strings.Join(faults, "; ") + " (or " + wayOut + ")", nil
}

// atLeast compares a version such as 2.15.2 or 2.15.0-RC.1 with a floor; one
// that cannot be read is too old.
func atLeast(version string, floor [3]int) bool {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) != 3 {
		return false
	}
	parts[2], _, _ = strings.Cut(parts[2], "-")
	var v [3]int
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil {
			return false
		}
		v[i] = n
	}
	return slices.Compare(v[:], floor[:]) >= 0
}
