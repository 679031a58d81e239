package failover_test

import (
	"os"
	"testing"

	"github.com/walherd/walherd/storage/failover"
	"github.com/walherd/walherd/storage/mem"
)

// FuzzStatusFile: whatever is in the file, a command chooses, and the file it
// leaves is one that the next command believes.
func FuzzStatusFile(f *testing.F) {
	f.Add([]byte(`{"default#x":{"potential_aliveness":100,"actual_aliveness":0,"previous_aliveness":true,"updated":"2026-11-22T16:55:54.997079613Z"}}`))
	f.Add([]byte(`{"default#x":{"potential_aliveness":-1e300,"actual_aliveness":1e300,"updated":"9999-12-31T23:59:59+14:00"}}`))
	f.Add([]byte(`null`))
	f.Add([]byte(`{"a":null}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		t.Parallel()
		path := failover.CachePath(t.TempDir(), false)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		open := func() *failover.Set {
			set, err := failover.Open(failover.Options{Check: true, Lifetime: lifetime, CachePath: path,
				Members: []failover.Member{{Name: "default", ID: "x", Bucket: mem.New()}}})
			if err != nil {
				t.Fatal(err)
			}
			return set
		}
		first := open()
		defer first.Close()
		if ms, err := first.Readers(t.Context(), ""); err != nil || len(ms) != 1 {
			t.Fatalf("readers %v, %v", ms, err)
		}
		second := open()
		defer second.Close()
		if st := second.Statuses(t.Context()); st[0].State != failover.Alive {
			t.Errorf("status %+v", st[0])
		}
	})
}
