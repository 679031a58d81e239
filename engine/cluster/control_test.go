package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/pg"
)

// facts is what pg_control_system() and pg_control_checkpoint() said on the
// running server whose control file was copied to testdata.
type facts struct {
	SystemID       string    `json:"system_identifier"`
	ControlVersion uint32    `json:"pg_control_version"`
	CatalogVersion uint32    `json:"catalog_version_no"`
	Checkpoint     string    `json:"checkpoint_lsn"`
	Redo           string    `json:"redo_lsn"`
	RedoFile       string    `json:"redo_wal_file"`
	Timeline       uint32    `json:"timeline_id"`
	PrevTimeline   uint32    `json:"prev_timeline_id"`
	CheckpointTime time.Time `json:"checkpoint_time"`
	Checksums      string    `json:"ck"`
}

func controlFixture(t testing.TB, major int) ([]byte, facts) {
	t.Helper()
	base := filepath.Join("testdata", "pg_control."+strconv.Itoa(major))
	raw, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(base + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var f facts
	if err := json.Unmarshal(text, &f); err != nil {
		t.Fatal(err)
	}
	return raw, f
}

func TestParseControlOfEveryMajor(t *testing.T) {
	t.Parallel()
	for major := pg.MinMajor; major <= pg.MaxMajor; major++ {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			raw, want := controlFixture(t, major)
			got, err := ParseControl(raw)
			if err != nil {
				t.Fatal(err)
			}
			if s := strconv.FormatUint(uint64(got.SystemID), 10); s != want.SystemID {
				t.Errorf("system identifier %s, want %s", s, want.SystemID)
			}
			if got.ControlVersion != want.ControlVersion || got.CatalogVersion != want.CatalogVersion {
				t.Errorf("versions %d, %d, want %d, %d", got.ControlVersion, got.CatalogVersion, want.ControlVersion, want.CatalogVersion)
			}
			if got.Checkpoint.String() != want.Checkpoint || got.Redo.String() != want.Redo {
				t.Errorf("checkpoint %s redo %s, want %s, %s", got.Checkpoint, got.Redo, want.Checkpoint, want.Redo)
			}
			if f := got.Redo.Segment(got.Timeline, got.SegmentSize).String(); f != want.RedoFile {
				t.Errorf("redo file %s, want %s", f, want.RedoFile)
			}
			if uint32(got.Timeline) != want.Timeline || uint32(got.PrevTimeline) != want.PrevTimeline {
				t.Errorf("timelines %d, %d", got.Timeline, got.PrevTimeline)
			}
			if !got.CheckpointTime.Equal(want.CheckpointTime) {
				t.Errorf("checkpoint time %s, want %s", got.CheckpointTime, want.CheckpointTime)
			}
			if got.DataChecksums != (want.Checksums == "on") || got.State != InProduction || got.State.Stopped() {
				t.Errorf("checksums %t, state %s", got.DataChecksums, got.State)
			}
			if got.BlockSize != 8192 || got.SegmentBlocks != 131072 || got.WALBlockSize != 8192 {
				t.Errorf("blocks %d, %d, %d", got.BlockSize, got.SegmentBlocks, got.WALBlockSize)
			}
		})
	}
}

func TestParseControlRefusesEveryFlippedBit(t *testing.T) {
	t.Parallel()
	raw, _ := controlFixture(t, 15)
	const crcEnd = 292
	for i := range crcEnd * 8 {
		bad := append([]byte(nil), raw...)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := ParseControl(bad); !errors.Is(err, ErrControl) {
			t.Fatalf("bit %d flipped: %v", i, err)
		}
	}
	for n := range 296 {
		if _, err := ParseControl(raw[:n]); !errors.Is(err, ErrControl) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
}

func TestReadControl(t *testing.T) {
	t.Parallel()
	raw, _ := controlFixture(t, 18)
	root := t.TempDir()
	if _, _, err := ReadControl(t.Context(), root); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("without a file: %v", err)
	}
	path := filepath.Join(root, "global", "pg_control")
	put := func(b []byte) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	whole := append(append([]byte(nil), raw...), make([]byte, ControlSize-len(raw))...)
	put(whole)
	c, got, err := ReadControl(t.Context(), root)
	if err != nil || c.ControlVersion != 1800 || string(got) != string(whole) {
		t.Fatalf("got %+v, %d bytes, %v", c, len(got), err)
	}
	put(raw) // right, but cut short: must not be stored
	if _, _, err := ReadControl(t.Context(), root); !errors.Is(err, ErrControl) {
		t.Fatalf("short file: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := ReadControl(ctx, root); !errors.Is(err, context.Canceled) {
		t.Fatalf("canceled: %v", err)
	}
}

func FuzzParseControl(f *testing.F) {
	for major := pg.MinMajor; major <= pg.MaxMajor; major++ {
		raw, _ := controlFixture(f, major)
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseControl(b)
		if err == nil && (c.SegmentSize.Validate() != nil || c.Timeline == 0) {
			t.Fatalf("accepted %+v", c)
		}
	})
}
