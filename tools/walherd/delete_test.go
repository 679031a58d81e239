package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/retain"
	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/producer/schedule"
)

func TestParseRetention(t *testing.T) {
	t.Parallel()
	got, err := parseRetention(" retain FIND_FULL 7 --after 2026-01-01T00:00:00Z --use-sentinel-time; garbage --window 14d ;retain --window 2w")
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got[0].String() != "retain FIND_FULL 7" || got[0].Flags.After != "2026-01-01T00:00:00Z" || !got[0].UseStartTime ||
		got[1].String() != "garbage" || got[1].Flags.Window != "14d" || got[2].String() != "retain" || got[2].Flags.Window != "2w" {
		t.Errorf("%+v", got)
	}
	for text, want := range map[string]error{
		"":                    retain.ErrUsage,
		"retain 3;":           retain.ErrUsage,
		"retain 0":            retain.ErrCount,
		"target LATEST":       retain.ErrUsage,
		"everything FORCE":    retain.ErrUsage,
		"garbage --after x":   retain.ErrModifiers,
		"delete retain 3":     retain.ErrUsage,
		"retain 3 --window 1": retain.ErrModifiers,
		"retain 3 --confirm":  nil,
		"garbage --force":     nil,
	} {
		if _, err := parseRetention(text); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// A time is taken under a key whose tokens the broker can tell apart.
func TestClaimKey(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_800_000_000, 0)
	if got := claimKey("main", "backup", "-", at); got != "main.backup-1800000000" {
		t.Error(got)
	}
	if got := claimKey("main", "retention", ".", at); got != "main.retention.1800000000" {
		t.Error(got)
	}
}

// TestAClaimWithoutAnAnswer: the broker stored it and its answer was lost. Every
// other host finds it taken, so this one does the work, once.
func TestAClaimWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{})
	a := &app{name: "walherd"}
	f := &fleet{cluster: bustest.Cluster, bus: b}
	at := time.Unix(1800000000, 0)
	claim := a.claim(f, "-")
	lost, cancel := context.WithCancel(t.Context())
	cancel()
	if err := claim(lost, "backup", at); err == nil || errors.Is(err, schedule.ErrTaken) {
		t.Fatalf("without an answer: %v", err)
	}
	if _, err := b.Acquire(t.Context(), claimKey(bustest.Cluster, "backup", "-", at), a.processName(), claimed); err != nil {
		t.Fatal(err)
	}
	if err := claim(t.Context(), "backup", at); err != nil {
		t.Fatalf("after the answer was lost: %v", err)
	}
	for _, c := range []schedule.Claim{claim, a.claim(f, "-")} {
		if err := c(t.Context(), "backup", at); !errors.Is(err, schedule.ErrTaken) {
			t.Fatalf("once more: %v", err)
		}
	}
}
