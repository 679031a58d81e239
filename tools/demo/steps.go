package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The odd names: what a quoting mistake anywhere would trip over.
const (
	oddDatabase = `odd "name" it's`
	oddTable    = `таблица "表" 🐘`
)

func quoteIdent(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// makeCluster starts the cluster and fills it.
func (d *demo) makeCluster() {
	d.c.Start()
	d.say("PostgreSQL %d runs in %s, page checksums on", d.c.Major(), d.c.DataDir())
	d.say("archive_command = '%s'", d.command("wal-push", "%p"))
	d.c.Run("pgbench", "-i", "-q", "-s", strconv.Itoa(d.opt.scale))
	d.say("pgbench tables made, scale %d", d.opt.scale)
	d.c.SQL("CREATE TABLESPACE elsewhere LOCATION '" + d.tablespace + "'")
	d.c.SQL(`CREATE TABLE placed TABLESPACE elsewhere AS SELECT i, md5(i::text) AS t FROM generate_series(1, 50000) i;
		CREATE INDEX ON placed (t) TABLESPACE elsewhere;
		CREATE UNLOGGED TABLE scratch AS SELECT generate_series(1, 10000) AS i;
		CREATE TABLE marker (text text, at timestamptz DEFAULT now())`)
	d.c.SQL("CREATE DATABASE " + quoteIdent(oddDatabase))
	d.c.SQLIn(oddDatabase, "CREATE TABLE "+quoteIdent(oddTable)+
		" AS SELECT i AS "+quoteIdent("номер один")+", repeat(chr(128024), i % 50) AS t FROM generate_series(1, 20000) i")
	d.say("tablespace, unlogged table, database %q and table %q added", oddDatabase, oddTable)
	size, err := strconv.ParseInt(d.c.SQL("CHECKPOINT; SELECT sum(pg_database_size(oid))::bigint FROM pg_database"), 10, 64)
	if err != nil {
		d.t.Fatalf("read the database's size: %v", err)
	}
	d.fig.database = size
}

// startWriting runs pgbench in the background. stop ends it and waits; it may
// be called twice.
func (d *demo) startWriting() (stop func(), err error) {
	cmd := d.c.Command(d.ctx, "pgbench", "-n", "-c", "4", "-j", "2", "-T", "3600")
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start pgbench: %w", err)
	}
	d.say("pgbench writes with 4 clients from here on")
	return sync.OnceFunc(func() {
		// Both end with an error, always: it was told to run for an hour.
		_ = cmd.Process.Signal(syscall.SIGINT)
		_ = cmd.Wait()
	}), nil
}

func (d *demo) transactions() int {
	n, err := strconv.Atoi(d.c.SQL("SELECT count(*) FROM pgbench_history"))
	if err != nil {
		d.t.Fatalf("count transactions: %v", err)
	}
	return n
}

// backup takes the base backup while pgbench writes.
func (d *demo) backup() error {
	if err := d.awaitSQL("pgbench's first transactions", "count(*) > 100 FROM pgbench_history"); err != nil {
		return err
	}
	before := d.transactions()
	d.say("walherd backup-push (the broker and the workers are inside the process)")
	_, wall, err := d.walherd("backup-push", d.c.DataDir())
	if err != nil {
		return err
	}
	during := d.transactions() - before
	if during <= 0 {
		return errors.New("take a backup under load: pgbench committed nothing meanwhile")
	}
	d.fig.push = wall
	list, _, err := d.walherd("backup-list", "--detail", "--json")
	if err != nil {
		return err
	}
	var backups []struct {
		Name         string `json:"backup_name"`
		Uncompressed int64  `json:"uncompressed_size"`
	}
	if err := json.Unmarshal([]byte(list), &backups); err != nil {
		return fmt.Errorf("read backup-list: %w", err)
	}
	if len(backups) != 1 || backups[0].Uncompressed <= 0 {
		return fmt.Errorf("read backup-list: want one backup with a size, got %s", list)
	}
	d.fig.read = backups[0].Uncompressed
	if d.fig.stored, err = treeSize(filepath.Join(d.storage, "basebackups_005")); err != nil {
		return err
	}
	d.say("%s is stored; %d transactions were committed meanwhile", backups[0].Name, during)
	return nil
}

// treeSize is the sum of the sizes of the files below dir.
func treeSize(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		sum += fi.Size()
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	return sum, nil
}

// writeOn lets pgbench go on, then stops it and waits for its last
// transactions to end.
func (d *demo) writeOn(stopWriting func()) error {
	t := time.NewTimer(d.opt.write)
	defer t.Stop()
	select {
	case <-d.ctx.Done():
		return errors.New("interrupted")
	case <-t.C:
	}
	stopWriting()
	// The server may be about to commit for a client that is gone already.
	if err := d.awaitSQL("pgbench's sessions ending", "count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pgbench'"); err != nil {
		return err
	}
	d.say("pgbench stopped after %d transactions", d.transactions())
	return nil
}

// archiveMarker writes the last row and waits until the segment that holds its
// commit is archived.
func (d *demo) archiveMarker() (marker, segment string, err error) {
	marker = "written last, by process " + strconv.Itoa(os.Getpid())
	d.c.SQL("INSERT INTO marker (text) VALUES ('" + marker + "')")
	segment, err = d.archived()
	if err != nil {
		return "", "", err
	}
	stats := strings.Split(d.c.SQL("SELECT archived_count, failed_count FROM pg_stat_archiver"), "|")
	if len(stats) != 2 || stats[1] != "0" {
		return "", "", fmt.Errorf("archive WAL: %s wal-push calls failed", stats[len(stats)-1])
	}
	if err := d.fig.readTimes(d.times); err != nil {
		return "", "", err
	}
	d.say("marker row written and archived: its segment %s is stored", segment)
	return marker, segment, nil
}

// archived switches to a new WAL segment and awaits the old one's archiving.
func (d *demo) archived() (segment string, err error) {
	segment = d.c.SQL("SELECT pg_walfile_name(pg_current_wal_lsn())")
	d.c.SQL("SELECT pg_switch_wal()")
	// last_archived_wal may also be a .backup or .history file: it sorts
	// with the segment of the same digits.
	err = d.awaitSQL("segment "+segment+" being archived",
		fmt.Sprintf("left(last_archived_wal, 24) >= '%s' AND last_archived_wal NOT LIKE '%%.history' FROM pg_stat_archiver", segment))
	return segment, err
}

// disaster kills the server and destroys all of its files.
func (d *demo) disaster() error {
	d.c.Kill()
	for _, dir := range []string{d.c.DataDir(), d.tablespace} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("destroy the cluster: %w", err)
		}
	}
	d.say("server killed (SIGKILL); data directory and tablespace deleted")
	return nil
}

// restore brings the cluster back as one would at night.
func (d *demo) restore() error {
	d.say("walherd backup-fetch %s LATEST", d.c.DataDir())
	_, wall, err := d.walherd("backup-fetch", d.c.DataDir(), "LATEST")
	if err != nil {
		return err
	}
	d.fig.fetch = wall
	command := d.command("wal-fetch", `"%f"`, `"%p"`)
	d.c.AppendConf("restore_command = '"+command+"'", "recovery_target_timeline = 'latest'")
	d.c.Run("touch", filepath.Join(d.c.DataDir(), "recovery.signal"))
	d.say("restore_command = '%s', recovery.signal", command)
	start := time.Now()
	if err := d.c.StartErr(); err != nil {
		return err
	}
	if err := d.awaitSQL("the end of recovery", "NOT pg_is_in_recovery()"); err != nil {
		return err
	}
	d.fig.recovery = time.Since(start)
	d.say("recovered and promoted to timeline %s", d.c.SQL("SELECT timeline_id FROM pg_control_checkpoint()"))
	return nil
}
