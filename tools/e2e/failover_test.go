package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/walherd/walherd/producer/pgtest"
)

// TestFailover: a primary storage that turns read-only is noticed by the very
// command that meets it, WAL goes to the next storage and is found there, and
// the return to the primary needs no one.
func TestFailover(t *testing.T) {
	t.Parallel()
	b := newBench(t, []string{"WALG_FILE_PREFIX="})
	seg := segmentFile(t, b)
	dir := pgtest.TempDir(t)
	first, second, home := filepath.Join(dir, "first"), filepath.Join(dir, "Second"), filepath.Join(dir, "home")
	b.c.Run("/bin/mkdir", first, second, home)
	config, err := json.Marshal(map[string]any{
		"WALG_FILE_PREFIX":                      first,
		"WALG_FAILOVER_STORAGES":                map[string]any{"Spare": map[string]string{"WALG_FILE_PREFIX": second}},
		"WALG_FAILOVER_STORAGES_CACHE_LIFETIME": "1s",
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "config.json")
	writeFile(t, b, file, config)
	b.env = []string{"WALG_FILE_PREFIX=", "HOME=" + home}
	walherd := func(args ...string) result {
		t.Helper()
		return b.run(nil, append([]string{"--config", file}, args...)...)
	}
	holds := func(storage string) bool {
		_, err := os.Stat(filepath.Join(storage, "wal_005", filepath.Base(seg)+".lz4"))
		return err == nil
	}

	if r := walherd("wal-push", seg); r.code != 0 || !holds(first) || holds(second) {
		t.Fatalf("healthy: %+v", r)
	}
	if err := os.RemoveAll(filepath.Join(first, "wal_005")); err != nil {
		t.Fatal(err)
	}
	b.c.Run("/bin/chmod", "555", first)
	if r := walherd("wal-push", seg); r.code != 0 || holds(first) || !holds(second) {
		t.Fatalf("read-only primary: %+v", r)
	}
	got := filepath.Join(dir, "got")
	if r := walherd("wal-fetch", filepath.Base(seg), got); r.code != 0 {
		t.Fatalf("fetch from the spare: %+v", r)
	}
	if r := walherd("wal-fetch", "0000000100000000000000EE", filepath.Join(dir, "none")); r.code != 74 {
		t.Fatalf("absent everywhere: %+v", r)
	}
	// Named without its case; unknown ones are refused.
	if r := walherd("wal-push", "--target-storage", "sPARE", seg); r.code != 0 {
		t.Fatalf("target storage: %+v", r)
	}
	if r := walherd("wal-push", "--target-storage", "nope", seg); r.code != 1 || !strings.Contains(r.stderr, "nope") {
		t.Fatalf("unknown storage: %+v", r)
	}
	b.c.Run("/bin/chmod", "755", first)
	await(t, "the return to the primary", func() bool { return walherd("wal-push", seg).code == 0 && holds(first) })

	// With every storage unusable it is an error, and not the end of the WAL.
	b.c.Run("/bin/chmod", "000", first, second)
	await(t, "both to be seen dead", func() bool { return walherd("wal-fetch", filepath.Base(seg), filepath.Join(dir, "no")).code == 1 })
	b.c.Run("/bin/chmod", "755", first, second)
}
