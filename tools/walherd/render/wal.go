package render

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/pg"
)

// Timeline is what wal-show tells of one stored timeline.
type Timeline struct {
	catalog.TimelineReport
	// Backups, with Detail, are printed in JSON; nil leaves them out.
	Backups []Backup
}

// TimelineOptions choose the shape of a list of timelines.
type TimelineOptions struct {
	// JSON writes an array of objects, with the missing segments by name.
	JSON bool
	// NoBackups leaves the count of backups out of the table.
	NoBackups bool
	// Location is the time zone of the backups' times; nil is UTC.
	Location *time.Location
}

// MaxMissing is how many missing segments of a timeline are written by name.
// Two segments of another cluster can span more than any memory, or reader.
const MaxMissing = 1_000_000

// Timelines writes WAL-G's wal-show: a table, or JSON without a final newline.
func Timelines(w io.Writer, list []Timeline, opt TimelineOptions) error {
	out := bufio.NewWriterSize(w, 64<<10)
	var err error
	if opt.JSON {
		err = timelinesJSON(out, list, opt)
	} else {
		_, err = fmt.Fprintln(out, timelinesTable(list, opt))
	}
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		return fmt.Errorf("write list of timelines: %w", err)
	}
	return nil
}

func timelinesTable(list []Timeline, opt TimelineOptions) string {
	t := table.NewWriter()
	header := table.Row{"TLI", "Parent TLI", "Switchpoint LSN", "Start segment", "End segment", "Segment range", "Segments count", "Status"}
	if !opt.NoBackups {
		header = append(header, "Backups count")
	}
	t.AppendHeader(header)
	for _, l := range list {
		row := table.Row{
			uint32(l.Timeline), uint32(l.Parent), l.SwitchPoint, l.Start, l.End, l.Range, l.Found, l.Status,
		}
		if !opt.NoBackups {
			row = append(row, len(l.TimelineReport.Backups))
		}
		t.AppendRow(row)
	}
	// Not left to the library's eye for numbers, which an empty table lacks.
	t.SetColumnConfigs(alignRight(1, 2, 3, 6, 7, 9))
	return t.Render()
}

func alignRight(columns ...int) (configs []table.ColumnConfig) {
	for _, n := range columns {
		configs = append(configs, table.ColumnConfig{Number: n, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	return configs
}

// timelinesJSON writes the members in WAL-G's order, and the missing segments
// one by one: there can be more of them than of anything else.
func timelinesJSON(w *bufio.Writer, list []Timeline, opt TimelineOptions) error {
	value := func(v any) error {
		data, err := json.Marshal(v)
		if err == nil {
			_, err = w.Write(data)
		}
		return err
	}
	w.WriteByte('[')
	for i, l := range list {
		missing := l.Range - l.Found
		if missing > MaxMissing {
			return fmt.Errorf("timeline %d lacks %d segments between %s and %s: at most %d are named; the table counts them",
				uint32(l.Timeline), missing, l.Start, l.End, MaxMissing)
		}
		if i > 0 {
			w.WriteByte(',')
		}
		fmt.Fprintf(w, `{"id":%d,"parent_id":%d,"switch_point_lsn":%d,"start_segment":%q,"end_segment":%q,"segments_count":%d,"missing_segments":[`,
			uint32(l.Timeline), uint32(l.Parent), uint64(l.SwitchPoint), l.Start.String(), l.End.String(), l.Found)
		n := 0
		for name := range l.Missing() {
			if n++; n > 1 {
				w.WriteByte(',')
			}
			fmt.Fprintf(w, "%q", name.String())
		}
		w.WriteByte(']')
		if len(l.Backups) > 0 {
			w.WriteString(`,"backups":`)
			if err := value(jsonBackups(l.Backups, Options{Detail: true, Location: opt.Location})); err != nil {
				return err
			}
		}
		fmt.Fprintf(w, `,"segment_range_size":%d,"status":%q}`, l.Range, l.Status)
	}
	_, err := w.WriteString("]")
	return err
}

// Verification is the result of wal-verify; a check that was not asked for is
// nil.
type Verification struct {
	Integrity *catalog.IntegrityReport
	Timeline  *catalog.TimelineCheck
}

// Write writes WAL-G's wal-verify: text, or JSON without a final newline.
func (v Verification) Write(w io.Writer, asJSON bool) error {
	out := bufio.NewWriterSize(w, 64<<10)
	write := v.text
	if asJSON {
		write = v.json
	}
	err := write(out)
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		return fmt.Errorf("write the result of the checks: %w", err)
	}
	return nil
}

func (v Verification) text(w *bufio.Writer) error {
	head := func(check string, s catalog.Status) {
		fmt.Fprintf(w, "[wal-verify] %s check status: %s\n[wal-verify] %s check details:\n", check, s, check)
	}
	if r := v.Integrity; r != nil {
		head("integrity", r.Status)
		t := table.NewWriter()
		t.AppendHeader(table.Row{"TLI", "Start", "End", "Segments count", "Status"})
		for _, x := range r.Ranges {
			t.AppendRow(table.Row{uint32(x.Timeline), x.First, x.Last, x.Count, x.Status})
		}
		t.SetColumnConfigs(alignRight(1, 4, 5))
		fmt.Fprintln(w, t.Render())
	}
	if c := v.Timeline; c != nil {
		head("timeline", c.Status)
		fmt.Fprintf(w, "Highest timeline found in storage: %d\nCurrent cluster timeline: %d\n", uint32(c.Highest), uint32(c.Current))
	}
	return nil
}

type jsonRange struct {
	Timeline uint32                `json:"timeline_id"`
	Start    string                `json:"start_segment"`
	End      string                `json:"end_segment"`
	Count    uint64                `json:"segments_count"`
	Status   catalog.SegmentStatus `json:"status"`
}

type jsonTimelines struct {
	Current pg.Timeline `json:"current_timeline_id"`
	Highest pg.Timeline `json:"highest_storage_timeline_id"`
}

type jsonCheck struct {
	Status  catalog.Status `json:"status"`
	Details any            `json:"details"`
}

func (v Verification) json(w *bufio.Writer) error {
	checks := map[string]jsonCheck{} // its keys are sorted
	if r := v.Integrity; r != nil {
		var details []jsonRange // null when nothing was scanned
		for _, x := range r.Ranges {
			details = append(details, jsonRange{uint32(x.Timeline), x.First.String(), x.Last.String(), x.Count, x.Status})
		}
		checks["integrity"] = jsonCheck{r.Status, details}
	}
	if c := v.Timeline; c != nil {
		checks["timeline"] = jsonCheck{c.Status, jsonTimelines{c.Current, c.Highest}}
	}
	data, err := json.Marshal(checks)
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// Failed tells whether any of the checks found a failure.
func (v Verification) Failed() bool {
	statuses := []catalog.Status{}
	if v.Integrity != nil {
		statuses = append(statuses, v.Integrity.Status)
	}
	if v.Timeline != nil {
		statuses = append(statuses, v.Timeline.Status)
	}
	return slices.Contains(statuses, catalog.StatusFailure)
}
