// Package render writes lists of backups and the state of archived WAL for
// people and for scripts, in the shapes of WAL-G's backup-list, wal-show and
// wal-verify, which scripts parse: plain columns, a table, or JSON.
//
// It only formats: what it is given is neither sorted nor checked. It fails
// when the writer fails or user data is not JSON; then part of the output may
// be written.
package render

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/walherd/walherd/engine/pg"
)

// Backup is one line of the list.
type Backup struct {
	// Name of the backup.
	Name string
	// Time the sentinel was last written.
	Time time.Time
	// WALFileName is the segment the backup starts in.
	WALFileName string
	// StorageName is the configured storage that holds the backup.
	StorageName string
	// Detail is what the backup's metadata says; Options.Detail prints it.
	Detail *Detail
}

// Detail is what the metadata of a backup says.
type Detail struct {
	StartTime, FinishTime time.Time
	Hostname, DataDir     string
	PgVersion             pg.Version
	StartLSN, FinishLSN   pg.LSN
	IsPermanent           bool
	SystemIdentifier      pg.SystemID
	// UncompressedSize and CompressedSize are bytes.
	UncompressedSize, CompressedSize int64
	// UserData is JSON, nil for none.
	UserData json.RawMessage
}

// Options choose the shape.
type Options struct {
	// Pretty draws a table; with JSON it indents.
	Pretty bool
	// JSON writes an array of objects.
	JSON bool
	// Detail adds what the metadata says. Every backup must have it.
	Detail bool
	// Location is the time zone times are shown in; nil is UTC. Start and
	// finish in JSON are always UTC: their date_fmt ends in Z.
	Location *time.Location
}

// dateFormat is the date_fmt of WAL-G's documents: how Python would read the
// times beside it.
const dateFormat = "%Y-%m-%dT%H:%M:%S.%fZ"

// Backups writes the list. An empty list is [] in JSON and nothing else
// otherwise.
func Backups(w io.Writer, list []Backup, opt Options) error {
	if opt.Location == nil {
		opt.Location = time.UTC
	}
	if opt.Detail {
		for _, b := range list {
			if b.Detail == nil {
				return fmt.Errorf("list backup %s: no metadata", b.Name)
			}
		}
	}
	var err error
	switch {
	case opt.JSON:
		err = writeJSON(w, list, opt)
	case len(list) == 0:
	case opt.Pretty:
		err = writeTable(w, list, opt)
	default:
		err = writePlain(w, list, opt)
	}
	if err != nil {
		return fmt.Errorf("write list of backups: %w", err)
	}
	return nil
}

// column is a column of both the plain list and the table.
type column struct {
	plain, pretty string
	value         func(Backup, func(time.Time) string) any
}

func columns(detail bool) []column {
	type clock = func(time.Time) string
	cols := []column{
		{"backup_name", "Backup name", func(b Backup, _ clock) any { return b.Name }},
		{"modified", "Modified", func(b Backup, t clock) any { return t(b.Time) }},
		{"wal_file_name", "WAL file name", func(b Backup, _ clock) any { return b.WALFileName }},
		{"storage_name", "Storage name", func(b Backup, _ clock) any { return b.StorageName }},
	}
	if !detail {
		return cols
	}
	return append(cols,
		column{"start_time", "Start time", func(b Backup, t clock) any { return t(b.Detail.StartTime) }},
		column{"finish_time", "Finish time", func(b Backup, t clock) any { return t(b.Detail.FinishTime) }},
		column{"hostname", "Hostname", func(b Backup, _ clock) any { return b.Detail.Hostname }},
		column{"data_dir", "Datadir", func(b Backup, _ clock) any { return b.Detail.DataDir }},
		column{"pg_version", "PG Version", func(b Backup, _ clock) any { return int(b.Detail.PgVersion) }},
		column{"start_lsn", "Start LSN", func(b Backup, _ clock) any { return b.Detail.StartLSN.String() }},
		column{"finish_lsn", "Finish LSN", func(b Backup, _ clock) any { return b.Detail.FinishLSN.String() }},
		column{"is_permanent", "Permanent", func(b Backup, _ clock) any { return strconv.FormatBool(b.Detail.IsPermanent) }},
	)
}

// clock formats times in a zone, the zero time as a dash.
func clock(loc *time.Location, layout string) func(time.Time) string {
	return func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.In(loc).Format(layout)
	}
}

func writePlain(w io.Writer, list []Backup, opt Options) error {
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	b := bufio.NewWriter(tw)
	cols := columns(opt.Detail)
	line := func(text func(column) string) {
		for i, c := range cols {
			if i > 0 {
				b.WriteByte('\t')
			}
			b.WriteString(text(c))
		}
		b.WriteByte('\n')
	}
	show := clock(opt.Location, time.RFC3339)
	line(func(c column) string { return c.plain })
	for _, backup := range list {
		line(func(c column) string { return fmt.Sprint(c.value(backup, show)) })
	}
	if err := b.Flush(); err != nil {
		return err
	}
	return tw.Flush()
}

func writeTable(w io.Writer, list []Backup, opt Options) error {
	cols := columns(opt.Detail)
	show := clock(opt.Location, time.RFC850)
	t := table.NewWriter()
	header := table.Row{"#"}
	for _, c := range cols {
		header = append(header, c.pretty)
	}
	t.AppendHeader(header)
	for i, b := range list {
		row := table.Row{i}
		for _, c := range cols {
			row = append(row, c.value(b, show))
		}
		t.AppendRow(row)
	}
	_, err := io.WriteString(w, t.Render()+"\n")
	return err
}

// The field order is that of WAL-G's output.
type jsonBackup struct {
	Name        string    `json:"backup_name"`
	Time        time.Time `json:"time"`
	WALFileName string    `json:"wal_file_name"`
	StorageName string    `json:"storage_name"`
	*jsonDetail
}

type jsonDetail struct {
	StartTime        time.Time       `json:"start_time"`
	FinishTime       time.Time       `json:"finish_time"`
	DateFormat       string          `json:"date_fmt"`
	Hostname         string          `json:"hostname"`
	DataDir          string          `json:"data_dir"`
	PgVersion        pg.Version      `json:"pg_version"`
	StartLSN         uint64          `json:"start_lsn"`
	FinishLSN        uint64          `json:"finish_lsn"`
	IsPermanent      bool            `json:"is_permanent"`
	SystemIdentifier pg.SystemID     `json:"system_identifier"`
	UncompressedSize int64           `json:"uncompressed_size"`
	CompressedSize   int64           `json:"compressed_size"`
	UserData         json.RawMessage `json:"user_data,omitempty"`
}

func jsonBackups(list []Backup, opt Options) []jsonBackup {
	if opt.Location == nil {
		opt.Location = time.UTC
	}
	out := make([]jsonBackup, 0, len(list)) // [] rather than null
	for _, b := range list {
		j := jsonBackup{Name: b.Name, Time: b.Time.In(opt.Location), WALFileName: b.WALFileName, StorageName: b.StorageName}
		if opt.Detail {
			d := b.Detail
			j.jsonDetail = &jsonDetail{
				d.StartTime.UTC(), d.FinishTime.UTC(), dateFormat, d.Hostname, d.DataDir, d.PgVersion,
				uint64(d.StartLSN), uint64(d.FinishLSN), d.IsPermanent, d.SystemIdentifier,
				d.UncompressedSize, d.CompressedSize, d.UserData,
			}
		}
		out = append(out, j)
	}
	return out
}

func writeJSON(w io.Writer, list []Backup, opt Options) error {
	data, err := json.Marshal(jsonBackups(list, opt))
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	if opt.Pretty {
		if err := json.Indent(&buf, data, "", "    "); err != nil {
			return err
		}
	} else {
		buf.Write(data)
	}
	buf.WriteByte('\n')
	_, err = buf.WriteTo(w)
	return err
}
