package fs

import (
	"errors"
	"os"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestTempNameIsTemp(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		base := rapid.String().Draw(t, "base")
		at := time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "at"), 0)
		if name := tempName(base, at); !isTemp(name) || len(name) != len(base)+tempLen {
			t.Fatalf("isTemp(%q) is false", name)
		}
	})
}

// Both ways not to replace a file do the same.
func TestNoReplace(t *testing.T) {
	t.Parallel()
	for way, rename := range map[string]func(*testing.T, *os.Root, string, string) error{
		"rename": func(t *testing.T, d *os.Root, from, to string) error {
			done, err := renameNoReplace(d, from, to)
			if !done {
				t.Skip("no RENAME_NOREPLACE here")
			}
			return err
		},
		"link": func(_ *testing.T, d *os.Root, from, to string) error { return linkNoReplace(d, from, to) },
	} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			d, err := os.OpenRoot(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			for _, name := range []string{"first", "second"} {
				if err := d.WriteFile(name, []byte(name), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if err := rename(t, d, "first", "target"); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Lstat("first"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the old name is still there: %v", err)
			}
			if err := rename(t, d, "second", "target"); !errors.Is(err, os.ErrExist) {
				t.Errorf("%v, want ErrExist", err)
			}
			if data, err := d.ReadFile("target"); err != nil || string(data) != "first" {
				t.Errorf("the target holds %q, %v", data, err)
			}
			if _, err := d.Lstat("second"); err != nil {
				t.Errorf("the refused file is gone: %v", err)
			}
		})
	}
}

func TestSettledIsBounded(t *testing.T) {
	t.Parallel()
	var s settled
	for i := range 3 * settledMax {
		dir := string(rune(i + 0x4e00))
		s.add(dir)
		if !s.has(dir) {
			t.Fatalf("forgot %d at once", i)
		}
		if len(s.dirs) > settledMax {
			t.Fatalf("remembers %d directories", len(s.dirs))
		}
	}
	s.add("x")
	s.forget("x")
	if s.has("x") {
		t.Error("did not forget")
	}
}
