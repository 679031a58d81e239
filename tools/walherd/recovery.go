package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/restore"
	"github.com/walherd/walherd/storage/repo"
	"github.com/walherd/walherd/tools/walherd/settings"
)

// recoveryFlags ask for recovery settings.
type recoveryFlags struct {
	recover              bool
	time, lsn, name, xid string
	immediate, inclusive bool
	timeline, action     string
	changed              func(flag string) bool
}

// asking are the flags each of which asks for recovery settings; the others
// only change them.
var asking = [...]string{
	"recover", "timeline", "recovery-target-time", "recovery-target-lsn", "recovery-target-name", "recovery-target-xid", "recovery-target-immediate",
}

func (r *recoveryFlags) register(f *pflag.FlagSet) {
	f.BoolVar(&r.recover, "recover", false, "write recovery settings: recovery.signal and restore_command")
	f.StringVar(&r.time, "recovery-target-time", "", "as --recover, up to this moment, with its zone: 2026-01-31 02:55:00+00")
	f.StringVar(&r.lsn, "recovery-target-lsn", "", "as --recover, up to this WAL position")
	f.StringVar(&r.name, "recovery-target-name", "", "as --recover, up to this restore point")
	f.StringVar(&r.xid, "recovery-target-xid", "", "as --recover, up to this transaction")
	f.BoolVar(&r.immediate, "recovery-target-immediate", false, "as --recover, up to the end of the backup")
	f.BoolVar(&r.inclusive, "recovery-target-inclusive", true, "stop after the target, or (=false) just before it")
	f.StringVar(&r.timeline, "timeline", "", "as --recover, along this timeline: latest (default), current, or a number")
	f.StringVar(&r.action, "recovery-target-action", "", "what to do at the target: pause (default), promote or shutdown")
}

// recovery is what the flags ask for; nil if nothing.
func (a *app) recovery(f recoveryFlags) (*restore.Recovery, error) {
	asked := false
	for _, name := range asking {
		asked = asked || f.changed(name)
	}
	if !asked {
		for _, name := range []string{"recovery-target-action", "recovery-target-inclusive"} {
			if f.changed(name) {
				return nil, fmt.Errorf("--%s needs a recovery target, such as --recovery-target-time", name)
			}
		}
		return nil, nil
	}
	r := &restore.Recovery{
		Name: f.name, XID: f.xid, Immediate: f.immediate, Exclusive: !f.inclusive, Timeline: f.timeline, Action: f.action,
	}
	for name, value := range map[string]string{"time": f.time, "lsn": f.lsn, "name": f.name, "xid": f.xid} {
		if f.changed("recovery-target-"+name) && value == "" {
			return nil, fmt.Errorf("--recovery-target-%s is empty", name)
		}
	}
	var err error
	if f.time != "" {
		if r.Time, err = restore.ParseTargetTime(f.time); err != nil {
			return nil, fmt.Errorf("--recovery-target-time: %w", err)
		}
		if now := time.Now(); r.Time.After(now) {
			return nil, fmt.Errorf("--recovery-target-time: %s is in the future, it is %s; --recover recovers to the end of the archive",
				f.time, now.UTC().Format(time.RFC3339))
		}
	}
	if f.lsn != "" {
		if r.LSN, err = pg.ParseLSN(f.lsn); err == nil && r.LSN == 0 {
			err = errors.New("0/0 is no position")
		}
		if err != nil {
			return nil, fmt.Errorf("--recovery-target-lsn: %w", err)
		}
	}
	if r.RestoreCommand, err = a.restoreCommand(); err != nil {
		return nil, fmt.Errorf("recovery settings: %w", err)
	}
	return r, nil
}

// onlyAbsentEnds follows wal-fetch in a restore_command. PostgreSQL takes any
// exit code up to 125 for "not in the archive", and ends recovery there: a
// storage that cannot be read for a minute, or one damaged segment, would leave a
// server that is open and lacks all that came after. Above, it stops, and goes on
// at the next start.
const onlyAbsentEnds = " || exit $(($? == 74 ? 74 : 255))"

// restoreCommand is this program with this configuration, for the server's
// shell. What comes from this process's environment the server may not have, so
// the user is told.
func (a *app) restoreCommand() (string, error) {
	program, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	words := []string{program}
	if config := a.set.General.ConfigPath; config != "" {
		if config, err = filepath.Abs(config); err != nil {
			return "", fmt.Errorf("find the config file: %w", err)
		}
		words = append(words, "--config", config)
	}
	var environment, flags []string
	for _, v := range a.set.Effective() {
		switch v.Origin.Kind {
		case settings.FromEnvironment:
			if name := cmp.Or(v.Origin.Name, v.Setting); !strings.HasPrefix(name, "PG") && name != "WALG_CONFIG_PATH" {
				environment = append(environment, name)
			}
		case settings.FromFlag:
			flags = append(flags, "--"+v.Setting)
		}
	}
	if len(flags) > 0 {
		a.log.Warn("restore_command does not repeat settings given as flags; put them into the config file", "settings", strings.Join(flags, " "))
	}
	if len(environment) > 0 {
		a.log.Warn("restore_command needs settings that are in this command's environment: give them to the server's, or put them into a config file and name it with --config",
			"settings", strings.Join(environment, " "))
	}
	for i, w := range words {
		words[i] = shellWord(strings.ReplaceAll(w, "%", "%%"))
	}
	return strings.Join(words, " ") + ` wal-fetch "%f" "%p"` + onlyAbsentEnds, nil
}

// shellWord quotes a word for sh where it needs it.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+=:,@%", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// elsewhere adds to err the newest backup from which the target can be reached.
func (a *app) elsewhere(ctx context.Context, r *repo.Repo, target *restore.Recovery, err error) error {
	c, cerr := readCatalog(ctx, []*repo.Repo{r}, true)
	if cerr != nil {
		return fmt.Errorf("%w; restore an older backup (backup-list --detail shows when each ended)", err)
	}
	var best catalog.Backup
	for _, b := range c.ByStart() {
		m := b.Metadata
		if m == nil || !target.Time.IsZero() && m.FinishTime.After(target.Time) || target.LSN != 0 && m.FinishLSN > target.LSN {
			continue
		}
		if target.Check(b.Name, nil) == nil {
			best = b
		}
	}
	if best.Name == "" {
		return fmt.Errorf("%w; no backup is old enough", err)
	}
	return fmt.Errorf("%w; restore %s, the newest that can", err, best.Name)
}
