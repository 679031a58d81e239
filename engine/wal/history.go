package wal

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/walherd/walherd/engine/pg"
)

// ErrHistory marks a timeline history file that makes no sense.
var ErrHistory = errors.New("invalid timeline history")

// maxHistory bounds a history file: one line per promotion, so a real one is
// hundreds of bytes long.
const maxHistory = 1 << 20

// Switch is one line of a history file: Timeline ended at LSN.
type Switch struct {
	Timeline pg.Timeline
	// LSN is the first position that belongs to the next timeline.
	LSN pg.LSN
	// Reason is PostgreSQL's text, without a line break.
	Reason string
}

// History is the ancestry of a timeline, oldest first.
type History struct {
	Timeline pg.Timeline
	Switches []Switch
}

// ParseHistory reads the history file of timeline tl as PostgreSQL's
// readTimeLineHistory does: empty lines and lines that start with # do not
// count. Timelines must ascend and stay below tl, positions must not descend.
// Timeline 1 has no file and no parent.
func ParseHistory(tl pg.Timeline, text []byte) (History, error) {
	h := History{Timeline: tl}
	if tl == 0 {
		return History{}, fmt.Errorf("parse timeline history: %w: 0 is no timeline", ErrHistory)
	}
	if len(text) > maxHistory {
		return History{}, fmt.Errorf("parse timeline history %s: %w: %d bytes, at most %d are believed", tl.HistoryFile(), ErrHistory, len(text), maxHistory)
	}
	number := 0
	for line := range bytes.Lines(text) {
		number++
		s, ok, err := parseSwitch(strings.TrimRight(string(line), "\r\n"))
		if err == nil && ok {
			err = h.accept(s)
		}
		if err != nil {
			return History{}, fmt.Errorf("parse timeline history %s, line %d: %w: %w", tl.HistoryFile(), number, ErrHistory, err)
		}
		if ok {
			h.Switches = append(h.Switches, s)
		}
	}
	return h, nil
}

// accept reports whether s may follow what is there.
func (h *History) accept(s Switch) error {
	if s.Timeline == 0 || s.Timeline >= h.Timeline {
		return fmt.Errorf("timeline %d is not below %d", s.Timeline, h.Timeline)
	}
	if n := len(h.Switches); n > 0 {
		last := h.Switches[n-1]
		if s.Timeline <= last.Timeline {
			return fmt.Errorf("timeline %d after %d", s.Timeline, last.Timeline)
		}
		if s.LSN < last.LSN {
			return fmt.Errorf("position %s after %s", s.LSN, last.LSN)
		}
	}
	return nil
}

// parseSwitch reads "<timeline> <LSN> <reason>"; false for a line without
// content. PostgreSQL takes any white space between the first two fields.
func parseSwitch(line string) (Switch, bool, error) {
	const space = " \t\v\f\r"
	line = strings.TrimLeft(line, space)
	if line == "" || line[0] == '#' {
		return Switch{}, false, nil
	}
	i := strings.IndexAny(line, space)
	if i < 0 {
		return Switch{}, false, errors.New("no switch point")
	}
	tl, err := strconv.ParseUint(line[:i], 10, 32)
	if err != nil {
		return Switch{}, false, fmt.Errorf("timeline %.20q is not a number", line[:i])
	}
	position, reason := strings.TrimLeft(line[i:], space), ""
	if i := strings.IndexAny(position, space); i >= 0 {
		// One separator only: the reason may begin with white space.
		position, reason = position[:i], position[i+1:]
	}
	lsn, err := pg.ParseLSN(position)
	if err != nil {
		return Switch{}, false, err
	}
	return Switch{Timeline: pg.Timeline(tl), LSN: lsn, Reason: reason}, true, nil
}

// String is the history file's text as PostgreSQL writes it: fields separated
// by tabs, an empty line between two entries.
func (h History) String() string {
	var b strings.Builder
	for i, s := range h.Switches {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%d\t%s\t%s\n", uint32(s.Timeline), s.LSN, s.Reason)
	}
	return b.String()
}

// Parent is the timeline this one branched off, and where; false for a
// timeline without history.
func (h History) Parent() (Switch, bool) {
	if len(h.Switches) == 0 {
		return Switch{}, false
	}
	return h.Switches[len(h.Switches)-1], true
}

// At is the timeline whose WAL holds the byte at l for a server on h.Timeline.
func (h History) At(l pg.LSN) pg.Timeline {
	for _, s := range h.Switches {
		if l < s.LSN {
			return s.Timeline
		}
	}
	return h.Timeline
}
