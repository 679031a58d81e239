package delta

import (
	"errors"
	"testing"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
)

func TestCheckParent(t *testing.T) {
	t.Parallel()
	start, finish, system := pg.LSN(100), pg.LSN(200), pg.SystemID(7)
	history := wal.History{Timeline: 3, Switches: []wal.Switch{{Timeline: 1, LSN: 200}, {Timeline: 2, LSN: 300}}}
	for name, tt := range map[string]struct {
		backup pg.BackupName
		change func(*manifest.Sentinel, *Position)
		want   error
	}{
		"a timeline ago":         {"base_000000010000000000000001", nil, nil},
		"same timeline":          {"base_000000030000000000000001", nil, nil},
		"starts where it ended":  {"base_000000010000000000000001", func(_ *manifest.Sentinel, p *Position) { p.LSN = 200 }, nil},
		"unknown system":         {"base_000000010000000000000001", func(s *manifest.Sentinel, _ *Position) { s.SystemIdentifier = nil }, nil},
		"end unknown":            {"base_000000010000000000000001", func(s *manifest.Sentinel, _ *Position) { s.FinishLSN = nil }, nil},
		"no LSN":                 {"base_000000010000000000000001", func(s *manifest.Sentinel, _ *Position) { s.LSN = nil }, ErrNoLSN},
		"ahead":                  {"base_000000010000000000000001", func(_ *manifest.Sentinel, p *Position) { p.LSN = 199 }, ErrAhead},
		"ahead, end unknown":     {"base_000000010000000000000001", func(s *manifest.Sentinel, p *Position) { s.FinishLSN, p.LSN = nil, 99 }, ErrAhead},
		"another system":         {"base_000000010000000000000001", func(_ *manifest.Sentinel, p *Position) { p.SystemID = 8 }, ErrOtherSystem},
		"another version":        {"base_000000010000000000000001", func(_ *manifest.Sentinel, p *Position) { p.Version = 160001 }, ErrOtherSystem},
		"left before its end":    {"base_000000010000000000000001", func(_ *manifest.Sentinel, p *Position) { p.History.Switches[0].LSN = 199 }, ErrOtherTimeline},
		"of a timeline not ours": {"base_000000040000000000000001", nil, ErrOtherTimeline},
	} {
		s := &manifest.Sentinel{LSN: &start, FinishLSN: &finish, SystemIdentifier: &system, PgVersion: 150018}
		p := Position{LSN: 1000, SystemID: 7, Version: 150003, History: history}
		p.History.Switches = append([]wal.Switch(nil), history.Switches...)
		if tt.change != nil {
			tt.change(s, &p)
		}
		if err := CheckParent(tt.backup, s, p); !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}
