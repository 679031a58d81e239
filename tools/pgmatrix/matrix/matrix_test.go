package matrix

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/walherd/walherd/engine/pg"
)

// TestPins: every supported version is pinned, and no registry is named.
func TestPins(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	var lock struct {
		Packages map[string]struct{ Version, Integrity, Resolved string }
	}
	if err := json.Unmarshal(raw, &lock); err != nil {
		t.Fatal(err)
	}
	for major := pg.MinMajor; major <= pg.MaxMajor; major++ {
		p := lock.Packages["node_modules/pg"+strconv.Itoa(major)]
		if !strings.HasPrefix(p.Version, strconv.Itoa(major)+".") || !strings.HasPrefix(p.Integrity, "sha512-") || p.Resolved != "" {
			t.Errorf("PostgreSQL %d: %+v", major, p)
		}
	}
}

// TestInstalledAreWhatTheySay runs on machines that have them.
func TestInstalledAreWhatTheySay(t *testing.T) {
	t.Parallel()
	bins, err := Installed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for major, bin := range bins {
		out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "postgres"), "--version").Output()
		if err != nil || !strings.Contains(string(out), ") "+strconv.Itoa(major)+".") {
			t.Errorf("PostgreSQL %d says %q, %v", major, out, err)
		}
	}
}

func TestFindKeepsNothingOfAFailure(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	broken := errors.New("no network")
	if _, err := find(t.Context(), root, func(_ context.Context, dir string) error {
		return errors.Join(os.Mkdir(dir, 0o755), broken)
	}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(root); err != nil || len(left) != 0 {
		t.Errorf("after a failed installation: %v, %v", left, err)
	}
}
