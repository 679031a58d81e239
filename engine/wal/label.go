package wal

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/walherd/walherd/engine/pg"
)

// ErrLabel marks a backup label or backup history file that makes no sense.
var ErrLabel = errors.New("invalid backup label")

// Label is the content of backup_label, or of the backup history file
// (SEG.OFFSET.backup) that the server archives when a backup ends.
type Label struct {
	// Start is where replay must begin, StartSegment the file that holds it.
	Start        pg.LSN
	StartSegment pg.SegmentName
	Checkpoint   pg.LSN
	// Stop and StopSegment are set in a backup history file only.
	Stop        pg.LSN
	StopSegment pg.SegmentName
	// Method is "streamed" since PostgreSQL 15; From is "primary" or
	// "standby".
	Method, From string
	// StartTime and StopTime are kept as the server wrote them: a zone
	// abbreviation does not name an instant.
	StartTime, StopTime string
	// Name is the label given by whoever took the backup.
	Name                        string
	StartTimeline, StopTimeline pg.Timeline
	// IncrementalFrom is set by a server-side increment (PostgreSQL 17).
	IncrementalFrom pg.LSN
}

// maxLabel bounds a label: the server limits the free text to 1 KiB.
const maxLabel = 64 << 10

// ParseLabel reads a backup_label or a backup history file. Unknown lines do
// not count, and of two lines with one key the first does: the user's label
// text may hold anything, a line break and a key included.
func ParseLabel(text []byte) (Label, error) {
	l, err := parseLabel(text)
	if err != nil {
		return Label{}, fmt.Errorf("parse backup label: %w: %w", ErrLabel, err)
	}
	return l, nil
}

// ParseBackupHistory reads a backup history file: a label that has an end
// too.
func ParseBackupHistory(text []byte) (Label, error) {
	l, err := parseLabel(text)
	if err == nil && l.Stop == 0 {
		err = errors.New("no STOP WAL LOCATION")
	}
	if err == nil && l.Stop < l.Start {
		err = fmt.Errorf("it stops at %s, before its start at %s", l.Stop, l.Start)
	}
	if err != nil {
		return Label{}, fmt.Errorf("parse backup history: %w: %w", ErrLabel, err)
	}
	return l, nil
}

func parseLabel(text []byte) (Label, error) {
	if len(text) > maxLabel {
		return Label{}, fmt.Errorf("%d bytes, at most %d are believed", len(text), maxLabel)
	}
	var l Label
	seen := map[string]bool{}
	for line := range bytes.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimRight(string(line), "\r\n"), ": ")
		if !ok || seen[key] {
			continue
		}
		seen[key] = true
		if err := l.set(key, value); err != nil {
			return Label{}, fmt.Errorf("%s: %w", key, err)
		}
	}
	if l.Start == 0 {
		return Label{}, errors.New("no START WAL LOCATION")
	}
	if l.Checkpoint == 0 {
		return Label{}, errors.New("no CHECKPOINT LOCATION")
	}
	return l, nil
}

func (l *Label) set(key, value string) (err error) {
	switch key {
	case "START WAL LOCATION":
		l.Start, l.StartSegment, err = parseLocation(value)
	case "STOP WAL LOCATION":
		l.Stop, l.StopSegment, err = parseLocation(value)
	case "CHECKPOINT LOCATION":
		l.Checkpoint, err = pg.ParseLSN(value)
	case "INCREMENTAL FROM LSN":
		l.IncrementalFrom, err = pg.ParseLSN(value)
	case "BACKUP METHOD":
		l.Method = value
	case "BACKUP FROM":
		l.From = value
	case "START TIME":
		l.StartTime = value
	case "STOP TIME":
		l.StopTime = value
	case "LABEL":
		l.Name = value
	case "START TIMELINE":
		l.StartTimeline, err = parseTimeline(value)
	case "STOP TIMELINE":
		l.StopTimeline, err = parseTimeline(value)
	}
	return err
}

// parseLocation reads "0/2000028 (file 000000010000000000000002)".
func parseLocation(s string) (pg.LSN, pg.SegmentName, error) {
	position, file, ok := strings.Cut(s, " (file ")
	if !ok || !strings.HasSuffix(file, ")") {
		return 0, pg.SegmentName{}, fmt.Errorf("%.80q is not a position and a file", s)
	}
	lsn, err := pg.ParseLSN(position)
	if err != nil {
		return 0, pg.SegmentName{}, err
	}
	seg, err := pg.ParseSegmentName(strings.TrimSuffix(file, ")"))
	return lsn, seg, err
}

func parseTimeline(s string) (pg.Timeline, error) {
	v, err := strconv.ParseUint(s, 10, 32)
	if err != nil || v == 0 {
		return 0, fmt.Errorf("%.20q is not a timeline", s)
	}
	return pg.Timeline(v), nil
}
