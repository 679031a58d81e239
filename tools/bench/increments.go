package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/walherd/walherd/producer/pgtest"
)

// chainLength is how many increments on a full backup are restored.
const chainLength = 6

// increments measures an increment of a cluster in which a hundredth has
// changed, by each way to learn what that is, and the restore of a chain.
func (b *bench) increments(t pgtest.TB) error {
	scale := strconv.Itoa(b.opt.scale)
	push, fetch := "increment, pgbench scale "+scale, "backup-fetch of full and "+strconv.Itoa(chainLength)+" increments, pgbench scale "+scale
	if !b.selected(push, fetch) {
		return nil
	}
	b.logf("making a cluster: %s", push)
	c := pgtest.New(t, pgtest.WithOwnSystemID(), pgtest.WithArchiveCommand("true"), pgtest.WithConf("autovacuum = off", "max_wal_size = 8GB",
		"wal_keep_size = 4GB", "shared_buffers = 256MB", "maintenance_work_mem = 256MB", "checkpoint_timeout = 1h"))
	c.Run("pgbench", "-i", "-q", "-s", scale)
	c.SQL("VACUUM ANALYZE; CHECKPOINT")
	in := incrementBench{b: b, c: c, storage: filepath.Join(c.Dir(), "storage"), out: filepath.Join(c.Dir(), "out")}
	c.Run("mkdir", in.storage)
	var err error
	if in.size, err = dataSize(c); err != nil {
		return err
	}
	walherd := b.programs[0]
	c.SQL(fmt.Sprintf("ALTER SYSTEM SET archive_command = 'env WALG_FILE_PREFIX=%s WALG_USE_WAL_DELTA=true %s wal-push %%p'", in.storage, walherd.path))
	c.SQL("SELECT pg_reload_conf()")
	in.summaries(true)
	fmt.Fprintf(b.stdout, "\n## Increments: pgbench scale %s, %d MiB without WAL, PostgreSQL %d\n", scale, in.size>>20, c.Major())
	if err := in.run(walherd, "--full"); err != nil {
		return err
	}
	base := in.newest()
	in.change(0)
	if b.selected(push) {
		if err := in.push(push, base); err != nil {
			return err
		}
	}
	if !b.selected(fetch) {
		return nil
	}
	for i := range chainLength {
		b.logf("%s: taking increment %d", fetch, i+1)
		args := []string{}
		if i == 0 {
			args = append(args, "--delta-from-name", base)
		} else {
			in.change(i)
		}
		if err := in.run(walherd, args...); err != nil {
			return err
		}
	}
	return in.fetch(fetch)
}

// incrementBench is a cluster that archives with change maps, and its storage.
type incrementBench struct {
	b            *bench
	c            *pgtest.Cluster
	storage, out string
	size         int64
}

func (in *incrementBench) env() []string {
	return []string{"WALG_FILE_PREFIX=" + in.storage, "WALG_USE_WAL_DELTA=true", "WALG_DELTA_MAX_STEPS=" + strconv.Itoa(chainLength)}
}

// run takes a backup untimed.
func (in *incrementBench) run(p program, args ...string) error {
	cmd := in.c.Command(in.b.ctx, p.path, append([]string{"backup-push", in.c.DataDir()}, args...)...)
	cmd.Env = append(cmd.Env, in.env()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("take a backup with %s: %w\n%s", p.name, err, tail(string(out)))
	}
	return nil
}

// newest is the name of the newest backup: names ascend with the WAL.
func (in *incrementBench) newest() string {
	const suffix = "_backup_stop_sentinel.json"
	found, _ := filepath.Glob(filepath.Join(in.storage, "basebackups_005", "*"+suffix))
	if len(found) == 0 {
		return ""
	}
	return strings.TrimSuffix(filepath.Base(found[len(found)-1]), suffix)
}

// change changes about a hundredth: a row in some hundred pages, whose new
// version goes elsewhere, and its entry in the index.
func (in *incrementBench) change(n int) {
	in.c.SQL(fmt.Sprintf("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid %% 10000 = %d; CHECKPOINT", 7*n))
	in.c.SQL("SELECT pg_switch_wal()")
}

// summaries turns the server's WAL summaries on or off, where it can make them.
func (in *incrementBench) summaries(on bool) {
	if in.c.Major() < 17 {
		return
	}
	in.c.SQL(fmt.Sprintf("ALTER SYSTEM SET summarize_wal = %t", on))
	in.c.SQL("SELECT pg_reload_conf()")
	in.c.Await("SHOW summarize_wal", map[bool]string{true: "on", false: "off"}[on])
}

// way is one way to take an increment.
type way struct {
	name      string
	p         program
	env       []string
	summaries bool
	// said is what the log has to say of it.
	said string
	// What was measured.
	samples    []sample
	work, read []float64 // seconds from start to end of the backup; MiB
}

func (in *incrementBench) push(title, base string) error {
	var ways []*way
	for _, p := range in.b.programs {
		w := &way{name: p.name + ", pages are read", p: p, env: []string{"WALG_USE_WAL_DELTA=false"}}
		if p.name == "walherd" {
			w.said = "changed files are read for their changed blocks"
		}
		ways = append(ways, w)
	}
	ways = append(ways, &way{name: "walherd, maps of archived WAL", p: in.b.programs[0], env: []string{"WALG_FORCE_WAL_DELTA=true"},
		said: "taken from the change maps of archived WAL"})
	if in.c.Major() >= 17 {
		ways = append(ways, &way{name: "walherd, the server's summaries", p: in.b.programs[0], summaries: true, said: "taken from the server's WAL summaries"})
	}
	for round := range in.b.opt.runs {
		for _, w := range ways {
			in.b.logf("%s: round %d of %d: %s", title, round+1, in.b.opt.runs, w.name)
			in.summaries(w.summaries)
			if err := in.one(w, base); err != nil {
				return fmt.Errorf("measure %s: %s: %w", title, w.name, err)
			}
		}
	}
	t := table.NewWriter()
	t.AppendHeader(table.Row{"increment by", "whole command, wall s", "start to end of the backup, s", "CPU s", "read MiB", "of the cluster", "wall / pages are read", "start to end / pages are read"})
	for i, w := range ways {
		ratio, work := "1", "1"
		if i > 0 {
			ratio = spreadOf(ratios(w.samples, ways[0].samples)).format("%.2f")
			v := make([]float64, len(w.work))
			for k := range v {
				v[k] = w.work[k] / ways[0].work[k]
			}
			work = spreadOf(v).format("%.2f")
		}
		read := spreadOf(w.read)
		t.AppendRow(table.Row{w.name, spreadOf(column(w.samples, wallSeconds)).format("%.3f"), spreadOf(w.work).format("%.3f"),
			fmt.Sprintf("%.2f", spreadOf(column(w.samples, func(s sample) float64 { return s.cpu.Seconds() })).median),
			read.format("%.1f"), fmt.Sprintf("%.1f %%", read.median*(1<<20)/float64(in.size)*100), ratio, work})
	}
	fmt.Fprintf(in.b.stdout, "\n### %s (%d rounds)\n\nRead is what the process has read by system calls, cached or not, storage and connections included.\n\n%s\n",
		title, in.b.opt.runs, t.RenderMarkdown())
	return nil
}

// one takes one increment, measured.
func (in *incrementBench) one(w *way, base string) error {
	// The shell's count takes up that of a child that has ended.
	script := fmt.Sprintf("mapfile -t a < /proc/$$/io; %s backup-push --delta-from-name %s %s 2> %[4]s/log || { cat %[4]s/log; exit 1; }; mapfile -t b < /proc/$$/io; echo $((${b[0]#rchar: } - ${a[0]#rchar: })) > %[4]s/read",
		w.p.path, base, in.c.DataDir(), in.out)
	s, err := in.b.measure(in.c, contender{script: script, env: append(in.env(), w.env...), out: in.out, wantBytes: 1, cold: in.b.opt.cold})
	if err != nil {
		return err
	}
	w.samples = append(w.samples, s)
	text, err := os.ReadFile(filepath.Join(in.out, "read"))
	if err != nil {
		return fmt.Errorf("read what was measured: %w", err)
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	if err != nil {
		return fmt.Errorf("read what was measured: %w", err)
	}
	w.read = append(w.read, float64(n)/(1<<20))
	log, err := os.ReadFile(filepath.Join(in.out, "log"))
	if err != nil {
		return fmt.Errorf("read what was logged: %w", err)
	}
	if !strings.Contains(string(log), w.said) {
		return fmt.Errorf("it was another kind of increment: no %q in\n%s", w.said, tail(string(log)))
	}
	work, err := between(string(log), "Calling pg_start_backup()", "Calling pg_stop_backup()")
	w.work = append(w.work, work.Seconds())
	return err
}

// between is the time from the last log line with one text to that with the
// other. Lines begin "INFO: 2026/11/23 01:12:45.889478".
func between(log, from, to string) (time.Duration, error) {
	var at [2]time.Time
	for line := range strings.Lines(log) {
		for i, text := range []string{from, to} {
			if !strings.Contains(line, text) {
				continue
			}
			f := strings.Fields(line)
			var err error
			if len(f) < 3 {
				return 0, fmt.Errorf("read log line %q", line)
			}
			if at[i], err = time.Parse("2006/01/02 15:04:05.999999", f[1]+" "+f[2]); err != nil {
				return 0, fmt.Errorf("read log line: %w", err)
			}
		}
	}
	if at[0].IsZero() || at[1].IsZero() {
		return 0, fmt.Errorf("read log: no %q and %q", from, to)
	}
	return at[1].Sub(at[0]), nil
}

func (in *incrementBench) fetch(title string) error {
	target := filepath.Join(in.c.Dir(), "fetched")
	var list []contender
	for _, o := range []struct{ name, flags string }{
		{"", ""}, {", reverse", " --reverse-unpack"}, {", reverse, redundant tars skipped", " --reverse-unpack --skip-redundant-tars"},
	} {
		for _, p := range in.b.programs {
			list = append(list, contender{
				name: p.name + " backup-fetch" + o.name, script: p.path + " backup-fetch" + o.flags + " " + target + " LATEST",
				env: append(in.env(), "WALG_TAR_DISABLE_FSYNC=true"), out: target, wantBytes: in.size * 95 / 100,
			})
		}
	}
	return in.b.rotate(in.c, title, in.b.opt.runs, list)
}
