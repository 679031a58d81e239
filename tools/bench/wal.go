package main

import (
	"fmt"
	"path/filepath"

	"github.com/walherd/walherd/producer/pgtest"
)

// wal measures wal-push and wal-fetch of one segment, whole processes: what
// archive_command and restore_command cost.
func (b *bench) wal(c *pgtest.Cluster) error {
	if !b.selected("wal-push", "wal-fetch") {
		return nil
	}
	// The last segment that is complete; wal_keep_size keeps it there.
	name := c.SQL("SELECT pg_walfile_name(pg_switch_wal())")
	segment := filepath.Join(c.WALDir(), name)
	fmt.Fprintf(b.stdout, "\n## One WAL segment of %s, lz4\n", c.SQL("SELECT pg_size_pretty(setting::bigint) FROM pg_settings WHERE name = 'wal_segment_size'"))
	lz4 := methods()[0]
	if b.selected("wal-push") {
		var list []contender
		for _, p := range b.programs {
			out := filepath.Join(c.Dir(), "wal-"+p.name)
			list = append(list, contender{
				name: p.name + " wal-push", script: "exec " + p.path + " wal-push " + segment,
				env: b.env(lz4, out), out: out, count: true,
			})
		}
		out := filepath.Join(c.Dir(), "wal-tool")
		list = append(list, contender{
			name: "lz4 -1, sync", script: "lz4 -1 -q -c " + segment + " > " + out + "/out && sync " + out + "/out " + out,
			out: out, count: true,
		})
		if err := b.rotate(c, "wal-push", b.opt.calls, list); err != nil {
			return err
		}
	}
	if !b.selected("wal-fetch") {
		return nil
	}
	var list []contender
	for _, p := range b.programs {
		stored := filepath.Join(c.Dir(), "archive-"+p.name)
		out := filepath.Join(c.Dir(), "walfetch-"+p.name)
		c.Run("mkdir", stored)
		cmd := c.Command(b.ctx, p.path, "wal-push", segment)
		cmd.Env = append(cmd.Env, b.env(lz4, stored)...)
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("archive the segment to be fetched with %s: %w\n%s", p.name, err, tail(string(text)))
		}
		list = append(list, contender{
			name: p.name + " wal-fetch", script: "exec " + p.path + " wal-fetch " + name + " " + out + "/RECOVERYXLOG",
			env: b.env(lz4, stored), out: out, wantBytes: 16 << 20,
		})
	}
	stored := filepath.Join(c.Dir(), "archive-tool")
	out := filepath.Join(c.Dir(), "walfetch-tool")
	c.Run("/bin/bash", "-c", "lz4 -1 -q "+segment+" "+stored)
	list = append(list, contender{name: "lz4 -d", script: "lz4 -d -q " + stored + " " + out + "/RECOVERYXLOG", out: out, wantBytes: 16 << 20})
	return b.rotate(c, "wal-fetch", b.opt.calls, list)
}
