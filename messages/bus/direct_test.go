//go:build unix

package bus_test

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest/natstest"
	"github.com/walherd/walherd/messages/topology"
)

// TestGetFromReplicaAndLeader: both ways give the same message, and a reader
// that may only ask the leader is served too.
func TestGetFromReplicaAndLeader(t *testing.T) {
	t.Parallel()
	conf := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(conf, []byte(`
server_name: $NODE_NAME
listen: $NODE_LISTEN
http: $NODE_MONITOR
tls { cert_file: $NODE_CERT, key_file: $NODE_CERT_KEY }
jetstream { store_dir: $NODE_STORE_DIR, max_file_store: 100MB, max_memory_store: 10MB }
authorization { users: [
  { user: all, password: x }
  { user: leaderonly, password: x, permissions: { publish: { deny: "$JS.API.DIRECT.>" } } }
] }
`), 0o644); err != nil {
		t.Fatal(err)
	}
	c := natstest.Start(t, natstest.Options{Config: conf})
	as := func(user string) *bus.Bus {
		b, err := bus.Connect(t.Context(), bus.Options{URL: c.URL(), Login: bus.Login{User: user, Password: "x"}, TLS: bus.TLSFiles{CA: c.CA}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Close)
		return b
	}
	all := as("all")
	if err := all.CreateStream(t.Context(), topology.Stream{
		Name: topology.StreamWAL, Subjects: []string{"walherd.wal.>"}, Retention: topology.Limits, Storage: topology.File, Replicas: 1, Direct: true,
	}); err != nil {
		t.Fatal(err)
	}
	header := bus.Header{"Walherd-Index": {"7"}}
	data := bytes.Repeat([]byte{0, '"', 0xff}, 100_000)
	seq, err := all.Publish(t.Context(), "walherd.wal.test.00000001", header, data)
	if err != nil {
		t.Fatal(err)
	}
	for name, get := range map[string]func() (bus.Message, error){
		"any replica":            func() (bus.Message, error) { return all.Get(t.Context(), topology.StreamWAL, seq) },
		"the leader":             func() (bus.Message, error) { return all.GetFromLeader(t.Context(), topology.StreamWAL, seq) },
		"not let to ask replica": func() (bus.Message, error) { return as("leaderonly").Get(t.Context(), topology.StreamWAL, seq) },
	} {
		m, err := get()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Equal(m.Data, data) || !slices.Equal(m.Header["Walherd-Index"], header["Walherd-Index"]) {
			t.Errorf("%s: another message, with %v", name, slices.Collect(maps.Keys(m.Header)))
		}
	}
	for name, get := range map[string]func() (bus.Message, error){
		"any replica": func() (bus.Message, error) { return all.Get(t.Context(), topology.StreamWAL, seq+1) },
		"the leader":  func() (bus.Message, error) { return all.GetFromLeader(t.Context(), topology.StreamWAL, seq+1) },
	} {
		if _, err := get(); !errors.Is(err, bus.ErrNoMessage) {
			t.Errorf("%s, of a message that is not there: %v", name, err)
		}
	}
}
