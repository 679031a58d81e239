package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/transit"
	"github.com/walherd/walherd/producer/pgtest"
	"github.com/walherd/walherd/tools/faults/link"
	"github.com/walherd/walherd/tools/faults/oracle"
)

// sums is a fingerprint of the database.
const sums = `SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),
 (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT count(*) FROM pgbench_history), (SELECT count(*) FROM marker),
 (SELECT md5(string_agg(h::text, ',' ORDER BY h::text)) FROM pgbench_history h)`

// verdict is what the oracle says of a run.
type verdict struct {
	findings []oracle.Finding
	// What was looked at.
	segments, backupsDone, backupsListed, restored, objects int
	letters                                                 []letter
	// Observations that break no promise.
	notes []string
}

func (v *verdict) find(promise, format string, args ...any) {
	v.findings = append(v.findings, oracle.Finding{Promise: promise, What: fmt.Sprintf(format, args...)})
}

func (v *verdict) note(format string, args ...any) {
	v.notes = append(v.notes, fmt.Sprintf(format, args...))
}

// mend ends every fault: nothing is stopped, cut, or dead.
func (r *rig) mend(ctx context.Context) error {
	r.store.Set(link.Fault{})
	for i := range r.b.nodes {
		r.b.isolate(i, link.Fault{})
		r.b.hosts[i].Set(link.Fault{})
		r.b.workers[i].Set(link.Fault{})
	}
	for _, n := range r.b.nodes {
		if !n.alive() {
			if err := n.begin(); err != nil {
				return err
			}
		}
	}
	for _, w := range r.workers {
		if !w.alive() {
			r.say("%s had ended by itself, it is started again", w.name)
			if err := w.start(); err != nil {
				return err
			}
		}
	}
	if r.c.PID() == 0 {
		return r.c.StartErr()
	}
	return nil
}

// settle waits until everything that was begun has ended.
func (r *rig) settle(ctx context.Context, v *verdict) (want string) {
	for i, n := range r.b.nodes {
		if err := r.b.await(ctx, 30*time.Second, n); err == nil {
			continue
		}
		// As an operator would: restart it, then give it a new disk.
		v.note("broker %d was not well after the faults and was restarted", i)
		_ = n.kill()
		_ = n.begin()
		if err := r.b.await(ctx, 30*time.Second, n); err == nil {
			continue
		}
		v.note("broker %d was not well after a restart and got an empty disk", i)
		_ = n.kill()
		if err := errors.Join(n.disk.wipe(), n.begin(), r.b.await(ctx, time.Minute, n)); err != nil {
			v.find(oracle.KeepsArchived, "broker %d does not come up: %v", i, err)
		}
	}
	r.reoffers.Wait()
	if err := r.archived(ctx); err != nil {
		v.find(oracle.KeepsArchived, "WAL is not archived: %v", err)
		// What follows is to be seen all the same.
		swept, err := transit.NewQueue(r.bus, transit.QueueOptions{}).Sweep(ctx, messages.Cluster(cluster), time.Minute, nil)
		v.note("a garbage run of the queue took %d transfers, %d chunks out of the way: %v", swept.Transfers, swept.Chunks, err)
	}
	// A backup after the faults works.
	if err := r.takeBackup(ctx, 3*time.Minute); err != nil {
		v.note("the first backup after the faults failed: %v", err)
		if err := r.takeBackup(ctx, 3*time.Minute); err != nil {
			v.find(oracle.KeepsArchived, "no backup succeeds after the faults: %v", err)
		}
	}
	want, err := r.c.SQLErr("postgres", sums)
	if err != nil {
		v.find(oracle.KeepsArchived, "ask the source: %v", err)
	}
	if err := r.archived(ctx); err != nil {
		v.find(oracle.KeepsArchived, "the last WAL is not archived: %v", err)
	}
	return want
}

// archived waits until all that the server has written is archived.
func (r *rig) archived(ctx context.Context) error {
	last, err := r.c.SQLErr("postgres", "SELECT pg_walfile_name(pg_switch_wal())")
	if err != nil {
		return err
	}
	return until(ctx, r.opt.settle, func() (bool, error) {
		_, err := os.Stat(filepath.Join(r.truth, last+".sha256"))
		return err == nil && r.ready() == 0, fmt.Errorf("%d files wait, %s among them: %s", r.ready(), last, lastLine(tail(filepath.Join(r.truth, "push.log"))))
	})
}

// drained waits for the queues to be empty, runs the garbage run, and tells
// what is left.
func (r *rig) drained(ctx context.Context, v *verdict) {
	var streams map[string]oracle.Stream
	var stuck int
	err := until(ctx, r.opt.settle, func() (bool, error) {
		var err error
		if streams, err = oracle.Streams(ctx, r.b.monitors()); err != nil {
			return false, err
		}
		if v.letters, err = r.letters(ctx); err != nil {
			return false, err
		}
		stuck = 0
		for _, l := range v.letters {
			if l.Stuck {
				stuck++
			}
		}
		return streams["WALHERD_WORK"].Messages == uint64(stuck), nil
	})
	if err != nil {
		v.find(oracle.Settled, "WALHERD_WORK holds %d messages, %d of them known dead letters: %v", streams["WALHERD_WORK"].Messages, stuck, err)
	}
	// What a producer that was killed had put there and no job asks for.
	queue := transit.NewQueue(r.bus, transit.QueueOptions{})
	if swept, err := queue.Sweep(ctx, messages.Cluster(cluster), -time.Minute, nil); err != nil {
		v.note("the garbage run of the queue: %v", err)
	} else {
		v.note("the garbage run of the queue removed %d transfers, %d chunks", swept.Transfers, swept.Chunks)
	}
	if swept, err := queue.SweepStreams(ctx, messages.Cluster(cluster), -time.Minute); err != nil {
		v.note("the garbage run of the streams: %v", err)
	} else {
		v.note("the garbage run of the streams removed %d transfers, %d chunks", swept.Transfers, swept.Chunks)
	}
	var pending int
	err = until(ctx, 30*time.Second, func() (bool, error) {
		streams, err = oracle.Streams(ctx, r.b.monitors())
		pending = stuck
		return err == nil && (streams["WALHERD_WAL"].Messages == 0 || stuck > 0) && streams["WALHERD_CHUNK"].Messages == 0, err
	})
	if err != nil {
		v.find(oracle.NothingLeft, "WALHERD_WAL holds %d messages, WALHERD_CHUNK %d, with %d jobs stuck: %v",
			streams["WALHERD_WAL"].Messages, streams["WALHERD_CHUNK"].Messages, pending, err)
	}
	for _, name := range []string{"WALHERD_WAL", "WALHERD_CHUNK", "WALHERD_WORK"} {
		if s, ok := streams[name]; !ok {
			v.find(oracle.KeepsArchived, "stream %s is gone", name)
		} else if s.Last == 0 {
			v.find(oracle.KeepsArchived, "stream %s has never held anything: it is another one than the run began with", name)
		}
	}
}

// letter is a dead letter as the command prints it.
type letter struct {
	ID     uint64 `json:"id"`
	Kind   string `json:"kind"`
	Object string `json:"object"`
	Reason string `json:"reason"`
	Stuck  bool   `json:"stuck"`
}

func (r *rig) letters(ctx context.Context) (out []letter, err error) {
	cmd := r.c.Command(ctx, r.bins.walherd, "deadletter", "ls", "--json")
	cmd.Env = append(cmd.Env, r.host()...)
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	return out, json.Unmarshal(text, &out)
}

// judge has the oracle look at what is left.
func (r *rig) judge(ctx context.Context) (*verdict, error) {
	v := &verdict{}
	want := r.settle(ctx, v)
	r.drained(ctx, v)
	truth, err := oracle.ReadTruth(r.truth)
	if err != nil {
		return v, err
	}
	if r.opt.plant {
		if err := r.plant(truth); err != nil {
			return v, err
		}
	}
	findings, seen, err := oracle.Segments(ctx, r.bucket, truth)
	if err != nil {
		return v, err
	}
	v.findings, v.segments = append(v.findings, findings...), seen
	if len(truth) == 0 {
		v.find(oracle.WALStored, "nothing was acknowledged in this run: it shows nothing")
	}
	if err := r.watch.Look(true); err != nil {
		return v, err
	}
	v.findings, v.objects = append(v.findings, r.watch.Findings()...), r.watch.Objects()
	r.judgeLetters(v, truth)
	if err := r.judgeBackups(ctx, v, want); err != nil {
		return v, err
	}
	uploads, without, err := r.bucket.Leftovers()
	if err != nil {
		return v, err
	}
	if len(uploads) > 0 {
		v.note("%d files of unfinished uploads are in the store, the first %s", len(uploads), uploads[0])
	}
	if len(without) > 0 {
		v.note("%d backups that failed left objects that no reader sees: %s", len(without), strings.Join(without, " "))
	}
	return v, nil
}

// plant removes one archived segment and flips a bit of another.
func (r *rig) plant(truth oracle.Truth) error {
	names := slices.Sorted(maps.Keys(truth))
	if len(names) < 2 {
		return errors.New("there are no two segments to spoil")
	}
	if err := r.watch.Look(false); err != nil {
		return err
	}
	at := func(name string) string {
		return filepath.Join(r.bucket.Dir, r.bucket.Prefix, "wal_005", name+".lz4")
	}
	data, err := os.ReadFile(at(names[0]))
	if err != nil {
		return err
	}
	data[len(data)/2] ^= 1
	return errors.Join(os.WriteFile(at(names[0]), data, 0o644), os.Remove(at(names[1])))
}

// judgeLetters: a message that cannot be read ends as a dead letter that says
// why; a dead letter about a segment does not mean that it is lost.
func (r *rig) judgeLetters(v *verdict, truth oracle.Truth) {
	var newer, unreadable int
	other := map[string]int{}
	for _, l := range v.letters {
		switch {
		case strings.Contains(l.Reason, messages.ErrVersion.Error()):
			newer++
		case strings.Contains(l.Reason, messages.ErrMalformed.Error()):
			unreadable++
		default:
			_, stored := truth[l.Object]
			other[fmt.Sprintf("%s, stored all the same: %t, stuck: %t: %s", l.Kind, stored, l.Stuck, squeeze(l.Reason))]++
		}
	}
	for reason, n := range other {
		v.note("%d dead letters: %s", n, reason)
	}
	// A publish whose answer was lost may be there once more than we know.
	if want := int(r.newer.Load()); newer < want {
		v.find(oracle.Settled, "%d jobs of a newer version were published, %d dead letters say so", want, newer)
	}
	if want := int(r.poisoned.Load()); unreadable < want {
		v.find(oracle.Settled, "%d unreadable jobs were published, %d dead letters say so", want, unreadable)
	}
}

// squeeze leaves out of a reason what differs from one to the next.
func squeeze(s string) string {
	s = strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' {
			return '#'
		}
		return c
	}, s)
	for strings.Contains(s, "##") {
		s = strings.ReplaceAll(s, "##", "#")
	}
	return s[:min(len(s), 160)]
}

func (r *rig) judgeBackups(ctx context.Context, v *verdict, want string) error {
	listed, err := r.bucket.Backups()
	if err != nil {
		return err
	}
	v.backupsListed = len(listed)
	r.mu.Lock()
	runs := slices.Clone(r.backups)
	r.mu.Unlock()
	for _, b := range runs {
		if b.err != nil {
			v.note("a backup failed after %.0f s: %v", b.took.Seconds(), b.err)
			continue
		}
		v.backupsDone++
		if !slices.Contains(listed, b.name) {
			v.find(oracle.BackupListed, "%s", b.name)
		}
	}
	if len(listed) == 0 {
		v.find(oracle.BackupListed, "there is none: this run shows nothing about backups")
		return nil
	}
	for _, name := range choose(listed, r.opt.restores, r.opt.seed) {
		r.say("restoring %s by lz4, tar and cp", name)
		if err := r.restore(ctx, name, want); err != nil {
			if ctx.Err() != nil {
				return err
			}
			v.find(oracle.BackupWhole, "%s: %v", name, err)
		}
		v.restored++
	}
	return nil
}

// choose takes n of the backups: the first, the last, and any between.
func choose(all []string, n int, seed uint64) []string {
	if len(all) <= n {
		return all
	}
	if n < 2 {
		return all[len(all)-n:] // the last has seen the most
	}
	rnd := rand.New(rand.NewPCG(seed, 2))
	out := []string{all[0], all[len(all)-1]}
	for _, i := range rnd.Perm(len(all) - 2)[:max(n-2, 0)] {
		out = append(out, all[i+1])
	}
	slices.Sort(out)
	return out
}

// restore unpacks a backup, replays all WAL, and compares with the source.
func (r *rig) restore(ctx context.Context, name, want string) (err error) {
	return pgtest.Do("restore "+name, nil, func(t pgtest.TB) error {
		dir := filepath.Join(pgtest.TempDir(t), "restored")
		if err := r.bucket.Unpack(ctx, name, dir); err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
		c := pgtest.Open(t, dir, pgtest.Stopped(), pgtest.WithConf("archive_mode = off"))
		c.Recover(r.bucket.RestoreCommand())
		if err := c.StartErr(); err != nil {
			return err
		}
		if err := until(ctx, 5*time.Minute, func() (bool, error) {
			got, err := c.SQLErr("postgres", "SELECT pg_is_in_recovery()")
			return got == "f", err
		}); err != nil {
			return fmt.Errorf("recovery did not end: %w\n%s", err, c.Log())
		}
		got, err := c.SQLErr("postgres", sums)
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("after all WAL the database is %q, the source %q", got, want)
		}
		if _, err := c.RunErr("pg_amcheck", "--all", "--install-missing", "--heapallindexed"); err != nil {
			return err
		}
		c.Stop(pgtest.Fast)
		_, err = c.RunErr("pg_checksums", "--check", "-D", c.DataDir())
		return err
	})
}

// push is one call of archive_command.
type push struct {
	name string
	took time.Duration
	code int
	ends time.Time
}

// pushes reads what archive_command noted.
func (r *rig) pushes() (out []push, err error) {
	data, err := os.ReadFile(filepath.Join(r.truth, "pushes"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) != 4 {
			continue // the last one may be half written
		}
		began, err1 := strconv.ParseInt(f[0], 10, 64)
		ended, err2 := strconv.ParseInt(f[1], 10, 64)
		code, err3 := strconv.Atoi(f[2])
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, err
		}
		out = append(out, push{f[3], time.Duration(ended - began), code, time.Unix(0, ended)})
	}
	return out, nil
}

// tail is the end of a file.
func tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-4096):])
}
