package main

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"testing"
)

// TestProgressOfAFailedBackup: what was given up does not count as done,
// however little of it was sent.
func TestProgressOfAFailedBackup(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		stored int64
		want   string
	}{
		"stored":   {30, "state=finished"},
		"given up": {0, "state=stopped"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			a := &app{stderr: os.Stderr, screen: &out, remote: true, log: slog.New(slog.NewTextHandler(&out, nil))}
			p := &pushProgress{a: a}
			p.begin(100)
			p.Begin("part_001.tar", 100)
			p.Add("part_001.tar", 60)
			p.End("part_001.tar", c.stored)
			p.finish()
			if !strings.Contains(out.String(), c.want) {
				t.Errorf("no %s in %s", c.want, out.String())
			}
		})
	}
}
