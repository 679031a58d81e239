package archive

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
)

// paper is a broker that is what it says.
type paper struct {
	streams map[string]bus.Durability
	servers []bus.ServerSync
	err     error
}

func (p paper) Durability(_ context.Context, stream string) (bus.Durability, bool, error) {
	d, ok := p.streams[stream]
	return d, ok, nil
}

func (p paper) SyncModes(context.Context, []string, time.Duration) ([]bus.ServerSync, error) {
	return p.servers, p.err
}

func testSpool(t *testing.T, maxBytes int64) *Spool {
	t.Helper()
	s, err := OpenSpool(SpoolOptions{Dir: t.TempDir(), MaxBytes: maxBytes, Cluster: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestProveQueued(t *testing.T) {
	t.Parallel()
	good := func() paper {
		d := bus.Durability{Storage: topology.File, Replicas: 3, Servers: []string{"a", "b", "c"}}
		p := paper{streams: map[string]bus.Durability{topology.StreamWAL: d, topology.StreamWork: d}}
		for _, n := range []string{"x", "a", "b", "c"} {
			p.servers = append(p.servers, bus.ServerSync{Name: n, Version: "2.15.2", SyncAlways: n != "x"})
		}
		return p
	}
	stream := func(name string, change func(*bus.Durability)) func(*paper) {
		return func(p *paper) {
			d := p.streams[name]
			change(&d)
			p.streams[name] = d
		}
	}
	all := []Risk{RiskReplicas, RiskSync}
	for _, tc := range []struct {
		name   string
		change func(*paper)
		accept []Risk
		want   string // what the refusal says; "" is none
	}{
		{name: "all is well", change: func(*paper) {}},
		{name: "no stream", change: func(p *paper) { delete(p.streams, topology.StreamWAL) }, accept: all, want: "WALHERD_NATS_URL"},
		{name: "memory", change: stream(topology.StreamWAL, func(d *bus.Durability) { d.Storage = topology.Memory }), accept: all, want: "kept in memory"},
		{name: "jobs in memory", change: stream(topology.StreamWork, func(d *bus.Durability) { d.Storage = topology.Memory }), accept: all, want: "WALHERD_WORK is kept in memory"},
		{name: "drops old", change: stream(topology.StreamWAL, func(d *bus.Durability) { d.DropOld = true }), accept: all, want: "drops its oldest"},
		{name: "expires", change: stream(topology.StreamWAL, func(d *bus.Durability) { d.MaxAge = time.Hour }), accept: all, want: "after 1h0m0s"},
		{name: "async", change: stream(topology.StreamWAL, func(d *bus.Durability) { d.AsyncPersist = true }), accept: all, want: "before it has written"},
		{name: "one replica", change: stream(topology.StreamWAL, func(d *bus.Durability) { d.Replicas = 1 }), accept: []Risk{RiskSync}, want: "1 of 3 servers"},
		{name: "one replica accepted", change: stream(topology.StreamWAL, func(d *bus.Durability) { d.Replicas = 1 }), accept: []Risk{RiskReplicas}},
		{name: "not allowed to ask", change: func(p *paper) { p.err = bus.ErrNobody }, accept: []Risk{RiskReplicas}, want: bus.SyncSubject},
		{name: "not allowed to ask, accepted", change: func(p *paper) { p.err = bus.ErrNobody }, accept: []Risk{RiskSync}},
		{name: "a server that does not sync", change: func(p *paper) { p.servers[2].SyncAlways = false }, want: "server b does not sync every write"},
		{name: "a server that is off", change: func(p *paper) { p.servers[2].SyncAlways, p.servers[2].Off = false, true }},
		{name: "servers that are off", change: func(p *paper) {
			for i := range p.servers {
				p.servers[i].Off = true
			}
		}, want: "off on every server"},
		{name: "a server that is down", change: func(p *paper) {
			for name, d := range p.streams {
				d.Servers, d.Down = []string{"a", "b"}, []string{"c"}
				p.streams[name] = d
			}
			p.servers = p.servers[:3]
		}},
		{name: "a server that is down, and one that does not sync", change: func(p *paper) {
			for name, d := range p.streams {
				d.Servers, d.Down = []string{"a", "b"}, []string{"c"}
				p.streams[name] = d
			}
			p.servers[1].SyncAlways = false
		}, want: "server a does not sync"},
		{name: "no majority", change: stream(topology.StreamWAL, func(d *bus.Durability) { d.Servers, d.Down = []string{"a"}, []string{"b", "c"} }), accept: all, want: "1 of its 3 servers"},
		{name: "a silent server", change: func(p *paper) { p.servers = p.servers[:3] }, want: "server c does not say"},
		{name: "an old server", change: func(p *paper) { p.servers[1].Version = "2.14.5" }, want: "server a is nats-server 2.14.5"},
		{name: "a server of no version", change: func(p *paper) { p.servers[1].Version = "dev" }, want: "server a is nats-server dev"},
		{name: "a candidate", change: func(p *paper) { p.servers[1].Version = "2.15.0-RC.1" }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := good()
			tc.change(&p)
			ack, err := ProveQueued(t.Context(), p, testSpool(t, 1), tc.accept)
			if tc.want == "" {
				if err != nil || !ack.Queued() || ack.String() != AckQueued {
					t.Fatalf("got %v, %v", ack, err)
				}
				return
			}
			if !errors.Is(err, ErrDurability) || !strings.Contains(err.Error(), tc.want) || ack.Queued() {
				t.Fatalf("got %v, %v; want a refusal with %q", ack, err, tc.want)
			}
		})
	}
	if _, err := ProveQueued(t.Context(), good(), nil, all); !errors.Is(err, ErrDurability) {
		t.Errorf("without a spool: %v", err)
	}
	if broken := good(); true {
		broken.err = errNoBroker
		if _, err := ProveQueued(t.Context(), broken, testSpool(t, 1), nil); !errors.Is(err, errNoBroker) || errors.Is(err, ErrDurability) {
			t.Errorf("a broker that fails: %v", err)
		}
	}
	if (Ack{}).String() != AckStored || (Ack{}).Queued() {
		t.Error("the zero policy is not to wait until it is stored")
	}
}

func TestParseRisks(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int{"": 0, "sync": 1, "replicas,sync": 2, "replicas, sync": 2} {
		if got, err := ParseRisks(in); err != nil || len(got) != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"memory", "yes", "I accept"} {
		if _, err := ParseRisks(in); err == nil {
			t.Errorf("%q was accepted", in)
		}
	}
}
