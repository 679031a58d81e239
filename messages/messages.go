// Package messages is what walherd says on the wire: the envelope, the kinds
// of job, their bodies, the conversation between a backup and the workers that
// store its parts, and the events. It knows nothing of NATS; the packages
// below it carry what is declared here (topology, bus, transit, broker).
//
// A control message is JSON in an envelope with a major version. Unknown
// members are ignored, so that fields can be added; an unknown version is
// rejected for good (ErrVersion), never guessed at.
package messages

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/walherd/walherd/engine/pg"
)

// Version is the major version of every control message.
const Version = 1

// Kind names a kind of job; it is also a token of the job's subject.
type Kind string

// The kinds of job of this version.
const (
	KindArchive Kind = "archive" // store one WAL file
	KindPart    Kind = "part"    // store one object of a backup
	KindCommit  Kind = "commit"  // check a backup's objects and make it visible
)

// Kinds lists every kind.
func Kinds() []Kind { return []Kind{KindArchive, KindPart, KindCommit, KindExpire} }

var (
	// ErrVersion marks a message of another major version.
	ErrVersion = errors.New("message version not understood")
	// ErrMalformed marks a message that no retry will mend.
	ErrMalformed = errors.New("malformed message")
)

// Cluster names one PostgreSQL cluster to the broker: a token of subjects.
type Cluster string

// ParseCluster checks a cluster's name.
func ParseCluster(s string) (Cluster, error) {
	// No regular expression: it was compiled at every start of the program, for
	// 1 ms of the 30.
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
	if len(s) < 1 || len(s) > 64 || strings.Trim(s, letters) != "" {
		return "", fmt.Errorf("cluster name %q: want 1 to 64 of A-Z a-z 0-9 _ - (WALHERD_CLUSTER)", s)
	}
	return Cluster(s), nil
}

// Envelope is the frame of every control message.
type Envelope struct {
	Version int             `json:"v"`
	Kind    Kind            `json:"kind"`
	Cluster Cluster         `json:"cluster"`
	At      time.Time       `json:"at"`
	Body    json.RawMessage `json:"body"`
}

// Encode wraps body.
func Encode(kind Kind, c Cluster, at time.Time, body any) ([]byte, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode %s message: %w", kind, err)
	}
	return json.Marshal(Envelope{Version: Version, Kind: kind, Cluster: c, At: at.UTC(), Body: raw})
}

// Decode opens an envelope and checks its version.
func Decode(data []byte) (Envelope, error) {
	var e Envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return Envelope{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if e.Version != Version {
		return Envelope{}, fmt.Errorf("%w: got %d, this build speaks %d", ErrVersion, e.Version, Version)
	}
	if _, err := ParseCluster(string(e.Cluster)); err != nil {
		return Envelope{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return e, nil
}

// Unpack reads the body of an envelope.
func Unpack[T any](e Envelope) (T, error) {
	var body T
	if err := json.Unmarshal(e.Body, &body); err != nil {
		return body, fmt.Errorf("%w: %s body: %w", ErrMalformed, e.Kind, err)
	}
	return body, nil
}

// SeqRange is a run of stream sequence numbers, both ends included.
type SeqRange struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// Ref says where the bytes of one transfer are to be had. What Carrier the
// members belong to is told by Carrier; a receiver that does not have that
// carrier rejects the job.
type Ref struct {
	Carrier string `json:"carrier"`
	// ID names the transfer: a subject, or a slot in a process's memory.
	ID string `json:"id"`
	// Seqs are the stored chunks of a deposited transfer, in order.
	Seqs []SeqRange `json:"seqs,omitempty"`
	// Size in bytes and SHA256 (lower-case hex) of the whole, if known before
	// the bytes are read.
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256,omitempty"`
}

// ArchiveJob asks a worker to store one WAL file.
type ArchiveJob struct {
	// Name is the file's base name: a segment, a history file, a backup
	// history file or a partial segment.
	Name string `json:"name"`
	// Bytes tells where the content is.
	Bytes Ref `json:"bytes"`
	// KeepExisting: an object of this name with other content is a conflict;
	// without it the object is replaced. History files are always kept.
	KeepExisting bool `json:"keep_existing,omitempty"`
	// Reply is the subject that awaits ArchiveReply messages.
	Reply string `json:"reply,omitempty"`
	// Acknowledged: PostgreSQL was told that the file is archived when the
	// queue had it, and may have recycled it. A worker does not give such a
	// job up for a failure that can pass.
	Acknowledged bool `json:"acknowledged,omitempty"`
	// Metadata asks for the JSON object that tells Created, the time of the
	// file on its host.
	Metadata WALMetadata `json:"metadata,omitempty"`
	Created  time.Time   `json:"created,omitzero"`
	// Round counts from 0 how often a worker queued an acknowledged job anew
	// because its tries were used up.
	Round int `json:"round,omitempty"`
}

// WALMetadata is which JSON objects archived WAL gets beside it, in WAL-G's
// words; empty is none.
type WALMetadata string

const (
	// WALMetadataEach: one for each file.
	WALMetadataEach WALMetadata = "INDIVIDUAL"
	// WALMetadataBulk: one for the 16 files whose names differ in the last
	// digit alone, made when the last of them comes.
	WALMetadataBulk WALMetadata = "BULK"
)

// Reason is why a WAL file was not stored, where a program acts on it.
type Reason string

const (
	// ReasonDamaged: the queued bytes are lost or altered; the remedy is to
	// send them again.
	ReasonDamaged Reason = "damaged"
	// ReasonConflict: another content is archived under the name; sending it
	// again is no remedy.
	ReasonConflict Reason = "conflict"
)

// ArchiveReply tells the producer what became of an archive job. Several may
// come: every failed try says why, the last one has Final set.
type ArchiveReply struct {
	Name  string `json:"name"`
	Final bool   `json:"final"`
	// Object is the stored object's name, with its extension.
	Object string `json:"object,omitempty"`
	// Equal: the object was there already with the same content.
	Equal bool `json:"equal,omitempty"`
	// StoredBytes is the object's size.
	StoredBytes int64 `json:"stored_bytes,omitempty"`
	// Error is why the try failed; empty is success.
	Error string `json:"error,omitempty"`
	// Reason goes with Error where a program can act on it.
	Reason Reason `json:"reason,omitempty"`
	// Queued: the broker holds the file and the job, and nothing is stored
	// yet. Only a producer that acknowledges queued files makes such a reply.
	Queued bool `json:"queued,omitempty"`
}

// PartJob asks a worker to store one object of a backup. The bytes are not in
// the queue: the worker claims the part at the producer (Claim to Run), which
// then streams it.
type PartJob struct {
	Backup pg.BackupName `json:"backup"`
	// Part is the tar's name without the compression extension
	// ("part_001.tar"), or FilesMetadata, which is stored as it comes.
	Part string `json:"part"`
	// Run is the subject on which the producer answers for this backup.
	Run string `json:"run"`
	// Copy, if set, is the object that holds the same entries: the worker
	// copies it inside the storage (WhatCopying), and claims the part only if
	// the object is not there any more. A worker that does not know the member
	// claims the part.
	Copy *PartSource `json:"copy,omitempty"`
}

// PartSource names a part of an earlier backup, with its extension.
type PartSource struct {
	Backup pg.BackupName `json:"backup"`
	Object string        `json:"object"`
}

// FilesMetadata is the part that is no tar but a backup's list of files.
const FilesMetadata = "files_metadata.json"

// Say is one message from a worker to the producer of a running backup.
type Say struct {
	Version int    `json:"v"`
	What    What   `json:"what"`
	Part    string `json:"part"`
	Worker  string `json:"worker"`
	// Attempt is the producer's number for the transfer; 0 in a claim.
	Attempt int `json:"attempt,omitempty"`
	// Object, StoredBytes, RawBytes: with WhatStored.
	Object      string `json:"object,omitempty"`
	StoredBytes int64  `json:"stored_bytes,omitempty"`
	RawBytes    int64  `json:"raw_bytes,omitempty"`
	// Error: with WhatFailed, the reason; Final when no try is left.
	Error string `json:"error,omitempty"`
	Final bool   `json:"final,omitempty"`
}

// What a worker says.
type What string

// Claim a part, report it stored, report it failed. Copying, without an
// attempt, claims a part that is to be copied; with one it says that the worker
// is still at it. Committed and failed also
// answer for the commit job, with Part "commit".
const (
	WhatClaim     What = "claim"
	WhatCopying   What = "copying"
	WhatStored    What = "stored"
	WhatFailed    What = "failed"
	WhatCommitted What = "committed"
)

// Answer is the producer's reply to a Say.
type Answer struct {
	Verdict Verdict `json:"verdict"`
	// Attempt and Bytes: with VerdictGo.
	Attempt int `json:"attempt,omitempty"`
	Bytes   Ref `json:"bytes"`
}

// Verdict is what the worker is to do.
type Verdict string

const (
	// VerdictGo: the bytes are coming; or, to a report: noted.
	VerdictGo Verdict = "go"
	// VerdictDone: the part is stored already; drop the job.
	VerdictDone Verdict = "done"
	// VerdictGone: the backup is over; drop the job.
	VerdictGone Verdict = "gone"
)

// StoredObject is one object that a commit demands to find.
type StoredObject struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// CommitJob makes a backup visible: every object must be there with its size,
// then metadata.json is written, then the sentinel.
type CommitJob struct {
	Backup pg.BackupName `json:"backup"`
	// Objects are the tars, by name with extension, and FilesMetadata.
	Objects  []StoredObject  `json:"objects"`
	Metadata json.RawMessage `json:"metadata"`
	Sentinel json.RawMessage `json:"sentinel"`
	// Run is the subject on which the producer listens.
	Run string `json:"run"`
}

// Event is a fact, published after it happened.
type Event struct {
	Version int       `json:"v"`
	Cluster Cluster   `json:"cluster"`
	What    EventName `json:"what"`
	At      time.Time `json:"at"`
	// Object is what the event is about: a WAL file, a backup, a part.
	Object string `json:"object"`
	Worker string `json:"worker,omitempty"`
	Bytes  int64  `json:"bytes,omitempty"`
	// Objects: with ExpireDone.
	Objects uint64 `json:"objects,omitempty"`
	Error   string `json:"error,omitempty"`
	// File, SHA256 and Reason: with WALStored and WALFailed. File is the base
	// name that PostgreSQL gave, SHA256 (lower-case hex) that of the file as it
	// was sent; empty if the carrier knows none.
	File   string `json:"file,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
	Reason Reason `json:"reason,omitempty"`
}

// EventName names a fact; it ends the event's subject.
type EventName string

// The events of this version.
const (
	WALStored      EventName = "wal.stored"
	WALFailed      EventName = "wal.failed"
	BackupStarted  EventName = "backup.started"
	PartStored     EventName = "part.stored"
	BackupFinished EventName = "backup.finished"
	BackupFailed   EventName = "backup.failed"
	VerifyPassed   EventName = "verify.passed"
	VerifyFailed   EventName = "verify.failed"
	WorkerJoined   EventName = "worker.joined"
	WorkerLeft     EventName = "worker.left"
)

// EncodeEvent prints an event; Version and At are filled in.
func EncodeEvent(e Event, at time.Time) ([]byte, error) {
	e.Version, e.At = Version, at.UTC()
	data, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode event %s: %w", e.What, err)
	}
	return data, nil
}
