package expire

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/walherd/walherd/engine/retain"
	"github.com/walherd/walherd/engine/telemetry"
)

// The lines that scripts know from WAL-G.
const (
	lineMarked  = "Object marked for deletion: "
	lineDry     = "Dry run: objects would be deleted count=%d, Run with --confirm to execute"
	lineDone    = "Objects deleted successfully: count=%d"
	lineNothing = "No objects matched the deletion criteria."
)

// Tell logs what a plan deletes, each object with its reason, and what a
// person should look at.
func Tell(log *slog.Logger, pl *retain.Plan) {
	for _, w := range pl.Warnings {
		log.Warn(w)
	}
	if pl.Note != "" {
		log.Info(pl.Note)
	}
	for _, d := range pl.Backups {
		if !d.Delete {
			log.Debug("Backup stays: "+d.Backup.ID.String(), telemetry.KeyReason, d.Reason.Text)
		}
	}
	for s := range pl.Steps() {
		log.Info(lineMarked+s.Key, telemetry.KeyStorage, s.Storage, telemetry.KeyReason, s.Reason.Text)
	}
	for _, u := range pl.Uploads {
		log.Info(lineMarked+u.Name, telemetry.KeyStorage, u.Storage, telemetry.KeyReason, "an upload that nobody has finished since "+u.Moved.UTC().Format(time.RFC3339))
	}
}

// TellEnd logs how a command ended: dry, or with so many objects deleted.
func TellEnd(log *slog.Logger, dry bool, objects uint64) {
	switch {
	case objects == 0:
		log.Info(lineNothing)
	case dry:
		log.Info(fmt.Sprintf(lineDry, objects))
	default:
		log.Info(fmt.Sprintf(lineDone, objects))
	}
}

// Count is how many objects a plan deletes, and unfinished uploads.
func Count(pl *retain.Plan) (n uint64) {
	for _, c := range pl.Objects() {
		n += c
	}
	return n + uint64(len(pl.Uploads))
}

// The plan as JSON. Members are added, never renamed.
type (
	planJSON struct {
		Command  string        `json:"command"`
		Confirm  bool          `json:"confirm"`
		Note     string        `json:"note,omitempty"`
		Warnings []string      `json:"warnings"`
		Count    uint64        `json:"count"`
		Phases   phasesJSON    `json:"phases"`
		Foreign  uint64        `json:"foreign_objects"`
		Backups  []backupJSON  `json:"backups"`
		WAL      []walJSON     `json:"wal"`
		History  []historyJSON `json:"histories"`
		Uploads  []uploadJSON  `json:"unfinished_uploads"`
	}
	phasesJSON struct {
		Sentinels uint64 `json:"sentinels"`
		Parts     uint64 `json:"parts"`
		Documents uint64 `json:"documents"`
		WAL       uint64 `json:"wal"`
		Rest      uint64 `json:"rest"`
	}
	whyJSON struct {
		Delete bool        `json:"delete"`
		Code   retain.Code `json:"code"`
		Reason string      `json:"reason"`
	}
	backupJSON struct {
		Name      string     `json:"backup_name"`
		Storage   string     `json:"storage_name"`
		Folder    string     `json:"folder"`
		Listed    bool       `json:"has_sentinel"`
		Permanent bool       `json:"is_permanent"`
		Modified  *time.Time `json:"time,omitempty"`
		whyJSON
	}
	walJSON struct {
		Storage string `json:"storage_name"`
		First   string `json:"first"`
		Last    string `json:"last"`
		Objects uint64 `json:"objects"`
		whyJSON
	}
	historyJSON struct {
		Storage string `json:"storage_name"`
		Object  string `json:"object"`
		whyJSON
	}
	uploadJSON struct {
		Storage string    `json:"storage_name"`
		Object  string    `json:"object"`
		ID      string    `json:"id,omitempty"`
		Moved   time.Time `json:"time"`
	}
	objectJSON struct {
		Stage   int         `json:"stage"`
		Phase   string      `json:"phase"`
		Storage string      `json:"storage_name"`
		Object  string      `json:"object"`
		Code    retain.Code `json:"code"`
	}
)

func why(del bool, r retain.Reason) whyJSON { return whyJSON{del, r.Code, r.Text} }

// WriteJSON prints the plan as one JSON object: the decision on every backup,
// stretch of WAL and history file with its reason, then, last, the objects to
// delete in their order. These are not kept in memory.
func WriteJSON(w io.Writer, c Command, confirm bool, pl *retain.Plan) error {
	count := pl.Objects()
	doc := planJSON{
		Command: c.String(), Confirm: confirm, Note: pl.Note, Warnings: pl.Warnings, Count: Count(pl), Foreign: pl.Foreign,
		Phases: phasesJSON{count[retain.Sentinels], count[retain.Parts], count[retain.Documents], count[retain.WALObjects], count[retain.Rest]},
		// Never null: a reader need not look.
		Backups: []backupJSON{}, WAL: []walJSON{}, History: []historyJSON{}, Uploads: []uploadJSON{},
	}
	if doc.Warnings == nil {
		doc.Warnings = []string{}
	}
	for _, d := range pl.Backups {
		b := backupJSON{
			Name: string(d.Backup.ID.Name), Storage: d.Backup.ID.Storage, Folder: string(d.Backup.ID.Folder), Listed: d.Backup.Listed,
			Permanent: d.Backup.Details.Permanent, whyJSON: why(d.Delete, d.Reason),
		}
		if d.Backup.Listed {
			b.Modified = &d.Backup.Modified
		}
		doc.Backups = append(doc.Backups, b)
	}
	for _, d := range pl.WAL {
		doc.WAL = append(doc.WAL, walJSON{d.Storage, d.First.String(), d.Last.String(), d.Objects, why(d.Delete, d.Reason)})
	}
	for _, d := range pl.Histories {
		doc.History = append(doc.History, historyJSON{d.File.Storage, d.File.Key(), why(d.Delete, d.Reason)})
	}
	for _, u := range pl.Uploads {
		doc.Uploads = append(doc.Uploads, uploadJSON{u.Storage, u.Name, u.ID, u.Moved})
	}
	head, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("encode the plan: %w", err)
	}
	out := bufio.NewWriterSize(w, 64<<10)
	out.Write(head[:len(head)-1]) // an error stays in out until Flush
	out.WriteString(`,"objects":[`)
	first := true
	for s := range pl.Steps() {
		line, err := json.Marshal(objectJSON{s.Stage, s.Phase.String(), s.Storage, s.Key, s.Reason.Code})
		if err != nil {
			return fmt.Errorf("encode the plan: %w", err)
		}
		if !first {
			out.WriteByte(',')
		}
		first = false
		out.WriteByte('\n')
		out.Write(line)
	}
	out.WriteString("]}\n")
	if err := out.Flush(); err != nil {
		return fmt.Errorf("print the plan: %w", err)
	}
	return nil
}
