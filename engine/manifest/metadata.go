package manifest

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/walherd/walherd/engine/pg"
)

// Metadata is <backup>/metadata.json: what listings and retention need of a
// backup. It equals the sentinel at creation; IsPermanent and UserData may
// change afterwards, and then only here. Its JSON members are those of
// backup-list --detail --json.
type Metadata struct {
	// StartTime and FinishTime are written as RoundUp makes them.
	StartTime  time.Time `json:"start_time"`
	FinishTime time.Time `json:"finish_time"`
	// DateFmt is written as the constant DateFmt.
	DateFmt   string     `json:"date_fmt"`
	Hostname  string     `json:"hostname"`
	DataDir   string     `json:"data_dir"`
	PgVersion pg.Version `json:"pg_version"`
	StartLSN  pg.LSN     `json:"start_lsn"`
	FinishLSN pg.LSN     `json:"finish_lsn"`
	// IsPermanent keeps the backup from being deleted: the flag that
	// counts.
	IsPermanent bool `json:"is_permanent"`
	// SystemIdentifier is nil (null) when unknown.
	SystemIdentifier *pg.SystemID `json:"system_identifier"`
	// UncompressedSize and CompressedSize are the sentinel's, in bytes.
	UncompressedSize int64    `json:"uncompressed_size"`
	CompressedSize   int64    `json:"compressed_size"`
	UserData         UserData `json:"user_data,omitempty"`
}

// ParseMetadata reads a metadata.json.
func ParseMetadata(document []byte) (*Metadata, error) {
	m := new(Metadata)
	if err := json.Unmarshal(document, m); err != nil {
		return nil, fmt.Errorf("parse backup metadata: %w", err)
	}
	return m, nil
}

// Encode is the document as stored: one line, no final newline.
func (m *Metadata) Encode() ([]byte, error) {
	w := *m
	w.DateFmt = DateFmt
	w.StartTime, w.FinishTime = RoundUp(m.StartTime), RoundUp(m.FinishTime)
	b, err := json.Marshal(&w)
	if err != nil {
		return nil, fmt.Errorf("encode backup metadata: %w", err)
	}
	return b, nil
}
