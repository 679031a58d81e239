package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/walherd/walherd/engine/pg"
)

// PgBackRestBackup is one line of a detailed list of a pgBackRest repository's
// backups. The members' names in JSON are those of the fields, as WAL-G has
// them.
type PgBackRestBackup struct {
	BackupName string
	// ModifiedTime is when the backup was completed.
	ModifiedTime time.Time
	// WalFileName is the segment the backup starts in.
	WalFileName string
	// Type is full, diff or incr.
	Type                  string
	StartTime, FinishTime time.Time
	PgVersion             string
	// StartLsn and FinishLsn are written as PostgreSQL does: 0/2000028.
	StartLsn, FinishLsn string
	SystemIdentifier    pg.SystemID
	// DirectoryPaths are the directories as the manifest names them.
	DirectoryPaths []string
	// DefaultFileMode and DefaultDirectoryMode are numbers in JSON.
	DefaultFileMode, DefaultDirectoryMode fs.FileMode
}

// PgBackRestBackups writes the detailed list. opt.Detail has no meaning.
func PgBackRestBackups(w io.Writer, list []PgBackRestBackup, opt Options) error {
	if opt.Location == nil {
		opt.Location = time.UTC
	}
	var err error
	switch {
	case opt.JSON:
		err = pgBackRestJSON(w, list, opt)
	case len(list) == 0:
	case opt.Pretty:
		t := table.NewWriter()
		t.AppendHeader(table.Row{"#", "Name", "Modified", "WAL file name", "Type", "Start time", "Finish time", "PG version", "Start LSN", "Finish LSN"})
		for i, b := range list {
			row := table.Row{i}
			for _, cell := range b.cells(clock(opt.Location, time.RFC850)) {
				row = append(row, cell)
			}
			t.AppendRow(row)
		}
		_, err = io.WriteString(w, t.Render()+"\n")
	default:
		tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
		fmt.Fprintln(tw, strings.Join([]string{"name", "modified", "wal_file_name", "type", "start_time", "finish_time", "pg_version", "start_lsn", "finish_lsn"}, "\t"))
		for _, b := range list {
			fmt.Fprintln(tw, strings.Join(b.cells(clock(opt.Location, time.RFC3339)), "\t"))
		}
		err = tw.Flush()
	}
	if err != nil {
		return fmt.Errorf("write list of backups: %w", err)
	}
	return nil
}

func (b PgBackRestBackup) cells(show func(time.Time) string) []string {
	return []string{b.BackupName, show(b.ModifiedTime), b.WalFileName, b.Type, show(b.StartTime), show(b.FinishTime), b.PgVersion, b.StartLsn, b.FinishLsn}
}

func pgBackRestJSON(w io.Writer, list []PgBackRestBackup, opt Options) error {
	out := slices.Clone(list)
	for i := range out {
		out[i].ModifiedTime = out[i].ModifiedTime.In(opt.Location)
	}
	if out == nil {
		out = []PgBackRestBackup{} // [] rather than null
	}
	data, err := json.Marshal(out)
	if err != nil {
		return err
	}
	if opt.Pretty {
		var indented bytes.Buffer
		if err := json.Indent(&indented, data, "", "    "); err != nil {
			return err
		}
		data = indented.Bytes()
	}
	_, err = w.Write(append(data, '\n'))
	return err
}
