package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/producer/pgtest"
	"github.com/walherd/walherd/storage/s3/s3test"
	"github.com/walherd/walherd/storage/storagetest/pinned"
	"github.com/walherd/walherd/tools/faults/link"
	"github.com/walherd/walherd/tools/faults/oracle"
)

// cluster is WALHERD_CLUSTER of a run.
const cluster = "faults"

// rig is everything that a run is made of. Every part is a process of its own,
// and every connection between two of them a link.
type rig struct {
	*scope
	ctx context.Context
	opt options
	pt  pgtest.TB
	say func(format string, args ...any)
	dir string

	bins    programs
	b       *brokers
	bus     *bus.Bus // to the brokers, on no link
	s3      *s3test.Server
	store   *link.Link // between the workers and s3
	workers []*proc
	c       *pgtest.Cluster
	truth   string // directory
	bucket  oracle.Bucket
	watch   *oracle.Watch

	jobs     jobTap
	poisoned atomic.Int64 // messages published that nobody can read
	newer    atomic.Int64 // messages of a version that is not known yet
	reoffers sync.WaitGroup

	// What the workload did.
	mu      sync.Mutex
	backups []backupRun
	emitted int64
}

type backupRun struct {
	name string // "" unless it said so
	err  error
	took time.Duration
}

func sourceRoot() (string, error) {
	dir, err := pinned.Source("faults")
	if err != nil {
		return "", err
	}
	return filepath.Abs(filepath.Join(dir, "..", ".."))
}

// newRig starts everything.
//
// A rig that could not be started as a whole is given with the error, for its
// logs.
func newRig(ctx context.Context, pt pgtest.TB, opt options, say func(string, ...any)) (*rig, error) {
	r := &rig{scope: &scope{}, ctx: ctx, opt: opt, pt: pt, say: say}
	return r, r.begin()
}

func (r *rig) begin() (err error) {
	ctx, pt, opt, say := r.ctx, r.pt, r.opt, r.say
	r.dir = pgtest.TempDir(pt)
	pt.Cleanup(r.close)
	if err := os.Chmod(r.dir, 0o755); err != nil {
		return err
	}
	bins := opt.bins
	if bins == "" {
		bins = filepath.Join(r.dir, "bin")
	}
	if r.bins, err = build(ctx, bins, mountable() && !opt.plainDisks); err != nil {
		return err
	}
	if r.bins.lossyfs == "" && !opt.plainDisks {
		say("without root and /dev/fuse there is no power loss and no full disk in this run")
	}
	brokerDir := filepath.Join(r.dir, "brokers")
	if err := os.MkdirAll(brokerDir, 0o755); err != nil {
		return err
	}
	if r.b, err = newBrokers(ctx, r.scope, 3, r.bins.nats, r.bins.lossyfs, brokerDir, opt.disk); err != nil {
		return err
	}
	if err := r.startStore(); err != nil {
		return err
	}
	r.truth = pgtest.TempDir(pt)
	r.c = pgtest.New(pt, pgtest.WithSegmentSize(opt.segmentMB), pgtest.WithOwnSystemID(), pgtest.Stopped(),
		pgtest.WithConf("max_wal_size = 8GB", "checkpoint_timeout = 30s"))
	if opt.byHand {
		r.c.AppendConf("archive_mode = on", "archive_command = '/bin/true'")
	} else if err := r.archiver(); err != nil {
		return err
	}
	if out, err := r.walherd(nil, "queue", "setup").CombinedOutput(); err != nil {
		return fmt.Errorf("set the queue up: %w: %s", err, out)
	}
	var direct []string
	for _, n := range r.b.nodes {
		direct = append(direct, fmt.Sprintf("nats://%s:%[1]s@%s", brokerUser, n.client))
	}
	if r.bus, err = bus.Connect(ctx, bus.Options{URL: strings.Join(direct, ","), Name: "faults"}); err != nil {
		return err
	}
	r.defers(r.bus.Close)
	if err := r.jobs.listen(ctx, r.bus); err != nil {
		return err
	}
	for i := range opt.workers {
		if err := r.addWorker(i); err != nil {
			return err
		}
	}
	r.c.Start()
	return nil
}

func (r *rig) startStore() (err error) {
	dir := filepath.Join(r.dir, "s3")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if r.s3, err = s3test.Run(r.ctx, dir, s3test.Options{}); err != nil {
		return err
	}
	r.defers(func() { _ = r.s3.Stop() })
	if err := r.s3.MakeBucket("walherd"); err != nil {
		return err
	}
	r.bucket = oracle.Bucket{Dir: filepath.Join(dir, "data", "walherd"), Prefix: "main"}
	if err := os.MkdirAll(filepath.Join(r.bucket.Dir, r.bucket.Prefix), 0o755); err != nil {
		return err
	}
	r.watch = oracle.NewWatch(r.bucket)
	r.store, err = r.link(r.ctx, strings.TrimPrefix(r.s3.Endpoint, "http://"))
	return err
}

// common is what producers and workers are both told.
func (r *rig) common() []string {
	env := []string{
		"WALHERD_CLUSTER=" + cluster, "WALHERD_REPLICAS=3", "WALHERD_ACK_WAIT=5s", fmt.Sprint("WALHERD_JOB_TRIES=", jobTries),
		"WALHERD_WAL_PUSH_TIMEOUT=" + pushTimeout.String(), "WALHERD_PART_TIMEOUT=1m",
		fmt.Sprint("WALHERD_QUEUE_WAL_BYTES=", r.opt.queue), "WALHERD_QUEUE_CHUNK_BYTES=134217728",
		fmt.Sprint("WALG_PG_WAL_SIZE=", r.opt.segmentMB), "WALHERD_WAL_ACK=" + r.opt.ack,
		"WALG_COMPRESSION_METHOD=" + r.opt.compress,
	}
	return append(env, r.opt.env...)
}

// jobTries is WALHERD_JOB_TRIES.
const jobTries = 5

// pushTimeout is how long archive_command may wait for a worker.
const pushTimeout = 15 * time.Second

// host is the environment of the database host: no storage, no key.
func (r *rig) host() []string {
	env := append(r.common(), "WALHERD_NATS_URL="+urls(r.b.hosts))
	if r.opt.ack == "queued" {
		env = append(env, "WALHERD_SPOOL_DIR="+filepath.Join(r.c.Dir(), "spool"))
	}
	return env
}

// storage is what workers know and the database host does not.
func (r *rig) storage() []string {
	return []string{
		"WALG_S3_PREFIX=s3://walherd/main", "AWS_ENDPOINT=http://" + r.store.Addr(), "AWS_S3_FORCE_PATH_STYLE=true",
		"AWS_REGION=" + r.s3.Region, "AWS_ACCESS_KEY_ID=" + r.s3.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + r.s3.SecretAccessKey,
	}
}

// walherd prepares a command on the database host.
func (r *rig) walherd(env []string, args ...string) *exec.Cmd {
	cmd := r.c.Command(r.ctx, r.bins.walherd, args...)
	cmd.Env = append(append(cmd.Env, r.host()...), env...)
	return cmd
}

func (r *rig) addWorker(i int) error {
	p := &proc{name: fmt.Sprintf("worker %d", i), log: filepath.Join(r.dir, fmt.Sprintf("worker%d.log", i)), make: func() *exec.Cmd {
		cmd := exec.Command(r.bins.walherd, "worker", "--drain", r.opt.drain.String())
		cmd.Env = append(append(os.Environ(), r.common()...), "WALHERD_NATS_URL="+urls(r.b.workers),
			fmt.Sprint("WALHERD_WAL_SLOTS=", r.opt.slots))
		cmd.Env = append(cmd.Env, r.storage()...)
		return cmd
	}}
	r.workers = append(r.workers, p)
	r.defers(func() { _ = p.kill() })
	return p.start()
}

// archiver writes archive_command. What it notes of a segment, it notes at the
// moment wal-push has said that it is archived, by cp and sha256sum.
func (r *rig) archiver() error {
	var env strings.Builder
	for _, e := range r.host() {
		name, value, _ := strings.Cut(e, "=")
		fmt.Fprintf(&env, "export %s='%s'\n", name, value)
	}
	script := fmt.Sprintf(`#!/bin/sh
# archive_command of a fault run: $1 is %%p, $2 is %%f.
%s
truth='%s'
began=$(date +%%s%%N)
'%s' wal-push "$1" >>"$truth/push.log" 2>&1
code=$?
echo "$began $(date +%%s%%N) $code $2" >>"$truth/pushes"
[ "$code" = 0 ] || exit 1
# One whose PostgreSQL was killed runs on beside that of the next.
copy="$truth/$2.$$.tmp" sum="$truth/sum.$$.tmp"
cp "$1" "$copy" || exit 1
sha256sum <"$copy" >"$sum" || exit 1
mv "$copy" "$truth/$2" && mv "$sum" "$truth/$2.sha256"
`, env.String(), r.truth, r.bins.walherd)
	path := filepath.Join(r.dir, "archive.sh")
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		return err
	}
	r.c.AppendConf("archive_mode = on", fmt.Sprintf(`archive_command = '%s "%%p" "%%f"'`, path))
	return nil
}

// ready is how many files wait to be archived.
func (r *rig) ready() int {
	files, err := filepath.Glob(filepath.Join(r.c.WALDir(), "archive_status", "*.ready"))
	if err != nil {
		return 0
	}
	return len(files)
}

// workload writes until ctx ends, and takes backups.
func (r *rig) workload(ctx context.Context) (wait func()) {
	var all sync.WaitGroup
	all.Go(func() { r.bench(ctx) })
	all.Go(func() { r.emit(ctx) })
	all.Go(func() { r.backUp(ctx) })
	all.Go(func() {
		for sleep(ctx, time.Second) == nil {
			if err := r.watch.Look(false); err != nil {
				r.say("%v", err)
			}
		}
	})
	return all.Wait
}

// bench keeps pgbench going.
func (r *rig) bench(ctx context.Context) {
	for ctx.Err() == nil {
		cmd := r.c.Command(ctx, "pgbench", "-n", "-c", "2", "-R", "40", "-T", "3600")
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
		cmd.WaitDelay = 5 * time.Second
		_ = cmd.Run() // it ends with the server, too
		_ = sleep(ctx, 500*time.Millisecond)
	}
}

// backlog is how many files may wait before no more WAL is made.
const backlog = 8

// filling are statements that fill half a segment with what compresses
// somewhat, and end it.
func (r *rig) filling() string {
	return fmt.Sprintf(`SELECT count(pg_logical_emit_message(false, 'faults', repeat(md5(random()::text), 100))) FROM generate_series(1, %d);
INSERT INTO marker DEFAULT VALUES; SELECT pg_switch_wal()`, r.opt.segmentMB*1<<20/2/3200)
}

// emit fills WAL segments.
func (r *rig) emit(ctx context.Context) {
	for sleep(ctx, r.opt.pace) == nil {
		if r.ready() > backlog {
			continue
		}
		if _, err := r.c.SQLErr("postgres", r.filling()); err == nil {
			r.mu.Lock()
			r.emitted++
			r.mu.Unlock()
		}
	}
}

// backUp takes one backup after the other.
func (r *rig) backUp(ctx context.Context) {
	for sleep(ctx, r.opt.between) == nil {
		// One that has begun is let finish.
		r.takeBackup(context.WithoutCancel(ctx), 3*time.Minute)
	}
}

func (r *rig) takeBackup(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	start := time.Now()
	cmd := r.c.Command(ctx, r.bins.walherd, "backup-push", r.c.DataDir())
	cmd.Env = append(cmd.Env, r.host()...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	out, err := cmd.CombinedOutput()
	run := backupRun{err: err, took: time.Since(start)}
	if err == nil {
		run.name = wroteBackup(string(out))
		if run.name == "" {
			run.err = fmt.Errorf("backup-push returned 0 and named no backup: %s", out)
		}
	} else {
		run.err = fmt.Errorf("%w: %s", err, lastLine(string(out)))
	}
	r.mu.Lock()
	r.backups = append(r.backups, run)
	r.mu.Unlock()
	appendFile(filepath.Join(r.dir, "backups.log"), string(out)+fmt.Sprintf("-- %v after %s\n", err, run.took))
	return run.err
}

func appendFile(path, text string) {
	if f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err == nil {
		_, _ = f.WriteString(text)
		f.Close()
	}
}

// wroteBackup finds the name in what backup-push says at its end.
func wroteBackup(out string) string {
	i := strings.LastIndex(out, "base_")
	if i < 0 {
		return ""
	}
	name := out[i:]
	if end := strings.IndexFunc(name, func(c rune) bool {
		return !(c == '_' || c >= '0' && c <= '9' || c >= 'A' && c <= 'F' || c >= 'a' && c <= 'z')
	}); end >= 0 {
		name = name[:end]
	}
	return name
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

var errLimit = errors.New("not within its limit")

// until polls.
func until(ctx context.Context, limit time.Duration, met func() (bool, error)) error {
	deadline := time.Now().Add(limit)
	for {
		ok, err := met()
		if ok {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("%w of %s", errLimit, limit), err)
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}
