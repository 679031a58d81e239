package messages

import (
	"fmt"
	"time"
)

// KindExpire is a job that deletes.
const KindExpire Kind = "expire"

// The events of a delete. Object is the command; Objects of ExpireDone is how
// many objects went.
const (
	ExpireDone   EventName = "expire.done"
	ExpireFailed EventName = "expire.failed"
)

// ExpireCommand is a delete command. It says what is wanted, never which
// objects: the worker makes the plan of what it finds.
type ExpireCommand struct {
	// Verb and Words are the command line behind "delete".
	Verb  string   `json:"verb"`
	Words []string `json:"words,omitempty"`
	// The command's flags.
	After              string `json:"after,omitempty"`
	UserData           string `json:"user_data,omitempty"`
	Window             string `json:"window,omitempty"`
	WithoutBackupCheck bool   `json:"without_backup_check,omitempty"`
	UseSentinelTime    bool   `json:"use_sentinel_time,omitempty"`
}

// ExpireJob asks a worker to carry out delete commands, one after the other;
// one that is refused or fails ends the job.
type ExpireJob struct {
	Commands []ExpireCommand `json:"commands"`
	// JSON asks for the plan as JSON, LogLevel for the lines that the asker
	// wants to see (WALG_LOG_LEVEL).
	JSON     bool   `json:"json,omitempty"`
	LogLevel string `json:"log_level,omitempty"`
	// BeginBy is when it is too late to begin: whoever asked has given up.
	BeginBy time.Time `json:"begin_by"`
	// Reply is the subject that awaits ExpireReply messages; empty when
	// nobody waits.
	Reply string `json:"reply,omitempty"`
}

// Check holds a job against the cluster whose worker got it. The command
// itself is for engine/retain to judge.
func (j ExpireJob) Check(c Cluster) error {
	if len(j.Commands) == 0 || len(j.Commands) > 16 {
		return fmt.Errorf("%w: a job of %d delete commands", ErrMalformed, len(j.Commands))
	}
	for _, command := range j.Commands {
		if len(command.Words) > 8 {
			return fmt.Errorf("%w: a delete command of %d words", ErrMalformed, len(command.Words))
		}
	}
	if j.Reply == "" {
		return nil
	}
	return checkSubject("reply", j.Reply, ReplySubject(c, ""), 1)
}

// ExpireReply is a piece of what a delete has to say.
type ExpireReply struct {
	// Attempt and Part number the pieces: a gap is one that was lost. The
	// next attempt begins with part 0.
	Attempt int `json:"attempt"`
	Part    int `json:"part"`
	// Out is the stream that Data is for: "stdout", "stderr".
	Out  string `json:"out,omitempty"`
	Data []byte `json:"data,omitempty"`
	// Final: it is over; Error is why it failed or was refused.
	Final   bool   `json:"final,omitempty"`
	Error   string `json:"error,omitempty"`
	Deleted uint64 `json:"deleted,omitempty"`
}
