package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/walherd/walherd/engine/pg"
)

// SentinelVersion is the version that Encode writes.
const SentinelVersion = 2

// Sentinel is <backup>_backup_stop_sentinel.json. Its members are declared in
// the order in which they are stored. Read it with ParseSentinel and write it
// with Encode: encoding/json alone would skip the checks and the rounding.
type Sentinel struct {
	// LSN is where the backup starts; nil: no increment can be built on it.
	LSN *pg.LSN `json:"LSN"`

	// Increment is set for an increment only. A catch-up backup has one
	// too, with empty names, although it is complete in itself.
	*Increment

	PgVersion pg.Version `json:"PgVersion"`
	// FinishLSN is what the stop call returned; replay must reach it.
	FinishLSN *pg.LSN `json:"FinishLSN"`
	// SystemIdentifier is nil when unknown.
	SystemIdentifier *pg.SystemID `json:"SystemIdentifier,omitempty"`

	// UncompressedSize in bytes: the sum of the entry sizes of a local
	// backup, the length of the received streams of a remote one.
	UncompressedSize int64 `json:"UncompressedSize"`
	// CompressedSize in bytes handed to storage, without the JSON
	// documents. WAL-G's value may be a few bytes low: no integrity check.
	CompressedSize int64 `json:"CompressedSize"`
	// DataCatalogSize in bytes is all that the walk saw, packed or not; 0
	// for a remote backup.
	DataCatalogSize int64 `json:"DataCatalogSize,omitempty"`

	// Spec is nil for a local backup without tablespaces; a remote backup
	// always has one.
	Spec     *TablespaceSpec `json:"Spec,omitempty"`
	UserData UserData        `json:"UserData,omitempty"`
	// Files are files with corrupt blocks, by name, as a person would look
	// for them here; at least some of them. files_metadata.json has all.
	Files CorruptFiles `json:"Files,omitempty"`
	// FilesMetadataDisabled tells that there is no files_metadata.json.
	FilesMetadataDisabled bool `json:"FilesMetadataDisabled,omitempty"`

	// CheckpointNumber and DeltaCheckpointNumber are OrioleDB's.
	CheckpointNumber      *uint32 `json:"ChkpNum"`
	DeltaCheckpointNumber *uint32 `json:"DeltaChkpNum,omitempty"`

	// Version is 0 in a version 1 sentinel, which lacks all that follows.
	// Encode writes SentinelVersion.
	Version int `json:"Version"`
	// StartTime and FinishTime are written as RoundUp makes them.
	StartTime  time.Time `json:"StartTime"`
	FinishTime time.Time `json:"FinishTime"`
	// DateFmt is written as the constant DateFmt.
	DateFmt  string `json:"DateFmt"`
	Hostname string `json:"Hostname"`
	DataDir  string `json:"DataDir"`
	// IsPermanent is the flag at creation and never changed afterwards:
	// only the one in metadata.json counts.
	IsPermanent bool `json:"IsPermanent"`
}

// CorruptFiles are files with corrupt blocks by name.
type CorruptFiles map[string]CorruptFile

// UnmarshalJSON reads what it understands and nothing of the rest: old
// sentinels have all files here, WAL-E's in another form still.
func (c *CorruptFiles) UnmarshalJSON(data []byte) error {
	var all map[string]json.RawMessage
	if json.Unmarshal(data, &all) != nil {
		return nil
	}
	for name, raw := range all {
		var f CorruptFile
		if json.Unmarshal(raw, &f) != nil || len(f.CorruptBlocks) == 0 {
			continue
		}
		if *c == nil {
			*c = CorruptFiles{}
		}
		(*c)[name] = f
	}
	return nil
}

// CorruptFile is a file in which a backup found pages that fail their check.
// The member Files of old sentinels listed all files, and no program reads it
// any more; these few are in its form.
type CorruptFile struct {
	// CorruptBlocks are numbers of blocks within the file.
	CorruptBlocks []uint32  `json:"CorruptBlocks"`
	IsIncremented bool      `json:"IsIncremented"`
	IsSkipped     bool      `json:"IsSkipped"`
	MTime         time.Time `json:"MTime"`
}

// Increment ties a backup to its parent.
type Increment struct {
	// ParentLSN is the start LSN of the parent: pages changed since are in
	// the increment.
	ParentLSN pg.LSN `json:"DeltaLSN"`
	// Parent is the parent's exact name; empty in a catch-up backup.
	Parent pg.BackupName `json:"DeltaFrom"`
	// Root is the full backup at the chain's start; empty in a catch-up
	// backup.
	Root pg.BackupName `json:"DeltaFullName"`
	// Count is 1 for the first increment after a full backup.
	Count int `json:"DeltaCount"`
}

// ErrIncrementMembers marks a sentinel that has some but not all of the four
// members that tie an increment to its parent. Such a backup is neither full
// nor restorable as an increment.
var ErrIncrementMembers = errors.New("members DeltaLSN, DeltaFrom, DeltaFullName and DeltaCount must be all present or all absent")

// ParseSentinel reads a sentinel. It accepts the minimal and WAL-E forms; see
// FORMAT.md. The tablespace spec is read, not validated.
func ParseSentinel(document []byte) (*Sentinel, error) {
	s := new(Sentinel)
	if err := json.Unmarshal(document, s); err != nil {
		return nil, fmt.Errorf("parse sentinel: %w", err)
	}
	if err := s.checkIncrement(document); err != nil {
		return nil, fmt.Errorf("parse sentinel: %w", err)
	}
	return s, nil
}

// checkIncrement settles Increment from the presence of the four members,
// which the decoded values cannot tell: an empty DeltaFrom is present.
func (s *Sentinel) checkIncrement(document []byte) error {
	var present struct {
		DeltaLSN, DeltaFrom, DeltaFullName, DeltaCount *json.RawMessage
	}
	if err := json.Unmarshal(document, &present); err != nil {
		return err
	}
	n := 0
	for _, m := range []*json.RawMessage{present.DeltaLSN, present.DeltaFrom, present.DeltaFullName, present.DeltaCount} {
		if m != nil {
			n++
		}
	}
	switch n {
	case 0:
		s.Increment = nil
		return nil
	case 4:
		return nil
	}
	return ErrIncrementMembers
}

// Encode is the document as stored: one line, no final newline.
func (s *Sentinel) Encode() ([]byte, error) {
	w := *s
	w.Version = SentinelVersion
	w.DateFmt = DateFmt
	w.StartTime, w.FinishTime = RoundUp(s.StartTime), RoundUp(s.FinishTime)
	b, err := json.Marshal(&w)
	if err != nil {
		return nil, fmt.Errorf("encode sentinel: %w", err)
	}
	return b, nil
}

// Metadata is the metadata.json that goes with the sentinel.
func (s *Sentinel) Metadata() *Metadata {
	m := &Metadata{
		StartTime: s.StartTime, FinishTime: s.FinishTime, DateFmt: s.DateFmt,
		Hostname: s.Hostname, DataDir: s.DataDir, PgVersion: s.PgVersion,
		IsPermanent: s.IsPermanent, SystemIdentifier: s.SystemIdentifier,
		UncompressedSize: s.UncompressedSize, CompressedSize: s.CompressedSize,
		UserData: s.UserData,
	}
	if s.LSN != nil {
		m.StartLSN = *s.LSN
	}
	if s.FinishLSN != nil {
		m.FinishLSN = *s.FinishLSN
	}
	return m
}
