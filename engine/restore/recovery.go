package restore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
)

// ErrTarget: a recovery target that PostgreSQL could not reach from the backup.
var ErrTarget = errors.New("recovery target cannot be reached")

const (
	signalPath   = "recovery.signal"
	standbyPath  = "standby.signal"
	autoConfPath = "postgresql.auto.conf"
	maxPointName = 63 // MAXFNAMELEN-1 of PostgreSQL
	maxAutoConf  = 16 << 20
)

// Recovery is the recovery that PostgreSQL is told to do when it starts on the
// restored directory: by recovery.signal and in postgresql.auto.conf, which
// wins over postgresql.conf. At most one of Time, LSN, Name, XID and Immediate
// may be set; none is recovery to the end of the archived WAL.
type Recovery struct {
	// RestoreCommand is restore_command, for a shell, with %f and %p.
	RestoreCommand string
	// Time to recover to; ParseTargetTime reads one.
	Time time.Time
	// LSN to recover to; 0 is none.
	LSN pg.LSN
	// Name of a point made by pg_create_restore_point.
	Name string
	// XID is a transaction, in decimal.
	XID string
	// Immediate ends recovery as soon as the backup is consistent.
	Immediate bool
	// Exclusive stops just before Time, LSN or XID, and not just after.
	Exclusive bool
	// Timeline is latest, current or a number in decimal; empty leaves
	// PostgreSQL's default, latest.
	Timeline string
	// Action at the target is pause, promote or shutdown; empty leaves
	// PostgreSQL's default, pause.
	Action string
}

// ParseTargetTime reads a moment, as in 2026-01-31 02:55:00+00. It must tell
// its zone: PostgreSQL would take the server's, which is seldom that of whoever
// types the command.
func ParseTargetTime(text string) (time.Time, error) {
	clean := strings.TrimSpace(text)
	for _, zone := range []string{"UTC", "GMT", "utc", "gmt"} {
		if rest, ok := strings.CutSuffix(clean, zone); ok {
			clean = strings.TrimSpace(rest) + "Z"
		}
	}
	for _, day := range []string{"2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02 15:04"} {
		for _, zone := range []string{"Z07:00", "Z0700", "Z07", " Z07:00", " Z0700", " Z07"} {
			if t, err := time.Parse(day+zone, clean); err == nil {
				return t, nil
			}
		}
		if _, err := time.Parse(day, clean); err == nil {
			return time.Time{}, fmt.Errorf("time %q has no zone; add one, as in %q", text, clean+"+00")
		}
	}
	return time.Time{}, fmt.Errorf("time %q is not like 2026-01-31 02:55:00+00", text)
}

// Check refuses settings that PostgreSQL would refuse, and a target which the
// backup cannot reach (ErrTarget). A backup whose end is not known reaches all.
func (r *Recovery) Check(backup pg.BackupName, s *manifest.Sentinel) error {
	var targets []string
	for _, t := range r.targets() {
		if t.value != "" {
			targets = append(targets, t.name)
		}
	}
	switch {
	case len(targets) > 1:
		return fmt.Errorf("%s: recovery has one target only", strings.Join(targets, ", "))
	case r.Exclusive && (len(targets) == 0 || r.Immediate || r.Name != ""):
		return errors.New("an exclusive end needs a time, an LSN or a transaction")
	case r.Action != "" && r.Action != "pause" && r.Action != "promote" && r.Action != "shutdown":
		return fmt.Errorf("action %q at the recovery target is not pause, promote or shutdown", r.Action)
	case r.Action != "" && len(targets) == 0:
		return errors.New("an action at the recovery target needs a target")
	case len(r.Name) > maxPointName:
		return fmt.Errorf("restore point %.80q is longer than %d bytes", r.Name, maxPointName)
	case strings.ContainsAny(r.Name+r.RestoreCommand, "\n\r\x00"):
		return errors.New("a line end in recovery settings")
	}
	if r.XID != "" {
		if _, err := strconv.ParseUint(r.XID, 10, 64); err != nil {
			return fmt.Errorf("transaction %q is not a decimal number", r.XID)
		}
	}
	if err := r.checkTimeline(backup); err != nil {
		return err
	}
	switch {
	case s == nil:
	case !r.Time.IsZero() && !s.FinishTime.IsZero() && r.Time.Before(s.FinishTime):
		return fmt.Errorf("%w: %s ended at %s, after the time to recover to, %s", ErrTarget, backup,
			s.FinishTime.UTC().Format(time.RFC3339), r.Time.UTC().Format(time.RFC3339))
	case r.LSN != 0 && s.FinishLSN != nil && r.LSN < *s.FinishLSN:
		return fmt.Errorf("%w: %s ended at %s, after the position to recover to, %s", ErrTarget, backup, *s.FinishLSN, r.LSN)
	}
	return nil
}

func (r *Recovery) checkTimeline(backup pg.BackupName) error {
	if r.Timeline == "" || r.Timeline == "latest" || r.Timeline == "current" {
		return nil
	}
	n, err := strconv.ParseUint(r.Timeline, 10, 32)
	if err != nil || n == 0 {
		return fmt.Errorf("timeline %q is not latest, current or a decimal number", r.Timeline)
	}
	if segment, ok := backup.Segment(); ok && n < uint64(segment.Timeline) {
		return fmt.Errorf("%w: %s is of timeline %d, which began after timeline %d", ErrTarget, backup, segment.Timeline, n)
	}
	return nil
}

type confLine struct{ name, value string }

// targets are the settings of which one may have a value.
func (r *Recovery) targets() []confLine {
	all := []confLine{{"recovery_target", ""}, {"recovery_target_time", ""}, {"recovery_target_lsn", ""}, {"recovery_target_name", r.Name}, {"recovery_target_xid", r.XID}}
	if r.Immediate {
		all[0].value = "immediate"
	}
	if !r.Time.IsZero() {
		all[1].value = r.Time.Format("2006-01-02 15:04:05.999999-07:00")
	}
	if r.LSN != 0 {
		all[2].value = r.LSN.String()
	}
	return all
}

// lines are the settings in the order to write. Targets without a value come
// first and are emptied: one that is left in postgresql.conf from an earlier
// recovery would otherwise be a second one, on which PostgreSQL refuses to
// start.
func (r *Recovery) lines() []confLine {
	lines := []confLine{{"restore_command", r.RestoreCommand}}
	var target []confLine
	for _, t := range r.targets() {
		if t.value == "" {
			lines = append(lines, t)
		} else {
			target = append(target, t)
		}
	}
	lines = append(lines, target...)
	inclusive, timeline, action := "on", r.Timeline, r.Action
	if r.Exclusive {
		inclusive = "off"
	}
	if timeline == "" {
		timeline = "latest"
	}
	if action == "" {
		action = "pause"
	}
	return append(lines, confLine{"recovery_target_inclusive", inclusive}, confLine{"recovery_target_timeline", timeline}, confLine{"recovery_target_action", action})
}

// Edit gives a postgresql.auto.conf the settings of the recovery, in place of
// those it has.
func (r *Recovery) Edit(conf []byte) []byte {
	lines := r.lines()
	ours := map[string]bool{}
	for _, l := range lines {
		ours[l.name] = true
	}
	var out bytes.Buffer
	for line := range bytes.Lines(conf) {
		name, _, _ := bytes.Cut(bytes.TrimSpace(line), []byte("="))
		if fields := bytes.Fields(name); len(fields) > 0 && ours[strings.ToLower(string(fields[0]))] {
			continue
		}
		out.Write(line)
	}
	if b := out.Bytes(); len(b) > 0 && b[len(b)-1] != '\n' {
		out.WriteByte('\n')
	}
	for _, l := range lines {
		fmt.Fprintf(&out, "%s = %s\n", l.name, quoteConf(l.value))
	}
	return out.Bytes()
}

// quoteConf is a value in PostgreSQL's configuration files.
func quoteConf(s string) string {
	return "'" + strings.NewReplacer(`'`, `''`, `\`, `\\`).Replace(s) + "'"
}

// checkRecovery refuses recovery settings that do not fit the plan.
func (p *Plan) checkRecovery(s *manifest.Sentinel) error {
	if p.Recovery == nil {
		return nil
	}
	if !p.Keep.wants(controlPath) || !p.Keep.wants(labelPath) {
		return errors.New("recovery settings: a masked restore is not for starting a server")
	}
	return p.Recovery.Check(p.Backup, s)
}

// writeRecovery writes the recovery settings, after everything from the
// archive.
func (t *target) writeRecovery() error {
	r := t.plan.Recovery
	if r == nil {
		return nil
	}
	if err := t.journal.recovery(); err != nil {
		return err
	}
	var old []byte
	mode := fs.FileMode(0o600)
	f, err := t.root.Open(autoConfPath)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		info, serr := f.Stat()
		old, err = io.ReadAll(io.LimitReader(f, maxAutoConf+1))
		if err = errors.Join(serr, err, f.Close()); err != nil {
			return err
		}
		if len(old) > maxAutoConf {
			return fmt.Errorf("%s is longer than %d bytes", autoConfPath, maxAutoConf)
		}
		mode = info.Mode()
	}
	if err := t.put(autoConfPath, mode, r.Edit(old)); err != nil {
		return err
	}
	if err := t.put(signalPath, 0o600, nil); err != nil {
		return err
	}
	// With both, PostgreSQL would become a standby and never end recovery.
	if err := t.root.Remove(standbyPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// newName is the file that is written to take another's place.
const newName = MarkerName + ".new"

// put writes a file in place of what has its name: whole or not at all, for what
// an interrupted restore has cut, the next would take for the cluster's.
func (t *target) put(name string, mode fs.FileMode, content []byte) error {
	f, err := t.create(newName, mode, true)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Close()); err == nil {
		err = t.root.Rename(newName, name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", name, err), t.root.Remove(newName))
	}
	return nil
}
