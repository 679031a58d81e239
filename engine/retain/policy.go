package retain

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
)

// Refusals, for errors.Is. An unknown or ambiguous name is
// catalog.ErrNotFound or catalog.ErrAmbiguous.
var (
	ErrUsage       = errors.New("invalid delete command")
	ErrCount       = errors.New("the number of backups to keep must be at least 1")
	ErrModifiers   = errors.New("contradictory modifiers")
	ErrTime        = errors.New("not a time with a zone")
	ErrFuture      = errors.New("the time is in the future")
	ErrLatest      = errors.New("LATEST is not allowed here")
	ErrIncrement   = errors.New("the backup is an increment")
	ErrPermanent   = errors.New("the backup is permanent")
	ErrDependants  = errors.New("other backups are built on the backup")
	ErrBroken      = errors.New("what the increment is built on is not there, or is another backup by now: it cannot be restored")
	ErrInUse       = errors.New("the backup is in use")
	ErrOrder       = errors.New("the order of the names and the order of the start times disagree")
	ErrSegmentSize = errors.New("the WAL segment size is not the cluster's")
)

// Mode is what kind of backup a policy ends at.
type Mode int

// The modes.
const (
	// Any takes the backup as found and refuses an increment.
	Any Mode = iota
	// Full counts full backups only.
	Full
	// FindFull goes on to the next older full backup.
	FindFull
)

// Limit is a position in the history of backups: a time or a name. The zero
// Limit is none.
type Limit struct {
	Time time.Time
	// Name is a backup's name or the beginning of exactly one.
	Name string
}

// IsZero reports whether there is no limit.
func (l Limit) IsZero() bool { return l.Time.IsZero() && l.Name == "" }

// Policy is one of Retain, Before, Target, Everything, Garbage and Window.
type Policy interface {
	// check refuses what is wrong without looking at any backup.
	check(now time.Time) error
}

// Retain keeps the newest Count backups and all made After.
type Retain struct {
	Count int
	Mode  Mode
	After Limit
}

// Before deletes all that is older than a backup, which stays.
type Before struct {
	Limit    Limit
	FindFull bool
}

// Target deletes one backup, by name, LATEST or user data. It leaves WAL
// alone.
type Target struct {
	Name     string
	UserData manifest.UserData
	// FindFull deletes the whole family: the full backup and all that is
	// built on it.
	FindFull bool
	// Dependants deletes all that is built on the backup as well; without
	// it, and without FindFull, such a backup is refused.
	Dependants bool
	// Storage limits it to the copy in one storage; empty: all copies.
	Storage string
}

// Everything deletes all backups and WAL. Permanent backups, and those in use
// or in the making, are refused unless Force.
type Everything struct{ Force bool }

// Scope is what Garbage looks at.
type Scope int

// The scopes.
const (
	AllGarbage Scope = iota
	Archives         // WAL only
	Backups          // leftovers of base backups only
)

// Garbage deletes what no listed backup uses: WAL that no backup leads to,
// leftovers of backups that failed or were deleted in part, history files
// that nothing needs.
type Garbage struct {
	Scope Scope
	// WithoutBackupCheck goes on when there is no backup that is not
	// permanent: then all but permanent backups and what is in the making
	// is garbage.
	WithoutBackupCheck bool
	// Window is the promise of a Window policy that is in force too; 0 for
	// none. Without it the WAL between a permanent backup and the first one
	// that is not permanent is garbage.
	Window time.Duration
}

// Window keeps all that is needed to recover to any moment of the last Length.
type Window struct{ Length time.Duration }

// DefaultSafetyAge is how long a backup that nobody finished is taken to be in
// the making after its last object was stored.
const DefaultSafetyAge = 24 * time.Hour

// Lease tells that a backup is in use: it is being made, restored or copied.
type Lease struct {
	// ID names the backup; an empty storage means any, an empty folder
	// BaseBackups. It need not have any object yet.
	ID catalog.BackupID
	// Holder says who uses it, for the reason.
	Holder string
}

// Options are what a plan needs to know besides the policy.
type Options struct {
	// UseStartTime orders backups by the start time in their documents
	// instead of timeline and segment.
	UseStartTime bool
	// SafetyAge protects what is younger and may be in the making; 0 is
	// DefaultSafetyAge. Negative turns protection by age off: only
	// leases and the position behind the newest backup then protect.
	SafetyAge time.Duration
	// Current is the cluster's timeline; 0: the highest one known.
	Current pg.Timeline
	// Leases are those held when the inventory was taken or later.
	Leases []Lease
}

func (o Options) safetyAge() time.Duration {
	if o.SafetyAge == 0 {
		return DefaultSafetyAge
	}
	return max(o.SafetyAge, 0)
}

func (p Retain) check(now time.Time) error {
	if p.Count < 1 {
		return fmt.Errorf("retain %d: %w; delete everything removes all", p.Count, ErrCount)
	}
	return p.After.check("--after", now)
}

func (p Before) check(now time.Time) error {
	if p.Limit.IsZero() {
		return fmt.Errorf("delete before: %w: want a backup's name or a time", ErrUsage)
	}
	return p.Limit.check("before", now)
}

func (l Limit) check(where string, now time.Time) error {
	if !l.Time.IsZero() && l.Name != "" {
		return fmt.Errorf("%s: %w: a time and a name", where, ErrModifiers)
	}
	if l.Name == catalog.LatestName {
		return fmt.Errorf("%s LATEST: %w; give the backup's name (see backup-list)", where, ErrLatest)
	}
	if l.Time.After(now) {
		return fmt.Errorf("%s %s: %w (it is %s)", where, l.Time.Format(time.RFC3339), ErrFuture, now.UTC().Format(time.RFC3339))
	}
	return nil
}

func (p Target) check(time.Time) error {
	switch {
	case p.Name == "" && len(p.UserData) == 0:
		return fmt.Errorf("delete target: %w: want a backup's name or user data", ErrUsage)
	case p.Name != "" && len(p.UserData) > 0:
		return fmt.Errorf("delete target: %w: a name and user data", ErrModifiers)
	}
	return nil
}

func (Everything) check(time.Time) error { return nil }

func (p Garbage) check(time.Time) error {
	if p.Window < 0 {
		return fmt.Errorf("delete garbage: %w: negative window %s", ErrUsage, p.Window)
	}
	return nil
}

func (p Window) check(time.Time) error {
	if p.Length <= 0 {
		return fmt.Errorf("retain a window of %s: %w: want a positive length such as 14d", p.Length, ErrUsage)
	}
	return nil
}

// Flags are the flags of a delete command that belong to the policy.
type Flags struct {
	After              string // retain --after
	UserData           string // target --target-user-data
	WithoutBackupCheck bool   // garbage --without-backup-check
	Window             string // retain --window
}

// Parse reads a delete command: its verb, the words after it and its flags.
// A target takes those that depend on it along, as the command always did.
// Words that are not understood are refused, never skipped.
func Parse(verb string, words []string, f Flags) (Policy, error) {
	p, err := parse(verb, words, f)
	if err != nil {
		return nil, fmt.Errorf("delete %s: %w", strings.TrimSpace(verb+" "+strings.Join(words, " ")), err)
	}
	return p, nil
}

func parse(verb string, words []string, f Flags) (Policy, error) {
	switch {
	case f.After != "" && verb != "retain",
		f.Window != "" && verb != "retain" && verb != "garbage",
		f.UserData != "" && verb != "target",
		f.WithoutBackupCheck && verb != "garbage":
		return nil, fmt.Errorf("%w: a flag of another delete command", ErrModifiers)
	}
	switch verb {
	case "retain":
		return parseRetain(words, f)
	case "before":
		find, words := cutWord(words, "FIND_FULL")
		if len(words) != 1 {
			return nil, fmt.Errorf("%w: want [FIND_FULL] and a backup's name or a time", ErrUsage)
		}
		if words[0] == "FULL" {
			return nil, fmt.Errorf("%w: before knows no FULL, only FIND_FULL", ErrModifiers)
		}
		l, err := ParseLimit(words[0])
		return Before{Limit: l, FindFull: find}, err
	case "target":
		find, words := cutWord(words, "FIND_FULL")
		data, err := manifest.ParseUserData(f.UserData)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUsage, err)
		}
		if len(words) > 1 {
			return nil, fmt.Errorf("%w: want [FIND_FULL] and one backup's name", ErrUsage)
		}
		p := Target{UserData: data, FindFull: find, Dependants: true}
		if len(words) == 1 {
			p.Name = words[0]
		}
		return p, p.check(time.Time{})
	case "everything":
		force, words := cutWord(words, "FORCE")
		if len(words) > 0 {
			return nil, fmt.Errorf("%w: want nothing or FORCE", ErrUsage)
		}
		return Everything{Force: force}, nil
	case "garbage":
		p := Garbage{WithoutBackupCheck: f.WithoutBackupCheck}
		switch strings.Join(words, " ") {
		case "":
		case "ARCHIVES":
			p.Scope = Archives
		case "BACKUPS":
			p.Scope = Backups
		default:
			return nil, fmt.Errorf("%w: want nothing, ARCHIVES or BACKUPS", ErrModifiers)
		}
		var err error
		if f.Window != "" {
			p.Window, err = ParseWindow(f.Window)
		}
		return p, err
	}
	return nil, fmt.Errorf("%w: want retain, before, target, everything or garbage", ErrUsage)
}

func cutWord(words []string, w string) (bool, []string) {
	if len(words) > 0 && words[0] == w {
		return true, words[1:]
	}
	return false, words
}

func parseRetain(words []string, f Flags) (Policy, error) {
	if f.Window != "" {
		if len(words) > 0 || f.After != "" {
			return nil, fmt.Errorf("%w: --window stands alone", ErrModifiers)
		}
		d, err := ParseWindow(f.Window)
		return Window{Length: d}, err
	}
	var p Retain
	switch {
	case len(words) == 2 && words[0] == "FULL":
		p.Mode = Full
	case len(words) == 2 && words[0] == "FIND_FULL":
		p.Mode = FindFull
	case len(words) != 1:
		return nil, fmt.Errorf("%w: want [FULL|FIND_FULL] and a number", ErrUsage)
	}
	n, err := strconv.Atoi(words[len(words)-1])
	if err != nil {
		return nil, fmt.Errorf("%w: %q is not a number of backups", ErrUsage, words[len(words)-1])
	}
	if n < 1 {
		return nil, ErrCount
	}
	p.Count = n
	if f.After != "" {
		if p.After, err = ParseLimit(f.After); err != nil {
			return nil, fmt.Errorf("--after: %w", err)
		}
	}
	return p, nil
}

// ParseLimit reads an RFC 3339 time with a zone, or the beginning of a
// backup's name. A time without a zone is ErrTime: taken for a name, it would
// limit nothing.
func ParseLimit(s string) (Limit, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return Limit{Time: t}, nil
	}
	if s == catalog.LatestName {
		return Limit{}, ErrLatest
	}
	if !strings.HasPrefix(s, "b") {
		return Limit{}, fmt.Errorf("%q: %w, as 2026-11-22T12:00:00Z or ...+01:00, nor a backup's name", s, ErrTime)
	}
	return Limit{Name: s}, nil
}

// ParseWindow reads a length of time as time.ParseDuration does, and whole
// days (14d) and weeks (2w).
func ParseWindow(s string) (time.Duration, error) {
	unit := time.Duration(0)
	number := s
	if n, ok := strings.CutSuffix(s, "d"); ok {
		number, unit = n, 24*time.Hour
	} else if n, ok := strings.CutSuffix(s, "w"); ok {
		number, unit = n, 7*24*time.Hour
	}
	var d time.Duration
	var err error
	if unit > 0 {
		var n uint64
		// 16 bits of weeks are within a Duration's 292 years only nearly.
		if n, err = strconv.ParseUint(number, 10, 16); err == nil {
			if d = time.Duration(n) * unit; d/unit != time.Duration(n) || d < 0 {
				err = errors.New("too long")
			}
		}
	} else {
		d, err = time.ParseDuration(s)
	}
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("window %q: %w: want a positive length such as 14d, 2w or 36h", s, ErrUsage)
	}
	return d, nil
}
